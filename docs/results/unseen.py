"""Characters that training never showed: the texts of the study recipes/unseen.yaml, and what its models know of them.

    python unseen.py texts tatoeba.cmn-eng.tsv    # English, Chinese, licence a line; writes texts and characters here
    python study_here.py recipes/unseen.yaml --profile small --out unseen --minutes 30
    python unseen.py probe unseen         # what the models read and write, by arm and seed: unseen/probes/results.jsonl
    python unseen.py judge FOLDER         # the verdicts on the rows of a folder: claims.jsonl, unseen.svg

Sentences are documents; a share of TESTED, drawn, is trained on by no model. HELD_OUT characters are drawn from those that
occur about OFTEN times and are in no n-gram of the vocabulary; sentences that hold one are dropped from training, within
MOST_CUT of the text. Tested are sentences that hold one of them. Look-alikes are the half of the characters whose glyphs are
nearest to that of a character that training showed (cosine of codes). Compatibility ideographs and radicals (U+F900 to FAFF,
2F00 to 2FD5) are put in place of the characters that they are variants of, and read by models that `tokenizer extend` gave
codes for them: homoglyphs are those that Unifont draws alike, pixel by pixel, redrawn are the others. Their oracle is the
same model on the original sentence.
"""

import random
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from math import log, log10
from pathlib import Path
from typing import Any

import numpy as np
import torch

from glyphlm.analysis.plots import draw_bars
from glyphlm.analysis.unseen import bits_per_byte, draw_predictions, read, readings
from glyphlm.base.outputs import write_atomic
from glyphlm.base.records import read_json_lines, to_lines
from glyphlm.evaluation.stats import Interval, over_seeds
from glyphlm.experiments.extend import extend
from glyphlm.runs.folder import load_run
from glyphlm.studies.claims import claims_digest, judge
from glyphlm.studies.results import claims_table
from glyphlm.studies.settings import Claim
from glyphlm.substrate.fonts import load_fonts
from glyphlm.substrate.glyphs import draw_tokens
from glyphlm.tokenizer.build import build_tokenizer
from glyphlm.tokenizer.settings import TokenizerSettings
from glyphlm.tokenizer.tokenizer import Tokenizer

VOCAB, SEED, TESTED = 1536, 1, 0.2  # ids; share of the sentences
HELD_OUT, OFTEN, MOST_CUT = 20, (70, 200), 0.10  # drawn of those so frequent; share of the characters of the text
WINDOWS, SAME_LOOK = 20, 3  # sentences tested of a character, and of a variant
VARIANTS, KINDS = (*range(0x2F00, 0x2FD6), *range(0xF900, 0xFB00)), ("homoglyphs", "redrawn")
TEXT, TEST, SAME = "zh-unseen.jsonl", "zh-unseen-test.jsonl", "zh-unseen-homoglyphs.jsonl"
CHARACTERS, BYTES = Path("unseen-characters.txt"), Path("unseen-bytes")
SPAN = 6  # bytes after a character that are scored: two Chinese characters
BITS, RANDOM, CLOSED, TIMES = "bits per byte", "bits per byte with random codes", "gap closed", "log10 of times the unigram"
GOAL, QUESTION = "our goal", "our question"
CLAIMS = [
    Claim("glyphs close half of the gap between random codes and an oracle", "glyph", "half_way", GOAL, [f"{BITS}, all"],
          kind="better"),
    Claim("with a head tied to glyphs the right character has ten times the probability of a smoothed unigram", "glyph_tied",
          "ten_times", GOAL, [f"{TIMES}, all"], kind="better"),
    Claim("after an unseen character glyphs are better than a trained table with fallback to bytes", "glyph", "bytes",
          QUESTION, [f"{BITS}, all"], kind="better"),
    Claim("after an unseen character glyphs are better than glyphs of other tokens", "glyph", "permuted", QUESTION,
          [f"{BITS}, all"], kind="better"),
    Claim("after an unseen character glyphs are better than bits of the id", "glyph", "bits", QUESTION, [f"{BITS}, all"],
          kind="better"),
    Claim("unique bits in glyphs cost nothing after an unseen character", "glyph_unique", "glyph", QUESTION,
          [f"{BITS}, all"], margin=0.02),
    Claim("a head tied to glyphs is better at writing than one tied to glyphs of other tokens", "glyph_tied",
          "permuted_tied", QUESTION, [f"{TIMES}, all"], kind="better"),
]
ARMS = ("glyph", "glyph_unique", "permuted", "bits", "bytes", "glyph_tied", "permuted_tied")
Row = dict[str, Any]


def write_texts(path: Path) -> None:
    """The texts, the characters and the tokenizer without them, in the present folder."""
    lines = path.read_text(encoding="utf-8").splitlines()
    sentences = list(dict.fromkeys(line.split("\t")[1] for line in lines))
    random.Random(SEED).shuffle(sentences)
    tested = round(TESTED * len(sentences))
    tests, trained = sentences[:tested], sentences[tested:]
    _write(TEXT, trained)
    tokenizer = build_tokenizer([TEXT], TokenizerSettings(vocab_size=VOCAB), Path("unseen-tokenizer"))
    held_out = _choose(tokenizer.tokens, trained)
    write_atomic(CHARACTERS, held_out + "\n")
    kept = [sentence for sentence in trained if not set(sentence) & set(held_out)]
    _write("zh-unseen-kept.jsonl", kept)
    build_tokenizer(["zh-unseen-kept.jsonl"], TokenizerSettings(vocab_size=VOCAB), BYTES)
    windows = _tested(tests, held_out, held_out, WINDOWS)
    _write(TEST, windows)
    same = _stand_ins(tests, {*tokenizer.tokens} - {*held_out}, held_out)
    Path(SAME).write_text(to_lines(same), encoding="utf-8")
    size, left = (sum(map(len, of)) for of in (trained, kept))
    print(f"{held_out}: in {len(trained) - len(kept):,} of {len(trained):,} sentences, {1 - left / size:.1%} of {size:,} "
          f"characters; {len(windows)} sentences tested; {Counter(row['kind'] for row in same)}")


def _stand_ins(sentences: Sequence[str], known: set[str], held_out: str) -> list[Row]:
    """Sentences in which a variant stands in for a known character, with the original and whether both are drawn alike."""
    pairs = {unicodedata.normalize("NFKC", chr(code)): chr(code) for code in VARIANTS}
    pairs = {seen: variant for seen, variant in pairs.items() if seen in known and seen != variant}
    bits_VP = draw_tokens([*pairs, *pairs.values()], load_fonts(None, 32), 32).bits_VP
    same_N = (bits_VP[: len(pairs)] == bits_VP[len(pairs) :]).all(1)
    kinds = {seen: KINDS[not same] for seen, same in zip(pairs, same_N)}
    found = []
    for sentence in _tested(sentences, "".join(pairs), held_out + "".join(pairs), SAME_LOOK):
        seen = next(iter(set(sentence) & set(pairs)))
        found.append({"kind": kinds[seen], "text": sentence.replace(seen, pairs[seen]), "original": sentence,
                      "character": pairs[seen]})
    return found


def _choose(tokens: Sequence[str], sentences: Sequence[str]) -> str:
    """HELD_OUT Chinese characters, OFTEN in the text and in no n-gram of the vocabulary, within MOST_CUT of the text."""
    in_ngrams = {character for token in tokens if len(token) > 1 for character in token}
    single = [token for token in tokens if len(token) == 1 and "一" <= token <= "鿿" and token not in in_ngrams]
    places: dict[str, set[int]] = {token: set() for token in single}
    for number, sentence in enumerate(sentences):
        for character in places.keys() & set(sentence):
            places[character].add(number)
    able = [token for token in single if OFTEN[0] <= len(places[token]) <= OFTEN[1]]
    chosen, cut, size = "", set(), sum(map(len, sentences))
    for character in random.Random(SEED).sample(able, len(able)):
        more = cut | places[character]
        if len(chosen) < HELD_OUT and sum(len(sentences[number]) for number in more) <= MOST_CUT * size:
            chosen, cut = chosen + character, more
    return "".join(sorted(chosen))


def _tested(sentences: Sequence[str], wanted: str, alone: str, most: int) -> list[str]:
    """Up to `most` sentences with each wanted character in which no other of `alone` occurs, none at its very end."""
    taken: Counter[str] = Counter()
    found = []
    for sentence in sentences:
        held = [one for one in sentence if one in alone]
        if len(held) == 1 and held[0] in wanted and taken[held[0]] < most and not sentence.endswith(held[0]):
            taken[held[0]] += 1
            found.append(sentence)
    return found


def _write(path: str, documents: Sequence[str]) -> None:
    Path(path).write_text(to_lines([{"text": document} for document in documents]), encoding="utf-8")


def write_probes(out: Path) -> None:
    """results.jsonl and nearest.jsonl in the folder `probes` of the study: all measures of the finished arms, by seed."""
    found = out / "probes"
    found.mkdir(exist_ok=True)
    rows = read_json_lines(found / "results.jsonl")
    for oracle in sorted(out.glob("runs/oracle-*/oracle-*/summary.json")):
        seed = int(oracle.parent.name.rpartition("-")[2])
        runs = {arm: run.parent for arm in ARMS for run in out.glob(f"runs/{arm}-*/{arm}-{seed}/summary.json")}
        if seed not in {row["seed"] for row in rows} and set(runs) == {*ARMS}:
            rows += [{"seed": seed} | row for row in _measured(runs, oracle.parent, found)]
            write_atomic(found / "results.jsonl", to_lines(rows))


def _measured(runs: dict[str, Path], oracle: Path, out: Path) -> Iterator[Row]:
    held_out, windows = CHARACTERS.read_text(encoding="utf-8").strip(), [row["text"] for row in read_json_lines(Path(TEST))]
    near = _nearest(runs["glyph"], held_out)
    write_atomic(out / "nearest.jsonl", to_lines(near))
    ordered = "".join(row["character"] for row in near)
    half = len(ordered) // 2
    sets = {"all": held_out, "look-alikes": ordered[:half], "others": ordered[half:]}
    of_sets = {name: [number for number, window in enumerate(windows) if set(window) & set(characters)]
               for name, characters in sets.items()}
    best = readings(str(oracle), held_out, windows, span=SPAN)
    for arm, run in ({"oracle": oracle} | runs).items():
        found = best if arm == "oracle" else readings(str(run), held_out, windows, span=SPAN)
        if arm == "glyph_tied":
            draw_predictions(found["written"], load_run(run)[1], out / f"{run.name}.png")
        for name, places in of_sets.items():
            yield from ({"arm": arm, "measure": f"{measure}, {name}", "value": value}
                        for measure, value in _values(found, best, places, is_oracle=arm == "oracle"))
        if arm == "glyph":
            ends = bits_per_byte(found["random"]), bits_per_byte(best["own"])
            yield {"arm": "half_way", "measure": f"{BITS}, all", "value": sum(ends) / 2}
    yield {"arm": "ten_times", "measure": f"{TIMES}, all", "value": 1.0}
    for arm in ("glyph", "glyph_unique"):
        for kind in KINDS:
            value = _same_look(runs[arm], kind, out / f"{runs[arm].name}-{kind}")
            yield {"arm": arm, "measure": f"{CLOSED}, {kind}", "value": value}


def _values(found: Row, best: Row, places: Sequence[int], is_oracle: bool) -> Iterator[tuple[str, float]]:
    """The measures of a model on some of the windows."""
    own, top, random_ = (bits_per_byte([of[place] for place in places]) if of else None
                         for of in (found["own"], best["own"], found["random"]))
    yield BITS, own
    if random_ is None:
        return
    yield RANDOM, random_
    if not is_oracle:
        yield CLOSED, (random_ - own) / (random_ - top)
    written = [found["written"][place] for place in places]
    nats_N, rank_N = (np.array([getattr(one, name) for one in written]) for name in ("nats", "rank"))
    yield TIMES, -float(nats_N.mean() + log(found["unigram"])) / log(10)
    yield f"{TIMES}, mean probability", log10(np.exp(-nats_N).mean() / found["unigram"])
    yield from ((f"right among the {k} likeliest", float((rank_N < k).mean())) for k in (1, 10, 100))


def _nearest(run: Path, held_out: str) -> list[Row]:
    """Each character with the one that training showed whose code has the largest cosine, the nearest first."""
    wrapped, tokenizer = load_run(run)
    seen = [token for token in tokenizer.tokens if len(token) == 1 and "一" <= token <= "鿿" and token not in held_out]
    codes = [wrapped.gpt.substrate(torch.tensor([[tokenizer.encode(one)[0] for one in of]]))[0] for of in (held_out, seen)]
    unseen_UD, seen_SD = (code_ND / code_ND.norm(dim=1, keepdim=True) for code_ND in codes)
    best = (unseen_UD @ seen_SD.T).max(1)
    rows = [{"character": one, "nearest": seen[place], "cosine": round(cosine, 4)}
            for one, place, cosine in zip(held_out, best.indices.tolist(), best.values.tolist())]
    return sorted(rows, key=lambda row: -row["cosine"])


def _same_look(run: Path, kind: str, out: Path) -> float:
    """The share of the gap between random codes and the character itself that a variant in its place closes."""
    tokenizer = load_run(run)[1]
    windows = [row for row in read_json_lines(Path(SAME)) if row["kind"] == kind and _is_token(tokenizer, row)]
    used = "".join(sorted({row["character"] for row in windows}))
    extend(run, used, out)
    found, (wrapped, tokenizer) = readings(str(out), used, [row["text"] for row in windows], span=SPAN), load_run(out)
    ends = [len(row["text"].partition(row["character"])[0].encode()) + 3 for row in windows]  # both are of 3 bytes
    best = sum(read(wrapped.gpt, tokenizer, row["original"]).after([end], SPAN)[0] for row, end in zip(windows, ends))
    own, random_ = (sum(nats for nats, _ in found[kind]) for kind in ("own", "random"))
    return (random_ - own) / (random_ - best)


def _is_token(tokenizer: Tokenizer, row: Row) -> bool:
    """Whether the original character is a token in its sentence, not a part of one, so that only its code differs."""
    seen = unicodedata.normalize("NFKC", row["character"])
    return seen in [tokenizer.tokens[number] for number in tokenizer.encode(row["original"])]


def write_verdicts(folder: Path) -> None:
    """claims.jsonl and unseen.svg of a folder with results.jsonl; prints the verdicts."""
    rows = read_json_lines(folder / "results.jsonl")
    write_atomic(folder / "unseen.svg", _gains(rows))
    print(f"{means_table(rows, (*ARMS, 'oracle'))}\n\n{judged(CLAIMS, rows, folder)}")


def judged(claims: Sequence[Claim], rows: Sequence[Row], folder: Path) -> str:
    """The verdicts on the rows as a table, also written to claims.jsonl of the folder."""
    beside = {"claims": claims_digest(claims, sorted({row["seed"] for row in rows}))}
    verdicts = [row | beside for row in judge(claims, rows)]
    write_atomic(folder / "claims.jsonl", to_lines(verdicts))
    return claims_table(verdicts)


def means_table(rows: Sequence[Row], arms: Sequence[str]) -> str:
    """Mean and half of the 95% interval over seeds of each arm and measure."""
    values: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        values.setdefault((row["measure"], row["arm"]), []).append(row["value"])
    arms = [arm for arm in arms if any(of == arm for _, of in values)]
    lines = [f"| measure | {' | '.join(arms)} |", f"|---|{'---:|' * len(arms)}"]
    for measure in dict.fromkeys(measure for measure, _ in values):
        found = [values.get((measure, arm)) for arm in arms]
        cells = [f"{np.mean(of):.3f} ± {over_seeds(of).high - np.mean(of):.3f}" if of else "" for of in found]
        lines.append(f"| {measure} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _gains(rows: Sequence[Row]) -> str:
    """Bits per byte that the codes gain over random ones, and the oracle over random codes of the glyphs, as SVG."""
    of = {(row["arm"], row["measure"], row["seed"]): row["value"] for row in rows}
    seeds, gains = sorted({row["seed"] for row in rows}), {}
    for arm in ("glyph", "glyph_unique", "permuted", "bits", "oracle"):
        start = "glyph" if arm == "oracle" else arm
        gains[arm] = {name: over_seeds([of[start, f"{RANDOM}, {name}", seed] - of[arm, f"{BITS}, {name}", seed]
                                        for seed in seeds]) for name in ("all", "look-alikes", "others")}
    return interval_bars(gains, "bits per byte gained over random codes")


def interval_bars(intervals: Mapping[str, Mapping[str, Interval]], label: str) -> str:
    """Bars at the middle of the intervals (arm -> group -> interval), as SVG."""
    means = {arm: {name: (one.low + one.high) / 2 for name, one in of_arm.items()} for arm, of_arm in intervals.items()}
    spans = {arm: {name: (one.low, one.high) for name, one in of_arm.items()} for arm, of_arm in intervals.items()}
    return draw_bars(means, label, spans)


if __name__ == "__main__":
    {"texts": write_texts, "probe": write_probes, "judge": write_verdicts}[sys.argv[1]](Path(sys.argv[2]))
