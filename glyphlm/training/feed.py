"""Micro-batches for the training loop; for a GPU a thread prefetches them into pinned memory.

A checkpoint records the position of the last batch that was consumed, not of those that were prefetched.
"""

import queue
import threading
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from glyphlm.data.batches import IGNORED, BatchSource

AHEAD = 2  # batches prefetched; making one takes a fraction of a step


@dataclass
class LocalBatch:
    """This process's part of one global batch.

    Args:
        parts: (x_BT, y_BT) of each micro-batch, on the CPU.
        targets: Number of targets in the global batch.
        bytes: Bytes of text of these targets.
        position: State of the batches after this one.
    """

    parts: list[tuple[Tensor, Tensor]]
    targets: int
    bytes: int
    position: dict[str, Any]


class Feed:
    """An endless iterator over `batches`; `position` is that of the last batch consumed.

    Args:
        rank: Which of `size` processes this is; each takes every `size`-th row.
        micro_rows: Rows of one forward pass.
        ahead: Prefetch batches in a thread, into pinned memory.
    """

    def __init__(self, batches: BatchSource, rank: int, size: int, micro_rows: int, ahead: bool):
        self._batches, self._rank, self._size, self._micro_rows, self._ahead = batches, rank, size, micro_rows, ahead
        self.position: dict[str, Any] = batches.state()
        self._made: queue.Queue[LocalBatch | BaseException] = queue.Queue(AHEAD)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="batches", daemon=True)
        if ahead:
            self._thread.start()

    def __next__(self) -> LocalBatch:
        batch = self._made.get() if self._ahead else self._make()
        if isinstance(batch, BaseException):
            raise batch
        self.position = batch.position
        return batch

    def close(self) -> None:
        """Stop the thread, and reset the batches to `position`."""
        if not self._ahead:
            return
        self._ended.set()
        while self._thread.is_alive():
            try:
                self._made.get(timeout=0.01)  # makes room in the queue, so that the thread can finish its item
            except queue.Empty:
                pass
        self._batches.restore(self.position)

    def _work(self) -> None:
        while not self._ended.is_set():
            try:
                self._made.put(self._make())
            except BaseException as error:  # re-raised in the consumer
                self._made.put(error)
                return

    def _make(self) -> LocalBatch:
        x_BT, y_BT = next(self._batches)
        position = self._batches.state()
        y_N = y_BT[y_BT != IGNORED].numpy()
        text_bytes = int(self._batches.bytes_per_id_V[y_N].sum())
        mine = [ids_BT[self._rank :: self._size] for ids_BT in (x_BT, y_BT)]
        if self._ahead and torch.cuda.is_available():
            mine = [ids_BT.contiguous().pin_memory() for ids_BT in mine]
        parts = list(zip(*(ids_BT.split(self._micro_rows) for ids_BT in mine), strict=True))
        return LocalBatch(parts, len(y_N), text_bytes, position)
