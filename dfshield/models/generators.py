"""Generators: networks that turn random numbers and a class into images of any shape.

Every generator takes z (N,latent) and labels (N,) and gives images (N,C,H,W) in [0,1]; the classifier normalises them
itself. The size of the first map and the number of doublings follow from the image shape. Where H or W is no multiple
of the doubling, the last map is larger and the image is cut from its centre. `raw` is the image before the output
mapping, which `to_image` applies.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

Shape = tuple[int, int, int]


class Generator(nn.Module):
    """Base of all generators: `raw` and the usual output mapping, tanh brought from [-1,1] to [0,1].

    Where the published method feeds tanh's [-1,1] to a normalised network as it is, this differs on purpose: here the
    generator reaches the whole range of pixels and nothing outside of it.
    """

    def raw(self, z: Tensor, labels: Tensor) -> Tensor:
        """The image (N,C,H,W) before the output mapping."""
        raise NotImplementedError

    def to_image(self, raw: Tensor) -> Tensor:
        """The output mapping into [0,1]."""
        return (raw.tanh() + 1) / 2

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """Images (N,C,H,W) in [0,1] of z (N,latent) and labels (N,)."""
        return self.to_image(self.raw(z, labels))


def doublings(shape: Shape, first: int, least: int) -> tuple[int, tuple[int, int]]:
    """How often a map is doubled to cover images (C,H,W), and the size (h,w) of the first map.

    The first map has at most `first` pixels a side, less where `least` doublings, the published number, need less.
    """
    count = max(least, math.ceil(math.log2(max(shape[1:]) / first)))
    return count, (-(-shape[1] // 2**count), -(-shape[2] // 2**count))


def crop(x: Tensor, shape: Shape) -> Tensor:
    """The centre of maps (N,C,H',W') with the height and width of `shape`."""
    top, left = (x.shape[2] - shape[1]) // 2, (x.shape[3] - shape[2]) // 2
    return x[:, :, top : top + shape[1], left : left + shape[2]]


def _scaled(channels: int, width: float) -> int:
    return max(1, round(channels * width))


class DastGenerator(Generator):
    """DaST's generator (Zhou et al. 2020, released CIFAR-10 code): a branch per class, then a trunk for all.

    A branch is a 3x3 convolution of z as a 1x1 map and transposed convolutions up to the image size (five for 32x32);
    the trunk has seven 3x3 convolutions; the output mapping is the sigmoid. z (N,latent) must hold the classes in turn
    (labels 0, 1, …, C-1, 0, …), equally often: all branches then run as one grouped network, which computes the same
    as one after the other, BatchNorm statistics included. `width` multiplies the channels.
    """

    def __init__(self, latent: int, shape: Shape, classes: int, width: float = 1.0) -> None:
        super().__init__()
        self.shape, self.classes = shape, classes
        count, _ = doublings(shape, 1, 0)
        base = _scaled(128, width)
        branch: list[nn.Module] = [nn.Conv2d(classes * latent, classes * base, 3, padding=1, groups=classes)]
        for _ in range(count):
            branch += [nn.BatchNorm2d(classes * base), nn.ReLU()]
            branch.append(nn.ConvTranspose2d(classes * base, classes * base, 4, 2, 1, groups=classes))
        self.branches = nn.Sequential(*branch, nn.BatchNorm2d(classes * base), nn.ReLU())
        trunk: list[nn.Module] = []
        before = base
        for channels in (*(_scaled(n, width) for n in (256, 512, 256, 128, 64)), shape[0]):
            trunk += [nn.Conv2d(before, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()]
            before = channels
        self.trunk = nn.Sequential(*trunk, nn.Conv2d(before, shape[0], 3, padding=1))

    def raw(self, z: Tensor, labels: Tensor) -> Tensor:
        maps = self.branches(z.reshape(len(z) // self.classes, -1, 1, 1))
        maps = maps.unflatten(1, (self.classes, -1)).flatten(0, 1)
        image: Tensor = self.trunk(crop(maps, self.shape))
        return image

    def to_image(self, raw: Tensor) -> Tensor:
        return raw.sigmoid()


class UpsamplingTrunk(nn.Module):
    """Latent (N,latent) to maps (N,C,H,W): a linear layer, nearest-neighbour doublings and 3x3 convolutions.

    The body that the generators of DFME, GDFQ, RDSKD and FastDFKD have in common: two doublings of an 8x8 map for 32x32
    images; `eps` of BatchNorm as published. `width` multiplies the channels.
    """

    def __init__(self, latent: int, shape: Shape, width: float = 1.0, eps: float = 1e-5) -> None:
        super().__init__()
        self.shape = shape
        count, (h, w) = doublings(shape, 8, 2)
        wide, narrow = _scaled(128, width), _scaled(64, width)
        layers: list[nn.Module] = [nn.Linear(latent, wide * h * w), nn.Unflatten(1, (wide, h, w)), nn.BatchNorm2d(wide)]
        for index in range(count):
            channels = narrow if index == count - 1 else wide
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(wide, channels, 3, padding=1)]
            layers += [nn.BatchNorm2d(channels, eps), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(narrow, shape[0], 3, padding=1))

    def forward(self, latent: Tensor) -> Tensor:
        return crop(self.layers(latent), self.shape)


class DfmeGenerator(Generator):
    """DFME's GeneratorA (Truong et al. 2021): unconditional; BatchNorm without weights before the tanh."""

    def __init__(self, latent: int, shape: Shape, width: float = 1.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(UpsamplingTrunk(latent, shape, width), nn.BatchNorm2d(shape[0], affine=False))

    def raw(self, z: Tensor, labels: Tensor) -> Tensor:
        image: Tensor = self.layers(z)
        return image


class FastGenerator(Generator):
    """FastDFKD's generator for small images (Fang et al. 2022): unconditional; the output mapping is the sigmoid."""

    def __init__(self, latent: int, shape: Shape, width: float = 1.0) -> None:
        super().__init__()
        self.trunk = UpsamplingTrunk(latent, shape, width)

    def raw(self, z: Tensor, labels: Tensor) -> Tensor:
        image: Tensor = self.trunk(z)
        return image

    def to_image(self, raw: Tensor) -> Tensor:
        return raw.sigmoid()


class LabelEmbedding(nn.Module):
    """GDFQ's conditioning: z times a learned vector per class, entry by entry."""

    def __init__(self, latent: int, classes: int) -> None:
        super().__init__()
        self.table = nn.Embedding(classes, latent)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        latent: Tensor = z * self.table(labels)
        return latent


class Unconditional(nn.Module):
    """RDSKD's conditioning, which is none: the latent is the noise itself."""

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        return noise


class GdfqGenerator(Generator):
    """GDFQ's generator (Xu et al. 2020), which AIT, Qimera and, without classes, RDSKD share.

    `embedding` turns (z, labels) into the latent (N,latent). Its output lives in the classifier's normalised space
    (tanh, then BatchNorm without weights: mean 0 and variance 1 over the batch), so the image is mean + std·raw with
    the classifier's `mean` and `std` per channel, cut to [0,1].
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        latent: int,
        shape: Shape,
        mean: Sequence[float],
        std: Sequence[float],
        embedding: nn.Module,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.trunk = UpsamplingTrunk(latent, shape, width, eps=0.8)
        self.norm = nn.BatchNorm2d(shape[0], affine=False)
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)

    def raw(self, z: Tensor, labels: Tensor) -> Tensor:
        image: Tensor = self.norm(self.trunk(self.embedding(z, labels)).tanh())
        return image

    def to_image(self, raw: Tensor) -> Tensor:
        return (self.mean + self.std * raw).clamp(0, 1)


class AcganGenerator(Generator):
    """An ACGAN generator (Odena et al. 2017): z beside the one-hot class, four transposed convolutions for 32x32.

    A linear layer, a transposed convolution to the first map (4x4 for 32x32) and three that double it.
    """

    def __init__(self, latent: int, shape: Shape, classes: int, width: float = 1.0) -> None:
        super().__init__()
        self.shape, self.classes = shape, classes
        count, first = doublings(shape, 4, 3)
        a, b, c, d = (_scaled(n, width) for n in (384, 192, 96, 48))
        layers: list[nn.Module] = [nn.Linear(latent + classes, a), nn.ReLU(), nn.Unflatten(1, (a, 1, 1))]
        layers += [nn.ConvTranspose2d(a, b, first), nn.BatchNorm2d(b), nn.ReLU()]
        before = b
        for channels in (*[b] * (count - 3), c, d):
            layers += [nn.ConvTranspose2d(before, channels, 4, 2, 1), nn.BatchNorm2d(channels), nn.ReLU()]
            before = channels
        self.layers = nn.Sequential(*layers, nn.ConvTranspose2d(before, shape[0], 4, 2, 1))

    def raw(self, z: Tensor, labels: Tensor) -> Tensor:
        one_hot = nn.functional.one_hot(labels, self.classes).to(z)
        return crop(self.layers(torch.cat([z, one_hot], 1)), self.shape)
