"""Gradients by finite differences."""

import pytest
import torch
from support.attacked import Linear, Quantised, images, key, network, robust

from dfshield.attacks.base import input_gradient
from dfshield.attacks.differences import Differences


def test_pixel_by_pixel_it_is_the_gradient():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4), torch.nn.Tanh(), torch.nn.Linear(4, 4))
    x, y = torch.rand((5, 1, 8, 8), generator=key()), torch.arange(5) % 4
    exact = input_gradient(net, x, y)[1]
    found = input_gradient(Differences(net, 64, 0.01), x, y)[1]
    assert torch.allclose(found, exact, atol=1e-3 * float(exact.abs().max()))


def test_random_directions_point_the_same_way_the_more_the_better():
    net, x = Linear(), torch.rand((20, 1, 4, 4), generator=key(1))
    y = (net.score(x) > 0).long()
    exact = input_gradient(net, x, y)[1].flatten(1)
    torch.manual_seed(0)
    alike = [
        torch.cosine_similarity(input_gradient(Differences(net, n, 0.01), x, y)[1].flatten(1), exact).mean()
        for n in (1, 8, 15)
    ]
    assert 0 < alike[0] < alike[1] < alike[2] < 1


@pytest.mark.parametrize("name", ["fgsm", "pgd", "md"])
@pytest.mark.parametrize("directions", [32, 64])
def test_a_network_that_gives_no_gradient_falls(name, directions):
    net = network(10)
    x, y = images(net, n=20)
    rounded = Quantised(net)
    y = rounded(x).argmax(1)
    plain = robust(rounded, x, y, "linf:0.1", attack=name)
    assert robust(rounded, x, y, "linf:0.1", attack=name, differences=directions, difference_step=0.1) < 0.5 < plain
