"""Benchmark lines in the published form, `NAME MMLU [subject]: 21.30% ± 1.22% (σ=1.98%)`, read and written."""

import re
from dataclasses import replace
from pathlib import Path

from glyphlm.base.errors import InputError
from glyphlm.evaluation.rows import ResultRow

BLEU = "BLEU"
PUBLISHED_TASKS = {"MMLU": "mmlu", "ARC-e": "arc_easy", "ARC-c": "arc_challenge", "C-SENSE": "commonsense_qa",
                   "SQUAD": "squad", "BOOLQ": "boolq"}  # the last is ours: none of its scores were published
TITLES = {task: title for title, task in PUBLISHED_TASKS.items()}
CHANCE = {"mmlu": 0.25, "arc_easy": 0.25, "arc_challenge": 0.25, "commonsense_qa": 0.2}  # a few of ARC have 3 or 5 options
RUNS = 10
LINE = re.compile(r"(\S+) ([A-Za-z-]+)(?: \[(\S+)\])?: (-?[\d.]+)% ± ([\d.]+)% \(σ=([\d.]+)%\)")
SIZE = re.compile(r"(\S+) Total parameters:\s+([\d.]+B)")


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
        for part in filter(str.strip, re.split(r"(?<=%\))(?=\S)", line)):  # some lack the newline before another model
            if size := SIZE.fullmatch(part.strip()):
                sizes[size[1]] = size[2]
            else:
                rows.append(replace(_row(part.strip(), f"{path}:{number}"), source=path.name))
    return [replace(row, parameters=sizes.get(row.run or "")) for row in rows]


def _row(line: str, where: str) -> ResultRow:
    found = LINE.fullmatch(line)
    task = None if found is None else found[3] if found[2] == BLEU else PUBLISHED_TASKS.get(found[2])
    if found is None or task is None:
        raise InputError(f"{where}: {line[:60]!r} is not a line such as 'NAME MMLU: 21.30% ± 1.22% (σ=1.98%)'; mend it")
    percent = 1 if found[2] == BLEU else 100  # BLEU is published in hundredths everywhere
    value, half, sigma = (float(number) / percent for number in found.groups()[3:])
    metric = "bleu" if found[2] == BLEU else "contains" if task == "squad" else "accuracy"
    return ResultRow(
        task, "published", "first letter" if task in CHANCE else "", found[3] or "" if task == "mmlu" else "", metric,
        value, value - half, value + half, "mean ± 1.96 σ/√n over decoding runs", runs=RUNS, sigma=sigma,
        chance=CHANCE.get(task), run=found[1],
    )  # fmt: skip


def published_line(name: str, row: ResultRow) -> str:
    """The line of a row of the sampled protocol, or of a published one."""
    percent = 1 if row.metric == "bleu" else 100
    title = TITLES.get(row.task, BLEU if "-" in row.task else row.task.upper())
    bracket = row.task if "-" in row.task else row.subject
    high, sigma = row.value if row.high is None else row.high, row.sigma or 0.0
    value, half, sigma = (percent * part for part in (row.value, high - row.value, sigma))
    return f"{name} {title}{f' [{bracket}]' if bracket else ''}: {value:.2f}% ± {half:.2f}% (σ={sigma:.2f}%)"
