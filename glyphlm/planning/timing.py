"""Measures how fast this machine trains a model: steps of train() on random ids, timed.

A large model is timed with fewer layers and sequences, at full width and vocabulary, and the time extrapolated: a step costs
one update and, for each sequence, the work of the head and of each layer.
"""

import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from glyphlm.data.batches import Batch
from glyphlm.modeling.model import GPT
from glyphlm.modeling.substrate import Substrate
from glyphlm.planning.machines import Pace
from glyphlm.planning.memory import load_of, peak_bytes
from glyphlm.training.loop import train
from glyphlm.training.optim import hidden_matrices, make_optimizer
from glyphlm.training.settings import TrainSettings, micro_batch_rows

WARM = 1  # steps before the clock starts
STEPS = range(3, 41)  # how many are timed
SECONDS = 4.0  # about how long, within these numbers
LONGEST = 3.0  # seconds that a timed step is to take at most
LEAST_TOKENS = 1024  # fewer are timed with fewer layers first: small matrix products are slower


class _Enough(Exception):
    """Ends train() before it writes a checkpoint."""


class _RandomBatches:
    """A BatchSource of random ids."""

    def __init__(self, vocab_size: int, rows: int, block_size: int):
        self.bytes_per_id_V, self.end_id = np.ones(vocab_size, dtype=np.uint16), 0
        self.tokens_per_batch, self._shape = rows * block_size, (rows, block_size + 1)

    def __next__(self) -> Batch:
        ids_BT = torch.randint(len(self.bytes_per_id_V), self._shape)
        return Batch(ids_BT[:, :-1], ids_BT[:, 1:])

    def state(self) -> dict[str, int]:
        """A constant: random batches have no position."""
        return {"taken": 0}

    def restore(self, state: dict[str, int]) -> None:
        """Does nothing."""


def measure(model: GPT, settings: TrainSettings, guess: tuple[float, float], memory: int) -> Pace | None:
    """Time the training of a model like `model` (whose values are not touched: it may be on the meta device).

    Args:
        settings: With device and precision decided.
        guess: Seconds of a sequence outside the layers, and in each layer; they only decide what is timed.
        memory: Bytes that may be used. If they do not suffice, or even a part takes too long, the result is None.
    """
    block_size, layers, (outside, inside) = model.config.block_size, model.config.n_layer, guess
    rows, timed_rows = settings.batch_tokens // block_size, affordable_rows(settings, block_size, outside + layers * inside)
    timed_layers = min(layers, max(2, int((LONGEST / timed_rows - outside) / inside)))
    expected, trial = timed_rows * (outside + timed_layers * inside), replicate(model, timed_layers, "meta")
    if expected > 2 * LONGEST or peak_bytes(trial, load_of(settings, block_size, timed_rows)) > memory:
        return None
    steps = min(max(int(SECONDS / expected), STEPS[0]), STEPS[-1])
    seconds = time_step(trial, settings, timed_rows, steps)
    if timed_layers < layers:
        shallow = time_step(replicate(model, 1, "meta"), settings, timed_rows, steps)
        seconds += max(0.0, seconds - shallow) / (timed_layers - 1) * (layers - timed_layers)
    update = update_seconds(model, settings)
    if timed_rows < rows:
        seconds = (seconds - update) * rows / timed_rows + update
    return Pace(seconds, update, _described(timed_layers, layers, timed_rows, rows))


def affordable_rows(settings: TrainSettings, block_size: int, per_row: float) -> int:
    """All sequences of a step, or as many whole micro-batches, or a part of one, as take no longer than LONGEST."""
    rows, most = settings.batch_tokens // block_size, int(LONGEST / per_row)
    micro = min(rows, micro_batch_rows(settings, block_size))
    least = min(micro, max(1, LEAST_TOKENS // block_size))
    return min(rows, max(least, most // micro * micro or most))


def _described(timed_layers: int, layers: int, timed_rows: int, rows: int) -> str:
    if (timed_layers, timed_rows) == (layers, rows):
        return "measured: whole steps"
    depths = f"1 and {timed_layers} of {layers} layers" if timed_layers < layers else "all layers"
    return f"measured: {depths}, {timed_rows} of {rows} sequences; extended from there"


def time_step(model: GPT, settings: TrainSettings, rows: int, steps: int) -> float:
    """Seconds of an optimizer step on `rows` sequences of a model like `model`; the median of `steps`."""
    batch_tokens, steps = rows * model.config.block_size, WARM + 1 + steps
    trying = replace(
        settings, steps=steps, tokens=None, batch_tokens=batch_tokens, log_every=steps + 1, lr=0.0, trackers=[],
        micro_batch_tokens=min(batch_tokens, settings.micro_batch_tokens),
    )
    ends: list[float] = []

    def note(_: object) -> None:
        ends.append(time.perf_counter())
        if len(ends) == steps:
            raise _Enough

    trial = replicate(model, model.config.n_layer, settings.device)
    batches = _RandomBatches(model.vocab_size, rows, model.config.block_size)
    with tempfile.TemporaryDirectory() as folder, suppress(_Enough):
        train(trial, batches, trying, Path(folder) / "measuring", on_step=note)
    return statistics.median(np.diff(ends[WARM:]))


def replicate(model: GPT, layers: int, device: str) -> GPT:
    """A model of the same shape with another number of layers and random values."""
    with torch.device(device):
        trial = GPT(replace(model.config, n_layer=layers), Substrate(model.substrate.config, model.config.d_model))
    with torch.no_grad():
        for values in trial.substrate.state_dict().values():
            values.random_(0, 2)  # computing with zeros could be faster
    return trial


def update_seconds(model: GPT, settings: TrainSettings) -> float:
    """Seconds of clipping and updating all trained values; timed on at most 2^22, for Muon on the matrices of a block."""
    hidden = hidden_matrices(model) if settings.optimizer == "muon" else {}
    count = sum(p.numel() for name, p in model.named_parameters() if p.requires_grad and name not in hidden)
    rows = min(count, 1 << 22) // 1024 + 1
    seconds = _timed_update([(rows, 1024)], settings, "adamw") * count / (rows * 1024)
    if hidden:
        shapes = [tuple(p.shape) for p in hidden.values()]
        one = shapes[: max(1, len(shapes) // model.config.n_layer)]
        seconds += _timed_update(one, settings, "muon") * len(shapes) / len(one)
    return seconds


def _timed_update(shapes: Sequence[tuple[int, ...]], settings: TrainSettings, kind: Literal["adamw", "muon"]) -> float:
    """Seconds of clipping and updating matrices of these shapes."""
    holder = nn.ModuleDict({"blocks": nn.ParameterList(torch.zeros(shape, device=settings.device) for shape in shapes)})
    trained, times = [*holder.parameters()], []
    optimizer = make_optimizer(holder, kind, settings.weight_decay, (settings.beta1, settings.beta2))
    for _ in range(4):
        for p in trained:
            p.grad = torch.ones_like(p)
        begin = time.perf_counter()
        float(nn.utils.clip_grad_norm_(trained, settings.clip))
        optimizer.step()
        float(trained[0].detach()[0, 0])
        times.append(time.perf_counter() - begin)
    return min(times)
