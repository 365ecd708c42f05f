"""What a study found: rows of every arm, seed and measure, and a table with intervals over seeds against one reference."""

import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glyphlm.outputs import read_lines, to_lines, write_atomic
from glyphlm.progress import say
from glyphlm.report import write_report
from glyphlm.runfolder import read_summary
from glyphlm.stats import Z_95, Z_POWER_80, over_seeds
from glyphlm.studyplan import Model, Values
from glyphlm.workflow import Stage, finished, reason

RESULTS, TABLE, REPORT = "results.jsonl", "results.md", "report.html"
VALIDATION = "bits per byte, validation"
COSTS = ("tokens", "values trained", "petaFLOP", "seconds")  # of training
BESIDE = ("subject", "low", "high", "interval", "items", "chance", "majority")  # what is kept of a result
DASH = "–"
Row = dict[str, Any]
Seeds = dict[int, float]  # seed -> value


@dataclass(frozen=True)
class Choice:
    """The values that an arm goes on with (None: all of its trainings failed), and what each that was tried reached."""

    values: Values | None
    tried: tuple[tuple[Values, float | None], ...] = ()


def measured(models: Sequence[Model], done: set[str]) -> list[Row]:
    """One row an arm, seed and measure of what is done."""
    rows = []
    for model in models:
        if model.stage in done:
            found = [*_of_training(read_summary(model.run)), *(_of_evaluation(model.rows) if model.asked in done else ())]
            rows += [{"arm": model.arm, "seed": model.seed, "run": str(model.run), **row} for row in found]
    return rows


def _of_training(summary: dict[str, Any]) -> Iterator[Row]:
    cost = summary.get("cost") or {}
    found = {
        VALIDATION: summary["bits_per_byte"]["validation"],
        "tokens": summary["tokens"],
        "values trained": summary["parameters"]["trained"],
        "petaFLOP": cost.get("flops_total", 0) / 1e15,
        "seconds": summary.get("seconds", 0),
    }
    return ({"measure": name, "value": value} for name, value in found.items() if value is not None)


def _of_evaluation(path: Path) -> Iterator[Row]:
    for row in read_lines(path):
        told = [row["task"], row.get("scoring"), str(row.get("metric", "")).replace("_", " "), row.get("subject")]
        name = f"{' '.join(filter(None, told))}, {row['source']}"
        yield {"measure": name, "value": row["value"], **{key: row[key] for key in BESIDE if row.get(key) is not None}}
        if row.get("letter_mass") is not None and not row.get("subject"):
            yield {"measure": f"{row['task']} letter mass, {row['source']}", "value": row["letter_mass"]}


def _cells(arm: str, values: Seeds, reference: Seeds | None) -> list[str]:
    """One arm and measure: the mean over seeds, and its difference from the reference, seed by seed."""
    differences = [value - reference[seed] for seed, value in values.items() if seed in reference] if reference else []
    cells = [arm, str(len(values)), *_mean(list(values.values()), "")]
    return [*cells, *(_mean(differences, "+") if differences else (DASH, DASH)), _number(detectable(differences))]


def _mean(values: Sequence[float], sign: str) -> tuple[str, str]:
    """Mean and Student's interval."""
    interval = over_seeds(values)
    low, high = _number(interval.low, sign), _number(interval.high, sign)
    return _number(sum(values) / len(values), sign), f"{low} to {high}" if DASH not in (low, high) else DASH


def detectable(differences: Sequence[float]) -> float:
    """The smallest true difference that as many seeds would find with probability 0.8 at level 0.05, about.

    The half width of Student's interval, widened by the share that the power adds for many seeds (0.43); for 3 seeds it is
    9% above the exact value, for 10 seeds 2%. One seed finds nothing.
    """
    if len(differences) < 2:
        return math.inf
    interval = over_seeds(differences)
    return (interval.high - interval.low) / 2 * (1 + Z_POWER_80 / Z_95)


def write_results(
    title: str,
    reference: str | None,
    choices: dict[str, Choice],
    models: Sequence[Model],
    stages: Sequence[Stage],
    out: Path,
) -> Path:
    """Write results.jsonl, results.md and report.html of what is done into `out`; the path of results.md."""
    done = finished(stages, out)
    rows = measured(models, done)
    write_atomic(out / RESULTS, to_lines(rows))
    runs = [model.run for model in models if model.stage in done]
    if runs:
        write_report(runs, out / REPORT, title, [shlex.join(stage.command) for stage in stages])
    sections = [f"# {title}\n", *_missing(choices, models, stages, done, out), *_tables(rows, models, reference),
                *_chosen(choices), *_commands(stages)]
    write_atomic(out / TABLE, "\n".join(sections))
    say(f"{out / TABLE}: {len(runs)} of {len(models)} models are made")
    return out / TABLE


def _tables(rows: Sequence[Row], models: Sequence[Model], reference: str | None) -> Iterator[str]:
    """A table a measure, its arms in the order of the study, and one of all costs."""
    reference = reference or (models[0].arm if models else "")
    table: dict[str, dict[str, Seeds]] = {}
    for row in rows:
        if row.get("subject"):
            continue  # of MMLU there are 57; they are in results.jsonl
        table.setdefault(row["measure"], {}).setdefault(row["arm"], {})[row["seed"]] = row["value"]
    costs = {name: table.pop(name) for name in COSTS if name in table}
    yield (f"Means over seeds with Student's 95% interval; differences from `{reference}` are paired by seed, with the "
           "interval of their mean and the smallest difference that so many seeds would find (4 times of 5, at level "
           "0.05). One seed has no interval.\n")
    for measure, arms in table.items():
        against = arms.get(reference, {})
        cells = [_cells(arm, values, None if arm == reference else against) for arm, values in arms.items()]
        yield f"## {measure}\n\n{_table(('arm', 'seeds', 'mean', '95%', f'minus {reference}', '95%', 'would find'), cells)}"
    arms = dict.fromkeys(row["arm"] for row in rows)
    cells = [[arm, *(f"{sum(found[arm].values()) / len(found[arm]):,.4g}" for found in costs.values())] for arm in arms]
    yield f"## Cost of one training, mean over seeds\n\n{_table(('arm', *costs), cells)}"


def _missing(
    choices: dict[str, Choice], models: Sequence[Model], stages: Sequence[Stage], done: set[str], out: Path
) -> Iterator[str]:
    """What could not be made, and why: stages that failed, or that wait for one that did."""
    failed = [stage for stage in stages if stage.name not in done and done.issuperset(stage.needs)]
    rows = [(stage.name, reason(out, stage.name), shlex.join(stage.command)) for stage in failed]
    lost = [arm for arm, choice in choices.items() if choice.values is None]
    lost += [f"{model.arm} {model.seed}" for model in models if model.stage not in done]
    if rows:
        yield f"## Missing\n\n{_table(('stage that failed', 'its last line', 'command'), rows)}"
        yield f"Not trained: {', '.join(lost) or 'nothing'}.\n"


def _chosen(choices: dict[str, Choice]) -> Iterator[str]:
    if any(choice.tried for choice in choices.values()):
        rows = [(arm, _told(values), _number(bits) if bits is not None else "failed", "chosen" * (values == choice.values))
                for arm, choice in choices.items() for values, bits in choice.tried]
        yield f"## Tuned with the first seed\n\n{_table(('arm', 'values', VALIDATION, ''), rows)}"


def _commands(stages: Sequence[Stage]) -> Iterator[str]:
    yield "## Commands\n\n```\n" + "".join(f"{shlex.join(stage.command)}\n" for stage in stages) + "```\n"


def _told(values: Values) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def _number(value: float, sign: str = "") -> str:
    return f"{value:{sign}.4f}" if math.isfinite(value) else DASH
