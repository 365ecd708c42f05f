"""Data of the charts of the report, which report.js draws: logged rows, thinned, smoothed, averaged over seeds.

A chart is a dictionary: `x` and `y` (columns to choose from -> titles), `levels` (column -> value -> label), and `series`,
each with the name (`arm`) and `number` of an arm and columns of points: `line`, `dots`, `marks`.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from os.path import commonprefix
from typing import Any

from glyphlm.analysis.style import TITLES
from glyphlm.base.errors import InputError
from glyphlm.base.names import SETTINGS
from glyphlm.base.records import parse_yaml, to_json
from glyphlm.pages.run_data import Run, finite

POINTS, FEW_POINTS, MANY_ARMS = 200, 60, 16  # points of a curve; with more than MANY_ARMS arms FEW_POINTS
COLUMNS = ("tokens", "seconds", "flops", "loss", "bits_per_byte")
Chart = dict[str, Any]
Columns = dict[str, list[float | None]]


def learning_chart(arms: Mapping[str, Sequence[Run]], numbers: Mapping[str, int]) -> Chart | None:
    """Training and held-out loss of each arm over its seeds; None if nothing was logged."""
    points = POINTS if len(arms) <= MANY_ARMS else FEW_POINTS
    series = []
    for label, runs in arms.items():
        train, held_out = ([_finite_rows(_with_operations(run, getattr(run, split))) for run in runs]
                           for split in ("train", "validation"))
        smooth = [_smoothed(rows, points) for rows in train]
        dots = _columns(_thin(train[0], points)) if len(runs) == 1 and len(arms) <= MANY_ARMS else None
        series.append({"arm": label, "number": numbers[label], "line": _over_seeds(smooth), "dots": dots,
                       "marks": _over_seeds([_thin(rows, points) for rows in held_out])})
    if not any(one["line"] or one["marks"] for one in series):
        return None
    floors = {round(run.floor, 3) for runs in arms.values() for run in runs if run.floor is not None}
    levels = {"bits_per_byte": {str(floor): f"unigram model {floor:.3f}" for floor in sorted(floors)}}
    return _chart(("tokens", "seconds", "flops"), ("bits_per_byte", "loss"), series, levels)


def stage_chart(chains: Mapping[str, Sequence[Mapping[str, Any]]], numbers: Mapping[str, int]) -> Chart | None:
    """Held-out loss of grown models and their controls over the whole cost so far, with the starts of stages."""
    series = []
    for label, rows in chains.items():
        found = _finite_rows(rows)
        starts = [place for place, (one, two) in enumerate(zip(found, found[1:]), 1) if one.get("stage") != two.get("stage")]
        series.append({"arm": label, "number": numbers[label], "marks": _columns(found), "joined": True, "starts": starts})
    if not any(one["marks"] for one in series):
        return None
    return _chart(("tokens", "flops"), ("bits_per_byte",), series)


def depth_chart(
    points: Mapping[str, Sequence[Mapping[str, float]]], y: str = "bits_per_byte", level: float | None = None
) -> Chart:
    """Column `y` over depth with intervals; `points` as `growth_view.by_depth` gives them, `level` is chance."""
    series = [{"arm": label, "number": number, "joined": True, "bars": True, "marks": {
        "depth": [row["depth"] for row in rows], y: [_brief(row[y]) for row in rows],
        f"{y}.low": [_brief(row["low"]) for row in rows], f"{y}.high": [_brief(row["high"]) for row in rows],
    }} for number, (label, rows) in enumerate(points.items())]
    return _chart(("depth",), (y,), series, {y: {str(level): "chance"}} if level is not None else {})


def _chart(x: Iterable[str], y: Iterable[str], series: list[dict[str, Any]], levels: Any = None) -> Chart:
    """With the columns that some series has."""
    def known(names: Iterable[str]) -> dict[str, str]:
        parts = [one[part] for one in series for part in ("line", "marks") if one.get(part)]
        return {name: TITLES[name] for name in names if any(name in columns for columns in parts)}

    return {"x": known(x), "y": known(y), "series": series, "levels": levels or {}}


def _with_operations(run: Run, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with the operations so far, which are proportional to the tokens."""
    tokens, flops = run.get("tokens"), run.get("cost", "flops_total")
    each = flops / tokens if tokens and flops else None
    return [{"flops": row["tokens"] * each, **row} if each else row for row in rows]


def _finite_rows(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows without NaN and infinity: of a diverged run the part before is drawn."""
    needed = ("tokens", "seconds", "loss", "bits_per_byte")
    return [row for row in rows if all(finite(row[name]) is not None for name in needed)]


def _thin(rows: Sequence[Any], points: int) -> list[Any]:
    """At most `points` evenly spaced rows, including the first and the last."""
    if len(rows) <= points:
        return list(rows)
    return [rows[round(place * (len(rows) - 1) / (points - 1))] for place in range(points)]


def _smoothed(rows: Sequence[Mapping[str, Any]], points: int) -> list[Mapping[str, Any]]:
    """Centred moving averages, with narrower windows at the ends; unlike a running average they have no lag."""
    found = []
    for place in _thin(range(len(rows)), points):
        half = min(len(rows) // 20, place, len(rows) - 1 - place)
        window = rows[place - half : place + half + 1]
        means = {name: sum(row[name] for row in window) / len(window) for name in ("loss", "bits_per_byte")}
        found.append({**rows[place], **means})
    return found


def _over_seeds(runs: Sequence[Sequence[Mapping[str, Any]]]) -> Columns | None:
    """Means over runs at the token counts that all of them logged, with minimum and maximum if there are several."""
    by_tokens = [{row["tokens"]: row for row in rows} for rows in runs]
    common = [tokens for tokens in by_tokens[0] if all(tokens in rows for rows in by_tokens)]
    if not common:
        return None
    if len(runs) == 1:  # tokens may repeat: a stage of growth starts where the one below ended
        return _columns(runs[0])
    columns: Columns = {}
    for name in COLUMNS:
        values = [[rows[tokens][name] for rows in by_tokens if name in rows[tokens]] for tokens in common]
        if any(len(of_seeds) < len(runs) for of_seeds in values):
            continue
        columns[name] = [_brief(sum(of_seeds) / len(of_seeds)) for of_seeds in values]
        if name in ("loss", "bits_per_byte"):
            columns[f"{name}.low"] = [_brief(min(of_seeds)) for of_seeds in values]
            columns[f"{name}.high"] = [_brief(max(of_seeds)) for of_seeds in values]
    return columns


def _columns(rows: Sequence[Mapping[str, Any]]) -> Columns | None:
    known = [name for name in COLUMNS if name in rows[0]] if rows else []
    return {name: [_brief(row[name]) for row in rows] for name in known} or None


def _brief(value: float) -> float:
    """Five significant digits, finer than a pixel."""
    return float(f"{value:.5g}") if math.isfinite(value) and not float(value).is_integer() else value


def arms_of(runs: Sequence[Run], names: Mapping[str, str] | None = None) -> dict[str, list[Run]]:
    """Arm -> its runs, which differ only by their seed.

    Args:
        names: Label of a run -> its arm, if known from a study; otherwise the recipes of the runs are compared.
    """
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(names[run.label] if names else _without_seed(run), []).append(run)
    if names:
        return found
    groups = [group for same in found.values() for group in ([same] if _are_seeds(same) else [[run] for run in same])]
    groups.sort(key=lambda group: runs.index(group[0]))
    labels = [_common_name(group) for group in groups]
    return {name if labels.count(name) == 1 else group[0].label: group for name, group in zip(labels, groups)}


def _are_seeds(runs: Sequence[Run]) -> bool:
    seeds = [run.get("seed") for run in runs]
    return None not in seeds and len(set(seeds)) == len(seeds)


def _without_seed(run: Run) -> str:
    """All settings except seeds and paths of inputs that depend on a seed; the label if settings were not recorded."""
    try:
        settings = parse_yaml(run.settings or "", run.folder / SETTINGS)
    except InputError:
        return run.label
    parts = {"train": ("seed", "save_every"), "substrate": ("seed", "shuffle_seed", "path", "fingerprint")}
    parted = {"train": settings.get("train"), "substrate": run.get("substrate")}
    for part, left_out in parts.items():
        settings[part] = {key: value for key, value in (parted[part] or {}).items() if key not in left_out}
    return to_json(settings)


def _common_name(runs: Sequence[Run]) -> str:
    """The common beginning of the labels of an arm's runs, without the seed."""
    if len(runs) == 1:
        return runs[0].label
    return re.sub(r"[-_ .#,]*(seed)?[-_ .#,]*$", "", commonprefix([run.label for run in runs])) or runs[0].label
