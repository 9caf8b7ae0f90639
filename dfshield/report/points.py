"""What figures of measurements draw: means over seeds with their intervals, and their CSV."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dfshield.core.files import csv_text
from dfshield.core.threat import parse_threat
from dfshield.planning.axes import Numbers
from dfshield.planning.cells import swept
from dfshield.planning.figures import THREAT, FigureSpec
from dfshield.planning.tables import SYMBOLS
from dfshield.registry import metric
from dfshield.report.layout import dataset_title
from dfshield.report.rows import Row, cell_text

BAND = ("value", "low", "high")


@dataclass(frozen=True)
class Figure:
    """A figure of one metric: mean over seeds, in the metric's unit, and an interval around it; NaN where none is.

    The interval goes from the lowest to the highest of several seeds; of one seed it is the table's own, 95 % by Wilson
    for the `n` images.
    """

    value: float
    low: float
    high: float
    seeds: int
    n: int
    metric: str
    flags: tuple[str, ...]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> "Figure":
        """The figure of one cell's rows, a row a seed."""
        first, values = rows[0], [row.value for row in rows]
        ends = (min(values), max(values)) if len(rows) > 1 else (first.ci_low, first.ci_high)
        flags = tuple(dict.fromkeys(flag for row in rows for flag in row.flags))
        return cls(statistics.fmean(values), *ends, len(rows), min(row.n for row in rows), first.metric, flags)

    @property
    def has_interval(self) -> bool:
        """Whether there is an interval; a single seed of a metric that is no rate has none."""
        return not math.isnan(self.low)

    @property
    def interval(self) -> str:
        """What the interval is, as the CSV says it."""
        return "" if not self.has_interval else "seeds" if self.seeds > 1 else "95 %"

    def texts(self) -> list[str]:
        """Value and ends of the interval as the CSV has them: with the metric's decimals."""
        return [cell_text(getattr(self, name), metric(self.metric).decimals) for name in BAND]


@dataclass(frozen=True)
class Point:
    """One point of a figure."""

    dataset: str
    model: str
    method: str
    y: Figure
    x: float | Figure | None = None
    """A number along the axis of lines, a figure in a scatter plot, nothing in a heat map."""
    tick: str = ""
    """The number as its axis has it, such as ``4/255``."""
    own: bool = False
    """In a heat map: of training on the data set's own images."""
    front: bool = False
    """In a scatter plot: data-free, and no other data-free point exceeds it in both."""

    @property
    def flags(self) -> tuple[str, ...]:
        """The flags of all its figures."""
        own = self.x.flags if isinstance(self.x, Figure) else ()
        return tuple(dict.fromkeys((*own, *self.y.flags)))

    @property
    def metric(self) -> str:
        """The metric that is drawn."""
        return self.y.metric

    @property
    def data_free(self) -> bool:
        """Whether nothing of it has seen real images beyond the teacher's training."""
        return "not-data-free" not in self.flags


Key = tuple[str, str, str, str, str]


def _cells(rows: Iterable[Row]) -> dict[Key, dict[str, Figure]]:
    """Figures by metric of every data set, model, method, variant and threat, in order of first appearance."""
    found: dict[Key, dict[str, list[Row]]] = {}
    for row in rows:
        if not math.isnan(row.value):  # a rate of no image
            key = (row.dataset, row.model, row.method, row.variant, row.threat)
            found.setdefault(key, {}).setdefault(row.metric, []).append(row)
    return {key: {name: Figure.of(own) for name, own in metrics.items()} for key, metrics in found.items()}


def lines(spec: FigureSpec, rows: Sequence[Row], numbers: Numbers | None = None) -> list[Point]:
    """Points of lines, each line by rising `x`; over threats with the clean accuracy at ε = 0.

    `numbers` are those of `axes.numbers`, for lines along an option of a defence or an attack.
    """
    found: dict[tuple[str, ...], dict[float, Point]] = {}
    for (dataset, model, method, variant, threat), figures in _cells(rows).items():
        place = dataset, model, method
        for name, figure in figures.items():
            if spec.x == THREAT:  # clean accuracy is the same at every threat
                clean = name == "clean"
                x, tick = (0.0, "0") if clean else (parse_threat(threat).eps, threat.partition(":")[2])
            else:
                x = (numbers or {})[*place, name] if spec.option else swept(variant)[_symbol(spec)]
                tick = f"{x:.2g}"
            named = {"dataset": dataset, "model": model, "method": method, "metric": name}
            line = tuple(named[each] for each in told_apart(spec))
            found.setdefault(line, {}).setdefault(x, Point(*place, figure, x, tick))
    return [points[x] for points in found.values() for x in sorted(points)]


def told_apart(spec: FigureSpec) -> list[str]:
    """What tells lines apart: fields of points, none that differs along the line."""
    along = {"defence": "method", "attack": "metric"}.get(spec.option[0] if spec.option else "")
    told = ("dataset", "model", "method", *(["metric"] if spec.series == "metric" else []))
    return [name for name in told if name != along]


def _symbol(spec: FigureSpec) -> str:
    return SYMBOLS.get(str(spec.x), str(spec.x))


def x_name(spec: FigureSpec) -> str:
    """The name of the column of the numbers along the axis of lines."""
    return "eps" if spec.x == THREAT else spec.option[1] if spec.option else str(spec.x)


def scatter(spec: FigureSpec, rows: Sequence[Row]) -> list[Point]:
    """A point of every method by two metrics, those of the front marked."""
    both = {str(spec.x), str(spec.y)}
    points = [
        Point(*key[:3], y=figures[str(spec.y)], x=figures[str(spec.x)])
        for key, figures in _cells(rows).items()
        if both <= figures.keys()
    ]
    return [_with_front(point, points) for point in points]


def _with_front(point: Point, points: Sequence[Point]) -> Point:
    """The point, marked if it is data-free and no data-free point of the same model is as good in both and better."""

    def figures(one: Point) -> tuple[float, float]:
        assert isinstance(one.x, Figure)
        return one.x.value, one.y.value

    own = figures(point)
    panel = (point.dataset, point.model)
    others = [figures(one) for one in points if one.data_free and (one.dataset, one.model) == panel]
    beaten = any(other != own and other[0] >= own[0] and other[1] >= own[1] for other in others)
    front = point.data_free and not beaten
    return Point(point.dataset, point.model, point.method, point.y, point.x, front=front)


def heatmap(spec: FigureSpec, rows: Sequence[Row]) -> list[Point]:
    """A point of every data set, model and method; that of the data set's own images has its title for a method."""
    points = []
    for (dataset, model, method, _, _), figures in _cells(rows).items():
        own = method == spec.own
        if str(spec.y) in figures:
            column = dataset_title(dataset) if own else method
            points.append(Point(dataset, model, column, y=figures[str(spec.y)], own=own))
    return points


def csv_of(spec: FigureSpec, points: Sequence[Point]) -> str:
    """The points as a tidy CSV: columns have the names of what they hold; `interval` says of what the ends are."""
    y = str(spec.y)
    columns = ["dataset", "model", "method"]
    if spec.layout == "lines":
        columns += [x_name(spec), "metric"]
    if spec.layout == "scatter":
        columns += [str(spec.x), f"{spec.x}_low", f"{spec.x}_high", f"{spec.x}_n"]
    named = "value" if spec.layout == "lines" else y
    columns += [named, f"{named}_low", f"{named}_high", "interval", "seeds", "n", "flags"]
    columns += ["front"] if spec.layout == "scatter" else ["own"] if spec.own else []
    rows = []
    for point in points:
        row = [point.dataset, point.model, point.method]
        if spec.layout == "lines":
            row += [f"{point.x:.6g}", point.y.metric]
        if isinstance(point.x, Figure):
            row += [*point.x.texts(), str(point.x.n)]
        row += [*point.y.texts(), point.y.interval, str(point.y.seeds), str(point.y.n), ";".join(point.flags)]
        row += ["yes" if point.front or point.own else "no"] if spec.layout == "scatter" or spec.own else []
        rows.append(row)
    return csv_text(columns, rows)
