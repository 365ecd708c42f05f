"""Finished run folders, read for the report: summary, logged rows, results, samples."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from glyphlm.base.errors import InputError
from glyphlm.base.names import GLYPH_SHEET, INPUTS, METRICS, RESULTS, SAMPLES, SETTINGS, SUMMARY
from glyphlm.base.outputs import lacks
from glyphlm.base.progress import say
from glyphlm.base.records import read_json, read_json_lines, to_json
from glyphlm.evaluation.rows import ResultRow, read_results

NUMBER = (int, float)
TEXT = (str,)
METRIC_KINDS = {"split": TEXT, "step": NUMBER, "tokens": NUMBER, "seconds": NUMBER, "loss": NUMBER, "bits_per_byte": NUMBER}
SAMPLE_KINDS = {"prompt": TEXT, "text": TEXT}
NEEDED = ("name", "substrate")
SUMMARY_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("name", "command", "substrate.kind", "fusion.method", "growth.base", "growth.start", "growth.blocks",
                     "growth.head"), TEXT),
    **dict.fromkeys(("substrate", "tokenizer", "model", "parameters", "bits_per_byte", "unigram_bits_per_byte", "cost",
                     "cost.flops", "growth", "growth.lora", "fusion", "versions"), (dict,)),
    **dict.fromkeys(("tokens", "seconds", "steps", "tokens_per_second", "mfu", "model.n_layer", "cost.flops_total",
                     "cost.trained", "cost.optimizer_bytes", "parameters.trained", "parameters.frozen", "growth.lora.rank",
                     "cost.flops.frozen", "cost.flops.attention", "cost.flops.scores", "cost.flops.mlp",
                     "cost.flops.recompute", "cost.flops.head"), NUMBER),
    "fusion.experts": (list,),
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """The contents of a run folder; `label` is unique among the runs that are read together."""

    label: str
    folder: Path
    summary: dict[str, Any]
    train: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    results: list[ResultRow]
    samples: list[dict[str, Any]]
    sheet: bytes | None
    settings: str | None
    held_out: str | None = None  # identifies the held-out text as it was tokenized

    def get(self, *keys: str) -> Any:
        """The value at nested keys of the summary, or None."""
        return _at(self.summary, keys)

    @property
    def floor(self) -> float | None:
        """Bits per byte of a unigram model on the held-out text."""
        return finite(self.get("unigram_bits_per_byte", "validation"))

    @property
    def best(self) -> dict[str, Any]:
        """The validation row with the lowest bits per byte; the value of the summary if no row was logged."""
        rows = [row for row in self.validation if finite(row["bits_per_byte"]) is not None]
        final = {"bits_per_byte": finite(self.get("bits_per_byte", "validation")), "step": self.get("steps")}
        return min(rows, key=lambda row: row["bits_per_byte"], default=final)

    @property
    def substrate(self) -> str:
        """The substrate in words, such as "frozen glyph"."""
        kind, trainable = str(self.get("substrate", "kind")).replace("_", " "), self.get("substrate", "trainable")
        if kind == "learned" and trainable:
            return kind
        return f"{'trainable' if trainable else 'frozen'} {kind}"


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs among `folders`; a path without a finished run is skipped.

    Raises:
        InputError: no run is left, or a file of a run is damaged.
    """
    runs: list[Run] = []
    for folder in folders:
        if not (folder / SUMMARY).is_file():
            say(f"{folder} is skipped: it {lacks(folder, SUMMARY)}")
            continue
        runs.append(_read_run(folder))
    if not runs:
        raise InputError(f"no finished run among {len(folders)} paths; give folders that glyphlm train has filled")
    return [replace(run, label=label) for run, label in zip(runs, _labels([run.folder.resolve() for run in runs]))]


def _labels(folders: Sequence[Path]) -> list[str]:
    """Unique labels: the name of a folder, if needed with the name of its parent, if needed with a number."""
    names = [folder.name for folder in folders]
    longer = [f"{folder.parent.name}/{name}" if names.count(name) > 1 else name for folder, name in zip(folders, names)]
    return [f"{name} #{longer[:place].count(name) + 1}" if name in longer[:place] else name
            for place, name in enumerate(longer)]


def _read_run(folder: Path) -> Run:
    summary = _read_summary(folder / SUMMARY)
    metrics = read_json_lines(folder / METRICS, METRIC_KINDS, finite=False)
    sheet, settings = folder / GLYPH_SHEET, folder / SETTINGS
    return Run(
        label=folder.name,
        folder=folder,
        summary=summary,
        train=[row for row in metrics if row["split"] == "train"],
        validation=[row for row in metrics if row["split"] == "validation"],
        results=read_results(folder / RESULTS),
        samples=read_json_lines(folder / SAMPLES, SAMPLE_KINDS),
        sheet=sheet.read_bytes() if sheet.is_file() else None,
        settings=settings.read_text(encoding="utf-8", errors="replace") if settings.is_file() else None,
        held_out=_held_out(folder / INPUTS),
    )


def _held_out(path: Path) -> str | None:
    """A digest of the shards of held-out text; None if there were none or they were not recorded."""
    shards = read_json(path).get("validation") if path.is_file() else None
    return hashlib.sha256(to_json(shards).encode()).hexdigest() if shards else None


def _read_summary(path: Path) -> dict[str, Any]:
    """The summary, with its values checked for their types; keys that an old run lacks are None or absent."""
    cure = f"leave {path.parent} out or train it again"
    summary = read_json(path, cure=cure)
    for place, kinds in SUMMARY_KINDS.items():
        above, _, key = place.rpartition(".")
        parent = _at(summary, above.split(".")) if above else summary
        value = parent.get(key) if isinstance(parent, dict) else None
        needed = place in NEEDED or parent is not None and above == "growth"
        if (value is not None or needed) and not isinstance(value, kinds):
            raise InputError(f"{path} is not the summary of a run (no valid {place!r}); {cure}")
    return summary


def _at(value: Any, keys: Sequence[str]) -> Any:
    """The value at nested keys, or None."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def find_run(path: str, made: Run, runs: Sequence[Run]) -> Run | None:
    """The run among `runs` that `made` recorded as `path`; folders may have been moved together since."""

    def fit(run: Run) -> tuple[bool, bool]:
        place, made_place = run.folder.resolve(), made.folder.resolve()
        return f"/{place.as_posix()}".endswith(f"/{path.strip('/')}"), place.parent == made_place.parent

    named = [run for run in runs if run is not made and run.folder.resolve().name == Path(path).name and any(fit(run))]
    return max(named, key=fit, default=None)


def finite(value: Any) -> float | None:
    """A finite number, or None."""
    return value if isinstance(value, NUMBER) and math.isfinite(value) else None
