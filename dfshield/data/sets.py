"""The one entry to real images: named data sets and the user's own `.npz` evaluation sets.

Whatever the file format, the program sees float32 images in [0,1], NCHW, and int64 labels.
"""

import hashlib
import importlib
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dfshield import registry
from dfshield.core.errors import InputError
from dfshield.core.files import data_dir as data_dir
from dfshield.core.files import existing_file

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


def load(name: str, split: str, data_dir: Path) -> Images:
    """A registered data set's split (train, dev or test); raises InputError if files are missing or wrong."""
    if name not in registry.DATASETS:
        raise InputError(f"data set {name!r} is not one of {', '.join(registry.DATASETS)}")
    if split not in splits(name):
        raise InputError(f"data set {name} has no split {split!r}; it has {', '.join(splits(name))}")
    entry = registry.DATASETS[name]
    pixels, labels = entry.load()(name, split, data_dir)
    return to_images(pixels, labels, entry.input_shape, entry.classes, f"{name} {split}")


def splits(name: str) -> tuple[str, ...]:
    """The splits of a registered data set; only digits and MedMNIST have ``dev``."""
    found: tuple[str, ...] = importlib.import_module(registry.DATASETS[name].target.partition(":")[0]).SPLITS
    return found


def load_npz(path: Path, input_shape: Shape, classes: int, limit: int = 0) -> Images:
    """A user's evaluation set: keys x (N,H,W,C) or (N,H,W), uint8 or float in [0,1], and y (N,) integers.

    `input_shape` is (C,H,W) of the model; grey images are repeated to three channels for a three-channel model.
    `limit` > 0 keeps the first so many images.
    """
    arrays = read_npz(path, ("x", "y"))
    return to_images(arrays["x"], arrays["y"], input_shape, classes, str(path)).first(limit)


def read_npz(path: Path, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The named arrays of an ``.npz`` file without unpickling anything; raises InputError if it does not hold them."""
    existing_file(path, "image file", "an .npz with the keys " + ", ".join(keys) + " is expected there")
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise InputError(f"{path}: holds one array, not an .npz archive; save with numpy.savez(path, x=…, y=…)")
        with archive:
            missing = [key for key in keys if key not in archive.files]
            if missing:
                raise InputError(f"{path}: has no key {', '.join(missing)} (it has: {', '.join(archive.files)[:200]})")
            return {key: archive[key] for key in keys}
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        if "allow_pickle" in str(error):
            reason = "it holds pickled Python objects (or is no .npz), which are never loaded; save plain number arrays"
        else:
            reason = f"it cannot be read as .npz ({' '.join(str(error).split())}); fetch or write it again"
        raise InputError(f"{path}: {reason}") from None


def to_images(pixels: Any, labels: Any, input_shape: Shape, classes: int, where: str) -> Images:
    """Check raw arrays and convert them.

    `pixels` (N,H,W,C) or (N,H,W), uint8 or float in [0,1]; `labels` (N,) or (N,1) integers in [0,classes). Raises
    InputError that starts with `where` for an empty set, another dtype or shape, values or labels out of range.
    """
    pixels, labels = np.asarray(pixels), np.asarray(labels)
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    if pixels.ndim != 4:
        raise InputError(f"{where}: images have shape {pixels.shape}; expected (N,H,W,C) or (N,H,W)")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or len(labels) != len(pixels):
        raise InputError(f"{where}: labels have shape {labels.shape}; expected ({len(pixels)},), one per image")
    if not len(pixels):
        raise InputError(f"{where}: the set is empty; at least one image is needed")
    channels, height, width = input_shape
    if pixels.shape[1:3] != (height, width) or pixels.shape[3] not in {1, channels}:
        raise InputError(
            f"{where}: images are {pixels.shape[1]}x{pixels.shape[2]} with {pixels.shape[3]} channels, the model takes "
            f"{height}x{width} with {channels}; resize the images or correct input_shape (C,H,W)"
        )
    if labels.dtype.kind not in "iu":
        raise InputError(f"{where}: labels are {labels.dtype}; expected integers 0 to {classes - 1}")
    if labels.min() < 0 or labels.max() >= classes:
        raise InputError(
            f"{where}: labels lie in {labels.min()}..{labels.max()}; allowed are 0 to {classes - 1} ({classes} classes)"
        )
    x = torch.from_numpy(np.ascontiguousarray(_unit_interval(pixels, where).transpose(0, 3, 1, 2)))
    if x.shape[1] != channels:
        x = x.repeat(1, channels, 1, 1)
    return Images(x, torch.from_numpy(labels.astype(np.int64)))


def _unit_interval(pixels: np.ndarray, where: str) -> np.ndarray:
    if pixels.dtype == np.uint8:
        return pixels.astype(np.float32) / np.float32(255)
    if pixels.dtype.kind != "f":
        raise InputError(f"{where}: images are {pixels.dtype}; expected uint8 or float in [0,1]")
    values: np.ndarray = pixels.astype(np.float32)
    low, high = float(values.min()), float(values.max())  # NaN, if there is one
    if not (low >= 0 and high <= 1):
        raise InputError(f"{where}: float images lie in [{low:g}, {high:g}]; expected [0,1] (or save them as uint8)")
    return values
