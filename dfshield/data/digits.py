"""The 1,797 handwritten digits that come with scikit-learn: real data for the offline demo.

8x8 grey images of the UCI "Optical Recognition of Handwritten Digits" test set, pixel values 0 to 16.
"""

from pathlib import Path

import numpy as np

SPLITS = ("train", "dev", "test")
"""997 images for teacher training, 300 for choices, 500 for tables."""
BORDERS = {"train": (0, 997), "dev": (997, 1297), "test": (1297, 1797)}
"""Borders after a fixed permutation."""


def load(name: str, split: str, data_dir: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images float32 (N,8,8) in [0,1] and labels (N,); needs no file below `data_dir`."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # RandomState is the generator whose stream numpy promises never to change, so the split is fixed for good.
    start, stop = BORDERS[split]
    chosen = np.random.RandomState(1797).permutation(len(bunch.target))[start:stop]
    return (bunch.images[chosen] / 16).astype(np.float32), bunch.target[chosen].astype(np.int64)
