"""Benchmark files in their original formats -> rows with file and line. Damaged records are refused, never guessed.

Every row is a dictionary, whether the file has JSON, CSV, TSV, blocks of lines or lines that belong together, and whether
it is plain or packed as .gz, .bz2, .xz or .zst.
"""

import csv
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glyphlm.base.errors import InputError
from glyphlm.base.records import SURROGATE, parse_json
from glyphlm.corpus.reading import Unpacked

KINDS = {str: "text", list: "list", dict: "object", bool: "true or false", int: "number"}


@dataclass(frozen=True)
class Row:
    """One record as the file has it; `where` is FILE:LINE, or FILE:ENTRY in a JSON file of many lines."""

    where: str
    value: Any

    def get(self, kind: type, *keys: str) -> Any:
        """The value at the nested `keys`; without keys the whole row.

        Raises:
            InputError: it is missing, or not of type `kind` (a key of KINDS).
        """
        value = self.value
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if not isinstance(value, kind):
            raise self.fault(f"no {KINDS[kind]} in {_name(keys)}")
        return value

    def text(self, *keys: str) -> str:
        """The text at `keys`, unchanged.

        Raises:
            InputError: it is missing or blank, or contains a lone surrogate.
        """
        text = self.get(str, *keys)
        if not text.strip():
            raise self.fault(f"an empty {_name(keys).removeprefix('the ')}")
        if SURROGATE.search(text):
            raise self.fault(f"half of a character pair (a lone surrogate) in {_name(keys)}")
        return text

    def rows(self, *keys: str) -> list["Row"]:
        """The entries of the list at `keys` as rows of their own."""
        place = f"{self.where}:{'.'.join(keys)}"
        return [Row(f"{place}[{number}]", value) for number, value in enumerate(self.get(list, *keys))]

    def fault(self, what: str) -> InputError:
        """The InputError for this row, to be raised by the caller."""
        return InputError(f"{self.where}: {what}; fix or remove it")


def json_lines(path: Path) -> Iterator[Row]:
    """One row per line; blank lines are skipped."""
    return (Row(where, _json(text, where)) for where, text in _lines(path) if text.strip())


def json_file(path: Path) -> Row:
    """The whole file as one row."""
    return Row(str(path), _json("".join(text for _, text in _lines(path)), str(path)))


def csv_rows(path: Path, names: Sequence[str]) -> Iterator[Row]:
    """Records of a file without a header, whose columns are `names`; a quoted field may hold line ends."""
    reader = csv.reader((text for _, text in _lines(path)), strict=True)
    while True:
        where = f"{path}:{reader.line_num + 1}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise InputError(f"{where}: not CSV ({error}); fix or remove it") from None
        if cells is None:
            return
        if cells:
            yield _columns(where, cells, names)


def tsv_rows(path: Path, names: Sequence[str]) -> Iterator[Row]:
    """One row per line, columns `names` separated by tabs; empty lines are skipped, quotation marks are ordinary text."""
    lines = ((where, text.rstrip("\r\n")) for where, text in _lines(path))
    return (_columns(where, text.split("\t"), names) for where, text in lines if text)


def aligned_rows(paths: Sequence[Path], names: Sequence[str]) -> Iterator[Row]:
    """Line n of every file together, named by `names`; the files must have the same number of lines, all non-empty."""
    for lines in itertools.zip_longest(*map(_lines, paths)):
        if None in lines:
            where = next(line[0] for line in lines if line)
            raise InputError(f"{where}: no such line in {paths[lines.index(None)]}; give files with a line for each line")
        found = (Row(where, {name: text.rstrip("\r\n")}).text(name) for name, (where, text) in zip(names, lines))
        yield Row(lines[0][0], dict(zip(names, found)))


def block_rows(path: Path, names: Sequence[str]) -> Iterator[Row]:
    """Blocks between blank lines, one line `NAME: text` for each of `names`, in this order."""
    for blank, block in itertools.groupby(_lines(path), key=lambda line: not line[1].strip()):
        if blank:
            continue
        lines = list(block)
        row = Row(lines[0][0], {name: text.removeprefix(f"{name}:").strip() for name, (_, text) in zip(names, lines)})
        if len(lines) != len(names) or not all(text.startswith(f"{name}:") for name, (_, text) in zip(names, lines)):
            raise row.fault(f"a block of {len(lines)} lines that is not {', '.join(f'{name}: ..' for name in names)}")
        yield row


def _name(keys: Sequence[str]) -> str:
    return repr(".".join(keys)) if keys else "the entry"


def _columns(where: str, cells: Sequence[str], names: Sequence[str]) -> Row:
    if len(cells) != len(names):
        raise Row(where, cells).fault(f"{len(cells)} columns, not the {len(names)} of {', '.join(names)}")
    return Row(where, dict(zip(names, cells)))


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """(FILE:LINE, the line with its end)."""
    with path.open("rb") as raw:
        for number, (where, line) in enumerate(Unpacked(str(path), raw).lines(), 1):
            yield where, _decode(line, where).removeprefix("\ufeff" if number == 1 else "")


def _json(text: str, where: str) -> Any:
    return parse_json(text, where, object, "fix or remove it", finite=False)  # an unused number may be NaN


def _decode(line: bytes, where: str) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 at byte {error.start} of the line; convert the file") from None
