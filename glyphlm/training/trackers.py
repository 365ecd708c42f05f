"""Experiment trackers, in addition to the metrics file that every run has."""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glyphlm.base.errors import InputError


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that cannot be used, without starting one.

    Raises:
        InputError: a name is unknown, or the library of a tracker is not installed.
    """
    for name in names:
        if name not in STARTS:
            raise InputError(f"train.trackers {name!r} must be one of {', '.join(STARTS)}")
        _library(name)


class Trackers:
    """Sends each row to every tracker of `names` (tensorboard, wandb, trackio); the run has the name of its folder.

    Raises:
        InputError: a name is unknown, or the library of a tracker is not installed.
    """

    def __init__(self, names: Sequence[str], out: Path):
        check_trackers(names)
        self._log = [STARTS[name](out) for name in names]

    def log(self, row: Mapping[str, Any]) -> None:
        """Send one row of metrics.jsonl; numbers are named SPLIT/NAME."""
        values = {f"{row['split']}/{name}": value for name, value in row.items() if isinstance(value, (int, float))}
        for log in self._log:
            log(values, row["step"])


def _start_tensorboard(out: Path) -> Any:
    _library("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(out / "tensorboard"))

    def log(values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return log


def _start_wandb(out: Path) -> Any:
    run = _library("wandb").init(project="glyphlm", name=out.name, id=_identity(out), resume="allow", dir=str(out))
    return lambda values, step: run.log(dict(values), step=step)


def _start_trackio(out: Path) -> Any:
    run = _library("trackio").init(project="glyphlm", name=out.name, resume="allow")
    return lambda values, step: run.log(dict(values), step=step)


def _identity(out: Path) -> str:
    """Run identifier: stable when a run is resumed, different for different folders."""
    return "-".join(out.resolve().parts[-3:]).strip("/-").replace("/", "-")


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputError(f"{name} is not installed; pip install {name}, or leave it out of train.trackers") from None


STARTS = {"tensorboard": _start_tensorboard, "wandb": _start_wandb, "trackio": _start_trackio}
