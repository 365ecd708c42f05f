"""Results and comparisons as text: tables, and lines in the published form, which are also read.

A published line is `NAME MMLU [subject]: 21.30% ± 1.22% (σ=1.98%)`.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from glyphlm.base.errors import InputError
from glyphlm.base.tables import aligned
from glyphlm.evaluation.rows import BITS_PER_BYTE, MANY_CUT, PERCENT, ComparisonRow, ResultRow

BLEU = "BLEU"
PUBLISHED_TASKS = {"MMLU": "mmlu", "ARC-e": "arc_easy", "ARC-c": "arc_challenge", "C-SENSE": "commonsense_qa",
                   "SQUAD": "squad", "BOOLQ": "boolq"}  # the last is ours: none of its scores were published
TITLES = {task: title for title, task in PUBLISHED_TASKS.items()}
CHANCE = {"mmlu": 0.25, "arc_easy": 0.25, "arc_challenge": 0.25, "commonsense_qa": 0.2}  # a few of ARC have 3 or 5 options
RUNS = 10
LINE = re.compile(r"(\S+) ([A-Za-z-]+)(?: \[(\S+)\])?: (-?[\d.]+)% ± ([\d.]+)% \(σ=([\d.]+)%\)")
SIZE = re.compile(r"(\S+) Total parameters:\s+([\d.]+B)")


def shown(metric: str, value: float | None, sign: str = "") -> str:
    """Shares in percent, BLEU and chrF as they are, bits per byte with four digits; ? for unknown values."""
    if value is None or not math.isfinite(value):
        return "?"
    if metric in PERCENT:
        return f"{100 * value:{sign}.2f}%"
    return f"{value:{sign}.4f}" if metric == BITS_PER_BYTE else f"{value:{sign}.2f}"


def result_table(rows: Sequence[ResultRow]) -> str:
    """Results as aligned columns, without those of the sampled protocol, which have published lines."""
    rows = [row for row in rows if row.protocol != "sampled"]
    lines: list[tuple[str, ...]] = [
        ("run", "task", "value", "95% interval", "chance", "majority", "letter mass", "items", "cut")]
    for row in rows:
        value, low, high = (shown(row.metric, number) for number in (row.value, row.low, row.high))
        levels = ("" if level is None else f"{100 * level:.1f}%" for level in (row.chance, row.majority, row.letter_mass))
        counts = (f"{count:,}" if count else "" for count in (row.count, row.cut))
        lines.append((_name(row), _title(row), value, f"{low} to {high}", *levels, *counts))
    return _with_intervals(lines, ((row.metric, row.interval) for row in rows))


def comparison_table(rows: Sequence[ComparisonRow]) -> str:
    """Differences of later models from the first as aligned columns."""
    lines = [("difference", "task", "value", "95% interval", "p", "test", "detectable")]
    for row in rows:
        difference, low, high = (shown(row.metric, number, "+") for number in (row.difference, *row.interval[:2]))
        p, names = f"{row.p:.2g}{_corrected(row)}", f"{Path(row.b).name} - {Path(row.a).name}"
        lines.append((names, _title(row), difference, f"{low} to {high}", p, row.test, detectable(row)))
    return _with_intervals(lines, ((row.metric, row.interval.name) for row in rows))


def _with_intervals(lines: Sequence[Sequence[str]], intervals: Iterable[tuple[str, str]]) -> str:
    """A table, and below it the method of the interval of each metric; nothing where there are no rows."""
    methods = dict.fromkeys(f"{metric.replace('_', ' ')}: {name}" for metric, name in intervals)
    return f"{aligned(lines)}\n({'; '.join(methods)})" if methods else ""


def _name(row: ResultRow) -> str:
    return Path(row.run or "").name


def _title(row: ResultRow | ComparisonRow) -> str:
    subject = f" [{row.subject}]" if row.subject else ""
    text = Path(row.source).name if row.task == "bpb" else ""  # several texts may be scored at once
    return " ".join(filter(None, (f"{row.task}{subject}", text, row.scoring, row.metric.replace("_", " "))))


def _corrected(row: ComparisonRow) -> str:
    """The p-value of a subject after Holm's correction, or why there is none."""
    if row.cut > MANY_CUT:
        return f", not judged: {row.cut:.0%} of the prompts are cut"
    return f", Holm {row.p_holm:.2g}" if row.subject else ""


def detectable(row: ComparisonRow) -> str:
    """The minimum detectable effect as text."""
    if row.mde is None:
        return "not known"
    # with very few items not even all right against all wrong is significant
    return "none with so few items" if row.metric in PERCENT and row.mde > 1 else shown(row.metric, row.mde)


# The published form


def published_lines(rows: Sequence[ResultRow]) -> str:
    """The published lines of the sampled protocol."""
    return "\n".join(published_line(_name(row), row) for row in rows if row.protocol == "sampled")


def published_line(name: str, row: ResultRow) -> str:
    """The line of a row of the sampled protocol, or of a published one."""
    percent = 1 if row.metric == "bleu" else 100
    title = TITLES.get(row.task, BLEU if "-" in row.task else row.task.upper())
    bracket = row.task if "-" in row.task else row.subject
    high, sigma = row.value if row.high is None else row.high, row.sigma or 0.0
    value, half, sigma = (percent * part for part in (row.value, high - row.value, sigma))
    return f"{name} {title}{f' [{bracket}]' if bracket else ''}: {value:.2f}% ± {half:.2f}% (σ={sigma:.2f}%)"


def beside_line(row: ResultRow) -> str:
    """What the published form does not have: the interval over items, reference levels, number of items, cut prompts."""
    value, low, high = (shown(row.metric, number) for number in (row.value, row.items_low, row.items_high))
    levels = {"chance": row.chance, "majority": row.majority, "letter mass": row.letter_mass}
    counts = {"items": row.items, "prompts cut": row.cut, "tokens <unk>": row.unknown}
    details = [*(f"{name} {100 * level:.1f}%" for name, level in levels.items() if level is not None),
               *(f"{count:,} {name}" for name, count in counts.items() if count)]
    return f"{_name(row)} {_title(row)}: {value} [{low}, {high}] ({row.items_interval}), {', '.join(details)}"


def read_published(path: str | Path) -> list[ResultRow]:
    """The rows of a file of published lines (protocol "published"), with `run` and, where the file has it, `parameters`.

    Raises:
        InputError: the file cannot be read, or a line has another form; it is named.
    """
    path = Path(path)
    rows: list[ResultRow] = []
    sizes: dict[str, str] = {}
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}); give a text file of published benchmark lines") from None
    for number, line in enumerate(text.split("\n"), 1):
        for part in map(str.strip, re.split(r"(?<=%\))(?=\S)", line)):  # some lack the newline before another model
            if size := SIZE.fullmatch(part):
                sizes[size[1]] = size[2]
            elif part:
                rows.append(replace(_published_row(part, f"{path}:{number}"), source=path.name))
    return [replace(row, parameters=sizes.get(row.run or "")) for row in rows]


def _published_row(line: str, where: str) -> ResultRow:
    found = LINE.fullmatch(line)
    task = None if found is None else found[3] if found[2] == BLEU else PUBLISHED_TASKS.get(found[2])
    if found is None or task is None:
        raise InputError(f"{where}: {line[:60]!r} is not a line such as 'NAME MMLU: 21.30% ± 1.22% (σ=1.98%)'; correct it")
    percent = 1 if found[2] == BLEU else 100  # BLEU is published in hundredths everywhere
    value, half, sigma = (float(number) / percent for number in found.groups()[3:])
    metric = "bleu" if found[2] == BLEU else "contains" if task == "squad" else "accuracy"
    return ResultRow(
        task, "published", "first letter" if task in CHANCE else "", found[3] or "" if task == "mmlu" else "", metric,
        value, value - half, value + half, "mean ± 1.96 σ/√n over decoding runs", runs=RUNS, sigma=sigma,
        chance=CHANCE.get(task), run=found[1],
    )  # fmt: skip
