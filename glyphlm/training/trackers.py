"""Experiment trackers, in addition to the metrics file that every run has."""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glyphlm.base.errors import InputError


def load_trackers(names: Sequence[str]) -> dict[str, Any]:
    """The library of each tracker; none is started.

    Raises:
        InputError: a library is not installed.
    """
    libraries: dict[str, Any] = {}
    for name in names:
        try:
            libraries[name] = importlib.import_module(name)
        except ImportError:
            raise InputError(f"{name} is not installed; pip install {name}, or leave it out of train.trackers") from None
    return libraries


class Trackers:
    """Sends each row to every tracker of `names` (tensorboard, wandb, trackio); the run has the name of its folder.

    Raises:
        InputError: the library of a tracker is not installed.
    """

    def __init__(self, names: Sequence[str], out: Path):
        self._runs = [_TensorBoard(out) if name == "tensorboard" else _start(library, name, out)
                      for name, library in load_trackers(names).items()]

    def log(self, row: Mapping[str, Any]) -> None:
        """Send one row of metrics.jsonl; numbers are named SPLIT/NAME."""
        values = {f"{row['split']}/{name}": value for name, value in row.items() if isinstance(value, (int, float))}
        for run in self._runs:
            run.log(values, step=row["step"])


class _TensorBoard:
    """TensorBoard with the interface of the other trackers."""

    def __init__(self, out: Path):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(out / "tensorboard"))

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()


def _start(library: Any, name: str, out: Path) -> Any:
    """A run of wandb or trackio; its id is stable when a run is resumed, and different for different folders."""
    identity = "-".join(out.resolve().parts[-3:]).strip("/-").replace("/", "-")
    options = {"id": identity, "dir": str(out)} if name == "wandb" else {}
    return library.init(project="glyphlm", name=out.name, resume="allow", **options)
