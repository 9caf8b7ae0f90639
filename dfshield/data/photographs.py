"""Crops of the two photographs that come with scikit-learn: real images of no particular domain, offline.

They stand in for a public data set (CIFAR-10 in the paper) where none is at hand; labels say which photograph.
"""

from pathlib import Path

import numpy as np
import torch

from dfshield import registry
from dfshield.core.datafree import check_real_data_allowed

SPLITS = ("train",)
SIDE = 32
REDUCTIONS = (1, 2, 4, 8)
"""A crop's side is 32, 64, 128 or 256 pixels of the photograph (427 x 640)."""


def load(name: str, split: str, data_dir: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N,32,32,3) and labels (N,), always the same; needs no file below `data_dir`."""
    check_real_data_allowed()
    from sklearn.datasets import load_sample_images

    from dfshield.data.resizing import resized

    photographs = [torch.tensor(photo).permute(2, 0, 1)[None] / 255 for photo in load_sample_images().images]
    crops = registry.DATASETS[name].images[split]
    random = np.random.RandomState(427)  # its stream never changes, by numpy's promise
    images, labels = [], []
    for label, photo in enumerate(photographs):
        for factor in REDUCTIONS:
            height, width = (size // factor for size in photo.shape[2:])
            small = (255 * resized(photo, height, width)[0]).round().byte().permute(1, 2, 0).numpy()
            for _ in range(crops // (len(photographs) * len(REDUCTIONS))):
                top, left = random.randint(height - SIDE + 1), random.randint(width - SIDE + 1)
                images.append(small[top : top + SIDE, left : left + SIDE])
                labels.append(label)
    order = random.permutation(crops)
    return np.stack(images)[order], np.array(labels)[order]
