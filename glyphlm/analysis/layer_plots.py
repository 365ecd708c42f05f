"""Plots of codes and of states, layer by layer: maps of tokens, and probes."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from glyphlm.analysis.drawing import (
    DRAWING,
    HOLLOW,
    add_legend,
    arm_style,
    clear_frame,
    drawable,
    new_figure,
    to_png,
    to_svg,
)
from glyphlm.analysis.style import COLOURS


@matplotlib.rc_context(DRAWING)
def draw_map(x_V2: np.ndarray, labels: Sequence[str], shares: Sequence[float]) -> bytes:
    """A scatter plot of V points as PNG, coloured by label: the most frequent labels have colours, the others are grey.

    Args:
        shares: Of the variance, explained by the two axes.
    """
    common = [label for label, _ in Counter(labels).most_common(len(COLOURS) - 1)]
    labels_V = np.array([label if label in common else "other" for label in labels])
    figure = new_figure(7.2, 5.6)
    names = (f"{name} principal component ({share:.1%} of the variance)"
             for name, share in zip(("first", "second"), shares))
    axes = figure.add_subplot(**dict(zip(("xlabel", "ylabel"), names)))
    for label, colour in [("other", COLOURS[-1]), *zip(common, COLOURS)]:  # small groups on top
        x_2 = x_V2[labels_V == label].T
        size = min(5.0, max(2.0, 150 / math.sqrt(len(x_V2))))
        axes.plot(*x_2, ".", color=colour, markersize=size, markeredgewidth=0, label=f"{label} {x_2.shape[1]:,}")
    clear_frame(axes, None, "top", "right")
    figure.legend(loc="outside right upper", frameon=False, markerscale=5)
    return to_png(figure)


@matplotlib.rc_context(DRAWING)
def draw_tsne(maps: Mapping[str, tuple[Sequence[str], Mapping[str, np.ndarray]]]) -> bytes:
    """Tokens in the plane as PNG, a row a run and a column a layer: run -> class of each token, and layer -> x_N2."""
    names, columns = sorted({name for classes, _ in maps.values() for name in classes}), len(next(iter(maps.values()))[1])
    figure = new_figure(2.6 * columns, 0.5 + 2.6 * len(maps))
    grid = figure.subplots(len(maps), columns, squeeze=False)
    for number, (run, (classes, layers)) in enumerate(maps.items()):
        grid[number, 0].set_ylabel(drawable(run, number), parse_math=False)
        for axes, (layer, x_N2) in zip(grid[number], layers.items()):
            for name, colour in zip(names, COLOURS):
                axes.plot(*x_N2[np.array(classes) == name].T, ".", color=colour, markersize=3, markeredgewidth=0)
            axes.set(title="" if number else layer, xticks=[], yticks=[])
    handles = [Line2D([], [], color=colour, marker="o", linestyle="") for _, colour in zip(names, COLOURS)]
    add_legend(figure, handles, names, 6)
    return to_png(figure)


@matplotlib.rc_context(DRAWING)
def draw_layers(panels: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]) -> str:
    """Probe results by layer as SVG: (title, axis) -> rows of run, layer, value, low, high, control, chance.

    Each run has a solid line with its interval as a band, and a dashed line for its control; chance is dotted.
    """
    runs = list(dict.fromkeys(row["run"] for rows in panels.values() for row in rows))
    columns = min(3, len(panels))
    figure = new_figure(3.7 * columns, 0.8 + 2.7 * math.ceil(len(panels) / columns))
    for place, ((title, axis), rows) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(math.ceil(len(panels) / columns), columns, place, ylabel=axis)
        axes.set_title(drawable(title, place - 1, "task"), parse_math=False)
        axes.set_xlabel("layer" if place > len(panels) - columns else "")
        for number, run in enumerate(runs):
            _draw_run(axes, [row for row in rows if row["run"] == run], number)
        _name_layers(axes, sorted({row["layer"] for row in rows}))
        axes.set_ylim(bottom=0)
        clear_frame(axes, "both", "top", "right")
    _name_lines(figure, runs)
    return to_svg(figure)


def _name_layers(axes: Axes, layers: Sequence[int]) -> None:
    """Name the first layer (codes), the last (final norm), and about six of those between."""
    inner = layers[1:-1]
    shown = [*layers[:1], *inner[:: max(1, len(inner) // 6)], *layers[-1:]]
    names = ["codes", *map(str, shown[1:-1]), "final\nnorm"]
    axes.set_xticks(shown, names[: len(shown)])


def _draw_run(axes: Axes, rows: Sequence[Mapping[str, Any]], number: int) -> None:
    colour, marker = (arm_style(number)[name] for name in ("color", "marker"))
    layers = [row["layer"] for row in rows]
    value, low, high, control, chance = ([row[key] for row in rows] for key in ("value", "low", "high", "control", "chance"))
    axes.fill_between(layers, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.plot(layers, chance, color="#444444", linestyle="dotted", linewidth=1)
    axes.plot(layers, control, color=colour, linestyle="dashed", linewidth=1.1)
    axes.plot(layers, value, color=colour, marker=marker, linewidth=1.6, **HOLLOW)


def _name_lines(figure: Figure, runs: Sequence[str]) -> None:
    handles = [Line2D([], [], **arm_style(number) | {"linestyle": "solid"}, **HOLLOW) for number in range(len(runs))]
    handles += [Line2D([], [], color="#444444", linestyle=style) for style in ("dashed", "dotted")]
    names = [*(drawable(run, number) for number, run in enumerate(runs)), "never trained", "chance"]
    add_legend(figure, handles, names, 5)
