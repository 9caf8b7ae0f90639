"""State of a stopped run: what is kept in pieces, so that the same call goes on there.

A piece is a file of its own in a folder whose name is a digest of everything that decides about the result. It begins
with a SHA-256 over its name and all its bytes. What does not match is made again: a damaged piece, one of an older
program, and one that belongs elsewhere. State is a convenience: no damage to it is an error.
"""

import contextlib
import hashlib
import io
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dfshield import __version__
from dfshield.core.files import Vanished, atomic
from dfshield.core.hashing import digest
from dfshield.core.progress import log

MAGIC = f"dfshield {__version__} state 2\n".encode()
"""First line of every piece. The second is the SHA-256 in hex."""
TRIES = 3
"""Attempts to write into a folder that others remove: equal jobs have one folder, and the first to end removes it."""


def run_folder(state: Path | None, stage: str, *decides: Any) -> Path | None:
    """Folder below `state` for the pieces of one run of a stage; `decides` is all that its result depends on."""
    return state / f"{stage}-{digest(*decides)[:16]}" if state else None


def forget(folder: Path | None) -> None:
    """Remove the pieces of a finished run."""
    if folder:
        shutil.rmtree(folder, ignore_errors=True)


def keep(path: Path | None, payload: bytes) -> None:
    """Keep one piece; nothing without a path. Raises InputError where the disk has no room for it."""
    if path is None:
        return
    with contextlib.suppress(OSError):  # whatever has the name of a piece or of its folder, and is none
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        if path.parent.is_symlink() or path.parent.is_file():
            path.parent.unlink()
    for _ in range(TRIES):
        with contextlib.suppress(Vanished), atomic(path) as temporary:
            with temporary.open("wb") as stream:
                stream.write(MAGIC + _seal(path, payload) + b"\n")
                stream.write(payload)
            return


def kept(path: Path | None) -> bytes | None:
    """One piece, as it was given to `keep`; None if there is none, or, with a line in the log, none that is whole."""
    if path is None or not (path.exists() or path.is_symlink()):
        return None
    try:
        if not path.is_file():
            raise ValueError("no file")
        content = path.read_bytes()
        size = len(MAGIC) + 65
        payload = content[size:]
        if content[:size] == MAGIC + _seal(path, payload) + b"\n":
            return payload
    except (OSError, ValueError):
        pass
    made_again(path)
    return None


def made_again(path: Path) -> None:
    """Tell that a piece is there and cannot be used."""
    log(f"{path}: damaged, or of another program or run; what it held is made again")


def keep_arrays(path: Path | None, arrays: Mapping[str, np.ndarray]) -> None:
    """Keep arrays as one piece."""
    if path is not None:
        stream = io.BytesIO()
        np.savez(stream, allow_pickle=False, **arrays)
        keep(path, stream.getvalue())


def kept_arrays(path: Path | None) -> dict[str, np.ndarray] | None:
    """The arrays of a piece, by name; None as `kept`."""
    payload = kept(path)
    if payload is None:
        return None
    with np.load(io.BytesIO(payload), allow_pickle=False) as loaded:
        return dict(loaded)


def _seal(path: Path, payload: bytes) -> bytes:
    total = hashlib.sha256(MAGIC + f"{path.parent.name}/{path.name}\n".encode())
    total.update(payload)
    return total.hexdigest().encode()
