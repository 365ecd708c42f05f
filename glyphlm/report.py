"""The report: run folders in, one HTML file out that needs neither network nor scripts."""

import base64
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from glyphlm import plots
from glyphlm.errors import InputError
from glyphlm.growthview import chains, controls, depth_points, operations_unit, stage_rows, whole
from glyphlm.outputs import write_atomic
from glyphlm.rundata import Run, finite, read_runs

MOST_CURVES = 4  # chains in one picture of curves; of more the depths are shown alone
DASH = "–"
# What must agree before two arms may be compared, and where a summary holds it.
CHECKS = (
    ("tokenizer", ("tokenizer", "fingerprint")),
    ("order of the training batches", ("data_order",)),
    ("initial values of the common tensors", ("init",)),
    ("number of training tokens", ("tokens",)),
    ("shape of the model", ("model",)),
)
# Neither half a character pair nor a control character may stand in HTML.
UNWRITABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def write_report(
    runs: Sequence[Path], out: Path, title: str = "GlyphLM report", commands: Sequence[str] = ()
) -> Path:
    """Write the report of the run folders `runs` to the file `out` and return `out`.

    The first run is the one the others are measured against; a path that holds no finished run is passed over.
    `commands` are what came before the trainings; each run tells its own.

    Raises:
        InputError: no run is left, a file of a run is damaged, or `out` is a folder.
    """
    out = Path(out)
    if out.is_dir():
        raise InputError(f"{out} is a folder; give the file to write, such as {out / 'report.html'}")
    page = _page(read_runs([Path(run) for run in runs]), title, commands)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, page)
    return out


def _page(runs: list[Run], title: str, commands: Sequence[str]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        finalize=_writable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=_format, change=_change, image=_image, scaled=_scaled)
    template = environment.get_template("report.html.jinja")
    grown = {chain[-1].label: whole(chain) for chain in chains(runs)}
    bases = {run.label for chain in chains(runs) for run in chain[:-1]}
    shown = [grown.get(run.label, run) for run in runs if run.label not in bases]
    arms = [plots.Arm(run.label, run.train, run.validation, run.floor) for run in shown]
    views = {"checks": _checks(shown), "sheets": _sheets(shown), "samples": _samples(shown), "results": _results(runs)}
    views |= {"plots": plots.draw(arms), "growth": _growth(runs), "mark": plots.mark}
    told = (run.get("command") or f"# the command of {run.label} was not recorded" for run in runs)
    commands = [*commands, *dict.fromkeys(told)]
    return template.render(title=title, runs=shown, all_runs=runs, commands=commands, **views)


def _growth(runs: Sequence[Run]) -> dict[str, Any] | None:
    """Tables, curves and depths of what was grown; None where nothing was."""
    found = chains(runs)
    if not found:
        return None
    others = {chain[-1].label: controls(chain, runs) for chain in found}
    told = [*found, *([run] for runs in others.values() for run in runs)]
    curves = {chain[-1].label: whole(chain).validation for chain in told}
    return {
        "tables": [(chain, stage_rows(chain) + [row for run in others[chain[-1].label] for row in stage_rows([run])])
                   for chain in found],
        "over": {x: plots.draw_growth(curves, x) for x in ("tokens", "flops")} if len(found) <= MOST_CURVES else {},
        "depth": plots.draw_depth(depth_points(runs)),
        "unit": operations_unit([run for chain in found for run in chain]),
    }


def _checks(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """For each of CHECKS: the runs' values, and whether they agree (None: some run does not record it)."""
    checks = []
    for name, keys in CHECKS:
        values = [run.get(*keys) for run in runs]
        same = None if None in values else all(value == values[0] for value in values)
        checks.append({"name": name, "same": same, "values": [_brief(value) for value in values]})
    return checks


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


def _results(runs: Sequence[Run]) -> dict[tuple[str, ...], dict[str, Any]]:
    """(task, source, documents, bytes) -> label -> row; the last row of a run counts."""
    table: dict[tuple[str, ...], dict[str, Any]] = {}
    for run in runs:
        for row in run.results:
            source = str(row.get("source", DASH))
            key = row["task"], source, _format(row.get("documents")), _format(row.get("bytes"))
            table.setdefault(key, {})[run.label] = row
    return table


def _format(value: Any, form: str = ",.0f") -> str:
    return DASH if finite(value) is None else format(value, form)


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
    return UNWRITABLE.sub(_stand_in, value) if isinstance(value, str) else value


def _stand_in(match: re.Match[str]) -> str:
    """The picture Unicode has of an ASCII control character, else the replacement character."""
    code = ord(match[0])
    return chr(0x2400 + code) if code < 0x20 else "␡" if code == 0x7F else "\ufffd"
