"""Points in the plane in two classes, as images of one pixel with two channels: the data of Figure 3.

The paper states neither their distribution nor their number. Here they are two interleaved half circles with normal
noise (scikit-learn's ``make_moons``), scaled so that nearly all lie in [0,1] and clipped to it.
"""

from pathlib import Path

import numpy as np

from dfshield import registry
from dfshield.core.datafree import check_real_data_allowed

SPLITS = ("train", "dev", "test")
"""For teacher training, for choices and for evaluation; each is as large as the registry says."""
NOISE = 0.12
"""Standard deviation of the noise, in radii of a half circle."""
LOW, SIZE = np.array([-1.4, -0.95]), np.array([3.8, 2.4])
"""Corner of the part of the plane that becomes [0,1]², and its sides, in radii."""


def load(name: str, split: str, data_dir: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images float32 (N,1,1,2) in [0,1] and labels (N,), as many of either class; needs no file below `data_dir`."""
    check_real_data_allowed()
    from sklearn.datasets import make_moons

    count = registry.DATASETS[name].images[split]
    points, labels = make_moons(count, noise=NOISE, random_state=SPLITS.index(split))
    scaled = ((points - LOW) / SIZE).clip(0, 1)
    return scaled.astype(np.float32).reshape(count, 1, 1, 2), labels.astype(np.int64)
