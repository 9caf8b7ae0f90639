"""Defences that alter activations, against values by hand: SAP, MeanSparse, k-WTA, and the layers in a copy."""

import copy

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from support.attacked import Linear, images, network
from torch import nn

from dfshield import registry
from dfshield.core.errors import InputError
from dfshield.defences.activation_pruning import Pruning
from dfshield.defences.k_wta import winners
from dfshield.defences.mean_sparse import Sparse
from dfshield.models.classifier import Classifier
from dfshield.models.folding import fold
from dfshield.options import DefendOptions

NAMES = ("activation-pruning", "mean-sparse", "k-wta")
NOTHING = {"activation-pruning": {"samples": 1e9}, "mean-sparse": {"threshold": 0}, "k-wta": {"winners": 1}}
"""Options with which a defence changes nothing."""


def defence(name: str, **options):
    return registry.DEFENCES[name].load()(DefendOptions.of(defence=name, **options))


def norm(gamma: list[float], beta: list[float]) -> nn.BatchNorm2d:
    """A BatchNorm layer that adds `beta` to `gamma` times its input."""
    layer = nn.BatchNorm2d(len(gamma), eps=0)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(gamma))
        layer.bias.copy_(torch.tensor(beta))
    return layer.eval()


def convolutional(inplace: bool = False) -> nn.Sequential:
    """A network of two blocks with BatchNorm of random parameters, and one ReLU layer in two places."""
    torch.manual_seed(0)
    relu = nn.ReLU(inplace)
    net = nn.Sequential(
        *(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), relu),
        *(nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6), relu),
        *(nn.Flatten(), nn.Linear(96, 10)),
    )
    with torch.no_grad():
        for layer in (net[1], net[4]):
            for tensor in (layer.weight, layer.bias, layer.running_mean):
                tensor.normal_()
    return net.eval()


def slope(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Gradient of the sum of what `model` gives."""
    x = x.clone().requires_grad_()
    return torch.autograd.grad(model(x).sum(), x)[0]


# MeanSparse


@pytest.mark.parametrize("bpda", [False, True])
def test_the_band_around_a_channels_mean_is_blocked(bpda):
    layer = Sparse(norm([2, -4], [1, -1]), 0.25, bpda)  # bands of half width 0.5 and 1
    h = torch.tensor([[[[0.4, 0.5, 1.2, 1.5, 1.6]], [[-2.1, -2, -0.5, 0, 0.1]]]])
    expected = torch.tensor([[[[0.4, 1, 1, 1, 1.6]], [[-2.1, -1, -1, -1, 0.1]]]])
    assert torch.equal(layer(h), expected)
    inside = expected.abs() == 1
    assert torch.equal(slope(layer, h), torch.ones_like(h) if bpda else (~inside).float())


def test_without_affine_parameters_the_band_is_that_of_mean_0_and_deviation_1():
    layer = Sparse(nn.BatchNorm2d(2, affine=False), 0.5)
    h = torch.tensor([-0.6, -0.5, 0.3, 0.7]).expand(1, 2, 1, 4)
    assert torch.equal(layer(h), torch.tensor([-0.6, 0, 0, 0.7]).expand(1, 2, 1, 4))


def test_the_band_is_in_units_of_the_output_of_the_layer():
    net = norm([-2], [1])
    x = torch.tensor([[[[-0.3, -0.2, 0.2, 0.3]]]])  # outputs 1.6, 1.4, 0.6, 0.4
    for model in (defence("mean-sparse").protect(net), defence("mean-sparse").surrogate(net)):
        torch.testing.assert_close(model(x), torch.tensor([[[[1.6, 1, 1, 0.4]]]]))
    assert slope(defence("mean-sparse").protect(net), x).tolist() == [[[[-2, 0, 0, -2]]]]
    assert slope(defence("mean-sparse").surrogate(net), x).tolist() == [[[[-2, -2, -2, -2]]]]


# k-winners-take-all


def test_the_largest_of_each_image_win():
    h = torch.tensor([[0.0, 7, 2, 9, 1, 3, 8, 4, 6, 5], [0.5, 0.1, 0, 0, 0.3, 0, 0, 0.2, 0, 0.4]]).view(2, 5, 2, 1)
    kept = torch.tensor([[0.0, 0, 0, 9, 0, 0, 8, 0, 0, 0], [0.5, 0, 0, 0, 0, 0, 0, 0, 0, 0.4]]).view(2, 5, 2, 1)
    assert torch.equal(winners(h, 0.2), kept)
    assert torch.equal(winners(h, 0.29), kept)  # 2.9 are 2
    assert torch.equal(winners(h, 0.3)[0].flatten().nonzero().flatten(), torch.tensor([1, 3, 6]))
    assert torch.equal(winners(h, 0.01), torch.where((h == 9) | (h == 0.5), h, 0))  # one at least
    assert torch.equal(winners(h, 1), h)


@pytest.mark.parametrize("share", [0.29, 0.57, 0.58])
def test_a_share_is_not_rounded_away(share):
    assert winners(torch.rand(3, 100), share).count_nonzero(1).tolist() == [round(100 * share)] * 3


def test_what_ties_with_the_last_winner_wins_too():
    assert winners(torch.tensor([[5.0, 1, 5, 5, 2]]), 0.4).tolist() == [[5, 0, 5, 5, 0]]
    assert winners(torch.tensor([[3.0, 0, 0, 0, 0]]), 0.4).tolist() == [[3, 0, 0, 0, 0]]


def test_no_negative_activation_wins():
    made = defence("k-wta", winners=0.75)
    x = torch.tensor([[-1.0, -2, 3, -4], [1.0, 2, -3, 4]])
    expected = [[0, 0, 3, 0], [1, 2, 0, 4]]
    assert made.protect(nn.ReLU())(x).tolist() == made.surrogate(nn.ReLU())(x).tolist() == expected


def test_gradients_of_k_wta_are_those_of_relu_in_the_surrogate_alone():
    made = defence("k-wta", winners=0.25)
    x = torch.tensor([[-1.0, 2, 3, 1], [4.0, -2, 1, 2]])
    assert slope(made.protect(nn.ReLU()), x).tolist() == [[0, 0, 1, 0], [1, 0, 0, 0]]
    assert torch.equal(slope(made.surrogate(nn.ReLU()), x), slope(nn.ReLU(), x))


# Stochastic activation pruning


def test_pruning_keeps_the_expectation():
    torch.manual_seed(0)
    h = torch.tensor([0.0, 1, -3, 6]).view(4, 1, 1)
    keep = torch.tensor([0, 0.3439, 0.7599, 0.9744]).view(4, 1, 1)  # 1 - (1 - p)^4 for p = 0, 0.1, 0.3, 0.6
    n = 20000
    found = Pruning(1)(h.expand(n, 4, 1, 1))
    drawn = found != 0
    torch.testing.assert_close(found[drawn], (h / keep).expand_as(found)[drawn])
    five = 5 * (keep * (1 - keep) / n).sqrt()
    assert ((drawn.float().mean(0) - keep).abs() <= five).all()
    assert ((found.mean(0) - h).abs()[1:] <= (h.abs() / keep * five)[1:]).all() and not found[:, 0].any()


def test_fewer_samples_prune_more():
    torch.manual_seed(0)
    h = torch.rand(1, 10000)
    shares = [float((Pruning(samples)(h) != 0).float().mean()) for samples in (0.1, 1, 3)]
    p = h / h.sum()
    expected = [float((1 - (1 - p.double()) ** (samples * 10000)).mean()) for samples in (0.1, 1, 3)]
    assert shares == pytest.approx(expected, abs=0.02) and shares[0] < 0.15 < 0.5 < shares[1] < shares[2]


@pytest.mark.parametrize("h", [[0.0, 0, 0], [0, 2, 0], [1e-45, 0, 0], [1e30, 1e-30, 0]])
def test_pruning_survives_extremes(h):
    h = torch.tensor([h, [1.0, 1, 1]])
    found = Pruning(1)(h)
    assert found.isfinite().all() and torch.equal(found[0].abs().amax() > 0, h[0].amax() > 1e-40)


def test_mask_and_scale_of_pruning_are_constants_of_the_backward_pass():
    torch.manual_seed(3)
    x = torch.rand(4, 1, 8, 8) + 0.1
    model = defence("activation-pruning").surrogate(nn.ReLU())
    x.requires_grad_()
    y = model(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, (y / x).detach())
    assert 0 < (gradient == 0).float().mean() < 1


def test_draws_follow_an_images_content_and_the_seed():
    net = network(10)
    x, _ = images(net, 3)
    made = defence("activation-pruning").protect(net)
    logits = made(torch.cat([x, x[:1]]))
    assert torch.equal(logits[0], logits[3]) and torch.equal(made(x), logits[:3])
    other = defence("activation-pruning", seed=1).protect(net)(x)
    assert (other != logits[:3]).any(1).all()
    nearly = x.clone()
    nearly[0, 0, 0, 0] += 1e-6
    assert (made(nearly)[0] - logits[0]).abs().max() > 1e-3 and torch.equal(made(nearly)[1:], logits[1:3])


def test_the_surrogate_draws_anew_from_the_global_generator():
    net = network(10)
    x, _ = images(net, 3)
    model = defence("activation-pruning").surrogate(net)
    torch.manual_seed(0)
    first, second = model(x), model(x)
    torch.manual_seed(0)
    assert torch.equal(model(x), first) and (first != second).any(1).all()


def test_a_layer_that_runs_twice_draws_twice():
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU()

        def forward(self, x):
            return torch.cat([self.relu(x).flatten(1), self.relu(x).flatten(1)], 1)

    x = torch.rand(2, 1, 8, 8)
    first, second = defence("activation-pruning").protect(Both())(x).chunk(2, 1)
    assert ((first == 0) != (second == 0)).any(1).all()


def test_pruning_refuses_a_network_that_mixes_images():
    mixed = nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (1, -1)), nn.ReLU())
    with pytest.raises(InputError, match="1 rows where there are 5 images; use"):
        defence("activation-pruning").protect(mixed)(torch.rand(5, 1, 2, 2))


# A copy with further layers


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_defence_can_be_set_to_change_nothing(name, inplace):
    net = convolutional(inplace)
    x = torch.rand(5, 1, 8, 8)
    made = defence(name, **NOTHING[name])
    for model in (made.protect(net), made.surrogate(net)):
        assert model is not net
        torch.testing.assert_close(model(x), net(x))
        torch.testing.assert_close(slope(model, x), slope(net, x))
    assert (defence(name).protect(net)(x) - net(x)).abs().max() > 1e-2


@pytest.mark.parametrize("inplace", [False, True])
def test_a_layer_in_two_places_is_followed_in_both(inplace):
    net = convolutional(inplace)
    x = torch.rand(5, 1, 8, 8)
    middle = winners(F.relu(net[1](net[0](x))), 0.2)
    expected = net[7](net[6](winners(F.relu(net[4](net[3](middle))), 0.2)))
    torch.testing.assert_close(defence("k-wta").protect(net)(x), expected)


def test_every_batchnorm_layer_is_followed():
    net = convolutional()
    x = torch.rand(5, 1, 8, 8)
    first, second = Sparse(net[1], 0.4), Sparse(net[4], 0.4)
    expected = net[7](net[6](F.relu(second(net[4](net[3](F.relu(first(net[1](net[0](x))))))))))
    torch.testing.assert_close(defence("mean-sparse", threshold=0.4).protect(net)(x), expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_network_without_such_layers_is_left_as_it_is(name):
    net = Linear(64)
    assert defence(name).protect(net) is net and defence(name).surrogate(net) is net


@pytest.mark.parametrize("name", NAMES)
def test_the_copy_is_frozen_and_in_eval_mode(name):
    net = convolutional(inplace=True)
    x = torch.rand(5, 1, 8, 8)
    expected = defence(name).protect(net)(x)
    state = copy.deepcopy(net.state_dict())
    for model in (defence(name).protect(net.train()), defence(name).surrogate(net)):
        model(x)
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert not any(module.training for module in model.modules())
    assert torch.equal(defence(name).protect(net)(x), expected)
    assert net.training and all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_gradients_come_through_layers_in_place(name):
    x = torch.rand(5, 1, 8, 8)
    gradient = slope(defence(name).surrogate(convolutional(inplace=True)), x)
    assert gradient.isfinite().all() and (gradient.flatten(1) != 0).any(1).all()


@pytest.mark.parametrize("anew", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_copies_and_folded_copies_keep_the_defence(name, anew):
    """Also copies of a classifier that has its network built anew."""
    classifier = Classifier(convolutional(), [0.5], [0.5], lambda **seed: convolutional()).eval()
    classifier.anew = anew
    x = torch.rand(5, 1, 8, 8)
    made = defence(name).protect(classifier)
    logits = made(x)
    assert torch.equal(copy.deepcopy(made)(x), logits) and not torch.equal(logits, classifier(x))
    surrogate = defence(name).surrogate(classifier)
    folded = fold(surrogate)
    found = []
    for model in (folded, surrogate):
        torch.manual_seed(0)
        found.append(model(x))
    torch.testing.assert_close(*found)
    assert folded.folded_layers == 2


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("activation-pruning", {"samples": 0}),
        ("activation-pruning", {"samples": float("inf")}),
        ("mean-sparse", {"threshold": -0.1}),
        ("k-wta", {"winners": 0}),
        ("k-wta", {"winners": 1.1}),
    ],
)
def test_options_out_of_range_are_refused(name, options):
    with pytest.raises(ValidationError, match=next(iter(options))):
        defence(name, **options)
