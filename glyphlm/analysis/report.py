"""The report: run folders in, one HTML file out that needs neither network nor scripts."""

import base64
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from glyphlm.analysis import plots
from glyphlm.analysis import results_view as bench
from glyphlm.analysis.growth_view import chains, controls, depth_points, operations_unit, stage_rows, whole
from glyphlm.analysis.results_view import Line, differences
from glyphlm.analysis.run_data import Run, finite, read_runs
from glyphlm.base.names import REPORT
from glyphlm.base.outputs import check_file, write_atomic
from glyphlm.evaluation.published import read_published
from glyphlm.evaluation.rows import ComparisonRow, ResultRow
from glyphlm.evaluation.text import shown

MOST_CURVES = 4  # chains in one picture of curves; of more the depths are shown alone
DASH = "–"
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # of every page since the first
# What must agree before two arms may be compared, and where a summary holds it.
CHECKS = (
    ("tokenizer", ("tokenizer", "fingerprint")),
    ("order of the training batches", ("data_order",)),
    ("initial values of the common tensors", ("init",)),
    ("number of training tokens", ("tokens",)),
    ("shape of the model", ("model",)),
)
ALIKE = 0.1  # shares of clipped steps that differ by more make arms train at different effective learning rates
# Neither half a character pair nor a control character may stand in HTML.
UNWRITABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def write_report(
    runs: Sequence[Path],
    out: Path,
    title: str = "GlyphLM report",
    commands: Sequence[str] = (),
    published: Sequence[Path] = (),
    logs: Path | None = None,
    claims: Sequence[Mapping[str, str]] = (),
    curves: str | None = None,
) -> Path:
    """Write the report of the run folders `runs` to the file `out` and return `out`.

    The first run is the one the others are measured against; a path without a finished run is skipped.
    `commands` are what came before the trainings; each run records its own. `published` are files of published benchmark
    lines, `logs` is the folder that glyphlm eval --log-items has filled. Of a study `claims` are verdicts, column -> text,
    and `curves` the SVG of its means over seeds, which stands in place of the curves and sentences of single runs.

    Raises:
        InputError: no run is left, a file of a run, of `published` or of `logs` is damaged, or `out` is a folder.
    """
    out = Path(out)
    check_file(out, (POLICY,), REPORT)
    found = read_runs([Path(run) for run in runs])
    page = _page(found, title, commands, [row for path in published for row in read_published(path)], logs, claims, curves)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, page)
    return out


def _page(
    runs: list[Run],
    title: str,
    commands: Sequence[str],
    published: Sequence[ResultRow],
    logs: Path | None,
    claims: Sequence[Mapping[str, str]],
    curves: str | None,
) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        finalize=_writable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=_format, change=_change, image=_image, scaled=_scaled, share=_share, shown=_shown)
    names = ("cell", "short", "level", "labels", "intervals", "surviving")
    environment.filters.update({name: getattr(bench, name) for name in names})
    template = environment.get_template("report.html.jinja")
    found = chains(runs)
    grown = {chain[-1].label: whole(chain) for chain in found}
    bases = {run.label for chain in found for run in chain[:-1]}
    shown = [grown.get(run.label, run) for run in runs if run.label not in bases]
    arms = [plots.Curves(run.label, run.train, run.validation, run.floor) for run in shown]
    views = {"checks": _checks(shown), "sheets": _sheets(shown), "samples": _samples(shown)}
    labels = dict.fromkeys(run.label for run in (*shown, *runs))
    numbers = {label: number for number, label in enumerate(labels)}  # an arm keeps its colour in every plot
    views |= {"plots": {} if curves else plots.draw(arms), "curves": curves}
    views |= {"growth": _growth(found, runs), "mark": plots.mark, "numbers": numbers}
    views |= {"evaluation": _evaluation(runs, published, logs, numbers), "signs": bench.SIGNS}
    commanded = (run.get("command") or f"# the command of {run.label} was not recorded" for run in runs)
    commands = [*commands, *dict.fromkeys(commanded)]
    return template.render(title=title, runs=shown, all_runs=runs, commands=commands, claims=claims, **views)


def _growth(found: Sequence[list[Run]], runs: Sequence[Run]) -> dict[str, Any] | None:
    """Tables, curves and depths of the chains that were `found`; None where nothing was grown."""
    if not found:
        return None
    others = {chain[-1].label: controls(chain, runs) for chain in found}
    every = [*found, *([run] for runs in others.values() for run in runs)]
    curves = {chain[-1].label: whole(chain).validation for chain in every}
    points, has_curves = depth_points(runs), any(curves.values()) and len(found) <= MOST_CURVES
    return {
        "tables": [(chain, stage_rows(chain) + [row for run in others[chain[-1].label] for row in stage_rows([run])])
                   for chain in found],
        "over": {x: plots.draw_held_out(curves, x) for x in ("tokens", "flops")} if has_curves else {},
        "depth": plots.draw_depth(points) if points else None,
        "unit": operations_unit([run for chain in found for run in chain]),
    }


def _checks(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """For each of CHECKS: the values of the runs, and whether they agree (None: not recorded by every run)."""
    checks = []
    for name, keys in CHECKS:
        values = [run.get(*keys) for run in runs]
        same = None if None in values else all(value == values[0] for value in values)
        checks.append({"name": name, "same": same, "values": [_brief(value) for value in values]})
    shares = [finite(run.get("clipped")) for run in runs]
    known = [share for share in shares if share is not None]
    alike = max(known) - min(known) <= ALIKE if len(known) == len(runs) else None
    return [*checks, {"name": "share of clipped steps, nearly", "same": alike,
                      "values": [None if share is None else f"{share:.0%}" for share in shares]}]


def _brief(value: Any) -> str | None:
    if isinstance(value, dict):
        return ", ".join(f"{key} {value[key]}" for key in sorted(value))
    if isinstance(value, str):
        return value[:16]  # of a digest; enough to see which is which
    return None if value is None else _format(value)


def _sheets(runs: Sequence[Run]) -> dict[bytes, list[str]]:
    """Each picture once, with the labels of the runs that see it."""
    sheets: dict[bytes, list[str]] = {}
    for run in runs:
        if run.sheet:
            sheets.setdefault(run.sheet, []).append(run.label)
    return sheets


def _samples(runs: Sequence[Run]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """language -> prompt -> one card per sample, in the order of the runs."""
    languages: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for number, run in enumerate(runs):
        for row in run.samples:
            text = row["text"].removeprefix(row["prompt"])
            card = {"label": run.label, "number": number, "text": text, "settings": row.get("settings")}
            languages.setdefault(str(row.get("language") or ""), {}).setdefault(row["prompt"], []).append(card)
    return languages


def _evaluation(
    runs: Sequence[Run], published: Sequence[ResultRow], logs: Path | None, numbers: Mapping[str, int]
) -> dict[str, Any] | None:
    """Tables and plots of the results of glyphlm eval; None where there are none."""
    bits, lines = bench.bits_lines(runs), bench.bench_lines(runs)
    both, tables = bits | lines, {protocol: bench.table(lines, protocol) for protocol in ("likelihood", "sampled")}
    if not both:
        return None
    maps = bench.subject_maps(lines, published)
    return {
        "bits": bits,
        "tables": tables,
        "given": published,
        "published": {line: bench.published_rows(line, published) for line in tables["sampled"]},
        "maps": [(found, plots.draw_heat(found.values_SR, found.signs_SR, found.subjects, found.names)) for found in maps],
        "depths": _depths(runs, both),
        "fused": [(found, _bars(found, both, numbers)) for found in bench.fused(runs)],
        "comparable": any(runs[0].label in rows and len(rows) > 1 for rows in both.values()),
        "logs": logs,
    } | _differences(differences(runs, logs) if logs else [], numbers)


def _depths(runs: Sequence[Run], lines: Mapping[Line, dict[str, ResultRow]]) -> list[tuple[Line, str]]:
    drawn = []
    for line, rows in lines.items():
        if not line.subject and (points := bench.by_depth(runs, line, rows)):
            chance = bench.level(rows, "chance")
            height = None if chance is None else bench.in_unit(line.metric, chance)
            drawn.append((line, plots.draw_depth(points, bench.unit(line.metric), height)))
    return drawn


def _bars(found: bench.Fused, lines: Mapping[Line, dict[str, ResultRow]], numbers: Mapping[str, int]) -> dict[str, str]:
    panels = bench.side_by_side(found, lines)
    own = [numbers[run.label] for run in (*found.experts, found.run)]
    return {name: plots.draw_bars(bars.values, plots.AXIS_LABELS[name], bars.spans, bars.levels, own)
            for name, bars in panels.items()}


def _differences(rows: Sequence[ComparisonRow], numbers: Mapping[str, int]) -> dict[str, Any]:
    """Of the whole tasks a table and a picture a unit; of MMLU the subjects that survive the correction."""
    wholes: dict[Line, list[ComparisonRow]] = {}
    for row in (row for row in rows if not row.subject):
        wholes.setdefault(Line.compared(row), []).append(row)
    tables = {name: wholes[line] for line, name in bench.names_of(wholes).items()}
    forests: dict[str, list[dict[str, Any]]] = {}
    for name, row in ((name, row) for name, of_line in tables.items() for row in of_line):
        values = {"difference": row.difference, "low": row.interval.low, "high": row.interval.high, "mde": row.mde}
        scaled = {key: None if value is None else bench.in_unit(row.metric, value) for key, value in values.items()}
        forests.setdefault(bench.unit(row.metric), []).append({"name": name, "run": row.b, **scaled})
    subjects: dict[str, list[str]] = {}
    for row in rows:
        if row.subject and row.task == "mmlu":
            kept = subjects.setdefault(f"{row.b}, {row.scoring}", [])
            kept += [row.subject.replace("_", " ")] if row.p_holm < bench.LEVEL else []
    drawn = {name: plots.draw_forest(of_unit, name, numbers) for name, of_unit in forests.items()}
    return {"differences": tables, "forests": drawn, "subjects": subjects}


def _format(value: Any, form: str = ",.0f") -> str:
    return DASH if finite(value) is None else format(value, form)


def _share(value: Any) -> str:
    return DASH if finite(value) is None else f"{value:.1%}"


def _shown(value: float | None, metric: str, sign: str = "+") -> str:
    return DASH if value is None else shown(metric, value, sign).replace("-", "−")


def _scaled(value: Any, unit: float) -> float | None:
    return None if finite(value) is None else value / unit


def _change(value: Any, reference: Any) -> str:
    """Signed difference, with a minus sign as wide as the plus."""
    if finite(value) is None or finite(reference) is None:
        return DASH
    return f"{value - reference:+.3f}".replace("-", "−")


def _image(data: bytes | str, kind: str) -> str:
    """A picture as the address of an <img>, so that the page stays one file."""
    payload = data.encode() if isinstance(data, str) else data
    return f"data:image/{kind};base64,{base64.b64encode(payload).decode()}"


def _writable(value: Any) -> Any:
    """Every value passes here on its way into the page, before it is escaped."""
    if value is None or isinstance(value, jinja2.Undefined):
        return DASH
    if isinstance(value, str) and not hasattr(value, "__html__"):  # what a macro gives was made of writable values
        return UNWRITABLE.sub(_stand_in, value)
    return value


def _stand_in(match: re.Match[str]) -> str:
    """The picture Unicode has of an ASCII control character, else the replacement character."""
    code = ord(match[0])
    return chr(0x2400 + code) if code < 0x20 else "␡" if code == 0x7F else "\ufffd"
