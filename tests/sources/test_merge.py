"""Merging the shards of a training set: in any order, streamed; what is no whole set is refused."""

import shutil
import tracemalloc

import h5py
import numpy as np
import pytest
from test_trainset import parts, shard

from dfshield.core.errors import InputError
from dfshield.core.hashing import canonical_json
from dfshield.sources import trainset as shards
from dfshield.sources.trainset import merge, opened, read, verify


def test_memory_does_not_grow_with_the_images(tmp_path):
    peaks = []
    for number, images in enumerate((5000, 5000, 50_000)):  # once more before, for what is imported on the way
        folder = tmp_path / str(number)
        folder.mkdir()
        paths = parts(folder, (1, 2, 3), groups=4, size=1, batch=images, dtype=np.uint8)
        tracemalloc.start()
        merge(paths, folder / "data.h5")
        verify(folder / "data.h5")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.1 * peaks[1]


@pytest.mark.parametrize("borders", [(), (3,), (1, 2, 3, 4, 5), (4, 5)])
@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_merging_keeps_everything(tmp_path, borders, dtype):
    paths = parts(tmp_path, borders, dtype=dtype)
    whole = shard(tmp_path / "whole.h5", 0, 5, 6, dtype=dtype)
    merged = [merge(order, tmp_path / f"{i}.h5") for i, order in enumerate((paths, paths[::-1]))]
    assert merged[0] == merged[1] == verify(whole)
    assert (tmp_path / "0.h5").read_bytes() == (tmp_path / "1.h5").read_bytes()
    found, expected = read(tmp_path / "0.h5"), read(whole)
    assert np.array_equal(found.images, expected.images)
    assert np.array_equal(found.labels, expected.labels)
    labels = []
    for path in paths:
        with opened(path) as file:
            labels.append(np.bincount(file["labels"][()], minlength=4))
    assert np.bincount(found.labels, minlength=4).tolist() == sum(labels).tolist()
    with h5py.File(tmp_path / "0.h5") as a, h5py.File(whole) as b:
        for name in shards._names(b):
            assert np.array_equal(a[name][()], b[name][()])
        assert a["images"].dtype == dtype


@pytest.mark.parametrize(
    ("choose", "message"),
    [
        (lambda p, extra: p[1:], r"out\.h5: not written, groups 0\.\.1 of 6 are missing; give all shards"),
        (lambda p, extra: [p[0], p[2]], r"groups 2\.\.3 of 6 are missing"),
        (lambda p, extra: p[:2], r"groups 4\.\.5 of 6 are missing"),
        (lambda p, extra: [*p, p[1]], r"group 2 is there twice \(duplicate shard\); give each shard once"),
        (lambda p, extra: [*p, extra["copy"]], "is there twice"),
        (lambda p, extra: [p[0], p[1], extra["seed"]], "seed differs from"),
        (lambda p, extra: [p[0], p[1], extra["teacher"]], "teacher_sha256 differs from"),
        (
            lambda p, extra: [p[0], p[1], extra["options"]],
            r"options differs from .*-0\.h5 \(lr: 1 against None\); mer",
        ),
        (lambda p, extra: [p[0], p[1], extra["real"]], "real_data differs from"),
        (lambda p, extra: [p[0], p[1], extra["type"]], "another type or size than in"),
        (lambda p, extra: [p[0], p[1], p[2].with_name("none.h5")], "no such file"),
        (lambda p, extra: [p[0], p[1], extra["text"]], "not an HDF5 file"),
        (lambda p, extra: [], "no shards given"),
    ],
)
def test_shards_that_are_no_whole_set(tmp_path, choose, message):
    paths = parts(tmp_path, (2, 4))
    extra = {name: tmp_path / f"{name}.h5" for name in ("copy", "text")}
    shutil.copy(paths[1], extra["copy"])
    extra["text"].write_text("no HDF5")
    for name, changes in {
        "seed": {"seed": 1},
        "teacher": {"teacher_sha256": "f" * 64},
        "options": {"size": 2, "options": canonical_json({"group": 2, "batch": 5, "lr": 1})},
        "real": {"real_data": "train"},
        "type": {"dtype": np.uint8},
    }.items():
        extra[name] = shard(tmp_path / f"{name}.h5", 4, 5, 6, **changes)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=message) as error:
        merge(choose(paths, extra), tmp_path / "out.h5")
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.iterdir()) == before


def test_one_shard_is_no_training_data(tmp_path):
    with pytest.raises(InputError, match=r"holds groups 0\.\.1 of 6; give the merged file"):
        read(parts(tmp_path, (2,))[0])


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    peaks = {}
    for size in (40, 640):
        folder = tmp_path / str(size)
        folder.mkdir()
        paths = parts(folder, (1,), groups=2, batch=size, size=50)  # 1 and 16 MB of images
        tracemalloc.start()
        merge(paths, folder / "out.h5")
        verify(folder / "out.h5")
        peaks[size] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert (tmp_path / "640" / "out.h5").stat().st_size > 15e6
    assert peaks[640] < 4e6
    assert peaks[640] < 2.5 * peaks[40]
