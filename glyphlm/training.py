"""train(): the one loop, for scratch runs, twins and whatever else trains a GPT on batches."""

import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from glyphlm.bits import Score, score_batches
from glyphlm.checkpoint import TrainState, load_state, save_state
from glyphlm.dataset import Batch, Batches
from glyphlm.errors import InputError
from glyphlm.loss import head_loss
from glyphlm.model import GPT
from glyphlm.optim import Schedule, make_adamw, make_schedule
from glyphlm.outputs import write_atomic
from glyphlm.progress import Meter, meter, say

METRICS = "metrics.jsonl"


@dataclass
class TrainSettings:
    """How to train; the published runs do not state these values, so all defaults are ours.

    Args:
        steps: Optimizer steps; give this or tokens.
        tokens: Training tokens; give this or steps.
        batch_tokens: Tokens of one optimizer step.
        micro_batch_tokens: Tokens of one forward and backward pass; gradients add up to a step.
        lr: Peak learning rate of AdamW.
        lr_floor: Share of lr at the end of the schedule.
        schedule: Cosine, warm-up-stable-decay, or constant after the warm-up.
        warmup: Share of all steps in which the learning rate rises.
        weight_decay: Of matrices; norms and biases do not decay.
        beta1: Of AdamW.
        beta2: Of AdamW.
        clip: Largest norm of the gradient.
        precision: Of matrix products; auto is bf16 where a probe of this machine finds it faster.
        device: auto, cpu or cuda.
        seed: Of the initial weights and the order of the data.
        log_every: Steps between rows of metrics.jsonl.
        validate_every: Steps between validations.
        validation_tokens: Held-out tokens scored each time.
        save_every: Steps between checkpoints.
        keep: Checkpoints kept.
    """

    steps: int | None = None
    tokens: float | None = None
    batch_tokens: int = 8192
    micro_batch_tokens: int = 8192
    lr: float = 1e-3
    lr_floor: float = 0.1
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    warmup: float = 0.05
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    clip: float = 1.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: str = "auto"
    seed: int = 1
    log_every: int = 10
    validate_every: int = 100
    validation_tokens: int = 65536
    save_every: int = 100
    keep: int = 2


def count_steps(settings: TrainSettings) -> int:
    """Number of optimizer steps.

    Raises:
        InputError: both or neither of steps and tokens are given, or fewer than one step comes out.
    """
    if (settings.steps is None) == (settings.tokens is None):
        raise InputError(f"give train.steps or train.tokens, one of the two (steps: {settings.steps}, "
                         f"tokens: {settings.tokens}); set the other to null")
    steps = settings.steps if settings.steps is not None else int(settings.tokens // settings.batch_tokens)
    if steps < 1:
        raise InputError(f"{steps} steps of {settings.batch_tokens} tokens train nothing; raise train.steps")
    return steps


def batch_rows(settings: TrainSettings, block_size: int) -> int:
    """Sequences a step.

    Raises:
        InputError: batch_tokens is not a multiple of block_size, or of micro_batch_tokens.
    """
    if settings.batch_tokens % block_size or settings.micro_batch_tokens % block_size:
        raise InputError(f"train.batch_tokens {settings.batch_tokens} and micro_batch_tokens "
                         f"{settings.micro_batch_tokens} must be multiples of block_size {block_size}")
    if settings.batch_tokens % settings.micro_batch_tokens and settings.batch_tokens > settings.micro_batch_tokens:
        raise InputError(f"train.batch_tokens {settings.batch_tokens} is not a multiple of micro_batch_tokens "
                         f"{settings.micro_batch_tokens}")
    return settings.batch_tokens // block_size


def micro_batch_rows(settings: TrainSettings, block_size: int) -> int:
    """Sequences of one forward pass."""
    return max(1, settings.micro_batch_tokens // block_size)


def train(
    model: GPT,
    batches: Batches,
    settings: TrainSettings,
    out: Path,
    validation: Callable[[], Iterator[Batch]] | None = None,
    on_step: Callable[[TrainState], None] | None = None,
) -> TrainState:
    """Train `model` on `batches` and keep metrics and checkpoints in the folder `out`; goes on where it was stopped.

    Args:
        validation: gives a fresh pass over held-out batches each time it is called.
        on_step: called after every step, for whoever wants to watch.

    Raises:
        InputError: settings contradict each other, a checkpoint is damaged, or the loss is no number any more.
    """
    steps, trainer = count_steps(settings), _Trainer(model, batches, settings, out)
    state = trainer.resume()
    with meter(out.name, steps, done=state.step) as bar, _stop_signals() as stopped:
        while state.step < steps and not stopped:
            trainer.step(bar)
            if on_step:
                on_step(state)
            if validation and (state.step % settings.validate_every == 0 or state.step == steps):
                trainer.validate(validation())
            if state.step % settings.save_every == 0 or state.step == steps or stopped:
                trainer.save()
    if state.step < steps:
        say(f"stopped and saved at step {state.step} of {steps}; the same command goes on from there")
        raise KeyboardInterrupt if stopped[0] == signal.SIGINT else SystemExit(0)
    return state


class _Trainer:
    """One run's model, optimizer and state, and the acts of the loop on them."""

    def __init__(self, model: GPT, batches: Batches, settings: TrainSettings, out: Path):
        self._model, self._batches, self._settings, self._out = model, batches, settings, out
        self._optimizer = make_adamw(model, settings.weight_decay, (settings.beta1, settings.beta2))
        self._schedule = schedule_of(settings)
        self._device = model.head.weight.device
        self._dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
        self._state, self._window, self._started, self._saved = TrainState(), Score(), 0.0, 0

    def resume(self) -> TrainState:
        """Restore the newest checkpoint, if any, and drop the metrics that were logged after it."""
        self._out.mkdir(parents=True, exist_ok=True)
        found = load_state(self._out, self._model, self._optimizer)
        if found is not None:
            self._state, self._window, self._saved = found, Score(**found.window), found.step
            self._batches.restore(found.batches)
            say(f"{self._out}: going on from step {found.step}")
        _keep_metrics(self._out / METRICS, self._state.step)
        self._started = time.monotonic() - self._state.seconds
        return self._state

    def step(self, bar: Meter) -> None:
        """One optimizer step: gradients over the micro-batches, clip, update, log."""
        lr = self._schedule(self._state.step)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        loss = self._gradients(next(self._batches))
        norm = float(nn.utils.clip_grad_norm_(self._model.parameters(), self._settings.clip))
        self._check(loss, norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._advance(bar, lr, norm)

    def validate(self, batches: Iterator[Batch]) -> None:
        """Score the held-out batches and log the result."""
        paused = time.monotonic()
        self._model.eval()
        with self._autocast():
            score = score_batches(self._model, batches, self._batches.bytes_per_id_V)
        self._model.train()
        self._started += time.monotonic() - paused  # seconds are those of training
        if score.bytes:
            self._log({"split": "validation", "loss": score.loss, "bits_per_byte": score.bits_per_byte})

    def save(self) -> None:
        """Write a checkpoint."""
        paused = time.monotonic()
        self._state.batches, self._state.window = self._batches.state(), asdict(self._window)
        save_state(self._out, self._model, self._optimizer, self._state, self._settings.keep)
        self._saved = self._state.step
        self._started += time.monotonic() - paused

    def _gradients(self, batch: Batch) -> float:
        rows = micro_batch_rows(self._settings, self._model.config.block_size)
        total = torch.zeros((), device=self._device)
        for x_BT, y_BT in zip(batch.x_BT.split(rows), batch.y_BT.split(rows), strict=True):
            loss = self._loss(x_BT.to(self._device), y_BT.to(self._device)) * (len(x_BT) / len(batch.x_BT))
            loss.backward()
            total += loss.detach()
        self._window.nats += float(total) * batch.y_BT.numel()
        self._window.tokens += batch.y_BT.numel()
        self._window.bytes += int(self._batches.bytes_per_id_V[batch.y_BT.numpy()].sum())
        return float(total)

    def _loss(self, x_BT: Tensor, y_BT: Tensor) -> Tensor:
        with self._autocast():
            x_ND = self._model.hidden(x_BT).flatten(0, 1)
        return head_loss(x_ND, self._model.head.weight, self._model.head.bias, y_BT.flatten(), self._dtype)

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32)

    def _check(self, loss: float, norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        raise InputError(f"loss {loss} and gradient norm {norm} at step {self._state.step} (batch position "
                         f"{self._batches.state()['taken']}); {self._last_saved()}; lower train.lr")

    def _last_saved(self) -> str:
        return f"the last checkpoint is of step {self._saved}" if self._saved else "no checkpoint was written yet"

    def _advance(self, bar: Meter, lr: float, norm: float) -> None:
        state, window = self._state, self._window
        state.step += 1
        state.tokens += self._batches.tokens_per_batch
        state.seconds = time.monotonic() - self._started
        speed = state.tokens / max(state.seconds, 1e-9)
        bar.advance(1, f"loss {window.loss:.3f}  {window.bits_per_byte:.3f} bits/byte  {speed:,.0f} tokens/s")
        if state.step % self._settings.log_every == 0:
            self._log({"split": "train", "loss": window.loss, "bits_per_byte": window.bits_per_byte,
                       "lr": lr, "grad_norm": norm, "tokens_per_second": speed})
            self._window = Score()

    def _log(self, values: dict[str, Any]) -> None:
        state = self._state
        row = {"step": state.step, "tokens": state.tokens, "seconds": round(state.seconds, 3), **values}
        with (self._out / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def schedule_of(settings: TrainSettings) -> Schedule:
    """The learning rate of each step."""
    shape = {"warmup": settings.warmup, "peak": settings.lr, "floor": settings.lr_floor}
    return make_schedule(settings.schedule, steps=count_steps(settings), **shape)


def resolve_device(device: str) -> str:
    """`auto` is the first GPU, or the CPU.

    Raises:
        InputError: torch does not know the device or this machine lacks it.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {device!r} cannot be used ({str(error).splitlines()[0]}); try auto or cpu") from None
    return device


def resolve_precision(precision: str, device: str) -> str:
    """`auto` is bf16 where it multiplies matrices at least 1.3 times as fast as fp32 here, measured now."""
    if precision != "auto":
        return precision
    return "bf16" if _matmul_seconds(torch.float32, device) > 1.3 * _matmul_seconds(torch.bfloat16, device) else "fp32"


def _matmul_seconds(dtype: torch.dtype, device: str) -> float:
    a = torch.ones(512, 512, device=device, dtype=dtype)
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        float((a @ a)[0, 0])  # reading a value waits for the device
        times.append(time.perf_counter() - begin)
    return min(times)


def _keep_metrics(path: Path, step: int) -> None:
    """Drop rows after `step`: they are logged again, so the file has neither gaps nor doubles."""
    if path.exists():
        rows = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
        write_atomic(path, "".join(f"{row}\n" for row in rows))


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return math.inf  # the line that a kill cut off


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that holds the first SIGINT or SIGTERM received; a second one ends the program at once."""
    received: list[int] = []

    def note(number: int, frame: Any) -> None:
        received.append(number)
        signal.signal(number, previous[number])

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
