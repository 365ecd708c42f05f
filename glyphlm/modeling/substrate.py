"""Substrates, input embeddings that can stay frozen: ids_BT -> codes -> x_BTD. Torch only; travels in every run folder.

Shapes: B batch, T positions, V vocabulary, D d_model, E n_embed, N binary places of an id.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import SubstrateConfig


def scale_rows(code: Tensor, scale: str) -> Tensor:
    """Scale each code (last axis, width E) to norm 1 (l2) or sqrt(E) (unit_rms); a code of zeros stays zero."""
    if scale == "none":
        return code
    norm = 1.0 if scale == "l2" else math.sqrt(code.shape[-1])
    return F.normalize(code, dim=-1) * norm


class Substrate(nn.Module):
    """ids_BT -> x_BTD: the code of each id, lifted to width D.

    A frozen table is a buffer, because from_pretrained would make a parameter trainable again. The constructor allocates
    tables of zeros and identity maps; load_substrate or the weights of a run fill them.
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
        # Integers, which stay exact when the model is cast to bfloat16.
        if self.config.shuffle_seed is not None:
            self.register_buffer("shuffled_V", torch.arange(self.config.vocab_size, dtype=torch.int32))
        if self.config.kind == "affine_bits":
            self.register_buffer("affine_NE", torch.eye(self.config.places, self.config.n_embed, dtype=torch.uint8))
            self.register_buffer("offset_E", torch.zeros(self.config.n_embed, dtype=torch.uint8))

    def forward(self, ids_BT: Tensor) -> Tensor:
        """x_BTD, in float32 also under autocast, because the residual stream begins here."""
        return self._lift(self.codes(ids_BT))

    def codes(self, ids: Tensor) -> Tensor:
        """The code of each id, [..., E]."""
        if not self.config.is_rule:
            return F.embedding(ids, self.table_VE)
        return scale_rows(self._bits(ids), self.config.scale)

    def _bits(self, ids: Tensor) -> Tensor:
        """Binary digits of each id, the lowest first, padded with zeros, or mapped by the affine map."""
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
