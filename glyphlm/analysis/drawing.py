"""What all plots share: figures, styles of arms, legends, SVG and PNG."""

import io
import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from glyphlm.analysis.style import COLOURS, MARKERS

LINES: tuple[Any, ...] = ("solid", (0, (6, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
LEGEND = 60  # characters in a line of a legend, of which each handle takes five
LEGEND_LINE = 0.2  # inches
# Text as outlines, so that no font is needed to view it; a fixed salt makes the ids, and so the bytes, reproducible.
DRAWING: dict[Any, Any] = {"svg.fonttype": "path", "svg.hashsalt": "glyphlm", "font.family": "DejaVu Sans", "font.size": 10}
HOLLOW = {"markersize": 7, "markerfacecolor": "none", "markeredgewidth": 1.4}  # so that coinciding arms are visible


def new_figure(width: float, height: float) -> Figure:
    """A figure of this size in inches."""
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def clear_frame(axes: Axes, grid: Literal["both", "x", "y"] | None, *sides: str) -> None:
    """Axes without the frame on these sides, with a light grid behind what is drawn."""
    axes.spines[[*sides]].set_visible(False)
    if grid:
        axes.grid(axis=grid, color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)


def add_legend(figure: Figure, handles: Iterable[Any], names: Sequence[str], columns: int) -> None:
    """A legend above the plot; the figure grows with its lines, so that the plot keeps its size."""
    lines = math.ceil(len(names) / columns)
    figure.set_figheight(figure.get_figheight() + LEGEND_LINE * max(0, lines - 2))
    legend = figure.legend(list(handles), names, loc="outside upper left", ncols=min(len(names), columns), frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a dollar sign begins no formula


def fitting_columns(names: Sequence[str]) -> int:
    """How many columns of a legend with these names fit a figure of the usual width."""
    return max(1, LEGEND // (max(map(len, names)) + 5))


def arm_style(number: int) -> dict[str, Any]:
    """Colour, line style and marker of arm `number`; 49 arms differ in colour or marker."""
    of_seven = number // len(COLOURS)
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": LINES[of_seven % len(LINES)],
            "marker": MARKERS[(number + of_seven) % len(MARKERS)][0]}


def legend_line(number: int) -> Line2D:
    """What stands for arm `number` in a legend."""
    return Line2D([], [], **arm_style(number), **HOLLOW)


def drawable(label: str, number: int, kind: str = "run") -> str:
    """The label, shortened; `kind` and number if matplotlib's font lacks its characters (it ends after Cyrillic)."""
    if label.isprintable() and all(ord(character) < 0x500 for character in label):
        return label if len(label) <= 36 else label[:35] + "…"
    return f"{kind} {number + 1}"


def to_svg(figure: Figure) -> str:
    """The same bytes for the same figure."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def to_png(figure: Figure) -> bytes:
    """The same bytes for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()
