"""Results and comparisons as lines for the eye; rows of the sampled protocol in the published form."""

import math
from pathlib import Path
from typing import Any

from glyphlm.evaluation.published import published_line

PERCENT = ("accuracy", "exact_match", "f1", "contains")
LEVELS = {"chance": "chance", "majority": "majority", "letter_mass": "letter mass"}
COUNTS = {"items": "items", "documents": "documents", "cut": "prompts cut"}


def result_line(row: dict[str, Any]) -> str:
    """One row of results.jsonl: value, interval and what to hold it against; of the sampled protocol the published line."""
    name = Path(row["run"]).name
    if row["protocol"] == "sampled":
        return published_line(name, row)
    value, low, high = (shown(row["metric"], row[key]) for key in ("value", "low", "high"))
    return f"{name} {_title(row)}: {value} [{low}, {high}] ({row['interval']}), {_beside(row)}"


def beside_line(row: dict[str, Any]) -> str:
    """What the published form has no place for."""
    value, low, high = (shown(row["metric"], row[key]) for key in ("value", "items_low", "items_high"))
    return f"{Path(row['run']).name} {_title(row)}: {value} [{low}, {high}] ({row['items_interval']}), {_beside(row)}"


def comparison_line(row: dict[str, Any]) -> str:
    """The difference of two models on the same items, its interval, p, and the smallest that would be found."""
    difference, low, high = (shown(row["metric"], row[key], "+") for key in ("difference", "low", "high"))
    corrected = f", Holm {row['p_holm']:.2g}" if row["subject"] else ""
    names = f"{Path(row['b']).name} - {Path(row['a']).name}"
    return (f"{names} {_title(row)}: {difference} [{low}, {high}] ({row['interval']}), "
            f"p {row['p']:.2g} ({row['test']}{corrected}), detectable: {_detectable(row)}")


def _detectable(row: dict[str, Any]) -> str:
    if row["mde"] is None:
        return "not known"
    none = row["metric"] in PERCENT and row["mde"] > 1  # so few items that not even all against none is significant
    return "none with so few items" if none else shown(row["metric"], row["mde"])


def shown(metric: str, value: float, sign: str = "") -> str:
    """Shares in percent, BLEU and chrF as they are, bits per byte with four digits."""
    if not math.isfinite(value):
        return "?"
    if metric in PERCENT:
        return f"{100 * value:{sign}.2f}%"
    return f"{value:{sign}.4f}" if metric == "bits_per_byte" else f"{value:{sign}.2f}"


def _title(row: dict[str, Any]) -> str:
    subject = f" [{row['subject']}]" if row["subject"] else ""
    text = Path(row["source"]).name if row["task"] == "bpb" else ""  # several are asked at once
    return " ".join(filter(None, (f"{row['task']}{subject}", text, row["scoring"], row["metric"].replace("_", " "))))


def _beside(row: dict[str, Any]) -> str:
    """Chance, majority, letter mass; the number of items, and how many prompts were cut."""
    levels = (f"{name} {100 * row[key]:.1f}%" for key, name in LEVELS.items() if key in row)
    return ", ".join([*levels, *(f"{row[key]:,} {name}" for key, name in COUNTS.items() if row.get(key))])
