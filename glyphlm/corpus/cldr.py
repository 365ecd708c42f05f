"""Subjects from CLDR: names in English, Russian and Chinese and facts about them, from tables that come with the package.

scripts/phrasebook_data.py writes the tables from the package babel, which is 36 MB.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from glyphlm.base.records import read_json, read_json_lines

SUBJECTS, LANGUAGES = (Path(__file__).with_name(name) for name in ("subjects.jsonl", "languages.json"))
ARTICLE = re.compile(r"^(United|Netherlands|Philip|Bahamas|Maldives|Comoros|Gambia|Vatican)|Islands|Territor|Republic")

Names = dict[str, str]  # language -> how CLDR writes something in that language


@dataclass(frozen=True)
class Subject:
    """An entity with a name in the three languages and its CLDR facts by relation, in each language."""

    kind: str
    code: str
    names: Names
    facts: Mapping[str, Names | None]  # None: CLDR has no such fact


@cache
def subjects() -> tuple[Subject, ...]:
    """All subjects of the phrase book, in a fixed order."""
    return tuple(Subject(**row) for row in read_json_lines(SUBJECTS))


def language_name(code: str) -> str:
    """The English name of a language code such as en, zh or pt-BR; of an unknown one the code itself."""
    return read_json(LANGUAGES).get(code.replace("-", "_"), code)
