"""Do layers of strangers fit together better on a shared frozen substrate? Lower half of A, one linear map, upper half of B.

    python docs/results/stitching.py RUNS/docking en-held-out.jsonl docs/results/stitching.jsonl

A and B are the English experts of study_docking.yaml of two seeds (seed S below, S + 1 above, the last below the first), on
the shared frozen glyphs (`frozen`) or each with a table that it trained (`learned`). The map begins as the identity, and is
then trained for TOKENS tokens. A row is what a stitched model loses, in bits per byte of the held-out text, of the expert
whose upper half it has; `python docs/results/judge.py` judges them.
"""

import contextlib
import io
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from glyphlm.base.outputs import write_atomic
from glyphlm.base.records import read_json_lines, to_lines
from glyphlm.cli.main import main as glyphlm

ARMS = {"frozen": "en", "learned": "learned_en"}
TOKENS = 32_768
LOST = "lost in stitching bits per byte, "


def bits_per_byte(run: Path, text: str) -> float:
    """Of the text, by `glyphlm eval`."""
    rows = run / "stitching.jsonl"
    call("eval", str(run), "--tasks", f"bpb={text}", "--out", str(rows))
    return next(row["value"] for row in read_json_lines(rows) if row["source"] == text)


def call(*arguments: str) -> None:
    """A command of glyphlm in this process, without its output."""
    with contextlib.redirect_stdout(io.StringIO()):
        if glyphlm([*arguments]):
            raise SystemExit(f"glyphlm {' '.join(arguments)} failed")


def recipe_of(study: Path, run: Path) -> Path:
    """The recipe that a study made for one of its runs."""
    return next(study.glob(f"recipes/{run.parent.name}/{run.name}.yaml"))


def stitched(study: Path, arm: str, text: str, out: Path) -> Iterator[dict[str, Any]]:
    """The rows of an arm."""
    rows = read_json_lines(study / "results.jsonl")
    runs = {row["seed"]: Path(row["run"]) for row in rows if row["arm"] == ARMS[arm] and "run" in row}
    seeds = sorted(runs)
    for seed, above in zip(seeds, [*seeds[1:], seeds[0]]):
        recipe = recipe_of(study, runs[seed])
        experts, other = [str(runs[seed]), str(runs[above])], ["--allow-different-substrates"] * (arm == "learned")
        untrained, trained = out / f"identity-{arm}-{seed}", out / f"trained-{arm}-{seed}"
        call("fuse", *experts, "--method", "stitch", *other, "--out", str(untrained))
        call("train", str(recipe), "--fusion.experts", f"[{', '.join(experts)}]", "--fusion.method", "stitch",
             "--fusion.allow_different_substrates", str(arm == "learned").lower(), "--train.tokens", str(TOKENS),
             "--out", str(trained))
        own = bits_per_byte(runs[above], text)
        for name, run in (("identity", untrained), ("trained", trained)):
            yield {"arm": f"{name}_{arm}", "seed": seed, "measure": LOST + text, "value": bits_per_byte(run, text) - own,
                   "own": own}


def main(study: Path, text: str, rows: Path) -> None:
    """Make all rows."""
    with tempfile.TemporaryDirectory() as folder:
        found = [row for arm in ARMS for row in stitched(study, arm, text, Path(folder))]
    write_atomic(rows, to_lines(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
