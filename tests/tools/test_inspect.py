"""`dfshield inspect`: what it prints and draws of every kind of file."""

from pathlib import Path

import numpy as np
import pytest
from support.checkpoints import save_card
from support.ledgers import make_ledger

from dfshield.core.errors import InputError
from dfshield.sources.trainset import Writer
from dfshield.tools import inspect


def trainset(path: Path, dtype: type = np.float32, last_group: int = 1) -> None:
    attributes = {
        "teacher_sha256": "t" * 64,
        "dataset": "digits",
        "model": "cnn-s",
        "source": "dss",
        "real_data": "none",
        "options": '{"iterations":7,"lr":0.1}',
        "seed": 3,
        "classes": 4,
        "groups": 2,
        "first_group": 0,
        "last_group": last_group,
    }
    labels = np.arange(48) % 4
    images = np.broadcast_to((labels / 3).astype(np.float32)[:, None, None, None], (48, 8, 8, 1))
    if dtype is np.uint8:
        images = np.rint(images * 255).astype(np.uint8)
    writer = Writer(path, attributes, ("class", "feature"))
    losses = {"class": np.array([0.25, 0.75]), "feature": np.array([1.0, 2.0])}
    writer.append(images, labels, np.repeat([0, last_group], 24), losses, losses)
    writer.finish()


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_inspect_training_set(tmp_path: Path, capsys: pytest.CaptureFixture[str], dtype: type) -> None:
    from PIL import Image

    trainset(tmp_path / "data.h5", dtype)
    inspect.run(tmp_path / "data.h5", tmp_path / "sheet.png")
    out = capsys.readouterr().out
    for wanted in (
        "training set",
        "groups 0 to 1 of 2",
        f"48 of 8×8×1 (H×W×C), {np.dtype(dtype)}",
        "12 12 12 12",
        "0.25 to 0.75, mean 0.5",
        "iterations=7, lr=0.1",
        "real data: none",
        "t" * 64,
        "40 images",
    ):
        assert wanted in out
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (4 * 50 + 2, 28 + 10 * 50, 3)
    assert [int(sheet[50 * row + 20, 60, 0]) for row in range(4)] == [0, 85, 170, 255]
    assert (sheet[:, :26].min(axis=(1, 2)) < 128).any()  # class labels are drawn


def test_inspect_shard_ledger_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainset(tmp_path / "shard.h5", last_group=0)
    inspect.run(tmp_path / "shard.h5", None)
    make_ledger(tmp_path / "ledger.h5", 150, 50, flags=("zero-gradients",))
    inspect.run(tmp_path / "ledger.h5", tmp_path / "ledger.png")
    save_card(tmp_path / "student.safetensors", "student", "none", 0)
    inspect.run(tmp_path / "student.safetensors", None)
    out = capsys.readouterr().out
    for wanted in (
        "shard",
        "one shard",
        "evaluation ledger",
        "75.00 % (150 of 200), 95 % interval 68.57 to 80.49",
        "25.00 % (50 of 200)",
        "100 images, 50.00 %",
        "masked-gradients:zero-gradients",
        "checkpoint",
        "student, real data: none",
        "1×8×8 (C×H×W), 10 classes",
        "lambda1=1.0",
    ):
        assert wanted in out, wanted
    assert (tmp_path / "ledger.png").is_file()
    with pytest.raises(InputError, match="no images"):
        inspect.run(tmp_path / "student.safetensors", tmp_path / "s.png")
    with pytest.raises(InputError, match="PNG"):
        inspect.run(tmp_path / "ledger.h5", tmp_path / "s.jpg")


def test_inspect_refuses(tmp_path: Path) -> None:
    (tmp_path / "page.h5").write_text("<html>")
    trainset(tmp_path / "cut.h5")
    (tmp_path / "cut.h5").write_bytes((tmp_path / "cut.h5").read_bytes()[:-600])
    for name in ("none.h5", "page.h5", "cut.h5"):
        with pytest.raises(InputError, match=name):
            inspect.run(tmp_path / name, None)


def test_perturbations_are_drawn_around_grey(tmp_path: Path) -> None:
    from dfshield.evaluation.ledger import read_ledger

    shape = (100, 3, 4, 4)
    delta = np.zeros(shape, dtype=np.float16)
    delta[:, 0], delta[:, 1] = 8 / 255, -8 / 255
    make_ledger(tmp_path / "l.h5", 150, 50, perturbation=delta)
    drawing = inspect.draw_ledger(read_ledger(tmp_path / "l.h5"))
    assert drawing is not None
    images, labels = drawing
    assert images.shape == (100, 4, 4, 3) and len(labels) == 100
    assert images[0, 0, 0].tolist() == [255, 0, 128]
    make_ledger(tmp_path / "clean.h5", 150, 150)
    assert inspect.draw_ledger(read_ledger(tmp_path / "clean.h5")) is None
