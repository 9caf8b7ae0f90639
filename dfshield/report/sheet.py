"""Contact sheets: images by class as one PNG."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dfshield.core.errors import InputError
from dfshield.core.files import atomic
from dfshield.sources.trainset import opened

PER_CLASS = 10
TILE = 48
"""Images smaller than this many pixels a side are enlarged by a whole factor."""
LARGE, OF_LARGE = 64, 4
"""Of images with more pixels a side a card shows so many classes and images of each."""


def first_of_classes(labels: np.ndarray, most: int = PER_CLASS, classes: int | None = None) -> np.ndarray:
    """Ascending indices of the first images of every class, at most `most` of each.

    With `classes`, of so many classes at most, which are spread evenly over those that there are.
    """
    found = np.unique(labels)
    if classes is not None and len(found) > classes:
        found = found[np.linspace(0, len(found) - 1, classes).round().astype(int)]
    return np.sort(np.concatenate([np.flatnonzero(labels == label)[:most] for label in found]))


def as_bytes(images: np.ndarray) -> np.ndarray:
    """Images as uint8, of uint8 or of floats in [0,1]."""
    return np.rint(images * (1.0 if images.dtype == np.uint8 else 255.0)).astype(np.uint8)


def sheet_of_trainset(path: Path, out: Path) -> None:
    """Write a contact sheet (PNG) of some images of the training set `path`, a row per class."""
    with opened(path) as file:
        labels = file["labels"][()]
        most = OF_LARGE if max(file["images"].shape[1:3]) > LARGE else PER_CLASS
        chosen = first_of_classes(labels, most, classes=most)
        images = file["images"][chosen]
    write_sheet(out, as_bytes(images), labels[chosen])


def write_sheet(path: Path, images: np.ndarray, labels: Sequence[int] | np.ndarray) -> None:
    """Write a contact sheet: a row per class with its label, images (N,H,W,C) uint8 with one or three channels."""
    from PIL import Image, ImageDraw

    if path.suffix.lower() != ".png":
        raise InputError(f"{path}: the contact sheet is a PNG image; give a name that ends in .png")
    classes = sorted({int(label) for label in labels})
    height, width, channels = images.shape[1:]
    factor = max(1, math.ceil(TILE / min(height, width)))
    step_x, step_y, margin = width * factor + 2, height * factor + 2, 28
    columns = max(int(np.count_nonzero(np.asarray(labels) == label)) for label in classes)
    canvas = Image.new("RGB", (margin + columns * step_x, len(classes) * step_y + 2), "white")
    pen = ImageDraw.Draw(canvas)
    for row, label in enumerate(classes):
        pen.text((margin - 6, 2 + row * step_y + step_y // 2), str(label), fill="black", anchor="rm")
        for column, index in enumerate(np.flatnonzero(np.asarray(labels) == label)):
            pixels = images[index] if channels == 3 else images[index][..., 0]  # other channel counts: the first
            tile = Image.fromarray(pixels).resize((width * factor, height * factor), Image.Resampling.NEAREST)
            canvas.paste(tile, (margin + column * step_x, 2 + row * step_y))
    with atomic(path) as temporary:
        canvas.save(temporary, format="PNG")
