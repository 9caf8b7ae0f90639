"""`dfshield doctor`: is this machine ready?"""

import importlib.metadata
import os
from pathlib import Path

from dfshield import registry
from dfshield.core.errors import InputError

PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "h5py",
    "safetensors",
    "pyautoattack",
    "pytorchcv",
    "medmnist",
    "snakemake",
)


def run(data_dir: Path | None) -> int:
    """Print versions, devices and which real data are at hand; returns 1 if something needed is missing."""
    status = 0
    for name in PACKAGES:
        try:
            print(f"{name:14} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"{name:14} MISSING: pip install {name}")
            status = 1
    import torch

    print(f"{'CPU cores':14} {len(os.sched_getaffinity(0))}")
    print(f"{'CUDA devices':14} {torch.cuda.device_count()}")
    for index in range(torch.cuda.device_count()):
        print(f"{'':14} {index}: {torch.cuda.get_device_name(index)}")
    if torch.version.cuda and not torch.cuda.is_available():
        print(f"{'':14} PyTorch for CUDA {torch.version.cuda} sees no device: stages will use the CPU")
    from dfshield.data.sets import data_dir as folder

    root = folder(data_dir)
    print(f"{'data':14} {root}{'' if root.is_dir() else ' (no such folder)'}")
    for name, entry in registry.DATASETS.items():
        try:
            entry.check_package()
        except InputError:
            print(f"{'':14} {name} MISSING: pip install {entry.package}")
            continue
        if all((root / file).exists() for file in entry.files):
            print(f"{'':14} {name}{f' (comes with {entry.package})' if entry.package else ''}")
    return status
