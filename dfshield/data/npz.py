"""Arrays of an ``.npz`` file, read in parts: some images of a large file cost those images.

Nothing is unpickled. What a file claims to hold is checked against its size before memory is asked for.
"""

import math
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from dfshield.core.datafree import check_real_data_allowed
from dfshield.core.errors import InputError
from dfshield.core.files import existing_file

MAX_RATIO = 1100
"""Deflate cannot shrink more than 1032-fold: a file that claims to hold more is refused."""
BLOCK_BYTES = 2**22
"""Bytes that are read at once."""
UNREADABLE = (OSError, ValueError, EOFError, KeyError, MemoryError, RuntimeError)
PICKLED = "it holds pickled Python objects (or is no .npz), which are never loaded; save plain number arrays"


class NpzArray:
    """One array of an ``.npz`` file: its shape and type are known, its values are read on demand."""

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key
        with self._opened() as (stream, info):
            self.shape, self.fortran, self.dtype = _header(stream)
            self._check_size(info, stream.tell())

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0] if self.shape else 0

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        values = np.concatenate([*self.blocks()]) if len(self) else np.empty(self.shape, self.dtype)
        return values if dtype is None else values.astype(dtype)

    def blocks(self, limit: int = 0) -> Iterator[np.ndarray]:
        """The first `limit` rows (all for 0), some at a time; raises InputError for a damaged file.

        The other rows are read, too, for the file's checksum, and not kept.
        """
        rows = min(limit or len(self), len(self))
        size = self.dtype.itemsize * math.prod(self.shape[1:])
        with self._opened() as (stream, _):
            _header(stream)
            if self.fortran:  # its first images lie all over the file
                check_memory(size * len(self), f"{self.path}: {self.key}")
                yield np.frombuffer(stream.read(), self.dtype).reshape(self.shape[::-1]).T[:rows]
                return
            step = max(1, BLOCK_BYTES // max(1, size))
            for start in range(0, rows, step):
                count = min(step, rows - start)
                yield np.frombuffer(stream.read(count * size), self.dtype).reshape(count, *self.shape[1:])
            while stream.read(BLOCK_BYTES):
                pass

    def _check_size(self, info: zipfile.ZipInfo, start: int) -> None:
        claimed = math.prod(self.shape) * self.dtype.itemsize
        packed = self.path.stat().st_size
        if claimed != info.file_size - start or claimed > MAX_RATIO * packed or min((0, *self.shape)) < 0:
            raise InputError(
                f"{self.path}: {self.key} claims to be {self.dtype} of shape {self.shape}, which a file of {packed} "
                "bytes cannot hold; fetch or write it again"
            )

    @contextmanager
    def _opened(self) -> Iterator[tuple[IO[bytes], zipfile.ZipInfo]]:
        check_real_data_allowed()
        with _refusing(self.path), zipfile.ZipFile(self.path) as archive:
            info = archive.getinfo(f"{self.key}.npy")
            with archive.open(info) as stream:
                yield stream, info


def read_npz(path: Path, keys: tuple[str, ...]) -> dict[str, NpzArray]:
    """The named arrays of an ``.npz`` file, to be read on demand; raises InputError if it does not hold them."""
    check_real_data_allowed()
    existing_file(path, "image file", "an .npz with the keys " + ", ".join(keys) + " is expected there")
    with _refusing(path):
        with path.open("rb") as stream:
            start = stream.read(8)
        if start.startswith(npy.MAGIC_PREFIX):
            raise InputError(f"{path}: holds one array, not an .npz archive; save with numpy.savez(path, x=…, y=…)")
        if start and not start.startswith(b"PK"):
            raise InputError(f"{path}: {PICKLED}")
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
    missing = [key for key in keys if key not in names]
    if missing:
        raise InputError(f"{path}: has no key {', '.join(missing)} (it has: {', '.join(names)[:200]})")
    return {key: NpzArray(path, key) for key in keys}


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(stream)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("allow_pickle")
    return shape, fortran, dtype


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Turn whatever a damaged or foreign archive raises into an InputError."""
    try:
        yield
    except (*UNREADABLE, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split())
        said = PICKLED if "allow_pickle" in reason else f"it cannot be read as .npz ({reason}); fetch or write it again"
        raise InputError(f"{path}: {said}") from None


def check_memory(size: int, what: str) -> None:
    """Raise InputError if this machine has not `size` bytes of memory for `what`."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
        raise InputError(
            f"{what}: takes {size / 2**30:.1f} GiB of memory, this machine has {memory / 2**30:.1f} GiB; "
            "give a limit or a smaller set"
        )
