"""Training state on disk: weights, optimizer, position, random numbers. A checkpoint exists whole or not at all.

RUN/state/step-00000100/ holds model.safetensors, optimizer.safetensors and state.json. It is written under a temporary
name and renamed; what a kill left half-written is removed and named at the next start.
"""

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glyphlm.errors import InputError
from glyphlm.outputs import replaced_folder, to_json
from glyphlm.progress import say
from glyphlm.tensors import load_tensors, save_tensors

WEIGHTS, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"


@dataclass
class TrainState:
    """What a resume needs beside tensors: steps and tokens done, seconds spent, position of the batches, and the sums
    since the last logged row (`window`)."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    batches: dict[str, Any] = field(default_factory=dict)
    window: dict[str, float] = field(default_factory=dict)


def save_state(out: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: TrainState, keep: int) -> None:
    """Write the checkpoint of `state.step` and delete all but the newest `keep`."""
    with replaced_folder(out / "state" / f"step-{state.step:08}") as partial:
        save_tensors(model.state_dict(), partial / WEIGHTS)
        tensors = _optimizer_tensors(model, optimizer) | {"rng": torch.get_rng_state()}
        save_tensors(tensors, partial / OPTIMIZER)
        (partial / STATE).write_text(to_json(asdict(state)), encoding="utf-8")
    for old in list_states(out)[:-keep]:
        shutil.rmtree(old)


def list_states(out: Path) -> list[Path]:
    """Checkpoint folders of a run, oldest first."""
    return sorted((out / "state").glob("step-*"))


def load_state(out: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> TrainState | None:
    """Restore the newest checkpoint into `model` and `optimizer`; None where the run has none.

    Raises:
        InputError: the checkpoint is damaged or of another model; it is named.
    """
    for half in sorted((out / "state").glob(".step-*.partial")):
        say(f"{half.name} was left half-written by a stopped run and is removed")
        shutil.rmtree(half)
    states = list_states(out)
    if not states:
        return None
    folder = states[-1]
    try:
        model.load_state_dict(load_tensors(folder / WEIGHTS))
        tensors = load_tensors(folder / OPTIMIZER)
        torch.set_rng_state(tensors.pop("rng"))
        _restore_optimizer(model, optimizer, tensors)
        return TrainState(**json.loads((folder / STATE).read_text(encoding="utf-8")))
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{folder} cannot be restored ({reason}); remove it to go on from an earlier one") from None


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    states = ((name, optimizer.state[p]) for name, p in model.named_parameters() if p in optimizer.state)
    return {f"{name}/{key}": value for name, state in states for key, value in state.items()}


def _restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    for name, value in tensors.items():
        parameter, key = name.rsplit("/", 1)
        target = parameters[parameter]
        optimizer.state[target][key] = value.to(target.device)  # "step" too: the optimizer is fused
