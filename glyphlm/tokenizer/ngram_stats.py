"""Files of n-gram statistics in the published shape (arXiv 2507.04886, the bvv241 builders): one Python literal,
[{'lang': 'en', 'language_name': 'English', 'top_ngrams': {2: [('th', 3464625), ...], 3: [...]}}, ...].
"""

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glyphlm.base.errors import InputError
from glyphlm.base.outputs import write_atomic

# The shape as `repr` writes it. Possessive repeats (*+) never go back: a file of another shape is told at once.
STRING = r"""(?:'(?:[^'\\\n\r\0]|\\[^\n\r\0])*+'|"(?:[^"\\\n\r\0]|\\[^\n\r\0])*+")"""
NUMBER = r"(?:0|[1-9][0-9]{0,17})"
NEXT = r"(?:, |(?=[\]}]))"
PAIR = rf"\(({STRING}), ({NUMBER})\)"
TABLE = rf"({NUMBER}): \[((?:{PAIR}{NEXT})*+)\]"
LANGUAGE = rf"\{{'lang': ({STRING}), 'language_name': ({STRING}), 'top_ngrams': \{{((?:{TABLE}{NEXT})*+)\}}\}}"
FILE = rf"\[(?:{LANGUAGE}{NEXT})*+\]\s*+"
KEYS = ("lang", "language_name", "top_ngrams")


@dataclass(frozen=True)
class LanguageNgrams:
    """One language: n -> its n-grams with their counts, most frequent first."""

    lang: str
    language_name: str
    top_ngrams: dict[int, list[tuple[str, int]]]


def write_ngrams(path: Path, languages: Sequence[LanguageNgrams]) -> None:
    """Write the statistics as the published file does: what was read from it is written byte for byte."""
    write_atomic(path, repr([vars(language) for language in languages]))


def read_ngrams(path: Path) -> list[LanguageNgrams]:
    """The languages of a file of n-gram statistics, in its order.

    Raises:
        InputError: the file does not exist, is no Python literal, or has another shape; the place is named.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist; give a file that glyphlm tokenizer ngrams wrote, or a published one")
    try:
        rows = parse_literal(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 at byte {error.start}; give a file of n-gram statistics") from None
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        reason = str(error) or "nested too deeply"
        raise InputError(f"{path} is no Python literal ({reason}); give a file of n-gram statistics") from None
    fault = _fault(rows)
    if fault:
        raise InputError(f"{path}: {fault}; make it again with glyphlm tokenizer ngrams")
    return [LanguageNgrams(**{key: row[key] for key in KEYS}) for row in rows]


def parse_literal(text: str) -> Any:
    """What ast.literal_eval gives, but 10 times as fast and in a tenth of the memory where the shape is the published."""
    if not re.fullmatch(FILE, text):
        return ast.literal_eval(text)
    return [
        {"lang": _string(lang), "language_name": _string(name), "top_ngrams": _tables(tables)}
        for lang, name, tables, *_ in re.findall(LANGUAGE, text)
    ]


def _tables(tables: str) -> dict[int, list[tuple[str, int]]]:
    return {
        int(n): [(_string(gram), int(count)) for gram, count in re.findall(PAIR, pairs)]
        for n, pairs, *_ in re.findall(TABLE, tables)
    }


def _string(literal: str) -> str:
    return ast.literal_eval(literal) if "\\" in literal else literal[1:-1]


def _fault(rows: Any) -> str | None:
    """The first place where `rows` is not of the published shape."""
    if not isinstance(rows, list) or not rows:
        return "it is not a list of languages"
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or set(row) != set(KEYS):
            return f"language {number} does not have exactly the keys {', '.join(KEYS)}"
        if not isinstance(row["lang"], str) or not isinstance(row["language_name"], str):
            return f"language {number} has no text as its lang and language_name"
        fault = _table_fault(row["top_ngrams"])
        if fault:
            return f"language {number} ({row['lang']!r}): {fault}"
    return None


def _table_fault(tables: Any) -> str | None:
    if not isinstance(tables, dict):
        return "top_ngrams is not a dictionary of n to n-grams"
    for n, pairs in tables.items():
        if type(n) is not int or n < 1 or not isinstance(pairs, list):
            return f"top_ngrams of {n!r} is not a list of n-grams of a whole number n"
        for number, pair in enumerate(pairs, start=1):
            if not _is_pair(pair, n):
                return f"{n}-gram {number} is {pair!r:.60}, not (a text of {n} characters, its whole count)"
    return None


def _is_pair(pair: Any, n: int) -> bool:
    if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[0], str) or type(pair[1]) is not int:
        return False
    return len(pair[0]) == n and pair[1] > 0 and not any("\ud800" <= character <= "\udfff" for character in pair[0])
