"""The one entry to real images: named data sets and the user's own `.npz` evaluation sets.

Whatever the file format, the program sees float32 images in [0,1], NCHW, and int64 labels.
"""

import hashlib
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dfshield import registry
from dfshield.core.datafree import check_real_data_allowed
from dfshield.core.errors import InputError
from dfshield.core.files import data_dir as data_dir
from dfshield.data.headers import check_arrays
from dfshield.data.npz import BLOCK_BYTES, NpzArray, check_memory, read_npz

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Images:
    """A labelled set of real images: `x` float32 (N,C,H,W) in [0,1], `y` int64 (N,)."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def first(self, limit: int) -> "Images":
        """The first `limit` images; all of them if `limit` is 0."""
        return Images(self.x[:limit], self.y[:limit]) if limit else self

    def sha256(self) -> str:
        """SHA-256 in hex over shape, pixels and labels: the identity of this set."""
        digest = hashlib.sha256(repr(tuple(self.x.shape)).encode())
        digest.update(self.x.contiguous().numpy().data)
        digest.update(self.y.contiguous().numpy().data)
        return digest.hexdigest()


def load(name: str, split: str, data_dir: Path, limit: int = 0) -> Images:
    """A registered data set's split (train, dev or test); raises InputError if files are missing or wrong.

    `limit` > 0 keeps the first so many images.
    """
    check_real_data_allowed()
    if name not in registry.DATASETS:
        raise InputError(f"data set {name!r} is not one of {', '.join(registry.DATASETS)}")
    if split not in splits(name):
        raise InputError(f"data set {name} has no split {split!r}; it has {', '.join(splits(name))}")
    entry = registry.DATASETS[name]
    pixels, labels = entry.load()(name, split, data_dir)
    return to_images(pixels, labels, entry.input_shape, entry.classes, f"{name} {split}", limit)


def splits(name: str) -> tuple[str, ...]:
    """The splits of a registered data set; CIFAR, SVHN and photographs have no ``dev``."""
    found: tuple[str, ...] = importlib.import_module(registry.DATASETS[name].target.partition(":")[0]).SPLITS
    return found


def load_npz(path: Path, input_shape: Shape, classes: int, limit: int = 0) -> Images:
    """A user's evaluation set: keys x (N,H,W,C) or (N,H,W), uint8 or float in [0,1], and y (N,) integers.

    `input_shape` is (C,H,W) of the model; grey images are repeated to three channels for a three-channel model.
    `limit` > 0 keeps the first so many images.
    """
    arrays = read_npz(path, ("x", "y"))
    return to_images(arrays["x"], arrays["y"], input_shape, classes, str(path), limit)


def to_images(
    pixels: np.ndarray | NpzArray, labels: Any, input_shape: Shape, classes: int, where: str, limit: int = 0
) -> Images:
    """Check raw arrays and convert the first `limit` images (all for 0), some at a time.

    `pixels` (N,H,W,C) or (N,H,W), uint8 or float in [0,1]; `labels` (N,) or (N,1) integers in [0,classes). Raises
    InputError that starts with `where` for an empty set, another dtype or shape, labels out of range, pixels out of
    range among the images that are read, and for more images than the memory of this machine holds.
    """
    check_arrays(pixels, labels, input_shape, classes, where)
    shape = (*pixels.shape, 1) if pixels.ndim == 3 else tuple(pixels.shape)
    channels, height, width = input_shape
    check_memory(labels.dtype.itemsize * shape[0], where)
    labels = np.asarray(labels).reshape(-1)
    if labels.min() < 0 or labels.max() >= classes:
        raise InputError(
            f"{where}: labels lie in {labels.min()}..{labels.max()}; allowed are 0 to {classes - 1} ({classes} classes)"
        )
    count = min(limit or shape[0], shape[0])
    check_memory(4 * count * channels * height * width, where)
    x, done = torch.empty(count, *input_shape, dtype=torch.float32), 0
    if channels == 1:  # either layout in one; the strides decide which convolution PyTorch takes, so they are kept
        x = x.view(count, height, width, 1).permute(0, 3, 1, 2)
    low, high = np.inf, -np.inf
    for block in _blocks(pixels, count):
        values = _floats(block, where)
        low, high = np.minimum(low, values.min()), np.maximum(high, values.max())  # NaN, if there is one
        planes = torch.from_numpy(values.reshape(-1, *shape[1:])).permute(0, 3, 1, 2)
        x[done : done + len(planes)] = planes  # grey is repeated
        done += len(planes)
    if not (low >= 0 and high <= 1):
        raise InputError(f"{where}: float images lie in [{low:g}, {high:g}]; expected [0,1] (or save them as uint8)")
    return Images(x, torch.from_numpy(labels[:count].astype(np.int64)))


def _blocks(pixels: np.ndarray | NpzArray, count: int) -> Iterator[np.ndarray]:
    """The first `count` images, some at a time: a copy of all of them in another type would not fit beside them."""
    if isinstance(pixels, NpzArray):
        yield from pixels.blocks(count)
        return
    step = max(1, BLOCK_BYTES // max(1, pixels[:1].nbytes))
    yield from (pixels[start : min(start + step, count)] for start in range(0, count, step))


def _floats(pixels: np.ndarray, where: str) -> np.ndarray:
    """float32; of uint8 in [0,1]."""
    if pixels.dtype == np.uint8:
        return pixels.astype(np.float32) / np.float32(255)
    return pixels.astype(np.float32)
