"""Results of a study: rows per arm, seed and measure; verdicts on claims; tables with intervals over seeds; the report."""

import math
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from glyphlm.analysis.plots import draw_claims, draw_gaps, draw_held_out
from glyphlm.base.names import ITEMS, METRICS, REPORT, RESULTS
from glyphlm.base.outputs import write_atomic
from glyphlm.base.progress import say
from glyphlm.base.records import read_json_lines, to_lines
from glyphlm.evaluation.item_log import log_name, metrics, model_logs, read_log
from glyphlm.evaluation.rows import ResultRow, read_results
from glyphlm.evaluation.settings import BPB
from glyphlm.evaluation.stats import over_seeds, over_seeds_and_items
from glyphlm.pages.report import write_report
from glyphlm.runs.folder import read_summary
from glyphlm.studies.claims import (
    BITS_PER_BYTE,
    CLIPPED,
    COSTS,
    LETTER_MASS,
    LEVELS,
    TO_THRESHOLD,
    Row,
    Seeds,
    by_measure,
    detectable,
    judge,
)
from glyphlm.studies.commands import Model, Values, arms_of
from glyphlm.studies.registration import registered_line
from glyphlm.studies.settings import Study
from glyphlm.studies.workflow import Command, failures, finished, reason

CLAIMS, TABLE, CURVES, FOREST, GAPS = "claims.jsonl", "results.md", "curves.svg", "claims.svg", "gaps.svg"
VALIDATION = f"{BITS_PER_BYTE}, validation"
# Fields of a result that its row keeps.
BESIDE = ("subject", "low", "high", "interval", "items", "documents", "cut", "unknown", "chance", "majority")
DASH = "–"
Logged = dict[tuple[str, int], list[tuple[int, float]]]  # arm and seed -> validations: tokens, bits per byte


@dataclass(frozen=True)
class Choice:
    """The tuned values of an arm (None if all of its tuning runs failed), and the bits per byte of all values tried."""

    values: Values | None
    tried: tuple[tuple[Values, float | None], ...] = ()


def measured(models: Sequence[Model], done: set[str]) -> list[Row]:
    """A row per arm, seed and measure of the finished models."""
    rows = []
    for model in models:
        if model.made_by in done:
            scored = _of_evaluation(model.rows) if model.rows and model.evaluated_by in done else ()
            found = [*_of_training(read_summary(model.run) or {}), *scored]
            rows += [{"arm": model.arm, "seed": model.seed, "run": str(model.run), **row} for row in found]
    return rows


def _of_training(summary: dict[str, Any]) -> Iterator[Row]:
    cost = summary.get("cost") or {}
    floor = (summary.get("unigram_bits_per_byte") or {}).get("validation")
    if (bits := summary["bits_per_byte"]["validation"]) is not None:
        yield {"measure": VALIDATION, "value": bits} | ({} if floor is None else {"unigram": floor})
    found = {
        "tokens": summary["tokens"],
        "values trained": summary["parameters"]["trained"],
        "petaFLOP": cost.get("flops_total", 0) / 1e15,
        "seconds": summary.get("seconds", 0),
        CLIPPED: summary.get("clipped"),
    }
    yield from ({"measure": name, "value": value} for name, value in found.items() if value is not None)


def _of_evaluation(path: Path) -> Iterator[Row]:
    for row in read_results(path):
        beside = {key: value for key in BESIDE if (value := getattr(row, key)) is not None}
        yield {"measure": _measure(row), "value": row.value, **beside}
        if row.letter_mass is not None and not row.subject and row.scoring != "texts":
            sampled = " sampled" if row.protocol == "sampled" else ""
            yield {"measure": f"{row.task}{sampled} {LETTER_MASS}, {row.source}", "value": row.letter_mass}


def _measure(row: ResultRow) -> str:
    name = " ".join(filter(None, (row.task, row.scoring, row.metric.replace("_", " "), row.subject)))
    return f"{name}, {row.source}"


def _document_sums(models: Sequence[Model], done: set[str], logs: Path) -> dict[tuple[str, str], dict[int, NDArray]]:
    """Arm and measure -> seed -> bits and bytes of each held-out document [N, 2], of the measures in bits per byte."""
    found: dict[tuple[str, str], dict[int, NDArray]] = {}
    for model in models:
        for row in read_results(model.rows) if model.rows and model.evaluated_by in done else ():
            if row.task != BPB or not row.made_from:
                continue
            folder = model_logs(logs, row.made_from["model"])
            log = folder and folder / log_name(row.task, row.made_from)
            if log and log.is_file():
                found.setdefault((model.arm, _measure(row)), {})[model.seed] = next(metrics(read_log(log))).sums_NS
    return found


def _over_documents(row: Row, sums: dict[tuple[str, str], dict[int, NDArray]]) -> Row:
    """The interval of the row's difference over seeds and documents; None where the models have not the same of both."""
    mine, theirs = (sums.get((row[side], row["measure"]), {}) for side in ("arm", "against"))
    seeds = [seed for seed in mine if seed in theirs]
    low = high = None
    if len({len(found[seed]) for found in (mine, theirs) for seed in seeds}) == 1:
        interval = over_seeds_and_items([mine[seed] for seed in seeds], [theirs[seed] for seed in seeds])
        low, high = interval[:2] if math.isfinite(interval.low) else (None, None)
    return {"documents_low": low, "documents_high": high}


def _cells(arm: str, values: Seeds, reference: Seeds | None) -> list[str]:
    """The cells of an arm in the table of a measure: its mean, and its paired difference from the reference."""
    differences = [value - reference[seed] for seed, value in values.items() if seed in reference] if reference else []
    cells = [arm, str(len(values)), *_mean(list(values.values()), "")]
    return [*cells, *(_mean(differences, "+") if differences else (DASH, DASH)), _number(detectable(differences))]


def _mean(values: Sequence[float], sign: str) -> tuple[str, str]:
    """Mean and Student's interval."""
    interval = over_seeds(values)
    return _number(sum(values) / len(values), sign), _ends(interval.low, interval.high, sign)


def _ends(low: float | None, high: float | None, sign: str) -> str:
    ends = _number(low, sign), _number(high, sign)
    return DASH if DASH in ends else " to ".join(ends)


def write_results(
    settings: Study,
    choices: dict[str, Choice],
    models: Sequence[Model],
    commands: Sequence[Command],
    out: Path,
    command: str,
    registered: Row | None = None,
) -> Path:
    """Write the results of the finished commands to `out`: results.md (returned), rows, verdicts, plots, and the report.

    `command` repeats the study; `registered` is the row of its claims in registered.jsonl.
    """
    done, registered = finished(commands, out), registered or {}
    logged = _logged(models, done)
    rows = [*measured(models, done), *_to_threshold(logged)]
    beside = {"registered": registered["digest"]} if registered else {}
    sums = _document_sums(models, done, out / ITEMS)
    verdicts = [row | _over_documents(row, sums) | beside | {"command": f"{command} {_only(settings, row)}"}
                for row in judge(settings.claims, rows)]
    write_atomic(out / RESULTS, to_lines(rows))
    write_atomic(out / CLAIMS, to_lines(verdicts))
    runs, claims = [model.run for model in models if model.made_by in done], [_claim(row, settings) for row in verdicts]
    typed = [shlex.join(each.arguments) for each in commands]
    curves = _curves(logged)
    forest = draw_claims(verdicts) if any(row["low"] is not None for row in verdicts) else None
    gaps = gaps_of(rows, settings.compare or next(iter(settings.arms)))
    for name, drawing in ((CURVES, curves), (FOREST, forest), (GAPS, gaps and gaps[0])):
        if drawing:
            write_atomic(out / name, drawing)
    if runs:
        arms = {model.run: model.arm for model in models}
        write_report(runs, out / REPORT, settings.title, typed, claims=claims, arms=arms, forest=forest)
    figure = [f"![{VALIDATION}, over training tokens, means over seeds]({CURVES})\n"] if curves else []
    drawn = [f"![Differences of the claims with their intervals and margins]({FOREST})\n"] if forest else []
    noted = [registered_line(registered)] if registered else []
    noted += [f"Margins: {settings.margin_reason}"] if settings.margin_reason else []
    sections = [f"# {settings.title}\n", *_claims(claims, verdicts, command, noted), *drawn,
                *_missing(choices, models, commands, done, out), *figure, *gaps[1:],
                *_tables(rows, models, settings.compare), *_chosen(choices),
                "\n".join(("## Commands\n\n```", *typed, "```\n"))]
    write_atomic(out / TABLE, "\n".join(sections))
    say(f"{out / TABLE}: {len(runs)} of {len(models)} models are made")
    return out / TABLE


def _claims(
    claims: Sequence[dict[str, str]], verdicts: Sequence[Row], command: str, noted: Sequence[str]
) -> Iterator[str]:
    if claims:
        counts = ", ".join(f"{count} {verdict}" for verdict, count in Counter(row["verdict"] for row in verdicts).items())
        yield " ".join((
            f"## Claims\n\n{counts}. Differences are paired by seed, with Student's 95% interval of their mean; beside it "
            "the interval with the variance of all arms (pooled), and a bootstrap over seeds and held-out documents, "
            "which is too narrow for few seeds and shows what the choice of documents adds. Supported: the claim holds "
            "everywhere in the interval (at least as good: worse by no more than the margin); equivalent: moreover better "
            "by no more than the margin; not supported: nowhere in it; not decidable: in a part, or not after Holm's "
            "correction for all rows of the same source.",
            *noted, f"A row is made again by `{command}` with its last column.\n",
        ))
        yield _table(tuple(claims[0]), [tuple(claim.values()) for claim in claims])


def claims_table(verdicts: Sequence[Row]) -> str:
    """Verdicts as a table of Markdown."""
    claims = [_claim(row) for row in verdicts]
    return _table(tuple(claims[0]), [tuple(claim.values()) for claim in claims])


def _claim(row: Row, settings: Study | None = None) -> dict[str, str]:
    """A verdict as column -> text; with `settings` also the option that makes it again."""
    again = {"made again by": _only(settings, row)} if settings else {}
    documents = {"documents too": _ends(row["documents_low"], row["documents_high"], "+")} if "documents_low" in row else {}
    return {
        "claim": row["claim"],
        "source": row["source"] or DASH,
        "difference of": f"{row['arm']} − {row['against']}",
        "measure": row["measure"],
        "difference": _number(row["difference"], "+"),
        "95%": _ends(row["low"], row["high"], "+"),
        "pooled 95%": _ends(row["pooled_low"], row["pooled_high"], "+"),
        **documents,
        "p (Holm)": DASH if row["p_holm"] is None else f"{row['p_holm']:.2g}",
        "margin": f"{row['margin']:g}" if row["kind"] == "at_least" else row["kind"],
        "verdict": ": ".join(filter(None, (row["verdict"], row["reason"]))),
    } | again


def _only(settings: Study, row: Row) -> str:
    """The option of `glyphlm study` for the two models of a verdict alone."""
    return f"--only {' '.join(arms_of(settings, (row['arm'], row['against'])))}"


def _tables(rows: Sequence[Row], models: Sequence[Model], reference: str | None) -> Iterator[str]:
    """A table per measure, with the arms in the order of the study, and one of the costs."""
    reference = reference or (models[0].arm if models else "")
    table = by_measure(rows)
    costs = {name: table.pop(name).values for name in COSTS if name in table}
    yield (f"Means over seeds with Student's 95% interval; differences from `{reference}` are paired by seed, with the "
           "interval of their mean and the smallest difference that so many seeds would find (4 times of 5, at level "
           "0.05). One seed has no interval.\n")
    for measure, found in table.items():
        against = found.values.get(reference, {})
        cells = [_cells(arm, values, None if arm == reference else against) for arm, values in found.values.items()]
        yield f"## {measure}\n"
        if levels := ", ".join(f"{name} {found.levels[name]:.4f}" for name in LEVELS if name in found.levels):
            yield f"{levels.capitalize()}.\n"
        yield _table(("arm", "seeds", "mean", "95%", f"minus {reference}", "95%", "would find"), cells)
    arms = dict.fromkeys(row["arm"] for row in rows)
    cells = [[arm, *(f"{sum(found[arm].values()) / len(found[arm]):,.4g}" if arm in found else DASH
                     for found in costs.values())] for arm in arms]
    yield f"## Cost of one training, mean over seeds\n\n{_table(('arm', *costs), cells)}"


def _logged(models: Sequence[Model], done: set[str]) -> Logged:
    """The validations of each finished model, without stages of growth."""
    logged: Logged = {}
    for model in models:
        if model.made_by in done and "." not in model.arm and (model.run / METRICS).is_file():
            rows = read_json_lines(model.run / METRICS, finite=False)
            logged[model.arm, model.seed] = [(row["tokens"], row["bits_per_byte"]) for row in rows
                                             if row["split"] == "validation" and row["bits_per_byte"] is not None]
    return logged


def _to_threshold(logged: Logged) -> Iterator[Row]:
    """The tokens after which each training reached the bits per byte that all of them reach, linearly interpolated.

    Trainings with a single validation, such as untrained models, are left out.
    """
    curves = {key: curve for key, curve in logged.items() if len(curve) > 1}
    if not curves:
        return
    threshold = max(min(bits for _, bits in curve) for curve in curves.values())
    for (arm, seed), curve in curves.items():
        place = next(place for place, (_, bits) in enumerate(curve) if bits <= threshold)
        tokens, bits = curve[place]
        if place:
            before, worse = curve[place - 1]
            tokens = before + (tokens - before) * (worse - threshold) / (worse - bits)
        yield {"arm": arm, "seed": seed, "measure": TO_THRESHOLD, "value": tokens, "threshold": threshold}


def _curves(logged: Logged) -> str | None:
    """Held-out bits per byte over tokens as SVG, means over seeds."""
    curves: dict[str, dict[int, list[float]]] = {}
    for (arm, _), curve in logged.items():
        for tokens, bits in curve:
            curves.setdefault(arm, {}).setdefault(tokens, []).append(bits)
    means = {arm: [(tokens, sum(bits) / len(bits)) for tokens, bits in sorted(found.items())]
             for arm, found in curves.items()}
    return draw_held_out(means) if means else None


def gaps_of(rows: Sequence[Row], reference: str) -> tuple[str, str] | tuple[()]:
    """Loss behind the reference over the share of its operations: a drawing and a section; empty without grown arms.

    A grown arm is its last stage, with the operations of all. Read is the first text that is evaluated, or the validation.
    """
    table, reference = by_measure(rows), _grown(reference)
    measure = next((name for name in table if name.startswith("bpb")), VALIDATION)
    if measure not in table or not any(_grown(row["arm"]) != row["arm"] for row in rows):
        return ()
    reached = {_grown(arm): values for arm, values in table[measure].values.items()}
    spent: dict[str, Seeds] = {arm: {} for arm in reached}
    for arm, values in table["petaFLOP"].values.items():
        whole = spent[_grown(arm)]
        whole.update({seed: whole.get(seed, 0.0) + value for seed, value in values.items()})
    gaps = {}
    for arm, values in reached.items():
        if seeds := [seed for seed in values if seed in reached.get(reference, {})]:
            share = sum(spent[arm][seed] / spent[reference][seed] for seed in seeds) / len(seeds)
            behind = [values[seed] - reached[reference][seed] for seed in seeds]
            gaps[arm] = (share, sum(behind) / len(seeds), *over_seeds(behind)[:2])
    if not gaps:
        return ()
    line = sorted((arm for arm in gaps if arm.startswith(reference)), key=lambda arm: gaps[arm][0])
    cells = [(arm, f"{share:.1%}", _number(gap, "+"), _ends(low, high, "+"))
             for arm, (share, gap, low, high) in gaps.items()]
    heads = ("arm", f"operations of {reference}", f"{measure}, minus {reference}", "95%")
    figure = f"![Bits per byte behind {reference} over the share of its operations]({GAPS})"
    return draw_gaps(gaps, line, reference), f"## Loss against operations\n\n{_table(heads, cells)}\n{figure}\n"


def _grown(arm: str) -> str:
    """The arm of a stage; another name as it is."""
    return arm.partition(".stage-")[0]


def _missing(
    choices: dict[str, Choice], models: Sequence[Model], commands: Sequence[Command], done: set[str], out: Path
) -> Iterator[str]:
    """Commands that failed, with their last lines, and the models that are missing."""
    rows = [(each.name, reason(out, each.name), shlex.join(each.arguments)) for each in failures(commands, out)]
    lost = [arm for arm, choice in choices.items() if choice.values is None]
    lost += [f"{model.arm} {model.seed}" for model in models if model.made_by not in done]
    if rows:
        yield f"## Missing\n\n{_table(('command that failed', 'its last line', 'command'), rows)}"
        yield f"Not trained: {', '.join(lost) or 'nothing'}.\n"


def _chosen(choices: dict[str, Choice]) -> Iterator[str]:
    if any(choice.tried for choice in choices.values()):
        rows = [(arm, ", ".join(f"{name} {value}" for name, value in values.items()),
                 "failed" if bits is None else _number(bits), "chosen" * (values == choice.values))
                for arm, choice in choices.items() for values, bits in choice.tried]
        yield f"## Tuned with seeds that are not judged\n\n{_table(('arm', 'values', VALIDATION, ''), rows)}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def _number(value: float | None, sign: str = "") -> str:
    return f"{value:{sign}.4f}" if value is not None and math.isfinite(value) else DASH
