"""`dfshield.attack` judges any network, as the attack stage does."""

import copy

import numpy as np
import pytest
import torch
from support import tiny
from torch import nn

import dfshield
from dfshield.evaluation import attack as stage
from dfshield.options import AttackOptions

THREAT = "linf:0.03"


class Plain(nn.Module):
    """A network without BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(64, 10)

    def forward(self, x):
        return self.layer(x.flatten(1))


def images(count=30):
    x = tiny.images(count)
    return x, np.arange(count) % tiny.CLASSES


def test_as_the_stage_does(tmp_path):
    """The same rows, from the same network as a checkpoint and from the object."""
    model = tiny.classifier(scale=3.0)
    path = tiny.teacher(tmp_path / "t.safetensors", scale=3.0)
    x, y = images()
    np.savez(tmp_path / "set.npz", x=x, y=y)
    options = AttackOptions.of(attack="pgd", steps=5, threat=THREAT, device="cpu")
    given = (None, None, tmp_path / "set.npz", None, "pgd", {})
    expected = stage.run(path, tmp_path / "l.h5", options, *given)
    scale = {name: getattr(model, name).flatten().tolist() for name in ("mean", "std")}
    found = dfshield.attack(model.net, x, y, THREAT, "pgd", steps=5, device="cpu", **scale)
    assert found.model_sha256 == expected.model_sha256 and found.data_sha256 == expected.data_sha256
    assert np.array_equal(found.broken, expected.broken) and np.array_equal(found.perturbation, expected.perturbation)
    assert 0 < found.robust_accuracy < found.clean_accuracy or found.robust_accuracy == found.clean_accuracy == 0


def test_a_tensor_has_its_channels_first():
    model, (x, y) = Plain(), images()
    by_array = dfshield.attack(model, x, y, THREAT, "fgsm", device="cpu")
    planes = torch.from_numpy(x).permute(0, 3, 1, 2)
    by_tensor = dfshield.attack(model, planes, torch.from_numpy(y), THREAT, "fgsm", device="cpu")
    assert by_array.data_sha256 == by_tensor.data_sha256
    assert np.array_equal(by_array.perturbation, by_tensor.perturbation)


def test_a_network_without_parameters_is_attacked():
    x, _ = images()
    net = nn.Sequential(nn.AdaptiveAvgPool2d((2, 5)), nn.Flatten())
    y = net(torch.from_numpy(x).permute(0, 3, 1, 2)).argmax(1).numpy()
    found = dfshield.attack(net, x, y, THREAT, "pgd", steps=2, device="cpu")
    assert found.clean_accuracy == 100 and found.robust_accuracy < 80


def test_the_model_is_left_as_it_is():
    model, (x, y) = Plain().train(), images()
    model.layer.weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    dfshield.attack(model, x, y, THREAT, "pgd", steps=2, device="cpu")
    assert model.training and not model.layer.weight.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"attack": "pdg"}, "pdg"),
        ({"threat": "linf"}, "threat"),
        ({"threat": "linf:4/255", "stepz": 3}, "unknown key; did you mean 'steps'"),
        ({"model": 3}, "model: is a int; give a torch.nn.Module"),
        ({"model": nn.Identity()}, "must return logits"),
        ({"model": nn.Linear(3, 2)}, "a forward pass of"),
        ({"y": np.full(30, 12)}, "labels lie in 12..12"),
        ({"x": np.full((30, 8, 8, 1), 3.0)}, "float images lie in"),
        ({"x": np.zeros((30, 64))}, "x: has shape"),
        ({"mean": [0.0, 0.0]}, "2 channels|a forward pass"),
        ({"attack": "transfer"}, "surrogate"),
    ],
)
def test_what_cannot_be_attacked_is_refused_in_one_line(changed, says):
    x, y = images()
    given = {"model": Plain(), "x": x, "y": y, "threat": THREAT, "attack": "pgd", "device": "cpu"} | changed
    with pytest.raises(dfshield.InputError, match=says) as refused:
        dfshield.attack(given.pop("model"), given.pop("x"), given.pop("y"), given.pop("threat"), **given)
    assert "\n" not in str(refused.value)
