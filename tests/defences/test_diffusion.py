"""The diffusion process, its samplers and its network, against closed forms."""

import math

import pytest
import torch
from support.attacked import key
from support.purification import lively, nothing
from torch import Tensor

from dfshield.defences.diffusion import SAMPLERS, Process, predicted, reverse
from dfshield.models.unet import UNet, time_embedding

# The process


def test_a_thousand_levels_are_those_of_ddpm_and_of_the_vp_sde():
    process = Process(1000)
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    torch.testing.assert_close(process.beta, beta, rtol=1e-12, atol=0)
    product = 1.0
    for level in range(1001):
        assert float(process.kept[level]) == pytest.approx(product, rel=1e-9)
        product *= 1 - float(beta[level]) if level < 1000 else 1
    s = torch.linspace(0, 1, 1001, dtype=torch.float64)  # ᾱ(s) = exp(-∫β), β from 0.1 to 20
    torch.testing.assert_close(process.kept, torch.exp(-0.1 * s - 0.5 * 19.9 * s**2), rtol=0.12, atol=2e-3)
    assert len(process.kept) == 1001 and float(process.kept[0]) == 1


def test_fewer_levels_are_the_same_process():
    assert float(Process(100).kept[10]) == pytest.approx(float(Process(1000).kept[100]), rel=0.02)
    assert Process(100).time(torch.tensor([10.0])) == 100


def test_noised_images_have_the_variance_of_their_level():
    process = Process(1000)
    levels = torch.tensor([0, 100, 600])
    x = torch.full((3, 1, 200, 200), 0.8)
    noised = process.noised(x, levels, torch.randn(x.shape, generator=key()))
    for image, level in zip(noised, levels.tolist(), strict=True):
        share = float(process.kept[level])
        assert float(image.mean()) == pytest.approx(0.8 * share**0.5, abs=0.02)
        assert float(image.var()) == pytest.approx(1 - share, rel=0.03)
    step = process.noised(noised[1:2], torch.tensor([1]), torch.zeros(1, 1, 200, 200))  # one level keeps 1 - β_1
    torch.testing.assert_close(step, noised[1:2] * (1 - float(process.beta[0])) ** 0.5)


def test_a_path_ends_at_the_image_and_stops_nowhere_twice():
    process = Process(1000)
    assert process.path(0.1, 10) == list(range(100, -1, -10))
    assert process.path(0.47, 1) == [470, 0]
    odd = process.path(0.1, 7)
    assert odd[0] == 100 and odd[-1] == 0 and len(set(odd)) == 8 and odd == sorted(odd, reverse=True)


# Samplers, given the score of N(μ, σ² I)

MU, SIGMA = 0.3, 0.4


def gaussian(process: Process):
    """The denoiser of images ~ N(μ, σ² I): E[e | x_t], of times in units of a thousand levels."""

    def denoise(x: Tensor, time: Tensor) -> Tensor:
        share = process.kept[(time * process.timesteps / 1000).round().long()].to(x).view(-1, 1, 1, 1)
        return (1 - share).sqrt() * (x - share.sqrt() * MU) / (share * SIGMA**2 + 1 - share)

    return denoise


def posterior(x: Tensor, share: float) -> tuple[Tensor, float]:
    """Mean and variance of the image given x_t, by the formula for two Gaussians."""
    precision = 1 / SIGMA**2 + share / (1 - share)
    return (MU / SIGMA**2 + share**0.5 / (1 - share) * x) / precision, 1 / precision


@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_ancestral_steps_without_noise_give_the_exact_posterior_mean(steps):
    process = Process(500)
    x = torch.linspace(-2, 2, 24, dtype=torch.float64).view(2, 1, 3, 4)
    path = process.path(0.4, steps)
    found = reverse(gaussian(process), x, process, path, "ancestral", nothing)
    torch.testing.assert_close(found, posterior(x, float(process.kept[200]))[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("sampler", ["ancestral", "euler"])
def test_many_steps_draw_from_the_posterior(sampler):
    process = Process(1000)
    x = torch.full((1, 1, 100, 100), 0.7, dtype=torch.float64)
    random = key(3)
    found = reverse(
        gaussian(process), x, process, process.path(0.3, 300), sampler,
        lambda like: torch.randn(like.shape, generator=random, dtype=like.dtype),
    )  # fmt: skip
    mean, variance = posterior(x, float(process.kept[300]))
    assert float(found.mean()) == pytest.approx(float(mean.mean()), abs=0.02)
    assert float(found.var()) == pytest.approx(variance, rel=0.06)


def test_steps_of_ddim_follow_the_probability_flow():
    """Along it (x_t - √ᾱ μ) / √(ᾱ σ² + 1 - ᾱ) stays what it is."""
    process = Process(1000)
    x = torch.linspace(-2, 2, 24, dtype=torch.float64).view(2, 1, 3, 4)
    share = float(process.kept[400])
    found = reverse(gaussian(process), x, process, process.path(0.4, 400), "ddim", lambda like: 1 / 0)
    expected = MU + SIGMA * (x - share**0.5 * MU) / (share * SIGMA**2 + 1 - share) ** 0.5
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-3)


def test_a_step_between_neighbours_is_the_published_one():
    """Ho et al., Eq 7 and Algorithm 2, at level 300."""
    process = Process(1000)
    beta, share, before = (float(values) for values in (process.beta[299], process.kept[300], process.kept[299]))
    x, noise = (torch.randn((2, 1, 3, 3), generator=key(i), dtype=torch.float64) for i in range(2))
    mean, deviation = SAMPLERS["ancestral"](x, noise, share, before)
    torch.testing.assert_close(mean, (x - beta / (1 - share) ** 0.5 * noise) / (1 - beta) ** 0.5)
    assert deviation**2 == pytest.approx((1 - before) / (1 - share) * beta)
    mean, deviation = SAMPLERS["euler"](x, noise, share, before)
    torch.testing.assert_close(mean, x + beta / 2 * x - beta / (1 - share) ** 0.5 * noise, rtol=0, atol=1e-4)
    assert deviation**2 == pytest.approx(beta, rel=1e-2)


def test_the_predicted_image_is_the_one_that_was_noised():
    process = Process(1000)
    x, noise = (torch.randn((2, 1, 3, 3), generator=key(i)) for i in range(2))
    noised = process.noised(x, torch.tensor([400, 400]), noise)
    torch.testing.assert_close(predicted(noised, noise, float(process.kept[400])), x, rtol=1e-4, atol=1e-5)


def test_guidance_moves_the_mean_against_the_gradient_by_the_variance():
    process = Process(1000)
    x = torch.randn((2, 1, 3, 3), generator=key(), dtype=torch.float64)
    gradient = torch.randn(x.shape, generator=key(1), dtype=torch.float64)
    calls = []

    def guide(noisy, look):
        noise, image = look(noisy)
        calls.append(image)
        return noise, gradient

    bare, guided = (
        reverse(gaussian(process), x, process, [400, 200], "ancestral", nothing, way) for way in (None, guide)
    )
    before, share = float(process.kept[200]), float(process.kept[400])
    variance = (1 - before) / (1 - share) * (1 - share / before)
    torch.testing.assert_close(bare - guided, variance * gradient)
    torch.testing.assert_close(calls[0], posterior(x, share)[0])
    reverse(gaussian(process), x, process, [400, 0], "ancestral", nothing, guide)
    assert len(calls) == 1  # the last step has no variance


# The U-Net


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 28, 28), (3, 32, 32), (3, 9, 6), (1, 1, 1)])
def test_the_network_gives_an_image_of_the_same_form(shape):
    x = torch.randn((2, *shape), generator=key())
    assert lively(shape[0])(x, torch.tensor([1.0, 500.0])).shape == x.shape


def test_the_network_sees_the_whole_image_the_time_and_no_other_image():
    denoiser = lively()
    x = torch.randn((3, 1, 8, 8), generator=key()).requires_grad_()
    t = torch.tensor([10.0, 10.0, 500.0])
    found = denoiser(x, t)
    (slope,) = torch.autograd.grad(found[0, 0, 0, 0], x, retain_graph=True)
    assert (slope[0] != 0).all() and (slope[1:] == 0).all()
    torch.testing.assert_close(denoiser(x[:1], t[:1]), found[:1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(denoiser(x[:1], t[2:]), found[:1], atol=1e-3)
    assert all(p.requires_grad for p in denoiser.parameters())
    found.sum().backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in denoiser.parameters())


def test_a_new_network_predicts_no_noise():
    assert not UNet(1, 8)(torch.randn(2, 1, 8, 8), torch.zeros(2)).any()


def test_times_are_embedded_by_sines_and_cosines():
    t = torch.tensor([0.0, 3.0])
    found = time_embedding(t, 4)
    expected = [[0, 0, 1, 1], [math.sin(3), math.sin(3e-4), math.cos(3), math.cos(3e-4)]]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-6)
