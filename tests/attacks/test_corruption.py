"""Common corruptions: fifteen kinds and five severities, judged image by image whatever the clean verdict."""

from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, load_sample_image
from support.attacked import attack, images, key, network
from torch import Tensor, nn

from dfshield import registry
from dfshield.attacks.corruption import CORRUPTIONS, corrupted
from dfshield.core.errors import InputError
from dfshield.evaluation.verdict import replay
from dfshield.options import AttackOptions
from dfshield.options.attacks_corruption import Corruption, CorruptionName
from dfshield.planning.choices import parse
from dfshield.registry.attacks import EVERYWHERE
from dfshield.registry.metrics import CORRUPTIONS as TITLES

ELASTIC = "elastic-transform"  # severities of which are different bends, not stronger ones


def photographs(side: int = 32) -> Tensor:
    """Crops of scikit-learn's photographs (N,3,side,side)."""
    picture = torch.tensor(np.array(load_sample_image("china.jpg"))).permute(2, 0, 1) / 255
    crops = [picture[:, top : top + 192, left : left + 192] for top in (60, 200) for left in (0, 200, 400)]
    return torch.nn.functional.interpolate(torch.stack(crops), side, mode="area")


def changed(x: Tensor, **options) -> list[float]:
    return [float((corrupted(image, Corruption(**options)) - image).abs().mean()) for image in x]


def test_the_kinds_have_options_protocols_and_titles():
    assert [*CORRUPTIONS, "all"] == list(get_args(CorruptionName)) and list(CORRUPTIONS) == list(TITLES)
    assert len(CORRUPTIONS) == 15 and all(len(kind.severities) == 5 for kind in CORRUPTIONS.values())


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (3, 28, 28), (1, 9, 6), (2, 40, 33), (1, 1, 1), (3, 2, 5)])
@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_any_image_stays_an_image(kind, shape):
    for x in (torch.rand(shape, generator=key(3)), torch.zeros(shape), torch.ones(shape)):
        for severity in (1, 5):
            found = corrupted(x, Corruption(kind=kind, severity=severity))
            assert found.shape == shape and found.dtype == x.dtype and found.isfinite().all()
            assert (
                torch.allclose(found * 255, (found * 255).round(), atol=1e-4) and 0 <= found.min() <= found.max() <= 1
            )


@pytest.mark.parametrize("kind", [kind for kind in CORRUPTIONS if kind not in (ELASTIC, "glass-blur", "frost")])
def test_a_higher_severity_changes_more(kind):
    x = photographs()
    means = [np.mean(changed(x, kind=kind, severity=severity)) for severity in range(1, 6)]
    assert means[0] > 0.002 and means[-1] > 1.2 * means[0], means


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_every_kind_changes_digits(kind):
    x = torch.tensor(load_digits().images[:8] / 16).float()[:, None]
    largest = max(np.mean(changed(x, kind=kind, severity=severity)) for severity in (1, 5))
    assert 0.01 < largest < 0.4 or kind == "defocus-blur"  # a blur of a third of a pixel and less


@pytest.mark.parametrize("kind", ["defocus-blur", "glass-blur", "motion-blur", "zoom-blur", "pixelate", ELASTIC])
def test_what_moves_light_leaves_a_flat_image_alone(kind):
    for value in (0.0, 0.4, 1.0):
        x = torch.full((3, 32, 32), value)
        for severity in range(1, 6):
            assert (corrupted(x, Corruption(kind=kind, severity=severity)) - x).abs().max() <= 0.5 / 255 + 1e-6


def test_values_by_hand():
    x = torch.tensor([[[0.2, 0.6]], [[0.4, 0.0]], [[0.1, 0.3]]])  # (3,1,2)
    raised = corrupted(x, Corruption(kind="brightness", severity=3))  # the value 0.4 to 0.55, 0.6 to 0.75
    expected = torch.tensor([[[0.2 * 0.55 / 0.4, 0.75]], [[0.55, 0.0]], [[0.1 * 0.55 / 0.4, 0.3 * 0.75 / 0.6]]])
    assert torch.allclose(raised, expected, atol=0.5 / 255 + 1e-6)
    pale = corrupted(x, Corruption(kind="contrast", severity=2))  # half of the way to the channel's mean
    expected = torch.tensor([[[0.3, 0.5]], [[0.3, 0.1]], [[0.15, 0.25]]])
    assert torch.allclose(pale, expected, atol=0.5 / 255 + 1e-6)


def test_noise_has_the_stated_strength():
    grey = torch.full((3, 200, 200), 0.5)
    for severity, (deviation, photons, share) in enumerate(
        ((0.04, 500, 0.01), (0.06, 250, 0.02), (0.08, 100, 0.03), (0.09, 75, 0.05), (0.10, 50, 0.07)), start=1
    ):
        noise = corrupted(grey, Corruption(kind="gaussian-noise", severity=severity)) - grey
        assert float(noise.std()) == pytest.approx(deviation, rel=0.02)
        shot = corrupted(grey, Corruption(kind="shot-noise", severity=severity)) - grey
        assert float(shot.std()) == pytest.approx((0.5 / photons) ** 0.5, rel=0.02)
        hit = corrupted(grey, Corruption(kind="impulse-noise", severity=severity))
        for value in (0, 1):
            assert float((hit == value).float().mean()) == pytest.approx(share / 2, rel=0.1)


def test_lengths_scale_with_the_image():
    """A blur spreads a point over the same share of an image of twice the size."""
    spreads = []
    for side in (32, 64):
        x = torch.zeros((1, side, side))
        half, dot = side // 2, side // 32
        x[:, half : half + dot, half : half + dot] = 1
        found = corrupted(x, Corruption(kind="defocus-blur", severity=5))[0]
        place = torch.arange(side) / side
        rows = found.sum(1) / found.sum()
        spreads.append(float((rows * (place - (rows * place).sum()) ** 2).sum()) ** 0.5)
    assert spreads[1] == pytest.approx(spreads[0], rel=0.1)


def test_draws_are_by_seed_and_content():
    x = photographs()[:2]
    one, again, other = (corrupted(x[0], Corruption(kind="snow", severity=3, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)
    noise = [corrupted(image, Corruption(kind="gaussian-noise", severity=1)) - image for image in (x[0], x[0] * 0.5)]
    assert (noise[0] - noise[1]).abs().max() > 0.05
    flat = torch.full((1, 16, 16), 0.5)
    shifted = [flat + place / 1000 for place in range(200)]
    gains = {round(20 * float(corrupted(s, Corruption(kind="brightness")).mean() - s.mean())) for s in shifted}
    assert gains == {1, 2, 3, 4, 6}  # all five severities, in twentieths
    kinds = {tuple(np.sign(corrupted(s, Corruption(severity=5)).flatten().numpy() - 0.5)) for s in shifted}
    assert len(kinds) > 30  # the default draws the kind, too


class Brightest(nn.Module):
    """Class 1 where the mean is above one half, else 0."""

    def __init__(self) -> None:
        super().__init__()
        self.limit = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        score = x.flatten(1).mean(1) - self.limit
        return torch.stack((-score, score), 1)


def test_an_image_is_judged_in_its_new_form_alone():
    """Brightness turns the dark image bright: a verdict that was right is wrong then, and the other way around."""
    x = torch.tensor([0.1, 0.4, 0.4, 0.8]).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()
    y = torch.tensor([0, 0, 1, 0])
    rows, flags = attack(Brightest(), x, y, EVERYWHERE, attack="corruption", kind="brightness", severity=3)
    assert rows["clean_prediction"].tolist() == [0, 0, 0, 1]
    assert rows["prediction"].tolist() == [0, 1, 1, 1]
    assert rows["broken"].tolist() == [False, True, False, True]
    assert rows["component"].tolist() == [0, 2, 0, 2] and rows["perturbed_index"].tolist() == [1, 3]
    assert np.allclose(rows["perturbation"], 0.15, atol=2e-3)
    assert np.allclose(rows["margin"], [2 * 0.25, -2 * 0.05, 2 * 0.05, -2 * 0.45], atol=5e-3)
    assert flags == ()


def test_every_model_sees_the_same_images_in_chunks_of_any_size():
    x, y = images(network(4), n=24)
    found = []
    for chunk, seed in ((24, 0), (5, 0), (24, 1)):
        net = network(4, seed=0)
        found.append(attack(net, x, y, EVERYWHERE, attack="corruption", chunk=chunk, seed=seed)[0])
    assert np.array_equal(found[0]["broken"], found[1]["broken"])
    assert np.array_equal(found[0]["perturbation"], found[1]["perturbation"])
    assert not np.array_equal(found[0]["margin"], found[2]["margin"])


def test_what_a_corruption_is_no_attack_for_is_refused(tmp_path):
    with pytest.raises(InputError, match="bounded by no ε, but threat is linf:8/255; give linf:1"):
        Corruption(threat="linf:8/255").check_needs()
    with pytest.raises(InputError, match="works within linf, but threat is l2:1"):
        Corruption(threat="l2:1").check_needs()
    with pytest.raises(ValueError, match=r"protocols.snow.threat: attack corruption is bounded by no ε; take it out"):
        parse({"attack": "corruption", "threat": "linf:8/255"}, "protocols", "protocols.snow")
    assert parse({"attack": "corruption"}, "protocols", "protocols.snow").threat == EVERYWHERE
    assert AttackOptions.of(attack="corruption").threat == EVERYWHERE


def test_a_ledger_of_corruptions_is_not_replayed():
    ledger = SimpleNamespace(options={"attack": "corruption"}, protocol="snow")
    with pytest.raises(InputError, match="snow: its images are replaced"):
        replay(nn.Identity(), torch.zeros(1), torch.zeros(1), ledger)


def test_only_corruptions_replace():
    assert [name for name, entry in registry.ATTACKS.items() if entry.replaces] == ["corruption"]
