"""The privacy audit: copies of training images are found, images of their kind are not."""

import csv

import numpy as np
import pytest
import torch
from support import tiny

from dfshield import cli
from dfshield.core import sealed
from dfshield.evaluation import privacy
from dfshield.options.privacy import PrivacyOptions
from dfshield.sources import trainset


def points(count, seed, size=6):
    return torch.rand((count, size), generator=torch.Generator().manual_seed(seed))


def test_nearest_by_hand(monkeypatch):
    monkeypatch.setattr(privacy, "BLOCK", 1)
    found = privacy.nearest(torch.tensor([[0.0, 0], [5, 5]]), torch.tensor([[3.0, 4], [0, 1], [5, 5]]))
    assert found.index.tolist() == [1, 2] and found.distance.tolist() == [1, 0]


def test_images_of_the_same_kind_tell_nothing():
    found = privacy.audit(points(2000, 0), points(500, 1), points(500, 2), 0.01).summary()
    assert found["nearer_low"] < 50 < found["nearer_high"]
    assert found["close"] / 2000 == pytest.approx(0.01, abs=0.01)


def test_what_is_close_is_measured_on_the_others():
    """By how near they come to training images, not by how far training images may lie from them."""
    training, others = torch.tensor([[0.0], [1], [100]]), torch.tensor([[0.5], [1.5], [1.2]])
    found = privacy.audit(torch.tensor([[50.0], [1.1]]), training, others, 0.5)
    assert found.threshold == pytest.approx(0.5) and found.close.tolist() == [False, True]
    assert privacy.audit(training, training, others, 0.99).threshold == pytest.approx(0.5)


def test_copies_are_found():
    training = points(300, 1)
    copies = training[:40] + 0.01 * points(40, 3)
    found = privacy.audit(torch.cat([copies, points(60, 0)]), training, points(300, 2), 0.01)
    assert found.training.index[:40].tolist() == list(range(40)) and found.close[:40].all()
    assert found.summary()["nearer_to_training"] >= 40 + 15 and found.summary()["nearer_low"] > 50


@pytest.fixture
def folder(tmp_path):
    """A teacher, a training set whose first ten images are nearly the owner's, and the owner's two sets."""
    tiny.teacher(tmp_path / "teacher.safetensors")
    x, y = tiny.images(60), np.arange(60) % tiny.CLASSES
    np.savez(tmp_path / "training.npz", x=x[:30], y=y[:30])
    np.savez(tmp_path / "others.npz", x=x[30:], y=y[30:])
    made = np.concatenate([0.98 * x[:10], tiny.images(20, seed=5)])
    tiny.trainset(tmp_path / "data.h5", values=np.moveaxis(made, 3, 1))
    return tmp_path


def run(folder, *more, others="others.npz"):
    files = {"model": "teacher.safetensors", "data": "data.h5", "training": "training.npz", "others": others}
    flags = [word for name, file in files.items() for word in (f"--{name}", str(folder / file))]
    cli.main(["privacy", *flags, "--out", str(folder / "audit.csv"), "--device", "cpu", *more])


@pytest.mark.parametrize("features", ["pixels", "teacher"])
def test_by_the_command_line(folder, capsys, features):
    run(folder, "--features", features)
    said = capsys.readouterr().err
    rows = list(csv.DictReader((folder / "audit.csv").open()))
    assert [int(row["training_image"]) for row in rows[:10]] == list(range(10))
    assert {row["close"] for row in rows[:10]} == {"yes"}
    record = sealed.read(folder / "audit.json", privacy.RECORD)
    nearer = sum(float(row["distance"]) < float(row["other_distance"]) for row in rows)
    assert record["nearer_to_training"] == nearer >= 10 and record["training_images"] == 30
    assert f"{nearer} of 30 synthetic images" in said and "50 % tell nothing apart" in said
    header = trainset.header(folder / "data.h5")
    assert record["data_sha256"] == header["content_sha256"]


def test_of_the_larger_set_the_first_images_are_taken(folder):
    with np.load(folder / "others.npz") as others:
        np.savez(folder / "few.npz", x=others["x"][:7], y=others["y"][:7])
    for how in ({"others": "few.npz"}, {}):
        run(folder, *(() if how else ("--limit", "7")), **how)
        assert sealed.read(folder / "audit.json", privacy.RECORD)["training_images"] == 7
        rows = list(csv.DictReader((folder / "audit.csv").open()))
        assert max(int(row["training_image"]) for row in rows) < 7


@pytest.mark.parametrize(
    ("others", "more", "says"),
    [
        ("training.npz", (), "30 of its images are in"),
        ("none.npz", (), "no such file"),
        ("large.npz", (), "large.npz"),
        ("others.npz", ("--features", "vgg16"), "never downloaded"),
        ("others.npz", ("--out", "audit.json"), "is the name of the record"),
    ],
)
def test_what_does_not_fit_is_refused(folder, capsys, monkeypatch, others, more, says):
    monkeypatch.chdir(folder)
    np.savez(folder / "large.npz", x=np.zeros((3, 9, 9, 1), np.float32), y=np.arange(3))
    before = {path.name for path in folder.iterdir()}
    with pytest.raises(SystemExit):
        run(folder, *more, others=others)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dfshield privacy: ")]
    assert says in line
    assert {path.name for path in folder.iterdir()} == before


def test_options_of_the_audit():
    assert PrivacyOptions().described()["quantile"] == 0.01
    with pytest.raises(ValueError, match="vgg16"):
        PrivacyOptions(features="vgg16")
