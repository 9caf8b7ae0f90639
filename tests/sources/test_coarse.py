"""Synthesis that begins at half the resolution."""

import pytest
from support import tiny
from torch import nn

from dfshield.core.errors import InputError
from dfshield.models.classifier import Classifier
from dfshield.options.sources import Inversion
from dfshield.planning.arithmetic import synthesis_passes
from dfshield.sources.inversion import ModelInversion

SHAPE = (1, 16, 18)
OPTIONS = {"images": 20, "batch": 10, "group": 2, "iterations": 8, "labels": "random", "device": "cpu"}


def synthesized(model, **options):
    return ModelInversion(model, SHAPE, tiny.CLASSES, Inversion(**OPTIONS | options))


def sizes(model, **options):
    """Sizes of the images in the order in which the network sees them, and what was made."""
    made, seen = synthesized(model, **options), []
    made.model.net.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[2:])))
    return seen, made.group(0)


def test_the_first_steps_are_at_half_the_resolution():
    seen, made = sizes(tiny.classifier(shape=SHAPE), coarse=0.5)
    assert seen == [(8, 9)] * 4 + [(16, 18)] * 5  # the last is of the final terms
    assert made["images"].shape == (20, 16, 18, 1)


def test_without_it_all_steps_are_at_full_resolution():
    seen, _ = sizes(tiny.classifier(shape=SHAPE))
    assert seen == [(16, 18)] * 9
    assert "coarse" not in Inversion(**OPTIONS).described() and "coarse" in Inversion(**OPTIONS, coarse=0.1).described()


def test_what_was_made_small_is_what_the_full_steps_start_from(monkeypatch):
    """With a step of no length at full resolution, images are the enlarged small ones: smooth."""
    made = synthesized(tiny.classifier(shape=SHAPE), coarse=0.875, lr=1e-9)
    coarse = made.group(0)["images"]
    fine = synthesized(tiny.classifier(shape=SHAPE), lr=1e-9).group(0)["images"]
    rough = [abs(images[:, :, 1:] - images[:, :, :-1]).mean() for images in (coarse, fine)]
    assert rough[0] < 0.7 * rough[1]


def test_a_network_of_one_size_is_refused_in_one_line():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2 * 14 * 16, tiny.CLASSES))
    model = Classifier(net, (0.3,), (0.38,)).eval()
    with pytest.raises(InputError, match=r"coarse: the network takes no images of \[1, 8, 9\] .*leave coarse") as bad:
        synthesized(model, coarse=0.5)
    assert "\n" not in str(bad.value)
    assert synthesized(model).group(0)["images"].shape == (20, 16, 18, 1)


def test_a_step_at_half_the_resolution_costs_a_quarter():
    assert synthesis_passes(Inversion(**OPTIONS, coarse=0.5)) == 2 * 20 * (4 + 4 / 4)
    assert synthesis_passes(Inversion(**OPTIONS)) == 2 * 20 * 8
