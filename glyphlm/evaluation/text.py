"""Results and comparisons as lines of text; rows of the sampled protocol in the published form."""

import math
import re
from collections.abc import Sequence
from pathlib import Path

from glyphlm.evaluation.published import published_line
from glyphlm.evaluation.rows import BITS_PER_BYTE, MANY_CUT, PERCENT, ComparisonRow, ResultRow


def result_line(row: ResultRow) -> str:
    """One result: value, interval and reference levels; for the sampled protocol the published line."""
    if row.protocol == "sampled":
        return published_line(_name(row), row)
    return f"{_name(row)} {_title(row)}: {_values(row, row.low, row.high)} ({row.interval}), {_beside(row)}"


def beside_line(row: ResultRow) -> str:
    """Details of a result that the published format does not have."""
    interval = _values(row, row.items_low, row.items_high)
    return f"{_name(row)} {_title(row)}: {interval} ({row.items_interval}), {_beside(row)}"


def result_table(rows: Sequence[ResultRow]) -> str:
    """Results as aligned columns; those of the sampled protocol, which have published lines, are left out."""
    rows = [row for row in rows if row.protocol != "sampled"]
    if not rows:
        return ""
    heads = "run", "task", "value", "95% interval", "chance", "majority", "letter mass", "items", "cut"
    lines: list[tuple[str, ...]] = [heads]
    for row in rows:
        value, low, high = (shown(row.metric, number) for number in (row.value, row.low, row.high))
        levels = ("" if one is None else f"{100 * one:.1f}%" for one in (row.chance, row.majority, row.letter_mass))
        counts = (f"{count:,}" if count else "" for count in (row.count, row.cut))
        lines.append((_name(row), _title(row), value, f"{low} to {high}", *levels, *counts))
    named = dict.fromkeys(f"{row.metric.replace('_', ' ')}: {row.interval}" for row in rows)
    return f"{aligned(lines)}\n({'; '.join(named)})"


def comparison_table(rows: Sequence[ComparisonRow]) -> str:
    """Differences of later models from the first as aligned columns."""
    lines = [("difference", "task", "value", "95% interval", "p", "test", "detectable")]
    for row in rows:
        difference, low, high = (shown(row.metric, number, "+") for number in (row.difference, *row.interval[:2]))
        p, names = f"{row.p:.2g}{_corrected(row)}", f"{Path(row.b).name} - {Path(row.a).name}"
        lines.append((names, _title(row), difference, f"{low} to {high}", p, row.test, _detectable(row)))
    named = dict.fromkeys(f"{row.metric.replace('_', ' ')}: {row.interval.name}" for row in rows)
    return f"{aligned(lines)}\n({'; '.join(named)})" if rows else ""


def published_lines(rows: Sequence[ResultRow]) -> str:
    """The published lines of the sampled protocol."""
    return "\n".join(result_line(row) for row in rows if row.protocol == "sampled")


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Cells in columns, names to the left and numbers to the right; columns that are empty below their head are left out."""
    kept = [column for column in zip(*lines) if any(column[1:])]
    sides = [">" if all(re.match(r"[-+\d]|none|not|$", cell) for cell in column[1:]) else "<" for column in kept]
    columns = [[f"{cell:{side}{max(map(len, column))}}" for cell in column] for column, side in zip(kept, sides)]
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns))


def _values(row: ResultRow, low: float | None, high: float | None) -> str:
    value, low_end, high_end = (shown(row.metric, number) for number in (row.value, low, high))
    return f"{value} [{low_end}, {high_end}]"


def comparison_line(row: ComparisonRow) -> str:
    """The difference of two models on the same items, its interval, p-value and minimum detectable effect."""
    difference, low, high = (shown(row.metric, number, "+") for number in (row.difference, *row.interval[:2]))
    return (f"{Path(row.b).name} - {Path(row.a).name} {_title(row)}: {difference} [{low}, {high}] ({row.interval.name}), "
            f"p {row.p:.2g} ({row.test}{_corrected(row)}), detectable: {_detectable(row)}")


def _corrected(row: ComparisonRow) -> str:
    """The p-value of a subject with Holm's correction; where too many prompts are cut, that nothing is judged."""
    if row.cut > MANY_CUT:
        return f", not judged: {row.cut:.0%} of the prompts are cut"
    return f", Holm {row.p_holm:.2g}" if row.subject else ""


def _detectable(row: ComparisonRow) -> str:
    if row.mde is None:
        return "not known"
    # with very few items not even all right against all wrong is significant
    return "none with so few items" if row.metric in PERCENT and row.mde > 1 else shown(row.metric, row.mde)


def shown(metric: str, value: float | None, sign: str = "") -> str:
    """Shares in percent, BLEU and chrF as they are, bits per byte with four digits; ? for unknown values."""
    if value is None or not math.isfinite(value):
        return "?"
    if metric in PERCENT:
        return f"{100 * value:{sign}.2f}%"
    return f"{value:{sign}.4f}" if metric == BITS_PER_BYTE else f"{value:{sign}.2f}"


def _name(row: ResultRow) -> str:
    return Path(row.run or "").name


def _title(row: ResultRow | ComparisonRow) -> str:
    subject = f" [{row.subject}]" if row.subject else ""
    text = Path(row.source).name if row.task == "bpb" else ""  # several texts may be scored at once
    return " ".join(filter(None, (f"{row.task}{subject}", text, row.scoring, row.metric.replace("_", " "))))


def _beside(row: ResultRow) -> str:
    """Chance, majority, letter mass; the number of items, and how many prompts were cut."""
    levels = {"chance": row.chance, "majority": row.majority, "letter mass": row.letter_mass}
    counts = {"items": row.items, "documents": row.documents, "prompts cut": row.cut, "tokens <unk>": row.unknown}
    return ", ".join([*(f"{name} {100 * value:.1f}%" for name, value in levels.items() if value is not None),
                      *(f"{value:,} {name}" for name, value in counts.items() if value)])
