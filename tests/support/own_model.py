"""A user's own model at the smallest scale: its code, its weights, an evaluation set and the config that names them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load_file, save_file
from support.snakemake import TINY

MODEL = """
from torch import nn


def build(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(36 * width, 10)
    )
"""


def write_own_model(folder: Path, protocols: list[str], **entry: Any) -> None:
    """Write ``mine.py``, ``mine.yaml`` (entry ``mine`` under harden:) and the files below ``data`` to a folder."""
    namespace: dict[str, Any] = {}
    exec(MODEL, namespace)
    (folder / "mine.py").write_text(MODEL)
    (folder / "data").mkdir()
    torch.manual_seed(0)
    save_file(namespace["build"](4).state_dict(), folder / "data/mine.safetensors")
    np.savez(folder / "data/mine.npz", x=np.linspace(0, 1, 768).reshape(12, 8, 8, 1), y=np.arange(12) % 10)
    mine = {
        "factory": "mine.py:build",
        "arguments": {"width": 4},
        "weights": "mine.safetensors",
        "input_shape": [1, 8, 8],
        "classes": 10,
        "mean": [0.3],
        "std": [0.38],
        "threat": "linf:8/16",
        "evaluation": {"file": "mine.npz", "limit": 10, "protocols": protocols},
    }
    values = {key: value for key, value in TINY.items() if key != "datasets"}
    (folder / "mine.yaml").write_text(yaml.safe_dump(values | {"name": "own", "harden": {"mine": mine | entry}}))


def bring_network(folder: Path) -> None:
    """Make of such an entry one whose file brings its network, a ``.pt2`` program, and that names no factory."""
    namespace: dict[str, Any] = {}
    exec(MODEL, namespace)
    network = namespace["build"](4).eval()
    network.load_state_dict(load_file(folder / "data/mine.safetensors"))
    sizes = ({0: torch.export.Dim("n")},)
    program = torch.export.export(network, (torch.rand(2, 1, 8, 8),), dynamic_shapes=sizes)
    torch.export.save(program, str(folder / "data/mine.pt2"))
    config = yaml.safe_load((folder / "mine.yaml").read_text())
    entry = config["harden"]["mine"] | {"weights": "mine.pt2"}
    config["harden"]["mine"] = {key: value for key, value in entry.items() if key not in ("factory", "arguments")}
    (folder / "mine.yaml").write_text(yaml.safe_dump(config))
    for name in ("mine.py", "data/mine.safetensors"):
        (folder / name).unlink()
