"""What every HDF5 file of the program promises: whole or refused, self-contained, hashed.

A file states its format and version, says that its writer finished, and carries a SHA-256 over every value and
attribute. Reading checks all of that before a value is trusted; what is wrong is an InputError of one line.
"""

import contextlib
import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from dfshield.core.errors import InputError
from dfshield.core.files import existing_file
from dfshield.core.hashing import canonical_json
from dfshield.core.signals import NEVER_INSIDE

MAX_RATIO = 1100
"""Deflate cannot shrink more than 1032-fold: a file that claims to hold more is refused before memory is asked for."""
SEAL = ("content_sha256", "complete")
"""Attributes that the content hash cannot cover."""


class Contract(NamedTuple):
    """One kind of file."""

    format: str
    """Value of attribute ``format``."""
    version: int
    version_attribute: str
    """Attribute that holds the version."""
    version_name: str
    """What messages call the version, such as ``ledger format``."""
    name: str
    """What messages call such a file, such as ``an evaluation ledger``."""
    holds: str
    """What messages call its content."""
    made_by: str
    """How a file that is missing is made."""
    remedy: str
    """What mends a file that is damaged."""
    datasets: Mapping[str, Any]
    """Data sets that must be there, with their number types; None for any."""
    optional: Mapping[str, Any] = {}
    """Data sets that may be there, in the same way."""


@contextlib.contextmanager
def opened(path: Path, contract: Contract) -> Iterator[h5py.File]:
    """Open a complete file of one kind for reading; raises InputError for anything else, also while it is read."""
    existing_file(path, contract.holds, contract.made_by)
    try:
        with h5py.File(path, "r", locking=False) as file:
            _check_header(path, file, contract)
            there = {name: dtype for name, dtype in contract.optional.items() if file.get(name, getlink=True)}
            check_datasets(path, file, {**contract.datasets, **there}, contract.remedy)
            yield file
    except NotWritten:
        raise
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path}: truncated, damaged or not an HDF5 file ({reason}); {contract.remedy}") from None


def _check_header(path: Path, file: h5py.File, contract: Contract) -> None:
    if file.attrs.get("format") != contract.format:
        raise InputError(f"{path}: HDF5, but not {contract.name} of dfshield (without format={contract.format!r})")
    version = file.attrs[contract.version_attribute]
    if version != contract.version:
        raise InputError(
            f"{path}: {contract.version_name} {version}, this program reads {contract.version}; "
            "use the release of dfshield that wrote it"
        )
    if plain(file.attrs.get("complete")) is not True:
        raise InputError(f"{path}: incomplete (its writer was stopped); {contract.remedy}")


def check_datasets(path: Path, file: h5py.File, datasets: Mapping[str, Any], remedy: str) -> None:
    """Refuse data sets that are missing, of another type, elsewhere than in this file, or larger than it can hold."""
    for name, dtype in datasets.items():
        # a link or a virtual data set could make us read another file
        if not isinstance(file.get(name, getlink=True), h5py.HardLink) or not isinstance(file[name], h5py.Dataset):
            raise InputError(f"{path}: data set {name!r} is missing; {remedy}")
        if file[name].is_virtual or file[name].external:
            raise InputError(f"{path}: data set {name!r} lies in another file; {remedy}")
        if dtype is not None and file[name].dtype != dtype:
            raise InputError(f"{path}: data set {name!r} is {file[name].dtype}, expected {np.dtype(dtype)}; {remedy}")
    claimed = sum(file[name].size * file[name].dtype.itemsize for name in datasets)
    if claimed > MAX_RATIO * path.stat().st_size:
        raise InputError(f"{path}: claims {claimed} bytes of values, more than it can hold; {remedy}")


def plain(value: Any) -> Any:
    """An attribute's value as Python's own type."""
    return value.item() if isinstance(value, np.generic) else value


def attributes(file: h5py.File) -> dict[str, Any]:
    """All attributes of a file, as Python's own types."""
    return {key: plain(value) for key, value in file.attrs.items()}


def sha256(blocks: Iterable[np.ndarray]) -> str:
    """SHA-256 in hex of an array's values, given in blocks in order; it does not depend on the blocks' sizes."""
    total = hashlib.sha256()
    for values in blocks:
        total.update(np.ascontiguousarray(values).data)
    return total.hexdigest()


def content_hash(
    arrays: Mapping[str, Any], hashes: Mapping[str, str], attributes: Mapping[str, Any], outside: Iterable[str] = ()
) -> str:
    """SHA-256 in hex of a file's content: type, shape and hash of every array, and every attribute.

    `arrays` are arrays or data sets by name, `hashes` the SHA-256 of their values. Attributes of `SEAL` and `outside`
    are left out.
    """
    described = {name: [str(arrays[name].dtype), list(arrays[name].shape), hashes[name]] for name in sorted(hashes)}
    covered = {key: plain(value) for key, value in attributes.items() if key not in (*SEAL, *outside)}
    return hashlib.sha256(canonical_json([described, covered]).encode()).hexdigest()


def seal(file: h5py.File, content: str) -> None:
    """Mark a file as whole: the last thing that a writer does."""
    file.attrs["content_sha256"] = content
    file.attrs["complete"] = True


class NotWritten(OSError):
    """A disk has refused what was written: no error of a file that is read at the same time."""


class Sink(io.FileIO):
    """A new file that HDF5 writes through; `check` raises what the disk has refused, at the latest before renaming.

    The HDF5 library ends the whole process, without a word, if a write fails. So it is told of no failure: the first is
    kept in `error`, and what follows is dropped. There are no file locks either, which some file systems refuse.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of `data`, or remember why not."""
        left = memoryview(data).cast("B")
        size = len(left)
        while self.error is None and len(left):
            try:
                left = left[super().write(left) or 0 :]
            except OSError as error:
                self.error = error
        return size

    def truncate(self, size: int | None = None) -> int:
        """Set the file's size, or remember why not."""
        try:
            return super().truncate(size) if self.error is None else size or 0
        except OSError as error:
            self.error = error
            return size or 0

    def check(self) -> None:
        """Raise NotWritten for the first error of the disk, if there was one."""
        if self.error:
            raise NotWritten(self.error.errno, self.error.strerror)


NEVER_INSIDE.update((Sink.write.__code__, Sink.truncate.__code__))


@contextlib.contextmanager
def created(path: Path) -> Iterator[h5py.File]:
    """A new HDF5 file to write, for use within `files.atomic`; raises OSError for what the disk refuses."""
    with Sink(path) as sink:
        with h5py.File(sink, "w", libver="latest") as file:
            yield file
        sink.check()
