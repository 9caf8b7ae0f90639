"""What TorchScript archives and exported programs may hold, checked before PyTorch reads them.

PyTorch's readers are no sandbox. ``torch.jit.load`` runs ``__setstate__`` of the archive's own classes, whose code may
write files. ``torch.export.load`` unpickles what asks for it, evaluates texts as symbolic expressions and looks
operators up by any dotted name below ``torch``. So an archive is read only if nothing of that is in it.
"""

import io
import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from dfshield.core.errors import InputError

SCRIPT = "a TorchScript archive"
PROGRAM = "an exported program"
_CODE = re.compile(r"__setstate__|\.(?:save|load|from_file|_from_file)\b|\bops\.(?!prim\.)|__torch__\.torch\.classes\.")
"""In the code of a TorchScript archive: what runs at loading, reads or writes files, or is no operator of PyTorch's."""
_PROGRAM_FILES = re.compile(
    r"archive_format|archive_version|byteorder|\.data/(version|serialization_id)|models/model\.json"
    r"|data/(weights/(weight_\d+|model_weights_config\.json)|constants/(tensor_\d+|model_constants_config\.json))"
    r"|data/sample_inputs/model\.pt"
)
"""Files of a program that are data alone: no compiled libraries, no Python objects."""
_OPERATOR = re.compile(
    r"torch\.ops\.aten\.\w+\.\w+|_operator\.(getitem|add|sub|mul|floordiv|mod|truediv|neg|eq|ne|lt|le|gt|ge)"
    r"|(math|torch)\.(floor|ceil|sym_max|sym_min|sym_int|sym_float|sym_ite)"
)
"""Operators that compute with tensors and sizes, and nothing else."""
_EXPRESSION = re.compile(
    r"(?:\d+(?:\.\d+)?|[su]\d+|'[su]\d+'|Symbol|Integer|Add|Mul|Pow|Max|Min|Mod|FloorDiv|CeilDiv|CleanDiv"
    r"|positive|nonnegative|integer|True|False|[-+*/(),= ])*"
)
"""Symbolic sizes."""


def archive_kind(path: Path) -> str:
    """`SCRIPT` or `PROGRAM` for an archive of that kind, by its content; empty for anything else."""
    if not zipfile.is_zipfile(path):
        return ""
    with zipfile.ZipFile(path) as archive:
        tails = {_tail(name) for name in archive.namelist()}
    if "models/model.json" in tails or "serialized_exported_program.json" in tails:
        return PROGRAM
    return SCRIPT if "constants.pkl" in tails else ""


def checked_script(path: Path) -> io.BytesIO:
    """The bytes of a TorchScript archive that runs nothing when it is loaded; raises InputError for another."""
    content, files = _read(path)
    for name, code in files.items():
        is_code = name.startswith("code/") and name.endswith(".py")
        if is_code and (found := _CODE.search(code.decode("utf-8", "replace"))):
            raise InputError(
                f"{path}: its TorchScript has {found[0]!r} ({name}), which may run code or touch files and is "
                "never loaded; save its state_dict() and give the factory of its network"
            )
    return content


def checked_program(path: Path) -> io.BytesIO:
    """The bytes of an exported program that is data alone; raises InputError for another."""
    content, files = _read(path)
    remedy = "which may run code and is never loaded; save its state_dict() and give the factory of its network"
    if "serialized_exported_program.json" in files:
        raise InputError(f"{path}: is an exported program of a PyTorch before 2.9; save it anew by torch.export.save")
    for name in files:
        if not _PROGRAM_FILES.fullmatch(name):
            raise InputError(f"{path}: holds {name!r}, {remedy}")
    for name, text in files.items():
        if name.endswith(".json"):
            for key, value in _pairs(json.loads(text)):
                if not _harmless(key, value):
                    raise InputError(f"{path}: {name} has {key} {str(value)[:80]!r}, {remedy}")
    samples = files.get("data/sample_inputs/model.pt", b"")
    try:
        if samples:
            torch.load(io.BytesIO(samples), weights_only=True)
    except Exception:  # whatever else it is, PyTorch would go on to unpickle it
        raise InputError(f"{path}: its sample inputs hold more than tensors, {remedy}") from None
    return content


def _harmless(key: str, value: Any) -> bool:
    checks = {
        "use_pickle": lambda: value is False,
        "path_name": lambda: bool(re.fullmatch(r"(weight|tensor)_\d+", str(value))),
        "target": lambda: not isinstance(value, str) or bool(_OPERATOR.fullmatch(value)),
        "expr_str": lambda: bool(_EXPRESSION.fullmatch(str(value))),
        "guards_code": lambda: not value,
        "as_custom_obj": lambda: False,
        "as_operator": lambda: False,
    }
    return key not in checks or checks[key]()


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    """Keys and values of a JSON text, however deep."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key, inner
            yield from _pairs(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _pairs(inner)


def _tail(name: str) -> str:
    """A file's name below the one folder that archives of PyTorch have."""
    return name.partition("/")[2] or name


def _read(path: Path) -> tuple[io.BytesIO, dict[str, bytes]]:
    """All of an archive, and its files by name; raises InputError for one that readers could see differently."""
    content = io.BytesIO(path.read_bytes())
    try:
        with zipfile.ZipFile(content) as archive:
            names = archive.namelist()
            files = {_tail(name): archive.read(name) for name in names}
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise InputError(f"{path}: is damaged ({error}); fetch or write it again") from None
    twice = [name for name, count in Counter(map(_tail, names)).items() if count > 1]
    if twice or len({name.partition("/")[0] for name in names}) > 1:
        raise InputError(f"{path}: has two files of one name or folder ({(twice or names)[0]}); write it again")
    content.seek(0)
    return content, files
