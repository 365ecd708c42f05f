"""Finished run folders as their readers see them: summary, logged rows, results, samples."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from glyphlm.base.errors import InputError
from glyphlm.base.progress import say
from glyphlm.base.records import read_json_lines

NUMBER = (int, float)
TEXT = (str,)
METRICS = {"split": TEXT, "step": NUMBER, "tokens": NUMBER, "seconds": NUMBER, "loss": NUMBER, "bits_per_byte": NUMBER}
SAMPLES = {"prompt": TEXT, "text": TEXT}
RESULTS = {"task": TEXT}


@dataclass(frozen=True)
class Run:
    """One run folder, read; `label` tells runs of the same name apart."""

    label: str
    folder: Path
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
        return finite(self.get("unigram_bits_per_byte", "validation"))

    @property
    def best(self) -> dict[str, Any]:
        """The validation row with the fewest bits per byte; the summary's value where no row was logged."""
        rows = [row for row in self.validation if finite(row["bits_per_byte"]) is not None]
        final = {"bits_per_byte": finite(self.get("bits_per_byte", "validation")), "step": self.get("steps")}
        return min(rows, key=lambda row: row["bits_per_byte"], default=final)

    @property
    def substrate(self) -> str:
        """In words, such as "frozen glyph"."""
        kind, trainable = str(self.get("substrate", "kind")).replace("_", " "), self.get("substrate", "trainable")
        if kind == "learned" and trainable:
            return kind
        return f"{'trainable' if trainable else 'frozen'} {kind}"


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs among `folders`; a path that holds no finished run is passed over.

    Raises:
        InputError: no run is left, or a file of a run is damaged.
    """
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
    metrics = read_json_lines(folder / "metrics.jsonl", METRICS, finite=False)
    sheet, settings = folder / "glyphs.png", folder / "settings.yaml"
    return Run(
        label=summary["name"],
        folder=folder,
        summary=summary,
        train=[row for row in metrics if row["split"] == "train"],
        validation=[row for row in metrics if row["split"] == "validation"],
        results=read_json_lines(folder / "results.jsonl", RESULTS),
        samples=read_json_lines(folder / "samples.jsonl", SAMPLES),
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


def told_run(path: str, teller: Run, runs: Sequence[Run]) -> Run | None:
    """The run among `runs` that `teller` was made of and names as `path`; folders may have been moved together since."""

    def fit(run: Run) -> tuple[bool, bool]:
        place, teller_place = run.folder.resolve(), teller.folder.resolve()
        return f"/{place.as_posix()}".endswith(f"/{path.strip('/')}"), place.parent == teller_place.parent

    named = [run for run in runs if run.folder.resolve().name == Path(path).name and any(fit(run))]
    return max(named, key=fit, default=None)


def finite(value: Any) -> float | None:
    """A finite number, or None."""
    return value if isinstance(value, NUMBER) and math.isfinite(value) else None
