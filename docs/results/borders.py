"""What the models of a study lose in each language of mixed text, after a change of language, and by being fused.

    python docs/results/borders.py RUNS/docking interleaved.jsonl switched.jsonl

Adds rows to results.jsonl of the study, which `python docs/results/judge.py` judges:
- `bpb bits per byte, FILE` of the texts;
- `bpb bits per byte, borders`: the first LETTERS letters after each change of language in the texts;
- `inside bits per byte, mixed_LANGUAGE`: the tokens of a language in the texts, borders included;
- of the models `own` and `learned_own` what the expert of the language of each token would have, which nobody knows
  beforehand;
- `lost in fusion bits per byte, TEXT`: a fused model minus that.
"""

import json
import math
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glyphlm.base.outputs import write_atomic
from glyphlm.base.progress import meter
from glyphlm.base.records import read_json_lines, to_lines
from glyphlm.corpus.reading import Passage
from glyphlm.evaluation.model import EvalModel, load_eval_model
from glyphlm.training.bits_per_byte import document_scores

LANGUAGES, LETTERS, LEARNED = ("en", "ru", "zh"), 5, "learned_"
SCRIPTS = {"LATIN": "en", "CYRILLIC": "ru", "CJK": "zh"}
BITS, BORDERS = "bpb bits per byte, ", "borders"
INSIDE, LOST = "inside bits per byte, mixed_", "lost in fusion bits per byte, "
Row = dict[str, Any]
Nats = dict[tuple[str, str, bool], tuple[float, int]]  # file, language, within a border -> nats and bytes


def of_letter(character: str) -> str | None:
    """The language of a letter's script; None for other characters."""
    return SCRIPTS.get(unicodedata.name(character, "").partition(" ")[0]) if character.isalpha() else None


def marks(text: str) -> list[tuple[str, bool]]:
    """Of each byte: the language of the last letter up to it, and whether it is within LETTERS letters of a change."""
    language, since, found = next(filter(None, map(of_letter, text)), "en"), LETTERS, []
    for character in text:
        if letter := of_letter(character):
            since = 0 if letter != language else since + 1
            language = letter
        found += [(language, since < LETTERS)] * len(character.encode())
    return found


def score(model: EvalModel, files: Sequence[Path]) -> Nats:
    """Nats and bytes of the texts of some files; a token counts where its first byte that is no space stands."""
    sums: dict[tuple[str, str, bool], list[float]] = defaultdict(lambda: [0.0, 0])
    for file in files:
        for row in file.read_text(encoding="utf-8").splitlines():
            text = json.loads(row)["text"]
            marked, data, at = marks(text), text.encode(), 0
            for mark in marked:
                sums[file.name, *mark][1] += 1
            for nats, number in token_nats(model, text):
                end = at + int(model.tokenizer.bytes_per_id_V[number])
                first = next((place for place in range(at, end) if not data[place : place + 1].isspace()), at)
                sums[file.name, *marked[min(first, len(data) - 1)]][0] += nats
                at = end
    return {key: (nats, int(size)) for key, (nats, size) in sums.items()}


def token_nats(model: EvalModel, text: str) -> list[tuple[float, int]]:
    """Nats and id of each token of a text."""
    found: list[tuple[float, int]] = []
    pieces = model.tokenizer.encode_passages(iter([Passage(text, True)]))
    sizes_V = model.tokenizer.bytes_per_id_V
    for _ in document_scores(model.scorer, pieces, model.first_id, sizes_V,
                             seen=lambda _, nats_N, ids_N: found.extend(zip(nats_N.tolist(), ids_N.tolist()))):
        pass
    return found


def measures(nats: Nats) -> dict[str, float]:
    """Bits per byte of the files, of the borders, and of each language."""
    groups: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for (file, language, border), values in nats.items():
        groups[BITS + file].append(values)
        groups[INSIDE + language].append(values)
        if border:
            groups[BITS + BORDERS].append(values)
    return {name: sum(nats for nats, _ in values) / math.log(2) / sum(size for _, size in values)
            for name, values in sorted(groups.items())}


def of_own(experts: dict[str, Nats]) -> Nats:
    """The nats of each language under its expert."""
    return {key: experts[key[1]][key] for key in experts[LANGUAGES[0]]}


def added_rows(rows: Sequence[Row], files: Sequence[Path]) -> list[Row]:
    """The rows to add, of all models and seeds."""
    runs = {(row["arm"], row["seed"]): row["run"] for row in rows if "run" in row and "router_" not in row["arm"]}
    found: dict[tuple[str, int], Nats] = {}
    with meter("models", len(runs)) as bar:
        for key, run in runs.items():
            found[key] = score(load_eval_model(run), files)
            bar.advance(1)
    values = {(row["arm"], row["seed"], row["measure"]): row["value"] for row in rows if row["measure"].startswith(BITS)}
    for seed in sorted({seed for _, seed in runs}):
        for prefix in ("", LEARNED):
            experts = {language: found.get((prefix + language, seed)) for language in LANGUAGES}
            if all(experts.values()):
                found[f"{prefix}own", seed] = of_own(experts)  # pyright: ignore[reportArgumentType]
                for language in LANGUAGES:
                    of_expert = {measure: value for (arm, of, measure), value in values.items()
                                 if (arm, of) == (prefix + language, seed) and f"{language}-held-out" in measure}
                    values |= {(f"{prefix}own", seed, measure): value for measure, value in of_expert.items()}
    measured = {(*key, name): value for key, nats in found.items() for name, value in measures(nats).items()}
    added = {key: value for key, value in measured.items() if key not in values}
    every = values | added
    added |= {key: value for key, value in values.items() if key[0].endswith("own")}
    single = {*LANGUAGES, *(LEARNED + language for language in LANGUAGES), "own", f"{LEARNED}own"}
    for (arm, seed, measure), value in every.items():
        own = every.get((f"{LEARNED * arm.startswith(LEARNED)}own", seed, measure))
        if measure.startswith(BITS) and arm not in single and not arm.startswith("joint") and own is not None:
            added[arm, seed, LOST + measure.removeprefix(BITS)] = value - own
    return [{"arm": arm, "seed": seed, "measure": measure, "value": value}
            for (arm, seed, measure), value in sorted(added.items())]


def main(study: Path, files: Sequence[Path]) -> None:
    """Add the rows, in place of those that an earlier call added."""
    rows = [row for row in read_json_lines(study / "results.jsonl") if "run" in row or "threshold" in row]
    write_atomic(study / "results.jsonl", to_lines([*rows, *added_rows(rows, files)]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(file) for file in sys.argv[2:]])
