"""Defences that are fitted: what they keep of a training set, and what they make of images."""

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from support import tiny
from support.attacked import attack, images, key, network
from torch import Tensor, nn

from dfshield import registry
from dfshield.defences.defence import Transformation
from dfshield.defences.fitted import Fitting
from dfshield.defences.quilting import AT_ONCE, SOFT, TEMPERATURE, chosen
from dfshield.defences.thermometer import code, read_out
from dfshield.evaluation.crafting import FastModels
from dfshield.options import AttackOptions, DefendOptions


def fitted(name: str, x: Tensor, model: nn.Module | None = None, seed: int = 0, **options) -> Transformation:
    """The defence `name` as it is after a fit on the images `x`."""
    model = model or network(10, tuple(x.shape[1:]))
    kind, made = registry.DEFENCES[name].load(), DefendOptions.of(defence=name, **options)
    given = Fitting(model, model, x, model(x).argmax(1), 10, "linf:8/255", key(seed))
    return kind(made, kind(made).fit(given))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=key(seed))


# Quilting


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 6), (1, 16, 28), (2, 1, 5)])
def test_a_bank_is_of_windows_of_the_training_set(shape):
    x = torch.arange(4 * shape[0] * shape[1] * shape[2]).float().view(4, *shape)
    made = fitted("quilting", x, patches=300)
    patches = made.tensors["patches"]
    side = min(5, max(1, 3 * min(shape[1:]) // 8))
    assert patches.shape[0] <= 300 and patches.shape[1:] == (shape[0], side, side)
    windows = x.unfold(2, side, 1).unfold(3, side, 1).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    firsts = {int(window[0, 0, 0]): window for window in windows}
    assert all(torch.equal(patch, firsts[int(patch[0, 0, 0])]) for patch in patches)
    found = len({int(patch[0, 0, 0]) for patch in patches})
    assert found == len(patches) and (found == len(windows) or found > 0.5 * min(300, len(windows)))
    other = fitted("quilting", x, patches=300, seed=1).tensors["patches"]
    assert found == len(windows) or not torch.equal(other, patches)


def quilt(x: Tensor, patches: Tensor, step: int) -> Tensor:
    """Image (C,H,W) with the nearest patch in place of each window, by loops."""
    size, (height, width) = patches.shape[-1], x.shape[1:]
    rows, columns = (range(0, side - size + step, step) for side in (height, width))
    wide = F.pad(x[None], (0, columns[-1] + size - width, 0, rows[-1] + size - height), mode="replicate")[0]
    total, covers = torch.zeros_like(wide), torch.zeros_like(wide)
    for top in rows:
        for left in columns:
            place = (slice(None), slice(top, top + size), slice(left, left + size))
            nearest = (patches - wide[place]).square().flatten(1).sum(1).argmin()
            total[place] += patches[nearest]
            covers[place] += 1
    return (total / covers)[:, :height, :width]


@pytest.mark.parametrize(
    ("shape", "size", "step"), [((1, 8, 8), 3, 2), ((3, 9, 6), 2, 1), ((1, 16, 15), 5, 3), ((1, 28, 28), 5, 3)]
)
def test_a_quilt_by_hand(shape, size, step):
    made = fitted("quilting", noise(5, *shape), neighbours=1, patches=200)
    x = noise(3, *shape, seed=1)
    expected = torch.stack([quilt(image, made.tensors["patches"], step) for image in x])
    assert made.tensors["patches"].shape[-1] == size
    torch.testing.assert_close(made.transform(x, key()), expected)


def test_an_image_whose_windows_are_in_the_bank_stays_what_it_is():
    x = (noise(1, 1, 9, 9) * 15).round() / 15
    made = fitted("quilting", x, neighbours=1)  # 2000 draws of 49 windows
    torch.testing.assert_close(made.transform(x, key()), x)


def test_each_of_the_nearest_patches_is_equally_likely_and_no_other_is_drawn():
    values = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.9])
    made = fitted("quilting", noise(2, 1, 2, 2), neighbours=3)
    made.tensors = {"patches": values.view(5, 1, 1, 1)}
    found = made.transform(torch.full((100, 1, 10, 10), 0.05), key()).flatten()
    counts = [int((found == value).sum()) for value in values]
    assert sum(counts) == 10_000 > AT_ONCE and counts[3:] == [0, 0]
    assert all(abs(count - 10_000 / 3) < 4 * 47.2 for count in counts[:3])


def test_gradients_are_those_of_a_soft_choice():
    patches, x = noise(SOFT, 3), noise(4, 3, seed=1).requires_grad_()
    found = chosen(x, patches, torch.zeros(4, dtype=torch.int64), 1)
    nearest = (x[:, None] - patches).square().sum(2).argmin(1)
    torch.testing.assert_close(found, patches[nearest])
    powers = torch.exp(-(x[:, None] - patches).square().sum(2) / 3 / TEMPERATURE)
    soft = powers @ patches / powers.sum(1, keepdim=True)
    for channel in range(3):
        (slope,) = torch.autograd.grad(found[:, channel].sum(), x, retain_graph=True)
        (expected,) = torch.autograd.grad(soft[:, channel].sum(), x, retain_graph=True)
        torch.testing.assert_close(slope, expected, rtol=1e-3, atol=1e-3)
    assert not chosen(x.detach(), patches, torch.zeros(4, dtype=torch.int64), 1).requires_grad


# Mixup inference


def test_a_pool_is_of_different_images_of_the_training_set():
    x = torch.arange(20.0).view(20, 1, 1, 1).expand(20, 1, 2, 2)
    chosen = fitted("mixup-inference", x, pool=8).tensors["pool"][:, 0, 0, 0].tolist()
    assert len(set(chosen)) == 8 and chosen != list(range(8))
    assert sorted(fitted("mixup-inference", x).tensors["pool"][:, 0, 0, 0].tolist()) == list(range(20))


def test_mixtures_are_with_all_images_of_the_pool_alike():
    pool = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 2, 2)
    made, x = fitted("mixup-inference", pool, share=0.75), noise(4000, 1, 2, 2)
    other = (made.transform(x, key()) - 0.75 * x) / 0.25
    drawn = other.round()
    torch.testing.assert_close(other, drawn, rtol=0, atol=1e-5)
    assert torch.equal(drawn, drawn[:, :, :1, :1].expand_as(drawn))
    counts = [int((drawn[:, 0, 0, 0] == value).sum()) for value in range(4)]
    assert sum(counts) == 4000 and all(abs(count - 1000) < 4 * 27.4 for count in counts)


@pytest.mark.parametrize("copies", [1, 7])
def test_logits_are_the_mean_over_the_mixtures(copies):
    net = network(10)
    x, _ = images(net, 3)
    made = fitted("mixup-inference", x, net, mixtures=copies)
    judged = made.protect(net)
    expected = torch.stack([net(judged.seen(x, copy)) for copy in range(copies)]).mean(0)
    torch.testing.assert_close(judged(x), expected)
    assert made.options.passes == copies


# Both draw


@pytest.mark.parametrize("name", ["quilting", "mixup-inference"])
def test_draws_are_by_content_and_seed_in_the_verdict_and_anew_in_the_surrogate(name):
    net = tiny.classifier(scale=3.0)
    x = noise(20, 1, 8, 8)
    made = fitted(name, noise(300, 1, 8, 8, seed=1), net, **({"neighbours": 9} if name == "quilting" else {}))
    judged, surrogate = made.protect(net), made.surrogate(net)
    assert torch.equal(judged(x), judged(x)) and torch.equal(judged(x.flip(0)).flip(0), judged(x))
    other = type(made)(made.options.model_copy(update={"seed": 1}), made.tensors).protect(net)
    assert not torch.allclose(other(x), judged(x), atol=1e-4)
    fast = FastModels(surrogate, AttackOptions.of(threat="linf:8/255", attack="pgd")).fp32
    torch.manual_seed(5)
    first, second = fast(x), fast(x)
    torch.manual_seed(5)
    torch.testing.assert_close((surrogate(x), surrogate(x)), (first, second), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(first, second, atol=1e-4)
    assert fast.net.folded_layers  # a trace, which goes round the draws


# Thermometer


def test_the_code_of_a_pixel_by_hand():
    x = torch.tensor([0.66, 0.13, 1.0, 0.0, 0.5]).view(1, 1, 1, 5)
    bits = ["".join(str(int(bit)) for bit in pixel) for pixel in code(x, 10)[0, :, 0].T]
    assert bits == ["111111000", "100000000", "111111111", "000000000", "111100000"]


@pytest.mark.parametrize("levels", [2, 4, 16, 256])
def test_the_read_out_starts_as_the_quantised_image(levels):
    x = noise(2, 3, 5, 4)
    made = fitted("thermometer", x, levels=levels, epochs=0)
    expected = ((levels * x).ceil() - 1).clamp(0, levels - 1) / (levels - 1)
    torch.testing.assert_close(made.transform(x, None), expected, rtol=0, atol=1e-5)
    assert made.tensors["weight"].shape == (3, 3 * (levels - 1), 1, 1) and not made.tensors["bias"].any()
    assert torch.equal(made.tensors["weight"], read_out(3, levels))


def divergence(model: nn.Module, x: Tensor, answers: Tensor) -> float:
    return float(F.cross_entropy(model(x), answers.softmax(1)).detach())


def test_a_fit_comes_nearer_to_the_teacher_and_leaves_it_as_it_was():
    net, x = tiny.classifier(scale=5.0), noise(200, 1, 8, 8)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    start, made = (fitted("thermometer", x, net, levels=3, epochs=epochs) for epochs in (0, 4))
    other = noise(200, 1, 8, 8, seed=2)
    ends = [divergence(defence.protect(net), other, net(other)) for defence in (start, made)]
    assert ends[1] < ends[0] - 0.1 * (ends[0] - divergence(net, other, net(other)))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters()) and not net.training
    again = fitted("thermometer", x, net, levels=3, epochs=4)
    assert all(torch.equal(again.tensors[name], made.tensors[name]) for name in made.keeps)


def test_a_fit_that_diverges_keeps_what_was_whole(capsys):
    net, x = tiny.classifier(scale=5.0), noise(60, 1, 8, 8)
    made = fitted("thermometer", x, net, lr=1e38, epochs=2)
    assert made.tensors["weight"].isfinite().all() and "diverged" in capsys.readouterr().err


def test_an_adaptive_attack_goes_through_the_code():
    net = network(10, seed=2)
    x, _ = images(net, 60)
    made = fitted("thermometer", x, net, levels=8)
    y = made.protect(net)(x).argmax(1)
    adaptive, static = (
        attack(made.protect(net), x, y, "linf:0.08", victim=victim, attack="pgd")[0]["broken"].sum()
        for victim in (made.surrogate(net), made.protect(net))
    )
    assert adaptive > 50 and static < 20  # the code itself has no slope


# Options


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("quilting", "patches", 0),
        ("quilting", "patch", 0),
        ("quilting", "neighbours", 0),
        ("quilting", "neighbours", 2001),
        ("thermometer", "levels", 1),
        ("thermometer", "levels", 257),
        ("thermometer", "epochs", -1),
        ("thermometer", "lr", 0),
        ("mixup-inference", "share", 0),
        ("mixup-inference", "share", 1.1),
        ("mixup-inference", "mixtures", 0),
        ("mixup-inference", "pool", 0),
    ],
)
def test_options_out_of_bounds_are_refused(name, option, value):
    with pytest.raises(ValidationError, match=option):
        DefendOptions.of(defence=name, **{option: value})
