"""The whole model: ids_BT -> x_BTD -> logits_BTV. Torch only; this file travels inside every run folder.

Shapes: B batch, T new positions, S positions seen (cache + new), V vocabulary, D d_model, E n_embed, H heads of width K,
N binary places of an id.
The block is the one that the published parameter counts force (12 D^2 + 9 D): two affine LayerNorms, q/k/v/o without
bias, an MLP of ratio 4 with biases, GELU, rotary positions (base 10000, half-split), a final LayerNorm, an untied head.
"""

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import UnionType
from typing import Any, Literal, Protocol, get_args, get_origin, get_type_hints

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

Kind = Literal["glyph", "token_bits", "affine_bits", "random_bits", "random_float", "learned", "given"]


def check_fields(config: Any, least: Mapping[str, float]) -> None:
    """Compare each field of a config, which may come from a file of others, with its type and its least value.

    Raises:
        ValueError: with the field, its value and what it may be.
    """
    for name, kind in get_type_hints(type(config)).items():
        value, options = getattr(config, name), get_args(kind) if isinstance(kind, UnionType) else (kind,)
        if not any(_is_a(value, option) for option in options):
            words = (word for option in options for word in get_args(option) or [getattr(option, "__name__", option)])
            raise ValueError(f"{name} {value!r} must be one of {', '.join(map(str, words))}")
        if name in least and value is not None and value < least[name]:
            raise ValueError(f"{name} {value} must be at least {least[name]:g}")


def _is_a(value: Any, kind: Any) -> bool:
    """Whether `value` is what an annotation says; True is no number, and NaN is none."""
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_is_a(part, *get_args(kind)) for part in value)
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is kind


@dataclass
class ModelConfig:
    """The shape of the transformer.

    Args:
        d_model: Width D of the residual stream.
        n_layer: Number of blocks.
        n_head: Attention heads a block; their width d_model / n_head must be even.
        block_size: Longest context in tokens.
        head_bias: True in the published models; false can be exported as GPT-NeoX.
        activation: Exact GELU, or its tanh approximation.
        rope_base: Base of the rotary frequencies.
        norm_eps: Epsilon of the LayerNorms.
    """

    d_model: int = 256
    n_layer: int = 4
    n_head: int = 4
    block_size: int = 256
    head_bias: bool = False
    activation: Literal["gelu", "gelu_tanh"] = "gelu"
    rope_base: float = 10000.0
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        least = dict.fromkeys(("d_model", "n_layer", "n_head", "block_size", "rope_base"), 1)
        check_fields(self, least | {"norm_eps": 0})
        if self.d_model % (2 * self.n_head):
            fitting = [n for n in range(1, self.d_model // 2 + 1) if self.d_model % (2 * n) == 0]
            raise ValueError(f"d_model {self.d_model} does not split into {self.n_head} heads of even width; "
                             f"n_head can be {', '.join(map(str, fitting[-8:]))}")


@dataclass
class SubstrateConfig:
    """What stands below the first block: the code of each id, and how it becomes a vector of width D.

    Args:
        vocab_size: Number of ids.
        n_embed: Width of a code.
        kind: The content. `token_bits` (binary digits of the id) and `affine_bits` (A digits + b modulo 2, A of full
            rank; arXiv 2605.09751) are rules computed from ids unless trainable; every other kind is a table [V, E].
        scale: l2 gives each code norm 1 (published), unit_rms norm sqrt(E), none leaves it.
        lift: repeat_interleave (each value; papers 1, 2), tile (the whole code; paper 3), orthogonal (a fixed matrix with
            orthonormal rows), none (E is D). All multiply the norm by sqrt(D / E).
        trainable: Whether training changes the table.
        seed: Of kinds that are drawn by chance.
        lift_seed: Of the orthogonal matrix.
        shuffle_seed: Ids are permuted before a rule takes their bits, which removes the order of code points.
        fingerprint: Identifies kind, vocabulary, parameters and initial values; growth and fusion compare it.
    """

    vocab_size: int
    n_embed: int
    kind: Kind = "glyph"
    scale: Literal["l2", "unit_rms", "none"] = "l2"
    lift: Literal["repeat_interleave", "tile", "orthogonal", "none"] = "repeat_interleave"
    trainable: bool = False
    seed: int = 1
    lift_seed: int = 1
    shuffle_seed: int | None = None
    fingerprint: str = ""

    def __post_init__(self) -> None:
        check_fields(self, {"vocab_size": 1, "n_embed": 1})

    @property
    def is_rule(self) -> bool:
        """Whether codes are computed from ids, with no table stored."""
        return self.kind in ("token_bits", "affine_bits") and not self.trainable

    @property
    def places(self) -> int:
        """Binary places that tell all ids apart."""
        return max(1, (self.vocab_size - 1).bit_length())

    def check_lift(self, d_model: int) -> None:
        """Raise ValueError where a code cannot be lifted to width D."""
        given = f"n_embed {self.n_embed}"
        if self.lift == "none" and self.n_embed != d_model:
            raise ValueError(f"{given} is not d_model {d_model}, as lift none needs; choose another lift or width")
        if self.lift == "orthogonal" and self.n_embed > d_model:
            raise ValueError(f"{given} is more than d_model {d_model}, the most that lift orthogonal takes; choose less")
        if self.lift in ("repeat_interleave", "tile") and d_model % self.n_embed:
            raise ValueError(f"{given} does not divide d_model {d_model}: codes are lifted by repetition, so give a "
                             f"d_model that is a multiple of {self.n_embed}, or lift orthogonal")


def scale_rows(code: Tensor, scale: str) -> Tensor:
    """Scale each code (last axis, width E) to norm 1 (l2) or sqrt(E) (unit_rms); a code of zeros stays zero."""
    if scale == "none":
        return code
    norm = 1.0 if scale == "l2" else math.sqrt(code.shape[-1])
    return F.normalize(code, dim=-1) * norm


class Substrate(nn.Module):
    """ids_BT -> x_BTD.

    What is frozen is a buffer, because from_pretrained would turn a parameter trainable again. The constructor only makes
    the places (tables of zeros, maps that change nothing); load_substrate or the weights of a run fill them.
    """

    table_VE: Tensor
    lift_ED: Tensor
    shuffled_V: Tensor
    affine_NE: Tensor
    offset_E: Tensor

    def __init__(self, config: SubstrateConfig, d_model: int):
        super().__init__()
        config.check_lift(d_model)
        self.config, self.d_model = config, d_model
        if config.is_rule:
            self._add_rule()
        elif config.trainable:
            self.table_VE = nn.Parameter(torch.zeros(config.vocab_size, config.n_embed))
        else:
            self.register_buffer("table_VE", torch.zeros(config.vocab_size, config.n_embed))
        if config.lift == "orthogonal":
            self.register_buffer("lift_ED", torch.eye(config.n_embed, d_model))

    def _add_rule(self) -> None:
        width, places = self.config.n_embed, self.config.places
        if self.config.kind == "token_bits" and width < places:
            raise ValueError(f"n_embed {width} of token_bits must be at least {places}, the binary places of an id")
        # Integers, which a model cast to bfloat16 keeps exact.
        if self.config.shuffle_seed is not None:
            self.register_buffer("shuffled_V", torch.arange(self.config.vocab_size, dtype=torch.int32))
        if self.config.kind == "affine_bits":
            self.register_buffer("affine_NE", torch.eye(self.config.places, self.config.n_embed, dtype=torch.uint8))
            self.register_buffer("offset_E", torch.zeros(self.config.n_embed, dtype=torch.uint8))

    def forward(self, ids_BT: Tensor) -> Tensor:
        """The code of each id, lifted to width D; in float32 also under autocast, as the residual stream begins here."""
        return self._lift(self.codes(ids_BT))

    def codes(self, ids: Tensor) -> Tensor:
        """The code of each id, [..., E]."""
        if not self.config.is_rule:
            return F.embedding(ids, self.table_VE)
        return scale_rows(self._bits(ids), self.config.scale)

    def _bits(self, ids: Tensor) -> Tensor:
        """Binary digits of each id, the lowest first, then zeros; or what the affine map makes of the digits."""
        if self.config.shuffle_seed is not None:
            ids = self.shuffled_V[ids]
        places_N = torch.arange(self.config.places, device=ids.device)
        bits_N = ((ids[..., None] >> places_N) & 1).float()
        if self.config.kind == "affine_bits":
            sums_E = bits_N @ self.affine_NE.float() + self.offset_E  # at most N + 1, exact in every float type
            return (sums_E % 2).float()
        return F.pad(bits_N, (0, self.config.n_embed - self.config.places))

    def _lift(self, code_BTE: Tensor) -> Tensor:
        wide, narrow = self.d_model, self.config.n_embed
        if self.config.lift == "orthogonal":
            with torch.autocast(code_BTE.device.type, enabled=False):
                return code_BTE.to(self.lift_ED.dtype) @ self.lift_ED * math.sqrt(wide / narrow)  # as long as repetition
        if self.config.lift == "tile":
            return code_BTE.repeat(1, 1, wide // narrow)
        return code_BTE.repeat_interleave(wide // narrow, dim=-1)


class Cache(Protocol):
    """Keys and values of earlier positions; DynamicCache of transformers is one."""

    def update(self, k_BHTK: Tensor, v_BHTK: Tensor, layer: int, /) -> tuple[Tensor, Tensor]:
        """Append the new positions of `layer`; return all of them, [B, H, S, K] each."""
        ...

    def get_seq_length(self) -> int | Tensor:
        """Positions held; a cache of fixed length that holds some has their number on its device."""
        ...


def capacity(cache: Any) -> int | None:
    """Positions that a cache of fixed length (StaticCache of transformers) returns, filled or not; None if it grows."""
    return cache.layers[0].max_cache_len if getattr(cache, "is_compileable", False) else None


class KVCache:
    """The plain cache: one pair of tensors a layer."""

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


@dataclass
class Context:
    """What every block shares in one forward pass."""

    cos_BTK: Tensor
    sin_BTK: Tensor  # its first half negated
    mask_BTS: Tensor | None  # True where a position may look; None means every one before it
    cache: Cache | None
    continues: bool = False  # whether the cache held positions before
    documents: Any = None  # a BlockMask in place of mask_BTS

    def of_rows(self, rows_N: Tensor) -> "Context":
        """The same for some sequences of the batch."""

        def chosen(x_B: Tensor) -> Tensor:
            return x_B if len(x_B) == 1 else x_B[rows_N]

        mask_BTS = None if self.mask_BTS is None else chosen(self.mask_BTS)
        return Context(chosen(self.cos_BTK), chosen(self.sin_BTK), mask_BTS, self.cache, self.continues, self.documents)


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
    if context.documents is not None:
        from torch.nn.attention.flex_attention import flex_attention

        return flex_attention(q_BHTK, k_BHSK, v_BHSK, block_mask=context.documents)
    mask = None if context.mask_BTS is None else context.mask_BTS[:, None]
    is_causal = mask is None and not context.continues  # a single new position sees all
    return F.scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSK, attn_mask=mask, is_causal=is_causal)


def _attention_kernels(device: torch.device) -> AbstractContextManager[Any]:
    """Those that SDPA may choose from. cuDNN prepares its kernel anew for each length, tens of ms: it is for training."""
    if device.type != "cuda" or torch.is_grad_enabled():
        return nullcontext()
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


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


class Sizes(Protocol):
    """What every model says of its shape."""

    @property
    def block_size(self) -> int:
        """Longest context in tokens."""
        ...


class LanguageModel(Protocol):
    """What scoring needs of a model: GPT, Fusion, and models of other libraries in a thin wrapper."""

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
        """Where the weights are."""
        ...

    def hidden(self, ids_BT: Tensor) -> Tensor:
        """What `logits` reads, x_BTD."""
        ...

    def logits(self, x_BTD: Tensor) -> Tensor:
        """logits_BTV."""
        ...


class Kept(Protocol):
    """What left the frozen blocks before, by the ids that entered."""

    def __call__(self, ids_BT: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """x_BTD; `compute` gives that of the rows whose numbers [N] it is called with."""
        ...

    def take_hits(self) -> int:
        """Rows that were found since the last call."""
        ...


class GPT(nn.Module):
    """Substrate, blocks, final norm, head."""

    def __init__(self, config: ModelConfig, substrate: Substrate):
        super().__init__()
        self.config, self.substrate = config, substrate
        self.recompute = False  # trade time for memory: training keeps only what enters each block
        self.kept: Kept | None = None  # where training finds again what leaves the frozen blocks
        self.mask_documents: Callable[[Tensor], Any] | None = None  # documents_BT -> BlockMask, where blocks are compiled
        blocks: Any = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.blocks: Sequence[Block] = blocks
        self.norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.head = nn.Linear(config.d_model, substrate.config.vocab_size, bias=config.head_bias)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """ids_BT -> logits_BTV, each position seeing itself and what stands before it."""
        return self.logits(self.hidden(ids_BT))

    def logits(self, x_BTD: Tensor) -> Tensor:
        """What `hidden` gives -> logits_BTV."""
        return self.head(x_BTD)

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return self.substrate.config.vocab_size

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.head.weight.device

    def hidden(
        self,
        ids_BT: Tensor,
        *,
        cache: Cache | None = None,
        attended_BS: Tensor | None = None,
        positions_BT: Tensor | None = None,
        documents_BT: Tensor | None = None,
    ) -> Tensor:
        """x_BTD after the final norm, what the head reads.

        Args:
            cache: keys and values of earlier positions; is extended by this call.
            attended_BS: 0 where a position is padding (cache included), as transformers' attention_mask.
            positions_BT: place of each id in its text; by default they follow what the cache holds.
            documents_BT: number of the document of each id; a position then sees only its own. Without cache.
        """
        past = cache.get_seq_length() if cache is not None else 0
        if positions_BT is None:
            positions_BT = (torch.arange(ids_BT.shape[1], device=ids_BT.device) + past)[None]
        mask_BTS = self._mask(ids_BT.shape[1], past, attended_BS, ids_BT.device, capacity(cache))
        context = Context(*self._angles(positions_BT), mask_BTS, cache, isinstance(past, Tensor) or past > 0)
        frozen = self.frozen_depth if self.training else 0
        if documents_BT is not None:
            self._separate(documents_BT, context, frozen)
        with _attention_kernels(ids_BT.device):
            x_BTD = self._frozen_part(ids_BT, context, frozen)
            for block in self.blocks[frozen:]:
                if self.recompute and self.training:
                    x_BTD = checkpoint(block, x_BTD, context, use_reentrant=False)
                else:
                    x_BTD = block(x_BTD, context)
        return self.norm(x_BTD)

    def _separate(self, documents_BT: Tensor, context: Context, frozen: int) -> None:
        """Let a position see its own document only: in training by a BlockMask, unless frozen blocks take single rows."""
        if self.mask_documents is not None and self.training and not frozen and context.mask_BTS is None:
            context.documents = self.mask_documents(documents_BT)
            return
        same_BTT = documents_BT[:, :, None] == documents_BT[:, None]
        context.mask_BTS = same_BTT.tril() if context.mask_BTS is None else same_BTT & context.mask_BTS

    @property
    def frozen_depth(self) -> int:
        """Number of blocks, from below, in and below which nothing trains: no gradient has to go through them."""
        if any(values.requires_grad for values in self.substrate.parameters()):
            return 0
        frozen = [not any(values.requires_grad for values in block.parameters()) for block in self.blocks]
        return frozen.index(False) if False in frozen else len(frozen)

    def _frozen_part(self, ids_BT: Tensor, context: Context, depth: int) -> Tensor:
        """What leaves the substrate and `depth` frozen blocks, without autograd; or what was kept of it."""
        if not depth:
            return self._embed(ids_BT)

        def compute(rows_N: Tensor) -> Tensor:
            x_NTD, part = self._embed(ids_BT[rows_N]), context.of_rows(rows_N)
            for block in self.blocks[:depth]:
                x_NTD = block(x_NTD, part)
            return x_NTD

        with torch.no_grad():
            if self.kept is not None:
                return self.kept(ids_BT, compute)
            return compute(torch.arange(len(ids_BT), device=ids_BT.device))

    def _embed(self, ids_BT: Tensor) -> Tensor:
        return self.substrate(ids_BT).to(self.norm.weight.dtype)  # rules give float32 in a model of bfloat16, too

    def _angles(self, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
        # Computed at each call: tables kept as non-persistent buffers come back from from_pretrained as zeros.
        width = self.config.d_model // self.config.n_head
        places = torch.arange(0, width, 2, device=positions_BT.device, dtype=torch.float32)
        angles_BTk = positions_BT[..., None] * self.config.rope_base ** (-places / width)
        cos_BTk, sin_BTk = angles_BTk.cos(), angles_BTk.sin()
        return torch.cat([cos_BTk, cos_BTk], -1), torch.cat([-sin_BTk, sin_BTk], -1)

    def _mask(
        self, new: int, past: int | Tensor, attended_BS: Tensor | None, device: torch.device, fixed: int | None
    ) -> Tensor | None:
        """True where a position may look; None where that is every position before it."""
        starts = isinstance(past, int) and past == 0
        # Beside a cache on a GPU nobody waits to learn whether anything is padding.
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
        # A padding position sees itself: a row without any True would be NaN.
        return causal_TS & attended_BS[:, None].bool() | (seen_S == new_T1)

    def init_weights(self, seed: int) -> None:
        """Normal(0, 0.02), projections into the residual stream divided by sqrt(2 layers), as GPT-2; norms 1, biases 0.

        Each tensor draws from a generator of its own, seeded by its name: arms of a comparison that share a tensor's
        name and shape start from the same values, whatever else differs. The substrate's table is left alone.
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


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Numbers of values: `trained` by the optimizer, `frozen` (parameters and the frozen table), and their `total`.

    The integers of a rule (bits, a permutation of the ids) are no parameters.
    """
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in [*model.parameters(), *model.buffers()] if p.is_floating_point())
    return {"trained": trained, "frozen": total - trained, "total": total}
