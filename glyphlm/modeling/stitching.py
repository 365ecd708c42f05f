"""Model stitching: the lower blocks of one expert, a trained linear map, the upper blocks and the head of another.

Torch only; this file travels inside every run folder. Shapes: as in fusion.py.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .config import FusionConfig
from .fusion import Fusion, Pass
from .model import GPT


class Stitched(Fusion):
    """The fusion of method stitch: two experts, one above the other; the map between them is all that trains."""

    def _take_head(self, experts: Sequence[GPT]) -> nn.Module:
        if any(expert.config.head.kind != "full" for expert in experts):
            raise ValueError("stitch needs experts with a head of kind full")
        return experts[1].head

    def _add_trained(self) -> None:
        unnormed: Any = Unnormed(self.experts[0])
        self.experts[0].norm = unnormed
        lower, upper = self._widths
        self.map = nn.Linear(lower, upper)

    def init_weights(self, seed: int) -> None:
        """Initialize the map as the identity."""
        nn.init.eye_(self.map.weight)
        nn.init.zeros_(self.map.bias)

    @property
    def frozen_depth(self) -> int:
        """The blocks below the map; the gradient goes through those above it."""
        return len(self.experts[0].blocks)

    def _fused_state(self, given: Pass) -> Tensor:
        lower, upper = self.experts
        upper.training = False  # its blocks are frozen, but the gradient must go through them to the map
        x_BTD = given.run(lower, self.substrates[self.reads[0]](given.ids_BT), 0)
        return given.run(upper, self.map(x_BTD), len(lower.blocks))

    def logits(self, x_BTF: Tensor) -> Tensor:
        """logits_BTV of the upper expert's head."""
        return self.head(x_BTF)


class Unnormed(nn.Module):
    """Replaces the final norm of an expert: the state stays as it leaves the blocks."""

    def __init__(self, expert: GPT):
        super().__init__()
        self._like = [expert.blocks[0].attention_norm]  # in a list, or it would be registered as a part of this module

    @property
    def weight(self) -> Tensor:
        """A tensor of the dtype and device that the expert computes in."""
        return self._like[0].weight

    def forward(self, x_BTD: Tensor) -> Tensor:
        """x_BTD, unchanged."""
        return x_BTD


def make_fusion(fusion: FusionConfig, experts: Sequence[GPT]) -> Fusion:
    """The fusion of a method; arguments and errors as those of `Fusion`."""
    return (Stitched if fusion.method == "stitch" else Fusion)(fusion, experts)
