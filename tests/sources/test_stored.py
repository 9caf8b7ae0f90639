"""Training sets that stay in their file: the same students, without the images in memory."""

import numpy as np
import pytest
import torch
from support import tiny
from support.training import quick

from dfshield.models.card import read_card
from dfshield.sources import stored
from dfshield.sources.stored import Stored, read_for_training
from dfshield.sources.trainset import TrainSet, read
from dfshield.training import train


@pytest.fixture(params=["float32", "uint8"])
def path(request, tmp_path):
    teacher = read_card(tiny.teacher(tmp_path / "t.safetensors")).tensors_sha256
    values = tiny.images(60)
    if request.param == "uint8":
        values = np.round(255 * values).astype(np.uint8)
    return tiny.trainset(tmp_path / "d.h5", teacher_sha256=teacher, values=np.moveaxis(values, 3, 1))


@pytest.fixture
def left(monkeypatch):
    monkeypatch.setattr(stored, "IN_MEMORY", 0)


@pytest.mark.parametrize(
    "options", [{}, {"reestimate": "both"}, {"data_share": 0.5}, {"translate": True}], ids=lambda options: str(options)
)
def test_the_student_is_the_same_to_the_byte(path, monkeypatch, options, tmp_path):
    students = []
    for most in (stored.IN_MEMORY, 0):
        monkeypatch.setattr(stored, "IN_MEMORY", most)
        out = tmp_path / f"{most}.safetensors"
        train.run(tmp_path / "t.safetensors", path, out, quick(device="cpu", **options))
        students.append(out.read_bytes())
    assert students[0] == students[1]


def test_any_rows_in_any_order(path, left):
    data, whole = read_for_training(path), torch.from_numpy(read(path).images).permute(0, 3, 1, 2)
    assert isinstance(data.images, Stored) and data.images.shape == (60, 8, 8, 1)
    numbers = torch.tensor([7, 3, 59, 3, 0])
    assert torch.equal(data.images[numbers], whole[numbers])
    some = data.images.subset(torch.tensor([50, 4, 9, 20]))
    assert len(some) == 4 and torch.equal(some[torch.tensor([2, 0])], whole[[9, 50]])
    assert torch.equal(torch.cat(list(data.images.split(7))), whole)


def test_a_small_set_is_in_memory(path):
    data = read_for_training(path)
    assert isinstance(data, TrainSet) and isinstance(data.images, np.ndarray)


def test_no_more_than_a_mini_batch_is_read_at_a_time(path, left, monkeypatch, tmp_path):
    sizes, take = [], Stored.__getitem__

    def noted(self, numbers):
        found = take(self, numbers)
        sizes.append(len(found))
        return found

    monkeypatch.setattr(Stored, "__getitem__", noted)
    monkeypatch.setattr("dfshield.training.trainer.CHUNK", 10)
    options = quick(device="cpu")
    train.run(tmp_path / "t.safetensors", path, tmp_path / "s.safetensors", options)
    assert max(sizes) <= max(10, options.batch, options.holdout) < 60
