"""Random views of images in a synthesis: what is shown at a step, and that it depends on the group alone."""

import numpy as np
import pytest
import torch
from support import tiny

from dfshield.core.rng import generator
from dfshield.options.sources import Inversion
from dfshield.sources import inversion
from dfshield.sources.inversion import ModelInversion, varied

OPTIONS = Inversion(device="cpu", images=40, batch=10, group=2, iterations=4, labels="random", vary=True)


def ramps(n: int = 64, side: int = 32) -> torch.Tensor:
    """Images (n,2,side,side): the first channel grows from left to right, the second from top to bottom."""
    line = torch.arange(side, dtype=torch.float32)
    return torch.stack([line.expand(side, side), line.view(-1, 1).expand(side, side)]).repeat(n, 1, 1, 1)


def made(**changes) -> ModelInversion:
    return ModelInversion(tiny.classifier(), tiny.SHAPE, tiny.CLASSES, OPTIONS.model_copy(update=changes))


def test_every_image_is_seen_in_a_way_of_its_own_within_the_stated_range():
    seen = varied(ramps(), generator("views"))
    middle = seen[:, :, 12:20, 12:20]  # far from the reflected border
    right, down = middle.diff(dim=3).mean((2, 3)), middle.diff(dim=2).mean((2, 3))
    scale = (right[:, 0].square() + right[:, 1].square()).sqrt()
    assert 0.6 - 1e-3 <= scale.min() < 0.65 and 1.05 < scale.max() <= 1.1 + 1e-3
    angle = torch.atan2(right[:, 1], right[:, 0].abs()).abs()
    assert 0.15 < angle.max() <= 0.2 + 1e-3
    assert (down[:, 1] > 0).all()  # never upside down
    assert 0.3 < (right[:, 0] < 0).float().mean() < 0.7  # mirrored or not
    centre = seen[:, :, 15:17, 15:17].mean((2, 3)) - 15.5
    assert 3.5 < centre.abs().max() <= 4 + 1e-3  # a quarter of half a side
    assert len(torch.unique(centre[:, 0])) == 64


def test_the_same_draws_give_the_same_views_and_gradients_reach_the_pixels():
    images = torch.rand((3, 1, 8, 8), generator=generator("images"), requires_grad=True)
    one, other = (varied(images, generator("views")) for _ in range(2))
    assert torch.equal(one, other)
    assert not torch.allclose(one, varied(images, generator("other views")))
    (gradient,) = torch.autograd.grad(one.sum(), images)
    assert gradient.abs().sum() > 0


def test_a_synthesis_shows_new_views_at_every_step(monkeypatch):
    shown = []
    monkeypatch.setattr(inversion, "varied", lambda x, random: shown.append(varied(x, random)) or shown[-1])
    asked = []
    still = made(lr=1e-30)
    plain = still.objective
    still.objective = lambda z, labels, k: asked.append(z.detach().clone()) or plain(z, labels, k)
    still.group(0)
    assert len(shown) == len(asked) == OPTIONS.iterations
    assert all(torch.equal(view, z) for view, z in zip(shown, asked, strict=True))
    assert not torch.allclose(shown[0], shown[1])


def test_views_change_the_images():
    assert not np.allclose(made().group(1)["images"], made(vary=False).group(1)["images"])


def test_a_group_has_the_same_views_whatever_came_before():
    after_another = made()
    after_another.group(0)
    assert np.array_equal(after_another.group(1)["images"], made().group(1)["images"])


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 6, 5)])
def test_views_have_the_size_of_the_images(shape):
    assert varied(torch.rand((2, *shape)), generator("views")).shape == (2, *shape)
