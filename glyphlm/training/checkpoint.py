"""Training state on disk: weights, optimizer, position, random numbers. A checkpoint exists whole or not at all.

RUN/state/step-00000100/ holds model.safetensors, optimizer.safetensors and state.json; where each process has a part of
the weights only (FSDP2), it holds one file of all of them a process instead. Either is read by any number of processes.
It is written under a temporary name and renamed; the next start removes what a kill left half-written, and prints it.
state.json also has the digest of every other file, which is checked before a file is read. A folder of another name, such
as a copy, is neither read nor deleted.
"""

import re
import shutil
import warnings
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from glyphlm.base.errors import InputError
from glyphlm.base.names import WEIGHTS
from glyphlm.base.outputs import partial_of, replaced_folder, sha256_file
from glyphlm.base.progress import say
from glyphlm.base.ranges import Range, check_values
from glyphlm.base.records import read_json, to_json
from glyphlm.base.tensors import load_tensors, save_tensors
from glyphlm.training.bits_per_byte import Score
from glyphlm.training.parallel import is_sharded, world

OPTIMIZER, STATE = "optimizer.safetensors", "state.json"
NAME = re.compile(r"step-\d{8,}")
RANGES = {name: Range(0, 2**63, whole=True) for name in ("step", "tokens", "skipped", "clipped", "cached", "flat")} | {
    "seconds": Range(0, 1e12), "best": Range(0, 1e12),
}  # fmt: skip
WINDOW_RANGES = {name: Range(0, 2**63, whole=name != "nats") for name in ("nats", "tokens", "bytes", "documents")}
PARTIAL = re.compile(r"\.step-\d{8,}\..*partial")


@dataclass
class TrainState:
    """The state of a run besides its tensors.

    Args:
        step, tokens, seconds: Steps and tokens done, and the time that they took.
        skipped: Steps without an update, because loss or gradient were not finite.
        clipped: Steps whose gradient was clipped; None where an older version began the run.
        cached: Tokens served from the frozen-activation cache.
        best, flat: Lowest validation in bits per byte, and the number of validations since.
        batches: Position in the data.
        window: Sums since the last logged row, fields of Score.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    skipped: int = 0
    clipped: int | None = 0
    cached: int = 0
    best: float | None = None
    flat: int = 0
    batches: dict[str, Any] = field(default_factory=dict)
    window: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_values(self, "", RANGES)
        check_values(Score(**cast(Any, self.window)), "window.", WINDOW_RANGES)
        if not isinstance(self.batches, dict):
            raise InputError(f"batches {self.batches!r:.60} is not a position")

    def clipped_share(self, steps: int) -> float | None:
        """Share of the first `steps` steps whose gradient was clipped; None where it was not counted."""
        return None if self.clipped is None or not steps else self.clipped / steps


def save_state(out: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: TrainState, keep: int) -> None:
    """Write the checkpoint of `state.step` and delete all but the newest `keep`; every process calls this."""
    folder = out / "state" / f"step-{state.step:08}"
    with replaced_folder(folder, shared=True) if world().is_main else nullcontext(partial_of(folder)) as partial:
        world().wait()
        _write_tensors(model, optimizer, partial)
        world().wait()
        record = asdict(state) | {"files": _digests(partial, next(model.parameters()).device)}
        if world().is_main:
            (partial / STATE).write_text(to_json(record), encoding="utf-8")
    if world().is_main:
        for old in list_states(out)[:-keep]:
            shutil.rmtree(old)


def list_states(out: Path) -> list[Path]:
    """Checkpoint folders of a run, oldest first."""
    found = [path for path in (out / "state").glob("step-*") if NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def load_state(
    out: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None, alone: bool = False
) -> TrainState | None:
    """Restore the newest checkpoint into `model` and, where given, `optimizer`; None where the run has none.

    Args:
        alone: Only this process calls; otherwise all of them do, and share the work of comparing files with their digests.

    Raises:
        InputError: the checkpoint is damaged, incomplete or of another model; it is named.
    """
    halves = [path for path in sorted((out / "state").glob(".step-*")) if PARTIAL.fullmatch(path.name)]
    for half in halves if world().is_main else []:
        say(f"{half.name} was left half-written by a stopped run and is removed")
        shutil.rmtree(half)
    states = list_states(out)
    if not states:
        return None
    folder = states[-1]
    try:
        state = _read_record(folder, next(model.parameters()).device, alone)
        if is_sharded(model) or not (folder / WEIGHTS).exists():
            _read_sharded(model, optimizer, folder)
        else:
            _read_whole(model, optimizer, folder, untouched=state.skipped == state.step)
        return state
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{folder} cannot be restored ({reason}); remove it to resume from an earlier one") from None


def _digests(folder: Path, device: torch.device, alone: bool = False) -> dict[str, str]:
    """sha256 of every file but the record; the processes share the work, unless this one is `alone`."""
    files = sorted(path for path in folder.iterdir() if path.name != STATE)
    rank, size = (0, 1) if alone else (world().rank, world().size)
    found = [bytes.fromhex(sha256_file(path)) if number % size == rank else bytes(32) for number, path in enumerate(files)]
    bytes_N = torch.tensor([byte for digest in found for byte in digest], dtype=torch.int32, device=device)
    if size > 1:
        dist.all_reduce(bytes_N)  # a sum, where all but one process have zeros
    total = bytes(bytes_N.tolist())
    return {path.name: total[32 * number : 32 * (number + 1)].hex() for number, path in enumerate(files)}


def _read_record(folder: Path, device: torch.device, alone: bool) -> TrainState:
    """The state, after checking every file of the checkpoint against its digest (older checkpoints have none)."""
    record = read_json(folder / STATE)
    digests = record.pop("files", None)
    state = TrainState(**{"clipped": None} | record)
    if folder.name != f"step-{state.step:08}":
        raise InputError(f"{STATE} is of step {state.step}")
    if digests is not None:
        found = _digests(folder, device, alone)
        for name in sorted(digests.keys() | found.keys()):
            if digests.get(name) != found.get(name):
                raise InputError(f"{name} {'is not as it was written' if name in found else 'is missing'}")
    return state


def _write_tensors(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    rest = _optimizer_tensors(model, optimizer) | {"rng": torch.get_rng_state()}
    if is_sharded(model):
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter  # these take a second to load
        from torch.distributed.checkpoint.state_dict_saver import save

        save(model.state_dict() | rest, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    elif world().is_main:
        save_tensors(model.state_dict(), folder / WEIGHTS)
        save_tensors(rest, folder / OPTIMIZER)


def _read_whole(model: nn.Module, optimizer: torch.optim.Optimizer | None, folder: Path, untouched: bool) -> None:
    """Read the tensors of one process; only an optimizer that no step has used (`untouched`) may lack its state."""
    if optimizer is not None:
        tensors = load_tensors(folder / OPTIMIZER)
        rng = tensors.pop("rng", None)
        if rng is None:
            raise InputError(f"{OPTIMIZER} lacks rng")
        if tensors or not untouched:
            _make_state(optimizer)
            _fill(_optimizer_tensors(model, optimizer), tensors)
        torch.set_rng_state(rng)
    model.load_state_dict(load_tensors(folder / WEIGHTS))


def _fill(targets: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    """Copy `found` into the tensors of the same names.

    Raises:
        InputError: names or shapes differ.
    """
    for word, names in (("lacks", targets.keys() - found.keys()), ("has unknown", found.keys() - targets.keys())):
        if names:
            more = f" and {len(names) - 1} more tensors" if len(names) > 1 else ""
            raise InputError(f"{OPTIMIZER} {word} {min(names)}{more}")
    for name, target in targets.items():
        if (target.shape, target.dtype) != (found[name].shape, found[name].dtype):
            raise InputError(f"{OPTIMIZER}: {name} has shape {list(found[name].shape)} {found[name].dtype}, not "
                             f"{list(target.shape)} {target.dtype}")
        target.copy_(found[name])


def _read_sharded(model: nn.Module, optimizer: torch.optim.Optimizer | None, folder: Path) -> None:
    """Read the shards that this process needs, from any number of files, into the existing tensors.

    Raises:
        InputError: a tensor is missing or of another shape.
    """
    from torch.distributed.checkpoint.api import CheckpointException  # these take a second to load
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    tensors = dict(model.state_dict())
    if optimizer is not None:
        _make_state(optimizer)
        tensors |= _optimizer_tensors(model, optimizer) | {"rng": torch.get_rng_state()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process reads for itself
        try:
            load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=not is_sharded(model))
        except CheckpointException as error:
            raise InputError(str(error)) from None
    if optimizer is not None:
        torch.set_rng_state(tensors["rng"])


def _make_state(optimizer: torch.optim.Optimizer) -> None:
    """Create the state of a new optimizer by a step with learning rate 0, which changes no weight."""
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    states = ((name, optimizer.state[p]) for name, p in model.named_parameters() if p in optimizer.state)
    return {f"{name}/{key}": value for name, state in states for key, value in state.items()}
