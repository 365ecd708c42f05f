"""Allowed values of the fields of settings dataclasses; each dataclass checks itself on construction."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from glyphlm.base.errors import InputError


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`.

    Args:
        whole: Only integers.
        above: Exclude `low` itself.
        below: Exclude `high` itself.
    """

    low: float
    high: float
    whole: bool = False
    above: bool = False
    below: bool = False

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return False
        if not self.low <= value <= self.high:  # nan is in no range
            return False
        return not (self.above and value == self.low or self.below and value == self.high)

    def __str__(self) -> str:
        low, high = (f"{bound:,}" if bound < 1e15 else f"{bound:g}" for bound in (self.low, self.high))
        kind = "a whole number, " if self.whole else ""
        return f"{kind}{'above' if self.above else 'at least'} {low} and {'below' if self.below else 'at most'} {high}"


def check_values(settings: Any, prefix: str, ranges: Mapping[str, Range]) -> None:
    """Check numbers against `ranges`, and Literal fields against their choices.

    Args:
        prefix: Prefix of a field's name in user input, such as "train." or "--".

    Raises:
        InputError: with the field, its value and the allowed values.
    """
    types = get_type_hints(type(settings))
    for field in fields(settings):
        value, options = getattr(settings, field.name), get_args(types[field.name])
        if (value is None and NoneType in options) or (isinstance(value, bool) and bool in options):
            continue
        if field.name in ranges and value not in ranges[field.name]:
            raise InputError(f"{prefix}{field.name} {value!r} must be {ranges[field.name]}"
                             f"{', or null' if NoneType in options else ''}")
        for word in value if isinstance(value, list) else [value]:
            if (choices := _choices(types[field.name])) and word not in choices:
                raise InputError(f"{prefix}{field.name} {word!r} must be one of {', '.join(choices)}")


def _choices(kind: Any) -> tuple[str, ...]:
    """The choices of Literal[..], also inside list[..] or in a union with None."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    return next(filter(None, map(_choices, get_args(kind))), ())
