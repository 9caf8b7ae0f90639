"""The contract of HDF5 files: what is not whole, not ours, not self-contained or too large is refused in one line."""

import fcntl

import h5py
import numpy as np
import pytest
from support.disks import room

from dfshield.core import hdf5
from dfshield.core.errors import InputError
from dfshield.core.files import atomic
from dfshield.core.hdf5 import Contract, content_hash, created, opened, sha256

CONTRACT = Contract(
    format="test",
    version=3,
    version_attribute="v",
    version_name="test format",
    name="a test file",
    holds="test values",
    made_by="make it with a test",
    remedy="make it anew",
    datasets={"values": np.int64, "free": None},
)
VALUES = {"values": np.arange(12).reshape(3, 4), "free": np.ones(5, dtype=np.float32)}


@pytest.fixture
def path(tmp_path):
    made = tmp_path / "file.h5"
    with h5py.File(made, "w", libver="latest") as file:
        for name, values in VALUES.items():
            file[name] = values
        file.attrs.update({"format": "test", "v": 3, "text": "α", "number": np.float32(0.5)})
        hashes = {name: sha256([values]) for name, values in VALUES.items()}
        hdf5.seal(file, content_hash(VALUES, hashes, file.attrs))
    return made


def refused(path, message):
    with pytest.raises(InputError, match=message) as error, opened(path, CONTRACT):
        pass
    assert "\n" not in str(error.value) and str(error.value).startswith(str(path))


def edit(path, change):
    with h5py.File(path, "r+", libver="latest") as file:
        change(file)


def test_a_whole_file_is_read(path):
    with opened(path, CONTRACT) as file:
        assert (file["values"][()] == VALUES["values"]).all()
        found = hdf5.attributes(file)
        assert content_hash(file, {name: sha256([file[name][()]]) for name in VALUES}, found) == found["content_sha256"]
    assert found["text"] == "α" and type(found["number"]) is float and type(found["v"]) is int


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", "other", r"HDF5, but not a test file of dfshield \(without format='test'\)"),
        ("format", None, "not a test file of dfshield"),
        ("v", 4, "test format 4, this program reads 3; use the release of dfshield that wrote it"),
        ("v", None, "truncated, damaged or not an HDF5 file .*; make it anew"),
        ("complete", False, r"incomplete \(its writer was stopped\); make it anew"),
        ("complete", None, "incomplete"),
        ("complete", "yes", "incomplete"),
    ],
)
def test_headers_that_do_not_fit(path, key, value, message):
    edit(path, lambda file: file.attrs.__delitem__(key) if value is None else file.attrs.__setitem__(key, value))
    refused(path, message)


@pytest.mark.parametrize("kind", ["missing", "soft", "external link", "group", "virtual", "external", "type", "huge"])
def test_hostile_data_sets(path, tmp_path, kind):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["values"] = VALUES["values"]

    def change(file):
        del file["values"]
        if kind == "soft":
            file["values"] = h5py.SoftLink("/free")
        elif kind == "external link":
            file["values"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "values")
        elif kind == "group":
            file.create_group("values")
        elif kind == "virtual":
            layout = h5py.VirtualLayout((3, 4), np.int64)
            layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "values", (3, 4))
            file.create_virtual_dataset("values", layout)
        elif kind == "external":
            file.create_dataset("values", (3,), np.int64, external=[(str(tmp_path / "raw"), 0, 24)])
        elif kind == "type":
            file["values"] = np.zeros(3, np.int32)
        elif kind == "huge":
            file.create_dataset("values", (2**60,), np.int64, chunks=(16,))

    edit(path, change)
    message = {
        "virtual": "data set 'values' lies in another file; make it anew",
        "external": "data set 'values' lies in another file",
        "type": "data set 'values' is int32, expected int64; make it anew",
        "huge": f"claims {2**63 + 20} bytes of values, more than it can hold",
    }
    refused(path, message.get(kind, "data set 'values' is missing; make it anew"))


def test_what_is_no_file_of_this_kind(path, tmp_path):
    refused(tmp_path / "none.h5", r"no such file \(test values\); make it with a test")
    whole = path.read_bytes()
    for content in (b"", b"<html>", whole[: len(whole) // 2]):
        path.write_bytes(content)
        refused(path, "truncated, damaged or not an HDF5 file")


def test_errors_while_reading_are_told_as_damage(path):
    with pytest.raises(InputError, match=r"damaged .*no such key"), opened(path, CONTRACT):
        raise KeyError("no such key")
    with pytest.raises(InputError, match=r"^mine$"), opened(path, CONTRACT):
        raise InputError("mine")


def test_the_hash_of_values_does_not_depend_on_the_blocks():
    values = np.random.RandomState(0).rand(10, 3)
    assert len({sha256([values]), sha256([values[:4], values[4:]]), sha256(iter(values))}) == 1
    assert sha256([values.T]) == sha256([np.ascontiguousarray(values.T)]) != sha256([values])
    assert sha256([np.zeros((0, 3))]) == sha256([])


def test_the_content_hash_covers_names_types_shapes_values_and_attributes():
    def found(arrays, **attributes):
        return content_hash(arrays, {k: sha256([v]) for k, v in arrays.items()}, attributes, outside=("place",))

    one = np.zeros(4, np.float32)
    base = found({"a": one}, text="x")
    assert base == found({"a": one}, text="x", place=3, content_sha256="f", complete=True)
    others = [
        found({"b": one}, text="x"),
        found({"a": one.view(np.int32)}, text="x"),
        found({"a": one.reshape(2, 2)}, text="x"),
        found({"a": one + 1}, text="x"),
        found({"a": one, "b": one}, text="x"),
        found({"a": one}, text="y"),
        found({"a": one}, text="x", more=1),
    ]
    assert len({base, *others}) == 1 + len(others)


def fill(file):
    """Write what needs several visits to the disk."""
    for name, size in (("first", 30_000), ("second", 70_000)):
        made = file.create_dataset(name, (0,), maxshape=(None,), chunks=(5000,), dtype="f4", fletcher32=True)
        for part in range(2):
            made.resize((part + 1) * size, axis=0)
            made[part * size :] = part
    file.attrs["text"] = "x" * 300


def test_a_disk_that_is_full_at_any_place_is_told(tmp_path):
    """The HDF5 library by itself ends the process if a write fails."""
    path = tmp_path / "out.h5"
    with created(path) as file:
        fill(file)
    whole = path.read_bytes()
    for size in (0, 10, 1000, len(whole) // 2, len(whole) - 1):
        with (
            pytest.raises(InputError, match=r"out\.h5: not written \(File too large\); free space"),
            room(size),
            atomic(path) as temporary,
            created(temporary) as file,
        ):
            fill(file)
        assert [found.name for found in tmp_path.iterdir()] == ["out.h5"]
    assert path.read_bytes() == whole


def test_files_are_written_and_read_without_locks(tmp_path):
    path = tmp_path / "out.h5"
    path.touch()
    with path.open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with created(path) as file:
            fill(file)
            file.attrs.update({"format": "test", "v": 3, "complete": True})
        with opened(path, CONTRACT._replace(datasets={"first": None})) as file:
            assert len(file["first"]) == 60_000
