"""Generators: shapes, ranges, the published layers, and the branches that run as one."""

import itertools

import pytest
import torch
from torch import nn

from dfshield.models.generators import (
    AcganGenerator,
    DastGenerator,
    DfmeGenerator,
    FastGenerator,
    GdfqGenerator,
    Generator,
    LabelEmbedding,
    doublings,
)

CLASSES, LATENT = 3, 7


def made(name: str, shape: tuple[int, int, int], width: float = 0.05, latent: int = LATENT) -> Generator:
    torch.manual_seed(0)
    if name == "dast":
        return DastGenerator(latent, shape, CLASSES, width)
    if name == "dfme":
        return DfmeGenerator(latent, shape, width)
    if name == "fast":
        return FastGenerator(latent, shape, width)
    if name == "acgan":
        return AcganGenerator(latent, shape, CLASSES, width)
    embedding = LabelEmbedding(latent, CLASSES)
    return GdfqGenerator(latent, shape, [0.4] * shape[0], [0.3] * shape[0], embedding, width)


def drawn(n: int, scale: float = 1.0, latent: int = LATENT) -> tuple[torch.Tensor, torch.Tensor]:
    return scale * torch.randn((n, latent), generator=torch.Generator().manual_seed(0)), torch.arange(n) % CLASSES


NAMES = ("dast", "dfme", "gdfq", "acgan", "fast")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 28, 28), (3, 32, 32), (3, 20, 30), (1, 5, 5), (3, 64, 64)])
def test_images_of_any_shape_in_range(name, shape):
    generator = made(name, shape)
    z, labels = drawn(6, scale=5.0)
    images = generator(z, labels)
    assert images.shape == (6, *shape)
    assert images.min() >= 0 and images.max() <= 1
    assert images.std() > 0.01 and not torch.equal(images[0], images[3])
    images.sum().backward()
    assert all(parameter.grad is not None for parameter in generator.parameters())


@pytest.mark.parametrize(
    ("name", "count"), [("dast", 32 * 32), ("dfme", 8 * 8), ("gdfq", 8 * 8), ("acgan", 4 * 4), ("fast", 8 * 8)]
)
def test_the_published_layers_at_32_pixels(name, count):
    """Parameters by hand from the publications' layers, for width 1, 10 values of latent and one class."""
    latent = 10

    def conv(a: int, b: int, k: int = 3) -> int:
        return a * b * k * k + b

    def norm(a: int) -> int:
        return 2 * a

    torch.manual_seed(0)
    if name == "dast":
        generator = DastGenerator(latent, (3, 32, 32), 1)
        expected = conv(latent, 128) + 5 * (conv(128, 128, 4) + norm(128)) + norm(128)
        sizes = (128, 256, 512, 256, 128, 64, 3)
        expected += sum(conv(a, b) + norm(b) for a, b in itertools.pairwise(sizes)) + conv(3, 3)
    elif name == "acgan":
        generator = AcganGenerator(latent, (3, 32, 32), 1)
        expected = (latent + 1) * 384 + 384 + conv(384, 192, 4) + conv(192, 96, 4) + conv(96, 48, 4) + conv(48, 3, 4)
        expected += norm(192) + norm(96) + norm(48)
    else:
        generator = made(name, (3, 32, 32), 1.0, latent)
        expected = (latent + 1) * 128 * count + norm(128) + conv(128, 128) + norm(128) + conv(128, 64) + norm(64)
        expected += conv(64, 3) + (CLASSES * latent if name == "gdfq" else 0)
    assert sum(parameter.numel() for parameter in generator.parameters()) == expected


@pytest.mark.parametrize(
    ("size", "first", "least", "expected"),
    [
        ((32, 32), 8, 2, (2, (8, 8))),
        ((28, 28), 8, 2, (2, (7, 7))),
        ((8, 8), 8, 2, (2, (2, 2))),
        ((224, 224), 8, 2, (5, (7, 7))),
        ((28, 28), 4, 3, (3, (4, 4))),
        ((8, 8), 4, 3, (3, (1, 1))),
        ((28, 28), 1, 0, (5, (1, 1))),
        ((8, 8), 1, 0, (3, (1, 1))),
        ((16, 40), 8, 2, (3, (2, 5))),
    ],
)
def test_first_map_and_doublings(size, first, least, expected):
    assert doublings((1, *size), first, least) == expected


def test_maps_that_are_too_large_are_cut_from_the_centre():
    generator = made("acgan", (3, 28, 28))
    whole = generator.layers(torch.cat([drawn(6)[0], nn.functional.one_hot(drawn(6)[1], CLASSES)], 1))
    assert whole.shape[2:] == (32, 32)
    assert torch.allclose(generator.raw(*drawn(6)), whole[:, :, 2:30, 2:30], atol=1e-5)


def test_branches_in_one_pass_are_each_class_on_its_own():
    generator = made("dast", (1, 8, 8))
    z, labels = drawn(12)
    found = generator.branches(z.reshape(4, -1, 1, 1)).unflatten(1, (CLASSES, -1))
    base = found.shape[2]
    for label in range(CLASSES):
        alone: list[nn.Module] = []
        for layer in generator.branches:
            part = slice(label * base, (label + 1) * base)
            if isinstance(layer, nn.Conv2d):
                copy = nn.Conv2d(LATENT, base, 3, padding=1)
            elif isinstance(layer, nn.ConvTranspose2d):
                copy = nn.ConvTranspose2d(base, base, 4, 2, 1)
            elif isinstance(layer, nn.BatchNorm2d):
                copy = nn.BatchNorm2d(base)
            else:
                alone.append(layer)
                continue
            copy.weight.data, copy.bias.data = layer.weight.data[part], layer.bias.data[part]
            alone.append(copy)
        maps = nn.Sequential(*alone)(z[labels == label].view(-1, LATENT, 1, 1))
        assert torch.allclose(maps, found[:, label], atol=1e-5)


def test_output_mappings():
    raw = torch.tensor([-3.0, 0.0, 0.5, 3.0]).view(1, 1, 1, 4)
    for name in ("dast", "fast"):
        assert torch.allclose(made(name, (1, 8, 8)).to_image(raw), raw.sigmoid())
    for name in ("dfme", "acgan"):
        assert torch.allclose(made(name, (1, 8, 8)).to_image(raw), (raw.tanh() + 1) / 2)
    # the classifier's normalised space: mean 0.4, std 0.3
    assert made("gdfq", (1, 8, 8)).to_image(raw).flatten().tolist() == pytest.approx([0, 0.4, 0.55, 1])


def test_gdfq_takes_another_embedding():
    class Unconditional(nn.Module):
        def forward(self, z: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return z

    generator = GdfqGenerator(LATENT, (1, 8, 8), [0.5], [0.5], Unconditional(), 0.05)
    z, labels = drawn(6)
    assert torch.equal(generator(z, labels), generator(z, labels.flip(0)))
    conditional = made("gdfq", (1, 8, 8))
    assert not torch.equal(conditional(z, labels), conditional(z, labels.flip(0)))
    normalised = conditional.raw(z, labels).detach()
    assert abs(float(normalised.mean())) < 1e-5 and float(normalised.var(unbiased=False)) == pytest.approx(1, abs=0.01)
