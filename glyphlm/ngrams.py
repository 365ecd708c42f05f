"""Characters and words counted over a stream of text, in bounded memory."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import regex

from glyphlm.corpus import Passage

WORD = regex.compile(r"[\p{L}\p{M}]+")  # letters with their marks, of any script; digits stay one token each
LONG_RUN = 16  # longer runs (Chinese sentences) hardly repeat as a whole: they are cut, losing 1 neighbourhood in 16
MAX_WORDS = 2_000_000  # about 300 MB as a dictionary


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
