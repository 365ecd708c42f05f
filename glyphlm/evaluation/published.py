"""Benchmark lines in the published form, `NAME MMLU [subject]: 21.30% ± 1.22% (σ=1.98%)`, read and written."""

import re
from pathlib import Path
from typing import Any

from glyphlm.base.errors import InputError

BLEU = "BLEU"
NAMES = {"MMLU": "mmlu", "ARC-e": "arc_easy", "ARC-c": "arc_challenge", "C-SENSE": "commonsense_qa", "SQUAD": "squad",
         "BOOLQ": "boolq"}  # the last is ours: nothing of it was published
CHANCE = {"mmlu": 0.25, "arc_easy": 0.25, "arc_challenge": 0.25, "commonsense_qa": 0.2}  # a few of ARC have 3 or 5 options
RUNS = 10
LINE = re.compile(r"(\S+) ([A-Za-z-]+)(?: \[(\S+)\])?: (-?[\d.]+)% ± ([\d.]+)% \(σ=([\d.]+)%\)")
SIZE = re.compile(r"(\S+) Total parameters:\s+([\d.]+B)")


def read_published(path: str | Path) -> list[dict[str, Any]]:
    """Rows as in results.jsonl (protocol "published"), with `run` and, where it is told, `parameters` such as 0.5B.

    Raises:
        InputError: the file cannot be read, or a line has another form; it is named.
    """
    path, rows, sizes = Path(path), [], {}
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}); give a text file of published benchmark lines") from None
    for number, line in enumerate(text.split("\n"), 1):
        for part in filter(str.strip, re.split(r"(?<=%\))(?=\S)", line)):  # some lack the newline before another model
            if size := SIZE.fullmatch(part.strip()):
                sizes[size[1]] = size[2]
            else:
                rows.append(_row(part.strip(), f"{path}:{number}") | {"source": path.name})
    return [row | ({"parameters": sizes[row["run"]]} if row["run"] in sizes else {}) for row in rows]


def _row(line: str, where: str) -> dict[str, Any]:
    found = LINE.fullmatch(line)
    bracket = found and found[3]
    task = bracket if found and found[2] == BLEU else NAMES.get(found[2]) if found else None
    if task is None:
        raise InputError(f"{where}: {line[:60]!r} is no line such as 'NAME MMLU: 21.30% ± 1.22% (σ=1.98%)'; mend it")
    percent = 1 if found[2] == BLEU else 100  # BLEU is told in hundredths everywhere
    value, half, sigma = (float(number) / percent for number in found.groups()[3:])
    metric = "bleu" if found[2] == BLEU else "contains" if task == "squad" else "accuracy"
    row = {"run": found[1], "task": task, "protocol": "published", "scoring": "first letter" if task in CHANCE else ""}
    row |= {"subject": bracket or "" if task == "mmlu" else "", "metric": metric, "value": value}
    row |= {"low": value - half, "high": value + half, "interval": "mean ± 1.96 σ/√n over decoding runs"}
    return row | {"runs": RUNS, "sigma": sigma} | ({"chance": CHANCE[task]} if task in CHANCE else {})


def published_line(name: str, row: dict[str, Any]) -> str:
    """The line of a row of the sampled protocol."""
    task, percent = row["task"], 1 if row["metric"] == "bleu" else 100
    shown = {value: key for key, value in NAMES.items()}.get(task, BLEU if "-" in task else task.upper())
    bracket = task if "-" in task else row["subject"]
    value, half, sigma = (percent * part for part in (row["value"], row["high"] - row["value"], row["sigma"]))
    return f"{name} {shown}{f' [{bracket}]' if bracket else ''}: {value:.2f}% ± {half:.2f}% (σ={sigma:.2f}%)"
