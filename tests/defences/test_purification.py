"""Purification by a diffusion model: its fit, its verdicts, its gradients."""

import pytest
import torch
from pydantic import ValidationError
from support.attacked import images, key, network
from support.purification import NAMES, SHAPE, defence, given, kept, lively, nothing, options
from torch import Tensor, nn

from dfshield.core.errors import InputError
from dfshield.core.ssim import ssim
from dfshield.defences.defence import straight_through
from dfshield.defences.diffusion import SAMPLERS, Process
from dfshield.defences.distribution_transfer import DISTANCES, Transferred
from dfshield.defences.purification import Purified, denoising_loss, to_pixels
from dfshield.models.unet import UNet

# The fit


def test_a_fit_lowers_the_loss_on_images_that_it_has_not_seen_noised_so():
    pattern = torch.rand(SHAPE, generator=key(9)).round()
    x = torch.stack([pattern, 1 - pattern])
    made = defence("diffpure", width=8, steps=60, batch=32, lr=1e-2, ema=0.5)
    denoiser = made.__class__(made.options, made.fit(given(x=x)))._denoiser(network(3, SHAPE))
    process, seen = Process(1000), (2 * x - 1).repeat(100, 1, 1, 1)
    with torch.no_grad():
        before = denoising_loss(lambda x, t: nothing(x), seen, process, 1.0, key(1))
        after = denoising_loss(denoiser, seen, process, 1.0, key(1))
    assert float(before) == pytest.approx(1, abs=0.05) and float(after) < 0.5


@pytest.mark.parametrize("name", NAMES)
def test_a_fit_depends_on_its_random_numbers_alone(name):
    fittings = [given(seed=seed) for seed in (4, 4, 5)]
    state = torch.get_rng_state()
    first = defence(name).fit(fittings[0])
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second, other = (defence(name).fit(fitting) for fitting in fittings[1:])
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["denoiser.first.weight"], other["denoiser.first.weight"])
    assert all(name.startswith(defence("diffpure").keeps) and not value.requires_grad for name, value in first.items())


@pytest.mark.parametrize("n", [0, 1, 3])
def test_a_fit_on_few_images(n):
    if n:
        assert defence("diffpure").fit(given(n))
    else:
        with pytest.raises(InputError, match=r"diffpure: the training set has no images; give one that has"):
            defence("diffpure").fit(given(0))


def test_a_loss_that_is_not_finite_ends_a_fit():
    x = torch.full((4, *SHAPE), torch.inf)
    with pytest.raises(InputError, match=r"diffpure: denoiser: the loss is nan in step 1; lower lr \(0.001\)"):
        defence("diffpure").fit(given(x=x))


@pytest.mark.parametrize(
    "changes", [{"steps": 3}, {"batch": 5}, {"lr": 0.1}, {"ema": 0.01}, {"trained_time": 0.5}, {"timesteps": 100}]
)
@pytest.mark.parametrize("name", NAMES)
def test_every_option_of_a_fit_counts(name, changes):
    usual, other = (defence(name, **values).fit(given()) for values in ({}, changes))
    assert not all(torch.equal(usual[key], other[key]) for key in usual)


def test_levels_beyond_the_trained_time_are_not_trained_on():
    process, times = Process(1000), []

    def denoise(x, time):
        times.append(time)
        return x

    for share in (1.0, 0.2):
        denoising_loss(denoise, torch.zeros(5000, 1, 1, 1), process, share, key())
    for found, top in zip(times, (1000, 200), strict=True):
        assert found.min() < 5 and top - 5 < found.max() <= top and found.mean() == pytest.approx(top / 2, rel=0.05)
        assert found.min() >= 1


def test_the_average_of_the_weights_is_kept():
    """With ema 0 the weights themselves; and they are not those before the last step."""
    bare, averaged = (defence("diffpure", ema=ema, steps=10).fit(given()) for ema in (0, 0.99))
    shift = (bare["denoiser.last.bias"] - averaged["denoiser.last.bias"]).abs()
    assert float(shift.max()) > 1e-4


# What stands before the classifier


@pytest.mark.parametrize("name", NAMES)
def test_no_verdict_without_a_fit(name):
    net = network(3, SHAPE)
    with pytest.raises(InputError, match=rf"{name}: no fitted denoiser was given; run `dfshield defend` first"):
        defence(name).protect(net)
    with pytest.raises(InputError, match=r"the fitted denoiser has width 8, the options have 16; fit it again"):
        defence(name, kept(lively()), width=16).protect(net)


class Seen(nn.Module):
    """Logits that are the pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def test_a_perfect_denoiser_brings_images_back():
    """For one image alone the noise is known, and whatever was done to it is undone but for what is left of noise."""
    target = 2 * torch.rand((1, 1, 6, 5), generator=key(2)) - 1
    process = Process(1000)

    class Known(nn.Module):
        def forward(self, x, time):
            share = process.kept[time.long()].to(x).view(-1, 1, 1, 1)
            return (x - share.sqrt() * target) / (1 - share).sqrt()

    for name in NAMES:
        made = defence(name, kept(lively()), **({"scale": 0} if name == NAMES[1] else {}))
        model = made.protect(Seen())
        model.denoiser = Known()
        found = model(torch.rand((3, *SHAPE), generator=key(3)))
        torch.testing.assert_close(found, ((target + 1) / 2).flatten(1).expand(3, -1), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_the_classifier_sees_pixels_from_zero_to_one(name):
    model = defence(name, kept(lively()), time=0.9).protect(Seen())
    found = model(torch.rand((5, *SHAPE), generator=key()))
    assert found.min() == 0 and found.max() == 1


def test_pixels_beyond_the_range_keep_their_gradient():
    x = torch.tensor([-3.0, -1.0, 0.0, 3.0]).view(1, 1, 2, 2).requires_grad_()
    found = to_pixels(x)
    assert found.flatten().tolist() == [0, 0, 0.5, 1]
    assert torch.autograd.grad(found.sum(), x)[0].flatten().tolist() == [0.5] * 4


@pytest.mark.parametrize("name", NAMES)
def test_verdicts_draw_by_content_and_seed_and_attacks_anew(name):
    net, x = network(3, SHAPE), torch.rand((3, *SHAPE), generator=key())
    tensors = kept(lively())
    made = defence(name, tensors, seed=1)
    model = made.protect(net)
    found = model(x)
    torch.testing.assert_close(model(x.flip(0)).flip(0), found, rtol=1e-4, atol=1e-5)
    same = model(torch.stack([x[0], x[0], x[1]]))
    torch.testing.assert_close(same[0], same[1])
    assert not torch.allclose(defence(name, tensors, seed=2).protect(net)(x), found, atol=1e-3)
    crafted = made.surrogate(net)
    first, second = crafted(x), crafted(x)
    assert not torch.allclose(first, second, atol=1e-3) and not torch.allclose(first, found, atol=1e-3)
    torch.manual_seed(3)
    first = crafted(x)
    torch.manual_seed(3)
    assert torch.equal(crafted(x), first)


@pytest.mark.parametrize("name", NAMES)
def test_every_image_and_every_step_has_noise_of_its_own(name):
    drawn = []

    class Watched(nn.Module):
        def forward(self, x, time):
            drawn.append(x.detach().clone())
            return torch.zeros_like(x)

    model = defence(name, kept(lively()), **({"scale": 0} if name == NAMES[1] else {})).protect(Seen())
    model.denoiser = Watched()
    model(torch.stack([torch.full(SHAPE, 0.5), torch.full(SHAPE, 0.50001)]))
    process, path = Process(1000), Process(1000).path(model.options.time, 3)
    shares = [float(process.kept[level]) for level in path]
    noise = [drawn[0] / (1 - shares[0]) ** 0.5]
    for before, after, now, then in zip(drawn, drawn[1:], shares, shares[1:], strict=False):
        mean, deviation = SAMPLERS["ancestral"](before, torch.zeros_like(before), now, then)
        noise.append((after - mean) / deviation)
    flat = torch.cat(noise).flatten(1)
    assert len(flat) == 6 and 0.5 < float(flat.std()) < 1.5
    assert float((torch.corrcoef(flat) - torch.eye(6)).abs().max()) < 0.75


@pytest.mark.parametrize(
    "changes", [{"time": 0.2}, {"sampling_steps": 4}, {"timesteps": 500}, {"sampler": "ddim"}, {"sampler": "euler"}]
)
def test_every_option_of_diffpure_counts(changes):
    net, x, tensors = network(3, SHAPE), torch.rand((3, *SHAPE), generator=key()), kept(lively())
    usual, other = (defence("diffpure", tensors, **values).protect(net)(x) for values in ({}, changes))
    assert not torch.allclose(usual, other, atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        *({"time": 0.3}, {"sampling_steps": 4}, {"timesteps": 500}, {"distance": "ssim"}, {"coordination": 3.0}),
        *({"coordination": 3.0, "coordinated": "distance"}, {"scale": 0}, {"scale": 30.0}),
    ],
)
def test_every_option_of_the_transfer_counts(changes):
    net, x, tensors = network(3, SHAPE), torch.rand((3, *SHAPE), generator=key()), kept(lively())
    usual, other = (
        defence("distribution-transfer", tensors, **{"scale": 10.0} | values).protect(net)(x)
        for values in ({}, changes)
    )
    assert not torch.allclose(usual, other, atol=1e-4)


def transferred(net: nn.Module, **values) -> Transferred:
    return Transferred(net, lively(), options("distribution-transfer", **values), crafting=False)


def test_the_divergence_by_hand():
    net = network(3, SHAPE)
    x, image = (2 * torch.rand((4, *SHAPE), generator=key(i)) - 1 for i in range(2))
    p, q = (net((values + 1) / 2).softmax(1).detach() for values in (x, image))
    mse = (x - image).square().mean((1, 2, 3))
    output = (p * (p / q).log()).sum(1)
    logits = net((x + 1) / 2)
    for values, expected in (
        ({"coordination": 1.0}, mse + output),
        ({"coordination": 3.0}, mse + 3 * output),
        ({"coordination": 3.0, "coordinated": "distance"}, 3 * mse + output),
        ({"coordination": 0, "distance": "ssim"}, 1 - ssim((x + 1) / 2, (image + 1) / 2)),
    ):
        found = transferred(net, **values).divergence(image, x, logits)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("distance", ["mse", "ssim"])
def test_guidance_brings_images_nearer_to_the_input(distance):
    net, x, tensors = Seen(), torch.rand((4, *SHAPE), generator=key()), kept(UNet(1, 8))
    values = {"distance": distance, "coordination": 0, "sampling_steps": 20}
    free, guided = (
        defence("distribution-transfer", tensors, scale=scale, **values).protect(net)(x) for scale in (0, 50)
    )
    far, near = (DISTANCES[distance](2 * found.view(x.shape) - 1, 2 * x - 1).mean() for found in (free, guided))
    assert float(near) < 0.9 * float(far)


@pytest.mark.parametrize("name", NAMES)
def test_a_verdict_is_the_same_whether_gradients_are_asked_for(name):
    net, x = network(3, SHAPE), torch.rand((3, *SHAPE), generator=key())
    model = defence(name, kept(lively())).protect(net)
    with torch.no_grad():
        bare = model(x)
    assert not bare.requires_grad
    torch.testing.assert_close(model(x.clone().requires_grad_()), bare, rtol=1e-4, atol=1e-5)
    assert all(parameter.grad is None for parameter in net.parameters())


# Gradients


class Smooth(nn.Module):
    """A classifier without kinks, so that second derivatives tell."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.one, self.two = nn.Linear(30, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.tanh(2 * self.one(x.flatten(1))))


def slopes(name: str, **values) -> tuple[Tensor, Tensor]:
    """Derivative of the surrogate's logits along a direction: by the gradient, and by differences; in float64."""
    made = defence(name, kept(lively()), **values)
    model: Purified = made.surrogate(Smooth().requires_grad_(False)).double()
    x = 0.3 + 0.4 * torch.rand((2, *SHAPE), generator=key(1), dtype=torch.float64)
    direction = torch.randn(x.shape, generator=key(2), dtype=torch.float64)
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)

    def value(x: Tensor) -> Tensor:
        torch.manual_seed(0)
        random = key(7)
        purified = model.purify(2 * x - 1, lambda like: torch.randn(like.shape, generator=random, dtype=like.dtype))
        return (model.model((purified + 1) / 2) @ weights).sum()

    y = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(y), y)
    by_differences = (value(x + 1e-5 * direction) - value(x - 1e-5 * direction)) / 2e-5
    return (gradient * direction).sum(), by_differences


@pytest.mark.parametrize(
    "name, values",
    [
        *(("diffpure", {"sampler": sampler, "time": 0.5}) for sampler in SAMPLERS),
        ("distribution-transfer", {"scale": 20.0, "coordination": 1.0}),
        ("distribution-transfer", {"scale": 20.0, "distance": "ssim", "coordination": 5.0}),
    ],
)
def test_gradients_go_through_all_of_the_purification(name, values):
    found, expected = slopes(name, **values)
    assert float(found) == pytest.approx(float(expected), rel=1e-4) and abs(float(expected)) > 1e-3


def test_a_constant_guidance_leaves_its_own_derivative_out():
    """Then the gradient is another, and without guidance there is nothing to leave out."""
    found, expected = slopes("distribution-transfer", scale=20.0, gradient="constant")
    assert abs(float(found - expected)) > 0.01 * abs(float(expected))
    found, expected = slopes("distribution-transfer", scale=0, gradient="constant")
    assert float(found) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_bpda_takes_the_identity_for_the_derivative(name):
    net, x = network(3, SHAPE), torch.rand((3, *SHAPE), generator=key())
    made = defence(name, kept(lively()), gradient="bpda")
    surrogate = made.surrogate(net)
    torch.manual_seed(0)
    y = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(surrogate(y)[:, 1].sum(), y)
    torch.manual_seed(0)
    seen = surrogate.seen(x)
    y = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(net(straight_through(seen, y))[:, 1].sum(), y)
    torch.testing.assert_close(found, expected)
    full = defence(name, kept(lively())).surrogate(net)
    torch.manual_seed(0)
    torch.testing.assert_close(full.seen(x), seen, rtol=1e-4, atol=1e-5)
    y = x.clone().requires_grad_()
    (other,) = torch.autograd.grad(full(y)[:, 1].sum(), y)
    assert not torch.allclose(other, found, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_be_is_refused(name):
    for values, line in (
        ({"trained_time": 0.05}, "trained_time 0.05 is below time"),
        ({"time": 0.1, "timesteps": 50, "sampling_steps": 6}, "sampling_steps 6 is above the 5 noise levels"),
        ({"width": 12}, "multiple of 8"),
        ({"time": 0}, "greater than 0"),
        ({"timesteps": 20}, "greater than or equal to 50"),
    ):
        with pytest.raises(ValidationError, match=line):
            options(name, **values)


@pytest.mark.parametrize("name", NAMES)
def test_the_network_itself_is_left_as_it_was(name):
    net = network(3, SHAPE).train()
    x, _ = images(net, 3, SHAPE)
    made = defence(name, kept(lively()))
    made.protect(net)(x)
    assert all(p.requires_grad for p in net.parameters())
