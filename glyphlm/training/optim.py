"""Optimizer and learning-rate schedules; a schedule is a function step -> float."""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import nn

Schedule = Callable[[int], float]


def cosine(step: int, *, steps: int, warmup: int, peak: float, floor: float) -> float:
    """Linear warm-up to `peak` in `warmup` steps, then half a cosine down to `floor` at `steps`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def warmup_stable_decay(step: int, *, steps: int, warmup: int, peak: float, floor: float, decay: float = 0.2) -> float:
    """Warm-up, a plateau at `peak`, then a linear fall to `floor` in the last `decay` share (arXiv 2405.18392)."""
    if step < warmup:
        return peak * (step + 1) / warmup
    falling = max(1, round(steps * decay))
    left = min(1.0, max(0, steps - step) / falling)
    return floor + (peak - floor) * left


def make_schedule(
    kind: Literal["cosine", "wsd", "constant"], *, steps: int, warmup: float, peak: float, floor: float
) -> Schedule:
    """The schedule `kind` over `steps` steps; `warmup` is a share of them, `floor` a share of `peak`."""
    if kind == "constant":
        floor = 1.0
    shape = cosine if kind == "cosine" else warmup_stable_decay
    return partial(shape, steps=steps, warmup=round(warmup * steps), peak=peak, floor=floor * peak)


def make_adamw(model: nn.Module, weight_decay: float, betas: tuple[float, float]) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; weight decay for matrices, not for vectors (norms, biases)."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True)
