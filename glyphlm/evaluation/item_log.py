"""Per-item logs -> results and paired comparisons. What a third party needs to score again is in the log alone.

A log is JSON lines, one an item: `task`, `protocol`, `number`, `prompt`, `subject` (of MMLU; of SQuAD HasAns or NoAns) and
- options by likelihood: `labels`, `correct` (index), `letters` and `texts` (natural log-probability of each), `choices`;
- free answers by likelihood: `answers` (all right ones; none: the passage does not tell) and `output`;
- sampled: `labels` and `correct`, or `answers`; `outputs` and `scores`, one a decoding run;
- bits per byte: `nats`, `tokens`, `bytes` of each document;
and, but for bits per byte, `cut` (the prompt lost its left end) and, with options, `letter_mass`; where the vocabulary of
the model lacks characters of the text also `unknown`, the number of its `<unk>` tokens.
"""

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glyphlm.base.errors import InputError
from glyphlm.base.records import read_json_lines, to_json
from glyphlm.evaluation import stats
from glyphlm.evaluation.answers import Corpus, squad_scores, translation_measures

Log = Sequence[dict[str, Any]]
NEEDED = {"task": (str,), "protocol": (str,)}


@dataclass(frozen=True, eq=False)
class Measured:
    """One measure of a log: what each item adds to its sums, and the value of sums; `right`: an item counts 0 or 1."""

    scoring: str
    metric: str
    sums_NS: NDArray
    value: stats.Measure = stats.ratio
    right: bool = False
    signature: str | None = None

    @property
    def over(self) -> str:
        """What is counted."""
        return "documents" if self.metric == "bits_per_byte" else "items"

    def interval(self) -> stats.Interval:
        """Over items."""
        if self.right:
            return stats.wilson(int(self.sums_NS[:, 0].sum()), len(self.sums_NS))
        return stats.bootstrap(self.sums_NS, self.value, self.over)


def measures(log: Log) -> Iterator[Measured]:
    """All measures of a log of one task and protocol."""
    first = log[0]
    if "nats" in first:
        sums = [(row["nats"] / math.log(2), row["bytes"]) for row in log]
        yield Measured("", "bits_per_byte", np.array(sums, float))
    elif "scores" in first:
        metric = "accuracy" if "labels" in first else "bleu" if "-" in first["task"] else "contains"
        yield _mean("first letter" if metric == "accuracy" else "", metric, [np.mean(row["scores"]) for row in log], False)
    elif "labels" in first:
        yield from _choices(log)
    elif "-" in first["task"]:
        yield from (_corpus(measure, log) for measure in translation_measures(first["task"].split("-")[1]))
    else:
        scores = [squad_scores(row["output"], row["answers"]) for row in log]
        yield _mean("greedy", "exact_match", [score.exact for score in scores], True)
        yield _mean("greedy", "f1", [score.f1 for score in scores], False)


def _choices(log: Log) -> Iterator[Measured]:
    yield _mean("letters", "accuracy", [np.argmax(row["letters"]) == row["correct"] for row in log], True)
    if "texts" in log[0]:
        yield _mean("texts", "accuracy", [chosen_text(row) == row["correct"] for row in log], True)


def chosen_text(row: dict[str, Any]) -> int:
    """The option with the highest log-probability a character (lm-eval's acc_norm)."""
    return int(np.argmax(np.array(row["texts"]) / [len(text) for text in row["choices"]]))


def _mean(scoring: str, metric: str, values_N: Sequence[float], right: bool) -> Measured:
    return Measured(scoring, metric, np.array([(float(value), 1.0) for value in values_N]), right=right)


def _corpus(measure: Corpus, log: Log) -> Measured:
    sums_NS = measure.sums([row["output"] for row in log], [row["answers"][0] for row in log])
    return Measured("greedy", measure.name, sums_NS, measure.score, signature=measure.signature)


def result_rows(log: Log) -> list[dict[str, Any]]:
    """The rows of results.jsonl of one log (see `evaluation`), without what the log does not know."""
    return [row for subject, part in _by_subject(log) for row in _rows_of(part, subject)]


def _by_subject(log: Log) -> Iterator[tuple[str, Log]]:
    """The whole log first, then each subject."""
    yield "", log
    for subject in sorted({row["subject"] for row in log} - {""}):
        yield subject, [row for row in log if row["subject"] == subject]


def _rows_of(log: Log, subject: str) -> Iterator[dict[str, Any]]:
    for found in measures(log):
        low, high, interval = found.interval()
        value = float(found.value(found.sums_NS.sum(0)))
        if not math.isfinite(low):  # JSON has no infinity
            low, high, interval = value, value, f"none: a single {found.over.rstrip('s')}"
        row = {"task": log[0]["task"], "protocol": log[0]["protocol"], "scoring": found.scoring, "subject": subject}
        row |= {"metric": found.metric, "value": value, "low": low, "high": high}
        row |= {"interval": interval, found.over: len(log)}
        if found.signature:
            row["signature"] = found.signature
        if "scores" in log[0]:
            row |= _over_runs(log, row)
        yield row | _levels(log) | _counts(log)


def _counts(log: Log) -> dict[str, int]:
    """Prompts that were cut, and `<unk>` in the scored text where there is any."""
    counts = {"cut": sum(entry["cut"] for entry in log)} if "cut" in log[0] else {}
    unknown = sum(entry.get("unknown", 0) for entry in log)
    return counts | ({"unknown": unknown} if unknown else {})


def _over_runs(log: Log, row: dict[str, Any]) -> dict[str, Any]:
    """The published interval, over decoding runs, in the first place; that over items beside it."""
    runs_M = np.mean([entry["scores"] for entry in log], axis=0)
    sigma, (low, high, interval) = stats.over_runs(runs_M)
    over_items = {"items_low": row["low"], "items_high": row["high"], "items_interval": row["interval"]}
    return {"low": low, "high": high, "interval": interval, "runs": len(runs_M), "sigma": sigma, **over_items}


def _levels(log: Log) -> dict[str, float]:
    """What guessing and what one constant answer would score, and the letter mass."""
    if "labels" not in log[0]:
        empty = [not row["answers"] for row in log] if log[0]["task"] == "squad" else []
        return {"majority": float(np.mean(empty))} if any(empty) else {}  # always to say that the passage does not tell
    return {
        "chance": stats.chance_level([len(row["labels"]) for row in log]),
        "majority": stats.majority_level([row["correct"] for row in log]),
        "letter_mass": float(np.mean([row["letter_mass"] for row in log])),
    }


def compare_items(log_a: Log | str | Path, log_b: Log | str | Path) -> list[dict[str, Any]]:
    """Two models on the same items, measure by measure, over all and by subject; b minus a.

    Each row has `value_a`, `value_b`, `difference`, `low`, `high`, `interval`, `test`, `p`, `p_holm` (corrected over the
    subjects of a measure; the whole stands alone), `mde` (the smallest difference found with probability 0.8) and what
    names the measure.

    Raises:
        InputError: a log cannot be read, or the two are not of the same items.
    """
    a, b = (read_log(log) if isinstance(log, str | Path) else log for log in (log_a, log_b))
    _check_same(a, b)
    rows = [row for (subject, mine), (_, theirs) in zip(_by_subject(a), _by_subject(b))
            for row in _compared(subject, mine, theirs)]
    families: dict[tuple[str, str, bool], list[dict[str, Any]]] = {}
    for row in rows:
        families.setdefault((row["scoring"], row["metric"], bool(row["subject"])), []).append(row)
    for family in families.values():
        for row, p in zip(family, stats.holm([row["p"] for row in family])):
            row["p_holm"] = p
    return rows


def _compared(subject: str, a: Log, b: Log) -> Iterator[dict[str, Any]]:
    for mine, theirs in zip(measures(a), measures(b)):
        found = stats.paired(mine.sums_NS, theirs.sums_NS, mine.value, mine.right, mine.over)
        row = {"task": a[0]["task"], "protocol": a[0]["protocol"], "scoring": mine.scoring, "subject": subject}
        row |= {"metric": mine.metric, mine.over: len(a)}
        row |= {f"value_{name}": float(m.value(m.sums_NS.sum(0))) for name, m in (("a", mine), ("b", theirs))}
        row |= {"difference": found.difference, **found.interval._asdict(), "test": found.test, "p": found.p}
        row["interval"] = row.pop("name")
        yield row | {"mde": found.mde}


def _check_same(a: Log, b: Log) -> None:
    names = [(log[0]["task"], log[0]["protocol"]) for log in (a, b)]
    if names[0] != names[1] or len(a) != len(b):
        (one, other), (many, more) = ([" ".join(name) for name in names], [f"{len(log):,} items" for log in (a, b)])
        raise InputError(f"{many} of {one} and {more} of {other} cannot be paired; give logs of the same task and protocol")
    for mine, theirs in zip(a, b):
        if mine["prompt"] != theirs["prompt"]:
            raise InputError(f"item {mine['number']} has another prompt in the other log; evaluate both on the same files, "
                             "with the same seed and limit")


def log_name(task: str, made_from: dict[str, Any]) -> str:
    """Equal for all models asked the same, and only for them."""
    asked = to_json([sorted(made_from["files"].values()), made_from["settings"]])
    return f"{task}.{hashlib.sha256(asked.encode()).hexdigest()[:8]}.jsonl"


def folder_name(run: str) -> str:
    """The folder of a model's logs."""
    return re.sub(r"[^\w.-]+", "_", run).strip("_")


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a per-item log.

    Raises:
        InputError: there is no such file, a line is damaged, or it holds none.
    """
    rows = read_json_lines(Path(path), NEEDED)
    if not rows:
        raise InputError(f"{path} does not exist or is empty; make it with: glyphlm eval ... --log-items FOLDER")
    return rows
