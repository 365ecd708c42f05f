"""Token shards -> seeded batches (x_BT, y_BT), at a position that can be saved."""

import hashlib
import itertools
import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from glyphlm.base.errors import InputError
from glyphlm.base.names import BUILD
from glyphlm.base.outputs import read_build
from glyphlm.base.progress import meter
from glyphlm.data.shards import TOKEN_BYTES
from glyphlm.data.source import Source
from glyphlm.tokenizer.tokenizer import Tokenizer

IGNORED = -100  # target value excluded from the loss
CHUNK = 1 << 24  # number of ids checked at a time


class _Shard(NamedTuple):
    """The record in build.json of one file of ids."""

    path: Path
    tokens: int
    sha256: str


class TokenText:
    """The ids of one split of a shard folder as one long sequence, read from disk as needed.

    Raises:
        InputError: the folder is not a shard folder, was made with another tokenizer, or a file is missing or truncated.
    """

    def __init__(self, folder: str | Path, split: str, tokenizer_fingerprint: str | None = None):
        self.folder, self.split = Path(folder), split
        build = read_build(self.folder)
        if build.made != "shards":
            raise InputError(f"{folder} holds a {build.made}, not token shards; make them with glyphlm prepare")
        made_with = str(build.inputs.get("tokenizer"))
        if tokenizer_fingerprint not in (None, made_with):
            raise InputError(f"{folder} was tokenized with {made_with[:12]}, the model's tokenizer is "
                             f"{tokenizer_fingerprint[:12]}; prepare the text again with that tokenizer")
        try:
            self._read_record(build.result)
        except (KeyError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise InputError(f"{self.folder / BUILD} is damaged ({reason}); prepare the text again") from None
        self._ids = [self._open(shard) for shard in self._shards]
        self._ends = np.cumsum([shard.tokens for shard in self._shards], dtype=np.int64)
        self.sha256 = [shard.sha256 for shard in self._shards]

    def _read_record(self, result: dict[str, Any]) -> None:
        found = result["splits"][self.split]
        self._dtype = np.dtype({"<u2": "<u2", "<u4": "<u4"}[found["dtype"]])
        self.vocab_size, self.end_id = _count(result["vocab_size"]), _count(result["end_id"])
        self.tokens, self.bytes = _count(found["tokens"]), _count(found["bytes"])
        self._shards = [_Shard(self.folder / str(shard["file"]), _count(shard["tokens"]), str(shard["sha256"]))
                        for shard in found["shards"]]
        if sum(shard.tokens for shard in self._shards) != self.tokens or self.end_id >= self.vocab_size:
            raise ValueError(f"{self.tokens} tokens are not those of its files, or </s> {self.end_id} is not an id")

    def _open(self, shard: _Shard) -> np.ndarray:
        expected = shard.tokens * self._dtype.itemsize
        size = shard.path.stat().st_size if shard.path.is_file() else 0
        if size != expected:
            raise InputError(f"{shard.path} has {size} bytes, not {expected}; prepare the text again")
        return np.memmap(shard.path, dtype=self._dtype, mode="r")

    @cached_property
    def answers(self) -> np.ndarray:
        """bool [tokens]: whether each token belongs to the answer of an example.

        Raises:
            InputError: the shards are of text, not of examples, or a file is missing or truncated.
        """
        parts = []
        for shard in self._shards:
            path = shard.path.with_suffix(".answers")
            if not path.is_file():
                raise InputError(f"{self.folder} has no marks of answers; loss: answers is for sft sources")
            if path.stat().st_size != shard.tokens:
                raise InputError(f"{path} has {path.stat().st_size} bytes, not {shard.tokens}; prepare the examples again")
            parts.append(np.fromfile(path, np.uint8).astype(bool))
        return np.concatenate(parts)

    def check(self) -> None:
        """Read all files and compare them with their record.

        Raises:
            InputError: an id is outside the vocabulary, or a checksum differs; the file is named.
        """
        with meter(f"checking {self.split} shards", self.tokens) as bar:
            for shard, ids in zip(self._shards, self._ids):
                digest, largest = hashlib.sha256(), 0
                for start in range(0, len(ids), CHUNK):
                    part = np.ascontiguousarray(ids[start : start + CHUNK])
                    largest = max(largest, int(part.max()))
                    digest.update(part.data)
                    bar.advance(len(part))
                if largest >= self.vocab_size:
                    raise InputError(f"{shard.path} holds id {largest}, the vocabulary has {self.vocab_size}; "
                                     "prepare the text again")
                if digest.hexdigest() != shard.sha256:
                    raise InputError(f"{shard.path} has the sha256 {digest.hexdigest()[:12]}, not the recorded "
                                     f"{shard.sha256[:12]}; prepare the text again")

    @cached_property
    def bytes_per_id_V(self) -> np.ndarray:
        """uint16 [V]: bytes of text that each id decodes to.

        Raises:
            InputError: the file is missing, damaged or of another vocabulary.
        """
        path = self.folder / TOKEN_BYTES
        try:
            found = np.load(path, mmap_mode="r")  # a file that is shorter than its header says takes no memory
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{path} cannot be read ({error}); prepare the text again") from None
        if found.shape != (self.vocab_size,) or found.dtype != np.uint16:
            raise InputError(f"{path} cannot be read (it holds {found.dtype} {found.shape}, not uint16 "
                             f"({self.vocab_size},)); prepare the text again")
        return np.array(found)

    def read(self, start: int, length: int) -> np.ndarray:
        """Ids start .. start + length as int64, across shards."""
        parts, at = [], int(np.searchsorted(self._ends, start, side="right"))
        while length > 0:
            begin = start - (int(self._ends[at - 1]) if at else 0)
            part = self._ids[at][begin : begin + length]
            parts.append(part.astype(np.int64))
            start, length, at = start + len(part), length - len(part), at + 1
        return np.concatenate(parts)

    def count_ids(self) -> np.ndarray:
        """int64 [V]: number of occurrences of each id."""
        return sum((np.bincount(ids, minlength=self.vocab_size) for ids in self._ids),
                   np.zeros(self.vocab_size, dtype=np.int64))


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is not a count")
    return value


class Batch(NamedTuple):
    """`x_BT` ids, `y_BT` the ids that follow them (or IGNORED), both int64 [B, T]."""

    x_BT: Tensor
    y_BT: Tensor


class BatchSource(Protocol):
    """The interface of training data: an endless stream of batches, at a position that can be saved."""

    @property
    def tokens_per_batch(self) -> int:
        """B * T."""
        ...

    @property
    def end_id(self) -> int:
        """Id of the token that ends a document."""
        ...

    @property
    def bytes_per_id_V(self) -> np.ndarray:
        """uint16 [V]: bytes of text that each id decodes to."""
        ...

    def __next__(self) -> Batch: ...

    def state(self) -> dict[str, Any]:
        """The position, as JSON."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a position that `state` gave."""
        ...


class Batches:
    """An endless stream of batches from weighted sources, determined by the seed alone.

    A text is cut into windows of T + 1 tokens that overlap by one, from an offset drawn for each epoch, and visited in an
    order drawn for each epoch. The next sequence comes from the source that is furthest behind its weight. With
    `same_windows` the offset is always 0, so that all epochs read the same windows.
    The position is one count per source, so `state()` and `restore()` are exact at any point.

    Raises:
        InputError: a text is too short for `block_size`, or a value is out of range.
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
        for name, value, least in (("block_size", block_size, 1), ("batch_size", batch_size, 1), ("seed", seed, 0)):
            if value < least:
                raise InputError(f"{name} {value} is less than {least}; give at least {least}")
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
        """uint16 [V]: bytes of text that each id decodes to."""
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
        """Epochs of each source completed so far."""
        return [float(taken * self._block / text.tokens) for taken, text in zip(self._taken, self._texts)]

    @property
    def digest(self) -> str:
        """A running checksum of every id returned so far: equal for runs that saw the same batches."""
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
        """Continue from a position that `state` gave.

        Raises:
            InputError: it is not a position in these sources.
        """
        taken, digest = state.get("taken"), state.get("digest")
        given = taken if isinstance(taken, list) else []
        counts = [count for count in given if isinstance(count, int) and 0 <= count < 1 << 62]
        if counts != taken or len(counts) != len(self._texts) or not isinstance(digest, int):
            raise InputError(f"the saved position {state} does not belong to {len(self._texts)} sources; start from an "
                             "earlier checkpoint or anew")
        self._taken, self._digest = np.array(counts, dtype=np.int64), digest

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
        """The start of the `number`-th sequence of the source."""
        tokens = self._texts[source].tokens
        windows = tokens // self._block - 1  # one window fewer than fit, so that borders can differ between epochs
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
        InputError: only some sources have a weight, or a folder is damaged or of another tokenizer.
    """
    if not sources:
        raise InputError("the recipe names no training data; give data: [{shards: FOLDER}]")
    texts = [TokenText(source.shards or "", "train", tokenizer.fingerprint) for source in sources]
    for text in texts:
        text.check()
    for name in ("weight", "epochs"):
        given = [value for source in sources if (value := getattr(source, name)) is not None]
        if given and len(given) < len(sources):
            raise InputError(f"{len(given)} of {len(sources)} data sources have {name}; give it to all of them, or to none")
        if given:
            return texts, given if name == "weight" else [n * text.tokens for n, text in zip(given, texts)]
    return texts, [float(text.tokens) for text in texts]


def open_validation(folders: Iterable[str], tokenizer: Tokenizer) -> list[TokenText]:
    """The validation texts of shard folders; folders without a validation split are skipped.

    Raises:
        InputError: a folder is damaged or of another tokenizer.
    """
    texts = [TokenText(folder, "validation", tokenizer.fingerprint) for folder in folders]
    for text in texts:
        text.check()
    return [text for text in texts if text.tokens > 1]


def validation_batches(texts: Sequence[TokenText], block_size: int, batch_size: int, limit: int) -> Iterator[Batch]:
    """Windows over the validation texts in turn; the last window of a text may be shorter.

    Of a text of more than `limit` tokens, limit / block_size windows are spread evenly over it, as its beginning and end
    may be in different languages.
    """
    for text in texts:
        starts = np.arange(0, text.tokens - 1, block_size)
        if text.tokens - 1 > limit:
            starts = starts[np.linspace(0, len(starts) - 1, max(1, limit // block_size)).round().astype(int)]
        windows = (torch.from_numpy(text.read(int(s), min(block_size + 1, text.tokens - int(s)))) for s in starts)
        for _, same in itertools.groupby(windows, key=len):
            while rows := list(itertools.islice(same, batch_size)):
                ids_BT = torch.stack(rows)
                yield Batch(ids_BT[:, :-1], ids_BT[:, 1:])


def unigram_bits_per_byte(train: Sequence[TokenText], batches: Iterable[Batch]) -> float:
    """Bits per byte of the targets in `batches` under the frequencies of single tokens in `train` (add-one)."""
    counts_V = np.sum([text.count_ids() for text in train], axis=0) + 1.0
    bits_V = -np.log2(counts_V / counts_V.sum())
    seen_V = np.zeros(len(bits_V), dtype=np.int64)
    for batch in batches:
        seen_V += np.bincount(batch.y_BT.flatten().numpy(), minlength=len(bits_V))
    return float(bits_V @ seen_V) / float(train[0].bytes_per_id_V @ seen_V)
