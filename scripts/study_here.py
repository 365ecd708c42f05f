#!/usr/bin/env python3
"""Run a study in this process within a number of minutes, and judge its claims on what was finished.

    python scripts/study_here.py recipes/study_substrate.yaml --profile gpu --out runs/substrate --minutes 9

For a machine that is lent for minutes: no process is started for each training, and seeds are outermost, so that a stop
leaves all arms with the same seeds. The same command goes on later, and so does `glyphlm study`.
"""

import argparse
import contextlib
import gc
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from glyphlm.cli.main import main
from glyphlm.experiments.recipe import load_recipe
from glyphlm.studies.settings import Study
from glyphlm.studies.study import CommandsFailed, study
from glyphlm.studies.workflow import LOGS, Command, run_here


def run(arguments: Sequence[str], logs: Path) -> int:
    """The exit status of a command of glyphlm; what it prints goes into a file of `logs`."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with (logs / "all.txt").open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        file.write(f"{shlex.join(arguments)}\n")
        return int(main(list(arguments[1:])) or 0)


def make(options: argparse.Namespace) -> Path:
    """The study's results, from what was finished in time."""
    until = time.monotonic() + 60 * options.minutes
    names = ("seeds", "only", "data", "evaluate")
    given: dict[str, Any] = {name: value for name in names if (value := getattr(options, name))}
    settings = load_recipe(options.study, options.profile, [given], kind=Study)
    (options.out / LOGS).mkdir(parents=True, exist_ok=True)

    def here(commands: Sequence[Command], out: Path, **_: Any) -> None:
        run_here(commands, out, lambda arguments: run(arguments, out / LOGS), until)

    typed = f"python {shlex.join(sys.argv)}"
    return study(settings, options.out, command=typed, runner=here)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--profile")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--seeds", type=int, nargs="+")
    for name in ("only", "data", "evaluate"):
        parser.add_argument(f"--{name}", nargs="+")
    try:
        print(make(parser.parse_args()))
    except CommandsFailed as error:
        print(error)
    except KeyboardInterrupt:
        sys.exit(130)
