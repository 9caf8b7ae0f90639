"""Features of a network's stages: which layers show them, and that a network that gives them is the same network."""

import pytest
import torch
from support import tiny
from torch import nn
from torch.nn import functional as F

from dfshield.core.errors import InputError
from dfshield.models.factory import build_network
from dfshield.models.stage_features import Staged, stage_layers


class Functional(nn.Module):
    """What is no layer, pooling and flattening, shrinks; only the Linear layers, called by keyword, can be seen."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 3), nn.Linear(6, 3)
        self.gate = nn.Linear(6, 6)

    def forward(self, x):
        x = F.max_pool2d(torch.relu(self.first(x)), 2)
        x = torch.relu(self.second(x)).mean((2, 3))
        return self.last(input=x * torch.sigmoid(self.gate(input=x)))


class Branches(nn.Module):
    """A strided first layer, a stage whose end two layers see, squeeze and excitation, and no Linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.AvgPool2d(1), nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU())
        self.main, self.shortcut = nn.Conv2d(4, 5, 3, 2, 1), nn.Conv2d(4, 5, 1, 2)
        self.squeeze, self.head = nn.AdaptiveAvgPool2d(1), nn.Conv2d(5, 3, 1)

    def forward(self, x):
        x = self.stem(x)
        x = torch.relu(self.main(x) + self.shortcut(x))
        return self.head(self.squeeze(x)).flatten(1)


def sequence(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers).eval()


@pytest.mark.parametrize(
    ("network", "shape", "expected"),
    [
        (build_network("cnn-s", (1, 8, 8), 10), (1, 8, 8), {"9": 8 * 8 * 8, "11": 8 * 2 * 2}),
        (build_network("cnn-s", (3, 32, 32), 10), (3, 32, 32), {"9": 8 * 16 * 16, "11": 8 * 2 * 2}),
        (Functional(), (1, 8, 8), {"last": 6}),
        (Branches(), (1, 16, 16), {"main": 4 * 8 * 8}),
        (sequence(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.Conv2d(2, 4, 3), nn.AvgPool2d(2), nn.Flatten()),
         (1, 10, 10), {"1": 2 * 8 * 8, "2": 2 * 4 * 4}),
    ],
    ids=["cnn-s", "cnn-s-32", "functional", "branches", "no-linear"],
)  # fmt: skip
def test_stages_end_where_a_map_shrinks_and_at_the_last_linear_layer(network, shape, expected):
    network.eval()
    x = torch.rand(2, *shape)
    assert stage_layers(network, x) == expected
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_the_stages_of_a_residual_network_end_at_its_strides():
    found = stage_layers(build_network("resnet20", (3, 32, 32), 10).eval(), torch.rand(2, 3, 32, 32))
    assert sorted(found.values(), reverse=True)[:2] == [16 * 32 * 32, 32 * 16 * 16]
    assert list(found.values())[-1] == 64


@pytest.mark.parametrize("network", [sequence(nn.Conv2d(1, 3, 8), nn.Flatten()), torch.jit.script(Functional().eval())])
def test_a_network_that_shows_none_is_refused(network):
    with pytest.raises(InputError, match="no Linear layer; use features 0"):
        stage_layers(network, torch.rand(2, 1, 8, 8))


@pytest.mark.parametrize("model", ["cnn-s", "cnn-m"])
def test_logits_are_the_networks_and_features_what_the_layers_see(model):
    network, x = tiny.classifier(model), torch.rand(5, 1, 8, 8)
    layers = stage_layers(network, x)
    staged = Staged(network, layers)
    logits, features = staged.parts(staged(x))
    assert torch.equal(logits, tiny.classifier(model)(x))
    inside = (x - network.mean) / network.std
    for name, found in zip(layers, features, strict=True):
        before = network.net[: int(name.removeprefix("net."))]
        torch.testing.assert_close(found, before(inside).flatten(1))


def test_gradients_pass_through_the_features_of_each_call():
    network = tiny.classifier().requires_grad_(True)
    layers = stage_layers(network, torch.rand(2, 1, 8, 8))
    staged = Staged(network, layers)
    x, y = torch.rand(2, 3, 1, 8, 8)
    (_, first), (_, second) = staged.parts(staged(x)), staged.parts(staged(y))
    assert all(not torch.equal(a, b) for a, b in zip(first, second, strict=True))
    slope = torch.autograd.grad(first[0].square().sum(), network.net[0].weight, retain_graph=True)[0]
    assert bool(slope.any())
    after = torch.autograd.grad(first[-1].sum(), network.net[-1].weight)[0]
    assert not bool(after.any())  # the last layer comes after all features


class Silent(nn.Module):
    """A layer that is called without images, and one whose first argument is none."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.pair, self.offset, self.last = nn.Conv2d(1, 2, 7), Pair(), Offset(), nn.Linear(8, 3)

    def forward(self, x):
        x = self.first(x)
        return self.last(self.pair([x, x]).flatten(1) + self.offset())


class Pair(nn.Module):
    def forward(self, both):
        return both[0] + both[1]


class Offset(nn.Module):
    def forward(self):
        return torch.ones(1)


def test_layers_that_see_no_tensor_are_passed_over():
    assert stage_layers(Silent(), torch.rand(2, 1, 8, 8)) == {"last": 8}
