"""How pictures look: colours, lines and files of every figure, readable in grey and by the colour-blind.

Series differ by colour, by line and by marker, so that none is needed to tell them apart. Files are the same for the
same content: no date, no random identifiers. Nothing here opens a window.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dfshield.core.files import atomic

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, which the colour-blind can tell apart, in an order that differs in grey."""
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "++++", "oooo")
"""Patterns of areas, by which they differ where colours do not."""
SEQUENTIAL = "cividis"
"""Colour map of heat maps and surfaces: its lightness rises evenly."""
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "hatch.linewidth": 0.6,
    "svg.hashsalt": "dfshield",
    "svg.fonttype": "path",
    "savefig.dpi": 150,
}


@contextmanager
def canvas(width: float = 6.4, height: float = 4.0) -> Iterator[Figure]:
    """A figure of so many inches, in the style of the house."""
    with rc_context(STYLE):
        yield Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, path: Path) -> None:
    """Write a figure to `path` with the suffixes ``.png`` and ``.svg``; inside its `canvas`."""
    for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None, "Creator": None})):
        with atomic(path.with_suffix(suffix)) as temporary:
            figure.savefig(temporary, format=suffix[1:], metadata=metadata)


def series(number: int) -> dict[str, Any]:
    """Colour, line and marker of the series `number`, counted from 0."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": LINES[number % len(LINES)],
        "marker": MARKERS[number % len(MARKERS)],
    }


def line(
    axes: Axes,
    number: int,
    label: str,
    x: Sequence[float],
    y: Sequence[float],
    low: Sequence[float] | None = None,
    high: Sequence[float] | None = None,
) -> None:
    """Draw one series, and the interval from `low` to `high` as a band around it."""
    style = series(number)
    axes.plot(x, y, label=label, **style)
    if low is not None and high is not None:
        axes.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)


def points(
    axes: Axes,
    number: int,
    label: str,
    x: Sequence[float],
    y: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
) -> None:
    """Draw one series as points with the interval from `low` to `high` of x, and each value beside its interval."""
    style = series(number) | {"linestyle": "none"}
    wings = [[v - a for v, a in zip(x, low, strict=True)], [b - v for v, b in zip(x, high, strict=True)]]
    axes.errorbar(x, y, xerr=wings, label=label, capsize=3, elinewidth=1.2, **style)
    for value, at, end in zip(x, y, high, strict=True):
        axes.annotate(f"{value:.1f}", (end, at), (4, 0), textcoords="offset points", va="center", fontsize=7.5)


def shares(axes: Axes, number: int, label: str, y: Sequence[float], left: Sequence[float], x: Sequence[float]) -> None:
    """Draw the part `number` of stacked horizontal bars, of the lengths `x` and starting at `left`."""
    color, hatch = COLOURS[number % len(COLOURS)], HATCHES[number % len(HATCHES)]
    axes.barh(y, x, left=left, height=0.7, label=label, color=color, hatch=hatch, edgecolor="white", linewidth=0.5)
