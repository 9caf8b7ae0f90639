"""Images of a training set that are left in its file and read by mini-batches, where memory has no room for all."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dfshield.core.progress import log
from dfshield.sources.trainset import TrainSet, opened, read, whole

IN_MEMORY = 2 * 2**30
"""Bytes of float32 images up to which a set is read into memory: 170,000 images of 32 pixels, 3,500 of 224."""


class Stored:
    """Rows of the images of a file; those of a mini-batch's numbers are a tensor (n,C,H,W) in [0,1] on `device`.

    `shape` is (N,H,W,C), as the file has it.
    """

    def __init__(self, path: Path, rows: np.ndarray, shape: tuple[int, ...], device: torch.device) -> None:
        self.path, self.rows, self.shape, self.device = path, rows, (len(rows), *shape[1:]), device

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, numbers: Tensor | slice) -> Tensor:
        wanted = self.rows[numbers if isinstance(numbers, slice) else numbers.cpu().numpy()]
        order, place = np.unique(wanted, return_inverse=True)  # HDF5 reads rows in increasing order
        with opened(self.path) as file:
            images = file["images"][order][place]
        if images.dtype == np.uint8:
            images = images.astype(np.float32) / 255
        return torch.from_numpy(images).permute(0, 3, 1, 2).to(self.device)

    def split(self, size: int) -> Iterator[Tensor]:
        """All images in turn, `size` at a time."""
        return (self[start : start + size] for start in range(0, len(self), size))

    def subset(self, numbers: Tensor | slice) -> "Stored":
        """Some of the rows, unread."""
        chosen = self.rows[numbers if isinstance(numbers, slice) else numbers.cpu().numpy()]
        return Stored(self.path, chosen, self.shape, self.device)

    def to(self, device: torch.device) -> "Stored":
        """The same rows for another device."""
        return Stored(self.path, self.rows, self.shape, device)


def read_for_training(path: Path) -> TrainSet:
    """A whole, verified training set; images of more than `IN_MEMORY` bytes stay in the file, as `Stored`."""
    with opened(path) as file:
        shape = file["images"].shape
    if 4 * int(np.prod(shape)) <= IN_MEMORY:
        return read(path)
    attributes = whole(path)
    with opened(path) as file:
        labels = file["labels"][()]
    images = Stored(path, np.arange(len(labels)), shape, torch.device("cpu"))
    log(f"{path}: {len(labels)} images stay in the file, which are more than {IN_MEMORY / 2**30:.3g} GiB")
    return TrainSet(images, labels, attributes)  # type: ignore[arg-type]  # what training takes in place of an array
