"""Geometry of threat models: projections, steps, starts and the stored form of a perturbation."""

import pytest
import torch
from support.attacked import THREATS, key, norms

from dfshield.core.lp import from_half, project, random_start, step, to_half
from dfshield.core.threat import Threat


@pytest.mark.parametrize("threat", THREATS)
def test_projection_and_stored_form_stay_within_eps_and_the_unit_box(threat):
    x = torch.rand((10_000, 1, 4, 4), generator=key(1))
    wild = x + torch.randn(x.shape, generator=key(2))
    for image in (project(x, wild, threat), from_half(x, to_half(x, wild, threat), threat)):
        assert norms(image - x, threat.norm).max() <= threat.eps + 1e-6
        assert image.min() >= 0 and image.max() <= 1


@pytest.mark.parametrize("threat", THREATS)
def test_projection_leaves_points_of_the_ball_alone(threat):
    x = 0.3 + 0.4 * torch.rand((50, 1, 4, 4), generator=key(1))
    inside = random_start(x, threat, key(2))
    assert torch.allclose(project(x, inside, threat), inside, atol=1e-7)


def test_stored_form_restores_corners_of_the_linf_ball_exactly():
    x = torch.rand((2000, 1, 4, 4), generator=key(1))
    threat = Threat("linf", 4 / 255)
    corner = (x + threat.eps * torch.randn(x.shape, generator=key(2)).sign()).clamp(0, 1)
    half = to_half(x, corner, threat)
    assert half.dtype == torch.float16
    assert torch.equal(from_half(x, half, threat), corner)


def test_stored_form_of_pixels_that_are_not_finite_is_no_perturbation():
    x = torch.rand((2, 1, 2, 2), generator=key(1))
    assert not to_half(x, torch.full_like(x, torch.nan), THREATS[0]).any()


@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e-38])
def test_steps_have_their_length_whatever_the_scale_of_the_gradient(scale):
    x, grad = torch.rand((4, 1, 8, 8), generator=key(1)), torch.randn((4, 1, 8, 8), generator=key(2))
    assert torch.allclose(norms(step(x, grad * scale, 0.1, "l2") - x, "l2"), torch.full((4,), 0.1), atol=1e-5)
    assert torch.allclose((step(x, grad * scale, 0.1, "linf") - x).abs(), torch.tensor(0.1), atol=1e-6)
    for norm in ("linf", "l2"):
        assert torch.equal(step(x, torch.zeros_like(x), 0.1, norm), x)


def test_random_starts_fill_the_ball():
    x = torch.full((4000, 1, 4, 4), 0.5)
    noise = random_start(x, Threat("linf", 0.1), key()) - x
    assert noise.abs().max() <= 0.1 + 1e-6 and abs(noise.std() - 0.1 / 3**0.5) < 1e-3
    radius = norms(random_start(x, Threat("l2", 0.4), key()) - x, "l2")
    assert radius.max() <= 0.4 + 1e-6 and abs(radius.mean() - 0.2) < 0.01 and radius.min() < 0.01
    assert abs((random_start(x, Threat("linf", 0.1), key(), "normal") - x).std() - 0.001) < 1e-4
    assert torch.equal(random_start(x, Threat("l2", 0.1), key(3)), random_start(x, Threat("l2", 0.1), key(3)))


L1 = Threat("l1", 1.5)


def test_l1_projection_is_the_nearest_point_of_the_ball():
    """By hand: (3, -1, 0.5) to radius 2 loses one of every entry; and no point of the ball is nearer."""
    x = torch.zeros((1, 1, 1, 3)) + 0.5
    far = x + torch.tensor([3.0, -1, 0.5]).view(1, 1, 1, 3) / 10
    near = project(x, far, Threat("l1", 0.2))
    torch.testing.assert_close(near - x, torch.tensor([0.2, 0.0, 0.0]).view(1, 1, 1, 3))
    x, wild = torch.full((1, 1, 4, 4), 0.5), 0.5 + 0.4 * torch.randn((1, 1, 4, 4), generator=key(1))
    found = project(x, wild, L1)
    assert float((found - x).abs().sum()) == pytest.approx(1.5, abs=1e-5)
    others = project(x.expand(500, -1, -1, -1), random_start(x.expand(500, -1, -1, -1), L1, key(2)), L1)
    assert ((others - wild).flatten(1).norm(dim=1) >= (found - wild).norm() - 1e-6).all()


def test_points_of_the_l1_ball_stay_within_it_and_the_unit_box():
    x = torch.rand((1000, 1, 4, 4), generator=key(1))
    wild = x + torch.randn(x.shape, generator=key(2))
    for image in (project(x, wild, L1), from_half(x, to_half(x, wild, L1), L1), random_start(x, L1, key(3))):
        assert (image - x).flatten(1).abs().sum(1).max() <= 1.5 + 1e-4
        assert image.min() >= 0 and image.max() <= 1


def test_an_l1_step_moves_the_pixels_that_count_most_and_can_move():
    x = torch.full((1, 1, 4, 10), 0.5)
    grad = torch.zeros_like(x)
    grad[0, 0, 0, :4] = torch.tensor([9.0, -5, 4, 1])
    x[0, 0, 0, 0] = 1.0  # cannot grow
    moved = step(x, grad, 0.2, "l1") - x
    assert moved[0, 0, 0, :4].tolist() == pytest.approx([0, -0.1, 0.1, 0]) and float(moved.abs().sum()) == (
        pytest.approx(0.2)
    )
