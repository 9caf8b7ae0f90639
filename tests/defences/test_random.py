"""Defences that transform images at random: what they compute, what they draw, and what gradients go through."""

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from support.attacked import images, key, network
from torch import Tensor, nn

from dfshield import registry
from dfshield.defences.defence import Approximated, Transformation, Transformed
from dfshield.defences.resize_pad import pixels, resampled
from dfshield.evaluation.crafting import FastModels
from dfshield.options import AttackOptions, DefendOptions

WIDE = {
    "resize-pad": {"smallest": 0.5},
    "crop-rescale": {"share": 0.5, "crops": 2},
    "noise": {"copies": 2},
}
"""Options with which equal draws are unlikely on images of 8 x 8."""


def defence(name: str, **options) -> Transformation:
    return registry.DEFENCES[name].load()(DefendOptions.of(defence=name, **options))


def different(a: Tensor, b: Tensor) -> float:
    """Share of images (N,C,H,W) that differ by more than a small change of theirs explains."""
    return float(((a - b).abs().flatten(1).amax(1) > 1e-2).float().mean())


def rectangles(x: Tensor) -> list[tuple[int, int, int, int]]:
    """Top, left, height and width of what is not zero in each image (N,H,W)."""
    rows, columns = (x != 0).any(2), (x != 0).any(1)
    assert torch.equal(x != 0, rows[:, :, None] & columns[:, None])
    top, left = rows.int().argmax(1), columns.int().argmax(1)  # the first of equals
    for side, first in ((rows, top), (columns, left)):
        index = torch.arange(side.shape[1])
        assert torch.equal(side, (index >= first[:, None]) & (index < (first + side.sum(1))[:, None]))
    return list(zip(top.tolist(), left.tolist(), rows.sum(1).tolist(), columns.sum(1).tolist(), strict=True))


# Resizing and padding


@pytest.mark.parametrize("options", [{"mode": "nearest"}, {"mode": "bilinear"}])
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 9, 6), (3, 32, 32), (1, 1, 1)])
def test_the_whole_size_leaves_images_as_they_are(shape, options):
    x = torch.rand((4, *shape), generator=key())
    assert torch.equal(defence("resize-pad", smallest=1, **options).transform(x, key(1)), x)


def test_a_rectangle_by_hand():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    rows, columns = (0, 4, torch.tensor([1]), torch.tensor([2])), (0, 4, torch.tensor([2]), torch.tensor([2]))
    nearest = [[0, 0, 0, 0], [0, 0, 0, 2], [0, 0, 8, 10], [0, 0, 0, 0]]
    bilinear = [[0, 0, 0, 0], [0, 0, 2.5, 4.5], [0, 0, 10.5, 12.5], [0, 0, 0, 0]]
    assert resampled(x, rows, columns, bilinear=False)[0, 0].tolist() == nearest
    assert resampled(x, rows, columns, bilinear=True)[0, 0].tolist() == bilinear


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize("shape", [(8, 8), (9, 6), (6, 9), (28, 28)])
def test_resizing_and_padding_is_that_of_each_image_alone(shape, mode):
    x = torch.rand((40, 3, *shape), generator=key())
    x[:, 0] = 1
    found = defence("resize-pad", smallest=0.5, mode=mode).transform(x, key(1))
    places = rectangles(found[:, 0])
    assert len(set(places)) > 15
    for image, out, (top, left, height, width) in zip(x, found, places, strict=True):
        if mode == "nearest":
            rows = [i * shape[0] // height for i in range(height)]
            small = image[:, rows][:, :, [i * shape[1] // width for i in range(width)]]
        else:
            small = F.interpolate(image[None], size=(height, width), mode="bilinear", align_corners=False)[0]
        expected = F.pad(small, (left, shape[1] - width - left, top, shape[0] - height - top))
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)


def test_sizes_and_places_are_equally_likely():
    found = defence("resize-pad", smallest=0.5).transform(torch.ones(4000, 1, 8, 8), key())
    places = rectangles(found[:, 0])
    assert all(height == width for *_, height, width in places)
    sizes = [sum(place[2] == size for place in places) for size in range(4, 9)]
    assert sum(sizes) == 4000 and all(abs(count - 800) < 4 * 25.3 for count in sizes)
    sixes = [place[:2] for place in places if place[2] == 6]
    corners = [sixes.count((top, left)) for top in range(3) for left in range(3)]
    assert sum(corners) == len(sixes) and all(abs(count - len(sixes) / 9) < 4 * 8.9 for count in corners)


def test_sides_shrink_together_and_no_further_than_the_smallest_share():
    found = defence("resize-pad", smallest=2 / 3).transform(torch.ones(500, 1, 9, 6), key())
    sizes = {place[2:] for place in rectangles(found[:, 0])}
    assert {height for height, _ in sizes} == {6, 7, 8, 9} and {width for _, width in sizes} == {4, 5, 6}
    assert all(abs(width - height * 6 / 9) < 1 for height, width in sizes)


@pytest.mark.parametrize("side, share, expected", [(28, 0.9, 25), (8, 0.9, 7), (100, 0.29, 29), (3, 0.1, 1), (6, 1, 6)])
def test_shares_are_rounded_down_to_pixels(side, share, expected):
    assert pixels(side, share) == expected


# Crops


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 9, 6), (1, 1, 1)])
def test_a_crop_of_the_whole_leaves_images_as_they_are(shape):
    x = torch.rand((4, *shape), generator=key())
    assert torch.equal(defence("crop-rescale", share=1).transform(x, key(1)), x)


@pytest.mark.parametrize("shape", [(8, 8), (9, 6), (28, 28)])
def test_a_crop_is_a_part_of_its_own_image_at_the_size_of_the_whole(shape):
    x = torch.rand((200, 2, *shape), generator=key())
    found = defence("crop-rescale").transform(x, key(1))
    height, width = (int(0.9 * side) for side in shape)
    places = [(top, left) for top in range(shape[0] - height + 1) for left in range(shape[1] - width + 1)]
    crops = torch.stack([x[:, :, top : top + height, left : left + width] for top, left in places], dim=1)
    whole = F.interpolate(crops.flatten(0, 1), size=shape, mode="bilinear", align_corners=False)
    same = (whole.view(200, len(places), -1) - found.view(200, 1, -1)).abs().amax(2) < 1e-5
    assert (same.sum(1) == 1).all()
    assert ((same.sum(0) - 200 / len(places)).abs() < 4 * (200 / len(places)) ** 0.5).all()


# Noise


def test_noise_is_gaussian_of_its_own_for_each_pixel_and_not_clamped():
    x = torch.rand((1, 1, 8, 8), generator=key())
    noisy = defence("noise", sigma=0.5).transform(x.expand(4000, 1, 8, 8), key(1))
    noise = ((noisy - x) / 0.5).flatten(1)
    assert noise.mean(0).abs().max() < 4.5 / 4000**0.5
    assert (noise.std(0) - 1).abs().max() < 4.5 / 8000**0.5
    assert abs(float((noise.abs() < 1).float().mean()) - 0.6827) < 0.004
    together = noise.T @ noise / 4000 - torch.eye(64)
    assert together.fill_diagonal_(0).abs().max() < 5.5 / 4000**0.5
    assert abs(float((noise[0::2] * noise[1::2]).mean())) < 4 / 128000**0.5
    assert noisy.min() < 0 and noisy.max() > 1


# Draws


@pytest.mark.parametrize("name", WIDE)
def test_images_of_a_batch_have_draws_of_their_own(name):
    x = torch.rand((1, 1, 8, 8), generator=key()).expand(20, 1, 8, 8)
    found = defence(name, **WIDE[name]).transform(x, key(1))
    assert different(found[1:], found[:-1]) > 0.7


@pytest.mark.parametrize("name", WIDE)
def test_the_judged_model_draws_by_content_copy_and_seed(name):
    made = defence(name, **WIDE[name]).protect(nn.Flatten())
    x = torch.rand((20, 1, 8, 8), generator=key())
    changed = x.clone()
    changed[:, :, 3, 3] += 1e-4
    seen = made.seen(x, 0)
    assert torch.equal(made.seen(x, 0), seen) and torch.equal(made.seen(x.flip(0), 0).flip(0), seen)
    twice = made(torch.cat([x, x]))
    assert torch.equal(twice[:20], twice[20:])
    assert different(made.seen(changed, 0), seen) > 0.7
    assert different(made.seen(x, 1), seen) > 0.7
    assert different(defence(name, seed=1, **WIDE[name]).protect(nn.Flatten()).seen(x, 0), seen) > 0.7


@pytest.mark.parametrize("name, copies", [("resize-pad", 1), ("crop-rescale", 10), ("noise", 8)])
def test_logits_are_the_mean_over_as_many_copies_as_by_default(name, copies):
    net = network(10)
    x, _ = images(net, 3)
    made = defence(name).protect(net)
    expected = torch.stack([net(made.seen(x, copy)) for copy in range(copies)]).mean(0)
    torch.testing.assert_close(made(x), expected)


@pytest.mark.parametrize("field, name", [("crops", "crop-rescale"), ("copies", "noise")])
def test_the_number_of_copies_is_an_option(field, name):
    made = defence(name, **{field: 3})
    assert made.options.passes == 3
    x = torch.rand((20, 1, 8, 8), generator=key())
    for model in (made.protect(nn.Flatten()), made.surrogate(nn.Flatten())):
        asked = []
        model.model.register_forward_pre_hook(lambda module, given, asked=asked: asked.append(given[0]))
        model(x)
        versions = torch.cat(asked).split(20)
        assert len(versions) == 3 and all(different(versions[i], versions[i - 1]) for i in range(3))


@pytest.mark.parametrize("name", WIDE)
def test_the_surrogate_draws_at_each_call_from_the_global_generator(name):
    made = defence(name, **WIDE[name]).surrogate(nn.Flatten())
    x = torch.rand((20, 1, 8, 8), generator=key())
    torch.manual_seed(5)
    first, second = made(x), made(x)
    torch.manual_seed(5)
    assert torch.equal(made(x), first) and torch.equal(made(x), second)
    assert different(first, second) > 0.7
    torch.manual_seed(6)
    assert different(made(x), first) > 0.7


@pytest.mark.parametrize("name", WIDE)
def test_copies_for_crafting_draw_as_the_surrogate_does(name):
    """A trace of the surrogate would have one draw for all calls."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    made = defence(name, **WIDE[name]).surrogate(net)
    x = torch.rand((4, 1, 8, 8), generator=key())
    fast = FastModels(made, AttackOptions.of(threat="linf:8/255", attack="pgd")).fp32
    torch.manual_seed(5)
    first, second = fast(x), fast(x)
    torch.manual_seed(5)
    torch.testing.assert_close((made(x), made(x)), (first, second))
    assert not torch.allclose(first, second, atol=1e-3)


# Arithmetic


@pytest.mark.parametrize("name, options", [*WIDE.items(), ("resize-pad", {"smallest": 0.5, "mode": "bilinear"})])
@pytest.mark.parametrize("shape", [(6, 6), (7, 5)])
def test_gradients_are_those_of_the_drawn_transformation(name, options, shape):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten()).double()
    made = defence(name, **options).surrogate(net)

    def logits(x: Tensor) -> Tensor:
        torch.manual_seed(3)
        return made(x).unflatten(1, (2, -1)).sum(2)

    x = torch.rand((2, 1, *shape), dtype=torch.float64, generator=key()).requires_grad_()
    assert torch.autograd.gradcheck(logits, x, fast_mode=True)


@pytest.mark.parametrize("name", WIDE)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_draws_are_the_same_in_all_precisions(name, dtype):
    made = defence(name, **WIDE[name])
    x = torch.rand((10, 1, 40, 40), generator=key()).bfloat16().float()
    expected = made.transform(x, key(1))
    found = made.transform(x.to(dtype), key(1))
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.04 if dtype == torch.bfloat16 else 1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(made.transform(x, key(1)), expected)


@pytest.mark.parametrize("name", WIDE)
def test_images_in_another_layout_are_seen_the_same(name):
    x = torch.rand((5, 3, 8, 8), generator=key())
    for model in (Transformed, Approximated):
        made = model(nn.Flatten(), defence(name, **WIDE[name]))
        torch.manual_seed(1)
        expected = made(x)
        torch.manual_seed(1)
        torch.testing.assert_close(made(x.contiguous(memory_format=torch.channels_last)), expected)


# Options


@pytest.mark.parametrize(
    "name, field, value",
    [
        ("resize-pad", "smallest", 0),
        ("resize-pad", "smallest", 1.1),
        ("resize-pad", "mode", "bicubic"),
        ("crop-rescale", "share", 0),
        ("crop-rescale", "share", 1.5),
        ("crop-rescale", "crops", 0),
        ("noise", "sigma", 0),
        ("noise", "sigma", float("inf")),
        ("noise", "copies", 0),
    ],
)
def test_options_out_of_range_are_refused(name, field, value):
    with pytest.raises(ValidationError, match=field):
        defence(name, **{field: value})
