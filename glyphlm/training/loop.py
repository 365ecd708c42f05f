"""train(): the one training loop, for new models, twins, growth stages and trained fusions.

On a GPU the next step is launched before the previous one has finished: loss and gradient norm are read one step later, and
updates that are not finite are skipped on the device. Logs and checkpoints are the same as without this overlap.
"""

import json
import math
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from glyphlm.base.devices import peak_rate, resolve_compile
from glyphlm.base.errors import InputError
from glyphlm.base.names import METRICS
from glyphlm.base.outputs import write_atomic
from glyphlm.base.progress import Meter, meter, say
from glyphlm.base.records import parse_row
from glyphlm.base.threads import sharing_cores
from glyphlm.data.batches import Batch, BatchSource
from glyphlm.modeling.fusion import Fusion
from glyphlm.modeling.model import GPT
from glyphlm.training.bits_per_byte import NotFinite, Score, score_batches
from glyphlm.training.checkpoint import TrainState, load_state, save_state
from glyphlm.training.feed import Feed, LocalBatch
from glyphlm.training.flops import flops_per_token
from glyphlm.training.loss import Objective, to_device
from glyphlm.training.optim import make_optimizer, take_moments
from glyphlm.training.parallel import is_sharded, shard_again, spread, without_sync, world
from glyphlm.training.parametrization import scales_of
from glyphlm.training.settings import TrainSettings, count_steps, micro_batch_rows, schedule_of
from glyphlm.training.trackers import Trackers

STEPS_IN_FLIGHT = {"cuda": 1}  # steps launched but not yet read when the next one is launched; 0 on other devices


def train(
    model: GPT | Fusion,
    batches: BatchSource,
    settings: TrainSettings,
    out: Path,
    validation: Callable[[], Iterator[Batch]] | None = None,
    on_step: Callable[[TrainState], None] | None = None,
    moments: Mapping[str, Tensor] | None = None,
) -> TrainState:
    """Train `model` on `batches`, with metrics and checkpoints in the folder `out`; a stopped run is resumed.

    In a world of several processes (`glyphlm.training.parallel.joined`) all of them call this with the same arguments.

    Args:
        validation: Returns a new pass over the held-out batches each time it is called.
        on_step: Callback after every step.
        moments: Initial optimizer state of a new run, named TENSOR/KEY; tensors without any start at 0.

    Raises:
        InputError: settings contradict each other, a checkpoint is damaged, or the loss is not finite (NaN or infinite).
    """
    steps, trainer = count_steps(settings), _Trainer(model, batches, settings, out)
    state = trainer.resume(moments or {})
    signals = _stop_signals(trainer.signals)
    cores = sharing_cores() if model.device.type == "cpu" else nullcontext()
    with meter(out.name, steps, done=state.step) as bar, signals, cores, trainer.feeding():
        if validation and settings.validate_first and state.step == 0:
            trainer.validate(validation())
        while not trainer.is_done and not trainer.stop_signal:
            trainer.step(bar)
            if on_step:
                on_step(state)
            if validation and (state.step % settings.validate_every == 0 or state.step == steps):
                trainer.settle(bar)
                trainer.validate(validation())
            if state.step % settings.save_every == 0 or trainer.is_done or trainer.stop_signal:
                trainer.settle(bar)
                trainer.save()
    if not trainer.is_done:
        say(f"stopped and saved at step {state.step} of {steps}; the same command resumes from there")
        raise KeyboardInterrupt if trainer.stop_signal == signal.SIGINT else SystemExit(128 + signal.SIGTERM)
    return state


@dataclass
class _Launched:
    """A launched step: the state after it, and [loss, gradient norm, stop signals], which may not have been computed yet."""

    step: int
    tokens: int
    lr: float
    batch: LocalBatch
    numbers_3: Tensor
    arrived: "torch.cuda.Event | None"

    def read(self) -> tuple[float, float, float]:
        """Wait for the results and return them."""
        if self.arrived is not None:
            self.arrived.synchronize()
        loss, norm, stops = self.numbers_3.tolist()
        return loss, norm, stops


class _Trainer:
    """Model, optimizer and state of one run, and the operations of the training loop."""

    def __init__(self, model: GPT | Fusion, batches: BatchSource, settings: TrainSettings, out: Path):
        self._model, self._batches, self._settings, self._out = model, batches, settings, out
        self._world, self._device = world(), model.device
        flops = flops_per_token(model, recompute=settings.recompute)
        rate = peak_rate(settings.precision, str(self._device))
        # Seconds per token at the peak rate of matrix products; unknown on a CPU.
        self._use_of_token = sum(part.total for part in flops.values()) / rate / self._world.size if rate else None
        self._is_compiled = resolve_compile(settings.compile, self._device.type)
        self._objective = self._spread_objective()
        betas = settings.beta1, settings.beta2
        rates = {name: rate for name, (_, rate) in scales_of(model, settings).items()}
        self._optimizer = make_optimizer(model, settings.optimizer, settings.weight_decay, betas, rates)
        # A sharded optimizer, or one that is not fused, cannot skip an update on the device.
        can_skip = not is_sharded(model) and self._optimizer.defaults.get("fused")
        self._in_flight = STEPS_IN_FLIGHT.get(self._device.type, 0) if can_skip else 0
        self._launched: deque[_Launched] = deque()
        self._schedule = schedule_of(settings)
        self._trackers = Trackers(settings.trackers if self._world.is_main else [], out)
        self._state, self._window, self._started, self._saved = TrainState(), Score(), 0.0, 0
        self.signals: list[int] = []  # received by this process
        self._agreed = 0  # the stop signal that all ranks know of

    @property
    def is_done(self) -> bool:
        """Whether all steps are done, or the validation loss is flat."""
        flat_after = self._settings.flat_after
        return self._state.step >= count_steps(self._settings) or (flat_after is not None and self._state.flat >= flat_after)

    @property
    def stop_signal(self) -> int:
        """The signal that ends the run after this step, or 0; the same on all ranks."""
        return sum(self.signals[:1]) if self._world.size == 1 else self._agreed

    def _spread_objective(self) -> nn.Module:
        settings, model = self._settings, self._model
        dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
        end_id = self._batches.end_id if settings.attention == "document" else None
        model.recompute = settings.recompute
        if self._is_compiled:
            for block in model.blocks:
                block.compile()
        return spread(Objective(model, dtype, end_id), model.blocks, settings.parallel)

    def resume(self, moments: Mapping[str, Tensor]) -> TrainState:
        """Restore the newest checkpoint, if any, and drop metrics that were logged after it; a new run takes `moments`."""
        self._out.mkdir(parents=True, exist_ok=True)
        found = load_state(self._out, self._model, self._optimizer)
        if found is not None:
            self._state, self._window, self._saved = found, Score(**cast(dict[str, Any], found.window)), found.step
            self._batches.restore(found.batches)
            say(f"{self._out}: resuming from step {found.step}")
        elif moments:
            take_moments(self._optimizer, self._model, moments)
        if self._world.is_main:
            _keep_metrics(self._out / METRICS, self._state.step if found else -1)
        self._started = time.monotonic() - self._state.seconds
        return self._state

    @contextmanager
    def feeding(self) -> Iterator[None]:
        """Provide batches while the block runs; afterwards their position excludes batches that were only prefetched."""
        rows = micro_batch_rows(self._settings, self._model.config.block_size)
        ahead = self._in_flight > 0
        self._feed = Feed(self._batches, self._world.rank, self._world.size, rows, ahead)
        try:
            yield
        finally:
            self._feed.close()

    def step(self, bar: Meter) -> None:
        """Launch one optimizer step: gradients over the micro-batches, clip, update. Then log the steps that finished."""
        lr = self._schedule(self._state.step)
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group.get("scale", 1.0)
        batch = next(self._feed)
        loss, stops = self._gradients(batch)
        norm = self._update(loss)
        self._optimizer.zero_grad()
        self._state.step += 1
        self._state.tokens += self._batches.tokens_per_batch
        self._state.cached += self._hits()
        numbers_3, arrived = _to_cpu(torch.stack([loss.double(), norm.double(), stops.double()]))
        self._launched.append(_Launched(self._state.step, self._state.tokens, lr, batch, numbers_3, arrived))
        self.settle(bar, self._in_flight)

    def settle(self, bar: Meter, left: int = 0) -> None:
        """Read, count and log all launched steps except the last `left`."""
        while len(self._launched) > left:
            done = self._launched.popleft()
            loss, norm, stops = done.read()
            self._agreed = (self.signals or [signal.SIGTERM])[0] if stops else 0
            if not done.batch.targets:
                say(f"step {done.step} had no target: every position of its batch is masked, so it learned nothing")
            if self._is_finite(loss, norm, done):
                self._window.nats += loss * done.batch.targets
                self._window.tokens += done.batch.targets
                self._window.bytes += done.batch.bytes
            if self._state.clipped is not None:
                self._state.clipped += norm > self._settings.clip
            self._advance(bar, done, norm)

    def validate(self, batches: Iterator[Batch]) -> None:
        """Score the held-out batches and log the result; every rank scores all of them."""
        paused = time.monotonic()
        self._model.eval()
        score = self._score(batches)
        shard_again(self._objective)
        self._model.train()
        self._started += time.monotonic() - paused  # seconds are those of training
        if score.bytes:
            values = {"split": "validation", "loss": score.loss, "bits_per_byte": score.bits_per_byte}
            self._log(values, self._state.step, self._state.tokens)
            self._compare(score.bits_per_byte)

    def _score(self, batches: Iterator[Batch]) -> Score:
        # Validation has batches of other shapes and no gradient: compiling again would take longer than it saves.
        uncompiled = torch.compiler.set_stance("force_eager") if self._is_compiled else nullcontext()
        try:
            with uncompiled:
                return score_batches(self._objective, batches, self._batches.bytes_per_id_V, self._device)
        except NotFinite as error:
            if self._settings.not_finite == "stop":
                raise InputError(f"validation at step {self._state.step}: {error}; {self._last_saved()}") from None
            say(f"validation at step {self._state.step}: {error}; it is left out")
            return Score()

    def _compare(self, bits_per_byte: float) -> None:
        state = self._state
        if state.best is None or bits_per_byte < state.best - self._settings.flat_below:
            state.best, state.flat = bits_per_byte, 0
        else:
            state.flat += 1

    def save(self) -> None:
        """Write a checkpoint."""
        paused = time.monotonic()
        self._state.batches, self._state.window = self._feed.position, asdict(self._window)
        save_state(self._out, self._model, self._optimizer, self._state, self._settings.keep)
        self._saved = self._state.step
        self._started += time.monotonic() - paused

    def _gradients(self, batch: LocalBatch) -> tuple[Tensor, Tensor]:
        """Compute gradients; returns the mean loss of the global batch and the number of ranks with a stop signal."""
        size, targets = self._world.size, max(1, batch.targets)
        total = torch.zeros((), device=self._device)
        for number, (x_BT, y_BT) in enumerate(batch.parts, 1):
            with without_sync(self._objective, last=number == len(batch.parts)):
                loss = self._objective(to_device(x_BT, self._device), y_BT, targets)
                (loss * size).backward()  # DDP and FSDP2 take the mean over ranks
            total += loss.detach()
        loss, stops = self._world.sums(total, to_device(torch.tensor(float(len(self.signals))), self._device))
        return loss, stops

    def _update(self, loss: Tensor) -> Tensor:
        """Clip the gradient and update, unless loss or gradient are not finite; returns the norm before clipping."""
        limit, optimizer = self._settings.clip, cast(Any, self._optimizer)
        if not self._in_flight:
            norm = nn.utils.clip_grad_norm_(self._model.parameters(), limit)
            norm = getattr(norm, "full_tensor", lambda: norm)()  # of a DTensor
            if math.isfinite(loss) and math.isfinite(norm):
                optimizer.step()
            return norm
        norm = nn.utils.get_total_norm([p.grad for p in self._model.parameters() if p.grad is not None])
        # The fused optimizer divides gradients by grad_scale, and skips the update where found_inf is 1.
        optimizer.grad_scale = ((norm + 1e-6) / limit).clamp(min=1.0)
        optimizer.found_inf = 1.0 - (loss.isfinite() & norm.isfinite()).float()
        optimizer.step()
        return norm

    def _is_finite(self, loss: float, norm: float, done: _Launched) -> bool:
        if math.isfinite(loss) and math.isfinite(norm):
            return True
        position = done.batch.position["taken"]
        where = f"loss {loss} and gradient norm {norm} at step {done.step - 1} (batch position {position})"
        if self._settings.not_finite == "stop":
            raise InputError(f"{where}; {self._last_saved()}; lower train.lr, or set train.not_finite to skip")
        self._state.skipped += 1
        say(f"{where}: skipped, {self._state.skipped} so far")
        return False

    def _last_saved(self) -> str:
        return f"the last checkpoint is of step {self._saved}" if self._saved else "no checkpoint was written yet"

    def _advance(self, bar: Meter, done: _Launched, norm: float) -> None:
        window = self._window
        self._state.seconds = time.monotonic() - self._started
        speed = done.tokens / max(self._state.seconds, 1e-9)
        use = speed * self._use_of_token if self._use_of_token else None
        mfu = use if use and use <= 1 else None  # above 1 the peak rate was measured under other load
        shown_mfu = "" if mfu is None else f"  {mfu:.0%} MFU"
        bar.advance(1, f"loss {window.loss:.3f}  {window.bits_per_byte:.3f} bits/byte  {speed:,.0f} tok/s{shown_mfu}")
        if done.step % self._settings.log_every == 0:
            self._log({"split": "train", "loss": window.loss, "bits_per_byte": window.bits_per_byte, "lr": done.lr,
                       "grad_norm": norm, "clipped": self._state.clipped_share(done.step), "tokens_per_second": speed,
                       "mfu": mfu}, done.step, done.tokens)
            self._window = Score()

    def _hits(self) -> int:
        """Tokens of the last step served from the frozen-activation cache, assuming all ranks have as many as this one."""
        cache = self._model.frozen_cache
        return cache.take_hits() * self._model.config.block_size * self._world.size if cache else 0

    def _log(self, values: dict[str, Any], step: int, tokens: int) -> None:
        if not self._world.is_main:
            return
        row = {"step": step, "tokens": tokens, "seconds": round(self._state.seconds, 3), **values}
        row = {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()}
        with (self._out / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
        self._trackers.log(row)


def _to_cpu(numbers: Tensor) -> tuple[Tensor, "torch.cuda.Event | None"]:
    """An asynchronous copy on the CPU, and the CUDA event that ends it."""
    if numbers.device.type != "cuda":
        return numbers, None
    copied, arrived = numbers.to("cpu", non_blocking=True), torch.cuda.Event()
    arrived.record()
    return copied, arrived


def _keep_metrics(path: Path, step: int) -> None:
    """Drop a truncated last line and rows after `step`, which are logged again: no gaps, no duplicates.

    Raises:
        InputError: another line is damaged.
    """
    whole, _, _ = path.read_bytes().rpartition(b"\n") if path.exists() else (b"", b"", b"")
    lines = whole.splitlines()
    rows = [parse_row(line, f"{path} line {number}", {"step": (int,)}, finite=False) for number, line in enumerate(lines, 1)]
    kept = [line for line, row in zip(lines, rows) if row["step"] <= step]
    if path.exists():
        write_atomic(path, b"".join(line + b"\n" for line in kept))


@contextmanager
def _stop_signals(received: list[int]) -> Iterator[None]:
    """SIGINT and SIGTERM are appended to `received`; a second one ends the program at once."""

    def note(number: int, frame: Any) -> None:
        received.append(number)
        signal.signal(number, previous[signal.Signals(number)])

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
