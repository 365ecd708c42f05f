"""Causal self-attention, its cache of keys and values, and what all blocks share in one forward pass.

Torch only; this file travels inside every run folder. Shapes: as in model.py.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

# Lengths at which causal attention on a CPU goes in halves: torch's kernel computes whole blocks of 512 keys, what the mask
# hides, too. At T 512 both passes take 0.80 of the time, at 256 0.86; at 1024, where it skips blocks itself, 1.1.
HALVED = range(256, 768)
# Pairs of positions times d_model that take as long on a CPU as one more call of the kernel, about 0.1 ms for both passes.
CALL = 330_000


class Cache(Protocol):
    """Keys and values of earlier positions; KVCache, or DynamicCache and StaticCache of transformers."""

    def update(self, k_BHTK: Tensor, v_BHTK: Tensor, layer: int, /) -> tuple[Tensor, Tensor]:
        """Append the new positions of `layer`; return all of them, [B, H, S, K] each."""
        ...

    def get_seq_length(self) -> int | Tensor:
        """Number of positions held; of a cache of fixed length it is a tensor on the device of the cache."""
        ...


class KVCache:
    """A cache that grows: one pair of tensors for each layer."""

    def __init__(self) -> None:
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, k_BHTK: Tensor, v_BHTK: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Append the new positions of `layer`; return all of them."""
        if layer in self._layers:
            k_BHSK, v_BHSK = self._layers[layer]
            k_BHTK, v_BHTK = torch.cat([k_BHSK, k_BHTK], dim=2), torch.cat([v_BHSK, v_BHTK], dim=2)
        self._layers[layer] = (k_BHTK, v_BHTK)
        return k_BHTK, v_BHTK

    def get_seq_length(self) -> int:
        """Positions held."""
        return self._layers[0][0].shape[2] if self._layers else 0


def capacity(cache: Any) -> int | None:
    """Length of a cache of fixed length (StaticCache of transformers), however many positions it holds; else None."""
    return cache.layers[0].max_cache_len if getattr(cache, "is_compileable", False) else None


@dataclass
class Context:
    """Values that all blocks share in one forward pass."""

    cos_BTK: Tensor
    sin_BTK: Tensor  # its first half negated
    mask_BTS: Tensor | None  # True where a position may attend; None: to itself and all positions before it
    cache: Cache | None
    continues: bool = False  # whether the cache held positions before
    spans: list[list[int]] | None = None  # lengths of the documents in each row, inside which attention stays

    def of_rows(self, rows_N: Tensor) -> "Context":
        """The context of these rows of the batch."""

        def chosen(x_B: Tensor) -> Tensor:
            return x_B if len(x_B) == 1 else x_B[rows_N]

        mask_BTS = None if self.mask_BTS is None else chosen(self.mask_BTS)
        spans = self.spans and [self.spans[row] for row in rows_N.tolist()]
        return Context(chosen(self.cos_BTK), chosen(self.sin_BTK), mask_BTS, self.cache, self.continues, spans)


def rotate(x_BHTK: Tensor, context: Context) -> Tensor:
    """Rotary positions, half-split: channel i turns with channel i + K/2."""
    # Halves are swapped by flip, which a compiler fuses; with cat the backward kernel took 4 times as long on a GPU.
    swapped = x_BHTK.unflatten(-1, (2, -1)).flip(-2).flatten(-2)
    return x_BHTK * context.cos_BTK[:, None].to(x_BHTK.dtype) + swapped * context.sin_BTK[:, None].to(x_BHTK.dtype)


class Attention(nn.Module):
    """Causal self-attention over all heads, softmax scale 1/sqrt(K)."""

    def __init__(self, d_model: int, n_head: int, layer: int):
        super().__init__()
        self.n_head, self.layer = n_head, layer
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        """x_BTD -> x_BTD."""
        q, k, v = (part.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for part in self.qkv(x_BTD).chunk(3, dim=-1))
        q, k = rotate(q, context), rotate(k, context)
        if context.cache is not None:
            held = context.cache.update(k, v, self.layer)
            k, v = held if context.continues else (k, v)
        return self.out(_attend(q, k, v, context).transpose(1, 2).flatten(2))


def _attend(q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, context: Context) -> Tensor:
    if context.spans:
        return _in_spans(q_BHTK, k_BHSK, v_BHSK, context.spans)
    mask = None if context.mask_BTS is None else context.mask_BTS[:, None]
    is_causal = mask is None and not context.continues  # a single new position attends to all
    if is_causal and q_BHTK.device.type == "cpu" and q_BHTK.shape[2] in HALVED:
        return in_halves(q_BHTK, k_BHSK, v_BHSK)
    return F.scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSK, attn_mask=mask, is_causal=is_causal)


def in_halves(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor) -> Tensor:
    """Causal attention, in which the first half of the positions reads only its own keys."""
    half, length = q_BHTK.shape[2] // 2, q_BHTK.shape[2]
    first_BHtK, second_BHtK = q_BHTK.split([half, length - half], 2)
    seen_tT = torch.ones(length - half, length, dtype=torch.bool, device=q_BHTK.device).tril(half)
    return torch.cat([
        F.scaled_dot_product_attention(first_BHtK, k_BHTK[:, :, :half], v_BHTK[:, :, :half], is_causal=True),
        F.scaled_dot_product_attention(second_BHtK, k_BHTK, v_BHTK, attn_mask=seen_tT),
    ], 2)  # fmt: skip


def _in_spans(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, spans: list[list[int]]) -> Tensor:
    """Causal attention inside each of the spans, one after the other."""
    lengths, alone = [length for row in spans for length in row], Context(q_BHTK, q_BHTK, None, None)
    parts = (x_BHTK.transpose(0, 1).flatten(1, 2)[None].split(lengths, 2) for x_BHTK in (q_BHTK, k_BHTK, v_BHTK))
    x_1HNK = torch.cat([_attend(q, k, v, alone) for q, k, v in zip(*parts, strict=True)], 2)
    return x_1HNK[0].unflatten(1, (len(spans), -1)).transpose(0, 1)


def document_spans(documents_BT: Tensor, width: int) -> list[list[int]] | None:
    """Lengths of the documents in each row; None where attention over all, with a mask, is faster, or on a GPU."""
    if documents_BT.device.type != "cpu" or bool((documents_BT.diff(dim=1) < 0).any()):  # or one is in several pieces
        return None
    spans = [row_T.unique_consecutive(return_counts=True)[1].tolist() for row_T in documents_BT]
    saved = documents_BT.numel() * documents_BT.shape[1] - sum(length**2 for row in spans for length in row)
    return spans if saved * width > CALL * sum(map(len, spans)) else None


def attention_kernels(device: torch.device) -> AbstractContextManager[Any]:
    """Limits the kernels of SDPA in inference: cuDNN prepares a new kernel for each length, which takes tens of ms."""
    if device.type != "cuda" or torch.is_grad_enabled():
        return nullcontext()
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])
