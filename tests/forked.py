"""Commands in processes of their own, which can be killed, forked from one that has imported what they need."""

import multiprocessing
import os
import sys
from multiprocessing.context import ForkServerProcess

import torch

from glyphlm.base import outputs, progress
from glyphlm.cli import models
from glyphlm.cli.main import main

# Imported once for all of them: it takes several seconds.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(
    ["glyphlm.cli.models", "glyphlm.experiments.grow_recipe", "glyphlm.pages.report", "glyphlm.studies.study"])


def start(*arguments: object, **environment: object) -> ForkServerProcess:
    """Start `glyphlm` with these arguments in a session of its own, as the console script does."""
    given = {name: str(value) for name, value in environment.items()}
    process = processes.Process(target=_command, args=([*map(str, arguments)], given))
    process.start()
    return process


def _command(arguments: list[str], environment: dict[str, str]) -> None:
    os.setsid()
    os.environ.update(environment)
    for module in (models, outputs, progress):  # which took it from the environment when they were imported
        module.IS_MAIN = os.environ.get("RANK", "0") == "0"
    torch.set_num_threads(1)
    sys.exit(main(arguments))
