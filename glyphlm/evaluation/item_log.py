"""Item logs -> results and paired comparisons. The log alone is sufficient to score again.

A log is a file of JSON lines, one line per item: `task`, `protocol`, `number`, `prompt`, `subject` (of MMLU; in SQuAD HasAns
or NoAns) and
- multiple choice by likelihood: `labels`, `correct` (index), `letters` and `texts` (log-probabilities), `choices`;
- free answers by likelihood: `answers` (all references; none if the question is unanswerable) and `output`;
- sampled: `labels` and `correct`, or `answers`; `outputs` and `scores`, one per decoding run;
- bits per byte: `nats`, `tokens`, `bytes` of each document; for a single long document also `blocks`, nats and bytes of
  parts of equal size.
Entries except those of bits per byte have `cut` (the prompt was truncated on the left) and, with options, `letter_mass`;
`unknown` is the number of `<unk>` tokens, if there are any.
"""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glyphlm.base.errors import InputError
from glyphlm.base.records import read_json_lines, to_json
from glyphlm.evaluation import stats
from glyphlm.evaluation.answers import CorpusMetric, squad_scores, translation_metrics
from glyphlm.evaluation.rows import BITS_PER_BYTE, MANY_CUT, ComparisonRow, ResultRow

Log = Sequence[dict[str, Any]]
NEEDED = {"task": (str,), "protocol": (str,), "number": (int,), "prompt": (str,), "subject": (str,)}
DIGITS = 12  # of a model's digest in the name of its folder


@dataclass(frozen=True, eq=False)
class Metric:
    """A metric of a log: the summands of each item, and the statistic of their sums.

    Args:
        right: Whether each item is scored 0 or 1.
        unit: What the summands belong to: items, documents, or blocks of a document.
    """

    scoring: str
    name: str
    sums_NS: NDArray
    statistic: stats.Statistic = stats.ratio
    right: bool = False
    signature: str | None = None
    unit: str = "items"

    @property
    def value(self) -> float:
        """The value over all items."""
        return float(self.statistic(self.sums_NS.sum(0)))

    def interval(self) -> stats.Interval:
        """The interval over items; of a single item the value itself, since JSON has no infinity."""
        if self.right:
            return stats.wilson(int(self.sums_NS[:, 0].sum()), len(self.sums_NS))
        found = stats.bootstrap(self.sums_NS, self.statistic, self.unit)
        if math.isfinite(found.low):
            return found
        return stats.Interval(self.value, self.value, f"none: a single {self.unit.rstrip('s')}")


def metrics(log: Log) -> Iterator[Metric]:
    """The metrics of a log, which is of one task and protocol."""
    first = log[0]
    if "nats" in first:
        blocks = first.get("blocks", []) if len(log) == 1 else []
        nats = np.array(blocks or [(entry["nats"], entry["bytes"]) for entry in log], float)
        yield Metric("", BITS_PER_BYTE, nats / (math.log(2), 1), unit="blocks of a document" if blocks else "documents")
    elif "scores" in first:
        name = "accuracy" if "labels" in first else "bleu" if "-" in first["task"] else "contains"
        yield _mean("first letter" if name == "accuracy" else "", name, [np.mean(entry["scores"]) for entry in log], False)
    elif "labels" in first:
        yield _mean("letters", "accuracy", [np.argmax(entry["letters"]) == entry["correct"] for entry in log], True)
        if "texts" in first:
            yield _mean("texts", "accuracy", [chosen_text(entry) == entry["correct"] for entry in log], True)
    elif "-" in first["task"]:
        yield from (_corpus(metric, log) for metric in translation_metrics(first["task"].split("-")[1]))
    else:
        scores = [squad_scores(entry["output"], entry["answers"]) for entry in log]
        yield _mean("greedy", "exact_match", [score.exact for score in scores], True)
        yield _mean("greedy", "f1", [score.f1 for score in scores], False)


def chosen_text(entry: Mapping[str, Any]) -> int:
    """The option with the highest log-probability per character (lm-eval's acc_norm)."""
    return int(np.argmax(np.array(entry["texts"]) / [len(text) for text in entry["choices"]]))


def _mean(scoring: str, name: str, values_N: Sequence[Any], right: bool) -> Metric:
    return Metric(scoring, name, np.array([(float(value), 1.0) for value in values_N]), right=right)


def _corpus(metric: CorpusMetric, log: Log) -> Metric:
    sums_NS = metric.sums([entry["output"] for entry in log], [entry["answers"][0] for entry in log])
    return Metric("greedy", metric.name, sums_NS, metric.score, signature=metric.signature)


def result_rows(log: Log) -> list[ResultRow]:
    """The results of a log; source, model and settings are left for the caller to fill in."""
    return [_row(part, subject, metric) for subject, part in _by_subject(log) for metric in metrics(part)]


def _by_subject(log: Log) -> Iterator[tuple[str, Log]]:
    """The whole log (subject ""), then the entries of each subject."""
    yield "", log
    for subject in sorted({entry["subject"] for entry in log} - {""}):
        yield subject, [entry for entry in log if entry["subject"] == subject]


def _row(log: Log, subject: str, metric: Metric) -> ResultRow:
    low, high, interval = metric.interval()
    what = (log[0]["task"], log[0]["protocol"], metric.scoring, subject, metric.name)
    cut = sum(entry["cut"] for entry in log) if "cut" in log[0] else None
    unknown = sum(entry.get("unknown", 0) for entry in log) or None
    row = ResultRow(*what, metric.value, low, high, interval, signature=metric.signature, cut=cut, unknown=unknown)
    if "nats" in log[0]:
        nats, tokens, size = (sum(entry[name] for entry in log) for name in ("nats", "tokens", "bytes"))
        return replace(row, documents=len(log), bits_per_byte=metric.value, nats=nats, tokens=tokens, bytes=size)
    row = _with_levels(log, replace(row, items=len(log)))
    return _over_runs(log, row) if "scores" in log[0] else row


def _over_runs(log: Log, row: ResultRow) -> ResultRow:
    """Make the interval over decoding runs, as published, the main one; that over items moves to `items_*`."""
    runs_M = np.mean([entry["scores"] for entry in log], axis=0)
    sigma, (low, high, interval) = stats.over_runs(runs_M)
    return replace(row, low=low, high=high, interval=interval, runs=len(runs_M), sigma=sigma, items_low=row.low,
                   items_high=row.high, items_interval=row.interval)


def _with_levels(log: Log, row: ResultRow) -> ResultRow:
    """Add reference levels: uniform guessing and the best constant answer; and the mean letter mass."""
    if "labels" not in log[0]:
        empty = [not entry["answers"] for entry in log] if row.task == "squad" else []
        return replace(row, majority=float(np.mean(empty)) if any(empty) else None)  # "unanswerable"
    return replace(
        row,
        chance=float(np.mean([1 / len(entry["labels"]) for entry in log])),
        majority=Counter(entry["correct"] for entry in log).most_common(1)[0][1] / len(log),
        letter_mass=float(np.mean([entry["letter_mass"] for entry in log])),
    )


def gives(log: Log, rows: Sequence[ResultRow]) -> bool:
    """Whether the log reproduces the values of the rows."""
    values = {(row.scoring, row.metric): row.value for row in rows if not row.subject}
    return values == {(metric.scoring, metric.name): metric.value for metric in metrics(log)}


def compare_items(log_a: Log | str | Path, log_b: Log | str | Path) -> list[ComparisonRow]:
    """Compare two models on the same items: b minus a in each metric, over all items and by subject.

    Raises:
        InputError: a log cannot be read, or the two are of different items.
    """
    a, b = (read_log(log) if isinstance(log, str | Path) else log for log in (log_a, log_b))
    _check_same(a, b)
    rows = [row for (subject, of_a), (_, of_b) in zip(_by_subject(a), _by_subject(b))
            for row in _compared(subject, of_a, of_b)]
    families: dict[tuple[str, str, bool], list[int]] = {}
    for number, row in enumerate(rows):
        if row.cut <= MANY_CUT:
            families.setdefault((row.scoring, row.metric, bool(row.subject)), []).append(number)
    for family in families.values():
        for number, p in zip(family, stats.holm([rows[number].p for number in family])):
            rows[number] = replace(rows[number], p_holm=p)
    return rows


def _compared(subject: str, a: Log, b: Log) -> Iterator[ComparisonRow]:
    if ("blocks" in a[0]) != ("blocks" in b[0]):  # one log was written by an older version
        a, b = ([{name: value for name, value in entry.items() if name != "blocks"} for entry in log] for log in (a, b))
    cut = sum(bool(of_a.get("cut") or of_b.get("cut")) for of_a, of_b in zip(a, b)) / len(a)
    for of_a, of_b in zip(metrics(a), metrics(b)):
        found = stats.paired(of_a.sums_NS, of_b.sums_NS, of_a.statistic, of_a.right, of_a.unit)
        yield ComparisonRow(a[0]["task"], a[0]["protocol"], of_a.scoring, subject, of_a.name, len(a), of_a.value, of_b.value,
                            found.difference, found.interval, found.test, found.p, found.mde, cut=cut)


def _check_same(a: Log, b: Log) -> None:
    names = [(log[0]["task"], log[0]["protocol"]) for log in (a, b)]
    if names[0] != names[1] or len(a) != len(b):
        (one, other), (many, more) = ([" ".join(name) for name in names], [f"{len(log):,} items" for log in (a, b)])
        raise InputError(f"{many} of {one} and {more} of {other} cannot be paired; give logs of the same task and protocol")
    for mine, theirs in zip(a, b):
        if mine["prompt"] != theirs["prompt"]:
            raise InputError(f"item {mine['number']} has another prompt in the other log; evaluate both on the same files, "
                             "with the same seed and limit")


def log_name(task: str, made_from: Mapping[str, Any]) -> str:
    """The file name of a log: the same for all models that are evaluated on the same files with the same settings."""
    same = to_json([sorted(made_from["files"].values()), made_from["settings"]])
    return f"{task}.{hashlib.sha256(same.encode()).hexdigest()[:8]}.jsonl"


def model_logs(logs: Path, digest: str, name: str = "") -> Path | None:
    """The folder of a model's logs, NAME.DIGEST, which is found by the digest alone.

    `name` is for a new folder; without it None is returned if there is no folder.
    """
    ending = f".{digest[:DIGITS]}"
    found = next((folder for folder in sorted(logs.glob(f"*{ending}")) if folder.is_dir()), None)
    plain = re.sub(r"[^\w.-]+", "_", Path(name).name).strip("_")
    return found or (logs / f"{plain}{ending}" if name else None)


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """The entries of an item log.

    Raises:
        InputError: the file is missing or empty, or a line is damaged.
    """
    rows = read_json_lines(Path(path), NEEDED)
    if not rows:
        raise InputError(f"{path} does not exist or is empty; make it with: glyphlm eval ... --log-items FOLDER")
    return rows
