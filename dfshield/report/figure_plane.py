"""Figures of points in the plane: training sets of images of two values, and the teacher's answers around them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dfshield.core.errors import InputError
from dfshield.core.files import csv_text
from dfshield.planning.figures import FigureSpec
from dfshield.planning.paths import Place
from dfshield.report import drawing, teacher_sets
from dfshield.report.teacher_sets import Origin

GRID = 201
"""Points along either side at which the teacher is asked for its region."""
COLUMNS = (
    *(*teacher_sets.COLUMNS, "index"),
    *("x", "y", "asked", "answered"),
)
SHADES = ("#FFFFFF", "#DDDDDD", "#BBBBBB", "#999999")
"""The teacher's regions, by class."""
BELOW = (
    "Marks: points by the class that was asked for. Background: the teacher's class, white for 0, grey for 1. In the "
    "titles: points of each class on the wrong side of the teacher's border."
)


@dataclass(frozen=True)
class Panel:
    """The points of one training set, and the regions of its teacher."""

    origin: Origin
    points: np.ndarray
    """(N,2) in [0,1]"""
    asked: np.ndarray
    """classes (N,)"""
    answered: np.ndarray
    """classes (N,) by the teacher"""
    regions: np.ndarray
    """classes (GRID,GRID) by the teacher; rows are y, columns x, both from 0 to 1"""

    @property
    def title(self) -> str:
        """The method, and how many points of each class are on the wrong side."""
        wrong = [
            f"{int((self.answered[self.asked == label] != label).sum())} of {int((self.asked == label).sum())}"
            for label in np.unique(self.asked)
        ]
        return f"{self.origin.titled('points')}\nwrong side: {', '.join(wrong)}"


def panels(sets: Iterable[tuple[str, Place]], teachers: Iterable[Path]) -> list[Panel]:
    """The panels of training sets, each with its teacher's checkpoint.

    Raises InputError for files that are missing, damaged or do not belong together, and for images of more than one
    pixel or other than two channels.
    """
    import torch

    from dfshield.models.classifier import predict

    made = []
    along = np.linspace(0, 1, GRID, dtype=np.float32)
    around = np.stack(np.meshgrid(along, along), axis=-1).reshape(-1, 2)
    for origin, _, model, own in teacher_sets.seen(sets, teachers):
        if own.images.shape[1:] != (1, 1, 2):
            raise InputError(f"{origin.file}: has images of (H,W,C) {own.images.shape[1:]}; a plane is of (1,1,2)")
        points = own.images.reshape(-1, 2)
        asked = (torch.from_numpy(values).view(-1, 2, 1, 1) for values in (points, around))
        answers = [predict(model, images).argmax(1).numpy() for images in asked]
        made.append(Panel(origin, points, own.labels, answers[0], answers[1].reshape(GRID, GRID)))
    return made


def csv_of(made: Sequence[Panel]) -> str:
    """The points as a tidy CSV: index in the file, from 0, place, the class that was asked for and the teacher's."""
    rows = []
    for one in made:
        for index, (point, asked, answered) in enumerate(zip(one.points, one.asked, one.answered, strict=True)):
            values = (f"{value:.6g}" for value in point)
            rows.append((*one.origin.texts, index, *values, int(asked), int(answered)))
    return csv_text(COLUMNS, rows)


def draw(spec: FigureSpec, made: Sequence[Panel], path: Path) -> None:
    """A panel for each method, side by side."""
    width = 2.6 * len(made) + 0.4
    lines = len(drawing.wrapped([BELOW], width))
    with drawing.canvas(width, 3.7 + 0.14 * lines) as figure:
        panels = figure.subplots(1, len(made), squeeze=False, sharex=True, sharey=True)[0]
        edges = np.arange(len(SHADES) + 1) - 0.5
        for one, axes in zip(made, panels, strict=True):
            along = np.linspace(0, 1, GRID)
            axes.contourf(along, along, one.regions, levels=edges, colors=SHADES)
            for label in np.unique(one.asked):
                style = drawing.series(int(label)) | {"linestyle": "none", "markersize": 2.2, "alpha": 0.7}
                axes.plot(*one.points[one.asked == label].T, label=f"class {label}", markeredgewidth=0, **style)
            axes.grid(visible=False)
            axes.set_aspect("equal")
            axes.set_xlim(-0.02, 1.02)
            axes.set_ylim(-0.02, 1.02)
            axes.set_title(one.title, fontsize=9)
            axes.set_xlabel("first value")
        panels[0].set_ylabel("second value")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", markerscale=3)
        drawing.title(figure, spec.title)
        drawing.note(figure, [BELOW])
        drawing.save(figure, path)
