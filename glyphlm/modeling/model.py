"""GPT, the decoder-only transformer: ids_BT -> x_BTD -> logits_BTV. Torch only; this file travels inside every run folder.

Shapes: B batch, T new positions, S positions seen (cache + new), V vocabulary, D d_model, H heads of width K.
The block is the one that the published parameter counts imply (12 D^2 + 9 D): two affine LayerNorms, q/k/v/o without bias,
an MLP of ratio 4 with biases, GELU, rotary positions (base 10000, half-split); then a final LayerNorm and an untied head.
"""

import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import Attention, Cache, Context, attention_kernels, capacity, document_spans
from .config import ModelConfig
from .heads import make_head, target_nats_of
from .substrate import Substrate


class MLP(nn.Module):
    """D -> 4 D -> D with GELU."""

    def __init__(self, d_model: int, activation: str):
        super().__init__()
        self.up, self.down = nn.Linear(d_model, 4 * d_model), nn.Linear(4 * d_model, d_model)
        self.approximate = "tanh" if activation == "gelu_tanh" else "none"

    def forward(self, x_BTD: Tensor) -> Tensor:
        """x_BTD -> x_BTD."""
        return self.down(F.gelu(self.up(x_BTD), approximate=self.approximate))


class Block(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.attention = Attention(config.d_model, config.n_head, layer)
        self.mlp_norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.mlp = MLP(config.d_model, config.activation)

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        """x_BTD -> x_BTD."""
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), context)
        return x_BTD + self.mlp(self.mlp_norm(x_BTD))


class GPT(nn.Module):
    """Substrate, blocks, final norm, head."""

    def __init__(self, config: ModelConfig, substrate: Substrate):
        super().__init__()
        self.config, self.substrate = config, substrate
        self.recompute = False  # activation checkpointing: training stores only the input of each block
        self.frozen_cache: FrozenCache | None = None  # cache of frozen activations, used in training
        blocks: Any = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.blocks: Sequence[Block] = blocks
        self.norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.head = make_head(config.head, config.d_model, substrate, config.head_bias)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """ids_BT -> logits_BTV; each position attends to itself and those before it."""
        return self.logits(self.hidden(ids_BT))

    def logits(self, x_BTD: Tensor) -> Tensor:
        """Final state -> logits_BTV."""
        return self.head(x_BTD)

    def nats(self, x_ND: Tensor, y_N: Tensor) -> Tensor:
        """Cross-entropy of each target, float32 [N]."""
        return target_nats_of(self.head, x_ND, y_N)

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return self.substrate.config.vocab_size

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.norm.weight.device

    def hidden(
        self,
        ids_BT: Tensor,
        *,
        cache: Cache | None = None,
        attended_BS: Tensor | None = None,
        positions_BT: Tensor | None = None,
        documents_BT: Tensor | None = None,
    ) -> Tensor:
        """The final state x_BTD, after the last norm, which the head reads.

        Args:
            cache: Keys and values of earlier positions; this call appends the new ones.
            attended_BS: 0 where a position, cached or new, is padding, as the attention_mask of transformers.
            positions_BT: Place of each id in its text; by default they continue those of the cache.
            documents_BT: Number of the document of each id, to attend only within a document. Not with a cache.
        """
        past = cache.get_seq_length() if cache is not None else 0
        if positions_BT is None:
            positions_BT = (torch.arange(ids_BT.shape[1], device=ids_BT.device) + past)[None]
        mask_BTS = self._mask(ids_BT.shape[1], past, attended_BS, ids_BT.device, capacity(cache))
        spans = None
        if documents_BT is not None and mask_BTS is None and not self._is_compiled:
            spans = document_spans(documents_BT, self.config.d_model)
        if documents_BT is not None and spans is None:
            same_BTT = documents_BT[:, :, None] == documents_BT[:, None]
            mask_BTS = same_BTT.tril() if mask_BTS is None else same_BTT & mask_BTS
        continues = isinstance(past, Tensor) or past > 0
        context = Context(*self._angles(positions_BT), mask_BTS, cache, continues, spans)
        frozen = self.frozen_depth if self.training else 0
        with attention_kernels(ids_BT.device):
            x_BTD = self._frozen_part(ids_BT, context, frozen)
            for block in self.blocks[frozen:]:
                if self.recompute and self.training:
                    x_BTD = checkpoint(block, x_BTD, context, use_reentrant=False)
                else:
                    x_BTD = block(x_BTD, context)
        return self.norm(x_BTD)

    @property
    def frozen_depth(self) -> int:
        """Number of blocks, from below, that no gradient has to go through, as nothing in or below them trains."""
        if trains(self.substrate):
            return 0
        return next((depth for depth, block in enumerate(self.blocks) if trains(block)), len(self.blocks))

    @property
    def _is_compiled(self) -> bool:
        """Whether new lengths of documents would make torch compile again."""
        return torch.compiler.is_compiling() or any(block._compiled_call_impl is not None for block in self.blocks)

    def _frozen_part(self, ids_BT: Tensor, context: Context, depth: int) -> Tensor:
        """The output of the substrate and `depth` frozen blocks, without autograd and from the cache where it holds it."""
        if not depth:
            return self._embed(ids_BT)

        def compute(rows_N: Tensor) -> Tensor:
            x_NTD, part = self._embed(ids_BT[rows_N]), context.of_rows(rows_N)
            for block in self.blocks[:depth]:
                x_NTD = block(x_NTD, part)
            return x_NTD

        with torch.no_grad():
            if self.frozen_cache is not None:
                return self.frozen_cache(ids_BT, compute)
            return compute(torch.arange(len(ids_BT), device=ids_BT.device))

    def _embed(self, ids_BT: Tensor) -> Tensor:
        return self.substrate(ids_BT).to(self.norm.weight.dtype)  # rules give float32 also in a bfloat16 model

    def _angles(self, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
        """cos_BTK and sin_BTK of the rotary positions; the first half of sin is negated."""
        # Computed in each call, because from_pretrained restores non-persistent buffers as zeros.
        width = self.config.d_model // self.config.n_head
        places = torch.arange(0, width, 2, device=positions_BT.device, dtype=torch.float32)
        angles_BTk = positions_BT[..., None] * self.config.rope_base ** (-places / width)
        cos_BTk, sin_BTk = angles_BTk.cos(), angles_BTk.sin()
        return torch.cat([cos_BTk, cos_BTk], -1), torch.cat([-sin_BTk, sin_BTk], -1)

    def _mask(
        self, new: int, past: int | Tensor, attended_BS: Tensor | None, device: torch.device, fixed: int | None
    ) -> Tensor | None:
        """mask_BTS of `Context`."""
        starts = isinstance(past, int) and past == 0
        # With a cache on a GPU, finding out whether there is padding would cost a synchronization.
        if (starts or (new == 1 and fixed is None and device.type == "cpu")) and (
            attended_BS is None or bool(attended_BS.all())
        ):
            return None
        seen_S = torch.arange(new if starts else fixed or int(past) + new, device=device)
        new_T1 = (torch.arange(new, device=device) + past)[:, None]
        causal_TS = seen_S <= new_T1
        if attended_BS is None:
            return causal_TS[None]
        attended_BS = F.pad(attended_BS, (0, len(seen_S) - attended_BS.shape[1]))
        # A padding position attends to itself: a row without any True would be NaN.
        return causal_TS & attended_BS[:, None].bool() | (seen_S == new_T1)

    def init_weights(self, seed: int) -> None:
        """Normal(0, 0.02), divided by sqrt(2 layers) for projections into the residual stream, as GPT-2; norms 1, biases 0.

        Each tensor has a generator of its own, seeded by `seed` and its name: models that share a tensor's name and shape
        start from the same values, whatever else differs. The table of the substrate is not changed.
        """
        for name, parameter in self.named_parameters():
            if name.startswith("substrate."):
                continue
            if parameter.dim() < 2:
                nn.init.constant_(parameter, 1.0 if name.endswith("norm.weight") else 0.0)
                continue
            into_stream = name.endswith(("attention.out.weight", "mlp.down.weight"))
            std = 0.02 / math.sqrt(2 * self.config.n_layer) if into_stream else 0.02
            generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}".encode()))
            with torch.no_grad():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)


class FrozenCache(Protocol):
    """A cache of frozen activations: the outputs of the frozen blocks, by the ids of a sequence."""

    def __call__(self, ids_BT: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """x_BTD; `compute` is called with the numbers [N] of the rows that are not cached, and returns their x_NTD."""
        ...

    def take_hits(self) -> int:
        """Number of rows served from the cache since the last call."""
        ...


class Sizes(Protocol):
    """The part of a model's config that other code reads."""

    @property
    def block_size(self) -> int:
        """Longest context in tokens."""
        ...


class LanguageModel(Protocol):
    """The interface that scoring needs: of GPT, Fusion, and models of other libraries in a thin wrapper."""

    @property
    def config(self) -> Sizes:
        """Sizes."""
        ...

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        ...

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        ...

    def hidden(self, ids_BT: Tensor) -> Tensor:
        """The final state x_BTD, which `logits` reads."""
        ...

    def logits(self, x_BTD: Tensor, /) -> Tensor:
        """logits_BTV."""
        ...

    def nats(self, x_ND: Tensor, y_N: Tensor, /) -> Tensor:
        """Cross-entropy of each target, float32 [N]."""
        ...


def trains(module: nn.Module) -> bool:
    """Whether any parameter of the module requires a gradient."""
    return any(values.requires_grad for values in module.parameters())


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Numbers of values: `trained` by the optimizer, `frozen` (other parameters, and frozen tables), and their `total`.

    The integers of a rule (bits, a permutation of the ids) are not counted.
    """
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in [*model.parameters(), *model.buffers()] if p.is_floating_point())
    return {"trained": trained, "frozen": total - trained, "total": total}
