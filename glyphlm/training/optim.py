"""Optimizers: AdamW, or Muon for the matrices of the blocks and AdamW for the rest."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from glyphlm.base.errors import InputError


def make_optimizer(
    model: nn.Module,
    kind: Literal["adamw", "muon"],
    weight_decay: float,
    betas: tuple[float, float],
    rates: Mapping[str, float] | None = None,
) -> torch.optim.Optimizer:
    """The optimizer `kind` over the trainable parameters, with learning rate 0; a group's `scale` multiplies its rate.

    Args:
        rates: Of AdamW: factors of the learning rates of tensors, by name. Their weight decay per step does not change.
    """
    if kind == "adamw":
        scales = {p: rates[name] for name, p in model.named_parameters() if name in rates} if rates else {}
        return make_adamw(model.parameters(), weight_decay, betas, scales)
    hidden = hidden_matrices(model)
    others = make_adamw((p for name, p in model.named_parameters() if name not in hidden), weight_decay, betas)
    return Joined(Muon(hidden.values(), weight_decay), others) if hidden else others


def hidden_matrices(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable matrices of blocks by name, which Muon updates; those of LoRA are left to AdamW."""
    return {name: p for name, p in model.named_parameters()
            if p.requires_grad and p.dim() == 2 and "blocks." in name and "lora_" not in name}


def make_adamw(
    parameters: Iterable[nn.Parameter],
    weight_decay: float,
    betas: tuple[float, float],
    scales: Mapping[nn.Parameter, float] | None = None,
) -> torch.optim.AdamW:
    """AdamW over those of the parameters that train; weight decay for matrices, not for vectors (norms, biases)."""
    trained, scales, groups = [p for p in parameters if p.requires_grad], scales or {}, []
    for scale in dict.fromkeys([1.0, *scales.values()]):
        held = [p for p in trained if scales.get(p, 1.0) == scale]
        groups.append({"params": [p for p in held if p.dim() >= 2], "weight_decay": weight_decay / scale, "scale": scale})
        groups.append({"params": [p for p in held if p.dim() < 2], "weight_decay": 0.0, "scale": scale})
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True)


def take_moments(optimizer: torch.optim.Optimizer, model: nn.Module, moments: Mapping[str, Tensor]) -> None:
    """Set the state of a new optimizer to `moments`, named TENSOR/KEY, for the tensors that have some.

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


class Muon(torch.optim.Optimizer):
    """Momentum whose update of a matrix is made nearly orthogonal (Jordan et al. 2024), as torch.optim.Muon.

    Updates are scaled to the size of AdamW's, so that both go by one learning rate (arXiv 2502.16982, section 2.2). On a CPU
    products are float32: torch's are bfloat16, and took 1.96 s for a matrix of 1536 x 384 on a CPU without AVX512-BF16.
    """

    MOMENTUM, STEPS, COEFFICIENTS = 0.95, 5, (3.4445, -4.775, 2.0315)

    def __init__(self, matrices: Iterable[nn.Parameter], weight_decay: float):
        super().__init__(matrices, {"lr": 0.0, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad, group["lr"], group["weight_decay"])

    def _update(self, p: Tensor, grad: Tensor, lr: float, weight_decay: float) -> None:
        momentum = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
        momentum.lerp_(grad, 1 - self.MOMENTUM)
        update = self._orthogonal(grad.lerp(momentum, self.MOMENTUM))
        p.mul_(1 - lr * weight_decay)
        p.add_(update, alpha=-0.2 * math.sqrt(max(p.shape)) * lr)

    def _orthogonal(self, matrix: Tensor) -> Tensor:
        """The nearest orthogonal matrix, its singular values within about 0.5 to 1.5, by Newton-Schulz iterations."""
        a, b, c = self.COEFFICIENTS
        x = matrix.to(torch.bfloat16 if matrix.is_cuda else torch.float32)
        x = x.T if matrix.shape[0] > matrix.shape[1] else x
        x = x / x.norm().clamp(min=1e-7)
        for _ in range(self.STEPS):
            gram = x @ x.T
            x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        return x.T if matrix.shape[0] > matrix.shape[1] else x


class Joined(torch.optim.Optimizer):
    """Several optimizers over disjoint parameters as one, whose groups and state they share."""

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
