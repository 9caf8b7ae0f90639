"""The terms of the synthesis objective against numbers by hand and against autograd."""

import math

import pytest
import torch
from support import tiny
from torch import nn

from dfshield.sources.objective import BatchStatistics, class_loss, total_variation


def test_class_loss_by_hand():
    logits = torch.tensor([[1.0, 0.0], [0.0, 3.0], [2.0, 2.0], [0.0, -1.0]])
    labels = torch.tensor([0, 0, 1, 0])
    each = [math.log(1 + math.exp(-1)), math.log(1 + math.exp(3)), math.log(2), math.log(1 + math.exp(-1))]
    assert class_loss(logits, labels, 1).tolist() == pytest.approx([sum(each) / 4])
    assert class_loss(logits, labels, 2).tolist() == pytest.approx([sum(each[:2]) / 2, sum(each[2:]) / 2])


def test_total_variation_by_hand():
    x = torch.tensor([[[[1.0, 2.0], [4.0, 8.0]]], [[[0.0, 0.0], [0.0, 3.0]]]])
    right, down, diagonal, antidiagonal = (1, 4, 0, 3), (3, 6, 0, 3), (7, 3), (2, 0)
    whole = sum(math.sqrt(sum(d * d for d in part)) for part in (right, down, diagonal, antidiagonal))
    assert total_variation(x, 1).tolist() == pytest.approx([whole])  # the norm is over the whole batch
    first = math.hypot(1, 4) + math.hypot(3, 6) + 7 + 2
    assert total_variation(x, 2).tolist() == pytest.approx([first, 3 + 3 + 3 + 0])


@pytest.mark.parametrize("direction", ["right", "down", "diagonal", "antidiagonal"])
def test_each_direction_of_the_total_variation_counts(direction):
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(5.0), indexing="ij")
    constant_along = {"right": rows, "down": columns, "diagonal": rows - columns, "antidiagonal": rows + columns}
    pairs = {"right": 4 * 4, "down": 3 * 5, "diagonal": 3 * 4, "antidiagonal": 3 * 4}
    steps = {  # what one step to the right, down, and along either diagonal adds
        "right": {"down": 1, "diagonal": 1, "antidiagonal": 1},
        "down": {"right": 1, "diagonal": 1, "antidiagonal": 1},
        "diagonal": {"right": 1, "down": 1, "antidiagonal": 2},
        "antidiagonal": {"right": 1, "down": 1, "diagonal": 2},
    }[direction]
    expected = sum(size * math.sqrt(pairs[name]) for name, size in steps.items())
    assert total_variation(constant_along[direction][None, None], 1).tolist() == pytest.approx([expected])


def two_norms() -> nn.Sequential:
    net = nn.Sequential(nn.BatchNorm2d(2, eps=0.0), nn.BatchNorm2d(2, eps=0.0)).eval()
    for layer, mean, variance in ((net[0], [1.0, 2.0], [4.0, 9.0]), (net[1], [0.5, 0.0], [1.0, 2.0])):
        layer.running_mean.copy_(torch.tensor(mean))
        layer.running_var.copy_(torch.tensor(variance))
    return net.requires_grad_(False)


def test_feature_loss_by_hand():
    net = two_norms()
    x = torch.tensor([[[[1.0, 3.0]], [[2.0, 2.0]]], [[[5.0, 7.0]], [[8.0, -4.0]]]])  # channels: 1 3 5 7 and 2 2 8 -4
    statistics = BatchStatistics(net, 1)
    net(x)
    # the input of the first layer: means 4 and 2, biased variances 5 and 18; the second sees (x - mean) / sd of it
    first = math.hypot(4 - 1, 2 - 2) + math.hypot(5 - 4, 18 - 9)
    second = math.hypot(1.5 - 0.5, 0 - 0) + math.hypot(5 / 4 - 1, 2 - 2)
    assert statistics.feature_loss().tolist() == pytest.approx([first + second])
    net(x)  # nothing of the first pass is left
    assert statistics.feature_loss().tolist() == pytest.approx([first + second])


def test_watching_changes_no_output_and_ends():
    model = tiny.classifier()
    x = torch.randn((6, *tiny.SHAPE))
    expected = model.net(x)
    buffers = {name: value.clone() for name, value in model.net.named_buffers()}
    statistics = BatchStatistics(model.net, 2)
    assert torch.allclose(model.net(x), expected, atol=1e-5)
    statistics.feature_loss()
    statistics.remove()
    assert torch.equal(model.net(x), expected)
    assert not statistics.seen
    assert all(torch.equal(value, buffers[name]) for name, value in model.net.named_buffers())


class Reference:
    """Eq 4 by forward hooks and autograd alone."""

    def __init__(self, net: nn.Module):
        self.losses: list[torch.Tensor] = []
        for layer in net.modules():
            if isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None:
                layer.register_forward_pre_hook(self.record)

    def record(self, layer, inputs):
        mean, variance = inputs[0].mean((0, 2, 3)), inputs[0].var((0, 2, 3), unbiased=False)
        self.losses.append((mean - layer.running_mean).norm() + (variance - layer.running_var).norm())

    def terms(self, net, z, labels):
        self.losses.clear()
        logits = net(z)
        differences = (
            z[..., 1:] - z[..., :-1],
            z[..., 1:, :] - z[..., :-1, :],
            z[..., 1:, 1:] - z[..., :-1, :-1],
            z[..., 1:, :-1] - z[..., :-1, 1:],
        )
        prior = sum((d**2).sum() ** 0.5 for d in differences)
        return torch.stack([nn.functional.cross_entropy(logits, labels), sum(self.losses), prior])


class Shared(nn.Module):
    """One BatchNorm layer met twice, one without affine parameters, one without running statistics."""

    def __init__(self):
        super().__init__()
        self.norm, self.plain = nn.BatchNorm2d(1), nn.BatchNorm2d(1, affine=False)
        self.unwatched = nn.BatchNorm2d(1, track_running_stats=False)
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        return self.head(self.unwatched(self.plain(self.norm(torch.relu(self.norm(x))))).flatten(1))


@pytest.mark.parametrize(
    ("make", "k"),
    [
        (lambda: tiny.classifier().net, 1),
        (lambda: tiny.classifier().net, 3),
        (lambda: tiny.classifier("resnet20").net, 3),
        (Shared, 1),  # only 1: a layer that normalises by the batch itself mixes the batches of a group
    ],
)
def test_terms_of_a_group_and_their_gradients_are_those_of_its_batches(make, k):
    torch.manual_seed(0)
    net = make().eval().requires_grad_(False)
    if isinstance(net, Shared):
        for layer in (net.norm, net.plain):
            layer.running_mean += 0.3
            layer.running_var *= 1.7
    z, labels = torch.randn((k * 4, *tiny.SHAPE)), torch.arange(k * 4) % 10
    weights = torch.rand(k, 3) + 0.5
    z.requires_grad_()
    statistics = BatchStatistics(net, k)
    logits = net(z)
    terms = torch.stack([class_loss(logits, labels, k), statistics.feature_loss(), total_variation(z, k)], 1)
    (gradient,) = torch.autograd.grad((weights * terms).sum(), z)
    reference = Reference(net)
    for part, (rows, own) in enumerate(zip(z.detach().chunk(k), labels.chunk(k), strict=True)):
        rows = rows.clone().requires_grad_()
        expected = reference.terms(net, rows, own)
        torch.testing.assert_close(terms[part], expected, rtol=1e-4, atol=1e-4)
        (slope,) = torch.autograd.grad((weights[part] * expected).sum(), rows)
        assert (gradient.chunk(k)[part] - slope).norm() < 1e-4 * slope.norm()


def test_every_call_of_a_layer_counts():
    """A layer that is used twice adds the distances of both inputs."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norms = two_norms()

        def forward(self, x):
            return self.norms[1](self.norms[0](self.norms[0](x)))

    net, x = Twice(), torch.rand(4, 2, 3, 3)
    statistics = BatchStatistics(net, 1)
    net(x)
    expected, seen = 0.0, x
    for layer in (net.norms[0], net.norms[0], net.norms[1]):
        mean, variance = seen.mean((0, 2, 3)), seen.var((0, 2, 3), unbiased=False)
        expected += float((mean - layer.running_mean).norm() + (variance - layer.running_var).norm())
        seen = nn.functional.batch_norm(seen, layer.running_mean, layer.running_var, layer.weight, layer.bias, eps=0.0)
    assert statistics.feature_loss().tolist() == pytest.approx([expected], rel=1e-5)
