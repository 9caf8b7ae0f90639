"""Test-time transformation ensembling: its versions of an image, their mean, and attacks that know of it or not."""

import numpy as np
import pytest
import torch
from support.victims import attack, images, key, network, save_victim, stage

from dfshield.core.rng import generator
from dfshield.defences.tte import Ensembled, TestTimeEnsemble
from dfshield.evaluation.ledger import read_ledger
from dfshield.evaluation.verdict import replay
from dfshield.options import DefendOptions


def ensemble(net=None, **values):
    return TestTimeEnsemble(DefendOptions.of(defence="tte", **values)).protect(net or torch.nn.Identity())


def offsets(seed, crops, pad):
    """The offsets that the seed draws: each from 0 to twice the padding."""
    draws = torch.rand((crops, 2), generator=generator("tte", seed)).tolist()
    return [(int(top * (2 * pad + 1)), int(left * (2 * pad + 1))) for top, left in draws]


@pytest.mark.parametrize("pad, padding", [(0, 1), (1, 1), (3, 3)])
@pytest.mark.parametrize("flip", [True, False])
def test_versions_are_crops_of_the_padded_image_and_mirror_images(pad, padding, flip):
    x = torch.rand((2, 3, 8, 9), generator=key())
    canvas = np.zeros((2, 3, 8 + 2 * padding, 9 + 2 * padding), np.float32)
    canvas[:, :, padding:-padding, padding:-padding] = x.numpy()
    expected = [x.numpy()]
    expected += [canvas[:, :, top : top + 8, left : left + 9] for top, left in offsets(5, 4, padding)]
    if flip:
        expected += [version[..., ::-1] for version in expected]
    versions = ensemble(seed=5, pad=pad, flip=flip).versions(x)
    assert len(versions) == len(expected) == (10 if flip else 5)
    assert all(np.array_equal(version, own) for version, own in zip(versions, expected, strict=True))


def test_padding_of_32_pixels_is_four_as_published():
    x = torch.arange(32.0).view(1, 1, 32, 1).expand(1, 1, 32, 32) + 1
    published, default = (ensemble(seed=1, pad=pad).versions(x) for pad in (4, 0))
    assert all(torch.equal(a, b) for a, b in zip(published, default, strict=True))


def test_every_offset_is_drawn():
    x = 1 + torch.arange(16.0).view(1, 1, 4, 4)
    pad = 1
    found = {int(crop[0, 0, 1, 1]) for crop in ensemble(crops=200, pad=pad, flip=False).versions(x)[1:]}
    assert found == {1 + 4 * row + column for row in range(3) for column in range(3)}


def test_offsets_are_drawn_once_and_follow_from_the_seed():
    x = torch.rand((1, 1, 16, 16), generator=key())
    model = ensemble(seed=1)
    first, again, same, other = (made.versions(x) for made in (model, model, ensemble(seed=1), ensemble(seed=2)))
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(first, again, same, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_logits_are_the_mean_over_the_versions():
    net = network(4)
    x, _ = images(net)
    model = ensemble(net)
    assert isinstance(model, Ensembled)
    with torch.no_grad():
        expected = torch.stack([net(version) for version in model.versions(x)]).mean(0)
        assert torch.allclose(model(x), expected, atol=1e-6) and not torch.allclose(model(x), net(x), atol=1e-2)
        assert torch.equal(ensemble(net, crops=0, flip=False)(x), net(x))


def test_an_attack_that_knows_of_the_ensemble_breaks_more():
    net = network(4)
    model = ensemble(net)
    x, y = images(model, n=200)
    blind = attack(model, x, y, "linf:0.01", attack="pgd", victim=net)[0]["broken"]
    adaptive = attack(model, x, y, "linf:0.01", attack="pgd")[0]["broken"]
    assert 0 < blind.sum() < adaptive.sum() < 200


def test_the_stage_attacks_the_defended_model_through_the_defence_or_without_it(tmp_path):
    model, x, y = save_victim(tmp_path)
    tte = DefendOptions.of(defence="tte", crops=2, pad=2)
    ledgers = {
        adaptive: stage(tmp_path, f"{adaptive}.h5", attack="pgd", threat="linf:2/255", defence=tte, adaptive=adaptive)
        for adaptive in (True, False)
    }
    assert ledgers[True].broken.sum() >= ledgers[False].broken.sum()
    assert not np.array_equal(ledgers[True].margin, ledgers[False].margin)
    defended = ensemble(model, crops=2, pad=2)
    for adaptive, ledger in ledgers.items():
        kept = read_ledger(tmp_path / f"{adaptive}.h5")
        assert kept.defence == "tte"
        assert kept.defence_options == {"defence": "tte", "flip": True, "crops": 2, "pad": 2}
        assert kept.options.get("adaptive", True) is adaptive
        with torch.no_grad():
            assert np.array_equal(ledger.clean_prediction, defended(x).argmax(1))
        assert np.array_equal(replay(defended, x, y, kept), kept.broken)
