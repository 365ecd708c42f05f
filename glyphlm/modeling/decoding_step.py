"""One step of generation as a CUDA graph, which is a single launch. Torch only; travels inside every run folder.

A step of a few sequences is hundreds of small kernels, which a GPU executes faster than the host launches them one by one.
Shapes: as in model.py.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .attention import capacity
from .model import GPT


class DecodingStep:
    """Computes the logits of one new token of each sequence, after a cache of fixed length that holds some positions.

    The constructor records the step for the tensors of this cache and this model; if they are replaced, record a new one.
    """

    def __init__(self, model: GPT, cache: Any, ids_B1: Tensor, positions_B1: Tensor | None):
        self._model, self._cache = model, cache
        self._ids_B1 = ids_B1.clone()
        self._positions_B1 = None if positions_B1 is None else positions_B1.clone()
        self._attended_BS = torch.ones(len(ids_B1), capacity(cache) or 0, dtype=torch.bool, device=ids_B1.device)
        held = [layer.cumulative_length.clone() for layer in cache.layers]

        def put_back() -> None:
            for layer, length in zip(cache.layers, held):
                layer.cumulative_length.copy_(length)

        self._replay, self._logits_B1V = record(self._compute, put_back)

    def __call__(self, ids_B1: Tensor, attended_BS: Tensor | None, positions_B1: Tensor | None) -> Tensor:
        """logits_B1V; the cache holds the new position afterwards."""
        self._ids_B1.copy_(ids_B1)
        if self._positions_B1 is not None and positions_B1 is not None:  # both or neither, as it fits
            self._positions_B1.copy_(positions_B1)
        if attended_BS is not None:
            self._attended_BS[:, : attended_BS.shape[1]] = attended_BS
        self._replay()
        return self._logits_B1V.clone()

    def fits(self, ids_B1: Tensor, positions_B1: Tensor | None) -> bool:
        """Whether it was recorded for such a call."""
        return ids_B1.shape == self._ids_B1.shape and (positions_B1 is None) == (self._positions_B1 is None)

    def _compute(self) -> Tensor:
        x_B1D = self._model.hidden(
            self._ids_B1, cache=self._cache, attended_BS=self._attended_BS, positions_BT=self._positions_B1
        )
        return self._model.logits(x_B1D)


def can_record(device: torch.device) -> bool:
    """Whether steps on `device` can be recorded."""
    return device.type == "cuda"


def record(compute: Callable[[], Tensor], put_back: Callable[[], None]) -> tuple[Callable[[], None], Tensor]:
    """A function that repeats `compute` on the GPU, and the tensor that then holds its result.

    `put_back` undoes the side effects of one call of `compute` that the next call does not overwrite.
    """
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(2):  # libraries allocate and choose their kernels before a recording
            compute()
            put_back()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = compute()
    return graph.replay, result
