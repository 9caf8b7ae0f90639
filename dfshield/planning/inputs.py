"""Files that a config names: where they lie, whether they can be used, and what identifies them.

Where a file lies is no reason to run again, its content is. So these files are no inputs of the workflow's rules, which
Snakemake compares by path and time; rules have their SHA-256 as a parameter.
"""

import functools
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dfshield.core.errors import InputError
from dfshield.core.files import data_dir, data_file, find_weights, parts_of
from dfshield.core.hashing import canonical_json, sha256_file
from dfshield.models.bundles import wherever
from dfshield.planning.config import Config
from dfshield.planning.subjects import Subject


def below_data(config: Config, path: Path | str) -> Path:
    """A file that the config names, below the data folder if it is not absolute."""
    return data_file(Path(path), data_dir(config.data_dir))


def factory_file(subject: Subject) -> Path | None:
    """The file of a user's factory; None where it is in an installed module, or there is none."""
    place = (subject.factory or "").rpartition(":")[0]
    return Path(place) if place.endswith(".py") else None


def named_files(config: Config, subject: Subject) -> Iterator[tuple[str, Path, str]]:
    """Key, place and remedy of every file that a user's own model names."""
    where, folder = f"harden.{subject.model}", data_dir(config.data_dir)
    below = f"give an absolute path or one below {folder.absolute()} (data_dir, DFSHIELD_DATA)"
    code = factory_file(subject)
    if code is not None:
        yield f"{where}.factory", code, f"it is sought from the working folder {Path.cwd()}"
    if subject.weights is not None:
        yield f"{where}.weights", below_data(config, subject.weights), below
    if subject.evaluation is not None:
        yield f"{where}.evaluation.file", below_data(config, subject.evaluation.file), below


def check_files(config: Config, subject: Subject) -> None:
    """Raise InputError for a file of a user's own model that is missing, no file, empty, unreadable or does not fit.

    Of an evaluation set the types and shapes of its arrays are read, no values.
    """
    from dfshield.data.headers import check_npz

    for key, path, remedy in named_files(config, subject):
        check_file(path, key, remedy)
    if subject.evaluation is not None:
        path = below_data(config, subject.evaluation.file)
        try:
            check_npz(path, subject.input_shape, subject.classes)
        except InputError as error:
            raise InputError(f"harden.{subject.model}.evaluation.file: {error}") from None


def check_file(path: Path, key: str, remedy: str) -> None:
    """Raise InputError, with the config's key, for what is no file that can be read and holds something.

    Weights may be a folder: that of a model in several files.
    """
    try:
        path = find_weights(path) if key.endswith(".weights") else path
        found = path.stat()
        with path.open("rb"):
            pass
    except InputError as error:
        raise InputError(f"{key}: {error}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{key}: {str(path)[:300]}: {reason}; {remedy}") from None
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{key}: {path}: is no regular file; {remedy}")
    if not found.st_size:
        raise InputError(f"{key}: {path}: is empty; fetch or write it again")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, read once while it stays the same; raises InputError if it cannot be read."""
    try:
        found = path.stat()
        return _sha256(os.fspath(path), found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; it is named in the config") from None


@functools.cache
def _sha256(path: str, *version: int) -> str:
    return sha256_file(Path(path))


def _weights(path: Path) -> str | dict[str, str]:
    """SHA-256 of a weights file; by name, of those that an index or a folder stands for."""
    parts = parts_of(path)
    if not parts:
        return sha256_of(path)
    return {part.name: sha256_of(part) for part in ([] if path.is_dir() else [path]) + parts}


def own_model(config: Config, subject: Subject) -> str:
    """What a user's own model is, wherever its files lie, as canonical JSON; empty for a registered model."""
    if not subject.own:
        return ""
    assert subject.weights is not None and subject.factory is not None
    code, function = factory_file(subject), subject.factory.rpartition(":")[2]
    values: dict[str, Any] = {
        "factory": [code.name, function, sha256_of(code)] if code is not None else subject.factory,
        "arguments": wherever(subject.factory, subject.arguments),
        "weights": _weights(below_data(config, subject.weights)),
    }
    values |= {name: getattr(subject, name) for name in ("input_shape", "classes", "mean", "std")}
    return canonical_json(values)
