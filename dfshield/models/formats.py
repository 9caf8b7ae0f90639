"""Weights files as people have them, read without running anything in them.

Safetensors and PyTorch's own format are told by their content, whatever the file is called; a model in several files
by its index. What other programs write is refused with its remedy.
"""

import argparse
import json
import pickle
import re
import tarfile
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dfshield.core.errors import InputError
from dfshield.core.files import INDEX, KINDS, existing_file
from dfshield.core.hashing import digest, sha256_file
from dfshield.models.card import refuse_foreign

MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (
        b"\x89HDF\r\n\x1a\n",
        "an HDF5 file (Keras?)",
        "bring its weights into a PyTorch network and save its state_dict()",
    ),
    (b"\x93NUMPY", "one NumPy array", "save model.state_dict() of the PyTorch network"),
    (b"GGUF", "a GGUF file", "give the floating-point weights that it was made from"),
    (b"\x1f\x8b", "compressed by gzip", "unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it and give the weights file in it"),
    (b"Rar!", "a RAR archive", "unpack it and give the weights file in it"),
    (b"BZh", "compressed by bzip2", "unpack it first"),
    (b"\xfd7zXZ", "compressed by xz", "unpack it first"),
)
"""Beginnings of files that are no weights for PyTorch: what they are, and the remedy."""
BRINGS = "it brings its network, so give it without a factory, or save the PyTorch network's state_dict()"
"""The remedy for files that are more than weights."""
NAMED: tuple[tuple[str, str, str], ...] = (
    (r"\.onnx", "an ONNX graph", BRINGS),
    (r"\.(h5|hdf5|keras)", "a Keras model", "bring its weights into a PyTorch network and save its state_dict()"),
    (r"\.tflite", "a TensorFlow Lite model", "give the PyTorch model's state_dict()"),
    (r"\.(pb|index|data-\d+-of-\d+)", "a TensorFlow checkpoint", "give the PyTorch model's state_dict()"),
    (r"\.msgpack", "JAX's msgpack", "convert it to PyTorch and save model.state_dict()"),
    (r"\.np[yz]", "NumPy's format", "put the arrays into the PyTorch network and save model.state_dict()"),
    (r"\.pdparams", "Paddle's format", "convert it to PyTorch and save model.state_dict()"),
    (r"\.pt2", "an exported program", BRINGS),
)
"""The same by the end of the name, a regular expression."""


def read_weights(path: Path) -> dict[str, Any]:
    """All that a weights file names, flat: ``{"state_dict": {"a": …}}`` as ``state_dict.a``; tensors on the CPU.

    Values that are no tensors are kept, so that messages can tell of them. Raises InputError for a file that is
    missing, truncated or foreign, and for pickles with code in them.
    """
    existing_file(path, "weights file", f"give the path of {KINDS}")
    content = _read_index(path) if path.name.endswith(INDEX) else _read(path)
    flat: dict[str, Any] = {}
    _flatten(content, "", flat)
    if not any(isinstance(value, Tensor) for value in flat.values()):
        raise InputError(f"{path}: holds no state dict (a {type(content).__name__}); save model.state_dict()")
    return flat


def weights_sha256(path: Path) -> str:
    """SHA-256 in hex of a weights file; of an index, over all its files."""
    if not path.name.endswith(INDEX):
        return sha256_file(path)
    return digest(sha256_file(path), {name: sha256_file(path.parent / name) for name in set(_index(path).values())})


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file; raises InputError if it is truncated or something else."""
    try:
        with safe_open(path, framework="pt", device="cpu") as stream:
            tensors = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118 (no mapping)
            return tensors, stream.metadata() or {}
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:150]
        raise InputError(f"{path}: is not a whole safetensors file ({reason}); fetch or write it again") from None


def _flatten(content: Any, prefix: str, flat: dict[str, Any]) -> None:
    if not isinstance(content, Mapping):
        flat[prefix.removesuffix(".")] = content
        return
    for key, value in content.items():
        _flatten(value, f"{prefix}{key}.", flat)


def _index(path: Path) -> dict[str, str]:
    """File of every tensor; all lie beside the index."""
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        places = {str(name): str(file) for name, file in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path}: is no index of weights (a JSON object with weight_map); fetch it again") from None
    for file in places.values():
        if Path(file).name != file or file.endswith(INDEX) or file in ("", ".", ".."):
            raise InputError(f"{path}: names {file[:80]!r}, but the files of a model lie beside its index; correct it")
    return places


def _read_index(path: Path) -> dict[str, Any]:
    places = _index(path)
    shards: dict[str, Any] = {}
    for file in sorted(set(places.values())):
        existing_file(path.parent / file, f"named by {path.name}", "fetch it and put it beside the index")
        shards[file] = _read(path.parent / file)
    for name, file in places.items():
        if not isinstance(shards[file], Mapping) or name not in shards[file]:
            raise InputError(f"{path}: says that {name!r} is in {file}, which lacks it; fetch both again")
    return {name: shards[file][name] for name, file in places.items()}


def _read(path: Path) -> Any:
    refuse_foreign(path)
    with path.open("rb") as stream:
        start = stream.read(512)
    if (path.suffix == ".safetensors" and not start.startswith(b"PK")) or _is_safetensors(start, path):
        return read_safetensors(path)[0]
    _refuse_others(path, start)
    return _read_torch(path)


def _is_safetensors(start: bytes, path: Path) -> bool:
    return start[8:9] == b"{" and 8 + int.from_bytes(start[:8], "little") <= path.stat().st_size


def _refuse_others(path: Path, start: bytes) -> None:
    """Raise InputError for the files of other programs."""
    found = [(what, remedy) for magic, what, remedy in MAGIC if start.startswith(magic)]
    found += [(what, remedy) for ending, what, remedy in NAMED if re.search(rf"{ending}$", path.name)]
    if start.startswith(b"PK") and zipfile.is_zipfile(path):
        found += _zipped(path)
    elif not found and start[257:262] == b"ustar" and tarfile.is_tarfile(path):
        found.append(("a tar archive", "unpack it and give the weights file in it"))
    if found:
        what, remedy = found[0]
        raise InputError(f"{path}: is {what}, not a PyTorch state dict; {remedy}")


def _zipped(path: Path) -> list[tuple[str, str]]:
    """What a zip archive is, if not PyTorch's own."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    tails = {name.partition("/")[2] or name for name in names}
    if "constants.pkl" in tails:
        return [
            (
                "a TorchScript archive",
                "it brings its network, so give it without a factory, or save its state: "
                f"torch.save(torch.jit.load({path.name!r}).state_dict(), 'weights.pt')",
            )
        ]
    if "models/model.json" in tails:
        return [("an exported program", BRINGS)]
    if "data.pkl" in tails:
        return []
    if names and all(name.endswith(".npy") for name in names):
        return [("NumPy's format", "put the arrays into the PyTorch network and save model.state_dict()")]
    return [("a zip archive", "unpack it and give the weights file in it")]


def _read_torch(path: Path) -> Any:
    # the arguments of a script are often kept beside the weights; a Namespace is data, and runs nothing
    harmless = torch.serialization.safe_globals([argparse.Namespace])
    try:
        # the error says all there is to say; an open file, since PyTorch goes by the end of a name
        with warnings.catch_warnings(action="ignore"), harmless, path.open("rb") as stream:
            return torch.load(stream, map_location="cpu", weights_only=True)
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
