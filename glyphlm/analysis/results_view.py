"""Rows of results.jsonl of several runs as the report shows them: tables, MMLU by subject, experts and their fusion, depths.

What a row holds is told in `evaluation`. Rows stand in one line of a table only if the same was asked in the same way.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from glyphlm.analysis.growth_view import labelled
from glyphlm.analysis.run_data import NUMBER, TEXT, Run, finite, told_run
from glyphlm.base.errors import InputError
from glyphlm.base.records import to_json
from glyphlm.evaluation.published import published_line
from glyphlm.evaluation.stats import against_chance, holm, over_seeds
from glyphlm.evaluation.text import PERCENT, shown

LEVEL = 0.05
WHOLE = "all subjects"
SIGNS = {1: "▲", -1: "▼", 0: "≈"}  # the interval lies above chance, below it, or holds it
BITS = "bits_per_byte"
NEEDED = dict.fromkeys(("protocol", "scoring", "subject", "metric", "interval"), TEXT)
NEEDED |= dict.fromkeys(("value", "low", "high"), NUMBER)
Row = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """What was asked and how it is scored; `asked` tells files of other content and other settings apart."""

    task: str
    protocol: str
    scoring: str
    subject: str
    metric: str
    source: str
    items: int | None
    bytes: int | None
    drawn: str
    asked: str

    @classmethod
    def of(cls, row: Row) -> "Line":
        """The line that a row stands in."""
        made_from = row.get("made_from", {})
        settings = {key: value for key, value in made_from.get("settings", {}).items() if key != "precision"}
        asked = to_json([sorted(made_from.get("files", {}).values()), settings])
        drawn = f"drawn by seed {settings.get('seed')}" if settings.get("limit") else ""
        names = (str(row.get(name, "")) for name in ("task", "protocol", "scoring", "subject", "metric", "source"))
        return cls(*names, row.get("items", row.get("documents")), row.get("bytes"), drawn, asked)

    @property
    def name(self) -> str:
        """In a few words, such as "squad greedy f1"."""
        if self.metric == BITS:
            return short(self.source)
        how = "sampled" if self.protocol == "sampled" else self.scoring
        metric = "" if self.metric == "accuracy" else self.metric.replace("_", " ")
        return " ".join(filter(None, (self.task, how, metric)))


class Cell(NamedTuple):
    """A value for the eye, its interval and what explains it; `sign`: see there."""

    value: str
    sign: int | None
    notes: list[str]


class SubjectMap(NamedTuple):
    """Accuracy by subject [S] and run [R], NaN where it was not measured; `signs_SR` is 0 where chance may explain it.

    `tested` are the names whose number of items is known, which of published ones it is not.
    """

    line: Line
    subjects: list[str]
    names: list[str]
    tested: list[str]
    values_SR: NDArray
    signs_SR: NDArray


class Fused(NamedTuple):
    """A fused run, its experts that are here, and those that are not."""

    run: Run
    experts: list[Run]
    missing: list[str]


class Bars(NamedTuple):
    """Run -> group -> value, and interval; group -> chance; in one unit."""

    values: dict[str, dict[str, float]]
    spans: dict[str, dict[str, tuple[float, float]]]
    levels: dict[str, float]


def short(source: str) -> str:
    """The end of a path, enough to know it by."""
    return str(PurePosixPath(*PurePosixPath(source).parts[-2:])) if "/" in source else source


def bits_lines(runs: Sequence[Run]) -> dict[Line, dict[str, Row]]:
    """Text -> label -> row of bits per byte; the last row of a run counts."""
    told = {"metric": BITS, "protocol": "likelihood"}  # of which earlier versions wrote nothing
    return _lines({run.label: [row | told for row in run.results if BITS in row] for run in runs})


def bench_lines(runs: Sequence[Run]) -> dict[Line, dict[str, Row]]:
    """Task, subject and scoring -> label -> row.

    Raises:
        InputError: a row lacks what `evaluation` writes; it is named.
    """
    return _lines({run.label: [_checked(run, row) for row in run.results if BITS not in row] for run in runs})


def _lines(rows: Mapping[str, Sequence[Row]]) -> dict[Line, dict[str, Row]]:
    lines: dict[Line, dict[str, Row]] = {}
    for label, of_run in rows.items():
        for row in of_run:
            lines.setdefault(Line.of(row), {})[label] = row
    return lines


def _checked(run: Run, row: Row) -> Row:
    for key, kinds in NEEDED.items():
        if not isinstance(row.get(key), kinds):
            raise InputError(f"{run.folder / 'results.jsonl'}: a row of {row['task']} has no valid {key!r}; delete it and "
                             "run glyphlm eval again")
    return row


def table(lines: Mapping[Line, dict[str, Row]], protocol: str) -> dict[Line, dict[str, Row]]:
    """The lines of a protocol; the subjects of MMLU have a map of their own."""
    return {line: rows for line, rows in lines.items()
            if line.protocol == protocol and not (line.task == "mmlu" and line.subject)}


def published_rows(line: Line, published: Sequence[Row]) -> dict[str, Row]:
    """Published model -> its row of the same task and scoring."""
    names = ("task", "scoring", "subject", "metric")
    return {row["run"]: row for row in published if all(row[name] == getattr(line, name) for name in names)}


def cell(row: Row) -> Cell:
    """One value; of the sampled protocol in the published form, with its interval over items beside it."""
    low, high = (shown(row["metric"], end).rstrip("%") for end in over_items(row))
    if "sigma" not in row:
        value, notes = shown(row["metric"], row["value"]), [f"[{low}, {high}]"]
    else:
        value, _, sigma = published_line("", row).partition(": ")[2].rpartition(" ")
        notes = [sigma] + [f"[{low}, {high}]"] * ("items_low" in row)
        notes += [f"letter mass {row['letter_mass']:.1%}"] if "letter_mass" in row else []
    return Cell(value, sign(row), notes + ([f"{row['cut']:,} cut"] if row.get("cut") else []))


def sign(row: Row) -> int | None:
    """1: the interval over items lies above chance, -1: below it, 0: it holds chance, None: one of the two is not known."""
    chance = finite(row.get("chance"))
    if chance is None or ("sigma" in row and "items_low" not in row):
        return None
    low, high = over_items(row)
    return int(low > chance) - int(high < chance)


def labels(lines: Mapping[Line, dict[str, Row]], runs: Sequence[Run] = ()) -> list[str]:
    """The runs, or published models, that have a row, in the order of `runs`."""
    names = dict.fromkeys([run.label for run in runs] + [name for rows in lines.values() for name in rows])
    return [name for name in names if any(name in rows for rows in lines.values())]


def intervals(lines: Mapping[Line, dict[str, Row]]) -> dict[str, list[str]]:
    """What the intervals over items are -> the metrics that have them."""
    found: dict[str, list[str]] = {}
    for line, rows in lines.items():
        for row in rows.values():
            if name := row.get("items_interval") or row.get("interval"):
                found.setdefault(name, []).append(line.metric.replace("_", " "))
    return {name: list(dict.fromkeys(metrics)) for name, metrics in found.items()}


def subject_maps(lines: Mapping[Line, dict[str, Row]], published: Sequence[Row] = ()) -> list[SubjectMap]:
    """A map a way of asking MMLU, all subjects together in its first row; published models beside the sampled protocol."""
    wholes = [line for line in lines if line.task == "mmlu" and not line.subject]
    found = ((line, _subjects(line, lines, published)) for line in wholes)
    return [_subject_map(line, subjects) for line, subjects in found if len(subjects) > 1]


def _subjects(whole: Line, lines: Mapping[Line, dict[str, Row]], published: Sequence[Row]) -> dict[str, dict[str, Row]]:
    """Subject -> run -> row, of what was asked like the whole; published models after the runs."""
    same = ("task", "protocol", "scoring", "metric", "source", "asked")
    published = published if whole.protocol == "sampled" else ()
    found = {line.subject: rows | published_rows(line, published) for line, rows in lines.items()
             if all(getattr(line, name) == getattr(whole, name) for name in same)}
    return {subject: found[subject] for subject in sorted(found)}  # "", the whole, is the first


def _subject_map(line: Line, subjects: Mapping[str, dict[str, Row]]) -> SubjectMap:
    names = list(dict.fromkeys(name for rows in subjects.values() for name in rows))
    signs = [_surviving({subject: rows[name] for subject, rows in subjects.items() if name in rows}) for name in names]
    values_SR = np.array([[rows.get(name, {}).get("value", math.nan) for name in names] for rows in subjects.values()])
    signs_SR = np.array([[of_run.get(subject, 0) for of_run in signs] for subject in subjects])
    tested = [name for name in names if any("items" in rows[name] for rows in subjects.values() if name in rows)]
    told = [subject.replace("_", " ") or WHOLE for subject in subjects]
    return SubjectMap(line, told, names, tested, values_SR, signs_SR)


def surviving(found: SubjectMap) -> list[tuple[str, list[str], list[str]]]:
    """Name, subjects above chance, subjects below, of the tested."""
    return [(name, *([subject for subject, sign in zip(found.subjects[1:], found.signs_SR[1:, column]) if sign == wanted]
                     for wanted in (1, -1))) for column, name in enumerate(found.names) if name in found.tested]


def _surviving(rows: Mapping[str, Row]) -> dict[str, int]:
    """Subject -> 1 above chance, -1 below, 0 where Holm's correction over the subjects leaves that open.

    The mean of an item over decoding runs varies less than one answer: for the sampled protocol this errs to the safe side.
    """
    parts = {subject: row for subject, row in rows.items() if subject and "items" in row and "chance" in row}
    ps = holm([against_chance(round(row["value"] * row["items"]), row["items"], row["chance"]) for row in parts.values()])
    signs = {subject: (p < LEVEL) * (1 if row["value"] > row["chance"] else -1)
             for (subject, row), p in zip(parts.items(), ps)}
    return signs | {"": sign(rows[""]) or 0} if "" in rows else signs


def fused(runs: Sequence[Run]) -> list[Fused]:
    """The fused runs, each with its experts."""
    found = []
    for run in runs:
        if paths := run.get("fusion", "experts"):
            experts = {path: told_run(path, run, runs) for path in paths}
            found.append(Fused(run, [expert for expert in experts.values() if expert],
                               [path for path, expert in experts.items() if expert is None]))
    return found


def side_by_side(found: Fused, lines: Mapping[Line, dict[str, Row]]) -> dict[str, Bars]:
    """Unit -> bars of the experts and the fused run, of the lines that it has in common with an expert."""
    labels = [*(expert.label for expert in found.experts), found.run.label]
    panels: dict[str, dict[Line, dict[str, Row]]] = {}
    for line, rows in lines.items():
        if not line.subject and found.run.label in rows and any(expert.label in rows for expert in found.experts):
            panels.setdefault(unit(line.metric), {})[line] = rows
    return {name: _bars(labels, panel) for name, panel in panels.items()}


def _bars(labels: Sequence[str], panel: Mapping[Line, dict[str, Row]]) -> Bars:
    groups = dict(zip(names_of(panel).values(), panel.items()))
    values: dict[str, dict[str, float]] = {label: {} for label in labels}
    spans: dict[str, dict[str, tuple[float, float]]] = {label: {} for label in labels}
    for label in labels:
        for group, (line, rows) in groups.items():
            row = rows.get(label)
            points = [in_unit(line.metric, value) for value in (row_value(row), *over_items(row))] if row else [math.nan] * 3
            values[label][group], spans[label][group] = points[0], (points[1], points[2])
    levels = {group: in_unit(line.metric, chance) for group, (line, rows) in groups.items()
              if (chance := level(rows, "chance")) is not None}
    return Bars(values, spans, levels)


def level(rows: Mapping[str, Row], name: str) -> float | None:
    """Chance or majority level, which are the items' and so the same for all runs."""
    return next((row[name] for row in rows.values() if name in row), None)


def unit(metric: str) -> str:
    """percent, points or bits_per_byte."""
    return "percent" if metric in PERCENT else BITS if metric == BITS else "points"


def in_unit(metric: str, value: float) -> float:
    """A value in its unit."""
    return 100 * value if metric in PERCENT else value


def names_of(lines: Iterable[Line]) -> dict[Line, str]:
    """Each line in a few words; where they are the same, with the source."""
    lines = list(lines)
    count = Counter(line.name for line in lines)
    return {line: line.name if count[line.name] == 1 else f"{line.name} {short(line.source)}" for line in lines}


def by_depth(runs: Sequence[Run], line: Line, rows: Mapping[str, Row]) -> dict[str, list[dict[str, float]]]:
    """Manner of growth, or kind of control -> depth, value (under the name of its unit), low and high; empty for one depth.

    The interval is over items for one run of a depth, over training seeds for several.
    """
    found: dict[str, dict[int, list[Row]]] = {}
    for name, run in labelled(runs):
        if run.label in rows:
            found.setdefault(name, {}).setdefault(run.get("model", "n_layer"), []).append(rows[run.label])
    several = len({depth for depths in found.values() for depth in depths}) > 1
    return {name: [_point(depth, depths[depth], line.metric) for depth in sorted(depths)]
            for name, depths in found.items() if several}


def _point(depth: int, rows: Sequence[Row], metric: str) -> dict[str, float]:
    values = [row_value(row) for row in rows]
    low, high = over_seeds(values)[:2] if len(rows) > 1 else over_items(rows[0])
    scaled = (in_unit(metric, value) for value in (float(np.mean(values)), low, high))
    return {"depth": depth, **dict(zip((unit(metric), "low", "high"), scaled))}


def row_value(row: Row) -> float:
    """Also of the rows of bits per byte that earlier versions wrote."""
    return row.get("value", row.get(BITS))


def over_items(row: Row) -> tuple[float, float]:
    """The interval over items or documents; the value itself where there is none."""
    low, high = (row.get(f"items_{end}", row.get(end, row_value(row))) for end in ("low", "high"))
    return low, high
