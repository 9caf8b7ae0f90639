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
from matplotlib.transforms import Bbox

from dfshield.core.files import atomic

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, which the colour-blind can tell apart, in an order that differs in grey."""
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
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


PLACES = [(7, 0, "left"), (-7, 0, "right"), (0, 9, "center"), (0, -9, "center")]
PLACES += [(7, 9, "left"), (7, -9, "left"), (-7, 9, "right"), (-7, -9, "right"), (0, 20, "center"), (0, -20, "center")]
"""Where a label may stand: points to the right of its place and above it, and its alignment; the first that is free."""


def label(figure: Figure, panels: Sequence[tuple[Axes, Sequence[tuple[str, float, float]]]]) -> None:
    """Write texts beside their places (text, x, y) in each panel, so that they do not cover one another or the places.

    After all else is drawn, since it needs the limits of the axes.
    """
    figure.draw_without_rendering()
    for axes, texts in panels:
        taken = [_around(axes, x, y) for _, x, y in texts]
        room = axes.get_window_extent()
        for text, x, y in texts:
            for right, up, align in PLACES:
                made = axes.annotate(
                    text, (x, y), (right, up), textcoords="offset points", ha=align, va="center", fontsize=7.5
                )
                made.set_in_layout(False)
                box = made.get_window_extent()
                inside = room.x0 <= box.x0 and box.x1 <= room.x1 and room.y0 <= box.y0 and box.y1 <= room.y1
                if (inside and not box.count_overlaps(taken)) or (right, up, align) == PLACES[-1]:
                    taken.append(box)
                    break
                made.remove()


def _around(axes: Axes, x: float, y: float) -> Bbox:
    """The box of a marker, in the display's units."""
    right, up = axes.transData.transform((x, y))
    half = 6.0  # pixels of the canvas, a little more than half a marker
    return Bbox.from_extents(right - half, up - half, right + half, up + half)
