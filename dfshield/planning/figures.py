"""What each figure is: config/figures.yaml as typed specifications."""

from pathlib import Path
from typing import Literal

from pydantic import model_validator

from dfshield.core.errors import InputError
from dfshield.core.files import read_yaml
from dfshield.core.validation import Options, build
from dfshield.options.common import Name, Positive
from dfshield.planning.tables import TableSpec
from dfshield.registry import metric

THREAT = "threat"
"""The `x` of lines over the size of the perturbations."""
CARRIERS = ("defence", "attack")
"""What may have the option that is the `x` of lines, besides the training."""

NEEDED: dict[str, tuple[str, ...]] = {
    "lines": ("x", "y", "series"),
    "scatter": ("x", "y"),
    "sheet": (),
    "heatmap": ("y", "series"),
    "bars": ("y",),
    "surface": ("y", "model"),
    "embedding": (),
    "plane": (),
}
"""Layouts and what a figure has to say for them; it says none of the others."""
OF_SETS = ("sheet", "embedding", "plane")
"""Layouts that draw the training sets of a table's rows in place of what the table measures."""
OF_TEACHERS = ("embedding", "plane")
"""Layouts among them that need the teachers of these sets, too."""


class FigureSpec(Options):
    """One figure: the table whose cells it draws, and how."""

    name: Name = ""
    """its key in figures.yaml"""
    title: str
    caption: str
    table: Name
    """the table that it is drawn from: its cells, its rows, its part of the config's grid"""
    layout: Literal["lines", "scatter", "sheet", "heatmap", "bars", "surface", "embedding", "plane"]
    """lines: a metric over numbers · scatter: two metrics of every method · sheet: training images, methods below one
    another, classes side by side · heatmap: a metric, methods side by side · bars: images by the component of an attack
    that was the first to break them, a bar a method · surface: loss landscapes, methods side by side · embedding: the
    teacher's features of training sets, methods side by side · plane: training sets of points, and the teacher's
    regions"""
    x: Name | None = None
    """of lines: a training option that the table sweeps; ``threat``, where clean accuracy stands at ε = 0;
    ``defence.OPTION``, a number of the rows' defences; ``attack.OPTION``, one of the protocols in `compared`; of a
    scatter plot: the metric along the x axis"""
    y: Name | None = None
    """the metric that is drawn; in a scatter plot the one along the y axis"""
    compared: tuple[Name, ...] = ()
    """of lines, in place of `y`: several metrics, each a line by ``series: metric``; along ``attack.OPTION`` they are
    the points of every line"""
    series: Literal["dataset", "model", "method", "metric"] | None = None
    """of lines: what a line is of; of a heat map: what its rows are of. What else differs has a panel of its own"""
    model: Positive | None = None
    """of surfaces: which model of each data set, counted from 1; a config without one has no such figure"""
    own: str | None = None
    """of a heat map by data set: a row of training on each data set's own images; it is drawn, framed, in a column that
    has the data set's title, where other data sets have the row of that title"""
    methods: tuple[str, ...] = ()
    """rows of the table that are drawn; none: all"""

    @model_validator(mode="after")
    def _layout_fits(self) -> "FigureSpec":
        for key in ("x", "y", "series", "model"):
            if key == "y" and self.layout == "lines" and self.compared:
                continue
            if (getattr(self, key) is None) == (key in NEEDED[self.layout]):
                said = "needs it" if key in NEEDED[self.layout] else "has none"
                raise ValueError(f"{key}: layout {self.layout} {said}")
        if self.layout == "heatmap" and self.series in ("method", "metric"):
            raise ValueError("series: the methods of a heat map stand side by side; name dataset or model")
        if self.own and (self.layout, self.series) != ("heatmap", "dataset"):
            raise ValueError("own: only a heat map whose rows are data sets has a column of each")
        self._check_compared()
        return self

    def _check_compared(self) -> None:
        """ValueError for metrics that no line is of, and for lines of which two points would be one."""
        along = self.option[0] if self.option else ""
        if self.compared and (self.layout != "lines" or self.y or self.x == THREAT):
            raise ValueError("compared: metrics of lines in place of y, and not over threat")
        if (self.series == "metric" or along == "attack") != bool(self.compared):
            raise ValueError("compared: lines of series metric or along attack.OPTION need it, and no others have it")
        if along == "attack" and (self.series == "metric" or "clean" in self.compared):
            raise ValueError(f"compared: metrics are the points along {self.x}, no lines of their own; clean is none")
        if along == "defence" and self.series == "method":
            raise ValueError(f"series: methods are the points along {self.x}; name metric, dataset or model")

    @property
    def option(self) -> tuple[str, str] | None:
        """Of lines along an option of a defence or an attack: which of the two, and the option; else None."""
        carrier, _, option = (self.x or "").partition(".")
        return (carrier, option) if self.layout == "lines" and carrier in CARRIERS and option else None

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics of the table that are drawn."""
        if self.compared:
            return self.compared
        named = {"lines": ("clean", self.y) if self.x == THREAT else (self.y,), "scatter": (self.x, self.y)}
        return tuple(filter(None, named.get(self.layout, (self.y,))))

    def check(self, spec: TableSpec) -> None:
        """Raise InputError for a table that lacks what the figure draws of it."""
        where = f"figures: {self.name}"
        for name in self.metrics:
            if name not in spec.metrics:
                raise InputError(f"{where}: metric {name!r} is none of {spec.key}'s: {', '.join(spec.metrics)}")
        if self.layout == "bars" and (self.y == "clean" or metric(str(self.y)).evidence != "ledger"):
            raise InputError(f"{where}: y is {self.y!r}, and bars are of the components of an attack; name a protocol")
        if len({metric(name).unit for name in self.compared}) > 1:
            raise InputError(f"{where}: compared metrics have several units, which one axis cannot have")
        lines = self.layout == "lines"
        if self.option and (spec.sweep or spec.compares_threats):
            raise InputError(f"{where}: x is {self.x!r}, and {spec.key} compares other values, too")
        if lines and self.x != THREAT and not self.option and list(spec.sweep) != [self.x]:
            raise InputError(f"{where}: x is {self.x!r}, {spec.key} sweeps {', '.join(spec.sweep) or 'nothing'}")
        if not lines and spec.sweep:
            raise InputError(f"{where}: {spec.key} sweeps {', '.join(spec.sweep)}, which only lines draw")
        if self.layout in ("scatter", "heatmap", "bars") and spec.compares_threats:
            raise InputError(f"{where}: {spec.key} compares threat models, which only lines draw")
        if lines and self.x == THREAT:
            stated = spec.evaluations
            if stated is None or not spec.compares_threats:
                raise InputError(f"{where}: x is threat, and {spec.key} has no evaluations at several")
            if len({text.partition(":")[0] for text in (*stated.demo, *stated.full)}) > 1:
                raise InputError(f"{where}: x is threat, and the evaluations of {spec.key} are in several norms")
        if self.layout == "surface" and metric(str(self.y)).evidence != "landscape":
            raise InputError(f"{where}: y is {self.y!r}, which is measured on no surface; name sharpness")
        named = (*self.methods, *filter(None, [self.own]))
        unknown = [name for name in named if name not in {row.method for row in spec.rows}]
        if unknown:
            raise InputError(f"{where}: method {unknown[0]!r} is no row of {spec.key}")


def load_figures(path: Path) -> dict[str, FigureSpec]:
    """Read figures.yaml: specifications by key. Raises InputError naming file, figure and key."""
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise InputError(f"{path}: must be a mapping of figure names to their specifications")
    return {
        str(key): build(FigureSpec, (given or {}) | {"name": str(key)}, f"{path}: {key}")
        for key, given in values.items()
    }
