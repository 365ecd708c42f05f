"""Per-item logs of several runs -> each run paired with the first on the same items."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glyphlm.analysis.run_data import Run
from glyphlm.base.errors import InputError
from glyphlm.base.progress import say
from glyphlm.evaluation.item_log import compare_items, folder_name, log_name, read_log

NAMES = ("task", "protocol", "scoring", "subject", "metric")


def differences(runs: Sequence[Run], logs: Path) -> list[dict[str, Any]]:
    """Rows of `itemlog.compare_items`, each run minus the first, with `run` (its label) and `source`; none of a single item.

    Args:
        logs: The folder that glyphlm eval --log-items was given.

    Raises:
        InputError: there is no such folder, or a log is damaged.
    """
    if not logs.is_dir():
        raise InputError(f"{logs} is no folder; give the one that glyphlm eval --log-items has filled")
    (first, mine), *others = ((run, _logs(run, logs)) for run in runs)
    found = []
    for name, (path, source) in mine.items():
        log = read_log(path) if any(name in theirs for _, theirs in others) else []
        for run, theirs in others:
            if name in theirs:
                rows = [row | {"run": run.label, "source": source} for row in compare_items(log, read_log(theirs[name][0]))]
                if len(log) > 1 and _belong(rows, first, run, theirs[name][0]):  # one item varies with nothing
                    found += rows
    return found


def _logs(run: Run, logs: Path) -> dict[str, tuple[Path, str]]:
    """Names of logs, equal for all that were asked the same -> the run's log and the source of its items."""
    told = {log_name(row["task"], row["made_from"]): row["source"] for row in run.results if "made_from" in row}
    folder = _folder(run, logs)
    return {name: (folder / name, source) for name, source in told.items() if folder and (folder / name).is_file()}


def _folder(run: Run, logs: Path) -> Path | None:
    """The logs are named after the path that eval was given; the longest that fits the end of the run's path."""
    place = f"_{folder_name(str(run.folder.resolve()))}"
    fitting = [folder for folder in logs.iterdir() if place.endswith(f"_{folder.name.lstrip('._')}")]
    return max(fitting, key=lambda folder: len(folder.name), default=None)


def _belong(rows: Sequence[dict[str, Any]], first: Run, run: Run, path: Path) -> bool:
    """Whether the logs give the results of the two runs: not if a run was evaluated again without its log."""
    for of_run, key in ((first, "value_a"), (run, "value_b")):
        values = {tuple(row.get(name) for name in (*NAMES, "source")): row.get("value") for row in of_run.results}
        if any(values.get(tuple(row[name] for name in (*NAMES, "source"))) != row[key] for row in rows):
            say(f"{of_run.label} is not compared by {path.name}: the log gives other results than its results.jsonl; run "
                "glyphlm eval again with --log-items")
            return False
    return True
