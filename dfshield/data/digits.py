"""The 1,797 handwritten digits that come with scikit-learn: real data for the offline demo.

8x8 grey images of the UCI "Optical Recognition of Handwritten Digits" test set, pixel values 0 to 16.
"""

from pathlib import Path

import numpy as np

from dfshield import registry
from dfshield.core.datafree import check_real_data_allowed

SPLITS = ("train", "dev", "test")
"""For teacher training, for choices and for tables; each is as large as the registry says."""


def load(name: str, split: str, data_dir: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images float32 (N,8,8) in [0,1] and labels (N,); needs no file below `data_dir`."""
    check_real_data_allowed()
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # RandomState is the generator whose stream numpy promises never to change, so the split is fixed for good.
    shuffled = np.random.RandomState(1797).permutation(len(bunch.target))
    sizes = registry.DATASETS[name].images
    start = sum(sizes[before] for before in SPLITS[: SPLITS.index(split)])
    chosen = shuffled[start : start + sizes[split]]
    return (bunch.images[chosen] / 16).astype(np.float32), bunch.target[chosen].astype(np.int64)
