"""Next-token cross-entropy over a large vocabulary, computed in chunks of logits, and the training objective.

Shapes: as in modeling/model.py; N targets of a batch, n of one chunk.
"""

from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from glyphlm.base.devices import can_compile
from glyphlm.data.batches import IGNORED
from glyphlm.modeling.fusion import Fusion
from glyphlm.modeling.heads import CodeHead, TiedHead
from glyphlm.modeling.model import GPT, LanguageModel

# Logits in memory at a time. On a GPU the products need thousands of rows: 1 GiB in bf16.
LOGITS_AT_ONCE = 1 << 25
LOGITS_ON_GPU = 1 << 29
# On CPU in float32 fewer are faster, as softmax and products then find them in the cache: V 8,192, d 384, 2,048 tokens, one
# thread (AVX2): 0.51 CPU seconds in chunks of 512 rows, 0.71 in one chunk of fresh memory. Each chunk reads and writes the
# head's gradient: at V 65,536, d 256, chunks of 128 rows take 1.2 times as long as those of 512.
LOGITS_IN_CACHE, FEWEST_ROWS = 1 << 22, 512

Needs = tuple[bool, bool, bool]  # whether x, weight and bias get a gradient
OfChunk = tuple[Tensor, Tensor, Any]  # nats, gradient of the logits, and where it is needed that of the bias
Parts = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]  # summed nats, and the gradients that are needed


class _HeadLoss(torch.autograd.Function):
    """Computes gradients together with the loss, chunk by chunk: the logits no longer exist in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, y_N: Tensor, dtype: torch.dtype, targets: int
    ) -> Tensor:
        # V 131,072, d 1024, 16,384 tokens in bf16 on an H200: 24.0 ms by liger-kernel and 25.2 ms by torch; with a bias
        # 45.5 and 29.0 ms.
        needs = ctx.needs_input_grad[:3]
        if len(y_N) and bias_V is None and has_liger(x_ND.device):
            nats, *gradients = _by_liger(x_ND, weight_VD, y_N, dtype, needs)
        else:
            nats, *gradients = _by_torch(x_ND, weight_VD, bias_V, y_N, dtype, needs)
        ctx.gradients, ctx.targets = gradients, targets  # not saved tensors: the backward pass scales them in place
        return nats / targets

    @staticmethod
    def backward(ctx: Any, *upstreams: Tensor) -> tuple[Tensor | None, ...]:
        (upstream,), gradients = upstreams, ctx.gradients
        if gradients is None:
            raise RuntimeError("the loss of the head can be differentiated once")
        ctx.gradients = None
        return (*(None if g is None else g.mul_((upstream / ctx.targets).to(g.dtype)) for g in gradients), None, None, None)


def _by_torch(
    x_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, y_N: Tensor, dtype: torch.dtype, needs: Needs
) -> Parts:
    need_x, need_weight, need_bias = needs
    dx_ND = torch.empty_like(x_ND) if need_x else None
    dweight_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if need_weight else None
    dbias_V = torch.zeros_like(bias_V, dtype=torch.float32) if need_bias and bias_V is not None else None
    head_VD, nats = weight_VD.to(dtype), torch.zeros((), device=x_ND.device)
    rows = min(len(y_N), rows_at_once(len(weight_VD), x_ND.device, dtype))
    softmax = _fused_softmax() if can_compile(x_ND.device.type) else _softmax_in(rows, head_VD)
    for at in chunks(len(y_N), rows):
        x_nD = x_ND[at].to(dtype)
        nats_of_chunk, low_nV, dbias_of_chunk_V = softmax(x_nD, head_VD, bias_V, y_N[at], need_bias)
        nats += nats_of_chunk
        if dbias_V is not None:
            dbias_V += dbias_of_chunk_V
        if dx_ND is not None:
            _write_product(dx_ND[at], low_nV, head_VD)
        if dweight_VD is not None:
            _add_product(dweight_VD, low_nV, x_nD)
        del low_nV  # before the next chunk's logits are made, where they are compiled
    return nats, dx_ND, dweight_VD, dbias_V


def _softmax_in(rows: int, head_VD: Tensor) -> Callable[..., OfChunk]:
    """`_softmax` in memory for chunks of up to `rows` rows, which each chunk overwrites."""
    low_nV = head_VD.new_empty(rows, len(head_VD))
    return partial(_softmax, low_nV=low_nV, full_nV=torch.empty_like(low_nV, dtype=torch.float32))


def _softmax(
    x_nD: Tensor, head_VD: Tensor, bias_V: Tensor | None, y_n: Tensor, need_bias: bool, low_nV: Tensor, full_nV: Tensor
) -> OfChunk:
    """Summed nats, the gradient of the logits in the type of the products, and its sum over the rows, in float32."""
    low_nV, full_nV = low_nV[: len(y_n)], full_nV[: len(y_n)]
    torch.mm(x_nD, head_VD.T, out=low_nV)
    if bias_V is not None:
        low_nV += bias_V
    torch.log_softmax(low_nV, -1, torch.float32, out=full_nV)
    nats = -full_nV.gather(1, y_n[:, None]).sum()
    full_nV.exp_()[torch.arange(len(y_n), device=y_n.device), y_n] -= 1
    dlogits_nV = full_nV if low_nV.dtype == torch.float32 else low_nV.copy_(full_nV)
    return nats, dlogits_nV, full_nV.sum(0) if need_bias else None


def _softmax_to_fuse(x_nD: Tensor, head_VD: Tensor, bias_V: Tensor | None, y_n: Tensor, need_bias: bool) -> OfChunk:
    """As `_softmax`, without indexing, so that torch.compile fuses it into two passes over the logits, in place."""
    logits_nV = (x_nD @ head_VD.T).float()
    logp_nV = (logits_nV if bias_V is None else logits_nV + bias_V.float()).log_softmax(-1)
    is_target_nV = torch.arange(len(head_VD), device=y_n.device) == y_n[:, None]
    nats = -torch.where(is_target_nV, logp_nV, 0.0).sum()
    dlogits_nV = logp_nV.exp() - is_target_nV.float()
    return nats, dlogits_nV.to(x_nD.dtype), dlogits_nV.sum(0) if need_bias else None


@cache
def _fused_softmax() -> Callable[..., OfChunk]:
    return torch.compile(_softmax_to_fuse)


def _write_product(out_nD: Tensor, low_nV: Tensor, head_VD: Tensor) -> None:
    """low W, in the type of `out_nD`."""
    if out_nD.dtype == low_nV.dtype:
        torch.mm(low_nV, head_VD, out=out_nD)
    else:
        out_nD.copy_(low_nV @ head_VD)


def _add_product(sum_VD: Tensor, low_nV: Tensor, x_nD: Tensor) -> None:
    """Add low^T x to a float32 sum, inside the product where that can be (from bfloat16 on GPUs, torch 2.8 and later)."""
    if low_nV.dtype == torch.float32:
        torch.addmm(sum_VD, low_nV.T, x_nD, out=sum_VD)
    elif sum_VD.is_cuda and "dtype_out" in torch.ops.aten.addmm.overloads():
        torch.addmm(sum_VD, low_nV.T, x_nD, out_dtype=torch.float32, out=sum_VD)
    else:
        sum_VD += low_nV.T @ x_nD


def has_liger(device: torch.device) -> bool:
    """Whether liger-kernel (the extra `cuda`) can compute the loss on `device`: a GPU, and it is installed."""
    return device.type == "cuda" and find_spec("liger_kernel") is not None


def _by_liger(x_ND: Tensor, weight_VD: Tensor, y_N: Tensor, dtype: torch.dtype, needs: Needs) -> Parts:
    """As `_HeadLoss` by liger-kernel, which overwrites a chunk's logits with their gradient in one kernel.

    This is the layer below its autograd.Function, which scales the gradient of x in `dtype` and computes none for the
    head where x is frozen. (cut-cross-entropy 25.1.1 sums the head's gradient in bfloat16.)
    """
    from liger_kernel.ops.fused_linear_cross_entropy import fused_linear_cross_entropy_forward  # pyright: ignore[reportMissingImports]

    nats, _, _, _, dx_ND, dweight_VD, _ = fused_linear_cross_entropy_forward(
        x_ND.detach().to(dtype).requires_grad_(any(needs)),  # without it there is no gradient at all
        weight_VD.detach().to(dtype).requires_grad_(needs[1]),
        y_N,
        reduction="sum",
        accum_dtype=torch.float32,
        chunk_mem_const=max(1, LOGITS_ON_GPU // x_ND.numel()),  # times N D logits at once; by default 1
    )
    return nats, dx_ND.to(x_ND.dtype) if needs[0] else None, dweight_VD.to(weight_VD.dtype) if needs[1] else None, None


def head_loss(
    x_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    y_N: Tensor,
    dtype: torch.dtype = torch.float32,
    targets: int | None = None,
) -> Tensor:
    """Cross-entropy in nats of the targets `y_N` under softmax(x W^T + b), summed and divided by `targets`; float32 scalar.

    `targets` is by default N, which gives the mean; for a batch split into parts, pass the number over all of them.
    `dtype` is that of the matrix products; loss and softmax are float32 whatever it is.
    """
    return _HeadLoss.apply(x_ND, weight_VD, bias_V, y_N, dtype, len(y_N) if targets is None else targets)


@torch.no_grad()
def target_nats(model: LanguageModel, x_ND: Tensor, y_N: Tensor) -> Tensor:
    """Cross-entropy in nats of each target, float32 [N], for evaluation."""
    rows = max(1, rows_at_once(model.vocab_size, x_ND.device) >> 2 * x_ND.is_cuda)  # three copies in float32
    return torch.cat([model.nats(x_ND[at], y_N[at]) for at in chunks(len(y_N), rows)])


def training_loss(model: GPT | Fusion, x_ND: Tensor, y_N: Tensor, dtype: torch.dtype, targets: int) -> Tensor:
    """`head_loss` of the model's head, of any kind."""
    head, autocast = model.head, torch.autocast(x_ND.device.type, dtype, enabled=dtype != torch.float32)
    if isinstance(head, TiedHead):
        with autocast:
            query_NE = head.query(x_ND)
        return head_loss(query_NE, head.codes(), head.bias, y_N, dtype, targets)
    if isinstance(head, CodeHead):
        with autocast:
            return head.nats(x_ND, y_N).sum() / targets
    if isinstance(head, nn.ModuleList):  # of a fusion, whose logits are computed again for the backward pass
        with autocast:
            nats = [checkpoint(model.nats, x_ND[at], y_N[at], use_reentrant=False)
                    for at in chunks(len(y_N), rows_at_once(model.vocab_size, x_ND.device))]
        return torch.cat(nats or [x_ND.new_zeros(0)]).sum() / targets
    return head_loss(x_ND, _whole(head), head.bias, y_N, dtype, targets)


def chunks(count: int, rows: int) -> list[slice]:
    """Consecutive slices of `count` positions, of `rows` each, the last one of what is left."""
    return [slice(start, min(start + rows, count)) for start in range(0, count, max(1, rows))]


def rows_at_once(vocab_size: int, device: torch.device, dtype: torch.dtype = torch.float32) -> int:
    """Positions whose logits are in memory at a time."""
    most = max(1, (LOGITS_ON_GPU if device.type == "cuda" else LOGITS_AT_ONCE) // vocab_size)
    in_cache = max(FEWEST_ROWS, LOGITS_IN_CACHE // vocab_size)
    return min(most, in_cache) if device.type == "cpu" and dtype == torch.float32 else most


class Objective(nn.Module):
    """Next-token cross-entropy of a language model as one module, because DDP and FSDP2 hook into a module's forward pass.

    Args:
        dtype: Type of matrix products.
        end_id: If given, a position attends only to its own document, which starts at the end_id of the previous one.
    """

    def __init__(self, model: GPT | Fusion, dtype: torch.dtype, end_id: int | None = None):
        super().__init__()
        self.model, self._dtype, self._end_id = model, dtype, end_id

    def forward(self, x_BT: Tensor, y_BT: Tensor, targets: int | None = None) -> Tensor:
        """The summed loss in nats over `targets` (float32 scalar); without it the nats of each target [N], in order.

        Targets that are IGNORED are excluded. `y_BT` may be on the CPU: finding them then needs no synchronization.
        """
        kept_N = (y_BT != IGNORED).flatten()
        with torch.autocast(x_BT.device.type, self._dtype, enabled=self._dtype != torch.float32):
            x_ND = self.model.hidden(x_BT, documents_BT=self._documents(x_BT)).flatten(0, 1)
        y_N = y_BT.flatten()
        if not bool(kept_N.all()):
            x_ND, y_N = x_ND[to_device(kept_N.nonzero()[:, 0], x_BT.device)], y_N[kept_N]
        y_N = to_device(y_N, x_BT.device)
        if targets is None:
            return target_nats(self.model, x_ND, y_N)
        return training_loss(self.model, x_ND, y_N, self._dtype, targets)

    def _documents(self, x_BT: Tensor) -> Tensor | None:
        return None if self._end_id is None else (x_BT == self._end_id).cumsum(1)


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """`values` on `device`; a copy to a GPU is asynchronous, from pinned memory."""
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def _whole(head: Any) -> Tensor:
    """The head's matrix [V, D], with the low-rank update of a peft adapter merged."""
    if not hasattr(head, "get_delta_weight"):
        return head.weight
    return head.weight + head.get_delta_weight(head.active_adapters[0])
