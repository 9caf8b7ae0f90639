"""Types and shapes of the arrays of an evaluation set, without their values: what is checked before any work."""

from pathlib import Path
from typing import Any

import numpy as np

from dfshield.core.errors import InputError
from dfshield.data.npz import read_npz


def check_arrays(x: Any, y: Any, input_shape: tuple[int, int, int], classes: int, where: str) -> None:
    """Raise InputError, starting with `where`, for images `x` and labels `y` of other shapes or types than an
    evaluation set has: x (N,H,W,C) or (N,H,W), uint8 or float; y (N,) or (N,1), integers. `input_shape` is (C,H,W).
    """
    pixels, labels = tuple(x.shape), tuple(y.shape)
    if len(pixels) == 3:
        pixels = (*pixels, 1)
    if len(pixels) != 4:
        raise InputError(f"{where}: images have shape {pixels}; expected (N,H,W,C) or (N,H,W)")
    if labels[1:] == (1,):
        labels = labels[:1]
    if labels != pixels[:1]:
        raise InputError(f"{where}: labels have shape {labels}; expected ({pixels[0]},), one per image")
    if not pixels[0]:
        raise InputError(f"{where}: the set is empty; at least one image is needed")
    channels, height, width = input_shape
    if pixels[1:3] != (height, width) or pixels[3] not in {1, channels}:
        raise InputError(
            f"{where}: images are {pixels[1]}x{pixels[2]} with {pixels[3]} channels, the model takes "
            f"{height}x{width} with {channels}; resize the images or correct input_shape (C,H,W)"
        )
    if y.dtype.kind not in "iu":
        raise InputError(f"{where}: labels are {y.dtype}; expected integers 0 to {classes - 1}")
    if x.dtype != np.uint8 and x.dtype.kind != "f":
        raise InputError(f"{where}: images are {x.dtype}; expected uint8 or float in [0,1]")


def check_npz(path: Path, input_shape: tuple[int, int, int], classes: int) -> None:
    """Raise InputError for a file that is no ``.npz``, lacks x or y, or whose arrays do not fit by their headers."""
    arrays = read_npz(path, ("x", "y"))
    check_arrays(arrays["x"], arrays["y"], input_shape, classes, str(path))
