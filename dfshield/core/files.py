"""Files that are whole or absent, and where the user's files lie."""

import contextlib
import csv
import errno
import io
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
from dfshield.core.errors import InputError


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success sync it to disk and rename it, on failure remove it.

    So a file that exists is whole.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give the path of a file to write")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=f".tmp{path.suffix}", dir=path.parent)
    except OSError as error:
        raise InputError(
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
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise InputError(f"{path}: not written ({error.strerror}); free space on its disk and repeat") from None
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def metrics_csv(columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> str:
    """Per-epoch metrics as CSV text, numbers with six digits."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    return stream.getvalue()


def read_resume_state(path: Path | None, device: "torch.device") -> dict[str, Any] | None:
    """What a stopped run has saved in `path`, None if nothing; InputError for a damaged file."""
    import torch

    if path is None or not path.is_file():
        return None
    try:
        saved: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # a damaged file may raise anything
        raise InputError(f"{path}: damaged state of a stopped run ({type(error).__name__}); delete it") from None
    return saved


def existing_file(path: Path, what: str, remedy: str) -> Path:
    """Return `path` if it is a readable file, else raise InputError naming `what` and `remedy`."""
    if not path.is_file():
        raise InputError(f"{path}: no such file ({what}); {remedy}")
    return path


def read_yaml(path: Path) -> Any:
    """What a YAML file holds; raises InputError if it cannot be read."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where PyYAML was built with it
    try:
        return yaml.load(path.read_text(encoding="utf-8"), loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from None


def data_dir(config_value: Path | None) -> Path:
    """Folder of real data and weights: the variable DFSHIELD_DATA, else the config's value, else ``./data``."""
    return Path(os.environ.get("DFSHIELD_DATA") or config_value or "data").expanduser()


def data_file(path: Path, folder: Path) -> Path:
    """A user's file: `path` itself if absolute, else below `folder` or, if it is only there, the current folder."""
    path = path.expanduser()
    return path if path.is_file() and not (folder / path).is_file() else folder / path
