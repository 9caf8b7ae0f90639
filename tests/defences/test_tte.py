"""Test-time transformation ensembling: what is averaged, and that attacks go through it."""

import pytest
import torch
import torch.nn.functional as F
from support.attacked import attack, images, network

from dfshield.defences.tte import Ensembled, TestTimeEnsemble
from dfshield.options.defences import Tte


def model(net, **options) -> Ensembled:
    return TestTimeEnsemble(Tte(**options)).protect(net)


def test_the_published_ensemble_has_ten_versions():
    net = network(10, (3, 28, 28))
    versions = model(net).versions(torch.rand(2, 3, 28, 28))
    assert len(versions) == 10 and all(version.shape == (2, 3, 28, 28) for version in versions)
    assert len(model(net, flip=False).versions(torch.rand(2, 3, 28, 28))) == 5
    assert len(model(net, crops=0, flip=False).versions(torch.rand(2, 3, 28, 28))) == 1


@pytest.mark.parametrize("side, pad", [(8, 1), (28, 4), (32, 4), (3, 1)])
def test_the_padding_follows_the_size_of_the_image(side, pad):
    x = torch.rand(1, 1, side, side)
    crops = model(None, crops=30, flip=False).versions(x)[1:]
    shifts = {
        (top, left): F.pad(x, [pad] * 4)[:, :, top : top + side, left : left + side]
        for top in range(2 * pad + 1)
        for left in range(2 * pad + 1)
    }
    found = {place for crop in crops for place, shifted in shifts.items() if torch.equal(crop, shifted)}
    assert all(any(torch.equal(crop, shifted) for shifted in shifts.values()) for crop in crops)
    assert {top for top, _ in found} == set(range(2 * pad + 1)) or side > 8


def test_logits_are_the_mean_over_the_versions_and_their_mirror_images():
    net = network(10)
    x, _ = images(net, 5)
    made = model(net, crops=3, pad=2)
    versions = made.versions(x)
    assert torch.equal(versions[0], x) and torch.equal(versions[4], x.flip(3))
    assert all(torch.equal(versions[i + 4], versions[i].flip(3)) for i in range(4))
    torch.testing.assert_close(made(x), torch.stack([net(version) for version in versions]).mean(0))


def test_crops_have_offsets_of_their_own_that_the_seed_draws_once():
    net = network(10)
    x, _ = images(net, 2)
    first = model(net, crops=6, pad=3)
    assert len({(int(6 * top), int(6 * left)) for top, left in first.draws}) > 3
    assert torch.equal(first(x), first(x)) and torch.equal(first(x), model(net, crops=6, pad=3)(x))
    assert not torch.equal(first(x), model(net, crops=6, pad=3, seed=1)(x))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_attack_through_the_ensemble_breaks_more_than_one_on_the_bare_network(precision):
    net = network(10, seed=2)
    made = model(net)
    x, y = images(made, 100)
    options = {"attack": "pgd", "precision": precision}
    adaptive = attack(made, x, y, "linf:0.03", **options)[0]["broken"]
    static = attack(made, x, y, "linf:0.03", victim=net, **options)[0]["broken"]
    assert adaptive.sum() > static.sum() > 0
