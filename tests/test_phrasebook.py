"""The embedded corpus is the same everywhere, is balanced, and holds out only facts that training states in other words."""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from glyphlm.base.errors import InputError
from glyphlm.corpus.cldr import subjects
from glyphlm.corpus.phrasebook import Fact, Phrase, chosen, documents, phrases, write_phrasebook

Documents = list[tuple[Phrase, tuple[Fact, ...]]]
PRINT_DIGEST = (
    "import hashlib; from glyphlm.corpus.phrasebook import phrases; "
    "print(hashlib.sha256(repr(phrases()).encode()).hexdigest())"
)


@pytest.fixture(scope="module")
def book() -> Documents:
    return documents()


def _characters(book: Documents, split: str) -> Counter[str]:
    """Characters of a split by kind and by language."""
    count: Counter[str] = Counter()
    for phrase, _ in book:
        if phrase.split == split:
            count.update({phrase.kind: len(phrase.text), phrase.language: len(phrase.text)})
    return count


def _claims(book: Documents, split: str) -> Iterator[tuple[Phrase, Fact]]:
    return ((phrase, claim) for phrase, claims in book if phrase.split == split for claim in claims)


def test_the_same_seed_gives_the_same_list_in_every_process(book: Documents) -> None:
    here = tuple(phrase for phrase, _ in book)
    digest = hashlib.sha256(repr(here).encode()).hexdigest()
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-c", PRINT_DIGEST]
    there = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=True)
    assert there.stdout.strip() == digest
    assert phrases(2) != here


def test_sizes_and_shares(book: Documents) -> None:
    train, validation = _characters(book, "train"), _characters(book, "validation")
    size, held_out = train["text"] + train["qa"], validation["text"] + validation["qa"]
    assert 800_000 < size < 1_300_000
    assert 0.08 < train["qa"] / size < 0.12
    assert all(train[language] / size > 0.25 for language in ("en", "ru", "zh"))
    assert 0.05 < held_out / (size + held_out) < 0.08
    assert all(validation[part] > 1000 for part in ("text", "qa", "en", "ru", "zh"))


def test_no_validation_document_is_in_training(book: Documents) -> None:
    train = {phrase.text for phrase, _ in book if phrase.split == "train"}
    questions = {text.split("\n")[0] for text in train}
    validation = [phrase.text for phrase, _ in book if phrase.split == "validation"]
    assert not train & set(validation)
    assert not questions & {text.split("\n")[0] for text in validation}


def test_a_held_out_fact_is_trained_in_another_template_and_the_template_on_other_facts(book: Documents) -> None:
    reported = {(phrase.language, claim) for phrase, claim in _claims(book, "train")}
    templates = {(language, claim.relation, claim.template) for language, claim in reported}
    facts = {(language, claim.subject, claim.relation) for language, claim in reported}
    for phrase, claim in _claims(book, "validation"):
        assert (phrase.language, claim) not in reported
        assert (phrase.language, claim.relation, claim.template) in templates
        assert (phrase.language, claim.subject, claim.relation) in facts


def test_every_held_out_answer_stands_with_its_subject_in_a_training_document(book: Documents) -> None:
    about: dict[tuple[str, str], list[str]] = {}
    for phrase, claims in book:
        if phrase.split == "train":
            about.setdefault((phrase.language, claims[0].subject), []).append(phrase.text.casefold())
    for phrase, claim in _claims(book, "validation"):
        name, value = claim.name.casefold(), claim.value.casefold().rstrip(".")
        assert any(name in text and value in text for text in about[phrase.language, claim.subject]), claim


def test_every_document_holds_what_it_claims(book: Documents) -> None:
    example = re.compile(r"(Question: |Вопрос: |问题：).+\n(Answer: |Ответ: |答案：).+")
    for phrase, claims in book:
        text = phrase.text.casefold()
        assert all(claim.name.casefold() in text for claim in claims)
        assert all(claim.value.casefold().rstrip(".") in text for claim in claims)
        assert phrase.kind == "text" or example.fullmatch(phrase.text)


def test_names_are_written_in_the_letters_of_their_language() -> None:
    for subject in subjects():
        for names in (subject.names, *filter(None, subject.facts.values())):
            assert not re.search("[а-яё]", names["en"] + names["zh"])
            assert not re.search("[\u4e00-\u9fff]", names["en"] + names["ru"])


@pytest.mark.parametrize(("code", "relation", "expected"), [
    ("DE", "currency", {"en": "euro", "ru": "евро", "zh": "欧元"}),
    ("DE", "since", {"en": "1999", "ru": "1999", "zh": "1999"}),
    ("Europe/London", "territory", {"en": "the United Kingdom", "ru": "Великобритания", "zh": "英国"}),
    ("length-meter", "fivefold", {"en": "5 meters", "ru": "5 метров", "zh": "5米"}),
    ("3000000", "digits", {"en": "3,000,000", "ru": "3 000 000", "zh": "3,000,000"}),
])
def test_known_facts(code: str, relation: str, expected: dict[str, str]) -> None:
    assert next(subject.facts[relation] for subject in subjects() if subject.code == code) == expected


def test_the_files_hold_the_phrases(tmp_path: Path, book: Documents) -> None:
    paths = write_phrasebook(tmp_path / "book")
    assert list(paths) == ["text", "qa", "validation_text", "validation_qa"]
    for name, path in paths.items():
        split, kind = "validation" if name.startswith("validation") else "train", name.removeprefix("validation_")
        expected = [phrase for phrase, _ in book if (phrase.split, phrase.kind) == (split, kind)]
        lines = path.read_text(encoding="utf-8").split("\n")
        assert path == tmp_path / "book" / f"{name}.jsonl" and lines.pop() == ""
        assert [json.loads(line) for line in lines] == [{"text": it.text, "language": it.language} for it in expected]


@pytest.mark.parametrize(
    ("words", "languages", "kind", "split"),
    [
        ("", {"en", "ru", "zh"}, "text", "train"),
        ("zh,en", {"en", "zh"}, "text", "train"),
        ("ru,qa", {"ru"}, "qa", "train"),
        ("qa,validation", {"en", "ru", "zh"}, "qa", "validation"),
    ],
)
def test_words_choose_documents(book: Documents, words: str, languages: set[str], kind: str, split: str) -> None:
    expected = [phrase.text for phrase, _ in book
                if phrase.language in languages and (phrase.kind, phrase.split) == (kind, split)]
    assert chosen(words) == expected and expected


def test_a_word_that_chooses_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="has no de, fr; it has en, ru, zh, text, qa, train, validation"):
        chosen("en,fr,de")
