"""The evaluation ledger: what is read is what was written, or the file is refused with one line."""

import subprocess
import sys
import time
from dataclasses import fields, replace

import h5py
import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score
from support.ledgers import make_ledger

from dfshield.core.errors import InputError
from dfshield.evaluation.ledger import Ledger, confidence_interval, read_ledger, write_ledger


@pytest.fixture
def path(tmp_path):
    make_ledger(tmp_path / "ledger.h5", clean=18, robust=9, n=24)
    return tmp_path / "ledger.h5"


def random_ledger(path, seed=0, n=300, classes=7):
    random = np.random.default_rng(seed)
    make_ledger(path, clean=1, robust=1, n=2)
    label = random.choice(classes, n, p=[0.5, 0.3, 0.1, 0.05, 0.05, 0, 0])
    prediction = np.where(random.random(n) < 0.6, label, random.choice(classes - 1, n))
    component = np.where(prediction != label, random.integers(1, 3, n), 0).astype(np.uint8)
    index = np.flatnonzero(component == 2)
    return replace(
        read_ledger(path),
        label=label,
        clean_prediction=np.where(component == 1, prediction, label),
        prediction=prediction,
        broken=component > 0,
        component=component,
        margin=random.normal(size=n).astype(np.float32),
        perturbed_index=index,
        perturbation=random.normal(size=(len(index), 2, 3, 4)).astype(np.float16),
        classes=classes,
        flags=("zero-gradients",),
        subject={"recipe": "dfshield", "τ": 0.3},
        defence="tte",
        defence_options={"crops": 4, "flip": True},
        others={"teacher": "a" * 64},
    )


def same(a, b):
    for f in fields(Ledger):
        one, two = getattr(a, f.name), getattr(b, f.name)
        equal = np.array_equal(one, two) if isinstance(one, np.ndarray) else one == two
        if not equal and f.name != "content_sha256":
            return False
    return True


@pytest.mark.parametrize("seed", range(3))
def test_what_is_written_is_read(tmp_path, seed):
    ledger = random_ledger(tmp_path / "a.h5", seed)
    content = write_ledger(tmp_path / "b.h5", ledger)
    back = read_ledger(tmp_path / "b.h5")
    assert same(ledger, back) and back.content_sha256 == content
    assert back.perturbation.dtype == np.float16 and back.broken.dtype == np.bool_


def test_ledger_without_perturbations(tmp_path):
    make_ledger(tmp_path / "a.h5", clean=5, robust=5, n=10)
    assert read_ledger(tmp_path / "a.h5").perturbation.shape == (0, 1, 4, 4)


def test_shares_agree_with_scikit_learn(tmp_path):
    ledger = random_ledger(tmp_path / "a.h5")
    y, p = ledger.label, ledger.prediction
    assert ledger.n == 300 and ledger.labels.sum() == 300
    assert ledger.robust_accuracy == pytest.approx(100 * np.mean(y == p))
    assert ledger.clean_accuracy == pytest.approx(100 * np.mean(y == ledger.clean_prediction))
    assert ledger.clean_accuracy > ledger.robust_accuracy
    assert ledger.majority == pytest.approx(100 * np.bincount(y).max() / 300)
    seen = np.isin(p, np.unique(y))
    recalls = [np.mean(p[y == c] == c) for c in np.unique(y)]
    assert ledger.balanced_accuracy == pytest.approx(100 * np.mean(recalls))
    assert not seen.all()  # some predictions are of classes without images
    with pytest.warns(UserWarning, match="y_pred contains classes"):
        assert ledger.balanced_accuracy == pytest.approx(100 * balanced_accuracy_score(y, p))
    assert ledger.macro_f1 == pytest.approx(100 * f1_score(y, p, average="macro"))


@pytest.mark.parametrize(
    "k, n, low, high",  # Brown, Cai and DasGupta 2001; scipy.stats.binomtest(k, n).proportion_ci(method="wilson")
    [(0, 10, 0.0, 27.7533), (5, 10, 23.6593, 76.3407), (10, 10, 72.2467, 100.0), (0, 0, 0.0, 100.0)],
)
def test_wilson_interval(k, n, low, high):
    assert confidence_interval(k, n) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_a_share_lies_in_its_interval() -> None:
    """Also where rounding puts an end at its wrong side, which no picture could draw."""
    for n in range(1, 1200):
        for k in {0, 1, n - 1, n}:
            low, high = confidence_interval(k, n)
            assert 0 <= low <= 100 * k / n <= high <= 100


def test_equal_ledgers_give_equal_bytes_at_any_time(tmp_path):
    make_ledger(tmp_path / "a.h5", clean=8, robust=4, n=12)
    time.sleep(1.1)  # HDF5 keeps times in seconds
    make_ledger(tmp_path / "b.h5", clean=8, robust=4, n=12)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_every_data_set_is_chunked_and_has_checksums(path):
    with h5py.File(path) as file:
        assert all(file[name].chunks and file[name].fletcher32 for name in file)


def refused(path, message):
    with pytest.raises(InputError, match=message) as error:
        read_ledger(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize("name", ["label", "prediction", "component", "margin", "perturbation"])
def test_a_changed_byte_in_any_data_set_is_an_error(path, name):
    with h5py.File(path) as file:
        chunk = file[name].id.get_chunk_info(0)
    data = bytearray(path.read_bytes())
    data[chunk.byte_offset + chunk.size // 2] ^= 4
    path.write_bytes(data)
    refused(path, "damaged")


def test_no_changed_bit_is_ever_misread(path):
    good, data = read_ledger(path), path.read_bytes()
    random = np.random.default_rng(0)
    caught = 0
    for position in random.integers(0, len(data), 300):
        flipped = bytearray(data)
        flipped[position] ^= 1 << random.integers(8)
        path.write_bytes(flipped)
        try:
            assert same(read_ledger(path), good), f"bit {position} was misread"
        except InputError:
            caught += 1
    assert caught > 100


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9, 0.999])
def test_truncated_files_are_refused(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    refused(path, "truncated")


def edited(path, **attributes):
    with h5py.File(path, "r+", libver="latest") as file:
        for key, value in attributes.items():
            if value is None:
                del file.attrs[key]
            else:
                file.attrs[key] = value


@pytest.mark.parametrize(
    "attributes, message",
    [
        ({"format": "other"}, "not an evaluation ledger"),
        ({"format": None}, "not an evaluation ledger"),
        ({"format_version": 2}, "ledger format 2, this program reads 1"),
        ({"complete": False}, "incomplete"),
        ({"complete": None}, "incomplete"),
        ({"protocol": "aa-standard"}, "does not match its SHA-256"),
        ({"extra": 1}, "does not match its SHA-256"),
        ({"seed": None}, "does not match its SHA-256"),
        ({"content_sha256": None}, "damaged"),
    ],
)
def test_edited_attributes_are_refused(path, attributes, message):
    edited(path, **attributes)
    refused(path, message)


def test_edited_values_are_refused(path):
    with h5py.File(path, "r+", libver="latest") as file:
        file["broken"][0] = not file["broken"][0]
    refused(path, "does not match its SHA-256")


def test_foreign_files_are_refused(path, tmp_path):
    refused(tmp_path / "none.h5", "no such file")
    path.write_text("<html>not found</html>")
    refused(path, "not an HDF5 file")
    with h5py.File(path, "w") as file:
        file["images"] = np.zeros(3)
    refused(path, "not an evaluation ledger")


@pytest.mark.parametrize("kind", ["soft", "external", "virtual", "group", "type", "missing", "huge"])
def test_hostile_data_sets_are_refused_before_they_are_read(path, tmp_path, kind):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["label"] = np.zeros(24, np.int64)
    with h5py.File(path, "r+", libver="latest") as file:
        del file["label"]
        if kind == "soft":
            file["label"] = h5py.SoftLink("/prediction")
        elif kind == "external":
            file["label"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "label")
        elif kind == "virtual":
            layout = h5py.VirtualLayout((24,), np.int64)
            layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "label", (24,))
            file.create_virtual_dataset("label", layout)
        elif kind == "group":
            file.create_group("label")
        elif kind == "type":
            file["label"] = np.zeros(24, np.float64)
        elif kind == "huge":
            file.create_dataset("label", (2**60,), np.int64, chunks=(16,))
    refused(path, "label|claims")


@pytest.mark.parametrize(
    "change",
    [
        {"label": np.full(24, 10)},
        {"margin": np.zeros(23, np.float32)},
        {"prediction": np.zeros(24, np.int32)},
        {"broken": np.zeros(24, bool)},
        {"component": np.full(24, 9, np.uint8)},
        {"perturbed_index": np.zeros(9, np.int64)},
        {"perturbation": np.zeros((3, 1, 4, 4), np.float16)},
        {"components": ("clean", "robust")},
    ],
)
def test_rows_that_contradict_each_other_are_not_written(path, tmp_path, change):
    with pytest.raises(ValueError):
        write_ledger(tmp_path / "new.h5", replace(read_ledger(path), **change))
    assert not (tmp_path / "new.h5").exists()


def test_reading_does_not_import_torch(path):
    code = f"""
import sys, pathlib
from dfshield.evaluation.ledger import read_ledger
read_ledger(pathlib.Path({str(path)!r}))
sys.exit("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
