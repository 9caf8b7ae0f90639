"""Randomised smoothing: its noise, its vote, and what attacks on it are crafted on."""

import math

import pytest
import torch
from pydantic import ValidationError
from support.attacked import Linear, images, key, network
from torch import nn

from dfshield.defences.smoothing import NOISES, RandomisedSmoothing, noisy
from dfshield.options.defences_smoothing import Smoothing

BEYOND_ONE = {
    "gaussian": 0.31731,
    "laplace": math.exp(-math.sqrt(2)),
    "uniform": 1 - 1 / math.sqrt(3),
}
"""Probability that noise is larger than its standard deviation."""


def smoothing(**options) -> RandomisedSmoothing:
    return RandomisedSmoothing(Smoothing(**options))


@pytest.mark.parametrize("name", NOISES)
def test_noise_has_its_distribution(name):
    noise = NOISES[name].draw((200_000,), key())
    assert abs(float(noise.mean())) < 4.5 / 200_000**0.5
    assert abs(float(noise.square().mean()) - 1) < 0.02
    assert abs(float((noise.abs() > 1).float().mean()) - BEYOND_ONE[name]) < 0.005
    assert abs(float((noise[1:] * noise[:-1]).mean())) < 0.01


def test_noisy_copies_differ_are_as_many_as_asked_for_and_come_in_batches():
    x = torch.rand((1, 3, 4, 4), generator=key())
    batches = list(noisy(x, 7, "gaussian", 0.5, key(1), 3))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    whole = (torch.cat(batches) - x) / 0.5
    assert len(torch.unique(whole)) == 7 * 48 and 0.8 < float(whole.std()) < 1.2


@pytest.mark.parametrize("name", NOISES)
def test_the_share_of_votes_is_the_probability_of_the_class(name):
    """On one pixel: half a standard deviation from the border the normal distribution says 0.691."""
    net = Linear(1)
    with torch.no_grad():
        net.layer.weight.fill_(1.0)
        net.layer.bias.fill_(-0.5)
    probability = {"gaussian": 0.69146, "laplace": 1 - math.exp(-math.sqrt(0.5)) / 2}
    probability["uniform"] = 0.5 + 0.5 / (2 * math.sqrt(3))
    x = torch.tensor([0.6, 0.4]).view(2, 1, 1, 1)
    logits = smoothing(distribution=name, sigma=0.2, votes=20_000).protect(net)(x)
    shares = logits.exp()
    torch.testing.assert_close(shares.sum(1), torch.ones(2))
    assert logits.argmax(1).tolist() == [1, 0]
    assert abs(float(shares[0, 1]) - probability[name]) < 0.015
    assert abs(float(shares[1, 0]) - probability[name]) < 0.015


def test_the_vote_is_of_classes_and_no_mean_of_logits():
    """One copy in three that is very certain outweighs the others in a mean, not in a vote."""

    class Certain(nn.Module):
        def forward(self, x):
            far = (x[:, 0, 0, 0] > 0.43).float()
            return torch.stack([torch.ones_like(far), 1000 * far], 1)

    x = torch.zeros((1, 1, 1, 1))
    logits = smoothing(sigma=1.0, votes=1000).protect(Certain())(x)
    assert logits.argmax() == 0 and abs(float(logits[0, 0].exp()) - 0.6664) < 0.06
    one = smoothing(sigma=1e-6, votes=9).protect(Certain())(x)
    torch.testing.assert_close(one.exp(), torch.tensor([[9.5 / 10, 0.5 / 10]]))


def test_votes_follow_content_and_seed():
    net = network(4)
    x, _ = images(net, 6)
    made = smoothing(sigma=1.0, votes=20).protect(net)
    assert torch.equal(made(x.flip(0)).flip(0), made(x))
    twice = made(torch.cat([x, x]))
    assert torch.equal(twice[:6], twice[6:])
    alike = 0.5 + 1e-5 * torch.arange(20.0).view(20, 1, 1, 1)  # so near to one another that only draws tell them apart
    assert len(torch.unique(smoothing().protect(Linear(1))(alike)[:, 1])) > 5
    assert not torch.equal(smoothing(sigma=1.0, votes=20, seed=1).protect(net)(x), made(x))


def test_the_surrogate_is_the_mean_probability():
    net = network(5)
    x, _ = images(net, 4)
    torch.testing.assert_close(
        smoothing(sigma=1e-7, crafting=3).surrogate(net)(x), net(x).log_softmax(1), rtol=1e-4, atol=1e-4
    )
    made = smoothing(sigma=0.5, crafting=4000).surrogate(Linear(1))
    seen = []
    made.model.register_forward_hook(lambda module, given, logits: seen.append(logits))
    found = made(torch.full((2, 1, 1, 1), 0.7))
    assert len(seen) == 4000
    torch.testing.assert_close(found.exp(), torch.stack(seen).softmax(2).mean(0), rtol=1e-3, atol=1e-4)


def test_the_surrogate_draws_at_each_call_from_the_global_generator():
    net = network(5)
    x, _ = images(net, 4)
    made = smoothing().surrogate(net)
    torch.manual_seed(5)
    first, second = made(x), made(x)
    torch.manual_seed(5)
    assert torch.equal(made(x), first) and torch.equal(made(x), second) and not torch.equal(first, second)
    twice = made(x[:1].expand(2, -1, -1, -1))
    assert not torch.equal(twice[0], twice[1])


@pytest.mark.parametrize("field, value", [("sigma", 0), ("votes", 0), ("crafting", 0), ("distribution", "cauchy")])
def test_options_out_of_range_are_refused(field, value):
    with pytest.raises(ValidationError, match=field):
        Smoothing(**{field: value})
