"""The probe of strange networks: each of its checks finds its trouble, and nothing of the network changes."""

import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from support.zoo import NOTHING_TO_MATCH, SMALL, Plain, changed, image
from torch import nn

from dfshield.core.errors import InputError
from dfshield.evaluation import attack
from dfshield.models import passes
from dfshield.models.card import Card
from dfshield.models.checkpoints import save_checkpoint
from dfshield.models.classifier import Classifier
from dfshield.models.factory import build_network
from dfshield.models.passes import walk
from dfshield.models.probe import CHECKS, probe, refuse_bf16, refuse_misfit
from dfshield.options import AttackOptions, TeacherOptions, TrainOptions
from dfshield.options.sources import Inversion
from dfshield.sources import inversion
from dfshield.training import teacher, train

FOUND_IN = {
    "state": "more than tensors",
    "parameter types": "parameter of integers",
    "fails in eval mode": None,
    "form in eval mode": "one batch size",
    "input changed": "changes its input",
    "several outputs": "tuple while training",
    "fails in training mode": "raises while training",
    "form in training mode": "more logits while training",
    "output types": "double outputs",
    "not finite": "not a number",
    "state changes": "adapts",
    "probabilities": "log probabilities",
    "no gradient to the pixels": "rounds pixels",
    "gradient not finite": "gradient not a number",
    "no gradient to the weights": "weights without gradient",
    "depends on the past": "remembers",
    "depends on the batch": "batch statistics",
    "scripted": "scripted",
    "BatchNorm not called": "BatchNorm by hand",
    "BatchNorm called again": "activation checkpoints",
    "no statistics": None,
    "some BatchNorm not called": "BatchNorm left over",
    "BatchNorm called often": "BatchNorm used twice",
    "other statistics": "BatchNorm1d beside",
    "random": "dropout in eval mode",
    "counters": "counter",
    "frozen": "frozen parameters",
    "no gradient to some weights": "unused parameters",
    "gradient to some pixels": None,
    "bf16": "writes into a float32 tensor",
}
"""The network of the zoo that each check finds something in; None: one of this file."""


def few_at_a_time(self, x):
    if len(x) > 2:
        raise RuntimeError("too many")
    return Plain.forward(self, x)


def without_norms():
    net = Plain()
    net.bn1 = net.bn2 = nn.Identity()
    return net


OWN = {
    "no statistics": without_norms,
    "fails in eval mode": changed(few_at_a_time),
    "gradient to some pixels": image(lambda x: torch.cat([x[:, :1].round(), x[:, 1:]], 1)),
}


def classifier(net: nn.Module, channels: int = 3) -> Classifier:
    return Classifier(net, (0.5,) * channels, (0.25,) * channels)


def network_for(check: str) -> nn.Module:
    name = FOUND_IN[check]
    return SMALL[name].network() if name else OWN[check]()


def test_every_check_has_its_network():
    assert FOUND_IN.keys() == CHECKS.keys()


@pytest.mark.parametrize("name", FOUND_IN)
def test_a_check_finds_its_trouble_and_nothing_in_a_plain_network(name):
    check = CHECKS[name]
    assert check.find(walk(classifier(network_for(name)), (3, 16, 16), 4))
    assert not check.find(walk(classifier(SMALL["plain"].network()), (3, 16, 16), 4))


@pytest.mark.parametrize("name", FOUND_IN)
def test_a_trouble_is_refused_or_said_with_its_remedy(name):
    check, net = CHECKS[name], classifier(network_for(name))
    if not check.refuses:
        assert any(line.endswith(check.remedy) for line in probe(net, (3, 16, 16), 4, "this"))
        return
    with pytest.raises(InputError) as caught:
        probe(net, (3, 16, 16), 4, "this")
    text = str(caught.value)
    assert text.startswith("this: ") and text.endswith(check.remedy) and "\n" not in text


@pytest.mark.parametrize(
    ("model", "shape"), [("cnn-s", (1, 8, 8)), ("cnn-m", (1, 8, 8)), ("cnn-s", (3, 28, 28)), ("resnet20", (3, 32, 32))]
)
def test_nothing_is_said_of_registered_networks(model, shape):
    assert probe(classifier(build_network(model, shape, 10), shape[0]), shape, 10, model) == []


def everything(net: nn.Module) -> dict:
    """All that a pass could change: tensors, modes, what is to be trained, gradients, the global random states."""
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    return {
        "values": {name: value.detach().clone() for name, value in tensors.items()},
        "strides": {name: value.stride() for name, value in tensors.items()},
        "same": {name: id(value) for name, value in tensors.items()},
        "trained": {name: value.requires_grad for name, value in tensors.items()},
        "gradients": {name: value.grad for name, value in tensors.items()},
        "modes": {name: module.training for name, module in net.named_modules()},
        "hooks": {name: len(module._forward_pre_hooks) for name, module in net.named_modules()},
        "random": (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()),
    }


def rolls_dice(self, x):
    random.random()
    np.random.rand()
    self.recent = x.detach().mean()
    return Plain.forward(self, x + torch.randn(()) * 0.01)


STRANGE = {name: entry.network for name, entry in SMALL.items()} | {
    "dice": changed(rolls_dice, recent=lambda: nn.Buffer(torch.zeros(()), persistent=False)),
    "in training mode": lambda: Plain().train(),
}


@pytest.mark.parametrize("name", STRANGE)
def test_a_network_is_as_before(name):
    net = STRANGE[name]()
    before = everything(net)
    try:
        walk(classifier(net), (3, 16, 16), 4)
    except SystemExit:
        assert name == "ends the program"
    after = everything(net)
    for what, expected in before.items():
        if what == "values":
            assert expected.keys() == after[what].keys()
            assert all(torch.equal(after[what][key], value) for key, value in expected.items())
        else:
            assert after[what] == expected, what


def test_the_teacher_has_the_bytes_of_one_that_was_not_probed(tmp_path, monkeypatch):
    options = TeacherOptions(device="cpu", epochs=1)
    teacher.run(tmp_path / "a.safetensors", options, "digits", "cnn-s", None)
    monkeypatch.setattr(teacher, "probe", lambda *_: [])
    teacher.run(tmp_path / "b.safetensors", options, "digits", "cnn-s", None)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_refusal_comes_before_the_training(tmp_path, monkeypatch):
    def refuse(*_):
        raise InputError("refused")

    monkeypatch.setattr(teacher, "probe", refuse)
    monkeypatch.setattr(teacher, "TeacherTraining", lambda *_: pytest.fail("trained"))
    with pytest.raises(InputError, match="refused"):
        teacher.run(tmp_path / "t.safetensors", TeacherOptions(device="cpu"), "digits", "cnn-s", None)


def test_what_is_said_goes_to_the_log(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(teacher, "probe", lambda *_: ["one thing", "another"])
    teacher.run(tmp_path / "t.safetensors", TeacherOptions(device="cpu", epochs=1), "digits", "cnn-s", None)
    assert "model cnn-s: one thing\nmodel cnn-s: another\n" in capsys.readouterr().err


def test_large_networks_meet_smaller_batches():
    seen = {
        name: walk(classifier(build_network(name, shape, 10), shape[0]), shape, 10).passes["many"].images
        for name, shape in (("cnn-s", (1, 8, 8)), ("resnet20", (3, 32, 32)), ("resnet18", (3, 28, 28)))
    }
    assert seen["cnn-s"] == passes.MOST > seen["resnet20"] > seen["resnet18"] >= passes.FEWEST


def test_every_network_meets_all_settings():
    seen = []

    def looks(self, x):
        seen.append((len(x), self.training, torch.is_autocast_enabled("cpu"), x.requires_grad))
        return Plain.forward(self, x)

    probe(classifier(changed(looks)()), (3, 16, 16), 4, "this")
    sizes, modes, types, gradients = (set(values) for values in zip(*seen, strict=True))
    assert sizes == {1, 2, 50}
    assert modes == types == gradients == {True, False}


@pytest.mark.parametrize(
    ("output", "says"),
    [
        (torch.zeros(2, 3), ""),
        (torch.zeros(2, 4), r"gives \[2, 4\] for 2 images, \[2, 3\] is needed \(3 classes\); correct classes"),
        (torch.zeros(2, 3, 1, 1), r"return logits.flatten\(1\)"),
        (torch.zeros(2, 3, 5, 5), "one logit per class and image, as a mean over the positions"),
        (torch.zeros(2), r"gives \[2\] for 2 images"),
        ((torch.zeros(2, 3), 1), "gives a tuple of 2 for 2 images.*return the logits alone"),
        ({"out": torch.zeros(2, 3)}, "gives a dict of 1"),
        (None, "gives a NoneType for 2 images"),
    ],
)
def test_forms_of_an_output(output, says):
    if not says:
        refuse_misfit(output, 2, 3, "this")
        return
    with pytest.raises(InputError, match=f"this: .*{says}"):
        refuse_misfit(output, 2, 3, "this")


def test_a_class_that_is_named_in_place_of_batchnorm2d():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.BatchNorm1d(5))
    said = probe(Classifier(net, (0.5,), (0.25,)), (1, 8, 8), 5, "this")
    assert re.match(NOTHING_TO_MATCH, said[0]) and "statistics of 2 (BatchNorm1d) are not matched" in said[1]


STAGES = {
    "synthesize": (inversion.run, Inversion(device="cpu", images=10, batch=10), "precision"),
    "train": (train.run, TrainOptions.of(device="cpu"), "outer_precision"),
    "attack": (attack.run, AttackOptions.of(attack="pgd", device="cpu"), "precision"),
}


@pytest.mark.parametrize("stage", STAGES)
def test_bf16_that_is_asked_for_is_refused_where_the_network_has_none(stage, tmp_path):
    run, options, field = STAGES[stage]
    name, factory, path = "writes into a float32 tensor", "support.zoo:build", tmp_path / "teacher.safetensors"
    net = classifier(SMALL[name].network())
    card = Card("teacher", "mine", "mine", (3, 16, 16), 4, (0.5,) * 3, (0.25,) * 3, "teacher", factory, {"name": name})
    save_checkpoint(path, net, card)
    given = {
        "synthesize": {"teacher": path, "out": tmp_path / "data.h5"},
        "train": {
            "teacher": path,
            "data": tmp_path / "none.h5",
            "out": tmp_path / "out",
            "metrics": None,
            "recipe": "a",
        },
        "attack": {
            "model_path": path,
            "out": tmp_path / "out.h5",
            "protocol": "pgd",
            "subject": {},
            "evaluation_npz": None,
            "data_dir": None,
            "dataset": None,
        },
    }[stage]
    with pytest.raises(InputError, match=rf"teacher.safetensors: .*bf16 autocast failed: .*; set {field} to fp32"):
        run(options=options.model_copy(update={field: "bf16"}), factory=factory, **given)


def test_bf16_is_asked_of_networks_that_have_it():
    options, net = TrainOptions.of(device="cpu", precision="bf16"), classifier(SMALL["plain"].network())
    card = Card("teacher", "mine", "mine", (3, 16, 16), 4, (0.5,) * 3, (0.25,) * 3, "teacher", "support.zoo:build")
    refuse_bf16(options, net, card, Path("t"))
    refuse_bf16(
        TrainOptions.of(device="cpu"), classifier(SMALL["writes into a float32 tensor"].network()), card, Path("t")
    )
