"""TrainSet files: what is written is read, what is damaged, forged or does not belong together is refused."""

import itertools
import os
import subprocess
import sys

import h5py
import numpy as np
import pytest
from support import tiny
from support.disks import room

from dfshield.core import hdf5
from dfshield.core.errors import InputError
from dfshield.core.files import atomic
from dfshield.core.hashing import canonical_json
from dfshield.sources import trainset as shards
from dfshield.sources.trainset import Writer, header, merge, read, verify

TERMS = ("class", "feature", "prior")


def shard(path, first=0, last=0, groups=1, size=2, batch=5, dtype=np.float32, seed=0, classes=4, **changes):
    """A shard of groups `first` to `last` of `groups`, of `size` batches each; content depends on the group alone."""
    attributes = tiny.header(
        groups=groups, first_group=first, last_group=last, classes=classes,
        options=canonical_json({"group": size, "batch": batch}), seed=seed,
    )  # fmt: skip
    writer = Writer(path, attributes | changes, TERMS)
    for group in range(first, last + 1):
        random = np.random.RandomState(100 * seed + group)
        images = random.rand(size * batch, 8, 8, 1).astype(np.float32)
        if dtype is np.uint8:
            images = (images * 255).astype(np.uint8)
        values = {term: random.rand(size) for term in TERMS}
        batches = np.arange(group * size, (group + 1) * size).repeat(batch)
        writer.append(images, random.randint(0, 4, size * batch), batches, values, values)
    writer.finish()
    return path


def parts(folder, borders, groups=6, **settings):
    edges = [0, *borders, groups]
    return [
        shard(folder / f"shard-{i}.h5", a, b - 1, groups, **settings)
        for i, (a, b) in enumerate(itertools.pairwise(edges))
    ]


def edit(path, change):
    with h5py.File(path, "r+") as file:
        change(file)


def rehash(path):
    """Make a forged file's stated hash right again, as a forger would."""
    with h5py.File(path, "r+") as file:
        hashes = {name: hdf5.sha256([file[name][()]]) for name in shards._names(file)}
        file.attrs["content_sha256"] = shards._content_hash(file, hashes)


# --- write and read --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_round_trip(tmp_path, dtype):
    path = shard(tmp_path / "data.h5", 0, 2, 3, dtype=dtype)
    found = read(path)
    expected = np.concatenate([np.random.RandomState(g).rand(10, 8, 8, 1).astype(np.float32) for g in range(3)])
    if dtype is np.uint8:
        expected = (expected * 255).astype(np.uint8).astype(np.float32) / 255
    assert found.images.dtype == np.float32
    assert np.array_equal(found.images, expected)
    assert (found.labels.dtype, found.labels.shape) == (np.int64, (30,))
    assert found.attributes["options"] == {"group": 2, "batch": 5}
    assert verify(path) == found.attributes["content_sha256"] == header(path)["content_sha256"]


def test_layout_of_the_file(tmp_path):
    path = shard(tmp_path / "data.h5", 0, 1, 2)
    names = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: names.update({name: item.shape}) if isinstance(item, h5py.Dataset) else None)
        datasets = [file[name] for name in names]
        assert all(item.fletcher32 and item.chunks and item.compression is None for item in datasets)
        image = {key: bytes(value) for key, value in file["images"].attrs.items()}
        assert (file["labels"].dtype, file["batch"].dtype) == (np.int64, np.int64)
        assert bool(file.attrs["complete"]) is True
    assert names == {"images": (20, 8, 8, 1), "labels": (20,), "batch": (20,)} | {
        f"{kind}/{term}": (4,) for kind in ("coefficients", "final_loss") for term in TERMS
    }
    assert image == {
        "CLASS": b"IMAGE",
        "IMAGE_VERSION": b"1.2",
        "IMAGE_SUBCLASS": b"IMAGE_GRAYSCALE",
        "INTERLACE_MODE": b"INTERLACE_PIXEL",
    }
    assert path.read_bytes()[8] >= 2  # superblock of the latest format, which carries a checksum


def test_colour_images_say_so(tmp_path):
    path = tiny.trainset(tmp_path / "data.h5", shape=(3, 8, 8))
    with h5py.File(path) as file:
        assert file["images"].attrs["IMAGE_SUBCLASS"] == b"IMAGE_TRUECOLOR"


def test_equal_content_gives_equal_bytes(tmp_path):
    first, second = (shard(tmp_path / f"{i}.h5", 0, 2, 3) for i in range(2))
    assert first.read_bytes() == second.read_bytes()


def test_appending_in_pieces_changes_no_hash(tmp_path):
    found = []
    for i, sizes in enumerate([(12,), (5, 7), (1,) * 12]):
        writer, start = Writer(tmp_path / f"{i}.h5", tiny.header(), ()), 0
        for size in sizes:
            rows = slice(start, start := start + size)
            labels = np.arange(12)[rows] % 4
            writer.append(tiny.images(12)[rows], labels, np.zeros(size, dtype=np.int64), {}, {})
        found.append(writer.finish())
    assert len(set(found)) == 1
    assert verify(tmp_path / "2.h5") == found[0]


@pytest.mark.parametrize(
    "key", [k for k in tiny.header() if k not in ("first_group", "last_group", "options", "groups", "classes", "seed")]
)
def test_every_attribute_is_in_the_hash(tmp_path, key):
    changed = "train" if key == "real_data" else "other"
    assert verify(shard(tmp_path / "a.h5")) != verify(shard(tmp_path / "b.h5", **{key: changed}))


@pytest.mark.parametrize("name", ["images", "labels", "batch", "coefficients/prior", "final_loss/class"])
def test_an_edited_value_is_found(tmp_path, name):
    path = shard(tmp_path / "data.h5", 0, 1, 2)

    def change(file):
        values = file[name][()]
        values.flat[3] = 0 if values.flat[3] else 1
        file[name][...] = values

    edit(path, change)
    for reader in (verify, read, lambda p: merge([p], tmp_path / "out.h5")):
        with pytest.raises(InputError, match="does not match its SHA-256"):
            reader(path)
    assert not (tmp_path / "out.h5").exists()


@pytest.mark.parametrize(
    ("key", "value"), [("teacher_sha256", "f" * 64), ("real_data", "train"), ("seed", 1), ("new", 1), ("code", "x")]
)
def test_an_edited_attribute_is_found(tmp_path, key, value):
    path = shard(tmp_path / "data.h5")
    edit(path, lambda file: file.attrs.__setitem__(key, value))
    with pytest.raises(InputError, match="does not match its SHA-256"):
        read(path)


@pytest.mark.parametrize("key", ["first_group", "last_group"])
def test_a_shard_that_claims_other_groups_is_found(tmp_path, key):
    path = shard(tmp_path / "s.h5", 1, 2, 4)
    edit(path, lambda file: file.attrs.__setitem__(key, 0 if key == "first_group" else 3))
    with pytest.raises(InputError, match="not of the groups that it states"):
        verify(path)


# --- damage ----------------------------------------------------------------------------------------------------------


def test_flipped_bits_are_never_accepted_as_something_else(tmp_path):
    path = shard(tmp_path / "data.h5", 0, 1, 2, batch=20)
    whole, genuine = path.read_bytes(), read(path)
    random, refused = np.random.RandomState(0), 0
    # all over the file and, densely, the first kilobytes: superblock, headers and attributes
    places = [*random.randint(0, len(whole), 100), *random.randint(0, 3000, 100)]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << random.randint(8)
        path.write_bytes(damaged)
        try:
            found = read(path)
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
            assert str(path) in str(error)
        else:
            assert np.array_equal(found.images, genuine.images)
            assert np.array_equal(found.labels, genuine.labels)
            assert found.attributes == genuine.attributes
    assert refused > 100


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_truncated_files(tmp_path, share):
    path = shard(tmp_path / "data.h5", 0, 1, 2)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    for reader in (verify, header, lambda p: merge([p], tmp_path / "out.h5")):
        with pytest.raises(InputError, match="truncated, damaged or not an HDF5 file") as error:
            reader(path)
        assert "\n" not in str(error.value)


def no_such(file):
    for key in list(file.attrs):
        del file.attrs[key]


def link(file):
    del file["labels"]
    file["labels"] = h5py.ExternalLink("elsewhere.h5", "/labels")


def as_group(file):
    del file["labels"]
    file.create_group("labels")


def replace(name, values):
    def change(file):
        del file[name]
        file[name] = values

    return change


def huge(file):
    del file["images"]
    file.create_dataset("images", (20, 10**6, 10**6, 1), "f4", chunks=(1, 64, 64, 1))


def attribute(key, value):
    return lambda file: file.attrs.__setitem__(key, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (no_such, "not a training set of dfshield"),
        (attribute("format", "other"), "not a training set of dfshield"),
        (attribute("version", 2), "format version 2, this program reads 1; use the release"),
        (attribute("complete", False), "incomplete .*make it again"),
        (lambda file: file.attrs.__delitem__("complete"), "incomplete"),
        (lambda file: file.attrs.__delitem__("version"), "damaged"),
        (lambda file: file.attrs.__delitem__("groups"), "attribute 'groups' is missing or no int"),
        (attribute("classes", "ten"), "attribute 'classes' is missing or no int"),
        (attribute("classes", [1, 2]), "attribute 'classes' is missing or no int"),
        (attribute("first_group", 0.5), "attribute 'first_group' is missing or no int"),
        (attribute("teacher_sha256", 7), "attribute 'teacher_sha256' is missing or no str"),
        (attribute("real_data", "some"), "'real_data' or 'options' cannot be read"),
        (attribute("options", "[1]"), "'real_data' or 'options' cannot be read"),
        (attribute("options", "{"), "damaged"),
        (lambda file: file.__delitem__("labels"), "data set 'labels' is missing"),
        (link, "data set 'labels' is missing"),
        (as_group, "data set 'labels' is missing"),
        (replace("labels", 3), "do not fit together"),
        (replace("labels", np.zeros(3, dtype=np.int64)), "do not fit together"),
        (replace("images", np.zeros((20, 64), dtype=np.float32)), "do not fit together"),
        (replace("images", np.zeros((0, 8, 8, 1), dtype=np.float32)), "do not fit together or are empty"),
        (huge, "more than it can hold"),
    ],
)
def test_wrong_or_hostile_files(tmp_path, change, message):
    path = shard(tmp_path / "data.h5", 0, 1, 2)
    edit(path, change)
    for reader in (verify, header, read, lambda p: merge([p], tmp_path / "out.h5")):
        with pytest.raises(InputError, match=message) as error:
            reader(path)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "out.h5").exists()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("labels", 4, r"labels 0\.\.4 out of range 0\.\.3"),
        ("labels", -1, r"labels -1\.\.3 out of range 0\.\.3"),
        ("images", 1.5, "pixels out of range"),
        ("images", -0.1, "pixels out of range"),
        ("images", float("nan"), "pixels out of range .* or not finite"),
        ("images", float("inf"), "pixels out of range"),
    ],
)
def test_values_out_of_range_even_with_a_right_hash(tmp_path, name, value, message):
    path = shard(tmp_path / "data.h5", 0, 1, 2)

    def change(file):
        file[name][(0, 0, 0, 0) if name == "images" else 0] = value

    edit(path, change)
    rehash(path)
    for reader in (verify, read, lambda p: merge([p], tmp_path / "out.h5")):
        with pytest.raises(InputError, match=message):
            reader(path)


def test_rehash_makes_a_right_hash(tmp_path):
    path = shard(tmp_path / "data.h5", 0, 1, 2)
    edit(path, lambda file: file["images"].__setitem__((0, 0, 0, 0), 0.5))
    rehash(path)
    assert verify(path)


def test_a_file_without_a_writer_that_finished_is_refused(tmp_path):
    writer = Writer(tmp_path / "data.h5", tiny.header(), ())
    writer.append(tiny.images(4), np.zeros(4), np.zeros(4), {}, {})
    writer.file.close()
    with pytest.raises(InputError):
        read(tmp_path / "data.h5")


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"no such file .*make it with `dfshield synthesize` or `dfshield merge`"):
        read(tmp_path / "none.h5")


def test_a_writer_that_raises_leaves_nothing(tmp_path):
    out = tmp_path / "data.h5"
    out.write_bytes(b"what was there")
    with pytest.raises(ZeroDivisionError), atomic(out) as temporary, Writer(temporary, tiny.header(), ()) as writer:
        writer.append(tiny.images(4), np.zeros(4), np.zeros(4), {}, {})
        assert temporary.parent == tmp_path
        1 / 0  # noqa: B018
    assert [path.name for path in tmp_path.iterdir()] == ["data.h5"]
    assert out.read_bytes() == b"what was there"


@pytest.mark.parametrize("size", [0, 1000, 4000])
def test_a_full_disk_is_told_as_such(tmp_path, size):
    """So that a merge does not take it for damage of the shard that it reads."""
    shard = tiny.trainset(tmp_path / "shard.h5", 20)
    told = r"out\.h5: not written \(File too large\); free space on its disk and repeat"
    with pytest.raises(InputError, match=told), room(size):
        merge([shard], tmp_path / "out.h5")
    assert list(tmp_path.iterdir()) == [shard]


def test_a_merge_that_fails_ends_with_the_status_of_an_error(tmp_path):
    """Not by a signal: HDF5 writes files that are still open after Python is gone."""
    shard = tiny.trainset(tmp_path / "shard.h5", 20)
    words = ["merge", os.fspath(shard), "--out", os.fspath(tmp_path / "out.h5")]
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, -1))"
    script = f"{full}; from dfshield.cli import main; main({words})"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "not written (File too large)" in run.stderr
    assert run.returncode == 2
