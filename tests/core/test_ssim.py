"""Structural similarity: closed forms, and its definition written out."""

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from support.attacked import key

from dfshield.core.ssim import C1, C2, ssim


def by_hand(x: np.ndarray, y: np.ndarray, side: int) -> float:
    """Eq 13 of Wang et al. 2004, window by window."""
    found = []
    for c in range(x.shape[0]):
        for top in range(x.shape[1] - side + 1):
            for left in range(x.shape[2] - side + 1):
                a = x[c, top : top + side, left : left + side]
                b = y[c, top : top + side, left : left + side]
                means, both = (2 * a.mean() * b.mean() + C1), (2 * np.mean((a - a.mean()) * (b - b.mean())) + C2)
                found.append(means * both / ((a.mean() ** 2 + b.mean() ** 2 + C1) * (a.var() + b.var() + C2)))
    return float(np.mean(found))


@pytest.mark.parametrize("shape, side", [((3, 12, 9), 7), ((1, 8, 8), 7), ((2, 6, 10), 5), ((1, 1, 4), 1)])
def test_it_is_its_definition(shape, side):
    x, y = torch.rand((2, 4, *shape), generator=key())
    expected = [by_hand(a.double().numpy(), b.double().numpy(), side) for a, b in zip(x, y, strict=True)]
    torch.testing.assert_close(ssim(x, y), torch.tensor(expected))


def test_closed_forms():
    x = torch.rand((5, 3, 16, 16), generator=key())
    torch.testing.assert_close(ssim(x, x), torch.ones(5))
    assert (ssim(x, 1 - x) < -0.5).all()
    a, b = torch.full((1, 1, 9, 9), 0.2), torch.full((1, 1, 9, 9), 0.6)
    torch.testing.assert_close(ssim(a, b), torch.tensor([(0.24 + C1) / (0.4 + C1)]), rtol=1e-4, atol=0)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 28, 28), (3, 9, 5)])
def test_it_is_that_of_scikit_image(shape):
    a, b = torch.rand((2, *shape), generator=key(1)).double()
    side = min(7, *shape[1:])
    expected = structural_similarity(
        a.numpy(), b.numpy(), win_size=side, data_range=1, use_sample_covariance=False, channel_axis=0
    )
    torch.testing.assert_close(ssim(a[None], b[None]), torch.tensor([expected]), rtol=1e-6, atol=1e-8)
