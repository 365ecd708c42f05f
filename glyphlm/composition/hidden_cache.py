"""Cache of frozen activations: outputs of the frozen blocks, reused in later epochs instead of being recomputed."""

import hashlib
import weakref
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glyphlm.base.errors import InputError
from glyphlm.base.outputs import first_difference, one_writer, write_atomic
from glyphlm.base.records import parse_json, read_json, to_json

RECORD, ROWS, KEYS = "cache.json", "rows.f32", "keys.bin"
SLOT = np.dtype([("key", "S16"), ("checksum", "<u4")])


class HiddenCache:
    """(ids of a sequence) -> x_TD, for as many sequences as fit; a sequence that does not is computed each time.

    Args:
        block_size: T; sequences of another length are not kept.
        d_model: D.
        capacity: Sequences.
        folder: Stores the cache for later processes; by default it is in memory.
        made_from: What the values depend on; a folder with another record is refused.

    Raises:
        InputError: the folder has another record (the first difference is named), or another process uses it.
    """

    def __init__(
        self,
        block_size: int,
        d_model: int,
        capacity: int,
        folder: Path | None = None,
        made_from: dict[str, Any] | None = None,
    ):
        self._hits = 0
        shape = (capacity, block_size, d_model)
        if folder is None:
            self._rows, self._keys = np.empty(shape, np.float32), np.zeros(capacity, SLOT)
        else:
            lock = ExitStack()
            lock.enter_context(one_writer(folder))  # two processes would write rows at the same places
            weakref.finalize(self, lock.close)
            _claim(folder, {**(made_from or {}), "capacity": capacity, "block_size": block_size, "d_model": d_model})
            self._rows, self._keys = _opened(folder / ROWS, shape, np.float32), _opened(folder / KEYS, (capacity,), SLOT)
        held = np.flatnonzero(self._keys["key"] != b"")
        self._places = {self._keys["key"][place]: int(place) for place in held}

    def __call__(self, ids_BT: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """x_BTD of the sequences; `compute` is called with the numbers [N] of those that are not cached."""
        keys = [hashlib.blake2b(ids.tobytes(), digest_size=15).digest() + b"\1" for ids in ids_BT.cpu().numpy()]
        found = {number: row for number, key in enumerate(keys) if (row := self._find(key, ids_BT.shape[1])) is not None}
        missing = [number for number in range(len(keys)) if number not in found]
        self._hits += len(found)
        if not found:
            x_BTD = compute(torch.arange(len(keys), device=ids_BT.device))
        else:
            x_BTD = torch.empty((len(keys), *self._rows.shape[1:]), device=ids_BT.device)
            x_BTD[list(found)] = torch.from_numpy(np.stack(list(found.values()))).to(ids_BT.device)
            if missing:
                x_BTD[missing] = compute(torch.tensor(missing, device=ids_BT.device)).float()
        for number in missing:
            self._keep(keys[number], x_BTD[number])
        return x_BTD

    def take_hits(self) -> int:
        """Number of sequences served from the cache since the last call."""
        hits, self._hits = self._hits, 0
        return hits

    def _find(self, key: bytes, length: int) -> np.ndarray | None:
        place = self._places.get(key)
        if place is None or length != self._rows.shape[1]:
            return None
        row_TD = self._rows[place]
        # After a crash the key may be on disk without its row.
        return row_TD if zlib.crc32(row_TD) == self._keys["checksum"][place] else None

    def _keep(self, key: bytes, x_TD: Tensor) -> None:
        place = self._places.get(key, len(self._places))
        if place == len(self._rows) or x_TD.shape != self._rows.shape[1:]:
            return
        self._rows[place] = x_TD.float().cpu().numpy()
        self._keys["checksum"][place] = zlib.crc32(self._rows[place])
        self._keys["key"][place] = key
        self._places[key] = place


def _claim(folder: Path, made_from: dict[str, Any]) -> None:
    path, made_from = folder / RECORD, parse_json(to_json(made_from), RECORD)
    if path.exists():
        difference = first_difference(read_json(path), made_from)
        if difference:
            raise InputError(f"{folder} holds hidden states of something else: {difference}; choose another growth.cache or "
                             f"remove {folder}")
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(path, to_json(made_from))


def _opened(path: Path, shape: tuple[int, ...], dtype: Any) -> np.memmap:
    """The file as an array; a new one takes no space before it is written."""
    return np.memmap(path, dtype, "r+" if path.exists() else "w+", shape=shape)
