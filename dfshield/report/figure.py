"""Stage figure: a figure as PNG and SVG, and what it draws as CSV."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfshield.core.errors import InputError
from dfshield.core.files import write_text
from dfshield.planning.axes import numbers
from dfshield.planning.figures import FigureSpec
from dfshield.planning.paths import TEACHER
from dfshield.report import broken, figure_embedding, figure_plane, figure_sheet, figure_surface, plots, points
from dfshield.report.origin import check
from dfshield.report.table import build

if TYPE_CHECKING:
    from dfshield.planning.plan import Plan


@dataclass(frozen=True)
class Layout:
    """One kind of figure."""

    data: Callable[["Plan", FigureSpec], list[Any]]
    """what is drawn, read from files; raises InputError for those that cannot be used"""
    csv: Callable[[FigureSpec, list[Any]], str]
    draw: Callable[[FigureSpec, list[Any], Path], None]
    """writes the PNG at a path, and the SVG beside it"""


def _measured(
    make: Callable[[FigureSpec, Sequence[Any]], list[points.Point]], plan: "Plan", spec: FigureSpec
) -> list[points.Point]:
    found = make(spec, build(plan.figure_cells(spec.name)))
    if not found:
        raise InputError(f"figures: {spec.name}: there is nothing to draw: no cell of {spec.table} has a value")
    return found


def _lines(plan: "Plan", spec: FigureSpec) -> list[points.Point]:
    along = numbers(plan, spec, plan.figure_cells(spec.name))
    return _measured(partial(points.lines, numbers=along), plan, spec)


def _shares(plan: "Plan", spec: FigureSpec) -> list[broken.Share]:
    cells = plan.figure_cells(spec.name)
    return broken.shares(cells, build(cells))


def _tiles(plan: "Plan", spec: FigureSpec) -> list[figure_sheet.Tile]:
    return figure_sheet.tiles(plan.figure_sets(spec.name))


def _surfaces(plan: "Plan", spec: FigureSpec) -> list[figure_surface.Surface]:
    cells = plan.figure_cells(spec.name)
    return figure_surface.surfaces(cells, build(cells))


def _seen(make: Callable[..., list[Any]], plan: "Plan", spec: FigureSpec) -> list[Any]:
    teachers = [Path(place.path(TEACHER)) for place in plan.figure_teachers(spec.name)]
    return make(plan.figure_sets(spec.name), teachers)


LAYOUTS: dict[str, Layout] = {
    "lines": Layout(_lines, points.csv_of, plots.draw_lines),
    "scatter": Layout(partial(_measured, points.scatter), points.csv_of, plots.draw_scatter),
    "heatmap": Layout(partial(_measured, points.heatmap), points.csv_of, plots.draw_heatmap),
    "surface": Layout(_surfaces, lambda spec, made: figure_surface.csv_of(made), figure_surface.draw),
    "embedding": Layout(
        partial(_seen, figure_embedding.panels), lambda spec, made: figure_embedding.csv_of(made), figure_embedding.draw
    ),
    "plane": Layout(
        partial(_seen, figure_plane.panels), lambda spec, made: figure_plane.csv_of(made), figure_plane.draw
    ),
    "bars": Layout(_shares, lambda spec, made: broken.csv_of(made), plots.draw_bars),
    "sheet": Layout(_tiles, lambda spec, made: figure_sheet.csv_of(made), figure_sheet.draw),
}
"""How figures are made, by their layouts."""


def run(plan: "Plan", figure: str, out: Path) -> None:
    """Write the figure `figure` of a run to the PNG `out`, the SVG and the CSV of the drawn data beside it.

    Raises InputError for an unknown figure, one that the config has no cells for, evidence that cannot be used, and
    files that another config or another version of their inputs made; nothing is written then.
    """
    if out.suffix != ".png":
        raise InputError(f"{out}: the picture is a PNG image; give a name that ends in .png")
    spec, made, text = drawn(plan, figure)
    write_text(out.with_suffix(".csv"), text)
    LAYOUTS[spec.layout].draw(spec, made, out)


def drawn(plan: "Plan", figure: str) -> tuple[FigureSpec, list[Any], str]:
    """A figure's specification, what it draws, and that as CSV. Raises InputError as `run`."""
    spec, cells, sets = plan.figure(figure), plan.figure_cells(figure), plan.figure_sets(figure)
    check(plan, cells, sets=[place for _, place in sets])
    layout = LAYOUTS[spec.layout]
    made = layout.data(plan, spec)
    return spec, made, layout.csv(spec, made)
