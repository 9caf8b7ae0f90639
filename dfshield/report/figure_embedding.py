"""Figures of features: training sets in the plane of the two principal components of a teacher's features."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dfshield.core.errors import InputError
from dfshield.core.files import csv_text
from dfshield.planning.figures import FigureSpec
from dfshield.planning.paths import Place
from dfshield.report import drawing, teacher_sets
from dfshield.report.figure_sheet import CLASSES
from dfshield.report.layout import dataset_title, model_title
from dfshield.report.teacher_sets import Origin

IMAGES = 500
"""Images of each training set that are drawn: its first ones."""
COLUMNS = (
    *(*teacher_sets.COLUMNS, "index", "label"),
    *("pc1", "pc2", "explained1", "explained2"),
)


@dataclass(frozen=True)
class Panel:
    """The first images of one training set, as points (N,2) of their teacher's plane (before that, as features)."""

    origin: Origin
    labels: np.ndarray
    points: np.ndarray
    explained: tuple[float, float] = (math.nan, math.nan)
    """Shares of the variance of all panels' features that the two axes have."""


def plane(features: Sequence[np.ndarray]) -> tuple[list[np.ndarray], tuple[float, float]]:
    """Features (N,D) of several sets as points (N,2), and the shares of the variance that the two axes have.

    The axes are the two principal components of all features together. Each has its largest loading positive. Raises
    InputError for features of one dimension.
    """
    whole = np.concatenate(features).astype(np.float64)
    if whole.shape[1] < 2:
        raise InputError("the teacher's last layer has one input alone, so its features have no plane")
    mean = whole.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(whole - mean, rowvar=False))
    axes = vectors[:, [-1, -2]]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), [0, 1]])
    total = max(float(values.sum()), np.finfo(np.float64).tiny)
    shares = (float(values[-1]) / total, float(values[-2]) / total)
    return [(own - mean) @ axes for own in features], shares


def panels(sets: Iterable[tuple[str, Place]], teachers: Iterable[Path]) -> list[Panel]:
    """The panels of training sets, by model and method; each set has its teacher's checkpoint.

    One plane is fitted to all sets of a model together. Raises InputError for files that are missing, damaged or do not
    belong together.
    """
    import torch

    from dfshield.evaluation.features import extractor

    found: dict[tuple[Path, str, str], list[Panel]] = {}
    for origin, teacher, model, own in teacher_sets.seen(sets, teachers):
        images = torch.from_numpy(np.ascontiguousarray(np.moveaxis(own.images[:IMAGES], 3, 1)))
        features = extractor("teacher", model, None)(images).numpy()
        found.setdefault((teacher, origin.dataset, origin.model), []).append(
            Panel(origin, own.labels[:IMAGES], features)
        )
    made = []
    for parts in found.values():
        points, shares = plane([one.points for one in parts])
        made += [replace(one, points=at, explained=shares) for one, at in zip(parts, points, strict=True)]
    return made


def csv_of(made: Sequence[Panel]) -> str:
    """The points as a tidy CSV: of each its image's index, from 0, in its file, and the class that was asked for."""
    rows = []
    for one in made:
        after = [f"{share:.4f}" for share in one.explained]
        for index, (label, point) in enumerate(zip(one.labels, one.points, strict=True)):
            rows.append((*one.origin.texts, index, int(label), *(f"{value:.4g}" for value in point), *after))
    return csv_text(COLUMNS, rows)


def draw(spec: FigureSpec, made: Sequence[Panel], path: Path) -> None:
    """A row of panels for each model, a column a method; a point is the digit of its class."""
    rows: dict[tuple[str, str], list[Panel]] = {}
    for one in made:
        rows.setdefault((one.origin.dataset, one.origin.model), []).append(one)
    across = max(map(len, rows.values()))
    width = 2.3 * across + 0.4
    lines = len(drawing.wrapped([BELOW], width))
    with drawing.canvas(width, 2.3 * len(rows) + 0.7 + 0.14 * lines) as figure:
        grid = figure.subplots(len(rows), across, squeeze=False, sharex="row", sharey="row")
        for (key, own), places in zip(rows.items(), grid, strict=True):
            for one, axes in zip(own, places, strict=False):
                for label in range(CLASSES):
                    chosen = one.points[one.labels == label]
                    colour = drawing.COLOURS[label % len(drawing.COLOURS)]
                    axes.scatter(*chosen.T, marker=f"${label}$", s=11, color=colour, linewidths=0.2)
                axes.set_title(one.origin.titled("images"))
                axes.set_xlabel(f"PC 1 ({100 * one.explained[0]:.0f} % of variance)")
            subject = f"{dataset_title(key[0])}, {model_title(key[1])}"
            places[0].set_ylabel(f"{subject}\nPC 2 ({100 * own[0].explained[1]:.0f} % of variance)")
            for unused in places[len(own) :]:
                unused.set_visible(False)
        drawing.title(figure, spec.title)
        drawing.note(figure, [BELOW])
        drawing.save(figure, path)


BELOW = (
    f"A digit is an image, by the class that was asked for: the first {IMAGES} images of each set, of classes 0 to "
    f"{CLASSES - 1}. Axes: the principal components (PC) of the teacher's penultimate features of all panels of a row "
    "together."
)
