"""Networks without running statistics: what works by them refuses, what does not goes on and says so."""

import copy

import h5py
import pytest
import torch
from support import tiny
from torch import nn

from dfshield import registry
from dfshield.baselines import cotrain
from dfshield.core.errors import InputError
from dfshield.models.checkpoints import Card, save_checkpoint
from dfshield.models.classifier import Classifier
from dfshield.models.statistics import matched_layers
from dfshield.options import CotrainOptions, GenerateOptions, SynthesizeOptions
from dfshield.sources import generator, inversion
from dfshield.sources.inversion import ModelInversion

FACTORY = f"{__name__}:build"
MATCHING = [
    ("objective", registry.OBJECTIVES, inversion.run, SynthesizeOptions),
    ("method", registry.GENERATED, generator.run, GenerateOptions),
    ("method", registry.BASELINES, cotrain.run, CotrainOptions),
]
ENTRIES = [(kind, name, run, options) for kind, known, run, options in MATCHING for name in known]
SMALL = {
    **{"images": 20, "batch": 20, "iterations": 2, "epochs": 2, "width": 0.1, "device": "cpu"},
    **{"attack_steps": 1, "kept_images": 20, "warmup": 0, "generator_epochs": 1},
}


def build():
    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(32, 10))


@pytest.fixture
def teacher(tmp_path):
    torch.manual_seed(0)
    card = Card("teacher", "mine", "mine", tiny.SHAPE, 10, (0.3,), (0.38,), "teacher", FACTORY)
    save_checkpoint(tmp_path / "t.safetensors", Classifier(build(), (0.3,), (0.38,)), card)
    return tmp_path / "t.safetensors"


@pytest.mark.parametrize(("kind", "name", "run", "options"), ENTRIES, ids=[entry[1] for entry in ENTRIES])
def test_an_entry_works_or_refuses_in_one_line(kind, name, run, options, teacher, tmp_path, capfd):
    """The entry's word is right: what says that it needs no statistics works without any."""
    own, out = options.class_for(name), tmp_path / "out"
    given = own(**{key: value for key, value in SMALL.items() if key in own.model_fields} | {kind: name})
    entry = {**registry.OBJECTIVES, **registry.GENERATED, **registry.BASELINES}[name]
    if not entry.statistics:
        run(teacher, out, given, factory=FACTORY)
        assert out.is_file()
        return
    with pytest.raises(InputError, match=f"{kind} {name}: the network has no BatchNorm2d layer") as refused:
        run(teacher, out, given, factory=FACTORY)
    assert "\n" not in str(refused.value) and "; use " in str(refused.value)
    assert not out.exists()


def test_what_refuses_is_what_matches_statistics():
    named = {name for _, known, _, _ in MATCHING for name, entry in known.items() if entry.statistics}
    assert named == {"intraq", "qimera", "fast", "ait", "dfard"}


def test_images_are_those_of_a_feature_weight_of_zero(tmp_path):
    """The network with BatchNorm folded by hand, without Eq 4, makes what the network itself makes by weight 0."""
    model = tiny.classifier()
    plain = copy.deepcopy(model)
    for name, layer in list(plain.net.named_modules()):
        if isinstance(layer, nn.BatchNorm2d):
            place, _, key = name.rpartition(".")
            setattr(plain.net.get_submodule(place), key, ByHand(layer))
    assert matched_layers(model.net) and not matched_layers(plain.net)
    options = {"images": 40, "batch": 20, "iterations": 5, "labels": "random", "group": 2}
    entry = registry.OBJECTIVES["inversion"].options_class(SynthesizeOptions)
    expected = ModelInversion(model, tiny.SHAPE, 10, entry(**options, alpha_feature=0)).group(0)
    found = ModelInversion(plain, tiny.SHAPE, 10, entry(**options)).group(0)
    assert abs(found["images"] - expected["images"]).max() < 1e-4
    assert not found["final_loss_feature"].any() and expected["final_loss_feature"].all()
    assert (found["coefficients_class"] == expected["coefficients_class"]).all()


class ByHand(nn.Module):
    """BatchNorm in eval mode as a plain scale and shift."""

    def __init__(self, layer):
        super().__init__()
        scale = layer.weight.detach() * (layer.running_var + layer.eps).rsqrt()
        self.register_buffer("scale", scale.view(1, -1, 1, 1))
        self.register_buffer("shift", (layer.bias.detach() - layer.running_mean * scale).view(1, -1, 1, 1))

    def forward(self, x):
        return x * self.scale + self.shift


def test_it_is_said_when_images_are_made(teacher, tmp_path, capfd):
    options = registry.OBJECTIVES["inversion"].options_class(SynthesizeOptions)
    inversion.run(teacher, tmp_path / "d.h5", options(images=10, batch=10, iterations=1), factory=FACTORY)
    assert "no BatchNorm2d layer with running statistics; images are made without Eq 4" in capfd.readouterr().err
    with h5py.File(tmp_path / "d.h5") as file:
        assert not file["final_loss/feature"][()].any()
