"""Input embeddings that need not be trained: ids_BT -> codes -> x_BTD. Torch only; copied into every run folder.

Shapes: B batch, T positions, V vocabulary, D d_model, E n_embed, N binary places of an id.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
    """Whether `value` has the annotated type; True and NaN do not count as numbers."""
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_is_a(part, *get_args(kind)) for part in value)
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is kind


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
        """Number of bits that distinguish all ids."""
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
