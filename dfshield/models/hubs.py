"""Models in a folder with ``config.json``, as transformers and timm write it, and what a model says of its input.

Only files of the folder are read, and no code of it is run; weights are read as any others (`dfshield.models.formats`).
What the folder says of mean, std and size is read without either package.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from dfshield.core.errors import InputError
from dfshield.core.hashing import sha256_file
from dfshield.models.bundles import PIP, network_file

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"


def network(folder: str, sha256: str = "") -> nn.Module:
    """The network that ``config.json`` in `folder` describes, untrained, with logits (N,classes) as its output.

    Its tensors have the names of the folder's weights file. With `sha256`, the file has to be that one. Raises
    InputError for a folder of another kind, and where transformers or timm is missing.
    """
    path = network_file(folder)
    if sha256 and sha256_file(path) != sha256:
        raise InputError(f"{path}: is another file than that of the model that was hardened; put that one back")
    config = _json(path)
    package = "timm" if "architecture" in config else "transformers"
    if package == "transformers" and "model_type" not in config:
        raise InputError(f"{path}: names no model_type (transformers) and no architecture (timm); give a factory")
    try:
        return {"timm": _timm, "transformers": _transformers}[package](path, config)
    except ImportError as error:
        raise InputError(f"{path}: needs the package {error.name or package}; run {PIP}") from None


def _timm(path: Path, config: Mapping[str, Any]) -> nn.Module:
    import timm

    classes = config.get("num_classes", config.get("pretrained_cfg", {}).get("num_classes", 1000))
    made: nn.Module = timm.create_model(
        config["architecture"], pretrained=False, num_classes=classes, **config.get("model_args", {})
    )
    return made


def _transformers(path: Path, config: Mapping[str, Any]) -> nn.Module:
    from transformers import AutoConfig, AutoModelForImageClassification

    read = AutoConfig.from_pretrained(str(path.parent), local_files_only=True, trust_remote_code=False)
    if type(read) not in AutoModelForImageClassification._model_mapping:
        raise InputError(f"{path}: transformers has no image classifier of model_type {config['model_type']!r}")
    made: nn.Module = AutoModelForImageClassification.from_config(read)
    made.register_forward_hook(_logits)  # the network itself, so that its tensors keep their names
    return made


def _logits(module: nn.Module, arguments: Any, output: Any) -> Any:
    return output.logits


def stated(folder: Path) -> dict[str, Any]:
    """What a folder says of its input, as far as it does: ``input_shape``, ``mean`` and ``std`` for pixels in [0,1].

    Raises InputError for an image processor whose pixels are not in [0,1] before they are normalised.
    """
    config = _json(network_file(folder))
    if "architecture" in config:
        return stated_by_timm(config.get("pretrained_cfg", {}))
    path = folder / PROCESSOR
    processor = _json(path) if path.is_file() else {}
    channels = int(config.get("num_channels", 3))
    size = processor.get("crop_size") if processor.get("do_center_crop") else None
    size = size or processor.get("size") or config.get("image_size")
    found: dict[str, Any] = {}
    if side := _side(size):
        found["input_shape"] = [channels, *side]
    if processor:
        factor = processor.get("rescale_factor", 1 / 255)
        if not processor.get("do_rescale", True) or not math.isclose(factor, 1 / 255, rel_tol=1e-6):
            raise InputError(f"{path}: does not scale pixels to [0,1] (do_rescale, rescale_factor); give mean and std")
        plain = processor.get("do_normalize", True) is False
        for name, value in (("mean", 0.0), ("std", 1.0)):
            values = [value] * channels if plain else processor.get(f"image_{name}")
            if values is not None:
                found[name] = list(values)
    return found


def stated_by_timm(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same of timm's ``pretrained_cfg``."""
    names = {"input_shape": "input_size", "mean": "mean", "std": "std"}
    return {name: list(config[key]) for name, key in names.items() if config.get(key)}


def class_names(folder: Path, classes: int) -> list[str]:
    """The names of the classes 0, 1, … that a folder states; none where it states none, or not one for each."""
    config = _json(network_file(folder))
    names = config.get("label_names") or config.get("id2label")
    if isinstance(names, Mapping):
        names = [names.get(str(index)) for index in range(classes)]
    if not isinstance(names, list) or len(names) != classes or not all(isinstance(name, str) for name in names):
        return []
    return [] if names == [f"LABEL_{index}" for index in range(classes)] else names


def _side(size: Any) -> list[int]:
    """Height and width of an image processor's size, which has several forms; empty for none of them."""
    if isinstance(size, Mapping):
        edge = size.get("shortest_edge")
        return [int(size.get("height", edge)), int(size.get("width", edge))] if edge or "height" in size else []
    return [int(size)] * 2 if isinstance(size, int) else []


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict):
        raise InputError(f"{path}: is no JSON object; fetch or write it again")
    return content
