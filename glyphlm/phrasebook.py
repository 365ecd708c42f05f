"""The embedded corpus: a phrase book in English, Russian and Chinese told from the tables of CLDR (package babel).

It needs no network. Some of its facts are held out in one wording and told in another, so that they can be learned.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cache, partial
from pathlib import Path

from babel import Locale, dates, languages, lists, numbers, units
from babel.core import get_global, parse_locale

from glyphlm.outputs import write_atomic

LOCALES = {"en": Locale("en"), "ru": Locale("ru"), "zh": Locale("zh", script="Hans")}
TODAY = date(2025, 1, 1)  # fixed: currencies change, and the text must not depend on the day it is made
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
MEASURES = {"area", "duration", "energy", "frequency", "length", "mass", "volume"}  # of everyday units
ARTICLE = re.compile(r"^(United|Netherlands|Philip|Bahamas|Maldives|Comoros|Gambia|Vatican)|Islands|Territor|Republic")
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

Names = dict[str, str]  # language -> how CLDR writes something in that language


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


@dataclass(frozen=True)
class Subject:
    """Something with a name in the three languages and, by relation, what CLDR says of it in each language."""

    kind: str
    code: str
    names: Names
    says: dict[str, Names | None]  # None: CLDR has no such fact


Document = tuple[Phrase, tuple[Claim, ...]]


def _each(write: Callable[[Locale], str]) -> Names:
    """What `write` gives in each language, with plain spaces for CLDR's no-break ones."""
    return {language: re.sub(r"\s", " ", write(locale)) for language, locale in LOCALES.items()}


def _same(value: str | int) -> Names:
    return dict.fromkeys(LOCALES, str(value))


@cache
def _known(table: str) -> list[str]:
    """The codes that all three languages name in `table`, such as "territories"."""
    return sorted(set.intersection(*(set(getattr(locale, table)) for locale in LOCALES.values())))


def _called(table: str, code: str, locale: Locale) -> str:
    """The name of `code` inside an English sentence has its article: "the United States"."""
    name = getattr(locale, table)[code]
    return f"the {name}" if locale.language == "en" and table == "territories" and ARTICLE.search(name) else name


def _listed(table: str, codes: list[str], most: int) -> Names | None:
    """The names of `codes` as one list such as "A, B, and C"; None when there are none, too many, or one unnamed."""
    if not 0 < len(codes) <= most or not set(codes) <= set(_known(table)):
        return None
    return _each(lambda at: lists.format_list([_called(table, code, at) for code in codes], locale=at))


def _names(table: str, code: str) -> Names:
    return _each(lambda at: getattr(at, table)[code])


def _currency(code: str, count: int = 1) -> Names:
    return _each(lambda at: numbers.get_currency_name(code, count=count, locale=at))


def _money(territory: str) -> dict[str, Names | None]:
    """The present currency with its first year, and the one before it: the last that ended."""
    past = {"start_date": date(1800, 1, 1), "end_date": TODAY, "include_details": True}
    found = numbers.get_territory_currencies(territory, **past)
    now = [one for one in found if one["to"] is None]
    ended = [one for one in found if one["to"] and one["currency"] in _known("currencies")]
    former = max(ended, key=lambda one: one["to"], default=None)
    says = {"former": _currency(former["currency"]) if former else None}
    if len(now) == 1:
        says |= {"currency": _currency(now[0]["currency"]), "since": _same(now[0]["from"].year)}
    return says


def _territories() -> Iterator[Subject]:
    for code in _places():
        official = _listed("languages", list(languages.get_official_languages(code)), 4)
        says = {"code": _same(code), "official": official} | _money(code)
        yield Subject("territory", code, _names("territories", code), says)


def _places() -> list[str]:
    """Countries and regions: the territories of which CLDR knows the languages, without the unknown one."""
    return [code for code in _known("territories") if code in get_global("territory_languages") and code != "ZZ"]


def _city(zone: str, locale: Locale) -> str:
    """English spells out only the cities that differ from the zone's own name, such as Europe/Berlin."""
    return locale.time_zones.get(zone, {}).get("city") or zone.split("/")[-1].replace("_", " ")


def _zones() -> list[str]:
    """Time zones named after a city: CLDR has a Russian and a Chinese name, and it is no territory's name."""
    named = [zone for zone in sorted(get_global("zone_territories")) if _is_city(zone)]
    return [zone for zone in named if get_global("zone_territories")[zone] in _places()]


def _is_city(zone: str) -> bool:
    """In the Americas and on the oceans most zones are named after small towns and islands."""
    named = all("city" in LOCALES[language].time_zones.get(zone, {}) for language in ("ru", "zh"))
    old_world = zone.startswith(("Africa/", "Asia/", "Europe/"))
    return named and old_world and not any(_city(zone, at) in at.territories.values() for at in LOCALES.values())


def _cities() -> Iterator[Subject]:
    for zone in _zones():
        home = get_global("zone_territories")[zone]
        says = {"territory": _listed("territories", [home], 1), "currency": _money(home).get("currency")}
        yield Subject("city", zone, _each(partial(_city, zone)), says)


@cache
def _scripts() -> dict[str, str]:
    """Language -> its usual script, for the languages that are official in some whole country or region."""
    likely = get_global("likely_subtags")
    official = {code for place in _places() for code in languages.get_official_languages(place, de_facto=True)}
    return {code: parse_locale(likely[code])[2] for code in _known("languages") if code in official & likely.keys()}


def _languages() -> Iterator[Subject]:
    for code, script in _scripts().items():
        places = [place for place in _places() if code in get_global("territory_languages")[place]]
        written, used = _listed("scripts", [script], 1), _listed("territories", places, 4)
        says = {"code": _same(code), "script": written, "places": used}
        yield Subject("language", code, _names("languages", code), says)


def _writings() -> Iterator[Subject]:
    for code in sorted(set(_scripts().values()) & set(_known("scripts"))):
        users = [language for language, script in _scripts().items() if script == code][:3]
        says = {"code": _same(code), "users": _listed("languages", users, 3)}
        yield Subject("script", code, _names("scripts", code), says)


def _currencies() -> Iterator[Subject]:
    users: dict[str, list[str]] = {}
    for place in _places():
        for code in numbers.get_territory_currencies(place, TODAY, TODAY):
            users.setdefault(code, []).append(place)
    for code in sorted(users):
        price = {at: f"5{'' if at == 'zh' else ' '}{name}" for at, name in _currency(code, 5).items()}
        says = {"code": _same(code), "price": price, "places": _listed("territories", users[code], 4)}
        yield Subject("currency", code, _currency(code), says)


def _amount(unit: str, count: int, length: str = "long") -> Names:
    """Such as "2 kilometers"; CLDR often has only the short form in Chinese, which is a word there."""

    def write(at: Locale) -> str:
        text = units.format_unit(count, unit, length, locale=at)
        return units.format_unit(count, unit, "short", locale=at) if unit in text else text

    return _each(write)


def _units() -> Iterator[Subject]:
    for unit in _known("unit_display_names"):
        if unit.split("-")[0] in MEASURES and not re.search("-(per|person|imperial|metric|solar)", unit):
            says = {"double": _amount(unit, 2), "fivefold": _amount(unit, 5), "short": _amount(unit, 1, "short")}
            yield Subject("unit", unit, _amount(unit, 1), says)


def _compact(number: int) -> Names:
    """Such as "20 thousand"; the short form is the long one in Chinese."""

    def write(at: Locale) -> str:
        length = "short" if at.language == "zh" else "long"
        return numbers.format_compact_decimal(number, format_type=length, locale=at)

    return _each(write)


def _digits(number: int) -> Names:
    return _each(lambda at: numbers.format_decimal(number, locale=at))


def _numbers() -> Iterator[Subject]:
    """One leading digit: CLDR's compact form rounds, and of these it says exactly what they are."""
    for number in (lead * 10**power for lead in range(1, 10) for power in range(4, 11)):
        says = {"digits": _digits(number), "tenfold": _compact(10 * number)}
        yield Subject("number", str(number), _compact(number), says)


def _cycle(
    kind: str, size: int, name: Callable[[int], Names], short: Callable[[int], Names | None] = lambda _: None
) -> Iterator[Subject]:
    """Subjects 1 to `size`, the last followed by the first: months, weekdays, days of the year."""
    for number in range(1, size + 1):
        says = {"number": _same(number), "next": name(number % size + 1), "short": short(number)}
        yield Subject(kind, str(number), name(number), says)


def _calendar() -> Iterator[Subject]:
    def month(number: int, width: str = "wide") -> Names:
        return _each(lambda at: dates.get_month_names(width, "stand-alone", locale=at)[number])

    def weekday(number: int, width: str = "wide") -> Names:
        return _each(lambda at: dates.get_day_names(width, "stand-alone", locale=at)[number - 1])

    def day(number: int) -> Names:
        return _each(lambda at: dates.format_skeleton("MMMMd", TODAY + timedelta(number - 1), locale=at))

    yield from _cycle("month", 12, month, lambda n: month(n, "abbreviated"))
    yield from _cycle("weekday", 7, weekday, lambda n: weekday(n, "abbreviated"))
    yield from (found for found in _cycle("date", 365, day) if int(found.code) % 7 == 1)


@cache
def subjects() -> tuple[Subject, ...]:
    """Everything the phrase book speaks of, in a fixed order."""
    kinds = (_territories, _cities, _languages, _writings, _currencies, _units, _numbers, _calendar)
    return tuple(subject for kind in kinds for subject in kind())


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


def write_phrasebook(out: Path, seed: int = 1) -> dict[str, Path]:
    """Write `phrases(seed)` into the folder `out` as JSON lines {"text", "language"}, one file a kind and split.

    Returns the paths by name: "text" and "qa" (training), "validation_text" and "validation_qa". The folder is made
    when missing; files of these names in it are replaced.

    Raises:
        OSError: the folder cannot be made or written.
    """
    out.mkdir(parents=True, exist_ok=True)
    lines: dict[str, list[str]] = {"text": [], "qa": [], "validation_text": [], "validation_qa": []}
    for phrase in phrases(seed):
        name = phrase.kind if phrase.split == "train" else f"validation_{phrase.kind}"
        lines[name].append(json.dumps({"text": phrase.text, "language": phrase.language}, ensure_ascii=False) + "\n")
    paths = {name: out / f"{name}.jsonl" for name in lines}
    for name, path in paths.items():
        write_atomic(path, "".join(lines[name]))
    return paths
