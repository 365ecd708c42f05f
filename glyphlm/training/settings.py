"""Training settings, and the number of steps, rows of a batch and learning rates that follow from them."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from glyphlm.base.errors import InputError
from glyphlm.base.ranges import Range, check_values

MOST = 10**12  # upper limit of steps and of intervals in steps
RANGES = {
    "steps": Range(1, MOST, whole=True),
    "tokens": Range(1, 1e18),
    "batch_tokens": Range(1, 2**40, whole=True),
    "micro_batch_tokens": Range(1, 2**40, whole=True),
    "lr": Range(0, 10),  # of AdamW: about the distance that a value moves per step
    "lr_floor": Range(0, 1),
    "base_width": Range(1, 10**6, whole=True),
    "base_depth": Range(1, 10**6, whole=True),
    "decay": Range(0, 1),
    "warmup": Range(0, 1),
    "weight_decay": Range(0, 10),
    "beta1": Range(0, 1, below=True),
    "beta2": Range(0, 1, below=True),
    "clip": Range(0, 1e12, above=True),
    "seed": Range(0, 2**63 - 1, whole=True),
    "log_every": Range(1, MOST, whole=True),
    "validate_every": Range(1, MOST, whole=True),
    "validation_tokens": Range(1, 2**60, whole=True),
    "flat_after": Range(1, MOST, whole=True),
    "flat_below": Range(0, 100),
    "save_every": Range(1, MOST, whole=True),
    "keep": Range(1, MOST, whole=True),
}


@dataclass
class TrainSettings:
    """How to train; the published runs do not state these values, so all defaults are ours.

    Args:
        steps: Optimizer steps; give this or tokens.
        tokens: Training tokens; give this or steps.
        batch_tokens: Tokens of one optimizer step.
        micro_batch_tokens: Tokens of one forward and backward pass; gradients add up to a step.
        optimizer: AdamW for all, or Muon for the matrices of the blocks (its updates scaled to the size of AdamW's; arXiv
            2502.16982) and AdamW for the rest.
        lr: Peak learning rate.
        parametrization: Whether lr is that of this model, or that of a model of base_width (mup, arXiv 2203.03466) and
            base_depth (completep, arXiv 2505.01618), from which initial values and learning rates follow.
        base_width: d_model of the model that lr was tuned on.
        base_depth: Its n_layer.
        lr_floor: Final learning rate as a share of lr.
        schedule: Cosine, warm-up-stable-decay (wsd), or constant after the warm-up.
        decay: Share of all steps in which the rate of schedule wsd falls, at the end.
        warmup: Warm-up as a share of all steps.
        weight_decay: Weight decay of matrices; none for norms and biases.
        beta1: First-moment decay of AdamW.
        beta2: Second-moment decay of AdamW.
        clip: Maximum gradient norm.
        precision: Precision of matrix products; auto is bf16 where a probe of this machine finds it faster.
        device: auto, cpu or cuda.
        parallel: How several processes share the work: each holds the whole model (ddp) or a shard of it (fsdp2).
        recompute: Whether activations inside blocks are computed again in the backward pass instead of kept.
        compile: Whether torch.compile fuses the blocks into kernels of their own; auto does on a GPU that has Triton.
        attention: Whether a position attends to all earlier text in its sequence, or only to its own document.
        not_finite: What happens when a loss or gradient is not finite: stop, or skip that step and count it.
        seed: Seed of the initial weights and the order of the data.
        log_every: Steps between rows of metrics.jsonl.
        validate_every: Steps between validations.
        validation_tokens: Held-out tokens scored each time.
        validate_first: Whether to validate before the first step, too.
        flat_after: End early after so many validations in a row without an improvement; null trains all steps. Use it with
            schedule constant or wsd: a cosine has not decayed by then.
        flat_below: Bits per byte that count as an improvement.
        save_every: Steps between checkpoints.
        keep: Checkpoints kept.
        trackers: Experiment trackers that also receive the rows of metrics.jsonl.

    Raises:
        InputError: a value is outside RANGES, or not one of its choices.
    """

    steps: int | None = None
    tokens: float | None = None
    batch_tokens: int = 8192
    micro_batch_tokens: int = 8192
    optimizer: Literal["adamw", "muon"] = "adamw"
    lr: float = 1e-3
    parametrization: Literal["standard", "mup", "completep"] = "standard"
    base_width: int = 256
    base_depth: int = 4
    lr_floor: float = 0.1
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    decay: float = 0.2
    warmup: float = 0.05
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    clip: float = 1.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: str = "auto"
    parallel: Literal["ddp", "fsdp2"] = "ddp"
    recompute: bool = False
    compile: bool | Literal["auto"] = "auto"
    attention: Literal["full", "document"] = "full"
    not_finite: Literal["stop", "skip"] = "stop"
    seed: int = 1
    log_every: int = 10
    validate_every: int = 100
    validation_tokens: int = 65536
    validate_first: bool = False
    flat_after: int | None = None
    flat_below: float = 0.001
    save_every: int = 100
    keep: int = 2
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_values(self, "train.", RANGES)
        if self.optimizer == "muon" and self.parametrization != "standard":
            raise InputError(f"train.parametrization {self.parametrization} is that of AdamW; set train.optimizer to adamw")
        if self.optimizer == "muon" and self.parallel == "fsdp2":
            raise InputError("train.optimizer muon needs whole matrices, which train.parallel fsdp2 cuts up; choose ddp, or "
                             "optimizer adamw")


def count_steps(settings: TrainSettings) -> int:
    """Number of optimizer steps.

    Raises:
        InputError: both or neither of steps and tokens are given, or fewer than one step comes out.
    """
    if settings.steps is not None and settings.tokens is None:
        return settings.steps
    if settings.steps is not None or settings.tokens is None:
        raise InputError(f"give train.steps or train.tokens, one of the two (steps: {settings.steps}, "
                         f"tokens: {settings.tokens}); set the other to null")
    steps = int(settings.tokens // settings.batch_tokens)
    if steps < 1:
        raise InputError(f"train.tokens {settings.tokens:g} is less than a step of {settings.batch_tokens} tokens; raise it")
    return steps


def batch_rows(settings: TrainSettings, block_size: int) -> int:
    """Sequences per step.

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


def schedule_of(settings: TrainSettings) -> Callable[[int], float]:
    """The learning rate of each step: linear warm-up to lr, then constant, half a cosine, or wsd (a plateau, and a linear
    decay in the last steps; arXiv 2405.18392), down to lr_floor * lr."""
    steps, peak, floor = count_steps(settings), settings.lr, settings.lr_floor * settings.lr
    warmup, falling = round(settings.warmup * steps), max(1, round(settings.decay * steps))

    def rate(step: int) -> float:
        if step < warmup:
            return peak * (step + 1) / warmup
        if settings.schedule == "constant":
            return peak
        if settings.schedule == "wsd":
            return floor + (peak - floor) * min(1.0, max(0, steps - step) / falling)
        done = (step - warmup) / max(1, steps - warmup)
        return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    return rate
