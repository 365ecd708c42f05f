"""Optimizer and learning-rate schedules; a schedule is a function step -> float."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from glyphlm.base.errors import InputError

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
    kind: Literal["cosine", "wsd", "constant"], *, steps: int, warmup: float, peak: float, floor: float, decay: float = 0.2
) -> Schedule:
    """The schedule `kind` over `steps` steps; `warmup` and `decay` are shares of them, `floor` one of `peak`."""
    if kind == "constant":
        floor = 1.0
    shape = cosine if kind == "cosine" else partial(warmup_stable_decay, decay=decay)
    return partial(shape, steps=steps, warmup=round(warmup * steps), peak=peak, floor=floor * peak)


def make_optimizer(
    model: nn.Module,
    kind: Literal["adamw", "muon"],
    weight_decay: float,
    betas: tuple[float, float],
    rates: Mapping[str, float] | None = None,
) -> torch.optim.Optimizer:
    """The optimizer `kind` over the trainable parameters, with learning rate 0; a group's `scale` multiplies its rate.

    Args:
        rates: Of AdamW: factors of the learning rates of tensors, whose weight decay a step stays what it is.
    """
    if kind == "adamw":
        return make_adamw(model.parameters(), weight_decay, betas, _by_value(model, rates or {}))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    hidden = {name for name, p in trained.items() if p.dim() == 2 and "blocks." in name and "lora_" not in name}
    others = make_adamw([p for name, p in trained.items() if name not in hidden], weight_decay, betas)
    if not hidden:
        return others
    # Scaled to the size of AdamW's updates, so that both go by one learning rate (arXiv 2502.16982, section 2.2).
    muon = torch.optim.Muon([trained[name] for name in trained if name in hidden], lr=0.0, weight_decay=weight_decay,
                            momentum=0.95, nesterov=True, adjust_lr_fn="match_rms_adamw")
    return Joined(muon, others)


def make_adamw(
    parameters: Iterable[nn.Parameter],
    weight_decay: float,
    betas: tuple[float, float],
    scaled: Mapping[float, Sequence[nn.Parameter]] | None = None,
) -> torch.optim.AdamW:
    """AdamW over those of the parameters that train; weight decay for matrices, not for vectors (norms, biases)."""
    trained = [p for p in parameters if p.requires_grad]
    scale_of = {id(p): scale for scale, held in (scaled or {}).items() for p in held}
    groups = []
    for scale in [1.0, *(scaled or {})]:
        held = [p for p in trained if scale_of.get(id(p), 1.0) == scale]
        groups.append({"params": [p for p in held if p.dim() >= 2], "weight_decay": weight_decay / scale, "scale": scale})
        groups.append({"params": [p for p in held if p.dim() < 2], "weight_decay": 0.0, "scale": scale})
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True)


def _by_value(model: nn.Module, rates: Mapping[str, float]) -> dict[float, list[nn.Parameter]]:
    found: dict[float, list[nn.Parameter]] = {}
    for name, p in model.named_parameters():
        if rates.get(name, 1.0) != 1.0:
            found.setdefault(rates[name], []).append(p)
    return found


def take_moments(optimizer: torch.optim.Optimizer, model: nn.Module, moments: Mapping[str, Tensor]) -> None:
    """Fill an optimizer that has not made a step with moments named TENSOR/KEY, of the tensors that have some and fit.

    Raises:
        InputError: a moment has another shape than its tensor, or the optimizer is sharded.
    """
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, p in model.named_parameters():
        held = {key.rpartition("/")[2]: values for key, values in moments.items() if key.rpartition("/")[0] == name}
        if id(p) not in trained or not held:
            continue
        wrong = next((key for key, values in held.items() if values.dim() and values.shape != p.shape), None)
        if wrong or hasattr(p, "full_tensor"):
            raise InputError(f"the moments of {name} cannot be carried over ({'sharded' if not wrong else wrong}); set "
                             "growth.carry to false")
        optimizer.state[p].update({key: values.to(p.device).clone() for key, values in held.items()})


class Joined(torch.optim.Optimizer):
    """Several optimizers, each over parameters of its own, as one: they share its groups and its state."""

    def __init__(self, *parts: torch.optim.Optimizer):
        self.parts = parts
        groups = [group for part in parts for group in part.param_groups]
        super().__init__([{**group} for group in groups], {})
        self.param_groups = groups
        for part in parts:
            part.state = self.state

    def step(self, closure: Any = None) -> Any:
        """A step of each."""
        for part in self.parts:
            part.step()
