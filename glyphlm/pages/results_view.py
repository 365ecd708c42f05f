"""Evaluation results in the report: tables, MMLU by subject, fusions beside their experts, depths, paired differences.

Results are in the same line of a table only if they are of the same items, scored in the same way.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from glyphlm.base.errors import InputError
from glyphlm.base.progress import say
from glyphlm.base.records import to_json
from glyphlm.evaluation.item_log import Log, compare_items, gives, log_name, model_logs, read_log
from glyphlm.evaluation.rows import BITS_PER_BYTE, PERCENT, ComparisonRow, ResultRow
from glyphlm.evaluation.stats import against_chance, holm
from glyphlm.evaluation.text import published_line, shown
from glyphlm.pages.growth_view import Points, by_depth
from glyphlm.pages.run_data import Run, find_run

LEVEL = 0.05
WHOLE = "all subjects"
SIGNS = {1: "▲", -1: "▼", 0: "≈"}  # of the values of `sign`


@dataclass(frozen=True)
class Line:
    """A line of a table: the items and their scoring; `inputs` distinguishes contents of files and settings."""

    task: str
    protocol: str
    scoring: str
    subject: str
    metric: str
    source: str
    items: int | None
    bytes: int | None
    drawn: str
    inputs: str

    @classmethod
    def of(cls, row: ResultRow) -> "Line":
        """The line of a result."""
        made_from = row.made_from or {}
        settings = {key: value for key, value in made_from.get("settings", {}).items() if key != "precision"}
        inputs = to_json([sorted(made_from.get("files", {}).values()), settings])
        drawn = f"drawn by seed {settings.get('seed')}" if settings.get("limit") else ""
        what = (row.task, row.protocol, row.scoring, row.subject, row.metric, row.source)
        return cls(*what, row.count, row.bytes, drawn, inputs)

    @classmethod
    def compared(cls, row: ComparisonRow) -> "Line":
        """The line of a comparison."""
        return cls(row.task, row.protocol, row.scoring, row.subject, row.metric, row.source, row.count, None, "", "")

    @property
    def name(self) -> str:
        """In a few words, such as "squad greedy f1"."""
        if self.metric == BITS_PER_BYTE:
            return short(self.source)
        how = "sampled" if self.protocol == "sampled" else self.scoring
        metric = "" if self.metric == "accuracy" else self.metric.replace("_", " ")
        return " ".join(filter(None, (self.task, how, metric)))


Lines = dict[Line, dict[str, ResultRow]]  # label of a run -> row


class Cell(NamedTuple):
    """A formatted value with its `sign`, interval and notes."""

    value: str
    sign: int | None
    notes: list[str]


class SubjectMap(NamedTuple):
    """Accuracy by subject [S] and run [R], NaN if missing; `signs_SR` is 0 if it does not differ from chance.

    `tested` are the runs whose number of items is known; it is not for published results.
    """

    line: Line
    subjects: list[str]
    names: list[str]
    tested: list[str]
    values_SR: NDArray
    signs_SR: NDArray


class Fused(NamedTuple):
    """A fused run, the experts among the runs, and the paths of the others."""

    run: Run
    experts: list[Run]
    missing: list[str]


class Bars(NamedTuple):
    """Values and intervals (run -> group), and chance levels (group), in one unit."""

    values: dict[str, dict[str, float]]
    spans: dict[str, dict[str, tuple[float, float]]]
    levels: dict[str, float]


def short(source: str) -> str:
    """The last two parts of a path."""
    return str(PurePosixPath(*PurePosixPath(source).parts[-2:])) if "/" in source else source


def result_lines(runs: Sequence[Run]) -> Lines:
    """The results of the runs, bits per byte first; the last row of a run counts."""
    lines: Lines = {}
    rows = [(run.label, row) for run in runs for row in run.results]
    for label, row in sorted(rows, key=lambda found: found[1].metric != BITS_PER_BYTE):
        lines.setdefault(Line.of(row), {})[label] = row
    return lines


def table(lines: Lines, protocol: str) -> Lines:
    """The lines of questions asked by a protocol; the subjects of MMLU have a map of their own."""
    return {line: rows for line, rows in lines.items() if line.metric != BITS_PER_BYTE
            and line.protocol == protocol and not (line.task == "mmlu" and line.subject)}


def published_rows(line: Line, published: Sequence[ResultRow]) -> dict[str, ResultRow]:
    """Published model -> its result in this line."""
    names = ("task", "scoring", "subject", "metric")
    return {row.run or "": row for row in published if all(getattr(row, name) == getattr(line, name) for name in names)}


def cell(row: ResultRow) -> Cell:
    """The cell of a result; in the sampled protocol in the published form, with the interval over items as a note."""
    low, high = (shown(row.metric, end).rstrip("%") for end in row.items_ends)
    value, notes = shown(row.metric, row.value), [f"[{low}, {high}]"]
    if row.sigma is not None:
        value, _, sigma = published_line("", row).partition(": ")[2].rpartition(" ")
        notes = [sigma] + notes * (row.items_low is not None)
        notes += [] if row.letter_mass is None else [f"letter mass {row.letter_mass:.1%}"]
    cut = row.cut or 0
    notes += [f"{cut:,} cut: another task"] if row.many_cut else [f"{cut:,} cut"] if cut else []
    return Cell(value, sign(row), notes + ([f"{row.unknown:,} <unk>"] if row.unknown else []))


def sign(row: ResultRow) -> int | None:
    """1 if the interval over items is above chance and the majority level, -1 if it is below chance, else 0; None if chance
    or the interval is unknown, or too many prompts were truncated.
    """
    if row.chance is None or (row.sigma is not None and row.items_low is None) or row.many_cut:
        return None
    low, high = row.items_ends
    return int(low > max(row.chance, row.majority or 0)) - int(high < row.chance)


def labels(lines: Lines, runs: Sequence[Run] = ()) -> list[str]:
    """The runs and published models with a result in these lines, in the order of `runs`."""
    names = dict.fromkeys([run.label for run in runs] + [name for rows in lines.values() for name in rows])
    return [name for name in names if any(name in rows for rows in lines.values())]


def intervals(lines: Lines) -> dict[str, list[str]]:
    """Method of the interval over items -> the metrics with it."""
    found: dict[str, list[str]] = {}
    for line, rows in lines.items():
        for row in rows.values():
            if name := row.items_interval or row.interval:
                found.setdefault(name, []).append(line.metric.replace("_", " "))
    return {name: list(dict.fromkeys(metrics)) for name, metrics in found.items()}


def subject_maps(lines: Lines, published: Sequence[ResultRow] = ()) -> list[SubjectMap]:
    """A map per scoring of MMLU, its first row all subjects together; published models join the sampled protocol."""
    wholes = [line for line in lines if line.task == "mmlu" and not line.subject]
    found = ((line, _subjects(line, lines, published)) for line in wholes)
    return [_subject_map(line, subjects) for line, subjects in found if len(subjects) > 1]


def _subjects(
    whole: Line, lines: Lines, published: Sequence[ResultRow]
) -> dict[str, dict[str, ResultRow]]:
    """Subject -> run -> result, scored like the whole; published models follow the runs."""
    same = ("task", "protocol", "scoring", "metric", "source", "inputs")
    published = published if whole.protocol == "sampled" else ()
    found = {line.subject: rows | published_rows(line, published) for line, rows in lines.items()
             if all(getattr(line, name) == getattr(whole, name) for name in same)}
    return {subject: found[subject] for subject in sorted(found)}  # "", the whole, comes first


def _subject_map(line: Line, subjects: Mapping[str, dict[str, ResultRow]]) -> SubjectMap:
    names = list(dict.fromkeys(name for rows in subjects.values() for name in rows))
    signs = [_surviving({subject: rows[name] for subject, rows in subjects.items() if name in rows}) for name in names]
    values_SR = np.array([[rows[name].value if name in rows else math.nan for name in names] for rows in subjects.values()])
    signs_SR = np.array([[of_run.get(subject, 0) for of_run in signs] for subject in subjects])
    tested = [name for name in names if any(rows[name].items for rows in subjects.values() if name in rows)]
    shown_names = [subject.replace("_", " ") or WHOLE for subject in subjects]
    return SubjectMap(line, shown_names, names, tested, values_SR, signs_SR)


def surviving(found: SubjectMap) -> list[tuple[str, list[str], list[str]]]:
    """(name, subjects above chance, subjects below) of the tested runs."""
    signs = {name: list(zip(found.subjects[1:], found.signs_SR[1:, column])) for column, name in enumerate(found.names)}
    return [(name, [subject for subject, sign in signs[name] if sign == 1],
             [subject for subject, sign in signs[name] if sign == -1]) for name in signs if name in found.tested]


def _surviving(rows: Mapping[str, ResultRow]) -> dict[str, int]:
    """Subject -> 1 if above chance, -1 if below, 0 if not significant after Holm's correction over the subjects.

    For the sampled protocol this is conservative: means over decoding runs vary less than single answers.
    """
    parts = {subject: (row.value, row.items, row.chance) for subject, row in rows.items()
             if subject and row.items and row.chance is not None}
    ps = holm([against_chance(round(value * items), items, chance) for value, items, chance in parts.values()])
    signs = {subject: (p < LEVEL) * (1 if value > chance else -1)
             for (subject, (value, _, chance)), p in zip(parts.items(), ps)}
    return signs | {"": sign(rows[""]) or 0} if "" in rows else signs


def fused(runs: Sequence[Run]) -> list[Fused]:
    """The fused runs with their experts."""
    found = []
    for run in runs:
        if paths := run.get("fusion", "experts"):
            experts = {path: find_run(path, run, runs) for path in paths}
            found.append(Fused(run, [expert for expert in experts.values() if expert],
                               [path for path, expert in experts.items() if expert is None]))
    return found


def side_by_side(found: Fused, lines: Lines) -> dict[str, Bars]:
    """Unit -> bars of the experts and the fused run, for the lines that it shares with an expert."""
    labels = [*(expert.label for expert in found.experts), found.run.label]
    panels: dict[str, dict[Line, dict[str, ResultRow]]] = {}
    for line, rows in lines.items():
        if not line.subject and found.run.label in rows and any(expert.label in rows for expert in found.experts):
            panels.setdefault(unit(line.metric), {})[line] = rows
    return {name: _bars(labels, panel) for name, panel in panels.items()}


def _bars(labels: Sequence[str], panel: Lines) -> Bars:
    groups = dict(zip(names_of(panel).values(), panel.items()))
    values: dict[str, dict[str, float]] = {label: {} for label in labels}
    spans: dict[str, dict[str, tuple[float, float]]] = {label: {} for label in labels}
    for label in labels:
        for group, (_, rows) in groups.items():
            value, *span = _in_units(rows[label]) if label in rows else [math.nan] * 3
            values[label][group], spans[label][group] = value, (span[0], span[1])
    levels = {group: in_unit(line.metric, chance) for group, (line, rows) in groups.items()
              if (chance := level(rows, "chance")) is not None}
    return Bars(values, spans, levels)


def level(rows: Mapping[str, ResultRow], name: str) -> float | None:
    """The chance or majority level, which depends only on the items."""
    return next((value for row in rows.values() if (value := getattr(row, name)) is not None), None)


def unit(metric: str) -> str:
    """The unit of a metric: percent, points or bits_per_byte."""
    return "percent" if metric in PERCENT else BITS_PER_BYTE if metric == BITS_PER_BYTE else "points"


def in_unit(metric: str, value: float) -> float:
    """A value in its unit."""
    return 100 * value if metric in PERCENT else value


def _in_units(row: ResultRow) -> tuple[float, float, float]:
    """The value of a row and the ends of its interval over items, in their unit."""
    low, high = row.items_ends
    return in_unit(row.metric, row.value), in_unit(row.metric, low), in_unit(row.metric, high)


def names_of(lines: Iterable[Line]) -> dict[Line, str]:
    """A short name for each line, with the source if it is not unique."""
    lines = list(lines)
    count = Counter(line.name for line in lines)
    return {line: line.name if count[line.name] == 1 else f"{line.name} {short(line.source)}" for line in lines}


def scores_by_depth(runs: Sequence[Run], line: Line, rows: Mapping[str, ResultRow]) -> Points:
    """A line by depth, in its unit; intervals of single runs are over items. Empty if all runs have the same depth."""
    points = by_depth(runs, unit(line.metric), {label: _in_units(row) for label, row in rows.items()})
    return points if len({point["depth"] for found in points.values() for point in found}) > 1 else {}


def differences(runs: Sequence[Run], logs: Path) -> list[ComparisonRow]:
    """Comparisons of each run with the first on the same items, if there are several items; `a` and `b` are labels.

    Args:
        logs: The folder of glyphlm eval --log-items.

    Raises:
        InputError: the folder does not exist, or a log is damaged.
    """
    if not logs.is_dir():
        raise InputError(f"{logs} is not a folder; give the one that glyphlm eval --log-items has filled")
    first, *others = runs
    kept = {run.label: _logs(run, logs) for run in runs}
    found = []
    for name, (path, source) in kept[first.label].items():
        log = read_log(path)
        theirs = [(run, read_log(kept[run.label][name][0])) for run in others if name in kept[run.label]]
        if len(log) > 1 and theirs and _belongs(log, first, path):
            found += [replace(row, a=first.label, b=run.label, source=source) for run, other in theirs
                      if _belongs(other, run, kept[run.label][name][0]) for row in compare_items(log, other)]
    return found


def _logs(run: Run, logs: Path) -> dict[str, tuple[Path, str]]:
    """File name of a log (the same for the same items and settings) -> the run's log, and the source of the items."""
    found = {}
    for row in run.results:
        folder = model_logs(logs, row.made_from["model"]) if row.made_from else None
        name = log_name(row.task, row.made_from) if row.made_from else ""
        if folder and (folder / name).is_file():
            found[name] = folder / name, row.source
    return found


def _belongs(log: Log, run: Run, path: Path) -> bool:
    """Whether a log reproduces the results of its run."""
    rows = [row for row in run.results if row.made_from and log_name(row.task, row.made_from) == path.name]
    if not gives(log, rows):
        say(f"{run.label} is not compared by {path}: the log gives other results than its results.jsonl; run glyphlm eval "
            "again with --log-items")
        return False
    return True
