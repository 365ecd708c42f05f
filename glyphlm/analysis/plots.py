"""Plots of studies, evaluations and tokenizers as SVG text."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from glyphlm.analysis.drawing import (
    DRAWING,
    HOLLOW,
    LEGEND,
    add_legend,
    arm_style,
    clear_frame,
    drawable,
    fitting_columns,
    legend_line,
    new_figure,
    to_svg,
)
from glyphlm.analysis.style import COLOURS, TITLES

HATCHES = ("", "///", "...")
VERDICTS = {"supported": ("#00704a", "D"), "equivalent": ("#00704a", "s"), "not supported": ("#b3260e", "x"),
            "not decidable": ("#5a626b", "o"), "reference failed": ("#5a626b", "x")}
CHANCE = {"color": "#444444", "linestyle": (0, (1.5, 1.5)), "linewidth": 1.2}
SHARES = ("accuracy", "exact match", "f1", "contains", "letter mass")  # higher is better; of all other measures lower is


@matplotlib.rc_context(DRAWING)
def draw_held_out(curves: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Held-out bits per byte over training tokens as SVG: arm -> points; of a diverged run the part before is drawn."""
    figure = new_figure(5.4, 3.7)
    axes = figure.add_subplot(xlabel=TITLES["tokens"], ylabel=TITLES["bits_per_byte"])
    for number, points in enumerate(curves.values()):
        finite = [(tokens, bits) for tokens, bits in points if math.isfinite(bits)]
        axes.plot(*zip(*finite), **arm_style(number), **HOLLOW)
    clear_frame(axes, "both", "top", "right")
    axes.margins(y=0.08)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    labels = [drawable(name, number) for number, name in enumerate(curves)]
    add_legend(figure, map(legend_line, range(len(labels))), labels, fitting_columns(labels))
    if (low := axes.get_ylim()[0]) > 0:
        axes.set_ylabel(f"{TITLES['bits_per_byte']} (axis from {low:.2g})")
    return to_svg(figure)


@matplotlib.rc_context(DRAWING)
def draw_gaps(gaps: Mapping[str, tuple[float, float, float, float]], line: Sequence[str], reference: str) -> str:
    """Bits per byte behind a reference over the share of its operations as SVG.

    Args:
        gaps: Arm -> share, gap, and the ends of its interval (NaN for a single seed).
        line: Arms that a line joins, in this order.
    """
    figure = new_figure(5.4, 3.7)
    axes = figure.add_subplot(xlabel=f"operations, of those of {reference}", ylabel=f"bits per byte behind\n{reference}")
    axes.axhline(0, color="#222222", linewidth=1)
    axes.plot(*zip(*(gaps[arm][:2] for arm in line)), color="#bbbbbb", linewidth=1.4)
    for number, (share, gap, low, high) in enumerate(gaps.values()):
        style = arm_style(number) | {"linestyle": "none"}
        axes.plot([share] * 2, [low, high], color=style["color"], linewidth=1.2)
        axes.plot([share], [gap], **style, **HOLLOW)
    clear_frame(axes, "both", "top", "right")
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    labels = [drawable(name, number) for number, name in enumerate(gaps)]
    add_legend(figure, map(legend_line, range(len(labels))), labels, fitting_columns(labels))
    return to_svg(figure)


@matplotlib.rc_context(DRAWING)
def draw_bars(
    series: Mapping[str, Mapping[str, float]],
    label: str,
    spans: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
    levels: Mapping[str, float] | None = None,
    numbers: Sequence[int] | None = None,
) -> str:
    """A grouped bar chart as SVG; a colour per series, hatched from the eighth on.

    Args:
        series: Series -> group -> value, the same groups in each; NaN for a missing bar.
        label: Of the value axis.
        spans: Intervals, shaped as `series`.
        levels: Chance level of each group that has one.
        numbers: Colour numbers of the series, so that a run has the same colour in all plots.
    """
    groups = list(next(iter(series.values())))
    names = [drawable(group, number, "text") for number, group in enumerate(groups)]
    upright = len(groups) > 8 or sum(map(len, names)) > LEGEND
    inches = min(14, max(5.4, 0.14 * len(groups) * (len(series) + 1)))
    figure = new_figure(inches, 3.7 + upright * 0.07 * max(map(len, names)))
    axes = figure.add_subplot(ylabel=label)
    bars = [_draw_series(axes, list(values.values()), place, len(series), numbers[place] if numbers else place)
            for place, values in enumerate(series.values())]
    for place, of_series in enumerate((spans or {}).values()):
        _draw_spans(axes, list(of_series.values()), place, len(series))
    for place, level in ((place, (levels or {}).get(group)) for place, group in enumerate(groups)):
        if level is not None:
            axes.plot([place - 0.46, place + 0.46], [level] * 2, **CHANCE)
    axes.set_xticks(range(len(groups)), names, rotation=90 if upright else 0, parse_math=False)
    axes.margins(x=0.02)
    clear_frame(axes, "y", "top", "right")
    names = [drawable(name, number, "tokenizer") for number, name in enumerate(series)]
    add_legend(figure, bars, names, min(3, fitting_columns(names)))
    return to_svg(figure)


def _places(groups: int, number: int, count: int) -> list[float]:
    """Centres of the bars of series `number` of `count`."""
    return [group - 0.4 + 0.8 / count * (number + 0.5) for group in range(groups)]


def _draw_series(axes: Axes, values: Sequence[float], place: int, count: int, number: int) -> BarContainer:
    colour, hatch = COLOURS[number % len(COLOURS)], HATCHES[number // len(COLOURS) % len(HATCHES)]
    return axes.bar(_places(len(values), place, count), values, 0.8 / count, color=colour, hatch=hatch, edgecolor="white")


def _draw_spans(axes: Axes, spans: Sequence[tuple[float, float]], place: int, count: int) -> None:
    low, high = zip(*spans)
    middle, half = np.add(low, high) / 2, np.subtract(high, low) / 2
    axes.errorbar(_places(len(spans), place, count), middle, half, fmt="none", ecolor="#222222", elinewidth=1, capsize=2.5)


@matplotlib.rc_context(DRAWING)
def draw_heat(values_SR: np.ndarray, signs_SR: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> str:
    """A heat map of shares in percent as SVG; ▲ or ▼ where the sign is not 0, empty where the share is NaN."""
    width = max(0.28, min(0.55, 6 / len(columns)))
    inches = 2.6 + width * len(columns), 1.1 + 0.18 * len(rows)
    figure = new_figure(*inches)
    axes = figure.add_subplot()
    top = max(0.5, float(np.nanmax(values_SR)))
    axes.pcolormesh(values_SR, cmap="Blues", vmin=0, vmax=top, edgecolors="white", linewidth=0.5)
    for (row, column), value in np.ndenumerate(values_SR):
        if np.isfinite(value) and width >= 0.4:
            text = f"{100 * value:.0f}{('▼', '', '▲')[int(signs_SR[row, column]) + 1]}"
            font = {"color": "white" if value > 0.6 * top else "black", "fontsize": 8, "ha": "center", "va": "center"}
            axes.text(column + 0.5, row + 0.5, text, fontweight="bold" if signs_SR[row, column] else None, **font)
    names = [drawable(name, number) for number, name in enumerate(columns)]
    upright = 90 if max(map(len, names)) * 0.09 > width else 0
    axes.set_xticks(np.arange(len(columns)) + 0.5, names, rotation=upright, fontsize=9, parse_math=False)
    axes.set_yticks(np.arange(len(rows)) + 0.5, rows, fontsize=8, parse_math=False)
    axes.xaxis.tick_top()
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return to_svg(figure)


@matplotlib.rc_context(DRAWING)
def draw_forest(rows: Sequence[Mapping[str, Any]], unit: str, numbers: Mapping[str, int]) -> str:
    """A forest plot of differences as SVG; grey marks differences below the minimum detectable effect.

    Args:
        rows: `name` of the metric, `run`, `difference`, `low`, `high`, `mde` (None: unknown).
        unit: Of the values, a key of TITLES.
        numbers: Run -> number of its colour and marker.
    """
    names = list(dict.fromkeys(row["name"] for row in rows))
    runs = list(dict.fromkeys(row["run"] for row in rows))
    inches = 0.9 + 0.3 * math.ceil(len(runs) / 2) + len(names) * (0.15 + 0.17 * len(runs))
    figure = new_figure(5.4, inches)
    axes = figure.add_subplot(xlabel=f"difference ({'percentage points' if unit == 'percent' else TITLES[unit]})")
    for row in rows:
        place = names.index(row["name"]) + (runs.index(row["run"]) + 0.5) / len(runs) * 0.8 - 0.4
        _draw_difference(axes, row, place, 0.7 / len(runs), numbers[row["run"]])
    axes.axvline(0, color="#222222", linewidth=1)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    shown = [drawable(name, number, "task") for number, name in enumerate(names)]
    axes.set_yticks(range(len(names)), shown, parse_math=False)
    axes.set_ylim(len(names) - 0.5, -0.5)
    clear_frame(axes, "x", "top", "right", "left")
    handles = [legend_line(numbers[run]) for run in runs]
    add_legend(figure, handles, [drawable(run, numbers[run]) for run in runs], 2)
    return to_svg(figure)


def _draw_difference(axes: Axes, row: Mapping[str, Any], place: float, height: float, number: int) -> None:
    if row["mde"] is not None:
        axes.barh(place, 2 * row["mde"], height, left=-row["mde"], color="#eeeeee", zorder=0.5)
    axes.plot([row["low"], row["high"]], [place] * 2, color=arm_style(number)["color"], linewidth=1.8)
    axes.plot([row["difference"]], [place], **arm_style(number), **HOLLOW)


@matplotlib.rc_context(DRAWING)
def draw_claims(verdicts: Sequence[Mapping[str, Any]]) -> str:
    """A forest plot of claims as SVG, shaded where a claim holds, with a marker per verdict and a panel per unit.

    Args:
        verdicts: Rows of claims.jsonl; those without an interval (a single seed) are left out.
    """
    panels: dict[str, list[Mapping[str, Any]]] = {}
    for row in verdicts:
        if row["low"] is not None:
            panels.setdefault(_unit(row["measure"]), []).append(row)
    heights = [len(rows) + len({_pair(row) for row in rows}) + 1.6 for rows in panels.values()]
    figure = new_figure(8.2, 0.25 * sum(heights) + 0.5)
    places = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0] if panels else []
    for axes, (unit, rows) in zip(places, panels.items()):
        side = "right" if unit == "share of 1" else "left"
        _draw_verdicts(axes, rows)
        axes.set_xlabel(f"difference ({unit}); {side} of 0 is better", fontsize=9)
    return to_svg(figure)


def _unit(measure: str) -> str:
    if any(name in measure for name in SHARES):
        return "share of 1"
    return "bits per byte" if "bits per byte" in measure else measure


def _pair(row: Mapping[str, Any]) -> str:
    return f"{row['arm']} − {row['against']}"


def _draw_verdicts(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """A line per verdict, below the pair of models that it compares."""
    sign = 1 if _unit(rows[0]["measure"]) == "share of 1" else -1
    ends = [row[end] for row in rows for end in ("low", "high")] + [-sign * row["margin"] for row in rows] + [0.0]
    air = 0.05 * (max(ends) - min(ends) or 1)
    left, right = min(ends) - air, max(ends) + air
    names: list[str] = []
    for row, before in zip(rows, [None, *rows]):
        names += [_pair(row)] if before is None or _pair(before) != _pair(row) else []
        border = 0.0 if row["kind"] == "better" else -sign * row["margin"]
        holds = (left, border) if sign < 0 else (border, right)
        axes.barh(len(names), holds[1] - holds[0], 0.86, left=holds[0], color="#e4eff7", zorder=0.5)
        colour, marker = VERDICTS[row["verdict"]]
        axes.plot([row["low"], row["high"]], [len(names)] * 2, color=colour, linewidth=1.8)
        axes.plot([row["difference"]], [len(names)], marker, color=colour, **({} if marker in "Ds" else HOLLOW))
        names.append(row["measure"].removeprefix("bpb ").removeprefix("bits per byte, "))
    axes.axvline(0, color="#222222", linewidth=1)
    shown = [name if len(name) <= 44 else f"{name[:43]}…" for name in names]
    axes.set_yticks(range(len(names)), shown, fontsize=8, parse_math=False)
    pairs = {_pair(row) for row in rows}
    for label, name in zip(axes.get_yticklabels(), names):
        label.set_fontweight("bold" if name in pairs else "normal")
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(left, right)
    clear_frame(axes, None, "top", "right", "left")
    axes.tick_params(axis="y", length=0)
