"""The teacher stage: training, published weights, the user's own model, and what is refused."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from dfshield import registry
from dfshield.core.errors import InputError
from dfshield.core.hashing import sha256_file
from dfshield.data import sets
from dfshield.models import pytorchcv as general
from dfshield.models.checkpoints import load_checkpoint, read_card
from dfshield.models.factory import build_network
from dfshield.options import TeacherOptions
from dfshield.training import teacher
from dfshield.training.teacher import TeacherTraining, accuracy, run

QUICK = TeacherOptions(device="cpu", epochs=6, batch=64, lr=3e-3)
FACTS = {"input_shape": (1, 8, 8), "classes": 5, "mean": (0.5,), "std": (0.25,)}
CODE = """
from torch import nn
def net(width=4):
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(36 * width, 5))
"""


@pytest.mark.parametrize("model", ["cnn-s", "cnn-m"])
def test_digits_teacher(tmp_path, model):
    out = tmp_path / "teacher.safetensors"
    sha = run(out, QUICK.model_copy(update={"epochs": 25}), "digits", model, None, code="abc")
    classifier, card = load_checkpoint(out)
    test, dev = (sets.load("digits", split, tmp_path) for split in ("test", "dev"))
    assert accuracy(classifier, test.x, test.y) >= 95
    assert card.provenance["dev_accuracy"] == pytest.approx(accuracy(classifier, dev.x, dev.y), abs=1e-4)
    assert (card.kind, card.real_data, card.tensors_sha256) == ("teacher", "teacher", sha)
    assert (card.mean, card.std, card.input_shape) == ((0.3,), (0.38,), (1, 8, 8))
    assert card.provenance["code"] == "abc"
    assert card.provenance["data_sha256"] == sets.load("digits", "train", tmp_path).sha256()


def test_same_bytes_on_repeat_and_other_weights_from_another_seed(tmp_path):
    options = QUICK.model_copy(update={"epochs": 1, "augment": True})
    for name in ("a", "b"):
        torch.rand(3)  # the global generator's state is of no account
        run(tmp_path / f"{name}.safetensors", options, "digits", "cnn-s", None)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    run(tmp_path / "c.safetensors", options.model_copy(update={"seed": 1}), "digits", "cnn-s", None)
    assert read_card(tmp_path / "c.safetensors").tensors_sha256 != read_card(tmp_path / "a.safetensors").tensors_sha256


def test_the_epoch_with_the_best_dev_accuracy_is_kept(tmp_path, monkeypatch):
    scores = iter([50.0, 90.0, 90.0, 70.0])
    seen = []

    def judge(classifier, x, y):
        seen.append({key: value.clone() for key, value in classifier.net.state_dict().items()})
        return next(scores)

    monkeypatch.setattr(teacher, "accuracy", judge)
    out = tmp_path / "teacher.safetensors"
    run(out, QUICK.model_copy(update={"epochs": 4}), "digits", "cnn-s", None)
    classifier, card = load_checkpoint(out)
    assert card.provenance["epoch"] == 3
    assert card.provenance["dev_accuracy"] == 90
    assert all(torch.equal(value, seen[2][key]) for key, value in classifier.net.state_dict().items())


def test_a_set_without_dev_split_keeps_the_last_epoch(tmp_path):
    random = np.random.RandomState(0)
    x, y = random.randint(0, 256, (33, 32, 32, 3)).astype(np.uint8), random.randint(0, 10, 33)
    np.savez(tmp_path / "cifar10_train.npz", x=x, y=y)
    options = QUICK.model_copy(update={"epochs": 2, "batch": 16})  # the last mini-batch has one image
    run(tmp_path / "teacher.safetensors", options, "cifar10", "cnn-s", tmp_path)
    card = read_card(tmp_path / "teacher.safetensors")
    assert card.provenance["epoch"] == 2
    assert "dev_accuracy" not in card.provenance


def test_learning_rate_falls_at_the_milestones(tmp_path, monkeypatch):
    rates = []
    original = TeacherTraining._pass

    def spy(self, epoch):
        rates.append(self.adam.param_groups[0]["lr"])
        return original(self, epoch)

    monkeypatch.setattr(TeacherTraining, "_pass", spy)
    run(tmp_path / "t.safetensors", QUICK.model_copy(update={"epochs": 4}), "digits", "cnn-s", None)
    assert rates == pytest.approx([3e-3, 3e-3, 3e-4, 3e-5])


@pytest.mark.parametrize("stop", [1, 3])
def test_a_stopped_run_goes_on_to_the_same_bytes(tmp_path, monkeypatch, stop):
    """The best epoch may lie before the stop, and the learning rate falls after it."""
    options = QUICK.model_copy(update={"epochs": 4, "augment": True, "milestones": (0.25, 0.75)})
    run(tmp_path / "whole.safetensors", options, "digits", "cnn-s", None)
    genuine, epochs = TeacherTraining.epoch, []

    def epoch(self, number, bar=None):
        if len(epochs) == stop:
            raise KeyboardInterrupt
        epochs.append(number)
        return genuine(self, number, bar)

    out, state = tmp_path / "resumed.safetensors", tmp_path / "state"
    monkeypatch.setattr(TeacherTraining, "epoch", epoch)
    with pytest.raises(KeyboardInterrupt):
        run(out, options, "digits", "cnn-s", None, state=state)
    assert not out.exists()
    begun = []
    monkeypatch.setattr(TeacherTraining, "epoch", lambda *given: begun.append(given[1]) or genuine(*given))
    run(out, options, "digits", "cnn-s", None, state=state)
    assert begun == list(range(stop, 4))
    assert out.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert not list(state.iterdir())


def test_the_state_of_another_run_is_not_taken(tmp_path, monkeypatch):
    options, state = QUICK.model_copy(update={"epochs": 1}), tmp_path / "state"
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(teacher, "save_checkpoint", lambda *_: 1 / 0)
        run(tmp_path / "a.safetensors", options, "digits", "cnn-s", None, state=state)
    other = options.model_copy(update={"seed": 1})
    for name, kept in (("b", state), ("c", None)):
        run(tmp_path / f"{name}.safetensors", other, "digits", "cnn-s", None, state=kept)
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "c.safetensors").read_bytes()
    assert len(list(state.iterdir())) == 1


def test_divergence_is_reported_and_nothing_written(tmp_path):
    with pytest.raises(InputError, match=r"loss is nan in epoch \d; lower lr"):
        run(tmp_path / "t.safetensors", QUICK.model_copy(update={"lr": 1e30}), "digits", "cnn-s", None)
    assert list(tmp_path.iterdir()) == []


def test_published_weights(tmp_path, monkeypatch):
    net = build_network("resnet20", (3, 32, 32), 10, seed=9)
    name = registry.MODELS["resnet20"].pretrained["svhn"]
    torch.save(net.state_dict(), tmp_path / name)
    sha1 = hashlib.sha1((tmp_path / name).read_bytes()).hexdigest()
    monkeypatch.setattr(general, "_published", lambda _: (sha1, "v0"))
    run(tmp_path / "teacher.safetensors", QUICK, "svhn", "resnet20", tmp_path)
    classifier, card = load_checkpoint(tmp_path / "teacher.safetensors")
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in classifier.net.state_dict().items())
    assert card.mean == registry.DATASETS["svhn"].mean
    assert card.provenance["weights"] == name
    assert card.provenance["weights_sha256"] == sha256_file(tmp_path / name)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A user's folder with code and trained weights."""
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(CODE)
    Path("data").mkdir()
    torch.save({"state_dict": build_network("mine", (1, 8, 8), 5, "net.py:net").state_dict()}, "data/mine.pth")
    return tmp_path


@pytest.mark.parametrize("weights", ["mine.pth", "data/mine.pth", "absolute"])
def test_users_own_model(mine, weights):
    weights = mine / "data" / "mine.pth" if weights == "absolute" else Path(weights)
    out = mine / "teacher.safetensors"
    run(out, QUICK, "harden/mine", "mine", Path("data"), factory="net.py:net", weights=weights, **FACTS)
    classifier, card = load_checkpoint(out, factory="net.py:net")
    assert classifier(torch.zeros(2, 1, 8, 8)).shape == (2, 5)
    assert (card.factory, card.model, card.dataset, card.classes) == ("net.py:net", "mine", "harden/mine", 5)
    assert (card.mean, card.std) == ((0.5,), (0.25,))
    assert card.provenance["weights"] == "mine.pth"  # no path: the same file gives the same bytes anywhere


def test_own_weights_for_a_registered_model(tmp_path):
    net = build_network("cnn-s", (1, 8, 8), 10, seed=4)
    torch.save(net.state_dict(), tmp_path / "w.pt")
    run(tmp_path / "t.safetensors", QUICK, "digits", "cnn-s", tmp_path, weights=Path("w.pt"))
    classifier, card = load_checkpoint(tmp_path / "t.safetensors")
    assert torch.equal(classifier.net[0].weight, net[0].weight)
    assert card.factory is None


GIVEN = {"dataset": "harden/mine", "factory": "net.py:net", "weights": Path("mine.pth"), **FACTS}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"weights": None}, "no weights given"),
        ({"weights": Path("other.pth")}, "no weights file at data/other.pth or .*other.pth"),
        ({"mean": None, "std": None}, "give mean, std as well"),
        ({"classes": 10}, r"gives \[1, 5\] for one image"),
        ({"mean": (0.5, 0.5, 0.5)}, "mean has 3 values, one per channel is needed: 1"),
        ({"std": (0.0,)}, "std positive"),
        ({"mean": (128.0,), "std": (64.0,)}, "divide values for pixels in 0..255 by 255"),
        ({"arguments": {"width": 5}}, "do not fit the model .other shape: 0.weight is 4x1x3x3, the model has 5x1x3x3"),
        ({"factory": None}, "'mine' is not one of cnn-s"),
        ({"factory": None, "dataset": "digits"}, "classes 5 was given, but digits has 10; leave it out"),
    ],
)
def test_what_users_get_wrong(mine, changes, says):
    with pytest.raises(InputError, match=says) as caught:
        run(mine / "teacher.safetensors", QUICK, model="mine", data_dir=Path("data"), **(GIVEN | changes))
    assert "\n" not in str(caught.value)
    assert not (mine / "teacher.safetensors").exists()
