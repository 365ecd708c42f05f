"""Characters, words and n-grams counted over a stream of text, in bounded memory.

Arrays: C characters, P places where an n-gram begins, G distinct n-grams, K 64-bit words that hold one n-gram.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import regex

from glyphlm.corpus.reading import Passage

WORD = regex.compile(r"[\p{L}\p{M}]+")  # letters with their marks, of any script; digits stay one token each
LONG_RUN = 16  # longer runs (Chinese sentences) hardly repeat as a whole: they are cut, losing 1 neighbourhood in 16
MAX_WORDS = 2_000_000  # about 300 MB as a dictionary

# The rule `all`: letters with their marks, joined by apostrophes, Hebrew geresh and the joiners of Persian and Indic.
ANY_WORD = regex.compile(r"\p{L}[\p{L}\p{M}]*+(?:['\u2019\u05f3\u05f4\u200c\u200d]\p{L}[\p{L}\p{M}]*+)*+")
# The rule `published`, as far as its statistics show: CJK means Han, kana or hangul; other words are Latin (Basic,
# Latin-1, Extended-A) or Cyrillic between word borders, so that "Việt" has none and "dogs'" ends in s.
PUBLISHED_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]")
PUBLISHED_WORD = re.compile(r"\b[A-Za-zÀ-ÖØ-öø-ÿĀ-ſЀ-ӿ']+\b")
PUBLISHED_DIGITS = dict.fromkeys(range(ord("0"), ord("9") + 1))  # others were kept: Bengali has years in its lists

POINT_BITS, POINTS = 21, 3  # of a code point; code points in 64 bits
CHECKED_CHARS = 1 << 19  # text after which the memory of pending words is looked at
PENDING_CHARS = 1 << 21  # distinct words of so many characters are cut into n-grams: English has them after 50 MB
MAX_NGRAMS = 2_000_000  # of each n: 48 MB; a process that counts 36 MB of Chinese takes 640 MB, half of it temporarily


@dataclass
class TextCounts:
    """What a text holds: characters and words (runs of letters, cut at LONG_RUN) with how often they occur."""

    characters: Counter[str] = field(default_factory=Counter)
    words: Counter[str] = field(default_factory=Counter)

    def add(self, text: str) -> None:
        """Count one passage. A word cut by the passage's border counts as two: one in 40,000 words."""
        self.characters.update(text)
        for run in WORD.findall(text):
            if len(run) <= LONG_RUN:
                self.words[run] += 1
            else:
                self.words.update(run[start : start + LONG_RUN] for start in range(0, len(run), LONG_RUN))
        if len(self.words) > MAX_WORDS:  # the rare half goes: what a vocabulary takes is frequent
            self.words = Counter(dict(by_frequency(self.words)[: MAX_WORDS // 2]))


def by_frequency(counts: Counter[str]) -> list[tuple[str, int]]:
    """Most frequent first, ties by code point: the order depends on the text alone."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def count_text(stream: Iterable[Passage]) -> TextCounts:
    """Characters and words of the whole stream."""
    counts = TextCounts()
    for passage in stream:
        counts.add(passage.text)
    return counts


def any_words(text: str) -> list[str]:
    """Words of every script; where words are not spaced (Chinese, Thai), all letters up to the next other character."""
    return ANY_WORD.findall(text)


def published_words(text: str) -> list[str]:
    """The published rule (arXiv 2507.04886): without digits; a text with CJK characters is one word without spaces,
    punctuation and all, other text gives its Latin and Cyrillic words."""
    text = text.translate(PUBLISHED_DIGITS)
    return ["".join(text.split())] if PUBLISHED_CJK.search(text) else PUBLISHED_WORD.findall(text)


RULES: dict[str, Callable[[str], list[str]]] = {"all": any_words, "published": published_words}


@dataclass(frozen=True)
class NgramTable:
    """The n-grams of one size in code point order. A true count is at most `lost` higher than the one given.

    Args:
        keys_KG: An n-gram is a column: three code points in each of its K = n / 3, rounded up, words of 64 bits.
        counts_G: How often each occurs.
        lost: The largest count of an n-gram that was dropped to bound memory, summed over all such prunings.
    """

    keys_KG: list[np.ndarray]
    counts_G: np.ndarray
    lost: int = 0

    @classmethod
    def of_sorted(cls, keys_KP: list[np.ndarray], counts_P: np.ndarray, lost: int = 0) -> "NgramTable":
        """Equal n-grams, which stand next to each other, become one, their counts added."""
        new_P = np.arange(len(counts_P)) == 0
        for key_P in keys_KP:
            new_P[1:] |= key_P[1:] != key_P[:-1]
        first_G = np.flatnonzero(new_P)
        counts_G = np.add.reduceat(counts_P, first_G) if len(first_G) else counts_P
        return cls([key_P[first_G] for key_P in keys_KP], counts_G, lost)

    def merge(self, other: "NgramTable") -> "NgramTable":
        """The sum of both tables; of more than MAX_NGRAMS n-grams the rare half is dropped."""
        keys_KP = [np.concatenate(pair) for pair in zip(self.keys_KG, other.keys_KG)]
        counts_P = np.concatenate([self.counts_G, other.counts_G])
        order_P = np.lexsort(keys_KP[::-1])
        merged = NgramTable.of_sorted([key_P[order_P] for key_P in keys_KP], counts_P[order_P], self.lost + other.lost)
        return merged if len(merged.counts_G) <= MAX_NGRAMS else merged._frequent_half()

    def _frequent_half(self) -> "NgramTable":
        rare = int(np.sort(self.counts_G)[len(self.counts_G) // 2])
        kept_G = self.counts_G > rare
        return NgramTable([key_G[kept_G] for key_G in self.keys_KG], self.counts_G[kept_G], self.lost + rare)

    def top(self, n: int, size: int) -> list[tuple[str, int]]:
        """The `size` most frequent n-grams with their counts; ties in code point order."""
        order = np.argsort(-self.counts_G, kind="stable")[:size]
        keys = zip(*(key_G[order].tolist() for key_G in self.keys_KG))
        return [(_unpack(key, n), count) for key, count in zip(keys, self.counts_G[order].tolist())]


class NgramCounts:
    """Counts the n-grams inside words: first the words, then the n-grams of the distinct words, weighted by their counts.

    Exact until a table outgrows MAX_NGRAMS; `NgramTable.lost` bounds the error from then on. A word cut by a
    passage's border counts as two.
    """

    def __init__(self, rule: str, sizes: Iterable[int]):
        self._rule, self._unchecked = RULES[rule], 0
        self._words: Counter[str] = Counter()
        self._tables = {n: empty_table(n) for n in sizes}

    def add(self, text: str) -> None:
        """Count one passage."""
        self._words.update(self._rule(text))
        self._unchecked += len(text)
        if self._unchecked > CHECKED_CHARS:
            self._unchecked = 0
            if sum(map(len, self._words)) > PENDING_CHARS:
                self._cut_words()

    def tables(self) -> dict[int, NgramTable]:
        """n -> its table, of all text so far."""
        self._cut_words()
        return self._tables

    def _cut_words(self) -> None:
        """The n-grams of all distinct words so far, each as often as its word occurs, go into the tables."""
        if self._words:
            for n, table in _cut(self._words, self._tables):
                self._tables[n] = self._tables[n].merge(table)
            self._words.clear()


def empty_table(n: int) -> NgramTable:
    """A table without n-grams."""
    return NgramTable([np.empty(0, np.uint64)] * -(-n // POINTS), np.empty(0, np.int64))


def _cut(words: Counter[str], sizes: Collection[int]) -> Iterator[tuple[int, NgramTable]]:
    """The n-grams of each size. One sort serves all: in the order of the longest, the shorter are in order, too."""
    lengths, longest = np.fromiter(map(len, words), np.int64, len(words)) + 1, max(sizes)
    points_C = np.frombuffer("\n".join([*words, "\n" * longest]).encode("utf-32-le"), "<u4")
    left_C = np.repeat(np.cumsum(lengths) - 1, lengths) - np.arange(lengths.sum())  # characters up to the word's end
    places_P = np.flatnonzero(left_C >= min(sizes))
    keys_KP = [_pack(points_C, places_P + first, min(POINTS, longest - first)) for first in range(0, longest, POINTS)]
    order_P = np.lexsort(keys_KP[::-1])
    keys_KP, places_P = [key_P[order_P] for key_P in keys_KP], places_P[order_P]
    counts_P = np.repeat(np.fromiter(words.values(), np.int64, len(words)), lengths)[places_P]
    for n in sizes:
        inside_P = left_C[places_P] >= n
        yield n, NgramTable.of_sorted([key_P[inside_P] for key_P in _starts(keys_KP, longest, n)], counts_P[inside_P])


def _pack(points_C: np.ndarray, places_P: np.ndarray, size: int) -> np.ndarray:
    """The `size` code points from each place on, as numbers (P)."""
    key_P = np.zeros(len(places_P), np.uint64)
    for i in range(size):
        key_P = key_P << np.uint64(POINT_BITS) | points_C[places_P + i]
    return key_P


def _starts(keys_KP: list[np.ndarray], longest: int, n: int) -> list[np.ndarray]:
    """The keys of the first n code points of each n-gram of size `longest`."""
    sizes = zip(keys_KP, _sizes(longest), _sizes(n))
    return [key_P >> np.uint64(POINT_BITS * (size - kept)) for key_P, size, kept in sizes]


def _sizes(n: int) -> list[int]:
    """How many code points each word of the key of an n-gram holds."""
    return [min(POINTS, n - first) for first in range(0, n, POINTS)]


def _unpack(key_K: tuple[int, ...], n: int) -> str:
    points = (key >> POINT_BITS * i for key, size in zip(key_K, _sizes(n)) for i in reversed(range(size)))
    return "".join(chr(point & ((1 << POINT_BITS) - 1)) for point in points)
