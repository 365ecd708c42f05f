"""Training state on disk: weights, optimizer, position, random numbers. A checkpoint exists whole or not at all.

RUN/state/step-00000100/ holds model.safetensors, optimizer.safetensors and state.json; where each process has a part of
the weights only (FSDP2), it holds one file of all of them a process instead. Either is read by any number of processes.
It is written under a temporary name and renamed; what a kill left half-written is removed and named at the next start.
"""

import json
import shutil
import warnings
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn

from glyphlm.base.errors import InputError
from glyphlm.base.outputs import partial_of, replaced_folder, to_json
from glyphlm.base.progress import say
from glyphlm.base.tensors import WEIGHTS, load_tensors, save_tensors
from glyphlm.training.parallel import is_sharded, world

OPTIMIZER, STATE = "optimizer.safetensors", "state.json"


@dataclass
class TrainState:
    """What a resume needs beside tensors: steps and tokens done, seconds spent, steps skipped because their loss was no
    number, tokens whose way through the frozen blocks was kept (`cached`), the best validation in bits per byte and how
    many came after it (`flat`), position of the batches, and the sums since the last logged row (`window`)."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    skipped: int = 0
    cached: int = 0
    best: float | None = None
    flat: int = 0
    batches: dict[str, Any] = field(default_factory=dict)
    window: dict[str, float] = field(default_factory=dict)


def save_state(out: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: TrainState, keep: int) -> None:
    """Write the checkpoint of `state.step` and delete all but the newest `keep`; every process calls this."""
    folder = out / "state" / f"step-{state.step:08}"
    with replaced_folder(folder) if world().is_main else nullcontext(partial_of(folder)) as partial:
        world().wait()
        _write_tensors(model, optimizer, partial)
        world().wait()
        if world().is_main:
            (partial / STATE).write_text(to_json(asdict(state)), encoding="utf-8")
    if world().is_main:
        for old in list_states(out)[:-keep]:
            shutil.rmtree(old)


def list_states(out: Path) -> list[Path]:
    """Checkpoint folders of a run, oldest first."""
    return sorted((out / "state").glob("step-*"))


def load_state(
    out: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> TrainState | None:
    """Restore the newest checkpoint into `model` and, where given, `optimizer`; None where the run has none.

    Raises:
        InputError: the checkpoint is damaged or of another model; it is named.
    """
    for half in sorted((out / "state").glob(".step-*.partial")) if world().is_main else []:
        say(f"{half.name} was left half-written by a stopped run and is removed")
        shutil.rmtree(half)
    states = list_states(out)
    if not states:
        return None
    folder = states[-1]
    try:
        if is_sharded(model) or not (folder / WEIGHTS).exists():
            _read_sharded(model, optimizer, folder)
        else:
            _read_whole(model, optimizer, folder)
        return TrainState(**json.loads((folder / STATE).read_text(encoding="utf-8")))
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, dcp.CheckpointException) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{folder} cannot be restored ({reason}); remove it to go on from an earlier one") from None


def _write_tensors(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    rest = _optimizer_tensors(model, optimizer) | {"rng": torch.get_rng_state()}
    if is_sharded(model):
        dcp.save(model.state_dict() | rest, storage_writer=dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True))
    elif world().is_main:
        save_tensors(model.state_dict(), folder / WEIGHTS)
        save_tensors(rest, folder / OPTIMIZER)


def _read_whole(model: nn.Module, optimizer: torch.optim.Optimizer | None, folder: Path) -> None:
    model.load_state_dict(load_tensors(folder / WEIGHTS))
    if optimizer is None:
        return
    tensors, parameters = load_tensors(folder / OPTIMIZER), dict(model.named_parameters())
    torch.set_rng_state(tensors.pop("rng"))
    for name, value in tensors.items():
        parameter, key = name.rsplit("/", 1)
        target = parameters[parameter]
        optimizer.state[target][key] = value.to(target.device)  # "step" too: the optimizer is fused


def _read_sharded(model: nn.Module, optimizer: torch.optim.Optimizer | None, folder: Path) -> None:
    """Read the parts that this process needs, from whatever files hold them, into the tensors that are there."""
    tensors = dict(model.state_dict())
    if optimizer is not None:
        _make_state(optimizer)
        tensors |= _optimizer_tensors(model, optimizer) | {"rng": torch.get_rng_state()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process reads for itself
        dcp.load(tensors, storage_reader=dcp.HuggingFaceStorageReader(str(folder)), no_dist=not is_sharded(model))
    if optimizer is not None:
        torch.set_rng_state(tensors["rng"])


def _make_state(optimizer: torch.optim.Optimizer) -> None:
    """Let a new optimizer create its state, by a step of learning rate 0 that changes no weight."""
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    states = ((name, optimizer.state[p]) for name, p in model.named_parameters() if p in optimizer.state)
    return {f"{name}/{key}": value for name, state in states for key, value in state.items()}
