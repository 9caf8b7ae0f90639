"""Weights files: read a state dict without running anything in it, and fit it to a network."""

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dfshield.core.errors import InputError
from dfshield.core.files import existing_file
from dfshield.models.card import NOT_FINITE, refuse_foreign

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")


def load_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a ``.safetensors`` or PyTorch file (``weights_only=True``), on the CPU.

    Unwraps ``{"state_dict": …}`` and strips the ``module.`` that DataParallel adds. Raises InputError for a missing,
    truncated or foreign file, for pickles with code in them, and for values that are not finite.
    """
    path = Path(path)
    existing_file(path, "weights file", "give the path of a .safetensors, .pt or .pth file")
    refuse_foreign(path)
    state = read_safetensors(path)[0] if path.suffix == ".safetensors" else _read_torch(path)
    check_finite(state, str(path))
    return state


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file; raises InputError if it is truncated or something else."""
    try:
        with safe_open(path, framework="pt", device="cpu") as stream:
            tensors = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118 (no mapping)
            return tensors, stream.metadata() or {}
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:150]
        raise InputError(f"{path}: is not a whole safetensors file ({reason}); fetch or write it again") from None


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings(action="ignore"):  # the error says all there is to say
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error) or "class" in str(error):
            raise InputError(
                f"{path}: holds Python objects besides tensors, which could run code and are never loaded; "
                "save model.state_dict() alone, best as .safetensors"
            ) from None
        raise InputError(
            f"{path}: is damaged or not a PyTorch file (other pickles are never loaded); fetch or write it again"
        ) from None
    except Exception as error:  # a damaged pickle may raise anything
        reason = " ".join(str(error).split())[:150]
        raise InputError(
            f"{path}: is damaged or not a PyTorch file ({type(error).__name__}: {reason}); fetch or write it again"
        ) from None
    return _unwrap(loaded, path)


def _unwrap(loaded: Any, path: Path) -> dict[str, Tensor]:
    for key in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not loaded:
        raise InputError(f"{path}: holds no state dict (a {type(loaded).__name__}); save model.state_dict()")
    state = dict(loaded)
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor) or value.layout != torch.strided:
            raise InputError(
                f"{path}: entry {str(key)[:80]!r} is no plain tensor ({type(value).__name__}); save model.state_dict()"
            )
    while all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state


def check_finite(state: Mapping[str, Tensor], where: str) -> None:
    """Raise InputError naming the first tensor with a NaN or an infinity."""
    for key, value in state.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise InputError(f"{where}: tensor {key!r} {NOT_FINITE}")


def fit(net: nn.Module, state: Mapping[str, Tensor], where: str, assign: bool = False) -> None:
    """Load `state` into `net`; raises InputError that names the first keys that are missing, unexpected, mis-shaped.

    BatchNorm's ``num_batches_tracked`` may be absent (files from before PyTorch 0.4.1). With `assign` the tensors take
    the place of the network's own, which may then be on the meta device.
    """
    own = net.state_dict()
    wanted = {key for key, value in own.items() if isinstance(value, Tensor)}
    counters = {key: torch.zeros((), dtype=torch.int64) for key in wanted if key.endswith("num_batches_tracked")}
    state = counters | dict(state)
    misshaped = [
        f"{key} is {_size(state[key])}, the model has {_size(own[key])}"
        for key in own
        if key in wanted and key in state and state[key].shape != own[key].shape
    ]
    problems = [
        f"{title}: {', '.join(keys[:3])}{f' and {len(keys) - 3} more' if len(keys) > 3 else ''}"
        for title, keys in (
            ("missing", [key for key in own if key in wanted and key not in state]),
            ("unexpected", [key for key in state if key not in wanted]),
            ("other shape", misshaped),
        )
        if keys
    ]
    if problems:
        raise InputError(f"{where}: the weights do not fit the model ({'; '.join(problems)}); check model and classes")
    net.load_state_dict({key: value.to(own[key].dtype) for key, value in state.items()}, strict=False, assign=assign)


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"
