"""Variants of letters that training showed: how well the models of recipes/study_substrate.yaml (x1) read them.

    python docs/results/variants.py read STUDY en-held-out.jsonl ru-held-out.jsonl docs/results/variants
    python docs/results/variants.py judge docs/results/variants

In WINDOWS windows of held-out text for each kind, one letter that is a token of its own is replaced by a variant: a
full-width or mathematical Latin letter (NFKC gives the letter), or a Latin or Cyrillic letter with a mark (NFD gives the
letter first). No variant has an id in the vocabulary; `extend` adds them with their codes. SPAN bytes after it are scored:
bits per byte lost by the variant in place of the letter, those lost with random codes of the same norm, and the share of
these that the codes save. A trained table reads the variant as its bytes. HALF saves half.
"""

import random
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from unseen import interval_bars, judged, means_table

from glyphlm.analysis.unseen import bits_per_byte, read, readings
from glyphlm.base.outputs import write_atomic
from glyphlm.base.records import read_json_lines, to_lines
from glyphlm.evaluation.stats import over_seeds
from glyphlm.experiments.extend import extend
from glyphlm.runs.folder import load_run
from glyphlm.studies.settings import Claim
from glyphlm.tokenizer.build import with_characters
from glyphlm.tokenizer.tokenizer import Tokenizer

KINDS = {"full-width Latin": range(0xFF21, 0xFF5B), "mathematical Latin": range(0x1D400, 0x1D6A4),
         "Latin with a mark": (*range(0xC0, 0x250), *range(0x1E00, 0x1F00)), "Cyrillic with a mark": range(0x400, 0x530)}
WINDOWS, BEFORE, SPAN, SEED = 64, 80, 6, 1  # windows of a kind; characters before the letter; bytes scored after it
BY_BYTES = "learned_small"
ARMS = ("glyph_rms", "permuted_glyph_rms", "raw_bits", BY_BYTES)
COST, RANDOM, CLOSED, HALF = "loss in bits per byte", "of random codes: loss in bits per byte", "gap closed", "half"
CLAIMS = [
    Claim("glyphs close half of the gap between random codes and the letter itself", "glyph_rms", HALF, "our goal", [COST],
          kind="better"),
    Claim("a variant costs less with glyphs than with glyphs of other tokens", "glyph_rms", "permuted_glyph_rms",
          "our question", [COST], kind="better"),
    Claim("a variant costs less with glyphs than with bits of the id", "glyph_rms", "raw_bits", "our question", [COST],
          kind="better"),
    Claim("a variant costs less with glyphs than with a trained table that reads its bytes", "glyph_rms", BY_BYTES,
          "our question", [COST], kind="better"),
]
Row = dict[str, Any]


def letter_of(variant: str) -> str | None:
    """The letter that a character is a variant of."""
    plain, parts = unicodedata.normalize("NFKC", variant), unicodedata.normalize("NFD", variant)
    if len(parts) > 1 and all(map(unicodedata.combining, parts[1:])):
        plain = parts[0]
    return plain if len(plain) == 1 and plain != variant and plain.isalpha() else None


def choose(tokenizer: Tokenizer, kind: str, documents: Sequence[str]) -> Iterator[Row]:
    """WINDOWS windows: `text` with a `variant`, and the `original`; drawn, no two from the same place."""
    known, variants, draw = set(tokenizer.tokens), dict[str, list[str]](), random.Random(SEED)
    for variant in map(chr, KINDS[kind]):
        if (letter := letter_of(variant)) in known and variant not in known:
            variants.setdefault(str(letter), []).append(variant)
    places = [(number, at) for number, document in enumerate(documents) for at in range(BEFORE, len(document) - SPAN)
              if document[at] in variants]
    draw.shuffle(places)
    wider, found = with_characters(tokenizer, "".join(map("".join, variants.values()))), 0
    for number, at in places:
        variant = draw.choice(variants[documents[number][at]])
        before, after = documents[number][at - BEFORE : at], documents[number][at + 1 : at + 1 + SPAN]
        original, text = (before + one + after for one in (documents[number][at], variant))
        plain, replaced = tokenizer.encode(original), wider.encode(text)
        if len(plain) == len(replaced) and sum(a != b for a, b in zip(plain, replaced)) == 1:
            yield {"kind": kind, "original": original, "text": text, "variant": variant}
            found += 1
            if found == WINDOWS:
                return


def measure(run: Path, windows: Sequence[Row], out: Path, by_bytes: bool) -> Iterator[Row]:
    """Costs, and the share of the gap that the codes of a run close, by kind."""
    used = "".join(sorted({window["variant"] for window in windows}))
    if not by_bytes:
        extend(run, used, out)
    wrapped, tokenizer = load_run(run)
    plain = [read(wrapped.gpt, tokenizer, window["original"]).after([_end_of_letter(window)], SPAN) for window in windows]
    found = readings(str(run if by_bytes else out), used, [window["text"] for window in windows], span=SPAN)
    for kind in KINDS:
        places = [place for place, window in enumerate(windows) if window["kind"] == kind]
        original, own, of_random = (bits_per_byte([of[place] for place in places]) if of else None
                                    for of in (plain, found["own"], found["random"]))
        yield {"measure": f"{COST}, {kind}", "value": own - original}
        if of_random is not None:
            yield {"measure": f"{RANDOM}, {kind}", "value": of_random - original}
            yield {"measure": f"{CLOSED}, {kind}", "value": 1 - (own - original) / (of_random - original)}


def _end_of_letter(window: Row) -> int:
    return len(window["original"][: BEFORE + 1].encode())


def write_rows(study: Path, english: Path, russian: Path, out: Path) -> None:
    """results.jsonl of the finished seeds in the folder `out`; what is there is not made again."""
    out.mkdir(exist_ok=True)
    runs = {(arm, int(run.name.rpartition("-")[2])): run for arm in ARMS for run in _chosen(study, arm)}
    tokenizer = load_run(next(iter(runs.values())))[1]
    texts = {path: [row["text"] for row in read_json_lines(path)] for path in (english, russian)}
    windows = [window for kind in KINDS for window in choose(tokenizer, kind, texts[russian if "Cyr" in kind else english])]
    rows = read_json_lines(out / "results.jsonl")
    for (arm, seed), run in sorted(runs.items(), key=lambda item: item[0][1]):
        if not any((row["arm"], row["seed"]) == (arm, seed) for row in rows):
            beside = {"arm": arm, "seed": seed, "windows": WINDOWS}
            rows += [beside | row for row in measure(run, windows, study / "variants" / run.name, arm == BY_BYTES)]
            if arm == "glyph_rms":
                rows += [row | {"arm": HALF, "measure": row["measure"].replace(RANDOM, COST), "value": row["value"] / 2}
                         for row in rows if (row["arm"], row["seed"]) == (arm, seed) and row["measure"].startswith(RANDOM)]
            write_atomic(out / "results.jsonl", to_lines(rows))


def _chosen(study: Path, arm: str) -> list[Path]:
    """The runs of an arm with the learning rate that was chosen: those of most seeds."""
    settings = max(study.glob(f"runs/{arm}-*"), key=lambda folder: len([*folder.iterdir()]))
    return [run for run in settings.iterdir() if not run.name.endswith("-0")]


def write_verdicts(folder: Path) -> None:
    """claims.jsonl and variants.svg of a folder with results.jsonl; prints means and verdicts."""
    rows = read_json_lines(folder / "results.jsonl")
    losses: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        losses.setdefault((row["arm"], row["measure"]), []).append(row["value"])
    drawn = {arm: {kind: over_seeds(losses[arm, f"{COST}, {kind}"]) for kind in KINDS} for arm in ARMS}
    write_atomic(folder / "variants.svg", interval_bars(drawn, "bits per byte lost by a variant of a letter"))
    print(f"{means_table(rows, ARMS)}\n\n{judged(CLAIMS, rows, folder)}")


if __name__ == "__main__":
    {"read": write_rows, "judge": write_verdicts}[sys.argv[1]](*map(Path, sys.argv[2:]))
