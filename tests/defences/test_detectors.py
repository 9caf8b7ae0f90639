"""Detectors beside the secondary classifier and Mahalanobis: their scores by hand."""

import math

import pytest
import torch
from pydantic import ValidationError
from support.attacked import images, key, network
from torch import nn

from dfshield.core.errors import InputError
from dfshield.defences.feature_squeezing import FeatureSqueezing
from dfshield.defences.lid import Lid, dimensionality, fit_lid
from dfshield.options.detectors import LidDetector


def test_dimensionality_by_hand():
    """Distances 1, 2 and 4 of the three nearest: -1 / mean(log 1/4, log 1/2, 0)."""
    reference = torch.tensor([[1.0], [-2], [4], [9]])
    found = dimensionality(torch.zeros(1, 1), reference, 3)
    assert float(found) == pytest.approx(1 / ((math.log(4) + math.log(2)) / 3))


def test_an_image_of_the_reference_is_not_its_own_neighbour():
    reference = torch.tensor([[0.0], [1], [-2], [4]])
    torch.testing.assert_close(
        dimensionality(torch.zeros(1, 1), reference, 3), dimensionality(torch.zeros(1, 1), reference[1:], 3)
    )


@pytest.mark.parametrize("dimension", [2, 6])
def test_dimensionality_is_that_of_the_space(dimension):
    points = torch.rand((4000, dimension), generator=key())
    middle = torch.full((1, dimension), 0.5)
    found = [float(dimensionality(middle, part, 100)) for part in points.split(1000)]
    assert sum(found) / len(found) == pytest.approx(dimension, rel=0.2)


def test_lid_weighs_both_layers():
    made = Lid(torch.randn((30, 3), generator=key()), torch.randn((30, 5), generator=key(1)), 5)
    logits, features = torch.randn((4, 3), generator=key(2)), torch.randn((4, 5), generator=key(3))
    made.weights.copy_(torch.tensor([2.0, -1.0]))
    both = dimensionality(logits, made.logits, 5), dimensionality(features, made.features, 5)
    torch.testing.assert_close(made(torch.zeros(4), logits, features), 2 * both[0] - both[1])


def test_lid_is_fitted_to_tell_attacked_images():
    net = network(10)
    x, y = images(net, 200)
    options = LidDetector(threat="linf:0.1", neighbours=10, reference=60)
    first, again = (fit_lid(net, x, y, options, key(4)) for _ in range(2))
    assert torch.equal(first.weights, again.weights) and not torch.equal(first.weights, torch.ones(2))
    with pytest.raises(InputError, match="lid needs more than the 60 images of its reference to fit on, there are 60"):
        fit_lid(net, x[:60], y[:60], options, key(4))


def test_lid_needs_a_reference_of_more_images_than_neighbours():
    with pytest.raises(ValidationError, match="neighbours 20: the reference has 20 images"):
        LidDetector(reference=20)


class Pixels(nn.Module):
    """The first pixel and its complement as probabilities."""

    def forward(self, x):
        first = x[:, 0, 0, 0].clamp(1e-6, 1 - 1e-6)
        return torch.stack([first, 1 - first], 1).log()


def test_squeezing_by_hand():
    """One bit makes 0.6 of the first pixel 1; the median of four pixels, the upper middle one, makes it 0.3."""
    net = Pixels()
    x = torch.tensor([[0.6, 0.3], [0.3, 0.3]])[None, None]
    found = FeatureSqueezing(net, bits=1, window=1)(x, net(x), torch.zeros(1, 1))
    assert float(found) == pytest.approx(2 * 0.4, abs=1e-4)
    # the window of a corner pixel reaches beyond the border, where the image is mirrored: four times 0.6
    x = torch.tensor([[0.6, 0.6, 0.6], [0.6, 0.6, 0.6], [0.6, 0.6, 0.6]])[None, None]
    assert float(FeatureSqueezing(net, bits=8, window=3)(x, net(x), torch.zeros(1, 1))) < 0.01


def test_an_attack_sees_through_squeezing():
    net = network(10)
    x = images(net, 3)[0].requires_grad_()
    detector = FeatureSqueezing(net, bits=2, window=2)
    detector(x, net(x), torch.zeros(3, 1)).sum().backward()
    assert (x.grad.flatten(1).abs().sum(1) > 0).all()
    assert not list(detector.parameters())  # the network is no part of it
