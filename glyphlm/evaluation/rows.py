"""Result rows (results.jsonl) and comparison rows, used from the item log to the report; their JSON keys."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from glyphlm.base.errors import InputError
from glyphlm.base.outputs import write_atomic
from glyphlm.base.records import read_json_lines, to_lines
from glyphlm.evaluation.stats import Interval

BITS_PER_BYTE = "bits_per_byte"
PERCENT = ("accuracy", "exact_match", "f1", "contains")  # metrics that are shares of 1
REQUIRED = ("task", "protocol", "scoring", "subject", "metric", "value")
MANY_CUT = 0.05  # share of truncated prompts above which a score is not comparable
CURE = "delete that line and run glyphlm eval again"


@dataclass(frozen=True)
class ResultRow:
    """One metric of one model, with its interval. Fields that are None are left out of the JSON.

    Args:
        run: The model as the user named it, in files of several models.
        protocol: likelihood, sampled, or published (rows of files of published lines).
        scoring: letters, texts, greedy, first letter, or "".
        subject: Of MMLU; of SQuAD HasAns or NoAns; "" is the whole task.
        value: Accuracies, exact match, F1 and shares are 0 to 1, BLEU and chrF 0 to 100.
        low: Lower end of the 95% interval, `interval` its method. None in bits per byte written by old versions.
        signature: sacrebleu's signature.
        runs: Decoding runs (sampled protocol), `sigma` their standard deviation; then the interval over items is in
            `items_low`, `items_high` and `items_interval`.
        chance: Accuracy of uniform guessing.
        majority: Accuracy of always giving the most frequent answer.
        letter_mass: Mean probability that the first token begins with the letter of an option.
        cut: Number of prompts truncated on the left to fit the context.
        unknown: `<unk>` tokens in the texts, where the vocabulary lacks characters.
        parameters: As a published file writes it, such as 0.5B.
        made_from: Digest of the model, digests of the task files, settings. Results with the same inputs are reused.
        others: Unknown keys, written by other versions, which are preserved.
    """

    task: str
    protocol: str
    scoring: str
    subject: str
    metric: str
    value: float
    low: float | None = None
    high: float | None = None
    interval: str = ""
    items: int | None = None
    documents: int | None = None
    signature: str | None = None
    runs: int | None = None
    sigma: float | None = None
    items_low: float | None = None
    items_high: float | None = None
    items_interval: str | None = None
    chance: float | None = None
    majority: float | None = None
    letter_mass: float | None = None
    cut: int | None = None
    unknown: int | None = None
    bits_per_byte: float | None = None
    nats: float | None = None
    tokens: int | None = None
    bytes: int | None = None
    parameters: str | None = None
    source: str = ""
    made_from: dict[str, Any] | None = None
    run: str | None = None
    others: Mapping[str, Any] = field(default_factory=dict)

    @property
    def count(self) -> int | None:
        """Number of items or documents; None for published rows."""
        return self.items if self.documents is None else self.documents

    @property
    def items_ends(self) -> tuple[float, float]:
        """The interval over items or documents; the value twice if no interval is known."""
        ends = (self.items_low, self.low), (self.items_high, self.high)
        low, high = (next((end for end in pair if end is not None), self.value) for pair in ends)
        return low, high

    @property
    def many_cut(self) -> bool:
        """Whether too many prompts were truncated for the score to be comparable."""
        return bool(self.cut and self.items and self.cut > MANY_CUT * self.items)

    @property
    def made_of(self) -> tuple[str | None, str, str, str]:
        """Run, task, protocol and source: new rows replace those of a file that agree in all four."""
        return self.run, self.task, self.protocol, self.source

    def to_json(self) -> dict[str, Any]:
        """The row as written to a file."""
        known = {name: getattr(self, name) for name in _types()}
        return {name: value for name, value in known.items() if value is not None} | dict(self.others)

    @classmethod
    def from_json(cls, row: Mapping[str, Any], where: object) -> "ResultRow":
        """Parse a row of a file; `where` is its file and line.

        Raises:
            InputError: a value is missing or of another type.
        """
        if "value" not in row and BITS_PER_BYTE in row:  # as the first versions wrote bits per byte
            row = {"protocol": "likelihood", "scoring": "", "subject": "", "metric": BITS_PER_BYTE, "interval": "",
                   "value": row[BITS_PER_BYTE], "source": "", **row}
        elif missing := [name for name in ("low", "high", "interval") if row.get(name) is None]:
            raise InputError(f"{where} is damaged (no valid {missing[0]!r}); {CURE}")
        for name, kinds in _types().items():
            if name not in row and name not in REQUIRED:
                continue
            if not isinstance(row.get(name), kinds) or isinstance(row[name], bool):
                raise InputError(f"{where} is damaged (no valid {name!r}); {CURE}")
        return cls(**{name: row[name] for name in _types() if name in row},
                   others={name: value for name, value in row.items() if name not in _types()})


@cache
def _types() -> dict[str, tuple[type, ...]]:
    """The JSON types of each key, in the order in which keys are written."""
    hints = get_type_hints(ResultRow)
    names = ["run", *(name for name in hints if name not in ("run", "others"))]
    return {name: _kinds(hints[name]) for name in names}


def _kinds(hint: Any) -> tuple[type, ...]:
    kinds = tuple(get_origin(part) or part for part in (get_args(hint) if isinstance(hint, UnionType) else (hint,)))
    return (*kinds, int) if float in kinds else kinds


def read_results(path: Path) -> list[ResultRow]:
    """The rows of a results file; empty where the file is missing.

    Raises:
        InputError: a line is damaged or not a result; file and line are named.
    """
    rows = read_json_lines(path)
    return [ResultRow.from_json(row, f"{path} line {number}") for number, row in enumerate(rows, start=1)]


def keep_results(path: Path, rows: Sequence[ResultRow]) -> None:
    """Add rows to a results file, replacing all rows of the same run, task, protocol and source."""
    new = {row.made_of for row in rows}
    kept = [row for row in read_results(path) if row.made_of not in new]
    write_atomic(path, to_lines(row.to_json() for row in [*kept, *rows]))


@dataclass(frozen=True)
class ComparisonRow:
    """Two models on the same items: b minus a in one metric.

    Args:
        mde: Minimum detectable effect at power 0.8; None if unknown.
        p_holm: `p` after Holm's correction over the subjects of the metric; the whole task is a family of its own. NaN if
            `cut` is above MANY_CUT: such a row is excluded from the family.
        cut: Share of prompts that were truncated for either model.
        a: The first model as the user named it, `b` the second; in reports their labels.
    """

    task: str
    protocol: str
    scoring: str
    subject: str
    metric: str
    count: int
    value_a: float
    value_b: float
    difference: float
    interval: Interval
    test: str
    p: float
    mde: float | None
    p_holm: float = math.nan
    a: str = ""
    b: str = ""
    source: str = ""
    cut: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The row with its interval as low, high and interval; unknown values are left out."""
        low, high, name = self.interval[:3]
        known = vars(self) | {"low": low, "high": high, "interval": name}
        return {key: value for key, value in known.items()
                if value is not None and not (isinstance(value, float) and math.isnan(value))}
