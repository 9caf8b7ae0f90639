"""Random variation of training images, and teacher logits of what they have become."""

import math

import pytest
import torch
from support import tiny
from support.training import make, quick

from dfshield.core.rng import generator
from dfshield.training.augment import augment


@pytest.mark.parametrize(("contrast", "noise"), [(0.3, 0), (0, 0.1), (0.3, 0.1), (0, 0)])
def test_variation_of_images(contrast, noise):
    x = torch.full((400, 1, 4, 4), 0.5)
    options = quick(contrast=contrast, noise=noise)
    found = augment(x, options, generator("a"))
    assert options.varies == bool(contrast or noise)
    assert torch.equal(found, augment(x, options, generator("a"))) and (options.varies or torch.equal(found, x))
    factors = found.mean((1, 2, 3)) / 0.5  # one for each image, U(1-contrast, 1+contrast)
    assert float(factors.std()) == pytest.approx(math.hypot(contrast / math.sqrt(3), noise / 2), abs=0.02)
    assert float(found.std(dim=(2, 3)).mean()) == pytest.approx(noise, abs=0.01)
    bright = augment(x + 0.5, options, generator("a"))
    assert float(bright.min()) >= 0 and float(bright.max()) == 1
    if contrast and not noise:
        assert float(factors.min()) == pytest.approx(0.7, abs=0.01) and float(factors.max()) == pytest.approx(
            1.3, abs=0.01
        )


def test_half_of_the_images_are_mirrored():
    x = torch.rand(400, 1, 4, 4)
    options = quick(flip=True)
    found = augment(x, options, generator("a"))
    kept = (found == x).flatten(1).all(1)
    assert options.varies
    assert torch.equal(found[~kept], x[~kept].flip(3))
    assert 160 < int(kept.sum()) < 240


def test_whole_images_are_moved_and_zeros_fill_in():
    images = torch.rand(64, 2, 16, 16) + 0.1
    options = quick(translate=True)
    moved = augment(images, options, generator("a"))
    assert options.varies
    offsets = set()
    for before, after in zip(images, moved, strict=True):
        rows, columns = (after[0] > 0).any(1).nonzero().flatten(), (after[0] > 0).any(0).nonzero().flatten()
        top, left, height, width = int(rows[0]), int(columns[0]), len(rows), len(columns)
        dy = top or height - 16
        dx = left or width - 16
        expected = torch.zeros_like(before)
        expected[:, max(dy, 0) : 16 + min(dy, 0), max(dx, 0) : 16 + min(dx, 0)] = before[
            :, max(-dy, 0) : 16 - max(dy, 0), max(-dx, 0) : 16 - max(dx, 0)
        ]
        assert torch.equal(after, expected)
        offsets.add((dy, dx))
    assert {dy for dy, _ in offsets} == {dx for _, dx in offsets} == {-2, -1, 0, 1, 2}


@pytest.mark.parametrize("loss", ["dfshield", "uat", "gradient-penalty"])
def test_the_teacher_is_asked_about_the_varied_images(loss):
    made, seen = make(quick(loss=loss, contrast=0.3, noise=0.1)), []
    genuine = made._outer
    made._outer = lambda *parts: seen.append(parts) or genuine(*parts)
    made.gradients(torch.arange(10), generator("a"))
    ((x, adversarial, targets, labels, *_),) = seen
    assert torch.equal(x, augment(made.images[:10], made.options, generator("a")))
    torch.testing.assert_close(targets, tiny.classifier()(x).detach(), rtol=1e-4, atol=1e-4)
    assert float((targets - made.targets[:10]).abs().max()) > 0.01
    assert torch.equal(labels, targets.argmax(1) if loss == "uat" else made.labels[:10])
    if adversarial is not None:
        assert float((adversarial - x).abs().max()) <= 8 / 255 + 1e-6
