"""Bulk encoding: a text is cut where no merge can cross, and each distinct piece is encoded once.

The cut between two characters that stand side by side in no token is exact: no merge can ever join them. Only BPE
tokenizers without normalizer and pre-tokenizer, as ours are, can be cut so. Shapes: C characters, P pieces, M pieces of
more than one character, I ids.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import tokenizers

from glyphlm.base.errors import InputError
from glyphlm.corpus.reading import Passage

PAIR_BITS = 20  # 1 MiB of flags stays in the cache; pairs that share a flag only leave a cut out, which is exact too
MAX_KNOWN = 1 << 20  # distinct pieces remembered, about 130 MB; then all are forgotten
LEARNED_AT_ONCE = 512  # pieces of one call, about 4,000 characters: longer texts slow the backend down
UNKNOWN = np.uint32(0xFFFFFFFF)
PLAIN_BPE = {"type": "BPE", "dropout": None, "fuse_unk": False, "ignore_merges": False,
             "continuing_subword_prefix": None, "end_of_word_suffix": None}
PIECE_CHARS = 1 << 14  # a long document comes in pieces of about this size
BATCH_CHARS = 1 << 17  # encoded in one call
MAX_UNCUT = 1 << 18  # characters without a safe cut (a genome): cut all the same, which loses at most one merge
MAX_HELD = 1 << 24  # characters of a document in a foreign vocabulary: 3 GB in the backend


class PieceEncoder:
    """Ids of texts as the backend gives them at once, but several times faster on natural text.

    Args:
        backend: BPE without normalizer and pre-tokenizer.
        tokens: What each id spells, in order of ids; "" for ids that no text reaches. No token but "\\n" itself holds it.
    """

    def __init__(self, backend: tokenizers.Tokenizer, tokens: Sequence[str]):
        self._backend, self._known = backend, _Known(0)
        self._newline = backend.encode("\n", add_special_tokens=False).ids[0]
        pairs = sorted({token[i : i + 2] for token in tokens for i in range(len(token) - 1)})
        codes = _code_points("".join(pairs))
        self._joined = np.zeros(1 << PAIR_BITS, bool)
        self._joined[_flag_places(codes[::2], codes[1::2])] = True
        self._single_ids = np.full(0x110000, UNKNOWN, np.uint32)
        for number, token in enumerate(tokens):
            if len(token) == 1:
                self._single_ids[ord(token)] = number

    def cuts(self, text: str) -> np.ndarray:
        """Places between two characters where `text` may be cut, in order."""
        return np.flatnonzero(self._is_cut(_code_points(text))) + 1

    def edges(self, text: str) -> list[int]:
        """Inner places, about PIECE_CHARS apart, where no merge crosses."""
        if len(text) <= PIECE_CHARS:
            return []
        cuts = self.cuts(text)
        wanted = np.arange(PIECE_CHARS, len(text), PIECE_CHARS)
        places = np.searchsorted(cuts, wanted, side="right") - 1
        return np.unique(cuts[places[places >= 0]]).tolist()

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """uint32 ids of each of `texts`, which hold no lone surrogate. Many short texts cost little more than one long."""
        if not texts:
            return []
        whole = "".join(f"{text}\n" for text in texts)
        codes_C = _code_points(whole)
        newlines = np.cumsum([len(text) + 1 for text in texts]) - 1
        begins_C = np.concatenate([[True], self._is_cut(codes_C)])
        begins_C[newlines] = begins_C[newlines[:-1] + 1] = True
        starts_P = np.flatnonzero(begins_C)
        ids_I, counts_P = self._encode_pieces(whole, codes_C, starts_P)
        ends = np.cumsum(counts_P)[np.searchsorted(starts_P, newlines)].tolist()  # behind the newline that follows each
        return [ids_I[start : end - 1] for start, end in zip([0, *ends], ends)]

    def _encode_pieces(self, text: str, codes_C: np.ndarray, starts_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all pieces in order, and how many each has."""
        lengths_P = np.diff(starts_P, append=len(codes_C))
        ids_P, counts_P = self._single_ids[codes_C[starts_P]], np.ones(len(starts_P), np.int64)
        ids_P[lengths_P > 1] = UNKNOWN
        places_M = np.flatnonzero(ids_P == UNKNOWN)
        starts_M = starts_P[places_M]
        spans = zip(starts_M.tolist(), (starts_M + lengths_P[places_M]).tolist())
        found_I, counts_P[places_M] = self._look_up([text[start:end] for start, end in spans], len(text))
        ids_I = np.repeat(ids_P, counts_P)
        ids_I[ids_I == UNKNOWN] = found_I
        return ids_I, counts_P

    def _is_cut(self, codes_C: np.ndarray) -> np.ndarray:
        """bool [C - 1]: whether each character and the next stand side by side in no token."""
        return ~self._joined[_flag_places(codes_C[:-1], codes_C[1:])]

    def _look_up(self, pieces: list[str], characters: int) -> tuple[np.ndarray, np.ndarray]:
        """The ids of `pieces` of a text of so many characters, one piece after another, and how many each has."""
        if not self._known.has_room_for(characters):
            self._known = _Known(characters)
        before = len(self._known.numbers)
        numbers_M = np.fromiter(map(self._known.numbers.__getitem__, pieces), np.int64, len(pieces))
        fresh = [*islice(reversed(self._known.numbers), len(self._known.numbers) - before)]
        self._learn(fresh[::-1])
        return self._known.take(numbers_M)

    def _learn(self, pieces: list[str]) -> None:
        """Encode pieces, many in one call, with newlines between them: those are pieces of their own."""
        groups = _groups(pieces)
        encodings = self._backend.encode_batch_fast(["\n".join(group) for group in groups], add_special_tokens=False)
        for group, encoding in zip(groups, encodings):
            ids_I = np.array(encoding.ids, np.uint32)
            is_border = (ids_I == self._newline) & (len(group) > 1)
            ends = np.append(np.flatnonzero(is_border), len(ids_I)) - np.arange(len(group))
            self._known.add(ids_I[~is_border], ends)


class _Numbers(dict[str, int]):
    """Numbers keys in the order of their first lookup."""

    def __missing__(self, piece: str) -> int:
        self[piece] = number = len(self)
        return number


class _Known:
    """The ids of K pieces, by number: in one array, one piece after another, which numpy takes from at once."""

    def __init__(self, characters: int):
        room = MAX_KNOWN + characters
        self.numbers, self._learned = _Numbers(), 0
        self._ids_I, self._ends_K = np.empty(4 * room, np.uint32), np.zeros(room + 1, np.int64)  # [-1] stays 0

    def has_room_for(self, characters: int) -> bool:
        """Whether a text of so many characters, each a piece of up to 4 ids, still fits."""
        return self._learned + characters < len(self._ends_K) - 1 and self._used + 4 * characters <= len(self._ids_I)

    @property
    def _used(self) -> int:
        return int(self._ends_K[self._learned - 1])

    def add(self, ids_I: np.ndarray, ends: np.ndarray) -> None:
        """The ids of the pieces numbered next, and where in them each piece ends."""
        used, number = self._used, self._learned
        self._ids_I[used : used + len(ids_I)] = ids_I
        self._ends_K[number : number + len(ends)] = used + ends
        self._learned += len(ends)

    def take(self, numbers_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The ids of pieces, one piece after another, and how many each has."""
        ends_M = self._ends_K[numbers_M]
        counts_M = ends_M - self._ends_K[numbers_M - 1]
        places_I = np.repeat(ends_M - np.cumsum(counts_M), counts_M) + np.arange(counts_M.sum())
        return self._ids_I[places_I], counts_M


def _groups(pieces: list[str]) -> list[list[str]]:
    """Pieces for one call each; one that holds a newline is alone."""
    groups: list[list[str]] = []
    for piece in pieces:
        alone = "\n" in piece
        if not groups or alone or len(groups[-1]) == LEARNED_AT_ONCE or "\n" in groups[-1][0]:
            groups.append([])
        groups[-1].append(piece)
    return groups


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def _flag_places(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Where the flag of each pair of code points stands: a multiplicative hash."""
    return (left * np.uint32(0x9E3779B1) + right * np.uint32(0x85EBCA77)) >> np.uint32(32 - PAIR_BITS)


# Streams of documents


def can_be_cut(backend: tokenizers.Tokenizer, spelled: Sequence[str]) -> bool:
    """Whether ids depend on nothing but merges, as in our layouts, and newlines stay alone."""
    alone = all("\n" not in token or token == "\n" for token in spelled)
    return alone and is_plain_bpe(json.loads(backend.to_str()))


def is_plain_bpe(parts: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json of these parts gives ids that follow from the merges of characters alone."""
    is_plain = all(parts["model"].get(key) == value for key, value in PLAIN_BPE.items())
    return is_plain and not parts["normalizer"] and not parts["pre_tokenizer"]


def segments(stream: Iterable[Passage], encoder: PieceEncoder | None) -> Iterator[Passage]:
    """The documents cut anew, into parts whose ids do not depend on each other; whole without an encoder.

    Raises:
        InputError: a document is too long to be encoded whole.
    """
    waiting = ""
    for text, last in stream:
        waiting += text
        edges = [0, *(encoder.edges(waiting) if encoder else ())]
        if last or (encoder and len(waiting) - edges[-1] > MAX_UNCUT):
            edges.append(len(waiting))
        for start, end in zip(edges, edges[1:]):
            yield Passage(waiting[start:end], last and end == len(waiting))
        waiting = waiting[edges[-1] :]
        if len(waiting) > MAX_HELD:
            raise InputError(f"a document is longer than {MAX_HELD:,} characters, which a foreign vocabulary cannot "
                             "encode in parts; give shorter documents")


def batched(passages: Iterable[Passage]) -> Iterator[list[Passage]]:
    """Lists of passages of about BATCH_CHARS together."""
    batch, size = [], 0
    for passage in passages:
        batch.append(passage)
        size += len(passage.text) + 1  # empty documents count, too
        if size >= BATCH_CHARS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
