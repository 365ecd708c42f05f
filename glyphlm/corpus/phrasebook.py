"""The embedded corpus: a phrase book in English, Russian and Chinese that tells what CLDR knows.

It needs no network. Some of its facts are held out in one wording and told in another, so that they can be learned.
"""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from glyphlm.base.errors import InputError
from glyphlm.base.outputs import write_atomic
from glyphlm.base.records import to_lines
from glyphlm.corpus.cldr import ARTICLE, Subject, subjects

TOLD = {"en": 2, "ru": 2, "zh": 4}  # training paragraphs a subject: Chinese says the same in half the characters
HELD_OUT = 0.16  # of the (subject, language) pairs have a paragraph in validation: 6% of the characters
QA_SHARE = 0.10  # of the characters of a split are question-answer examples
QA_FORMS = {"en": "Question: {}\nAnswer: {}", "ru": "Вопрос: {}\nОтвет: {}", "zh": "问题：{}\n答案：{}"}
TONGUES = {
    "en": {"ru": "Russian", "zh": "Chinese"},
    "ru": {"en": "по-английски", "zh": "по-китайски"},
    "zh": {"en": "英语", "ru": "俄语"},
}
# How a sentence speaks of a subject: Russian names stay in the nominative, so that CLDR's form is always right.
MENTIONS = {
    "language": {"en": "the {} language", "ru": "язык «{}»", "zh": "{}"},
    "script": {"en": "the {} script", "ru": "письменность «{}»", "zh": "文字“{}”"},
    "currency": {"en": "the {}", "ru": "валюта «{}»", "zh": "{}"},
}
# Relation -> language -> three running-text templates, then one or two questions. {it}: the subject in a sentence;
# {value}: what is said of it. A question that contains {value} asks for the name of the subject.
TEMPLATES = {
    "name": {
        "en": ("{it} is called {value} in {tongue}.", "In {tongue}, {it} is {value}.",
               "The {tongue} name of {it} is {value}.",
               "What is the {tongue} name of {it}?", "What does {value} mean in English?"),
        "ru": ("{it} {tongue} — {value}.", "{tongue} {it} — это {value}.", "{it}: {tongue} говорят {value}.",
               "Как будет {tongue}: {it}?", "Как по-русски {value}?"),
        "zh": ("{it}的{tongue}名称是 {value}。", "{it}用{tongue}说是 {value}。", "在{tongue}中，{it}叫 {value}。",
               "{it}用{tongue}怎么说？", "{value} 用汉语怎么说？"),
    },
    "code": {
        "en": ("The code of {it} is {value}.", "Its code is {value}.", "The code {value} stands for {it}.",
               "What is the code of {it}?"),
        "ru": ("{it}: код {value}.", "Код — {value}.", "Кодом {value} обозначается {it}.", "{it}: какой код?"),
        "zh": ("{it}的代码是 {value}。", "代码是 {value}。", "代码 {value} 表示{it}。", "{it}的代码是什么？"),
    },
    "currency": {
        "en": ("The currency of {it} is the {value}.", "The currency there is the {value}.",
               "In {it}, people pay with the {value}.", "What is the currency of {it}?"),
        "ru": ("{it}: валюта — {value}.", "Местная валюта: {value}.", "{it}: расчётная валюта — {value}.",
               "{it}: какая там валюта?"),
        "zh": ("{it}的货币是{value}。", "当地的货币是{value}。", "在{it}，人们使用{value}付款。", "{it}的货币是什么？"),
    },
    "since": {
        "en": ("The present currency of {it} has been in use since {value}.",
               "The present currency has been in use since {value}.",
               "In {it}, this currency dates from {value}.", "Since when has {it} used its present currency?"),
        "ru": ("{it}: нынешняя валюта используется с {value} года.", "Нынешняя валюта введена в {value} году.",
               "{it}: год введения валюты — {value}.", "{it}: в каком году введена нынешняя валюта?"),
        "zh": ("{it}从{value}年开始使用现在的货币。", "现在的货币从{value}年开始使用。",
               "{it}现行货币的启用年份是{value}年。", "{it}从哪一年开始使用现在的货币？"),
    },
    "former": {
        "en": ("The former currency of {it} is the {value}.", "The former currency is the {value}.",
               "In {it}, people once paid with the {value}.", "What is the former currency of {it}?"),
        "ru": ("{it}: прежняя валюта — {value}.", "Прежняя валюта: {value}.", "{it}: раньше здесь была валюта {value}.",
               "{it}: какая валюта была раньше?"),
        "zh": ("{it}以前的货币是{value}。", "以前的货币是{value}。", "在{it}，人们曾经使用{value}。",
               "{it}以前的货币是什么？"),
    },
    "official": {
        "en": ("Official in {it}: {value}.", "In official use there: {value}.",
               "As official languages, {it} has {value}.", "Which languages are official in {it}?"),
        "ru": ("{it}: официально — {value}.", "На официальном уровне здесь используют {value}.",
               "{it}: официально используется {value}.", "{it}: какие языки официальные?"),
        "zh": ("{it}的官方语言是{value}。", "当地的官方语言是{value}。", "在{it}，官方使用{value}。",
               "{it}的官方语言是什么？"),
    },
    "script": {
        "en": ("To write {it}, people use the {value} script.", "It is written in the {value} script.",
               "The usual script of {it} is {value}.", "What is the usual script of {it}?"),
        "ru": ("{it}: обычная письменность — {value}.", "Письменность: {value}.", "{it}: пишут так — {value}.",
               "{it}: какая письменность?"),
        "zh": ("{it}使用的文字是{value}。", "书写时使用{value}。", "{it}通常用{value}书写。", "{it}使用什么文字？"),
    },
    "users": {
        "en": ("Languages written in {it}: {value}.", "Among its languages: {value}.",
               "In {it}, people write {value}.", "Which languages use {it}, for example?"),
        "ru": ("{it}: для примера — {value}.", "Примеры языков: {value}.", "{it}: в числе языков — {value}.",
               "{it}: какие языки, например?"),
        "zh": ("使用{it}的语言有{value}。", "使用它的语言有{value}。", "{it}用来书写{value}。", "哪些语言使用{it}？"),
    },
    "places": {
        "en": ("{it} is in use in {value}.", "It is in use in {value}.", "People in {value} use {it}.",
               "Where is {it} in use?"),
        "ru": ("{it}: используется здесь — {value}.", "Где используется: {value}.", "{it} и территории: {value}.",
               "{it}: где используется?"),
        "zh": ("{it}的使用地区：{value}。", "使用地区是{value}。", "以下地区使用{it}：{value}。", "{it}在哪里使用？"),
    },
    "territory": {
        "en": ("{it} is in {value}.", "It is in {value}.", "To visit {it}, travel to {value}.", "Where is {it}?"),
        "ru": ("{it}: на карте это {value}.", "Место на карте: {value}.", "{it} — ищите на карте: {value}.",
               "{it}: где это на карте?"),
        "zh": ("{it}位于{value}。", "它的所在地是{value}。", "要去{it}，请前往{value}。", "{it}在哪里？"),
    },
    "price": {
        "en": ("A price of five in {it}: {value}.", "A price of five is written {value}.",
               "Counting {it} up to five makes {value}.", "How is a price of five written in {it}?"),
        "ru": ("{it}: цена в пять единиц — {value}.", "Цена в пять единиц: {value}.", "{it}, а если пять, то {value}.",
               "{it}: как записать цену в пять единиц?"),
        "zh": ("{it}，五个单位写作{value}。", "五个单位的价格是{value}。", "用{it}付五个单位，就是{value}。",
               "用{it}付五个单位怎么写？"),
    },
    "double": {
        "en": ("Twice {it} is {value}.", "Doubled, this makes {value}.", "{it} and {it} make {value}.",
               "How much is twice {it}?"),
        "ru": ("{it} и ещё столько же — {value}.", "Вдвое больше — {value}.", "{it} плюс {it} — это {value}.",
               "{it}: сколько будет вдвое больше?"),
        "zh": ("{it}的两倍是{value}。", "它的两倍是{value}。", "{it}加{it}等于{value}。", "{it}的两倍是多少？"),
    },
    "fivefold": {
        "en": ("Five times {it} is {value}.", "Five times as much is {value}.", "Count {it} five times: {value}.",
               "How much is five times {it}?"),
        "ru": ("{it}, умножить на пять — {value}.", "В пять раз больше — {value}.",
               "{it}: в пять раз больше будет {value}.", "{it}: сколько будет в пять раз больше?"),
        "zh": ("{it}的五倍是{value}。", "它的五倍是{value}。", "{it}乘以五等于{value}。", "{it}的五倍是多少？"),
    },
    "tenfold": {
        "en": ("Ten times {it} is {value}.", "Ten times as much is {value}.", "Count {it} ten times: {value}.",
               "How much is ten times {it}?"),
        "ru": ("{it}, умножить на десять — {value}.", "В десять раз больше — {value}.",
               "{it}: если умножить на десять, получится {value}.", "{it}: сколько будет в десять раз больше?"),
        "zh": ("{it}的十倍是{value}。", "它的十倍是{value}。", "{it}乘以十等于{value}。", "{it}的十倍是多少？"),
    },
    "short": {
        "en": ("The short form of {it} is {value}.", "In short: {value}.", "For short, {it} is written {value}.",
               "What is the short form of {it}?"),
        "ru": ("{it} сокращённо — {value}.", "Сокращённо: {value}.", "{it}: кратко пишут {value}.",
               "Как сокращённо записать: {it}?"),
        "zh": ("{it}的简写是 {value}。", "简写是 {value}。", "{it}可以简写为 {value}。", "{it}的简写是什么？"),
    },
    "digits": {
        "en": ("In digits, {it} is {value}.", "In digits: {value}.", "The number {it} is written {value}.",
               "How is {it} written in digits?"),
        "ru": ("{it} цифрами — {value}.", "Цифрами: {value}.", "{it}: цифрами пишут {value}.",
               "Как записать цифрами: {it}?"),
        "zh": ("{it}用数字写作 {value}。", "用数字写作 {value}。", "数{it}写成 {value}。", "{it}用数字怎么写？"),
    },
    "number": {
        "en": ("The number of {it} is {value}.", "Its number is {value}.", "Counting, {it} has the number {value}.",
               "What is the number of {it}?"),
        "ru": ("{it}: номер {value}.", "Номер — {value}.", "{it}: по порядку это номер {value}.", "{it}: какой номер?"),
        "zh": ("{it}的序号是 {value}。", "序号是 {value}。", "按顺序，{it}是第 {value} 个。", "{it}的序号是多少？"),
    },
    "next": {
        "en": ("After {it} comes {value}.", "The next one is {value}.", "First comes {it}, then {value}.",
               "What comes after {it}?"),
        "ru": ("{it}, а следом идёт {value}.", "Следом идёт {value}.", "Сначала {it}, потом {value}.",
               "{it}: что идёт следом?"),
        "zh": ("{it}之后是{value}。", "下一个是{value}。", "先是{it}，后是{value}。", "{it}之后是什么？"),
    },
}


@dataclass(frozen=True)
class Phrase:
    """One document: running text on one subject, or one question with its answer."""

    text: str
    language: str  # "en", "ru" or "zh": the language of the sentences; foreign names appear in them as words
    kind: str  # "text" or "qa"
    split: str  # "train" or "validation"


@dataclass(frozen=True)
class Claim:
    """One fact told by one template: the document holds both strings, `name` and `value`."""

    subject: str  # such as "territory DE"
    relation: str  # such as "currency", or "name ru" for the Russian name
    template: int  # index into TEMPLATES: below 3 running text, from 3 on a question
    name: str  # what the subject is called in the language of the document
    value: str


Document = tuple[Phrase, tuple[Claim, ...]]


def _facts(subject: Subject, language: str) -> list[tuple[str, str]]:
    """(relation, value) of a subject in one language; a short form that is the name itself says nothing."""
    names = [(f"name {tongue}", subject.names[tongue]) for tongue in TONGUES[language]]
    says = [(relation, value[language]) for relation, value in subject.says.items() if value]
    return names + [fact for fact in says if fact != ("short", subject.names[language])]


def _fill(template: str, subject: Subject, language: str, relation: str, value: str) -> str:
    name = subject.names[language]
    it = MENTIONS.get(subject.kind, {}).get(language, "{}").format(name)
    if subject.kind in ("territory", "city") and language == "en" and ARTICLE.search(name):
        it = f"the {name}"
    tongue = TONGUES[language].get(relation.removeprefix("name "), "")
    text = template.format(it=it, value=value, tongue=tongue).replace("..", ".")  # a value may end in its own stop
    return text[0].upper() + text[1:]


def _paragraph(subject: Subject, language: str, variant: int, split: str, rng: random.Random) -> Document:
    """All facts of a subject by the templates of a variant: first its names, then the rest in a drawn order."""
    facts = _facts(subject, language)
    names, rest = [fact for fact in facts if "name" in fact[0]], [fact for fact in facts if "name" not in fact[0]]
    claims, sentences = [], []
    for relation, value in rng.sample(names, len(names)) + rng.sample(rest, len(rest)):
        template = (variant + len(subject.code + relation)) % 3  # another one for another relation
        claims.append(Claim(f"{subject.kind} {subject.code}", relation, template, subject.names[language], value))
        wording = TEMPLATES[relation.split()[0]][language][template]
        sentences.append(_fill(wording, subject, language, relation, value))
    text = ("" if language == "zh" else " ").join(sentences)
    return Phrase(text, language, "text", split), tuple(claims)


def _paragraphs(told: tuple[Subject, ...], rng: random.Random) -> Iterator[Document]:
    """TOLD paragraphs a subject and language; where one variant of three is held out, they use the other two."""
    for subject in told:
        for language, count in TOLD.items():
            variants = rng.sample(range(3), 3)
            if rng.random() < HELD_OUT:
                yield _paragraph(subject, language, variants.pop(), "validation", rng)
            for index in range(count):
                yield _paragraph(subject, language, variants[index % len(variants)], "train", rng)


def _question(subject: Subject, language: str, relation: str, value: str, template: int) -> tuple[str, Claim]:
    """The text of one example and what it claims; a template that gives the value asks for the name."""
    wording = TEMPLATES[relation.split()[0]][language][template]
    name = subject.names[language]
    question = _fill(wording, subject, language, relation, value)
    text = QA_FORMS[language].format(question, name if "{value}" in wording else value)
    return text, Claim(f"{subject.kind} {subject.code}", relation, template, name, value)


def _questions(told: tuple[Subject, ...], language: str) -> list[tuple[str, Claim]]:
    """Every question of a language that has one answer only: some names belong to two subjects."""
    asked = [
        _question(subject, language, relation, value, template)
        for subject in told
        for relation, value in _facts(subject, language)
        for template in range(3, len(TEMPLATES[relation.split()[0]][language]))
    ]
    count = Counter(text.split("\n")[0] for text, _ in asked)
    return [(text, claim) for text, claim in asked if count[text.split("\n")[0]] == 1]


def _examples(told: tuple[Subject, ...], texts: list[Document], rng: random.Random) -> Iterator[Document]:
    """Question-answer examples drawn without repetition: QA_SHARE of the characters of every split and language."""
    for language in TOLD:
        left = _questions(told, language)
        rng.shuffle(left)
        for split in ("validation", "train"):
            size = sum(len(text.text) for text, _ in texts if (text.language, text.split) == (language, split))
            budget = size * QA_SHARE / (1 - QA_SHARE)
            while left and budget > 0:
                text, claim = left.pop()
                budget -= len(text)
                yield Phrase(text, language, "qa", split), (claim,)


def documents(seed: int = 1) -> list[Document]:
    """The documents of `phrases` in the same order, each with the claims it makes."""
    rng = random.Random(seed)
    told = subjects()
    texts = list(_paragraphs(told, rng))
    trained = {phrase.text for phrase, _ in texts if phrase.split == "train"}
    texts = [document for document in texts if document[0].split == "train" or document[0].text not in trained]
    found = texts + list(_examples(told, texts, rng))
    rng.shuffle(found)
    return found


def phrases(seed: int = 1) -> list[Phrase]:
    """All documents, shuffled: about 1.2 M characters of training text, and 6% of all characters held out.

    A validation document tells facts in templates in which training never tells them, though it tells the facts in
    other templates and uses the templates for other facts. The same seed gives the same list in every process.
    """
    return [phrase for phrase, _ in documents(seed)]


@cache
def _told_once() -> list[Phrase]:
    return phrases()  # takes a second


def chosen(words: str) -> list[str]:
    """Documents that `words`, separated by commas, choose: en, ru, zh, text, qa, train, validation.

    Where no word tells the language all are taken, else running text for training. So "" is all of that in three
    languages, and "en,zh,qa" the questions to train on in two.

    Raises:
        InputError: there is no such word.
    """
    given, known = set(filter(None, words.split(","))), (*TOLD, "text", "qa", "train", "validation")
    if unknown := sorted(given.difference(known)):
        raise InputError(f"the embedded phrase book has no {', '.join(unknown)}; it has {', '.join(known)}")
    languages = given.intersection(TOLD) or set(TOLD)
    kinds = given & {"text", "qa"} or {"text"}
    splits = given & {"train", "validation"} or {"train"}
    return [phrase.text for phrase in _told_once()
            if phrase.language in languages and phrase.kind in kinds and phrase.split in splits]


def write_phrasebook(out: Path, seed: int = 1) -> dict[str, Path]:
    """Write `phrases(seed)` into the folder `out` as JSON lines {"text", "language"}, one file a kind and split.

    Returns the paths by name: "text" and "qa" (training), "validation_text" and "validation_qa". The folder is made
    when missing; files of these names in it are replaced.

    Raises:
        OSError: the folder cannot be made or written.
    """
    out.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict[str, str]]] = {"text": [], "qa": [], "validation_text": [], "validation_qa": []}
    for phrase in phrases(seed):
        name = phrase.kind if phrase.split == "train" else f"validation_{phrase.kind}"
        rows[name].append({"text": phrase.text, "language": phrase.language})
    paths = {name: out / f"{name}.jsonl" for name in rows}
    for name, path in paths.items():
        write_atomic(path, to_lines(rows[name]))
    return paths
