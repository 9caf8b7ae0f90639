"""Mixup and CutMix of a mini-batch: by hand, by their distributions, and in training."""

import math

import pytest
import torch
from support import tiny
from support.training import QUICK, make, quick

from dfshield.core.rng import generator
from dfshield.options import TrainOptions
from dfshield.planning import arithmetic
from dfshield.sources import augmentation
from dfshield.training.augment import augment

BATCH = torch.arange(64.0).view(2, 2, 4, 4) / 64
"""Two images of two channels and 4x4 pixels, of which no two are alike."""
BOTH = pytest.mark.parametrize("mix", ["mixup", "cutmix"])


def partners(n):
    """The permutation that is drawn first."""
    return torch.randperm(n, generator=generator("a"))


def mixed(mix: str, images: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    return augment(images, quick(mix=mix), random)


def draw(monkeypatch, partner, foreign) -> None:
    """Have the images numbered `partner` drawn as the others, and their shares `foreign`."""
    monkeypatch.setattr(torch, "randperm", lambda n, generator: torch.as_tensor(partner))
    monkeypatch.setattr(augmentation, "_beta", lambda *_: 1 - torch.as_tensor(foreign))


def test_mixup_by_hand(monkeypatch):
    draw(monkeypatch, [1, 0], [0.75, 0.125])
    made = augment(BATCH, quick(mix="mixup"), generator("a"))
    torch.testing.assert_close(made[0], 0.25 * BATCH[0] + 0.75 * BATCH[1])
    torch.testing.assert_close(made[1], 0.875 * BATCH[1] + 0.125 * BATCH[0])


def test_cutmix_by_hand(monkeypatch):
    """1-λ = 9/16 is a box of 3 by 3, which begins one pixel before its centre; 1/4 is one of 2 by 2."""
    places = iter([[1, 3], [1, 0]])  # rows of both images, then columns
    draw(monkeypatch, [1, 0], [9 / 16, 1 / 4])
    monkeypatch.setattr(torch, "randint", lambda high, size, generator: torch.tensor(next(places)))
    made = augment(BATCH, quick(mix="cutmix"), generator("a"))
    expected = BATCH.clone()
    expected[0, :, 0:3, 0:3] = BATCH[1, :, 0:3, 0:3]
    expected[1, :, 2:4, 0:1] = BATCH[0, :, 2:4, 0:1]  # cut off at the border
    assert torch.equal(made, expected)


def test_each_image_has_its_own_share_of_mixup():
    n = 2000
    values = torch.rand(n, generator=generator("values"))
    made = mixed("mixup", values.view(n, 1, 1, 1).expand(n, 3, 2, 2), generator("a"))
    assert (made.flatten(1) == made[:, :1, 0, 0]).all()  # one share for all of an image's pixels
    distance = values[partners(n)] - values
    clear = distance.abs() > 0.1
    shares = ((made[:, 0, 0, 0] - values) / distance)[clear]
    assert 0 <= float(shares.min()) < 0.01 and 0.99 < float(shares.max()) <= 1
    assert float(shares.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(shares.std()) == pytest.approx(1 / math.sqrt(12), abs=0.02)
    assert len(shares.unique()) > 0.99 * len(shares)


def test_each_image_has_its_own_box_of_its_partner():
    n, length = 2000, 16
    images = torch.arange(float(n)).view(n, 1, 1, 1).expand(n, 3, length, length) / n
    made = mixed("cutmix", images, generator("a"))
    foreign = made != images
    assert torch.equal(made, torch.where(foreign, images[partners(n)], images))
    boxes = foreign.all(1)
    assert (foreign.any(1) == boxes).all()  # the same in all channels
    height, width = boxes.any(2).sum(1), boxes.any(1).sum(1)
    assert (boxes.sum((1, 2)) == height * width).all()  # one rectangle
    assert boxes.any(0).all()  # every pixel may be in it
    edges = (boxes[:, 0].any(1), boxes[:, -1].any(1), boxes[:, :, 0].any(1), boxes[:, :, -1].any(1))
    inner = ~torch.stack(edges).any(0) & (height > 0)
    assert int(inner.sum()) > 100 and (height == width)[inner].all()  # squares, if not cut off
    assert height[inner].unique().tolist() == list(range(1, length - 1))
    places = torch.stack([boxes.any(2).float().argmax(1), boxes.any(1).float().argmax(1)], 1)[inner]
    assert len(places.unique(dim=0)) > 50


def test_boxes_have_the_share_of_the_area(monkeypatch):
    """Shares of 1/8, 2/8, ... in the middle of the image, where nothing is cut off."""
    weight, length = torch.arange(1, 9) / 8, 64
    draw(monkeypatch, torch.arange(8).roll(1), weight)
    monkeypatch.setattr(torch, "randint", lambda high, size, generator: torch.full(size, high // 2))
    images = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 1, length, length) / 8
    share = (mixed("cutmix", images, generator("a")) != images).float().mean((1, 2, 3))
    torch.testing.assert_close(share, weight, atol=2 / length, rtol=0)


@BOTH
def test_an_image_mixed_with_itself_is_as_it_was(mix):
    images = torch.rand(30, 3, 5, 5, generator=generator("images"))
    for number, image in enumerate(images.split(1)):
        assert torch.equal(augment(image, quick(mix=mix), generator(number)), image)
    same = images[:1].expand(20, -1, -1, -1)
    assert torch.equal(augment(same, quick(mix=mix), generator("a")), same)


@BOTH
def test_mixtures_lie_between_their_images_and_are_drawn_anew(mix):
    images = torch.rand(200, 3, 8, 8, generator=generator("images"))
    images = torch.where(images < 0.2, 0.0, torch.where(images > 0.8, 1.0, images))
    before = images.clone()
    made = augment(images, quick(mix=mix), generator("a"))
    others = images[partners(200)]
    assert torch.equal(images, before) and made.shape == images.shape and made.dtype == images.dtype
    assert float(made.min()) >= 0 and float(made.max()) <= 1
    assert (made >= torch.minimum(images, others) - 1e-6).all() and (made <= torch.maximum(images, others) + 1e-6).all()
    assert int((made != images).flatten(1).any(1).sum()) > 180
    assert torch.equal(made, augment(images, quick(mix=mix), generator("a")))
    assert not torch.equal(made, augment(images, quick(mix=mix), generator("b")))


@BOTH
def test_other_augmentations_come_before_and_after(mix):
    images, random = torch.rand(20, 1, 16, 16, generator=generator("images")), generator("a")
    made = augment(images, quick(flip=True, translate=True, mix=mix, contrast=0.3, noise=0.1), generator("a"))
    expected = augment(images, quick(flip=True, translate=True), random)
    expected = mixed(mix, expected, random)
    assert torch.equal(made, augment(expected, quick(contrast=0.3, noise=0.1), random))


@BOTH
@pytest.mark.parametrize(
    "changes", [{}, {"features": 0.5}, *({"loss": n} for n in ("trades", "uat", "std-soft"))], ids=str
)
def test_the_teacher_is_asked_about_the_mixtures(mix, changes):
    """Its class is the label, also of losses that take the data's."""
    made, seen = make(quick(mix=mix, **changes)), []
    crafted, genuine, craft = [], made._outer, made._craft
    made._outer = lambda *parts: seen.append(parts) or genuine(*parts)
    made._craft = lambda *parts: crafted.append(parts) or craft(*parts)
    made.gradients(torch.arange(10), generator("a"))
    x, adversarial, targets, labels = seen[0][:4]
    assert made.options.varies
    assert torch.equal(x, augment(made.images[:10], made.options, generator("a")))
    assert not torch.equal(x, made.images[:10])
    torch.testing.assert_close(targets, tiny.classifier()(x).detach(), rtol=1e-4, atol=1e-4)
    assert torch.equal(labels, targets.argmax(1)) and torch.equal(crafted[0][1], labels)
    assert not torch.equal(labels, made.labels[:10]) or changes.get("loss") == "uat"
    assert float((adversarial - x).abs().max()) <= 8 / 255 + 1e-6


def test_labels_of_the_data_stay_where_nothing_is_mixed():
    made, seen = make(quick(loss="trades", noise=0.1)), []
    genuine = made._outer
    made._outer = lambda *parts: seen.append(parts) or genuine(*parts)
    made.gradients(torch.arange(10), generator("a"))
    assert torch.equal(seen[0][3], made.labels[:10])


def test_no_mixing_changes_nothing():
    assert quick(mix="none").described() == QUICK.described()
    assert "mix" not in QUICK.described()  # students of before the option stay as they are
    assert not QUICK.varies
    assert quick(mix="mixup").described() == QUICK.described() | {"mix": "mixup"}
    random, untouched = generator("a"), generator("a")
    assert augment(BATCH, QUICK, random) is BATCH
    assert torch.equal(random.get_state(), untouched.get_state())
    assert make(quick(mix="none")).epoch(0) == make().epoch(0) != make(quick(mix="mixup")).epoch(0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mix": "cutout"}, "mix"),
        ({"mix": "mixup", "batch": 1, "batchnorm": "eval"}, "mix mixup: batch 1 .*; use batch >= 2 or mix none"),
    ],
)
def test_options_that_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        TrainOptions.of(**values)


@BOTH
def test_the_teachers_passes_are_counted(mix):
    given = {"epochs": 4, "batch": 10, "holdout": 0, "attack_steps": 6}
    plain, mixed = (arithmetic.training_passes(TrainOptions.of(**given, **more), 10) for more in ({}, {"mix": mix}))
    assert mixed - plain == 4 * 10
