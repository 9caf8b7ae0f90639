"""DAD: what its detector learns, which filter it chooses, and what gradients go through."""

import math

import pytest
import torch
from pydantic import ValidationError
from support.attacked import attack, images, key, network
from torch import nn

from dfshield.core.errors import InputError
from dfshield.defences.dad import Corrected, DataFreeDefence, SoftCorrected, chosen, low_pass
from dfshield.defences.detectors import outputs, pairs, trained
from dfshield.defences.fitted import Fitting
from dfshield.options.defences_detection import RADII, Dad


def fitting(net, n=60, threat="linf:0.2", seed=3) -> Fitting:
    x, y = images(net, n, seed=5)
    return Fitting(net, net, x, y, 10, threat, key(seed))


class Fixed(nn.Module):
    """A detector that says one thing of all images."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.logit = math.log(probability / (1 - probability))

    def forward(self, logits):
        return torch.stack([torch.zeros(len(logits)), torch.full((len(logits),), self.logit)], 1)


@pytest.mark.parametrize("side", [8, 32, 12])
def test_a_filter_keeps_the_waves_below_its_radius(side):
    """A radius of 16 is the highest frequency along an axis: that of `side` / 2 waves."""
    place = torch.arange(side) / side
    for waves in range(side // 2 + 1):
        wave = torch.cos(2 * math.pi * waves * place)
        for x in (wave.expand(side, side), wave[:, None].expand(side, side)):
            found = low_pass(x[None, None], RADII)
            for radius, version in zip(RADII, found, strict=True):
                kept = waves * 32 / side < radius
                torch.testing.assert_close(version[0, 0], x * kept, rtol=0, atol=1e-5)


def test_a_filter_is_round_and_leaves_the_mean():
    x = torch.rand((4, 3, 10, 8), generator=key())
    found = low_pass(x, (1, 100))
    torch.testing.assert_close(found[0], x.mean((2, 3), keepdim=True).expand_as(x))
    torch.testing.assert_close(found[1], x)
    place = torch.arange(32) / 32
    diagonal = torch.cos(2 * math.pi * 6 * (place[:, None] + place[None]))[None, None]  # 6 √2 = 8.5 from the centre
    torch.testing.assert_close(low_pass(diagonal, (8, 9)), torch.stack([0 * diagonal, diagonal]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "stops, radius", [([], 16), ([0], 4), ([1], 4), ([2], 4), ([3], 6), ([7], 14), ([3, 5], 6), ([6, 7], 12)]
)
def test_the_radius_by_hand(stops, radius):
    similarity = torch.linspace(0.2, 0.9, 8)[:, None]
    contamination = torch.zeros(8, 1)
    contamination[stops] = similarity[stops]
    assert RADII[int(chosen(similarity, contamination))] == radius


def test_only_flagged_images_are_filtered():
    net = network(10)
    x, _ = images(net, 6)
    own = Corrected(net, Fixed(0.4))(x)
    assert torch.equal(own, net(x))
    corrected = Corrected(net, Fixed(0.6))(x)
    versions = low_pass(x, RADII)
    rows = [[torch.allclose(net(version)[i], corrected[i], atol=1e-5) for version in versions[1:]] for i in range(6)]
    assert all(map(any, rows)) and not torch.allclose(own, corrected, atol=1e-3)


def test_the_surrogate_has_the_verdicts_logits_and_the_gradient_of_the_blend():
    net = network(10).double()
    x = images(network(10), 4)[0].double().requires_grad_()
    for probability in (0.3, 0.8):
        made = SoftCorrected(net, Fixed(probability))
        own, corrected, attacked = made.parts(x)
        torch.testing.assert_close(attacked, torch.full((4,), probability), rtol=1e-5, atol=0)
        torch.testing.assert_close(made(x), corrected if probability > 0.5 else own)
        blend = own + probability * (corrected - own)
        (expected,) = torch.autograd.grad(blend[:, 2].sum(), x)
        (found,) = torch.autograd.grad(made(x)[:, 2].sum(), x)
        torch.testing.assert_close(found, expected)


def test_gradients_go_through_the_detector():
    net = network(10)
    x = images(net, 4)[0].requires_grad_()
    slope = nn.Linear(10, 2)
    made = SoftCorrected(net, slope)
    own, corrected, attacked = made.parts(x)
    (moved,) = torch.autograd.grad(made(x)[:, 2].sum(), x, retain_graph=True)
    still = own + attacked.detach()[:, None] * (corrected - own)
    (without,) = torch.autograd.grad(still[:, 2].sum(), x)
    assert float((moved - without).abs().max()) > 1e-4


def test_pairs_are_attacks_that_succeeded_within_the_threat_model():
    net = network(10)
    given = fitting(net)
    found = pairs(net, given.images, "linf:0.1", 5, key())
    assert torch.equal(found.clean, given.images) and 20 <= len(found.attacked) <= 120
    near = (found.attacked[:, None] - given.images[None]).flatten(2).abs().amax(2).min(1)
    assert float(near.values.max()) <= 0.1 + 1e-6
    clean = net(given.images).argmax(1)
    assert (net(found.attacked).argmax(1) != clean[near.indices]).all()
    twice = torch.bincount(near.indices, minlength=60)
    assert twice.max() == 2


def test_a_set_that_allows_no_fit_is_refused():
    net = network(10)
    with pytest.raises(InputError, match="at least 20 images"):
        DataFreeDefence(Dad()).fit(fitting(net, n=10))
    with pytest.raises(InputError, match="60 and 0"):
        DataFreeDefence(Dad(steps=1)).fit(fitting(net, threat="linf:0"))


def test_the_detector_tells_what_can_be_told_and_its_kinds_weigh_alike():
    clean, attacked = torch.randn((30, 4), generator=key()) + 2, torch.randn((300, 4), generator=key(1)) - 2
    detector = trained(clean, attacked, 40, 64, 5e-4, key())
    assert not detector.training
    assert float((detector(clean).argmax(1) == 0).float().mean()) > 0.9
    assert float((detector(attacked).argmax(1) == 1).float().mean()) > 0.95
    alike = torch.randn((330, 4), generator=key(2))
    nothing = trained(alike[:30], alike[30:], 40, 64, 5e-4, key())(torch.randn((500, 4), generator=key(3)))
    assert 0.3 < float(nothing.softmax(1)[:, 1].mean()) < 0.7


def test_a_fit_follows_its_draws_alone_and_is_kept_whole():
    net = network(10)
    torch.manual_seed(1)
    first = DataFreeDefence(Dad(epochs=3)).fit(fitting(net))
    again = DataFreeDefence(Dad(epochs=3)).fit(fitting(net))
    other = DataFreeDefence(Dad(epochs=3)).fit(fitting(net, seed=4))
    assert all(name.startswith("detector.") for name in first)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    made = DataFreeDefence(Dad(), first)
    x, _ = images(net, 5)
    given = fitting(net)
    both = pairs(net, given.images, given.threat, 10, given.random)
    direct = trained(*(outputs(net, part) for part in both), 3, 64, 5e-4, given.random)
    torch.testing.assert_close(made.protect(net).detector(net(x)), direct(net(x)))


def test_an_attack_that_knows_of_it_breaks_more():
    net = network(10, seed=2)
    given = fitting(net, n=100, threat="linf:0.05")
    made = DataFreeDefence(Dad(epochs=10), DataFreeDefence(Dad(epochs=10)).fit(given))
    judged = made.protect(net)
    x, _ = images(net, 60, seed=9)
    with torch.no_grad():
        y = judged(x).argmax(1)
    options = {"attack": "pgd", "steps": 20}
    static = attack(judged, x, y, "linf:0.05", victim=net, **options)[0]["broken"].sum()
    adaptive = attack(judged, x, y, "linf:0.05", victim=made.surrogate(net), **options)[0]["broken"].sum()
    assert adaptive > static


@pytest.mark.parametrize("field", ["steps", "epochs", "batch", "lr"])
def test_options_out_of_range_are_refused(field):
    with pytest.raises(ValidationError, match=field):
        Dad(**{field: 0})
