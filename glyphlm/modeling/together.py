"""Experts of one shape as one batched model, and their caches. Torch only; this file travels inside every run folder.

In generation, where few tokens are processed at a time, a matrix product is bound by reading the weights, and one call that
reads the weights of all experts costs less than M calls (benchmarks/fusion.py).

Shapes: as in model.py; M experts. Rows N of a batch are text 1 of expert 1, text 1 of expert 2 .., text 2 of expert 1 ..
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Cache
from .heads import HeadConfig
from .model import GPT


class Linears(nn.Module):
    """nn.Linear of all experts as one batched product."""

    def __init__(self, layers: Sequence[nn.Linear]):
        super().__init__()
        self.weight = _side_by_side([layer.weight for layer in layers])
        self.bias = None if layers[0].bias is None else _side_by_side([layer.bias for layer in layers])

    def forward(self, x_NTI: Tensor) -> Tensor:
        """As nn.Linear, on the rows of all experts."""
        x_MRI = x_NTI.unflatten(0, (-1, len(self.weight))).transpose(0, 1).flatten(1, 2)
        weight_MIO = self.weight.mT
        x_MRO = x_MRI @ weight_MIO if self.bias is None else torch.baddbmm(self.bias[:, None], x_MRI, weight_MIO)
        return x_MRO.unflatten(1, (-1, x_NTI.shape[1])).transpose(0, 1).flatten(0, 1)


class Norms(nn.Module):
    """nn.LayerNorm of all experts."""

    def __init__(self, layers: Sequence[nn.LayerNorm]):
        super().__init__()
        self.eps = layers[0].eps
        self.weight, self.bias = (_side_by_side([getattr(layer, name) for layer in layers]) for name in ("weight", "bias"))

    def forward(self, x_NTD: Tensor) -> Tensor:
        """As nn.LayerNorm, on the rows of all experts."""
        x_BMTD = F.layer_norm(x_NTD, x_NTD.shape[-1:], eps=self.eps).unflatten(0, (-1, len(self.weight)))
        return torch.addcmul(self.bias[:, None], x_BMTD, self.weight[:, None]).flatten(0, 1)


class ExpertCache:
    """The layers of one expert in the cache of all experts."""

    def __init__(self, cache: Cache, first: int, past: int):
        self._cache, self._first, self._past = cache, first, past

    def update(self, k_BHTK: Tensor, v_BHTK: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """As of the whole cache; `layer` counts from the expert's first layer."""
        k_BHSK, v_BHSK = self._cache.update(k_BHTK, v_BHTK, self._first + layer)
        held = self._past + k_BHTK.shape[2]  # a cache of fixed length returns more
        return k_BHSK[:, :, :held], v_BHSK[:, :, :held]

    def get_seq_length(self) -> int:
        """Positions held before this pass; during the pass, layers of earlier experts already hold more."""
        return self._past


class SharedCache:
    """A cache whose rows are texts, with the attention heads of all experts side by side."""

    def __init__(self, cache: Cache, experts: int):
        self._cache, self._experts = cache, experts

    def update(self, k_NHTK: Tensor, v_NHTK: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """As of the underlying cache, on the rows of all experts."""
        heads = self._experts * k_NHTK.shape[1]
        k_BXTK, v_BXTK = (x_NHTK.reshape(-1, heads, *x_NHTK.shape[2:]) for x_NHTK in (k_NHTK, v_NHTK))
        k_NHSK, v_NHSK = (x_BXSK.reshape(len(k_NHTK), -1, *x_BXSK.shape[2:])
                          for x_BXSK in self._cache.update(k_BXTK, v_BXTK, layer))
        return k_NHSK, v_NHSK

    def get_seq_length(self) -> int | Tensor:
        """Positions held."""
        return self._cache.get_seq_length()


class Together:
    """Experts of one shape as one batched model.

    The weights of the experts become views of its weights, so there is one copy of them. Moving or replacing the weights of
    an expert breaks this (`holds`).
    """

    def __init__(self, experts: Sequence[GPT]):
        self._experts = experts
        same = {id(values): values for values in [*experts[0].parameters(), *experts[0].buffers()]}
        self._model = copy.deepcopy(experts[0], same)  # the modules alone
        for kind, together in ((nn.Linear, Linears), (nn.LayerNorm, Norms)):
            for name in [name for name, module in experts[0].named_modules() if type(module) is kind]:
                layers: list[Any] = [expert.get_submodule(name) for expert in experts]
                self._model.set_submodule(name, together(layers))
        self._model.eval()
        self._places = self._find()

    def holds(self) -> bool:
        """Whether the weights of the experts are still views of these."""
        return self._places == self._find()

    def _find(self) -> list[dict[str, int]]:
        return [{name: values.data_ptr() for name, values in expert.named_parameters() if not values.requires_grad}
                for expert in self._experts]

    def hidden(
        self, parts: Sequence[Tensor], cache: Cache, attended_BS: Tensor | None, positions_BT: Tensor | None
    ) -> list[Tensor]:
        """The final state x_BTD of each expert, given its input embeddings `parts`; the rest as of `GPT.hidden`."""
        many = len(parts)
        rows = (None if t is None or len(t) == 1 else t.repeat_interleave(many, 0) for t in (attended_BS, positions_BT))
        attended_NS, positions_NT = rows
        x_NTD = self._model.hidden(
            torch.stack(tuple(parts), 1).flatten(0, 1), cache=SharedCache(cache, many), attended_BS=attended_NS,
            positions_BT=positions_NT,
        )
        return list(x_NTD.unflatten(0, (-1, many)).unbind(1))


def can_join(experts: Sequence[GPT]) -> bool:
    """Whether the experts have one shape and only plain, frozen layers."""
    shapes = [replace(expert.config, block_size=1, head_bias=False, head=HeadConfig()) for expert in experts]
    if len(experts) < 2 or any(shape != shapes[0] for shape in shapes):
        return False
    first, *others = ([(name, type(values), values.requires_grad, values.shape, values.dtype, values.device)
                       for name, values in expert.named_parameters()] for expert in experts)
    plain = {type(module) for module in experts[0].modules() if any(True for _ in module.parameters(recurse=False))}
    return (all(other == first for other in others) and plain == {nn.Linear, nn.LayerNorm}
            and all((kind, trains) == (nn.Parameter, False) for _, kind, trains, *_ in first))


def _side_by_side(weights: Sequence[Tensor]) -> nn.Buffer:
    """The weights stacked, [M, ..]; each of them becomes a view of the result."""
    with torch.inference_mode(False), torch.no_grad():
        together = torch.stack([values.detach() for values in weights])
        for values, part in zip(weights, together):
            values.data = part
    return nn.Buffer(together)
