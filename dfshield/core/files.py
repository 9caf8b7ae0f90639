"""Files that are whole or absent, and where the user's files lie."""

import contextlib
import csv
import errno
import functools
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dfshield.core.errors import InputError

INDEX = ".index.json"
"""End of the name of a file that says which tensor is in which of several files."""
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar")
"""Ends of the names of weights files, as far as a folder is searched for them."""
KINDS = "a .safetensors, .pt or .pth file"
SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a disk that has no more room for us."""
REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ENODEV, errno.ETIMEDOUT)
"""Other errors of a disk or a folder."""


class Vanished(InputError):
    """The folder of a file was removed while the file was written."""


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success sync it to disk and rename it, on failure remove it.

    So a file that exists is whole. What a killed process of this machine has left beside `path` is removed. Raises
    InputError for what the disk refuses, also while the caller writes.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give the path of a file to write")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(path)
        mark = f".{path.name}.{_machine()}-{os.getpid()}."
        handle, name = tempfile.mkstemp(prefix=mark, suffix=f".tmp{path.suffix}", dir=path.parent)
    except OSError as error:
        kind = Vanished if error.errno == errno.ENOENT else InputError
        raise kind(
            f"{path}: cannot write there ({error.strerror}); choose another output path or free the folder"
        ) from None
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except OSError as error:
        if error.filename not in (None, name, temporary):
            raise  # of a file that is read
        if error.errno == errno.ENOENT and not temporary.exists():
            raise Vanished(f"{path}: not written (its folder was removed meanwhile); repeat") from None
        refuse(error, str(path))
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def refuse(error: OSError, path: str, refused: str = "not written") -> None:
    """Raise InputError if `error` says that a disk or folder refuses the file `path`, else do nothing."""
    if error.errno in (*SPACE, *REFUSED):
        remedy = "free space on its disk" if error.errno in SPACE else "see to its disk and folder"
        raise InputError(f"{path}: {refused} ({os.strerror(error.errno)}); {remedy} and repeat") from None


@functools.cache
def _machine() -> str:
    """What tells the processes of this machine (and container) from others; empty where it cannot be known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        return hashlib.sha256(f"{boot}{Path('/proc/self/ns/pid').readlink()}".encode()).hexdigest()[:8]
    except OSError:
        return ""


def _remove_stale(path: Path) -> None:
    """Remove temporary files for `path` whose process, of this machine, is dead."""
    if not _machine():
        return
    start = f".{path.name}.{_machine()}-"
    for found in path.parent.iterdir():
        pid = found.name.removeprefix(start).partition(".")[0]
        if found.name.startswith(start) and pid.isdigit() and not Path(f"/proc/{pid}").exists():
            with contextlib.suppress(OSError):
                found.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Rows as CSV text below the names of their columns."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return stream.getvalue()


def metrics_csv(columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> str:
    """Per-epoch metrics as CSV text, numbers with six digits."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    return stream.getvalue()


def existing_file(path: Path, what: str, remedy: str) -> Path:
    """Return `path` if it is a readable file, else raise InputError naming `what` and `remedy`."""
    if not path.is_file():
        raise InputError(f"{path}: no such file ({what}); {remedy}")
    return path


def find_weights(path: Path) -> Path:
    """The weights file that `path` stands for: itself or, in a folder, the index or else the only file of weights.

    Safetensors come before other formats. Raises InputError for a folder with none or with several.
    """
    try:
        files = sorted(file for file in path.iterdir() if file.is_file())
    except OSError:  # no folder; what else it may be is said where it is opened
        return path
    endings = (f".safetensors{INDEX}", INDEX, ".safetensors", SUFFIXES)
    for ending in endings:
        found = [file for file in files if file.name.endswith(ending)]
        if len(found) == 1:
            return found[0]
        if found:
            break
    names = ", ".join(file.name for file in found[:5]) or "none"
    raise InputError(f"{path}: is a folder with several or no weights files ({names}); name the file, {KINDS}")


def parts_of(path: Path) -> list[Path]:
    """Files that weights at `path` consist of besides `path`: those that an index names, those in a folder."""
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.is_file())
    if not path.name.endswith(INDEX):
        return []
    try:
        names = {str(name) for name in json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # the stage that reads it refuses it
        return []
    return sorted(path.parent / name for name in names if (path.parent / name).is_file())


def read_yaml(path: Path) -> Any:
    """What a YAML file holds; raises InputError if it cannot be read or is ambiguous (see `core.strict_yaml`)."""
    import yaml

    from dfshield.core import strict_yaml

    try:
        return strict_yaml.load(path.read_text(encoding="utf-8-sig"))
    except strict_yaml.StrictError as error:
        raise InputError(f"{path}: {error}") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from None


def data_dir(config_value: Path | None) -> Path:
    """Folder of real data and weights: the variable DFSHIELD_DATA, else the config's value, else ``./data``."""
    return Path(os.environ.get("DFSHIELD_DATA") or config_value or "data").expanduser()


def data_file(path: Path, folder: Path) -> Path:
    """A user's file: `path` itself if absolute, else below `folder` or, if it is only there, the current folder."""
    path = path.expanduser()
    try:
        return path if path.exists() and not (folder / path).exists() else folder / path
    except OSError:  # such as a name that is too long: said where the file is opened
        return folder / path
