"""MedMNIST data sets (2-D, one label per image) from their official ``{flag}.npz`` files of 28x28 images."""

from pathlib import Path

from dfshield.core.datafree import check_real_data_allowed
from dfshield.core.errors import InputError
from dfshield.data.npz import NpzArray, read_npz
from dfshield.registry import MEDMNIST_SPLITS

SPLITS = tuple(MEDMNIST_SPLITS)


def load(name: str, split: str, data_dir: Path) -> tuple[NpzArray, NpzArray]:
    """Images uint8 (N,28,28) or (N,28,28,3) and labels (N,1); reads ``{name}.npz`` below `data_dir`."""
    check_real_data_allowed()
    path = data_dir / f"{name}.npz"
    if not path.is_file():
        raise InputError(
            f"{name}: no {path.name} in {data_dir}; get it from https://zenodo.org/records/10519652 (28x28 version), "
            "or name its folder with --data-dir, data_dir in the config or DFSHIELD_DATA"
        )
    stored = MEDMNIST_SPLITS[split]
    arrays = read_npz(path, (f"{stored}_images", f"{stored}_labels"))
    return arrays[f"{stored}_images"], arrays[f"{stored}_labels"]
