"""Figures of measurements: lines, scatter plots and heat maps, a panel for each data set and model.

Every picture says in a line below what its intervals are, and what the marks of its figures mean.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from dfshield.planning.figures import THREAT, FigureSpec
from dfshield.registry import metric
from dfshield.report import drawing
from dfshield.report.broken import CLEAN, ROBUST, Share
from dfshield.report.layout import GREEK, dataset_title, model_title
from dfshield.report.notes import notes
from dfshield.report.points import Figure, Point, told_apart

T = TypeVar("T", Point, Share)
X_TITLES = {
    THREAT: "ε",
    "data_share": "share of the synthesised images",
    "aggregate": "B, mini-batches per update",
    "defence.time": "share of the noising process",
    "defence.steps": "steps of the defence",
    "defence.delta": "Δ, largest change of a pixel",
    "attack.eot": "draws that the attack averages",
}
LOGARITHMIC = ("attack.eot",)
"""Numbers along an axis whose ratios matter."""
TITLES: dict[str, Callable[[str], str]] = {"dataset": dataset_title, "model": model_title, "method": str}
TITLES |= {"metric": lambda name: metric(name).title}
"""How the fields that tell points apart are written."""
ACROSS = 3
"""Panels side by side."""
LEAST_WRITTEN = 4
"""Percent of the images from which on a part of a bar has room for its number."""
COMPONENTS = {ROBUST: "survived", CLEAN: "wrong without attack"}
"""Parts of a bar that no component broke, and their titles."""
MOST_TICKS = 8
"""Numbers that are written along an axis, each where a point is."""


def title_of(name: str) -> str:
    """Title of an axis along a metric, with its unit."""
    entry = metric(name)
    percent = "accuracy in %" if entry.evidence == "ledger" and not entry.statistic else "in %"
    return f"{entry.title} {percent}" if entry.unit == "%" else entry.title


def intervals(points: Iterable[Point]) -> str:
    """What the intervals of some points are, in words; empty where there are none."""
    figures = [one for point in points for one in (point.x, point.y) if isinstance(one, Figure) and one.has_interval]
    seeds = {figure.seeds for figure in figures if figure.seeds > 1}
    images = {figure.n for figure in figures if figure.seeds == 1}
    said = []
    if seeds:
        said.append(f"mean of {_numbers(seeds)} seeds, from the lowest to the highest")
    if images:
        said.append(f"one seed, 95 % Wilson interval of {_numbers(images)} images")
    return f"Intervals: {'; or '.join(said)}." if said else ""


def _numbers(values: Iterable[int]) -> str:
    return " or ".join(map(str, sorted(values)))


def marks(flags: Iterable[str]) -> str:
    """The marks of some flags, as tables have them, separated by commas."""
    known = notes(flags)
    return ",".join(dict.fromkeys(mark for mark, _ in known.values()))


def footnotes(flags: Iterable[str]) -> list[str]:
    """What the marks of some flags mean, one text a mark."""
    return [f"{mark} {text}." for mark, text in dict.fromkeys(notes(flags).values())]


@contextmanager
def _panels(
    spec: FigureSpec, keys: Sequence[tuple[str, ...]], below: Sequence[str], size: tuple[float, float], shared: bool
) -> Iterator[tuple[Canvas, list[Axes]]]:
    """A canvas with a panel of `size` inches for each of `keys`, titled, and lines of text `below` them."""
    across = min(len(keys), ACROSS)
    down = math.ceil(len(keys) / across)
    width = max(across * size[0], 4.6)
    text = drawing.wrapped(below, width)
    with drawing.canvas(width, down * size[1] + 0.7 + 0.14 * len(text)) as figure:
        grid = figure.subplots(down, across, squeeze=False, sharex=shared, sharey=shared)
        axes = list(grid.flat)
        for key, own in zip(keys, axes, strict=False):
            own.set_title(", ".join(key))
        for unused in axes[len(keys) :]:
            unused.set_visible(False)
        drawing.title(figure, spec.title)
        if text:
            drawing.note(figure, below)
        yield figure, axes


def _fields(spec: FigureSpec) -> list[str]:
    """The fields that panels are told apart by."""
    told = told_apart(spec) if spec.layout == "lines" else ["dataset", "model"]
    return [name for name in told if name != spec.series]


def _grouped(points: Sequence[T], fields: Sequence[str]) -> dict[tuple[str, ...], list[T]]:
    """Points by the titles of some of their fields, in order of first appearance."""
    found: dict[tuple[str, ...], list[T]] = {}
    for point in points:
        found.setdefault(tuple(TITLES[name](getattr(point, name)) for name in fields), []).append(point)
    return found


def _below(points: Sequence[Point], *more: str) -> list[str]:
    flags = [flag for point in points for flag in point.flags]
    return [*filter(None, (intervals(points), *more)), *footnotes(flags)]


def draw_lines(spec: FigureSpec, points: Sequence[Point], path: Path) -> None:
    """A line for each of `series`, its interval as a band."""
    panels, names = _grouped(points, _fields(spec)), list(_grouped(points, [str(spec.series)]))
    ticks, unit = _ticks(points)
    with _panels(spec, list(panels), _below(points), (3.4, 2.7), shared=True) as (figure, axes):
        for (_, own), place in zip(panels.items(), axes, strict=False):
            for name, series in _grouped(own, [str(spec.series)]).items():
                figures = [point.y for point in series]
                band = [[getattr(one, end) for one in figures] for end in ("low", "high")]
                x = [float(str(point.x)) for point in series]
                drawing.line(place, names.index(name), name[0], x, [one.value for one in figures], *band)
            place.set_xlabel(X_TITLES.get(str(spec.x), GREEK.get(str(spec.x), str(spec.x))) + unit)
            place.label_outer()
        if spec.x in LOGARITHMIC:
            axes[0].set_xscale("log")
            axes[0].minorticks_off()
        if len(ticks) <= MOST_TICKS:
            axes[0].set_xticks(list(ticks), list(ticks.values()))
        axes[0].set_ylim(bottom=0)
        for place in axes[::ACROSS]:
            place.set_ylabel(_y_title(spec))
        _legend(figure, axes, names, points, spec)
        drawing.save(figure, path)


def _y_title(spec: FigureSpec) -> str:
    """Title of the axis of lines: of a metric, or of what several have in common."""
    if not spec.compared:
        return title_of(str(spec.y))
    entries = [metric(name) for name in spec.compared]
    accuracies = all(entry.evidence == "ledger" and not entry.statistic for entry in entries)
    return "accuracy in %" if accuracies else f"in {entries[0].unit}"


def _ticks(points: Sequence[Point]) -> tuple[dict[float, str], str]:
    """What is written at each x, and the unit of it: fractions of one denominator are counted in that."""
    texts = {float(str(point.x)): point.tick for point in points}
    parts = {x: text.partition("/") for x, text in texts.items()}
    denominators = {below for above, _, below in parts.values() if above != "0"}
    if len(denominators) == 1 and denominators != {""}:
        return {x: above for x, (above, _, _) in parts.items()}, f" in units of 1/{denominators.pop()}"
    return texts, ""


def _legend(
    figure: Canvas, axes: Sequence[Axes], names: Sequence[tuple[str, ...]], points: Sequence[Point], spec: FigureSpec
) -> None:
    """One legend of all panels, series with the marks of their points."""
    handles = {
        label: handle for place in axes for handle, label in zip(*place.get_legend_handles_labels(), strict=True)
    }
    flags = _grouped(points, [str(spec.series)])
    labels = [f"{name[0]} {marks(flag for p in flags[name] for flag in p.flags)}".strip() for name in names]
    figure.legend([handles[name[0]] for name in names], labels, loc="outside right center", handlelength=3)


def draw_scatter(spec: FigureSpec, points: Sequence[Point], path: Path) -> None:
    """A labelled point of each method, hollow where it is not data-free, and the front as a line."""
    panels, names = _grouped(points, _fields(spec)), list(_grouped(points, ["method"]))
    with _panels(spec, list(panels), _below(points), (4.4, 3.6), shared=True) as (figure, axes):
        for (_, own), place in zip(panels.items(), axes, strict=False):
            for point in own:
                assert isinstance(point.x, Figure)
                style = drawing.series(names.index((point.method,)))
                place.errorbar(
                    point.x.value,
                    point.y.value,
                    xerr=_error(point.x),
                    yerr=_error(point.y),
                    color=style["color"],
                    marker=style["marker"],
                    markerfacecolor=style["color"] if point.data_free else "white",
                    markersize=6,
                    elinewidth=0.8,
                )
            front = sorted((p.x.value, p.y.value) for p in own if p.front and isinstance(p.x, Figure))
            place.plot(*zip(*front, strict=True), color="#999999", linewidth=1, zorder=1)
            place.set_xlabel(title_of(str(spec.x)))
            place.set_ylabel(title_of(str(spec.y)))
            place.label_outer()
            place.margins(0.1)
        labelled = [[_mark(point) for point in own] for own in panels.values()]
        drawing.label(figure, list(zip(axes, labelled, strict=False)))
        drawing.save(figure, path)


def _mark(point: Point) -> drawing.Mark:
    assert isinstance(point.x, Figure)
    bars = [(f.low, f.high) if f.has_interval else (f.value, f.value) for f in (point.x, point.y)]
    return drawing.Mark(f"{point.method}{marks(point.flags)}", point.x.value, point.y.value, *bars)


def _error(figure: Figure) -> np.ndarray | None:
    """Lengths (2,1) of an error bar down and up; None without an interval."""
    if not figure.has_interval:
        return None
    return np.array([[figure.value - figure.low], [figure.high - figure.value]]).clip(0)


def draw_heatmap(spec: FigureSpec, points: Sequence[Point], path: Path) -> None:
    """The metric of each method (columns) and of each of `series` (rows), written into the cells."""
    panels = _grouped(points, _fields(spec))
    columns = [name for (name,) in _grouped(points, ["method"])]
    rows = [name for (name,) in _grouped(points, [str(spec.series)])]
    values = [point.y.value for point in points]
    low, high = min(values), max(values)
    size = (1.4 + 0.55 * len(columns), 1.3 + 0.35 * len(rows))
    framed = ["Framed: the data set's own training images."] if any(point.own for point in points) else []
    below = [f"{title_of(str(spec.y))}.", *framed, *footnotes(flag for point in points for flag in point.flags)]
    with _panels(spec, list(panels), below, size, shared=False) as (figure, axes):
        for (_, own), place in zip(panels.items(), axes, strict=False):
            table = np.full((len(rows), len(columns)), np.nan)
            place.grid(visible=False)
            for point in own:
                row = rows.index(TITLES[str(spec.series)](getattr(point, str(spec.series))))
                column = columns.index(point.method)
                table[row, column] = point.y.value
                dark = point.y.value < (low + high) / 2
                text = f"{point.y.value:.{min(1, metric(str(spec.y)).decimals)}f}{marks(point.flags)}"
                if point.own:
                    drawing.frame(place, column, row)
                place.text(column, row, text, ha="center", va="center", color="white" if dark else "black", fontsize=8)
            place.imshow(table, cmap=drawing.SEQUENTIAL, vmin=low, vmax=high, aspect="auto")
            place.set_xticks(range(len(columns)), columns, rotation=35, ha="right", rotation_mode="anchor")
            place.set_yticks(range(len(rows)), rows)
        drawing.save(figure, path)


def draw_bars(spec: FigureSpec, made: Sequence[Share], path: Path) -> None:
    """A stacked bar of each method: images that nothing broke, and those that each component was the first to break."""
    panels = _grouped(made, _fields(spec))
    names = list(dict.fromkeys(share.component for share in made))
    methods = [name for (name,) in _grouped(made, ["method"])]
    images, seeds = _numbers({share.n for share in made}), {share.seeds for share in made if share.seeds > 1}
    mean = f"; mean of {_numbers(seeds)} seeds" if seeds else ""
    title = metric(str(spec.y)).title
    below = [f"Shares of {images} test images under {title} in %, below {LEAST_WRITTEN} without a number{mean}."]
    below += footnotes(flag for share in made for flag in share.flags)
    with _panels(spec, list(panels), below, (4.2, 0.8 + 0.32 * len(methods)), shared=True) as (figure, axes):
        for (_, own), place in zip(panels.items(), axes, strict=False):
            bars = _grouped(own, ["method"])
            left = [0.0] * len(bars)
            for number, name in enumerate(names):
                parts = [next((s.share for s in bar if s.component == name), 0.0) for bar in bars.values()]
                rows = [methods.index(method) for (method,) in bars]
                drawing.shares(place, number, COMPONENTS.get(name, f"broken by {name}"), rows, left, parts)
                drawing.written(place, rows, left, parts, LEAST_WRITTEN)
                left = [start + part for start, part in zip(left, parts, strict=True)]
            flags = {name: marks(bar[0].flags) for (name,), bar in bars.items()}
            place.set(xlim=(0, 100), ylim=(len(methods) - 0.5, -0.5), xlabel="test images in %")
            place.set_yticks(range(len(methods)), [f"{name} {flags.get(name, '')}".strip() for name in methods])
            place.grid(visible=False)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center")
        drawing.save(figure, path)
