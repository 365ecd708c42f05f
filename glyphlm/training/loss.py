"""Cross-entropy over a large vocabulary without ever holding all logits; on CUDA by Liger's kernel where installed."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Logits held at a time. Chunks half as large are 1.15 times as slow on CPU, because the head's gradient is added up
# once a chunk; twice as large ones gain nothing.
LOGITS_AT_ONCE = 1 << 25

Needs = tuple[bool, bool, bool]  # whether x, weight and bias get a gradient
Parts = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]  # summed nats, and their gradients that are needed


class _HeadLoss(torch.autograd.Function):
    """Gradients are computed with the loss, chunk by chunk, because the logits are gone when backward comes."""

    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, y_N: Tensor, dtype: torch.dtype, targets: int
    ) -> Tensor:
        by = _by_liger if len(y_N) and has_liger(x_ND.device) else _by_torch
        nats, *gradients = by(x_ND, weight_VD, bias_V, y_N, dtype, ctx.needs_input_grad[:3])
        ctx.save_for_backward(*gradients)
        ctx.targets = targets
        return nats / targets

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients = (None if g is None else g * (upstream / ctx.targets).to(g.dtype) for g in ctx.saved_tensors)
        return (*gradients, None, None, None)


def _by_torch(
    x_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, y_N: Tensor, dtype: torch.dtype, needs: Needs
) -> Parts:
    need_x, need_weight, need_bias = needs
    dx_ND = torch.empty_like(x_ND) if need_x else None
    dweight_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if need_weight else None
    dbias_V = torch.zeros_like(bias_V, dtype=torch.float32) if need_bias else None
    head_VD, nats = weight_VD.to(dtype), torch.zeros((), device=x_ND.device)
    for at in chunks(len(y_N), len(weight_VD)):
        x_nD = x_ND[at].to(dtype)
        logits_nV = _logits(x_nD, head_VD, bias_V)
        logp_nV = logits_nV.log_softmax(-1)
        nats -= logp_nV.gather(1, y_N[at, None]).sum()
        del logits_nV  # before the next chunk's are made
        if not any(needs):
            continue
        dlogits_nV = logp_nV.exp_()
        dlogits_nV[torch.arange(len(dlogits_nV), device=y_N.device), y_N[at]] -= 1
        if need_bias:
            dbias_V += dlogits_nV.sum(0)
        low_nV = dlogits_nV.to(dtype)
        if need_x:
            dx_ND[at] = (low_nV @ head_VD).to(x_ND.dtype)
        if need_weight:
            dweight_VD += low_nV.T @ x_nD
        del logp_nV, dlogits_nV, low_nV
    return nats, dx_ND, dweight_VD, dbias_V


def has_liger(device: torch.device) -> bool:
    """Whether the loss on `device` is computed by liger-kernel (the extra `cuda`): a GPU, and it is installed."""
    return device.type == "cuda" and find_spec("liger_kernel") is not None


def _by_liger(
    x_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, y_N: Tensor, dtype: torch.dtype, needs: Needs
) -> Parts:
    """The same by liger-kernel, which turns a chunk's logits into their gradient in place, by one kernel.

    This is the layer below its autograd.Function: that one scales the gradient of x in `dtype`, and gives none to the
    head where x is frozen. (cut-cross-entropy 25.1.1 knows no bias, and adds the head's gradient up in bfloat16.)
    """
    from liger_kernel.ops.fused_linear_cross_entropy import fused_linear_cross_entropy_forward  # loads triton

    x_low, head_VD = x_ND.detach().to(dtype), weight_VD.detach().to(dtype)
    with torch.autocast(x_ND.device.type, dtype, enabled=dtype != torch.float32):  # a float32 bias makes float32 logits
        nats, _, _, _, *gradients = fused_linear_cross_entropy_forward(
            x_low.requires_grad_(any(needs)),  # without it there is no gradient at all
            head_VD.requires_grad_(needs[1]),
            y_N,
            bias=None if bias_V is None else bias_V.detach().float(),
            reduction="sum",
            accum_dtype=torch.float32,
            chunk_mem_const=max(1, LOGITS_AT_ONCE // x_ND.numel()),  # times N D logits at once; by default 1, few rows
        )
    return nats, *(g.to(like.dtype) if need else None for need, g, like in zip(needs, gradients, (x_ND, weight_VD, bias_V)))


def head_loss(
    x_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    y_N: Tensor,
    dtype: torch.dtype = torch.float32,
    targets: int | None = None,
) -> Tensor:
    """Cross-entropy in nats of the targets `y_N` under softmax(x W^T + b), summed and divided by `targets`; float32 scalar.

    `targets` is by default N, which gives the mean; a batch that comes in parts names the number in all of them.
    `dtype` is that of the matrix products; loss and softmax are float32 whatever it is.
    """
    return _HeadLoss.apply(x_ND, weight_VD, bias_V, y_N, dtype, len(y_N) if targets is None else targets)


@torch.no_grad()
def target_nats(logits_of: Callable[[Tensor], Tensor], x_ND: Tensor, y_N: Tensor, vocab_size: int) -> Tensor:
    """Cross-entropy in nats of each target, float32 [N], for evaluation; `logits_of` is x_nD -> logits_nV."""
    parts = [
        F.cross_entropy(logits_of(x_ND[at]).float(), y_N[at], reduction="none") for at in chunks(len(y_N), vocab_size)
    ]
    return torch.cat(parts)


def chunks(count: int, vocab_size: int) -> list[slice]:
    """Consecutive slices of `count` positions, each small enough for LOGITS_AT_ONCE."""
    size = max(1, LOGITS_AT_ONCE // vocab_size)
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _logits(x_nD: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> Tensor:
    logits_nV = (x_nD @ weight_VD.T).float()
    return logits_nV if bias_V is None else logits_nV + bias_V.float()
