"""Subjects from CLDR: names in English, Russian and Chinese and facts about them (package babel, no network)."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cache, partial
from typing import Literal

from babel import Locale, dates, languages, lists, numbers, units
from babel.core import get_global, parse_locale

LOCALES = {"en": Locale("en"), "ru": Locale("ru"), "zh": Locale("zh", script="Hans")}
TODAY = date(2025, 1, 1)  # fixed: currencies change, and the text must not depend on the day it is made
MEASURES = {"area", "duration", "energy", "frequency", "length", "mass", "volume"}  # of everyday units
ARTICLE = re.compile(r"^(United|Netherlands|Philip|Bahamas|Maldives|Comoros|Gambia|Vatican)|Islands|Territor|Republic")

Width = Literal["wide", "abbreviated"]  # of the name of a month or weekday
Names = dict[str, str]  # language -> how CLDR writes something in that language


@dataclass(frozen=True)
class Subject:
    """An entity with a name in the three languages and its CLDR facts by relation, in each language."""

    kind: str
    code: str
    names: Names
    facts: Mapping[str, Names | None]  # None: CLDR has no such fact


def _each(write: Callable[[Locale], str]) -> Names:
    """The result of `write` in each language, with CLDR's no-break spaces replaced by plain ones."""
    return {language: re.sub(r"\s", " ", write(locale)) for language, locale in LOCALES.items()}


def _same(value: str | int) -> Names:
    return dict.fromkeys(LOCALES, str(value))


@cache
def _known(table: str) -> list[str]:
    """The codes in `table`, such as "territories", that have a name in all three languages."""
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
    facts = {"former": _currency(former["currency"]) if former else None}
    if len(now) == 1:
        facts |= {"currency": _currency(now[0]["currency"]), "since": _same(now[0]["from"].year)}
    return facts


def _territories() -> Iterator[Subject]:
    for code in _places():
        official = _listed("languages", list(languages.get_official_languages(code)), 4)
        facts = {"code": _same(code), "official": official} | _money(code)
        yield Subject("territory", code, _names("territories", code), facts)


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
        facts = {"territory": _listed("territories", [home], 1), "currency": _money(home).get("currency")}
        yield Subject("city", zone, _each(partial(_city, zone)), facts)


@cache
def _scripts() -> dict[str, str]:
    """Language -> its usual script, for the languages that are official in some whole country or region."""
    likely = get_global("likely_subtags")
    official = {code for place in _places() for code in languages.get_official_languages(place, de_facto=True)}
    scripts = {code: parse_locale(likely[code])[2] for code in _known("languages") if code in official & likely.keys()}
    return {code: script for code, script in scripts.items() if script}


def _languages() -> Iterator[Subject]:
    for code, script in _scripts().items():
        places = [place for place in _places() if code in get_global("territory_languages")[place]]
        written, used = _listed("scripts", [script], 1), _listed("territories", places, 4)
        facts = {"code": _same(code), "script": written, "places": used}
        yield Subject("language", code, _names("languages", code), facts)


def _writings() -> Iterator[Subject]:
    for code in sorted(set(_scripts().values()) & set(_known("scripts"))):
        users = [language for language, script in _scripts().items() if script == code][:3]
        facts = {"code": _same(code), "users": _listed("languages", users, 3)}
        yield Subject("script", code, _names("scripts", code), facts)


def _currencies() -> Iterator[Subject]:
    users: dict[str, list[str]] = {}
    for place in _places():
        for code in numbers.get_territory_currencies(place, TODAY, TODAY):
            users.setdefault(code, []).append(place)
    for code in sorted(users):
        price = {at: f"5{'' if at == 'zh' else ' '}{name}" for at, name in _currency(code, 5).items()}
        facts = {"code": _same(code), "price": price, "places": _listed("territories", users[code], 4)}
        yield Subject("currency", code, _currency(code), facts)


def _amount(unit: str, count: int, length: Literal["short", "long"] = "long") -> Names:
    """Such as "2 kilometers"; CLDR often has only the short form in Chinese, which is a word there."""

    def write(at: Locale) -> str:
        text = units.format_unit(count, unit, length, locale=at)
        return units.format_unit(count, unit, "short", locale=at) if unit in text else text

    return _each(write)


def _units() -> Iterator[Subject]:
    for unit in _known("unit_display_names"):
        if unit.split("-")[0] in MEASURES and not re.search("-(per|person|imperial|metric|solar)", unit):
            facts = {"double": _amount(unit, 2), "fivefold": _amount(unit, 5), "short": _amount(unit, 1, "short")}
            yield Subject("unit", unit, _amount(unit, 1), facts)


def _compact(number: int) -> Names:
    """Such as "20 thousand"; the short form is the long one in Chinese."""

    def write(at: Locale) -> str:
        length = "short" if at.language == "zh" else "long"
        return numbers.format_compact_decimal(number, format_type=length, locale=at)

    return _each(write)


def _digits(number: int) -> Names:
    return _each(lambda at: numbers.format_decimal(number, locale=at))


def _numbers() -> Iterator[Subject]:
    """One leading digit: CLDR's compact form rounds, and these it writes exactly."""
    for number in (lead * 10**power for lead in range(1, 10) for power in range(4, 11)):
        facts = {"digits": _digits(number), "tenfold": _compact(10 * number)}
        yield Subject("number", str(number), _compact(number), facts)


def _cycle(
    kind: str, size: int, name: Callable[[int], Names], short: Callable[[int], Names | None] = lambda _: None
) -> Iterator[Subject]:
    """Subjects 1 to `size`, the last followed by the first: months, weekdays, days of the year."""
    for number in range(1, size + 1):
        facts = {"number": _same(number), "next": name(number % size + 1), "short": short(number)}
        yield Subject(kind, str(number), name(number), facts)


def _calendar() -> Iterator[Subject]:
    def month(number: int, width: Width = "wide") -> Names:
        return _each(lambda at: dates.get_month_names(width, "stand-alone", locale=at)[number])

    def weekday(number: int, width: Width = "wide") -> Names:
        return _each(lambda at: dates.get_day_names(width, "stand-alone", locale=at)[number - 1])

    def day(number: int) -> Names:
        return _each(lambda at: dates.format_skeleton("MMMMd", TODAY + timedelta(number - 1), locale=at))

    yield from _cycle("month", 12, month, lambda n: month(n, "abbreviated"))
    yield from _cycle("weekday", 7, weekday, lambda n: weekday(n, "abbreviated"))
    yield from (found for found in _cycle("date", 365, day) if int(found.code) % 7 == 1)


@cache
def subjects() -> tuple[Subject, ...]:
    """All subjects of the phrase book, in a fixed order."""
    kinds = (_territories, _cities, _languages, _writings, _currencies, _units, _numbers, _calendar)
    return tuple(subject for kind in kinds for subject in kind())


def language_name(code: str) -> str:
    """The English name of a language code such as en, zh or pt-BR; of an unknown one the code itself."""
    return LOCALES["en"].languages.get(code.replace("-", "_"), code)
