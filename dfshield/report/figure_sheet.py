"""Figures of training images: methods below one another, classes side by side."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dfshield.core.errors import InputError
from dfshield.core.files import csv_text
from dfshield.planning.figures import FigureSpec
from dfshield.planning.paths import Place
from dfshield.report import drawing
from dfshield.report.layout import dataset_title, model_title
from dfshield.sources import trainset

CLASSES = 10
"""Classes that are drawn: the first of the data set."""
TILE = 48
"""Pixels of a tile's shorter side, at least."""
REAL = {"none": "", "public": " (public images)"}
"""What is said beside a method's name, by what its images are; of other values that they are real."""


@dataclass(frozen=True)
class Tile:
    """One training image: the first of its class in its file."""

    dataset: str
    model: str
    method: str
    file: str
    data_sha256: str
    real_data: str
    index: int
    label: int
    pixels: np.ndarray
    """(H,W) or (H,W,3) uint8"""


COLUMNS = ("dataset", "model", "method", "file", "data_sha256", "real_data", "index", "label")


def tiles(sets: Iterable[tuple[str, Place]]) -> list[Tile]:
    """The tiles of training sets, by method and class; a class without an image has none.

    Raises InputError for a file that is missing, damaged or of another model.
    """
    return [tile for method, place in sets for tile in _tiles(method, place)]


def _tiles(method: str, place: Place) -> list[Tile]:
    path = Path(place.training_images)
    content = trainset.verify(path)
    with trainset.opened(path) as file:
        known = (file.attrs["dataset"], file.attrs["model"])
        if known != (place.dataset, place.model):
            raise InputError(f"{path}: is of {'/'.join(known)}, not of {place.dataset}/{place.model}; make it again")
        labels = file["labels"][()]
        found = []
        for label in range(min(CLASSES, int(file.attrs["classes"]))):
            for index in np.flatnonzero(labels == label)[:1]:
                real, pixels = str(file.attrs["real_data"]), _pixels(file["images"][int(index)])
                found.append(Tile(*known, method, str(path), content, real, int(index), label, pixels))
    return found


def _pixels(image: np.ndarray) -> np.ndarray:
    """An image (H,W,C) in uint8, of float32 in [0,1] or uint8; grey without the last axis."""
    if image.dtype != np.uint8:
        image = (image * 255).round().astype(np.uint8)
    return image if image.shape[-1] == 3 else image[..., 0]


def csv_of(made: Sequence[Tile]) -> str:
    """Which images are drawn: file, content hash, index from 0 and label of each."""
    return csv_text(COLUMNS, ([getattr(tile, name) for name in COLUMNS] for tile in made))


def draw(spec: FigureSpec, made: Sequence[Tile], path: Path) -> None:
    """A panel for each data set; a class that a method has no image of is left white."""
    panels: dict[tuple[str, str], list[Tile]] = {}
    for tile in made:
        panels.setdefault((tile.dataset, tile.model), []).append(tile)
    rows = {key: list(dict.fromkeys(tile.method for tile in own)) for key, own in panels.items()}
    heights = [len(methods) for methods in rows.values()]
    with drawing.canvas(7.0, 0.52 * sum(heights) + 0.7 * len(panels) + 0.4) as figure:
        grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)
        for (key, own), axes in zip(panels.items(), grid.flat, strict=True):
            picture, centres = composed(own, rows[key])
            axes.imshow(picture, interpolation="nearest")
            axes.grid(visible=False)
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
            axes.set_title(f"{dataset_title(key[0])}, {model_title(key[1])}")
            axes.set_yticks(centres[0], [_title(own, method) for method in rows[key]])
            axes.set_xticks(centres[1], [str(label) for label in range(len(centres[1]))])
            axes.set_xlabel("class")
        drawing.title(figure, spec.title)
        drawing.save(figure, path)


def _title(own: Sequence[Tile], method: str) -> str:
    real = next(tile.real_data for tile in own if tile.method == method)
    return f"{method}{REAL.get(real, ' (real images)')}"


def composed(own: Sequence[Tile], methods: Sequence[str]) -> tuple[np.ndarray, tuple[list[float], list[float]]]:
    """One picture (H,W,3) uint8 of all tiles of a data set, and the centres of its rows and columns, in pixels.

    Every tile is enlarged by the same whole number; what no tile covers is white.
    """
    height, width = own[0].pixels.shape[:2]
    factor = -(-TILE // min(height, width))
    gap, columns = 4, max(tile.label for tile in own) + 1
    down, across = height * factor + gap, width * factor + gap
    picture = np.full((len(methods) * down - gap, columns * across - gap, 3), 255, np.uint8)
    for tile in own:
        pixels = tile.pixels if tile.pixels.ndim == 3 else np.repeat(tile.pixels[..., None], 3, -1)
        large = pixels.repeat(factor, 0).repeat(factor, 1)
        top, left = methods.index(tile.method) * down, tile.label * across
        picture[top : top + height * factor, left : left + width * factor] = large
    centre = (height * factor - 1) / 2, (width * factor - 1) / 2
    return picture, (
        [row * down + centre[0] for row in range(len(methods))],
        [column * across + centre[1] for column in range(columns)],
    )
