"""Defences that squeeze, filter, compress or reconstruct pixels: what they make of images, and their gradients."""

import io
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from scipy.ndimage import median_filter
from scipy.optimize import minimize
from support.attacked import images, key, network

from dfshield import registry
from dfshield.defences.defence import Transformation
from dfshield.defences.total_variation import reconstructed
from dfshield.options import DefendOptions

NAMES = ("bit-depth", "median", "jpeg", "total-variation")


def defence(name: str, **options) -> Transformation:
    return registry.DEFENCES[name].load()(DefendOptions.of(defence=name, **options))


def transformed(x: torch.Tensor, name: str, seed: int = 0, **options) -> torch.Tensor:
    return defence(name, **options).transform(x, key(seed))


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=key(seed))


# All of them


@pytest.mark.parametrize("shape", [(2, 1, 1, 1), (2, 1, 8, 8), (1, 3, 9, 6), (1, 3, 1, 5), (3, 2, 5, 5)])
@pytest.mark.parametrize("name", NAMES)
def test_images_keep_their_form_and_their_range(name, shape):
    x = noise(*shape)
    found = transformed(x, name)
    assert found.shape == x.shape and found.dtype == x.dtype and found.min() >= 0 and found.max() <= 1
    assert torch.equal(x, noise(*shape))


@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (1, 3, 9, 6)])
@pytest.mark.parametrize("value", [0.0, 1.0, 0.2])
@pytest.mark.parametrize("name", NAMES)
def test_a_constant_image_stays_what_it_is(name, value, shape):
    torch.testing.assert_close(transformed(torch.full(shape, value), name), torch.full(shape, value), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_surrogate_has_the_gradient_of_the_network_where_the_transformed_image_is(name):
    net = network(10)
    x, seen = images(net, 4)[0].requires_grad_(), []
    net.register_forward_pre_hook(lambda module, given: seen.append(given[0].detach().clone()))
    (found,) = torch.autograd.grad(defence(name).surrogate(net)(x).square().sum(), x)
    there = seen[0].requires_grad_()
    (gradient,) = torch.autograd.grad(net(there).square().sum(), there)
    (elsewhere,) = torch.autograd.grad(net(x).square().sum(), x)
    assert torch.equal(found, gradient) and not torch.allclose(gradient, elsewhere)
    assert defence(name).draws or torch.equal(there, transformed(x, name))


@pytest.mark.parametrize(
    ("name", "option", "values"),
    [
        ("bit-depth", "bits", (0, 9)),
        ("median", "window", (0,)),
        ("jpeg", "quality", (0, 101)),
        ("total-variation", "keep", (0, 1.1)),
        ("total-variation", "weight", (0, -1)),
        ("total-variation", "steps", (0,)),
    ],
)
def test_options_out_of_bounds_are_refused(name, option, values):
    for value in values:
        with pytest.raises(ValidationError, match=option):
            DefendOptions.of(defence=name, **{option: value})


# Bit depth


@pytest.mark.parametrize(
    ("bits", "found"),
    [
        (1, [0, 0, 0, 1, 1, 1]),
        (2, [0, 0, 1 / 3, 2 / 3, 1, 1]),
        (4, [0, 2 / 15, 6 / 15, 8 / 15, 13 / 15, 1]),
        (8, [0, 26 / 255, 102 / 255, 140 / 255, 217 / 255, 1]),
    ],
)
def test_pixels_are_rounded_to_levels_of_the_bits(bits, found):
    x = torch.tensor([0, 0.1, 0.4, 0.55, 0.85, 1]).view(1, 1, 2, 3)
    torch.testing.assert_close(transformed(x, "bit-depth", bits=bits).flatten(), torch.tensor(found, dtype=x.dtype))


def test_four_bits_leave_sixteen_values_and_eight_bits_leave_an_image_as_it_is():
    x = torch.linspace(0, 1, 256).view(1, 1, 16, 16)
    assert len(transformed(x, "bit-depth").unique()) == 16
    torch.testing.assert_close(transformed(x, "bit-depth", bits=8), x)


# Median


@pytest.mark.parametrize("window", [1, 2, 3, 4, 5, 11])
@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (1, 3, 9, 6), (1, 1, 1, 1), (1, 2, 1, 3)])
def test_the_filter_is_the_one_of_scipy(shape, window):
    x = noise(*shape)
    expected = median_filter(x.numpy(), size=(1, 1, window, window), mode="reflect")
    assert torch.equal(transformed(x, "median", window=window), torch.from_numpy(expected))


def test_a_window_of_two_takes_the_third_of_four_pixels_up_and_left():
    x = torch.tensor([[0.1, 0.9, 0.3], [0.5, 0.2, 0.8]])[None, None]
    found = torch.tensor([[0.1, 0.9, 0.9], [0.5, 0.5, 0.8]])[None, None]
    assert torch.equal(transformed(x, "median"), found)


# JPEG


def by_pillow(levels: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(levels, {2: "L", 3: "RGB"}[levels.ndim]).save(file, format="JPEG", quality=quality)
    assert file.getvalue()[:2] == b"\xff\xd8"
    return np.array(Image.open(file))


@pytest.mark.parametrize("quality", [1, 75, 100])
def test_colours_are_compressed_together_and_other_channels_each_by_itself(quality):
    draw = np.random.default_rng(0)
    levels = draw.integers(0, 256, (2, 4, 9, 6), dtype=np.uint8)
    x = torch.from_numpy(((levels + draw.uniform(-0.4, 0.4, levels.shape)) / 255).clip(0, 1)).float()
    for channels in (1, 2, 3, 4):
        found = transformed(x[:, :channels], "jpeg", quality=quality)
        for image, made in zip(levels[:, :channels], (found * 255).numpy(), strict=True):
            if channels == 3:
                expected = by_pillow(np.ascontiguousarray(image.transpose(1, 2, 0)), quality).transpose(2, 0, 1)
            else:
                expected = np.stack([by_pillow(channel, quality) for channel in image])
            np.testing.assert_allclose(made, expected, atol=1e-3)


def test_a_lower_quality_is_further_from_the_image():
    x = noise(1, 3, 16, 16)
    distances = [float((transformed(x, "jpeg", quality=quality) - x).norm()) for quality in (95, 75, 30, 5)]
    assert distances == sorted(set(distances))
    assert torch.equal(transformed(x, "jpeg"), transformed(x, "jpeg", quality=75))


# Total variation


def objective(z: np.ndarray, x: np.ndarray, kept: np.ndarray, weight: float) -> float:
    """½‖kept·(z - x)‖² + weight·TV_2(z) of one channel (H,W)."""
    rows = sum(float(np.linalg.norm(z[i] - z[i - 1])) for i in range(1, z.shape[0]))
    columns = sum(float(np.linalg.norm(z[:, j] - z[:, j - 1])) for j in range(1, z.shape[1]))
    return 0.5 * float((kept * (z - x) ** 2).sum()) + weight * (rows + columns)


def channel(side: tuple[int, int] = (5, 4)) -> tuple[np.ndarray, np.ndarray]:
    """A channel and the pixels of it that are kept."""
    draw = np.random.default_rng(0)
    return draw.random(side), (draw.random(side) < 0.5).astype(float)


def after(steps: int, weight: float, x: np.ndarray, kept: np.ndarray) -> np.ndarray:
    given = (torch.tensor(array, dtype=torch.float64)[None, None] for array in (x, kept))
    return reconstructed(*given, weight, steps)[0, 0].numpy()


@pytest.mark.parametrize(("weight", "enough"), [(0.03, 50), (0.1, 700)])
def test_the_objective_falls_at_every_step_to_the_minimum(weight, enough):
    x, kept = channel()
    values = [objective(after(steps, weight, x, kept), x, kept, weight) for steps in [*range(30), enough]]
    assert all(later <= before + 1e-6 for before, later in pairwise(values))
    best = minimize(lambda z: objective(z.reshape(x.shape), x, kept, weight), x.flatten(), method="L-BFGS-B").fun
    assert best < 0.8 * values[0] and values[-1] < 1.01 * best


def test_a_dropped_pixel_between_equals_becomes_one_of_them():
    x = torch.full((1, 1, 5, 5), 0.4)
    x[..., 2, 2] = 1
    kept = torch.ones_like(x)
    torch.testing.assert_close(reconstructed(x, kept, 0.03, 1)[..., 2, 2], x[..., 2, 2], rtol=0, atol=0.1)
    kept[..., 2, 2] = 0
    torch.testing.assert_close(reconstructed(x, kept, 0.03, 50), torch.full_like(x, 0.4))


def test_kept_pixels_stay_close_and_dropped_ones_have_no_say():
    x, kept = channel((8, 8))
    found = after(50, 0.03, x, kept)
    assert np.abs(found - x)[kept == 1].max() < 0.15 and np.abs(found - x)[kept == 0].max() > 0.3
    other = np.where(kept == 1, x, 1 - x)
    np.testing.assert_array_equal(after(50, 0.03, other, kept), found)


def test_channels_far_from_any_kept_pixel_start_at_their_mean_and_without_one_are_black():
    x, kept = torch.zeros(1, 2, 7, 7), torch.zeros(1, 2, 7, 7)
    x[:], x[0, 0, 0, 0], kept[0, 0, 0, 0] = 0.9, 0.6, 1
    found = reconstructed(x, kept, 0.03, 10)
    torch.testing.assert_close(found[0, 0], torch.full((7, 7), 0.6))
    assert (found[0, 1] == 0).all()


def test_half_of_the_pixels_are_kept_by_the_draws_of_the_generator():
    x = noise(1, 3, 16, 16)
    for keep in (0.1, 0.5, 1.0):
        change = transformed(x, "total-variation", keep=keep, weight=1e-9, steps=1) - x
        assert float((change.abs() < 1e-6).float().mean()) == pytest.approx(keep, abs=0.06)
    first = transformed(x, "total-variation")
    assert torch.equal(first, transformed(x, "total-variation"))
    assert not torch.equal(first, transformed(x, "total-variation", seed=1))


def test_nothing_of_the_reconstruction_is_left_in_the_graph():
    x = noise(1, 1, 8, 8).requires_grad_()
    assert not transformed(x, "total-variation").requires_grad
    with torch.no_grad():
        assert torch.equal(transformed(x, "total-variation"), transformed(x.detach(), "total-variation"))
