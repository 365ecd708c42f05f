"""Texts of probes: tokens by class, pairs of translations, words whose neighbours are listed."""

import random
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from glyphlm.analysis.inspection import script
from glyphlm.analysis.settings import FEWEST, ProbeSettings
from glyphlm.base.errors import InputError
from glyphlm.corpus.cldr import subjects
from glyphlm.corpus.reading import STRICT, passages
from glyphlm.tokenizer.tokenizer import Tokenizer

NAMED = ("territory", "language", "currency")  # subjects that CLDR names in three languages
CATEGORIES = {"L": "letter", "N": "number", "P": "punctuation", "S": "symbol"}  # Unicode's general categories
MOST_CLASSES = 6
WORDS = 5


@dataclass(frozen=True)
class Texts:
    """Task -> class -> tokens; languages -> pairs of translations; words whose neighbours are listed."""

    classes: dict[str, dict[str, list[str]]]
    translations: dict[str, list[tuple[str, str]]]
    words: list[str]

    def all(self) -> list[str]:
        """All distinct texts, in a fixed order."""
        groups = [group for classes in self.classes.values() for group in classes.values()]
        pairs = [pair for found in self.translations.values() for pair in found]
        return list(dict.fromkeys(text for part in (self.words, *groups, *pairs) for text in part))


def find_names(settings: ProbeSettings) -> dict[str, list[str]]:
    """Language -> names of the same subjects in the same order, from the file of pairs or CLDR.

    Raises:
        InputError: the file is missing or no text, or a line has more or fewer columns than the first.
    """
    if settings.pairs is not None:
        return _read_pairs(Path(settings.pairs))
    found = [subject.names for subject in subjects() if subject.kind in NAMED]
    return {language: [names[language] for names in found] for language in found[0]}


def _read_pairs(path: Path) -> dict[str, list[str]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}); give a TSV file in UTF-8") from None
    table = [[cell.strip() for cell in line.split("\t")] for line in lines if line.strip()]
    if len(table) < 3 or len(set(table[0])) < 2:
        raise InputError(f"{path} has {len(table)} lines, the first {table[:1]}; give a first line that names at least two "
                         "languages, separated by tabs, and at least two lines of words")
    wrong = next((cells for cells in table if len(cells) != len(table[0]) or not all(cells)), None)
    if wrong:
        raise InputError(f"{path}: {wrong} is not a word for each of {table[0]}; correct that line")
    return dict(zip(table[0], map(list, zip(*table[1:]))))


def find_texts(tokenizer: Tokenizer, names: Mapping[str, Sequence[str]], settings: ProbeSettings) -> Texts:
    """The classes that a vocabulary has tokens of, and the unambiguous translations."""
    tokens = whole_tokens(tokenizer, settings.text)
    classes = {task: _chosen(found, settings) for task, found in token_classes(tokens).items()}
    translations = {f"{a}-{b}": _unambiguous(names[a], names[b]) for a, b in combinations(names, 2)}
    first = next(iter(names.values()))
    words = settings.words or list(first[:: max(1, len(first) // WORDS)][:WORDS])
    return Texts(
        {task: found for task, found in classes.items() if len(found) > 1},
        {languages: pairs for languages, pairs in translations.items() if len(pairs) > 1},
        words,
    )


def whole_tokens(tokenizer: Tokenizer, source: str | None = None) -> list[str]:
    """The texts that are encoded as a single token; with `source` only those that occur in this text."""
    pictured, numbers = tokenizer.pictured(), range(tokenizer.vocab_size)
    if source is not None:
        pieces = tokenizer.encode_passages(passages([source], STRICT, source))
        numbers = sorted({number for piece in pieces for number in np.unique(piece.ids).tolist()})
    return [pictured[number] for number in numbers
            if number not in tokenizer.special_ids and tokenizer.encode(pictured[number]) == [number]]


def token_classes(tokens: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    """Task -> class -> tokens: script, case (pairs that differ in the first letter), general category."""
    scripts = _sorted(tokens, lambda token: {script(character) for character in token if character.isalpha()})
    majors = _sorted(tokens, lambda token: {unicodedata.category(character)[0] for character in token})
    categories = {CATEGORIES[major]: found for major, found in majors.items() if major in CATEGORIES}
    known = set(tokens)
    lower = [token for token in tokens if token.islower() and token.capitalize() in known and token.capitalize() != token]
    return {"script": scripts, "case": {"lower": lower, "upper": [token.capitalize() for token in lower]},
            "category": categories}


def _sorted(tokens: Sequence[str], classes_of: Callable[[str], set[str]]) -> dict[str, list[str]]:
    """Class -> the tokens all of whose characters are of that class."""
    sorted_: dict[str, list[str]] = {}
    for token in tokens:
        found = classes_of(token)
        if len(found) == 1:
            sorted_.setdefault(found.pop(), []).append(token)
    return sorted_


def _chosen(classes: Mapping[str, Sequence[str]], settings: ProbeSettings) -> dict[str, list[str]]:
    """Samples of the largest classes; lists of equal length are sampled at the same indices, so that pairs stay pairs."""
    large = sorted((name for name in classes if len(classes[name]) >= FEWEST), key=lambda name: -len(classes[name]))
    return {name: random.Random(settings.seed).sample(classes[name], min(settings.per_class, len(classes[name])))
            for name in large[:MOST_CLASSES]}


def _unambiguous(ours: Sequence[str], theirs: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs of which each side has exactly one translation, which differs from it."""
    pairs = list(dict.fromkeys(zip(ours, theirs)))
    left, right = ([pair[side] for pair in pairs] for side in (0, 1))
    return [(a, b) for a, b in pairs if left.count(a) == right.count(b) == 1 and a != b]
