"""The folded copy computes what the live model computes, follows its weights, and leaves it alone."""

import copy

import pytest
import torch
from torch import nn

from dfshield.models.classifier import Classifier
from dfshield.models.factory import build_network
from dfshield.models.folding import fold


def lively(model, shape, steps=2):
    """`model` with BatchNorm statistics and affine weights that differ from their initial values."""
    random = torch.Generator().manual_seed(1)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d) and layer.affine:
            layer.weight.data.uniform_(0.5, 1.5, generator=random)
            layer.bias.data.uniform_(-0.5, 0.5, generator=random)
    model.train()
    for _ in range(steps):
        model(torch.rand(8, *shape, generator=random))
    return model


def difference(folded, live, x):
    mode = live.training
    with torch.no_grad():
        expected, found = live.eval()(x), folded(x)
    live.train(mode)
    return float((found - expected).abs().max() / expected.abs().max())


class Shortcut(nn.Module):
    """A convolution that is called twice, an output that is used twice, a bias, groups, BatchNorm without weights."""

    def __init__(self):
        super().__init__()
        self.first, self.bn1 = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6, eps=1e-2)
        self.second, self.bn2 = nn.Conv2d(6, 6, 3, padding=1, groups=3), nn.BatchNorm2d(6, affine=False)
        self.third, self.bn3 = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)
        self.shared, self.bn4 = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)
        self.bn5 = nn.BatchNorm2d(6)
        self.local = nn.BatchNorm2d(6, track_running_stats=False)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = torch.relu(self.bn1(self.first(x)))
        x = torch.relu(self.bn2(self.second(x)))
        y = self.third(x)
        x = self.bn3(y) + y
        x = self.bn5(self.shared(torch.relu(self.bn4(self.shared(x)))))
        x = self.local(torch.relu(x))
        return self.head(x.mean((2, 3)))


class Branching(nn.Module):
    """Cannot be traced: the path depends on the values."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 4)

    def forward(self, x):
        x = self.bn(self.conv(x))
        if x.mean() > -1e9:
            x = torch.relu(x)
        return self.head(x.mean((2, 3)))


class Unfoldable(nn.Module):
    """BatchNorm before convolution only."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.ReLU())

    def forward(self, x):
        return self.net(x).mean((2, 3))


CASES = {
    "cnn-s": (lambda: build_network("cnn-s", (1, 8, 8), 10), (1, 8, 8), 3),
    "cnn-m": (lambda: build_network("cnn-m", (1, 8, 8), 10), (1, 8, 8), 4),
    "resnet20": (lambda: build_network("resnet20", (3, 32, 32), 10), (3, 32, 32), 21),
    "resnet18": (lambda: build_network("resnet18", (3, 28, 28), 9), (3, 28, 28), 20),
    "shortcut": (Shortcut, (3, 8, 8), 2),
    "branching": (Branching, (3, 8, 8), 0),
    "unfoldable": (Unfoldable, (3, 8, 8), 0),
}


@pytest.mark.parametrize(("make", "shape", "layers"), CASES.values(), ids=CASES)
def test_same_logits_before_and_after_refresh(make, shape, layers):
    live = lively(Classifier(make(), (0.4,) * shape[0], (0.2,) * shape[0]), shape)
    folded = fold(live)
    x = torch.rand(3, *shape, generator=torch.Generator().manual_seed(2))
    assert difference(folded, live, x) < 1e-4
    assert folded.folded_layers == layers
    with torch.no_grad():
        for parameter in live.parameters():
            parameter.mul_(1.1)
    lively(live, shape, steps=1)
    assert difference(folded, live, x) > 1e-3  # a copy: it follows only when told to
    folded.refresh()
    assert difference(folded, live, x) < 1e-4


def test_live_model_is_left_alone():
    live = lively(Classifier(build_network("cnn-s", (1, 8, 8), 10), (0.3,), (0.4,)), (1, 8, 8))
    live(torch.rand(4, 1, 8, 8)).sum().backward()
    live.net[1].eval()
    before = copy.deepcopy(live.state_dict())
    modes = [layer.training for layer in live.modules()]
    gradients = [parameter.grad.clone() for parameter in live.parameters()]
    folded = fold(live)
    x = torch.rand(4, 1, 8, 8, requires_grad=True)
    folded.train()(x).sum().backward()
    folded.refresh()
    assert x.grad is not None
    assert all(torch.equal(value, live.state_dict()[key]) for key, value in before.items())
    assert [layer.training for layer in live.modules()] == modes
    assert all(torch.equal(a, b.grad) for a, b in zip(gradients, live.parameters(), strict=True))
    assert all(parameter.requires_grad for parameter in live.parameters())


def test_copy_is_frozen_and_stays_in_eval_mode():
    live = lively(Classifier(build_network("cnn-s", (1, 8, 8), 10), (0.3,), (0.4,)), (1, 8, 8))
    folded = fold(live).train()
    folded(torch.rand(2, 1, 8, 8))
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    assert not any(layer.training for layer in folded.modules())
    weight = folded.net.get_submodule("net.3").weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    folded.refresh()
    assert folded.net.get_submodule("net.3").weight is weight  # in place: captured graphs stay valid
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in folded.modules())


def test_refresh_before_the_first_call():
    live = lively(Classifier(build_network("cnn-s", (1, 8, 8), 10), (0.3,), (0.4,)), (1, 8, 8))
    folded = fold(live)
    with torch.no_grad():
        live.net[0].weight.mul_(-1)
    folded.refresh()
    assert difference(folded, live, torch.rand(3, 1, 8, 8)) < 1e-4
    assert folded.folded_layers == 3


class ChangesItsWeight(nn.Module):
    """Weight normalisation by hook: the convolution recomputes its weight at each call, so folding is undone."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.conv.register_forward_pre_hook(self.renew)

    @staticmethod
    def renew(conv, _):
        conv.weight.data = torch.full_like(conv.weight, 0.3)

    def forward(self, x):
        return self.head(torch.relu(self.bn(self.conv(x))).mean((2, 3)))


def test_a_network_that_folding_would_break_gets_a_plain_copy():
    live = lively(Classifier(ChangesItsWeight(), (0.3,), (0.4,)), (1, 8, 8))
    folded = fold(live)
    assert difference(folded, live, torch.rand(3, 1, 8, 8)) < 1e-4
    assert folded.folded_layers == 0
    with torch.no_grad():
        live.net.head.weight.mul_(-2)
    folded.refresh()
    assert difference(folded, live, torch.rand(3, 1, 8, 8)) < 1e-4
