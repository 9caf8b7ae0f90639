"""How pictures look: colours, lines and files of every figure, readable in grey and by the colour-blind.

Series differ by colour, by line and by marker, so that none is needed to tell them apart. Files are the same for the
same content: no date, no random identifiers. Nothing here opens a window.
"""

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

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


def title(figure: Figure, text: str) -> None:
    """Write the title of a whole figure, in as many lines as its width asks for."""
    figure.suptitle(textwrap.fill(text, int(11 * figure.get_figwidth())), fontsize=11)


def note(figure: Figure, texts: Sequence[str]) -> None:
    """Write texts below a whole figure, each in as many lines as its width asks for."""
    figure.supxlabel("\n".join(wrapped(texts, figure.get_figwidth())), fontsize=7, x=0.01, ha="left")


def wrapped(texts: Sequence[str], width: float) -> list[str]:
    """The lines of `note` for texts below a figure of `width` inches."""
    return [line for text in texts for line in textwrap.wrap(text, int(19 * width))]


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


def written(axes: Axes, y: Sequence[float], left: Sequence[float], x: Sequence[float], least: float) -> None:
    """Write the lengths of the parts of `shares` into them, on white; those below `least` have no room."""
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
    for at, start, length in zip(y, left, x, strict=True):
        if length >= least:
            axes.text(start + length / 2, at, f"{length:.0f}", ha="center", va="center", fontsize=6.5, bbox=box)


def frame(axes: Axes, column: int, row: int) -> None:
    """Frame a cell of a heat map, in white on black, which shows on any colour."""
    for color, width in (("black", 4.0), ("white", 1.5)):
        axes.add_patch(Rectangle((column - 0.46, row - 0.44), 0.92, 0.88, fill=False, color=color, linewidth=width))


PLACES = [
    *[(7, 8, "left"), (7, -8, "left"), (-7, 8, "right"), (-7, -8, "right")],
    *[(9, 0, "left"), (-9, 0, "right"), (0, 12, "center"), (0, -12, "center"), (9, 16, "left"), (9, -16, "left")],
    *[(-9, 16, "right"), (-9, -16, "right"), (0, 24, "center"), (0, -24, "center")],
]
"""Where a label may stand: points to the right of its mark and above it, and its alignment; the first that is free."""


@dataclass(frozen=True)
class Mark:
    """A marker with its error bars, and the text beside it; in the units of its axes."""

    text: str
    x: float
    y: float
    across: tuple[float, float]
    """Ends of the horizontal bar."""
    upright: tuple[float, float]
    """Ends of the vertical bar."""

    def boxes(self, axes: Axes) -> list[Bbox]:
        """The boxes of marker and bars, in pixels."""
        ends = [
            (self.across[0], self.y),
            (self.across[1], self.y),
            (self.x, self.upright[0]),
            (self.x, self.upright[1]),
        ]
        left, right, low, high = axes.transData.transform(ends)
        x, y = axes.transData.transform((self.x, self.y))
        bars = [(left[0], y - 1, right[0], y + 1), (x - 1, low[1], x + 1, high[1])]
        return [Bbox.from_extents(*box) for box in ((x - 6, y - 6, x + 6, y + 6), *bars)]


def label(figure: Figure, panels: Sequence[tuple[Axes, Sequence[Mark]]]) -> None:
    """Write the texts of marks beside them, so that they cover neither one another nor a mark, if there is room.

    After all else is drawn, since it needs the limits of the axes.
    """
    figure.draw_without_rendering()
    for axes, marks in panels:
        taken = [box for mark in marks for box in mark.boxes(axes)]
        room = axes.get_window_extent()
        for mark in marks:
            made = [_written(axes, mark, place) for place in PLACES]
            boxes = [text.get_window_extent() for text in made]
            inside = [room.x0 <= b.x0 and b.x1 <= room.x1 and room.y0 <= b.y0 and b.y1 <= room.y1 for b in boxes]
            covered = [
                box.count_overlaps(taken) + 100 * (not within) for box, within in zip(boxes, inside, strict=True)
            ]
            chosen = covered.index(min(covered))
            taken.append(boxes[chosen])
            for number, text in enumerate(made):
                if number != chosen:
                    text.remove()


def _written(axes: Axes, mark: Mark, place: tuple[float, float, str]) -> Annotation:
    right, up, align = place
    made = axes.annotate(
        mark.text, (mark.x, mark.y), (right, up), textcoords="offset points", ha=align, va="center", fontsize=7.5
    )
    made.set_in_layout(False)
    return made
