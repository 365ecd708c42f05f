"""The report: run folders -> one self-contained HTML file, whose charts are drawn by report.js."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from glyphlm.analysis.inspection import squeezed
from glyphlm.analysis.style import COLOURS, MARKERS, TITLES
from glyphlm.analysis.unseen import ROWS as UNSEEN
from glyphlm.base.errors import InputError
from glyphlm.base.names import BUILD, MADE_INPUTS, REPORT, SETTINGS, TOKENIZER
from glyphlm.base.outputs import check_file, read_build, write_atomic
from glyphlm.base.records import parse_yaml, read_json_lines
from glyphlm.evaluation.rows import BITS_PER_BYTE, PERCENT, ComparisonRow, ResultRow
from glyphlm.evaluation.text import detectable, read_published, shown
from glyphlm.pages import results_view as bench
from glyphlm.pages.curves import Chart, arms_of, depth_chart, learning_chart, stage_chart
from glyphlm.pages.growth_view import chains, controls, operations_unit, stage_rows, validation_by_depth, whole
from glyphlm.pages.render import DASH, GENERATOR, render
from glyphlm.pages.results_view import Line, differences
from glyphlm.pages.run_data import Run, finite, read_runs
from glyphlm.substrate.glyphs import LEGIBLE
from glyphlm.substrate.settings import SubstrateSettings
from glyphlm.tokenizer.tokenizer import Tokenizer

SCRIPT = "report.js"
MANY_ARMS = 8  # above it the lead names only the best, the reference and the worst
HELD_OUT = "held-out text"
# What must agree for arms to be comparable, and its key in summary.json.
CHECKS = (
    ("tokenizer", ("tokenizer", "fingerprint")),
    ("order of the training batches", ("data_order",)),
    ("initial values of the common tensors", ("init",)),
    ("number of training tokens", ("tokens",)),
    ("shape of the model", ("model",)),
    (HELD_OUT, ()),
)
ALIKE = 0.1  # shares of clipped steps that differ by more mean different effective learning rates
# Grown models and their controls differ in these: they share the number of tokens, or of operations.
BY_DESIGN = {name for name, _ in CHECKS[1:5]}
BY_SEED = {name for name, _ in CHECKS[1:3]}  # which differ from seed to seed


def write_report(
    runs: Sequence[Path],
    out: Path,
    title: str = "GlyphLM report",
    commands: Sequence[str] = (),
    published: Sequence[Path] = (),
    logs: Path | None = None,
    claims: Sequence[Mapping[str, str]] = (),
    arms: Mapping[Path, str] | None = None,
    forest: str | None = None,
    unseen: Path | None = None,
) -> Path:
    """Write the report of the run folders `runs` to the file `out`, which is returned.

    Args:
        runs: The first is the reference; paths without a finished run are skipped.
        commands: Those that preceded the trainings; each run records its own.
        published: Files of published benchmark lines.
        logs: The folder of glyphlm eval --log-items.
        claims: Verdicts of a study, column -> text.
        arms: Run folder -> its arm in a study; by default runs whose recipes differ only by the seed are an arm.
        forest: The picture of the claims as SVG.
        unseen: The folder of glyphlm probe --unseen.

    Raises:
        InputError: no run is left, a file of a run, of `published`, `logs` or `unseen` is damaged, or `out` is a folder.
    """
    out = Path(out)
    check_file(out, (GENERATOR,), REPORT)
    found = read_runs([Path(run) for run in runs])
    if arms:
        found = [replace(run, label=f"{arms[run.folder]}, seed {run.get('seed')}") for run in found]
    names = {run.label: arms[run.folder] for run in found} if arms else None
    given = [row for path in published for row in read_published(path)]
    own = dict.fromkeys(run.get("command") or f"# the command of {run.label} was not recorded" for run in found)
    values = {"title": title, "commands": [*commands, *own], "claims": claims, "forest": forest}
    values["unseen"] = _unseen(unseen) if unseen else []
    page = render("report.html.jinja", values | _values(found, given, logs, names), SCRIPT, **FILTERS)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, page)
    return out


def _values(
    runs: list[Run], published: Sequence[ResultRow], logs: Path | None, names: Mapping[str, str] | None
) -> dict[str, Any]:
    """What the template shows of the runs. `names` are their arms, if they are of a study."""
    found = chains(runs)
    grown = {chain[-1].label: whole(chain) for chain in found}
    bases = {run.label for chain in found for run in chain[:-1]}
    shown_runs = [grown.get(run.label, run) for run in runs if run.label not in bases]
    arms = arms_of(shown_runs, names and {run.label: names[run.label] for run in shown_runs})
    numbers = {run.label: number for number, group in enumerate(arms.values()) for run in group}
    numbers |= {run.label: len(arms) + place for place, run in enumerate(runs) if run.label not in numbers}
    growth, evaluation = _growth(found, runs, numbers), _evaluation(runs, published, logs, numbers)
    charts = {"learning": learning_chart(arms, {label: number for number, label in enumerate(arms)})}
    charts |= growth.get("charts", {}) | evaluation.get("charts", {})
    first, several = shown_runs[0], any(len(group) > 1 for group in arms.values())
    return {
        "runs": shown_runs, "all_runs": runs, "arms": arms, "mark": mark, "numbers": numbers,
        "checks": _checks(shown_runs, bool(found), several), "ranked": _ranked(arms), "reference": _references(arms),
        "same_text": {run.label: run.held_out is not None and run.held_out == first.held_out for run in shown_runs},
        "clipped": {run.label: run.get("clipped") for run in shown_runs if finite(run.get("clipped")) is not None},
        "grown": {chain[-1].label: chain for chain in found}, "growth": growth, "evaluation": evaluation,
        "charts": {name: chart for name, chart in charts.items() if chart},
        "sheets": _sheets(shown_runs), "samples": _samples(shown_runs), "signs": bench.SIGNS, "legible": LEGIBLE,
    }  # fmt: skip


def mark(number: int) -> tuple[str, str]:
    """CSS class of the colour, and character of the marker of arm `number`, as in report.js."""
    return f"c{number % len(COLOURS)}", MARKERS[(number + number // len(COLOURS)) % len(MARKERS)][1]


def _ranked(arms: Mapping[str, Sequence[Run]]) -> list[tuple[str, str, Sequence[Run], float]]:
    """The best arm, the first and the worst, with the means of their best values; empty if there are few arms."""
    reached = {label: [run.best["bits_per_byte"] for run in runs] for label, runs in arms.items()}
    means = {label: sum(bits) / len(bits) for label, bits in reached.items() if None not in bits}
    if len(arms) <= MANY_ARMS or not means:
        return []
    by_value = sorted(means, key=means.__getitem__)
    chosen = {"best": by_value[0], "reference": next(iter(arms)), "worst": by_value[-1]}
    return [(name, label, arms[label], means[label]) for name, label in chosen.items() if label in means]


def _references(arms: Mapping[str, Sequence[Run]]) -> dict[str, float | None]:
    """Label -> best value of the first arm, of the same seed if arms have several; None unless the held-out text agrees."""
    first, *others = arms.values()
    several = any(len(runs) > 1 for runs in arms.values())
    found: dict[str, float | None] = {run.label: None for run in first}
    for run in (run for runs in others for run in runs):
        same = next((one for one in first if not several or one.get("seed") == run.get("seed")), None)
        alike = same is not None and run.held_out is not None and run.held_out == same.held_out
        found[run.label] = same.best["bits_per_byte"] if same is not None and alike else None
    return found


def _fonts(run: Run) -> list[str]:
    """Names of the font files of a run's glyphs, if the folder of its substrate still exists."""
    recorded = parse_yaml(run.settings or "{}", run.folder / SETTINGS).get("substrate") or {}
    places = [run.folder / MADE_INPUTS / "substrate", *([Path(recorded["path"])] if recorded.get("path") else [])]
    for folder in places:
        if (folder / BUILD).is_file() and run.get("substrate", "kind") == "glyph":
            build = read_build(folder)
            return [Path(name).name for name in build.inputs if Path(name).suffix.lower() in (".otf", ".ttf", ".ttc")]
    return []


def _squeezed(run: Run) -> float | None:
    """Share of tokens whose characters are too narrow to be legible."""
    if not run.sheet or not (run.folder / TOKENIZER).is_file() or run.get("substrate", "kind") != "glyph":
        return None
    tokens = Tokenizer.load(run.folder).pictured()
    return len(squeezed(tokens, SubstrateSettings.side)) / len(tokens)


def _growth(found: Sequence[list[Run]], runs: Sequence[Run], numbers: Mapping[str, int]) -> dict[str, Any]:
    """Tables and charts of the chains `found`; empty if there are none."""
    if not found:
        return {}
    others = {chain[-1].label: controls(chain, runs) for chain in found}
    every = [*found, *([run] for runs in others.values() for run in runs)]
    points = validation_by_depth(runs)
    return {
        "tables": [(chain, stage_rows(chain) + [row for run in others[chain[-1].label] for row in stage_rows([run])])
                   for chain in found],
        "charts": {"stages": stage_chart({chain[-1].label: whole(chain).validation for chain in every}, numbers),
                   "depth": depth_chart(points) if points else None},
        "unit": operations_unit([run for chain in found for run in chain]),
    }


def _checks(runs: Sequence[Run], grown: bool, several: bool) -> list[dict[str, Any]]:
    """For each of CHECKS and the clipped steps: the values, and whether they agree (None: not recorded by every run).

    If models were `grown`, differences in BY_DESIGN are marked as intended. If arms have `several` seeds, what depends on
    the seed must agree in the runs of each seed.
    """
    checks = []
    for name, keys in CHECKS:
        values = [run.held_out if name == HELD_OUT else run.get(*keys) for run in runs]
        groups: dict[Any, list[Any]] = {}
        for run, value in zip(runs, values):
            groups.setdefault(run.get("seed") if several and name in BY_SEED else None, []).append(value)
        same = None if None in values else all(value == group[0] for group in groups.values() for value in group)
        design = grown and name in BY_DESIGN and same is False
        brief = [_brief(value) for value in values]
        if same and len(groups) > 1:
            brief = [", ".join(f"seed {seed}: {_brief(group[0])}" for seed, group in groups.items())]
        checks.append({"name": name, "same": same, "values": brief, "by_design": design})
    shares = [finite(run.get("clipped")) for run in runs]
    known = [share for share in shares if share is not None]
    if not known:  # runs of older versions
        return checks
    alike = max(known) - min(known) <= ALIKE if len(known) == len(runs) else None
    return [*checks, {"name": "share of clipped steps, nearly", "same": alike, "by_design": False,
                      "values": [None if share is None else f"{share:.0%}" for share in shares]}]


def _brief(value: Any) -> str | None:
    if isinstance(value, dict):
        return ", ".join(f"{key} {value[key]}" for key in sorted(value))
    if isinstance(value, str):
        return value[:16]  # of a digest
    return None if value is None else _format(value)


def _sheets(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Each distinct glyph sheet, with the labels of its runs, its fonts and the share of illegible tokens."""
    sheets: dict[bytes, list[Run]] = {}
    for run in runs:
        if run.sheet:
            sheets.setdefault(run.sheet, []).append(run)
    return [{"picture": picture, "labels": [run.label for run in same], "fonts": _fonts(same[0]),
             "squeezed": _squeezed(same[0])} for picture, same in sheets.items()]


def _unseen(folder: Path) -> list[dict[str, Any]]:
    """The rows of a probe of characters never seen, each with the picture of its predictions, if it has one.

    Raises:
        InputError: the folder has no such rows.
    """
    rows = read_json_lines(folder / UNSEEN)
    if not rows:
        raise InputError(f"{folder} has no rows in {UNSEEN}; name a folder made by glyphlm probe --unseen")
    pictures = [folder / f"{number}-{Path(row['run']).name}.png" for number, row in enumerate(rows, start=1)]
    return [row | {"picture": path.read_bytes() if path.is_file() else None} for row, path in zip(rows, pictures)]


def _samples(runs: Sequence[Run]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Language -> prompt -> a card per sample, in the order of the runs."""
    languages: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for run in runs:
        for row in run.samples:
            text = row["text"].removeprefix(row["prompt"])
            card = {"label": run.label, "text": text, "settings": row.get("settings")}
            languages.setdefault(str(row.get("language") or ""), {}).setdefault(row["prompt"], []).append(card)
    return languages


def _evaluation(
    runs: Sequence[Run], published: Sequence[ResultRow], logs: Path | None, numbers: Mapping[str, int]
) -> dict[str, Any]:
    """Tables and plots of the results of glyphlm eval; empty if there are none."""
    lines = bench.result_lines(runs)
    if not lines:
        return {}
    tables = {protocol: bench.table(lines, protocol) for protocol in ("likelihood", "sampled")}
    maps = bench.subject_maps(lines, published)
    depths = {f"depth-{number}": found for number, found in enumerate(_depths(runs, lines).items())}
    return {
        "bits": {line: rows for line, rows in lines.items() if line.metric == BITS_PER_BYTE},
        "tables": tables,
        "given": published,
        "published": {line: bench.published_rows(line, published) for line in tables["sampled"]},
        "maps": [(it, _plots().draw_heat(it.values_SR, it.signs_SR, it.subjects, it.names)) for it in maps],
        "depths": {name: line for name, (line, _) in depths.items()},
        "charts": {name: chart for name, (_, chart) in depths.items()},
        "fused": [(found, _bars(found, lines, numbers)) for found in bench.fused(runs)],
        "comparable": any(runs[0].label in rows and len(rows) > 1 for rows in lines.values()),
        "logs": logs,
    } | _differences(differences(runs, logs) if logs else [], numbers)


def _plots() -> Any:
    """The module that draws with matplotlib, which only the pictures of results of `glyphlm eval` need (extra `report`)."""
    from glyphlm.analysis import plots

    return plots


def _depths(runs: Sequence[Run], lines: bench.Lines) -> dict[Line, Chart]:
    """A chart by depth for each task (not its subjects) that stages of growth were evaluated on."""
    drawn = {}
    for line, rows in lines.items():
        if not line.subject and (points := bench.scores_by_depth(runs, line, rows)):
            chance = bench.level(rows, "chance")
            height = None if chance is None else bench.in_unit(line.metric, chance)
            drawn[line] = depth_chart(points, bench.unit(line.metric), height)
    return drawn


def _bars(found: bench.Fused, lines: bench.Lines, numbers: Mapping[str, int]) -> dict[str, str]:
    panels = bench.side_by_side(found, lines)
    own = [numbers[run.label] for run in (*found.experts, found.run)]
    return {name: _plots().draw_bars(bars.values, TITLES[name], bars.spans, bars.levels, own)
            for name, bars in panels.items()}


def _differences(rows: Sequence[ComparisonRow], numbers: Mapping[str, int]) -> dict[str, Any]:
    """Tables of whole tasks, a forest plot per unit, and the significant subjects of MMLU."""
    wholes: dict[Line, list[ComparisonRow]] = {}
    for row in (row for row in rows if not row.subject):
        wholes.setdefault(Line.compared(row), []).append(row)
    tables = {name: wholes[line] for line, name in bench.names_of(wholes).items()}
    forests: dict[str, list[dict[str, Any]]] = {}
    for name, row in ((name, row) for name, of_line in tables.items() for row in of_line):
        mde = None if row.mde is None or row.metric in PERCENT and row.mde > 1 else row.mde
        values = {"difference": row.difference, "low": row.interval.low, "high": row.interval.high, "mde": mde}
        scaled = {key: None if value is None else bench.in_unit(row.metric, value) for key, value in values.items()}
        forests.setdefault(bench.unit(row.metric), []).append({"name": name, "run": row.b, **scaled})
    subjects: dict[str, list[str]] = {}
    for row in rows:
        if row.subject and row.task == "mmlu":
            kept = subjects.setdefault(f"{row.b}, {row.scoring}", [])
            kept += [row.subject.replace("_", " ")] if row.p_holm < bench.LEVEL else []
    drawn = {name: _plots().draw_forest(of_unit, name, numbers) for name, of_unit in forests.items()}
    return {"differences": tables, "forests": drawn, "subjects": subjects}


def _format(value: Any, form: str = ",.0f", unit: float = 1) -> str:
    return DASH if finite(value) is None else format(value / unit, form)


def _shown(value: float | None, metric: str, sign: str = "+") -> str:
    return DASH if value is None else shown(metric, value, sign).replace("-", "−")


def _change(value: Any, reference: Any) -> str:
    """A signed difference with a typographic minus."""
    if finite(value) is None or finite(reference) is None:
        return DASH
    return f"{value - reference:+.3f}".replace("-", "−")


FILTERS = {name: getattr(bench, name) for name in ("cell", "short", "level", "labels", "intervals", "surviving")}
FILTERS |= {"number": _format, "change": _change, "shown": _shown, "detectable": detectable}
