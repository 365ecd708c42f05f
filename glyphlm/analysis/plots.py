"""Learning curves and bars as SVG text, maps of codes as PNG; the only file that imports matplotlib."""

import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

# Okabe and Ito's colours without the pale yellow. Seven colours against four line styles and seven markers, each in
# matplotlib's name and as a character for the page: arms stay apart in grey print and for colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6B6B6B")
LINES: tuple[Any, ...] = ("solid", (0, (6, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
MARKERS = (("o", "●"), ("s", "■"), ("^", "▲"), ("D", "◆"), ("v", "▼"), ("P", "✚"), ("X", "✖"))
HATCHES = ("", "///", "...")
LEGEND = 60  # characters that fit beside each other over a plot, five of them for each line and marker
LEGEND_LINE = 0.2  # inches
POINTS = 200  # per curve and plot: a long run must not make the page heavy
AXIS_LABELS = {
    "tokens": "training tokens",
    "flops": "floating-point operations",
    "seconds": "seconds of training",
    "loss": "loss (nats per token)",
    "bits_per_byte": "bits per byte",
    "percent": "percent",
    "points": "points of BLEU, chrF",
}
# Text as outlines: the picture needs no font of the reader's. The salt makes the ids, and so the bytes, repeatable.
DRAWING: dict[Any, Any] = {"svg.fonttype": "path", "svg.hashsalt": "glyphlm", "font.family": "DejaVu Sans", "font.size": 10}
CHANCE = {"color": "#444444", "linestyle": (0, (1.5, 1.5)), "linewidth": 1.2}
HOLLOW = {"markersize": 7, "markerfacecolor": "none", "markeredgewidth": 1.4}  # arms that coincide show through


@dataclass(frozen=True)
class Curves:
    """What the plots need of one run: its logged rows, and the bits per byte of a unigram model."""

    label: str
    train: Sequence[Mapping[str, Any]]
    validation: Sequence[Mapping[str, Any]]
    floor: float | None


def mark(number: int) -> tuple[str, str]:
    """Colour and character that stand for arm `number` outside the plots."""
    return COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)][1]


def draw(arms: Sequence[Curves]) -> dict[str, str]:
    """The plots of a report as SVG under the names loss, bits, seconds and late; none where nothing was logged."""
    if not any(arm.train or arm.validation for arm in arms):
        return {}
    return {
        "loss": _draw_curves(arms, "tokens", "loss"),
        "bits": _draw_curves(arms, "tokens", "bits_per_byte"),
        "seconds": _draw_curves(arms, "seconds", "bits_per_byte", height=3.0),
        "late": _draw_curves(_second_half(arms), "tokens", "bits_per_byte", height=3.0),
    }


def draw_map(x_V2: np.ndarray, labels: Sequence[str]) -> bytes:
    """V points coloured by label as PNG: the commonest labels have colours of their own, all others are grey."""
    common = [label for label, _ in Counter(labels).most_common(len(COLOURS) - 1)]
    labels_V = np.array([label if label in common else "other" for label in labels])
    with matplotlib.rc_context(DRAWING):
        figure = Figure(figsize=(7.2, 5.6), layout="constrained", facecolor="white")
        axes = figure.add_subplot(xlabel="first principal component", ylabel="second principal component")
        for label, colour in [("other", COLOURS[-1]), *zip(common, COLOURS)]:  # large groups first, small ones on top
            x_2 = x_V2[labels_V == label].T
            axes.plot(*x_2, ".", color=colour, markersize=2, markeredgewidth=0, label=f"{label} {x_2.shape[1]:,}")
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside right upper", frameon=False, markerscale=5)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
        return buffer.getvalue()


def _second_half(arms: Sequence[Curves]) -> list[Curves]:
    """The rows after half of the longest run; without the floor, so that the scale shows small differences."""
    half = max(row["tokens"] for arm in arms for row in (*arm.train, *arm.validation)) / 2

    def late(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        return [row for row in rows if row["tokens"] >= half]

    return [Curves(arm.label, late(arm.train), late(arm.validation), None) for arm in arms]


def _draw_curves(arms: Sequence[Curves], x: str, y: str, height: float = 3.7) -> str:
    """Column `y` over column `x`: training smoothed over faint points, validation as markers."""
    with matplotlib.rc_context(DRAWING):
        figure = Figure(figsize=(5.4, height), layout="constrained", facecolor="white")
        axes = figure.add_subplot(xlabel=AXIS_LABELS[x], ylabel=AXIS_LABELS[y])
        for number, arm in enumerate(arms):
            _draw_arm(axes, arm, number, x, y)
        if y == "bits_per_byte":
            _draw_floors(axes, arms)
        _dress(figure, axes, [arm.label for arm in arms])
        return _to_svg(figure)


def _draw_arm(axes: Axes, arm: Curves, number: int, x: str, y: str) -> None:
    colour = COLOURS[number % len(COLOURS)]
    across, up = _columns(arm.train, x, y)
    chosen = _thinned(len(across))
    thin = [across[i] for i in chosen]
    axes.plot(thin, [up[i] for i in chosen], ".", color=colour, alpha=0.35, markersize=4, markeredgewidth=0)
    axes.plot(thin, _smoothed(up, chosen), color=colour, linestyle=LINES[number % len(LINES)], linewidth=1.6)
    across, up = _columns(arm.validation, x, y)
    chosen = _thinned(len(across))
    marker = MARKERS[number % len(MARKERS)][0]
    axes.plot([across[i] for i in chosen], [up[i] for i in chosen], marker, color=colour, zorder=3, **HOLLOW)


def _columns(rows: Sequence[Mapping[str, Any]], x: str, y: str) -> tuple[list[float], list[float]]:
    """Only finite values: a diverged run still shows the part before."""
    pairs = [(row[x], row[y]) for row in rows if math.isfinite(row[x]) and math.isfinite(row[y])]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def _thinned(length: int) -> list[int]:
    """Evenly spread positions, first and last among them."""
    if length <= POINTS:
        return list(range(length))
    return [round(i * (length - 1) / (POINTS - 1)) for i in range(POINTS)]


def _smoothed(values: Sequence[float], positions: Sequence[int]) -> list[float]:
    """Means of centred windows, narrower at the ends: unlike a running average they do not lag behind a steep fall."""
    means = []
    for i in positions:
        half = min(len(values) // 20, i, len(values) - 1 - i)
        window = values[i - half : i + half + 1]
        means.append(sum(window) / len(window))
    return means


def _draw_floors(axes: Axes, arms: Sequence[Curves]) -> None:
    """Arms on the same text share one line; other text or another tokenizer gives a second one."""
    floors = {round(arm.floor, 3) for arm in arms if arm.floor is not None}
    for floor in sorted(floors):
        axes.axhline(floor, color="#444444", linestyle=(0, (4, 3)), linewidth=1)
        place = {"transform": axes.get_yaxis_transform(), "ha": "right", "va": "bottom"}
        axes.text(0.99, floor, f"unigram model {floor:.3f}", color="#444444", fontsize=9, **place)


def _dress(figure: Figure, axes: Axes, names: Sequence[str]) -> None:
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(y=0.08)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    handles = [_legend_line(number) for number in range(len(names))]
    labels = [_drawable(name, number) for number, name in enumerate(names)]
    _name(figure, handles, labels, max(1, LEGEND // (max(map(len, labels)) + 5)))


def _name(figure: Figure, handles: Sequence[Any], names: Sequence[str], columns: int) -> None:
    """The legend above the plot; one of many lines makes the figure higher, not the plot lower."""
    lines = math.ceil(len(names) / columns)
    figure.set_figheight(figure.get_figheight() + LEGEND_LINE * max(0, lines - 2))
    legend = figure.legend(handles, names, loc="outside upper left", ncols=min(len(names), columns), frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a dollar sign in a name is a dollar sign


def _legend_line(number: int) -> Line2D:
    look = {"color": COLOURS[number % len(COLOURS)], "linestyle": LINES[number % len(LINES)]}
    return Line2D([], [], marker=MARKERS[number % len(MARKERS)][0], **look, **HOLLOW)


def _drawable(label: str, number: int, kind: str = "run") -> str:
    """matplotlib's own font ends after Cyrillic; a name beyond it goes by its number."""
    if label.isprintable() and all(ord(character) < 0x500 for character in label):
        return label if len(label) <= 36 else label[:35] + "…"
    return f"{kind} {number + 1}"


def _to_svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def draw_held_out(curves: Mapping[str, Sequence[Mapping[str, Any]]], x: str) -> str:
    """Held-out bits per byte over tokens or operations so far, as SVG; a dotted line where a stage of growth begins."""
    with matplotlib.rc_context(DRAWING):
        figure = Figure(figsize=(5.4, 3.7), layout="constrained", facecolor="white")
        axes = figure.add_subplot(xlabel=AXIS_LABELS[x], ylabel=AXIS_LABELS["bits_per_byte"])
        for number, rows in enumerate(curves.values()):
            across, up = _columns(rows, x, "bits_per_byte")
            look = {"color": COLOURS[number % len(COLOURS)], "linestyle": LINES[number % len(LINES)]}
            axes.plot(across, up, marker=MARKERS[number % len(MARKERS)][0], **look, **HOLLOW)
            starts = [row[x] for before, row in zip(rows, rows[1:]) if before.get("stage") != row.get("stage")]
            for start in starts:
                axes.axvline(start, color=look["color"], linestyle=":", linewidth=0.8)
        _dress(figure, axes, list(curves))
        return _to_svg(figure)


def draw_depth(
    points: Mapping[str, Sequence[Mapping[str, float]]], y: str = "bits_per_byte", level: float | None = None
) -> str:
    """Column `y` over depth, as SVG: label -> points with their interval; a single depth is no line, `level` is chance."""
    with matplotlib.rc_context(DRAWING):
        figure = Figure(figsize=(5.4, 3.7), layout="constrained", facecolor="white")
        axes = figure.add_subplot(xlabel="layers", ylabel=AXIS_LABELS[y])
        for number, rows in enumerate(points.values()):
            means, lows, highs = (np.array([row[key] for row in rows]) for key in (y, "low", "high"))
            reach = [means - lows, highs - means]
            places = [row["depth"] + 0.06 * (number - (len(points) - 1) / 2) for row in rows]  # equal ones stay apart
            look = {"color": COLOURS[number % len(COLOURS)], "linestyle": LINES[number % len(LINES)]}
            axes.errorbar(places, means, reach, marker=MARKERS[number % len(MARKERS)][0], capsize=3, **look, **HOLLOW)
        if level is not None:
            axes.axhline(level, **CHANCE)
        _dress(figure, axes, list(points))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.xaxis.set_major_formatter("{x:.0f}")
        return _to_svg(figure)


def draw_bars(
    series: Mapping[str, Mapping[str, float]],
    label: str,
    spans: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
    levels: Mapping[str, float] | None = None,
    numbers: Sequence[int] | None = None,
) -> str:
    """Bars of each group side by side as SVG: series -> {group: value}, a colour a series, hatched from the eighth on.

    Args:
        series: The same groups in each; NaN for a bar that is missing.
        label: Of the axis.
        spans: Intervals, as `series`.
        levels: Chance, of groups that have one.
        numbers: Of the series' colours, so that a run keeps its own.
    """
    groups = list(next(iter(series.values())))
    with matplotlib.rc_context(DRAWING):
        names = [_drawable(group, number, "text") for number, group in enumerate(groups)]
        upright = len(groups) > 8 or sum(map(len, names)) > LEGEND
        inches = min(14, max(5.4, 0.14 * len(groups) * (len(series) + 1)))
        height = 3.7 + upright * 0.07 * max(map(len, names))
        figure = Figure(figsize=(inches, height), layout="constrained", facecolor="white")
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
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        names = [_drawable(name, number, "tokenizer") for number, name in enumerate(series)]
        _name(figure, bars, names, 3)
        return _to_svg(figure)


def _places(groups: int, number: int, count: int) -> list[float]:
    """Middles of the bars of one of `count` series."""
    return [group - 0.4 + 0.8 / count * (number + 0.5) for group in range(groups)]


def _draw_series(axes: Axes, values: Sequence[float], place: int, count: int, number: int) -> BarContainer:
    look: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)], "hatch": HATCHES[number // len(COLOURS) % len(HATCHES)]}
    return axes.bar(_places(len(values), place, count), values, 0.8 / count, edgecolor="white", **look)


def _draw_spans(axes: Axes, spans: Sequence[tuple[float, float]], place: int, count: int) -> None:
    low, high = zip(*spans)
    middle, half = np.add(low, high) / 2, np.subtract(high, low) / 2
    axes.errorbar(_places(len(spans), place, count), middle, half, fmt="none", ecolor="#222222", elinewidth=1, capsize=2.5)


def draw_heat(values_SR: np.ndarray, signs_SR: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> str:
    """Shares in percent as SVG, darker is more (also in grey print); ▲ or ▼ where the sign is not 0; NaN stays empty."""
    width = max(0.28, min(0.55, 6 / len(columns)))
    with matplotlib.rc_context(DRAWING):
        inches = 2.6 + width * len(columns), 1.1 + 0.18 * len(rows)
        figure = Figure(figsize=inches, layout="constrained", facecolor="white")
        axes = figure.add_subplot()
        top = max(0.5, float(np.nanmax(values_SR)))
        axes.pcolormesh(values_SR, cmap="Blues", vmin=0, vmax=top, edgecolors="white", linewidth=0.5)
        for (row, column), value in np.ndenumerate(values_SR):
            if np.isfinite(value) and width >= 0.4:
                text = f"{100 * value:.0f}{('▼', '', '▲')[int(signs_SR[row, column]) + 1]}"
                look = {"color": "white" if value > 0.6 * top else "black", "fontsize": 8, "ha": "center", "va": "center"}
                axes.text(column + 0.5, row + 0.5, text, fontweight="bold" if signs_SR[row, column] else None, **look)
        names = [_drawable(name, number) for number, name in enumerate(columns)]
        upright = 90 if max(map(len, names)) * 0.09 > width else 0
        axes.set_xticks(np.arange(len(columns)) + 0.5, names, rotation=upright, fontsize=9, parse_math=False)
        axes.set_yticks(np.arange(len(rows)) + 0.5, rows, fontsize=8, parse_math=False)
        axes.xaxis.tick_top()
        axes.invert_yaxis()
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        return _to_svg(figure)


def draw_forest(rows: Sequence[Mapping[str, Any]], unit: str, numbers: Mapping[str, int]) -> str:
    """Differences with their intervals around 0, as SVG; grey marks differences below the detectable effect.

    Args:
        rows: `name` of the metric, `run`, `difference`, `low`, `high`, `mde` (None: not known), in `unit`, a key of
            AXIS_LABELS.
        numbers: Run -> number of its colour and marker.
    """
    names = list(dict.fromkeys(row["name"] for row in rows))
    runs = list(dict.fromkeys(row["run"] for row in rows))
    inches = 0.9 + 0.3 * math.ceil(len(runs) / 2) + len(names) * (0.15 + 0.17 * len(runs))
    with matplotlib.rc_context(DRAWING):
        figure = Figure(figsize=(5.4, inches), layout="constrained", facecolor="white")
        axes = figure.add_subplot(xlabel=f"difference ({'percentage points' if unit == 'percent' else AXIS_LABELS[unit]})")
        for row in rows:
            place = names.index(row["name"]) + (runs.index(row["run"]) + 0.5) / len(runs) * 0.8 - 0.4
            _draw_difference(axes, row, place, 0.7 / len(runs), numbers[row["run"]])
        axes.axvline(0, color="#222222", linewidth=1)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        shown = [_drawable(name, number, "task") for number, name in enumerate(names)]
        axes.set_yticks(range(len(names)), shown, parse_math=False)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(axis="x", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        handles = [_legend_line(numbers[run]) for run in runs]
        _name(figure, handles, [_drawable(run, numbers[run]) for run in runs], 2)
        return _to_svg(figure)


def _draw_difference(axes: Axes, row: Mapping[str, Any], place: float, height: float, number: int) -> None:
    if row["mde"] is not None:
        axes.barh(place, 2 * row["mde"], height, left=-row["mde"], color="#eeeeee", zorder=0.5)
    colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)][0]
    axes.plot([row["low"], row["high"]], [place] * 2, color=colour, linewidth=1.8)
    axes.plot([row["difference"]], [place], marker, color=colour, **HOLLOW)


def draw_layers(panels: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]) -> str:
    """Probe results by layer, as SVG: (title, axis) -> rows of run, layer, value, low, high, control, chance.

    A line a run in a band from low to high, dashed its control, dotted chance.
    """
    runs = list(dict.fromkeys(row["run"] for rows in panels.values() for row in rows))
    columns = min(3, len(panels))
    with matplotlib.rc_context(DRAWING):
        figure = Figure(figsize=(3.7 * columns, 0.8 + 2.7 * math.ceil(len(panels) / columns)), layout="constrained",
                        facecolor="white")
        for place, ((title, axis), rows) in enumerate(panels.items(), start=1):
            axes = figure.add_subplot(math.ceil(len(panels) / columns), columns, place, ylabel=axis)
            axes.set_title(_drawable(title, place - 1, "task"), parse_math=False)
            axes.set_xlabel("layer" if place > len(panels) - columns else "")
            for number, run in enumerate(runs):
                _draw_run(axes, [row for row in rows if row["run"] == run], COLOURS[number % len(COLOURS)], number)
            axes.grid(color="#dddddd", linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _name_lines(figure, runs)
        return _to_svg(figure)


def _draw_run(axes: Axes, rows: Sequence[Mapping[str, Any]], colour: str, number: int) -> None:
    layers = [row["layer"] for row in rows]
    value, low, high, control, chance = ([row[key] for row in rows] for key in ("value", "low", "high", "control", "chance"))
    axes.fill_between(layers, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.plot(layers, chance, color="#444444", linestyle="dotted", linewidth=1)
    axes.plot(layers, control, color=colour, linestyle="dashed", linewidth=1.1)
    axes.plot(layers, value, color=colour, marker=MARKERS[number % len(MARKERS)][0], linewidth=1.6, **HOLLOW)


def _name_lines(figure: Figure, runs: Sequence[str]) -> None:
    handles = [Line2D([], [], color=colour, marker=marker, **HOLLOW)
               for colour, (marker, _) in zip(cycle(COLOURS), islice(cycle(MARKERS), len(runs)))]
    handles += [Line2D([], [], color="#444444", linestyle=style) for style in ("dashed", "dotted")]
    names = [*(_drawable(run, number) for number, run in enumerate(runs)), "never trained", "chance"]
    _name(figure, handles, names, 5)
