"""Exclusion of characters from training data: text that contains one is left out, and counted."""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from glyphlm.base.errors import InputError
from glyphlm.base.names import shipped_recipes
from glyphlm.corpus.reading import Passage

SENTENCE = re.compile(r".+?(?:[.!?。！？]+\s*|\n\s*|$)", re.DOTALL)
SPAN = re.compile(r"U\+([0-9A-Fa-f]{2,6})(?:-(?:U\+)?([0-9A-Fa-f]{2,6}))?")
CATEGORY = re.compile(r"[CLMNPSZ][a-z]")
LAST = 0x110000


@dataclass(frozen=True)
class Exclusion:
    """Characters, and what happens to a document that contains one.

    Args:
        characters: All of them, sorted.
        how: drop leaves out the document; cut leaves out the sentences that contain one, and makes the text between them
            documents of their own.
    """

    characters: str
    how: Literal["drop", "cut"] = "drop"

    @classmethod
    def of(cls, named: str | None, how: Literal["drop", "cut"] = "drop") -> "Exclusion | None":
        """The exclusion of the characters that `named` describes, as for `characters_of`; None for None."""
        return None if named is None else cls(characters_of(named), how)

    def settings(self) -> dict[str, Any]:
        """The settings for build.json."""
        return {"excluded": hashlib.sha256(self.characters.encode()).hexdigest(), "excluded_how": self.how}

    def apply(self, passages: Iterable[Passage], counts: Counter[str]) -> Iterator[Passage]:
        """The passages without these characters; each document is held in memory as a whole.

        Adds to `counts` the `documents` that contained some, the `characters` of text left out, and the `occurrences`.
        """
        held: list[str] = []
        for passage in passages:
            held.append(passage.text)
            if passage.last:
                for text in self._kept("".join(held), counts):
                    yield Passage(text, True)
                held = []

    def _kept(self, text: str, counts: Counter[str]) -> list[str]:
        found = len(self._pattern.findall(text))
        if not found:
            return [text]
        parts, begins = [], True
        for sentence in SENTENCE.findall(text) if self.how == "cut" else []:
            if self._pattern.search(sentence):
                begins = True
            elif begins:
                parts, begins = [*parts, sentence], False
            else:
                parts[-1] += sentence
        parts = [part for part in parts if part.strip()]
        counts.update(documents=1, occurrences=found, characters=len(text) - sum(map(len, parts)))
        return parts

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(f"[{re.escape(self.characters)}]")


def characters_of(named: str) -> str:
    """The characters of a file (white space apart; recipes/unseen.txt comes with glyphlm), a span U+0400-04FF, a code
    point U+1F600, or a general category of Unicode such as So; several spans and categories are separated by commas.
    Sorted, without repeats.

    Raises:
        InputError: it is none of these, or names no character.
    """
    path = next((path for path in (Path(named), shipped_recipes().parent / named) if path.is_file()), None)
    if path:
        try:
            found = set("".join(path.read_text(encoding="utf-8").split()))
        except UnicodeDecodeError as error:
            raise InputError(f"{named} is not UTF-8 ({error}); give a text file of characters") from None
    else:
        found = {character for part in named.split(",") for character in _of_class(part.strip(), named)}
    if not found:
        raise InputError(f"{named} names no character; give a file of characters, U+0400-04FF, or a category such as So")
    return "".join(sorted(found))


def _of_class(part: str, named: str) -> Iterator[str]:
    if span := SPAN.fullmatch(part):
        first, last = int(span[1], 16), int(span[2] or span[1], 16)
        if not first <= last < LAST:
            raise InputError(f"{part} is no span of code points; give its first and last one, such as U+0400-04FF")
        yield from (chr(code) for code in range(first, last + 1) if not 0xD800 <= code < 0xE000)
    elif CATEGORY.fullmatch(part):
        yield from (chr(code) for code in range(LAST) if unicodedata.category(chr(code)) == part != "Cs")
    else:
        raise InputError(f"{named!r} is no file, and {part!r} no characters; give a file of characters, a span such as "
                         "U+0400-04FF, or a general category of Unicode such as So")
