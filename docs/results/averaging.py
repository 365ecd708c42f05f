"""Is the mean of eight models of one corpus better than one of them, and than one model of all their operations?

    python docs/results/averaging.py RUNS/docking en-held-out.jsonl docs/results/averaging.jsonl

The models are English experts of study_docking.yaml with the rate that was tuned there, with other seeds: GROUPS times
MEMBERS of them, which differ in their first weights and in the order of the data, and one with the tokens of all. Rows are
bits per byte of the held-out text, by group: of one of the eight (their mean), of the mean of logits, of the mean of
probabilities, and of the long training; `python docs/results/judge.py` judges them.
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

from stitching import bits_per_byte, call, recipe_of

from glyphlm.base.outputs import write_atomic
from glyphlm.base.records import read_json_lines, to_lines

EXPERT, GROUPS, MEMBERS, TOKENS = "en", 3, 8, 64_000
METHODS = ("mean_logits", "mean_probs")


def of_group(recipe: Path, group: int, text: str, out: Path) -> Iterator[tuple[str, float]]:
    """The name and the bits per byte of each."""

    def trained(seed: int, tokens: int) -> Path:
        call("train", str(recipe), "--train.seed", str(seed), "--train.tokens", str(tokens), "--out", str(out / str(seed)))
        return out / str(seed)

    members = [trained(100 * group + number, TOKENS) for number in range(1, MEMBERS + 1)]
    yield "one", mean(bits_per_byte(run, text) for run in members)
    for method in METHODS:
        call("fuse", *map(str, members), "--method", method, "--out", str(out / method))
        yield method, bits_per_byte(out / method, text)
    yield "long", bits_per_byte(trained(100 * group, MEMBERS * TOKENS), text)


def main(study: Path, text: str, rows: Path) -> None:
    """Make all rows."""
    run = next(Path(row["run"]) for row in read_json_lines(study / "results.jsonl") if row["arm"] == EXPERT)
    recipe = recipe_of(study, run)
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for group in range(1, GROUPS + 1):
            found += [{"arm": arm, "seed": group, "measure": f"bpb bits per byte, {text}", "value": value}
                      for arm, value in of_group(recipe, group, text, Path(folder) / str(group))]
    write_atomic(rows, to_lines(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
