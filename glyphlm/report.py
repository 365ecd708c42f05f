"""The report: run folders in, one HTML file out that needs neither network nor scripts."""

import base64
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2

from glyphlm import plots
from glyphlm.errors import InputError
from glyphlm.outputs import read_lines, write_atomic
from glyphlm.progress import say

DASH = "–"
NUMBER = (int, float)
TEXT = (str,)
METRICS = {"split": TEXT, "step": NUMBER, "tokens": NUMBER, "seconds": NUMBER, "loss": NUMBER, "bits_per_byte": NUMBER}
SAMPLES = {"prompt": TEXT, "text": TEXT}
RESULTS = {"task": TEXT}
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


@dataclass(frozen=True)
class Run:
    """One run folder, read; `label` tells runs of the same name apart."""

    label: str
    summary: dict[str, Any]
    train: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    results: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    sheet: bytes | None
    settings: str | None

    def get(self, *keys: str) -> Any:
        """The summary's value at the nested `keys`, or None."""
        value: Any = self.summary
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    @property
    def floor(self) -> float | None:
        """Bits per byte a unigram model needs on the held-out text."""
        return _number(self.get("unigram_bits_per_byte", "validation"))

    @property
    def best(self) -> dict[str, Any]:
        """The validation row with the fewest bits per byte; the summary's value where no row was logged."""
        rows = [row for row in self.validation if _number(row["bits_per_byte"]) is not None]
        final = {"bits_per_byte": _number(self.get("bits_per_byte", "validation")), "step": self.get("steps")}
        return min(rows, key=lambda row: row["bits_per_byte"], default=final)

    @property
    def substrate(self) -> str:
        """In words, such as "frozen glyph"."""
        kind, trainable = str(self.get("substrate", "kind")).replace("_", " "), self.get("substrate", "trainable")
        if kind == "learned" and trainable:
            return kind
        return f"{'trainable' if trainable else 'frozen'} {kind}"


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
    page = _page(_read_runs([Path(run) for run in runs]), title, commands)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, page)
    return out


def _read_runs(folders: Sequence[Path]) -> list[Run]:
    runs: list[Run] = []
    for folder in folders:
        if not (folder / "summary.json").is_file():
            say(f"{folder} is passed over: it holds no summary.json, which glyphlm train writes when a run ends")
            continue
        run = _read_run(folder)
        before = sum(run.label == other.summary["name"] for other in runs)
        runs.append(replace(run, label=f"{run.label} #{before + 1}") if before else run)
    if not runs:
        raise InputError(f"no finished run among {len(folders)} paths; give folders that glyphlm train has filled")
    return runs


def _read_run(folder: Path) -> Run:
    summary = _read_summary(folder / "summary.json")
    metrics = read_lines(folder / "metrics.jsonl", METRICS)
    sheet, settings = folder / "glyphs.png", folder / "settings.yaml"
    return Run(
        label=summary["name"],
        summary=summary,
        train=[row for row in metrics if row["split"] == "train"],
        validation=[row for row in metrics if row["split"] == "validation"],
        results=read_lines(folder / "results.jsonl", RESULTS),
        samples=read_lines(folder / "samples.jsonl", SAMPLES),
        sheet=sheet.read_bytes() if sheet.is_file() else None,
        settings=settings.read_text(encoding="utf-8", errors="replace") if settings.is_file() else None,
    )


def _read_summary(path: Path) -> dict[str, Any]:
    try:
        summary = json.loads(path.read_bytes())
        if isinstance(summary["name"], str) and isinstance(summary["substrate"], dict):
            return summary
    except (ValueError, TypeError, KeyError):
        pass
    raise InputError(f"{path} is not the summary of a run; leave {path.parent} out or train it again")


def _page(runs: list[Run], title: str, commands: Sequence[str]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        finalize=_writable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=_format, change=_change, image=_image)
    template = environment.get_template("report.html.jinja")
    arms = [plots.Arm(run.label, run.train, run.validation, run.floor) for run in runs]
    views = {"checks": _checks(runs), "sheets": _sheets(runs), "samples": _samples(runs), "results": _results(runs)}
    return template.render(title=title, runs=runs, commands=commands, plots=plots.draw(arms), mark=plots.mark, **views)


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


def _number(value: Any) -> float | None:
    return value if isinstance(value, NUMBER) and math.isfinite(value) else None


def _format(value: Any, form: str = ",.0f") -> str:
    return DASH if _number(value) is None else format(value, form)


def _change(value: Any, reference: Any) -> str:
    """Signed difference, with a minus sign as wide as the plus."""
    if _number(value) is None or _number(reference) is None:
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
