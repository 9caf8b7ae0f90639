"""Figures of loss landscapes: surfaces over two random directions, methods side by side."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.layout_engine import ConstrainedLayoutEngine

from dfshield.core.files import csv_text
from dfshield.evaluation.landscapes import LandscapeRecord, read_landscape
from dfshield.planning.cells import Cell
from dfshield.planning.figures import FigureSpec
from dfshield.report import drawing
from dfshield.report.layout import dataset_title, model_title, threat_title
from dfshield.report.plots import footnotes, marks
from dfshield.report.points import Figure
from dfshield.report.rows import Row

COLUMNS = (
    *("dataset", "model", "method", "seed", "protocol", "threat", "first", "second", "loss"),
    *("sharpness", "sharpness_low", "sharpness_high", "accuracy", "seeds", "n", "flags", "record_sha256"),
)
VIEW = {"elev": 28, "azim": -58}
"""Degrees above the plane and around it that surfaces are seen from."""


@dataclass(frozen=True)
class Surface:
    """The landscape of one student, of the first seed, with the sharpness of all seeds."""

    dataset: str
    model: str
    method: str
    record: LandscapeRecord
    sharpness: Figure
    accuracy: float
    """Clean accuracy in percent of the same images, mean over the seeds."""


def surfaces(cells: Sequence[Cell], rows: Sequence[Row]) -> list[Surface]:
    """The surfaces of cells of sharpness, each with its row; of every method the first seed is drawn."""
    found: dict[tuple[str, str, str], list[tuple[Cell, Row]]] = {}
    for cell, row in zip(cells, rows, strict=True):
        found.setdefault((cell.dataset, cell.model, cell.method), []).append((cell, row))
    made = []
    for key, own in found.items():
        records = [read_landscape(Path(cell.ledger)) for cell, _ in own]
        accuracy = 100 * statistics.fmean(record.accuracy for record in records)
        made.append(Surface(*key, records[0], Figure.of([row for _, row in own]), accuracy))
    return made


def csv_of(made: Sequence[Surface]) -> str:
    """The surfaces as a tidy CSV, a row a point: place in norms of the filters, loss in nats."""
    rows = []
    for one in made:
        own = one.record
        before = (one.dataset, one.model, one.method, own.seed, own.protocol, own.options["threat"])
        spread, flags = one.sharpness.texts(), ";".join(one.sharpness.flags)
        after = (*spread, f"{one.accuracy:.2f}", one.sharpness.seeds, own.n, flags, own.content_sha256)
        for first, losses in zip(own.coordinates, own.surface, strict=True):
            for second, loss in zip(own.coordinates, losses, strict=True):
                rows.append((*before, f"{first:.6g}", f"{second:.6g}", f"{loss:.6g}", *after))
    return csv_text(COLUMNS, rows)


def draw(spec: FigureSpec, made: Sequence[Surface], path: Path) -> None:
    """A row of panels for each data set and model, all of it with one range of losses."""
    blocks: dict[tuple[str, str], list[Surface]] = {}
    for one in made:
        blocks.setdefault((one.dataset, one.model), []).append(one)
    across = max(map(len, blocks.values()))
    height = 2.9 * len(blocks) + 1.2
    with drawing.canvas(2.75 * across, height) as figure:
        engine = figure.get_layout_engine()
        assert isinstance(engine, ConstrainedLayoutEngine)
        # Neither the title of all panels nor the label of the last one's height is counted in.
        engine.set(rect=(0, 0, 0.97, 1 - 0.3 / height))
        parts = figure.subfigures(len(blocks), 1, squeeze=False)
        for (key, own), part in zip(blocks.items(), parts.flat, strict=True):
            if len(blocks) > 1:
                part.suptitle(f"{dataset_title(key[0])}, {model_title(key[1])}")
            heights = [value for one in own for row in one.record.surface for value in row]
            panels = part.subplots(1, across, subplot_kw={"projection": "3d"}, squeeze=False)
            for one, axes in zip(own, panels.flat, strict=False):
                _panel(axes, one, (min(0.0, *heights), max(heights)))
            for unused in panels.flat[len(own) :]:
                unused.set_visible(False)
        first = made[0]
        subject = f", {dataset_title(first.dataset)}, {model_title(first.model)}" if len(blocks) == 1 else ""
        drawing.title(figure, spec.title + subject)
        drawing.note(figure, _below(made))
        drawing.save(figure, path)


def _panel(axes: Any, one: Surface, limits: tuple[float, float]) -> None:
    own = one.record
    along = np.array(own.coordinates)
    first, second = np.meshgrid(along, along, indexing="ij")
    axes.plot_surface(
        first,
        second,
        np.array(own.surface),
        cmap=drawing.SEQUENTIAL,
        vmin=limits[0],
        vmax=limits[1],
        rstride=1,
        cstride=1,
        edgecolor="#404040",
        linewidth=0.15,
    )
    axes.set_facecolor("none")  # else it covers the label of its neighbour
    axes.set_zlim(*limits)
    axes.view_init(**VIEW)
    axes.set_box_aspect((1, 1, 0.85), zoom=0.9)
    axes.tick_params(labelsize=7, pad=-1)
    ends = [along[0], 0.0, along[-1]]
    axes.set_xticks(ends, [f"{end:g}" for end in ends])
    axes.set_yticks(ends, [f"{end:g}" for end in ends])
    axes.set_xlabel("first direction", fontsize=8, labelpad=-3)
    axes.set_ylabel("second direction", fontsize=8, labelpad=-3)
    axes.set_zlabel("loss in nat", fontsize=8, labelpad=-4)
    rise = one.sharpness
    interval = f" [{rise.low:.2f}, {rise.high:.2f}]" if rise.has_interval else ""
    figures = f"sharpness {rise.value:.2f}{interval} nat\nclean accuracy {one.accuracy:.0f} %"
    axes.set_title(f"{one.method}{marks(rise.flags)}\n{figures}", fontsize=8.5)


def _below(made: Sequence[Surface]) -> list[str]:
    """What the surfaces and their sharpness are, and what the marks mean."""
    first = made[0]
    own, options = first.record, first.record.options
    attacked = f", attacked at the centre by PGD-{options['steps']} ({threat_title(options['threat'])})"
    loss = f"Loss: mean cross entropy of {own.n} images{attacked if options['loss'] == 'adversarial' else ''}."
    axes = (
        "Axes: distance from the trained weights along two random directions, in norms of the filters; seed "
        f"{own.seed}, the same draws in all panels of a model."
    )
    seeds = first.sharpness.seeds
    spread = f" and {seeds} seeds, from the lowest to the highest" if seeds > 1 else ""
    rise = (
        f"Sharpness: rise of the loss on a circle of radius {options['radius']:g}, mean of {options['pairs']} pairs of "
        f"directions{spread}."
    )
    return [f"{loss} {axes} {rise}", *footnotes(flag for one in made for flag in one.sharpness.flags)]
