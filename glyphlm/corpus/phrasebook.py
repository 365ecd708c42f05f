"""The embedded corpus: a phrase book in English, Russian and Chinese that states facts from CLDR.

It needs no network. Some facts are held out in one wording and appear in another in training, so that they can be learned.
"""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from glyphlm.base.errors import InputError
from glyphlm.base.outputs import write_atomic
from glyphlm.base.records import read_yaml, to_lines
from glyphlm.corpus.cldr import ARTICLE, Subject, subjects

PARAGRAPHS = {"en": 2, "ru": 2, "zh": 4}  # training paragraphs a subject: Chinese says the same in half the characters
HELD_OUT = 0.16  # of the (subject, language) pairs have a paragraph in validation: 6% of the characters
QA_SHARE = 0.10  # of the characters of a split are question-answer examples
WORDING = read_yaml(Path(__file__).with_name("phrasebook.yaml"))
TEMPLATES: dict[str, dict[str, list[str]]] = WORDING["templates"]  # relation -> language


@dataclass(frozen=True)
class Phrase:
    """One document: running text on one subject, or one question with its answer."""

    text: str
    language: str  # "en", "ru" or "zh": the language of the sentences; foreign names appear in them as words
    kind: str  # "text" or "qa"
    split: str  # "train" or "validation"


@dataclass(frozen=True)
class Fact:
    """One fact in the words of one template: the document holds both strings, `name` and `value`."""

    subject: str  # such as "territory DE"
    relation: str  # such as "currency", or "name ru" for the Russian name
    template: int  # index into TEMPLATES: below 3 running text, from 3 on a question
    name: str  # what the subject is called in the language of the document
    value: str


Document = tuple[Phrase, tuple[Fact, ...]]


def _facts(subject: Subject, language: str) -> list[tuple[str, str]]:
    """(relation, value) of a subject in one language; a short form that is the name itself adds nothing."""
    names = [(f"name {tongue}", subject.names[tongue]) for tongue in WORDING["tongues"][language]]
    others = [(relation, value[language]) for relation, value in subject.facts.items() if value]
    return names + [fact for fact in others if fact != ("short", subject.names[language])]


def _fill(template: str, subject: Subject, language: str, relation: str, value: str) -> str:
    name = subject.names[language]
    it = WORDING["mentions"].get(subject.kind, {}).get(language, "{}").format(name)
    if subject.kind in ("territory", "city") and language == "en" and ARTICLE.search(name):
        it = f"the {name}"
    tongue = WORDING["tongues"][language].get(relation.removeprefix("name "), "")
    text = template.format(it=it, value=value, tongue=tongue).replace("..", ".")  # a value may end in its own stop
    return text[0].upper() + text[1:]


def _paragraph(subject: Subject, language: str, variant: int, split: str, rng: random.Random) -> Document:
    """All facts of a subject by the templates of a variant: first its names, then the rest in a drawn order."""
    facts = _facts(subject, language)
    names, rest = [fact for fact in facts if "name" in fact[0]], [fact for fact in facts if "name" not in fact[0]]
    stated, sentences = [], []
    for relation, value in rng.sample(names, len(names)) + rng.sample(rest, len(rest)):
        template = (variant + len(subject.code + relation)) % 3  # another one for another relation
        stated.append(Fact(f"{subject.kind} {subject.code}", relation, template, subject.names[language], value))
        wording = TEMPLATES[relation.split()[0]][language][template]
        sentences.append(_fill(wording, subject, language, relation, value))
    text = ("" if language == "zh" else " ").join(sentences)
    return Phrase(text, language, "text", split), tuple(stated)


def _paragraphs(about: tuple[Subject, ...], rng: random.Random) -> Iterator[Document]:
    """PARAGRAPHS for each subject and language; where one variant of three is held out, they use the other two."""
    for subject in about:
        for language, count in PARAGRAPHS.items():
            variants = rng.sample(range(3), 3)
            if rng.random() < HELD_OUT:
                yield _paragraph(subject, language, variants.pop(), "validation", rng)
            for index in range(count):
                yield _paragraph(subject, language, variants[index % len(variants)], "train", rng)


def _question(subject: Subject, language: str, relation: str, value: str, template: int) -> tuple[str, Fact]:
    """The text of one example and the fact in it; a template that gives the value asks for the name."""
    wording = TEMPLATES[relation.split()[0]][language][template]
    name = subject.names[language]
    question = _fill(wording, subject, language, relation, value)
    text = WORDING["question_forms"][language].format(question, name if "{value}" in wording else value)
    return text, Fact(f"{subject.kind} {subject.code}", relation, template, name, value)


def _questions(about: tuple[Subject, ...], language: str) -> list[tuple[str, Fact]]:
    """Every question of a language that has one answer only: some names belong to two subjects."""
    asked = [
        _question(subject, language, relation, value, template)
        for subject in about
        for relation, value in _facts(subject, language)
        for template in range(3, len(TEMPLATES[relation.split()[0]][language]))
    ]
    count = Counter(text.split("\n")[0] for text, _ in asked)
    return [(text, fact) for text, fact in asked if count[text.split("\n")[0]] == 1]


def _examples(about: tuple[Subject, ...], texts: list[Document], rng: random.Random) -> Iterator[Document]:
    """Question-answer examples drawn without repetition: QA_SHARE of the characters of every split and language."""
    for language in PARAGRAPHS:
        left = _questions(about, language)
        rng.shuffle(left)
        for split in ("validation", "train"):
            size = sum(len(text.text) for text, _ in texts if (text.language, text.split) == (language, split))
            budget = size * QA_SHARE / (1 - QA_SHARE)
            while left and budget > 0:
                text, fact = left.pop()
                budget -= len(text)
                yield Phrase(text, language, "qa", split), (fact,)


def documents(seed: int = 1) -> list[Document]:
    """The documents of `phrases` in the same order, each with the facts it states."""
    rng = random.Random(seed)
    about = subjects()
    texts = list(_paragraphs(about, rng))
    trained = {phrase.text for phrase, _ in texts if phrase.split == "train"}
    texts = [document for document in texts if document[0].split == "train" or document[0].text not in trained]
    found = texts + list(_examples(about, texts, rng))
    rng.shuffle(found)
    return found


@cache
def phrases(seed: int = 1) -> tuple[Phrase, ...]:
    """All documents, shuffled: about 1.2 M characters of training text, and 6% of all characters held out.

    A validation document states facts in templates in which training never states them, though training states them in
    other templates and uses these templates for other facts. The same seed gives the same list in every process.
    """
    return tuple(phrase for phrase, _ in documents(seed))


def chosen(words: str) -> list[str]:
    """Documents that `words`, separated by commas, choose: en, ru, zh, text, qa, train, validation.

    Where no word names a language all are taken, else running text for training. So "" is all of that in three
    languages, and "en,zh,qa" the questions to train on in two.

    Raises:
        InputError: a word is unknown.
    """
    given, known = set(filter(None, words.split(","))), (*PARAGRAPHS, "text", "qa", "train", "validation")
    if unknown := sorted(given.difference(known)):
        raise InputError(f"the embedded phrase book has no {', '.join(unknown)}; it has {', '.join(known)}")
    languages = given.intersection(PARAGRAPHS) or set(PARAGRAPHS)
    kinds = given & {"text", "qa"} or {"text"}
    splits = given & {"train", "validation"} or {"train"}
    return [phrase.text for phrase in phrases()
            if phrase.language in languages and phrase.kind in kinds and phrase.split in splits]


def write_phrasebook(out: Path) -> dict[str, Path]:
    """Write `phrases()` into the folder `out` as JSON lines {"text", "language"}, one file a kind and split.

    Returns the paths by name: "text" and "qa" (training), "validation_text" and "validation_qa". The folder is made
    when missing; files of these names in it are replaced.

    Raises:
        OSError: the folder cannot be made or written.
    """
    out.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict[str, str]]] = {"text": [], "qa": [], "validation_text": [], "validation_qa": []}
    for phrase in phrases():
        name = phrase.kind if phrase.split == "train" else f"validation_{phrase.kind}"
        rows[name].append({"text": phrase.text, "language": phrase.language})
    paths = {name: out / f"{name}.jsonl" for name in rows}
    for name, path in paths.items():
        write_atomic(path, to_lines(rows[name]))
    return paths
