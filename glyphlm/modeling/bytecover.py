"""Exact next-byte probabilities of a model of tokens. Torch and transformers; travels inside run folders.

A token model gives a text the probability of the ids that its tokenizer makes of it. After n bytes of a text, the covers
of these bytes are the sequences of ids whose bytes begin with them: the last id alone reaches byte n or beyond, and those
before it are what the tokenizer makes of their own bytes (the covering tree of arXiv 2506.14123, section 3; exact, without
pruning). The probability of a byte is that of the covers of n + 1 bytes over that of the covers of n, so the product over
the bytes of a text is the probability that the token model gives it.

A token model also gives probability to sequences that no text is encoded as (`t`, `he` where `the` is a token). That part is
the probability of the id <unk>, so the distribution over all ids sums to 1.

Shapes: as in model.py; O ids of a byte model (specials and bytes), S tokens of a vocabulary in the order of their bytes.
"""

import hashlib
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedTokenizerFast
from transformers.cache_utils import DynamicLayer

from .hf import CACHE

END, UNKNOWN, FIRST_BYTE, OUTCOMES = 2, 3, 4, 260  # ids: <pad>, <s>, </s>, <unk>, then the 256 bytes
POSSIBLE = OUTCOMES - END  # <pad> and <s> are never predicted
FLOOR = 2.0**-40  # probability shared by all possible ids, so that a byte that no token spells has a finite cost
RECENT = 48  # last ids whose text alone is encoded first, to see whether they are canonical
NARROW = 4096  # tokens of a span whose next bytes are not cached
READERS = 8  # caches of keys and values of an expert
PINNED = ("config.json", "tokenizer.json")  # files of an expert that are compared besides its weights


class Pieces:
    """The tokens of a vocabulary in the order of their bytes; those without bytes are left out."""

    def __init__(self, bytes_X: Tensor, lengths_V: Tensor):
        raw, ends = bytes(bytes_X.tolist()), lengths_V.cumsum(0).tolist()
        self.spelled = [raw[start:end] for start, end in zip([0, *ends], ends)]  # of each id
        self.ids = sorted((number for number, text in enumerate(self.spelled) if text), key=self.spelled.__getitem__)
        self.texts = [self.spelled[number] for number in self.ids]
        self._kept: dict[int, Tensor] = {}

    def narrow(self, span: tuple[int, int], prefix: bytes) -> tuple[int, int]:
        """The part of a span of tokens that begin with `prefix`."""
        first = bisect_left(self.texts, prefix, *span)
        above = prefix.rstrip(b"\xff")
        end = bisect_left(self.texts, above[:-1] + bytes([above[-1] + 1]), first, span[1]) if above else span[1]
        return first, end

    def next_byte(self, span: tuple[int, int], depth: int) -> Tensor:
        """The byte after the first `depth` of each token of a span; all of them are longer."""
        first, end = span
        if end - first <= NARROW:
            return torch.tensor([text[depth] for text in self.texts[first:end]], dtype=torch.int64)
        if depth not in self._kept:
            self._kept[depth] = torch.tensor([text[depth] if len(text) > depth else 0 for text in self.texts])
        return self._kept[depth][first:end]


@dataclass(frozen=True, eq=False)
class Node:
    """A canonical sequence of ids, and the tokens that may follow it.

    Args:
        ids: From the beginning of the text.
        place: Number of bytes that they decode to.
        weight: Their probability divided by that of all covers of the text.
        p_S: Probability of each token that has bytes, float64.
        p_end: Probability of the end of the text.
        span: The tokens that begin with the bytes of the text after `place`, and are longer.
    """

    ids: tuple[int, ...]
    place: int
    weight: float
    p_S: Tensor
    p_end: float
    span: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Cover:
    """The covers of a text by an expert.

    Args:
        text: Bytes, with those that its vocabulary puts before every text.
        nodes: Covers that can continue.
        closed: Share of the probability of all covers in which a token ends where the text does.
    """

    text: bytes
    nodes: tuple[Node, ...]
    closed: float


def incomplete(text: bytes) -> int:
    """Number of bytes of an incomplete UTF-8 character at the end of a text."""
    for back, byte in enumerate(reversed(text[-3:]), 1):
        if byte >= 0xC0:
            needed = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return back if 0xC2 <= byte <= 0xF4 and back < needed else 0
        if byte < 0x80:
            return 0
    return 0


class ByteExpert(nn.Module):
    """A model of tokens, and its tokenizer, read as a model of bytes.

    Args:
        docked: `bytes` and `ids`, numbers of bytes of all tokens and of tokens; `start`, the id before a text; `end`, the
            id after it, if any; `block_size`, the longest context; `lead`, what the vocabulary puts before every text.
    """

    bytes_X: Tensor
    lengths_V: Tensor
    sha256: Tensor

    def __init__(self, docked: dict[str, Any]):
        super().__init__()
        self.docked = docked
        self.register_buffer("bytes_X", torch.zeros(docked["bytes"], dtype=torch.uint8))
        self.register_buffer("lengths_V", torch.zeros(docked["ids"], dtype=torch.int32))
        self.register_buffer("sha256", torch.zeros(32, dtype=torch.uint8))
        self._readers: OrderedDict[tuple[int, ...], Any] = OrderedDict()
        self._unregistered: list[Any] = []  # the model: its weights stay in a folder of their own

    def open(self, folder: Path) -> None:
        """Load model and tokenizer.

        Raises:
            ValueError: a file is not the one that was fused.
        """
        digest = expert_sha256(folder)
        if digest != bytes(self.sha256.tolist()):
            raise ValueError(f"{folder} holds {digest.hex()[:12]}, fused was {bytes(self.sha256.tolist()).hex()[:12]}; put "
                             "the files back as they were")
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
        self.attach(model.eval(), PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json")).backend_tokenizer)

    def attach(self, model: Any, backend: Any) -> None:
        """Take a model, and the tokenizer of the library tokenizers that belongs to it."""
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True  # their names in a text are text
        self._unregistered, self._backend = [model.requires_grad_(False)], backend
        self._pieces = Pieces(self.bytes_X, self.lengths_V)
        self._order_S = torch.tensor(self._pieces.ids)

    @property
    def model(self) -> Any:
        """The model of tokens."""
        return self._unregistered[0]

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        for model in self._unregistered:
            model._apply(fn)
        self._readers.clear()
        return super()._apply(fn, recurse)

    def begin(self) -> Cover:
        """The cover of an empty text."""
        lead = self.docked["lead"].encode()
        cover = Cover(b"", (self._node((), 0, 1.0),), 1.0)
        for byte in lead:
            cover = self.step(cover, byte)
        return cover

    def step(self, cover: Cover, byte: int) -> Cover:
        """The covers of the text and one byte more."""
        text, total, nodes = cover.text + bytes([byte]), 0.0, []
        ended: list[tuple[tuple[int, ...], float]] = []
        for node in cover.nodes:
            part = text[node.place :]
            first, end = self._pieces.narrow(node.span, part)
            total += node.weight * float(node.p_S[first:end].sum())
            while first < end and len(self._pieces.texts[first]) == len(part):
                ended.append(((*node.ids, self._pieces.ids[first]), node.weight * float(node.p_S[first])))
                first += 1
            if first < end:
                nodes.append(replace(node, span=(first, end)))
        if total <= 0:
            return self._restart(text)
        ended = [(ids, weight / total) for ids, weight in ended if weight / total > 0 and self._is_canonical(ids, text)]
        nodes = [replace(node, weight=node.weight / total) for node in nodes]
        nodes += [self._node(ids, len(text), weight) for ids, weight in ended]
        return Cover(text, tuple(nodes), sum(weight for _, weight in ended))

    def log_probs(self, cover: Cover) -> Tensor:
        """Log-probabilities of the next id, float64 [POSSIBLE]: the end of the text, <unk>, and each byte."""
        p_O, size = torch.zeros(POSSIBLE, dtype=torch.float64), len(cover.text)
        for node in cover.nodes:
            bytes_s, p_s = self._pieces.next_byte(node.span, size - node.place), node.p_S[slice(*node.span)]
            p_O[FIRST_BYTE - END :] += node.weight * torch.bincount(bytes_s, weights=p_s, minlength=256)
            if node.place == size and not incomplete(cover.text):
                p_O[0] += node.weight * node.p_end
        p_O[UNKNOWN - END] = (1 - p_O.sum()).clamp(min=0)
        return ((1 - FLOOR) * p_O / p_O.sum() + FLOOR / POSSIBLE).log()

    def _restart(self, text: bytes) -> Cover:
        """The cover of a text that is impossible under the expert's vocabulary: the ids that its tokenizer makes of it."""
        place = len(text) - incomplete(text)
        ids = self._encode(text[len(self.docked["lead"].encode()) : place].decode(errors="replace"))
        node = self._node(ids, place, 1.0)
        first, end = self._pieces.narrow(node.span, text[place:])
        total = float(node.p_S[first:end].sum())
        while place < len(text) and first < end and len(self._pieces.texts[first]) == len(text) - place:
            first += 1
        if place == len(text):
            return Cover(text, (node,), 1.0)
        return Cover(text, (replace(node, span=(first, end), weight=1 / total),) if total > 0 else (), 0.0)

    def _is_canonical(self, ids: tuple[int, ...], text: bytes) -> bool:
        """Whether the tokenizer encodes the text as `ids`, given that it does so for all but the last id."""
        if incomplete(text):
            return True  # it depends on the rest of the character
        recent = ids[-RECENT:]
        if len(recent) < len(ids):
            # A tokenizer that cuts at places that follow from the left alone makes the same of a part.
            part = _decoded(b"".join(self._pieces.spelled[number] for number in recent))
            if part is not None and self._encode(part) == recent:
                return True
        whole = _decoded(text[len(self.docked["lead"].encode()) :])
        return whole is not None and self._encode(whole) == ids

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._backend.encode(text, add_special_tokens=False).ids)

    def _node(self, ids: tuple[int, ...], place: int, weight: float) -> Node:
        p_V, end = self._next(ids), self.docked["end"]
        p_end = 0.0 if end is None else float(p_V[end])
        return Node(ids, place, weight, p_V[self._order_S], p_end, (0, len(self._order_S)))

    def _next(self, ids: tuple[int, ...]) -> Tensor:
        """Probabilities of the next id, float64 [V].

        Longer contexts are cut as in scoring, where windows slide by half a context.
        """
        block = self.docked["block_size"]
        slid = max(0, -(-(len(ids) + 1 - block) // (block - block // 2)))
        seen = (self.docked["start"], *ids)[slid * (block - block // 2) :]
        logits_V = self._read(seen)
        return logits_V.double().softmax(-1).cpu()

    @torch.no_grad()
    def _read(self, ids: tuple[int, ...]) -> Tensor:
        """logits_V after `ids`, from the cached keys and values of the text with the longest common beginning."""
        held = max(self._readers, key=lambda known: _common(known, ids), default=())
        shared = min(_common(held, ids), len(ids) - 1)
        cache = self._readers.pop(held, None) if shared else None
        if cache is not None:
            cache.crop(shared - len(held))
        elif len(self._readers) >= READERS:
            self._readers.popitem(last=False)
        new_1T = torch.tensor([ids[shared if cache is not None else 0 :]], device=self.model.device)
        out = self.model(new_1T, use_cache=True, **({CACHE: cache} if cache is not None else {}))
        kept = out.get(CACHE)
        if type(kept) is DynamicCache and all(type(layer) is DynamicLayer for layer in kept.layers):
            self._readers[ids] = kept  # others, such as sliding windows, cannot be cut at the end
        return out.logits[0, -1]


def _decoded(raw: bytes) -> str | None:
    """The text, or None if the bytes are not UTF-8, such as of a part that begins inside a character."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common beginning."""
    if one[: len(other)] == other[: len(one)]:
        return min(len(one), len(other))
    low, high = 0, min(len(one), len(other))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle)
    return low


def expert_sha256(folder: Path) -> bytes:
    """Digest of the files that determine an expert: weights, config.json and tokenizer.json."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.name in PINNED or path.suffix == ".safetensors":
            with path.open("rb") as file:
                digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.digest()
