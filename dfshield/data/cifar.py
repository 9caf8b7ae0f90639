"""CIFAR-10, CIFAR-100 and SVHN from their official files (read by torchvision) or from `.npz` files.

Nothing is downloaded. torchvision unpickles CIFAR's batch files, so their official MD5 is checked first.
"""

from pathlib import Path
from typing import Any

import numpy as np

from dfshield import registry
from dfshield.core.datafree import check_real_data_allowed
from dfshield.core.errors import InputError
from dfshield.core.progress import log
from dfshield.data.npz import NpzArray, read_npz

SPLITS = ("train", "test")

_PAGES = {
    "cifar10": "https://www.cs.toronto.edu/~kriz/cifar.html",
    "cifar100": "https://www.cs.toronto.edu/~kriz/cifar.html",
    "svhn": "http://ufldl.stanford.edu/housenumbers/",
}


def load(name: str, split: str, data_dir: Path) -> tuple[np.ndarray | NpzArray, np.ndarray | NpzArray]:
    """Images uint8 (N,32,32,3) and labels int64 (N,).

    Looks below `data_dir` for the official files, then for ``{name}_{split}.npz``, then for the one file
    ``{name}_{split}_*.npz`` (a part of the split), both with keys x and y. SVHN's digit 0 has label 0.
    """
    check_real_data_allowed()
    official = registry.DATASETS[name].files
    wanted = [file for file in official if len(official) == 1 or file.startswith(split)]
    if all((data_dir / file).exists() for file in wanted):
        return _official(name, split, data_dir)
    whole = data_dir / f"{name}_{split}.npz"
    parts = [whole] if whole.is_file() else sorted(data_dir.glob(f"{name}_{split}_*.npz"))
    if len(parts) > 1:
        listed = ", ".join(part.name for part in parts)
        raise InputError(f"{data_dir}: {name} {split} could be any of {listed}; rename the one you mean {whole.name}")
    if not parts:
        raise InputError(
            f"{name} {split}: neither {' and '.join(wanted)} nor {whole.name} found in {data_dir}; "
            f"get the data from {_PAGES[name]} and unpack them there, or name their folder with --data-dir, "
            "data_dir in the config or DFSHIELD_DATA"
        )
    if parts != [whole]:
        log(f"{name} {split}: using {parts[0]}, which may be a part of the split only")
    arrays = read_npz(parts[0], ("x", "y"))
    return arrays["x"], arrays["y"]


def _official(name: str, split: str, data_dir: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:
        raise InputError(
            f"{name}: torchvision does not import ({' '.join(str(error).split())[:100]}); install the torchvision that "
            f"belongs to your PyTorch, or put {name}_{split}.npz with keys x and y into {data_dir}"
        ) from None
    try:
        loaded: Any
        if name == "svhn":
            loaded = datasets.SVHN(data_dir, split=split, download=False)
            return loaded.data.transpose(0, 2, 3, 1), loaded.labels
        loaded = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name](
            data_dir, train=split == "train", download=False
        )
        return loaded.data, np.asarray(loaded.targets, dtype=np.int64)
    except RuntimeError:  # torchvision: a file is missing or its MD5 is another
        raise InputError(
            f"{data_dir}: the files of {name} are incomplete or differ from the official MD5; "
            f"get them again from {_PAGES[name]}"
        ) from None
