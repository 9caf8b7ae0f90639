"""Arrays of .npz files, read in parts: as numpy reads them, at the cost of what is asked for."""

import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

from dfshield.core.errors import InputError
from dfshield.data import npz, sets
from dfshield.data.npz import read_npz

RANDOM = np.random.RandomState(0)
IMAGES = RANDOM.randint(0, 256, (7, 5, 4, 3)).astype(np.uint8)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("limit", [0, 1, 3, 7, 9])
@pytest.mark.parametrize(
    "values",
    [IMAGES, IMAGES.astype(">f8"), np.asfortranarray(IMAGES), IMAGES.transpose(0, 2, 1, 3), np.arange(7)],
    ids=["bytes", "foreign order of bytes", "Fortran", "turned", "labels"],
)
def test_the_first_rows_are_those_of_numpy(tmp_path, monkeypatch, save, limit, values):
    monkeypatch.setattr(npz, "BLOCK_BYTES", 2 * values[:1].nbytes + 1)
    save(tmp_path / "a.npz", x=values, y=np.arange(3))
    found = read_npz(tmp_path / "a.npz", ("x",))["x"]
    assert (found.shape, found.dtype, found.ndim, len(found)) == (values.shape, values.dtype, values.ndim, 7)
    blocks = [*found.blocks(limit)]
    assert np.array_equal(np.concatenate(blocks), values[: limit or 7])
    assert max(map(len, blocks)) <= 2 or found.fortran
    assert np.array_equal(np.asarray(found), values)


def test_a_limit_gives_the_same_images_and_identity(tmp_path, monkeypatch):
    """As if the whole set were read and cut: the ledger's hash of the images stays."""
    monkeypatch.setattr(npz, "BLOCK_BYTES", 100)
    monkeypatch.setattr(sets, "BLOCK_BYTES", 100)
    x, y = RANDOM.rand(9, 8, 8), np.arange(9) % 4
    np.savez(tmp_path / "a.npz", x=x, y=y)
    whole = sets.load_npz(tmp_path / "a.npz", (3, 8, 8), 4)
    expected = torch.from_numpy(x.astype(np.float32))[:, None].repeat(1, 3, 1, 1)
    assert torch.equal(whole.x, expected) and whole.y.tolist() == y.tolist()
    part = sets.load_npz(tmp_path / "a.npz", (3, 8, 8), 4, limit=5)
    assert len(part) == 5 and part.sha256() == whole.first(5).sha256()
    assert sets.load("digits", "test", tmp_path, 7).sha256() == sets.load("digits", "test", tmp_path).first(7).sha256()


def test_values_are_checked_where_they_are_read(tmp_path):
    x = np.zeros((6, 8, 8), dtype=np.float32)
    x[4] = 2
    np.savez(tmp_path / "a.npz", x=x, y=np.array([0, 1, 2, 3, 0, 9]))
    with pytest.raises(InputError, match=r"labels lie in 0..9"):
        sets.load_npz(tmp_path / "a.npz", (1, 8, 8), 4, limit=3)
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(6) % 4)
    assert len(sets.load_npz(tmp_path / "a.npz", (1, 8, 8), 4, limit=4)) == 4
    with pytest.raises(InputError, match=r"float images lie in \[0, 2\]"):
        sets.load_npz(tmp_path / "a.npz", (1, 8, 8), 4, limit=5)


def test_damage_behind_the_limit_is_seen(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((60, 8, 8), dtype=np.uint8), y=np.arange(60) % 4)
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[3000] ^= 1
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"cannot be read as .npz \(Bad CRC"):
        sets.load_npz(tmp_path / "a.npz", (1, 8, 8), 4, limit=2)


def forged(path, shape, dtype="|u1", values=b"", compression=zipfile.ZIP_STORED):
    """An archive whose array x claims a shape that its values have not."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (63 - (10 + len(header)) % 64) + b"\n"
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + values)


@pytest.mark.parametrize(
    ("shape", "dtype", "values"),
    [
        ((10**12, 8, 8), "|u1", bytes(640)),
        ((10, 8, 9), "|u1", bytes(640)),
        ((2**62, 4), "|u1", bytes(640)),
        ((-10, -8, 8), "|u1", bytes(640)),
        ((10, 8, 8), "<f8", bytes(640)),
        ((9, 8, 8), "|u1", bytes(640)),
    ],
    ids=["terabytes", "too many", "overflow", "negative", "type", "too few"],
)
def test_a_shape_that_the_file_cannot_hold(tmp_path, shape, dtype, values):
    forged(tmp_path / "a.npz", shape, dtype, values)
    with pytest.raises(InputError, match=r"a.npz: x claims to be .*, which a file of \d+ bytes cannot hold; fetch"):
        read_npz(tmp_path / "a.npz", ("x",))


def test_what_unpacks_to_more_than_deflate_can(tmp_path):
    """Bzip2 packs zeros a million-fold."""
    forged(tmp_path / "a.npz", (2**25,), values=bytes(2**25), compression=zipfile.ZIP_BZIP2)
    with pytest.raises(InputError, match=r"which a file of .* bytes cannot hold"):
        read_npz(tmp_path / "a.npz", ("x",))


def test_more_images_than_memory(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", x=IMAGES, y=np.arange(7))
    monkeypatch.setattr(npz.os, "sysconf", lambda name: 20)  # 400 bytes
    with pytest.raises(InputError, match=r"takes 0.0 GiB of memory, this machine has 0.0 GiB; give a limit or"):
        sets.load_npz(tmp_path / "a.npz", (3, 5, 4), 7)
    assert len(sets.load_npz(tmp_path / "a.npz", (3, 5, 4), 7, limit=1)) == 1


PEAK = """
from pathlib import Path
from dfshield.data import sets
def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024
before = peak()
for name, limit in (("plain", 2), ("packed", 2), ("plain", 0)):
    sets.load_npz(Path(name + ".npz"), (3, 96, 96), 10, limit)
    print(peak() - before)
"""


def test_memory_follows_the_images_that_are_read(tmp_path):
    """2,000 images of 27 kB take 53 MB as bytes and 211 MB as floats."""
    arrays = {"x": np.zeros((2000, 96, 96, 3), dtype=np.uint8), "y": np.arange(2000) % 10}
    np.savez(tmp_path / "plain.npz", **arrays)
    np.savez_compressed(tmp_path / "packed.npz", **arrays)
    words = [sys.executable, "-c", PEAK]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path)
    plain, packed, whole = map(float, done.stdout.split())
    assert max(plain, packed) < 50 and 200 < whole < 211 + 60, done.stdout
