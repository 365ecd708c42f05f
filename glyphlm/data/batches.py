"""Token shards -> seeded batches (x_BT, y_BT) with a position that can be saved."""

import itertools
import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from glyphlm.base.errors import InputError
from glyphlm.base.outputs import read_build
from glyphlm.data.shards import TOKEN_BYTES
from glyphlm.tokenizer.tokenizer import Tokenizer

IGNORED = -100  # a target that is not learned


class TokenText:
    """The ids of one split of a shard folder as one long sequence, read from disk as needed.

    Raises:
        InputError: the folder is no shard folder, was made with another tokenizer, or a file is missing or cut off.
    """

    def __init__(self, folder: str | Path, split: str, tokenizer_fingerprint: str | None = None):
        self.folder, self.split = Path(folder), split
        build = read_build(self.folder)
        if build.made != "shards":
            raise InputError(f"{folder} holds a {build.made}, not token shards; make them with glyphlm prepare")
        made_with = build.inputs["tokenizer"]
        if tokenizer_fingerprint not in (None, made_with):
            raise InputError(f"{folder} was tokenized with {made_with[:12]}, the model's tokenizer is "
                             f"{tokenizer_fingerprint[:12]}; prepare the text again with that tokenizer")
        found = build.result["splits"][split]
        self.vocab_size, self.end_id = build.result["vocab_size"], build.result["end_id"]
        self.tokens, self.bytes = found["tokens"], found["bytes"]
        self._files = found["shards"]
        self._shards = [self._open(shard, np.dtype(found["dtype"])) for shard in self._files]
        self._ends = np.cumsum([len(shard) for shard in self._shards], dtype=np.int64)
        self.sha256 = [shard["sha256"] for shard in found["shards"]]

    def _open(self, shard: dict[str, Any], dtype: np.dtype) -> np.ndarray:
        path = self.folder / shard["file"]
        expected = shard["tokens"] * dtype.itemsize
        size = path.stat().st_size if path.exists() else 0
        if size != expected:
            raise InputError(f"{path} has {size} bytes, not {expected}; prepare the text again")
        return np.memmap(path, dtype=dtype, mode="r")

    @cached_property
    def answers(self) -> np.ndarray:
        """bool [tokens]: whether each token belongs to the answer of an example.

        Raises:
            InputError: the shards are of text, not of examples, or a file is missing or cut off.
        """
        parts = []
        for shard in self._files:
            path = (self.folder / shard["file"]).with_suffix(".answers")
            if not path.exists():
                raise InputError(f"{self.folder} does not tell answers from prompts; loss: answers is for sft sources")
            parts.append(np.fromfile(path, np.uint8).astype(bool))
            if len(parts[-1]) != shard["tokens"]:
                raise InputError(f"{path} has {len(parts[-1])} bytes, not {shard['tokens']}; prepare the examples again")
        return np.concatenate(parts)

    def check_ids(self) -> None:
        """Read every id once.

        Raises:
            InputError: one is outside the vocabulary; the file is named.
        """
        for shard, ids in zip(self._files, self._shards):
            largest = int(ids.max()) if ids.dtype.itemsize > 2 or self.vocab_size < 1 << 16 else 0
            if largest >= self.vocab_size:
                raise InputError(f"{self.folder / shard['file']} holds id {largest}, the vocabulary has {self.vocab_size}; "
                                 "prepare the text again")

    @cached_property
    def bytes_per_id_V(self) -> np.ndarray:
        """uint16 [V]: bytes of text that each id stands for."""
        path = self.folder / TOKEN_BYTES
        try:
            return np.load(path)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{path} cannot be read ({error}); prepare the text again") from None

    def read(self, start: int, length: int) -> np.ndarray:
        """Ids start .. start + length as int64; a range may cross shards."""
        parts, at = [], int(np.searchsorted(self._ends, start, side="right"))
        while length > 0:
            begin = start - (int(self._ends[at - 1]) if at else 0)
            part = self._shards[at][begin : begin + length]
            parts.append(part.astype(np.int64))
            start, length, at = start + len(part), length - len(part), at + 1
        return np.concatenate(parts)

    def count_ids(self) -> np.ndarray:
        """int64 [V]: how often each id occurs."""
        return sum((np.bincount(shard, minlength=self.vocab_size) for shard in self._shards),
                   np.zeros(self.vocab_size, dtype=np.int64))


@dataclass
class Source:
    """One part of the training data: a shard folder, or text or examples that are still to be prepared, and its weight.

    Args:
        shards: A folder made by glyphlm prepare.
        text: A file, a folder, hf:NAME, or a list of these.
        sft: Supervised examples, a list of NAME=PATH, such as arc_easy=ARC-Easy-Train.jsonl.
        weight: Share of all sequences, relative to the other sources; by default each has its size.
        epochs: Instead of weights: how often this source is read, relative to the others.
        loss: Whether all tokens of the source are learned, or only those of answers (sft).
    """

    shards: str | None = None
    text: str | list[str] | None = None
    sft: list[str] | None = None
    weight: float | None = None
    epochs: float | None = None
    loss: Literal["all", "answers"] = "all"

    @property
    def texts(self) -> list[str]:
        """`text` as a list."""
        return [self.text] if isinstance(self.text, str) else list(self.text or [])


class Batch(NamedTuple):
    """`x_BT` ids, `y_BT` the ids that follow them (or IGNORED), both int64 [B, T]."""

    x_BT: Tensor
    y_BT: Tensor


class Batches:
    """An endless stream of batches from weighted sources, determined by the seed alone.

    A text of N tokens is cut into windows of T + 1 tokens that overlap by one, from an offset drawn for each epoch, and
    visited in an order drawn for each epoch. The source furthest behind its weight gives the next sequence. With
    `same_windows` the offset is always 0, so that later epochs read the same windows again.
    The position is one count a source: `state()` and `restore()` are exact, at any point.
    """

    def __init__(
        self,
        texts: Sequence[TokenText],
        weights: Sequence[float],
        block_size: int,
        batch_size: int,
        seed: int,
        answers_only: Sequence[bool] | None = None,
        same_windows: bool = False,
    ):
        self._texts, self._block, self._batch, self._seed = list(texts), block_size, batch_size, seed
        self._same_windows = same_windows
        self._answers_only = answers_only or [False] * len(self._texts)
        self._weights = np.array(weights, dtype=np.float64) / sum(weights)
        self._taken = np.zeros(len(self._texts), dtype=np.int64)
        self._digest = 0
        self._orders: dict[int, tuple[int, int, np.ndarray]] = {}
        for text in self._texts:
            if text.tokens <= 2 * block_size:
                raise InputError(f"{text.folder} has {text.tokens} {text.split} tokens, too few for block_size "
                                 f"{block_size}; give more text or a block_size below {text.tokens // 2}")

    @property
    def bytes_per_id_V(self) -> np.ndarray:
        """uint16 [V]: bytes of text that each id stands for."""
        return self._texts[0].bytes_per_id_V

    @property
    def tokens_per_batch(self) -> int:
        """B * T."""
        return self._batch * self._block

    @property
    def end_id(self) -> int:
        """Id of the token that ends a document."""
        return self._texts[0].end_id

    @property
    def epochs(self) -> list[float]:
        """How often each source was read so far."""
        return [float(taken * self._block / text.tokens) for taken, text in zip(self._taken, self._texts)]

    @property
    def digest(self) -> str:
        """A running checksum of every id handed out so far: equal for runs that saw the same batches."""
        return f"{self._digest:08x}"

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        rows, targets = zip(*(self._next_row() for _ in range(self._batch)))
        ids_BT = np.stack(rows)
        self._digest = zlib.crc32(ids_BT.tobytes(), self._digest)
        return Batch(torch.from_numpy(ids_BT)[:, :-1], torch.from_numpy(np.stack(targets)))

    def state(self) -> dict[str, Any]:
        """The position, as JSON."""
        return {"taken": self._taken.tolist(), "digest": self._digest}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a position that `state` gave."""
        self._taken, self._digest = np.array(state["taken"], dtype=np.int64), state["digest"]

    def _next_row(self) -> tuple[np.ndarray, np.ndarray]:
        behind = self._weights * (self._taken.sum() + 1) - self._taken
        source = int(behind.argmax())
        start = self._window(source, int(self._taken[source]))
        self._taken[source] += 1
        ids = self._texts[source].read(start, self._block + 1)
        if not self._answers_only[source]:
            return ids, ids[1:]
        return ids, np.where(self._texts[source].answers[start + 1 : start + 1 + self._block], ids[1:], IGNORED)

    def _window(self, source: int, number: int) -> int:
        """Where the `number`-th sequence of the source begins."""
        tokens = self._texts[source].tokens
        windows = tokens // self._block - 1  # a whole window is left free, so that borders differ between epochs
        epoch, place = divmod(number, windows)
        if source not in self._orders or self._orders[source][0] != epoch:
            random = np.random.default_rng([self._seed, source, epoch])
            offset = int(random.integers(tokens - windows * self._block))
            self._orders[source] = (epoch, 0 if self._same_windows else offset, random.permutation(windows))
        _, offset, order = self._orders[source]
        return offset + int(order[place]) * self._block


def open_training(sources: Sequence[Source], tokenizer: Tokenizer) -> tuple[list[TokenText], list[float]]:
    """The training texts of `sources` and their weights.

    Raises:
        InputError: some sources have a weight and others none, a weight is not positive, or a folder is bad.
    """
    if not sources:
        raise InputError("the recipe names no training data; give data: [{shards: FOLDER}]")
    texts = [TokenText(source.shards, "train", tokenizer.fingerprint) for source in sources]
    for text in texts:
        text.check_ids()
    for name in ("weight", "epochs"):
        given = [value for source in sources if (value := getattr(source, name)) is not None]
        if given and len(given) < len(sources):
            raise InputError(f"{len(given)} of {len(sources)} data sources have {name}; give all of them some, or none")
        if any(value <= 0 or not math.isfinite(value) for value in given):
            raise InputError(f"{name} of data sources must be positive, but is {given}")
        if given:
            return texts, given if name == "weight" else [n * text.tokens for n, text in zip(given, texts)]
    return texts, [float(text.tokens) for text in texts]


def validation_batches(texts: Sequence[TokenText], block_size: int, batch_size: int, limit: int) -> Iterator[Batch]:
    """Windows over the validation texts in turn; the last of a text may be shorter.

    Where a text has more than `limit` tokens, limit / block_size windows are spread evenly over it: its beginning may be
    another language than its end.
    """
    for text in texts:
        starts = np.arange(0, text.tokens - 1, block_size)
        if text.tokens - 1 > limit:
            starts = starts[np.linspace(0, len(starts) - 1, max(1, limit // block_size)).round().astype(int)]
        windows = (torch.from_numpy(text.read(int(s), min(block_size + 1, text.tokens - int(s)))) for s in starts)
        for _, same in itertools.groupby(windows, key=len):
            for rows in _batched(same, batch_size):
                ids_BT = torch.stack(rows)
                yield Batch(ids_BT[:, :-1], ids_BT[:, 1:])


def _batched(items: Iterator[Tensor], size: int) -> Iterator[list[Tensor]]:
    while rows := list(itertools.islice(items, size)):
        yield rows


def unigram_bits_per_byte(train: Sequence[TokenText], batches: Iterable[Batch]) -> float:
    """Bits per byte of the targets in `batches` under the frequencies of single tokens in `train` (add-one)."""
    counts_V = sum(text.count_ids() for text in train) + 1.0
    bits_V = -np.log2(counts_V / counts_V.sum())
    seen_V = sum(np.bincount(batch.y_BT.flatten().numpy(), minlength=len(bits_V)) for batch in batches)
    return float(bits_V @ seen_V) / float(train[0].bytes_per_id_V @ seen_V)
