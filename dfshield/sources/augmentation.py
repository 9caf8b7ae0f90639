"""Training sets derived from another by Mixup, Cutout or CutMix, in the same format.

Each augmentation takes images (N,C,H,W) in [0,1], a random generator of the CPU and its options. It returns the new
images and, for each, the index of the image whose label it carries: the one that it has most of. L_DFShield asks the
teacher itself what it sees in an image, so no label has to be mixed.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dfshield import registry
from dfshield.core.datafree import data_free
from dfshield.core.progress import log
from dfshield.core.rng import generator
from dfshield.options import AugmentOptions
from dfshield.options.sources import Cutmix, Cutout, Mixup
from dfshield.sources.trainset import read, trainset_header, write_whole


@data_free("augment")
def run(base: Path, out: Path, options: AugmentOptions, source: str = "mixup", code: str = "") -> None:
    """Write the set that `options.augmentation` makes of the merged training set `base` to `out`.

    It has as many images, of the same number type; teacher and `real_data` are inherited. Raises InputError for a
    file that is no whole training set.
    """
    torch.set_num_threads(options.threads)
    given = read(base)
    images = torch.from_numpy(given.images).permute(0, 3, 1, 2)
    random = generator("augmentation", options.augmentation, options.seed)
    made, carried = registry.AUGMENTATIONS[options.augmentation].load()(images, random, options)
    chosen = torch.rand(len(images), generator=random) < options.probability
    made = torch.where(chosen[:, None, None, None], made, images)
    carried = torch.where(chosen, carried, torch.arange(len(images)))
    own = given.attributes
    stored = made.permute(0, 2, 3, 1).contiguous().numpy()
    if own["options"].get("storage") == "uint8":
        stored = np.round(stored * 255).astype(np.uint8)
    described = options.described() | {
        "base": own["source"],
        "base_sha256": own["content_sha256"],
        "base_options": own["options"],
    }
    header = trainset_header(
        given, source=source, real_data=own["real_data"], options=described, seed=options.seed, code=code
    )
    content = write_whole(out, header, stored, given.labels[carried.numpy()])
    log(f"{out}: {len(stored)} images by {options.augmentation} of {base}, content {content[:16]}")


def mixup(images: Tensor, random: torch.Generator, options: Mixup) -> tuple[Tensor, Tensor]:
    """λ·x + (1-λ)·x' with λ ~ Beta(α, α) for each image and x' of a random permutation (Zhang et al., ICLR 2018)."""
    partner = torch.randperm(len(images), generator=random)
    share = _beta(len(images), random, options.alpha)
    mixed = torch.lerp(images[partner], images, share[:, None, None, None].to(images))
    return mixed.clamp(0, 1), torch.where(share >= 0.5, torch.arange(len(images)), partner)


def cutout(images: Tensor, random: torch.Generator, options: Cutout) -> tuple[Tensor, Tensor]:
    """A black square around a random pixel, cut off at the border (DeVries and Taylor 2017)."""
    height, width = images.shape[2:]
    sides = torch.full((len(images),), options.side)
    mask = _boxes((sides * height).round().long(), (sides * width).round().long(), height, width, random)
    return images.masked_fill(mask.to(images.device), 0), torch.arange(len(images))


def cutmix(images: Tensor, random: torch.Generator, options: Cutmix) -> tuple[Tensor, Tensor]:
    """A box of another image in the same place; its area is 1-λ of the image, λ ~ Beta(α, α) (Yun et al., ICCV 2019).

    The box lies around a random pixel and is cut off at the border, so that it may come out smaller.
    """
    height, width = images.shape[2:]
    partner = torch.randperm(len(images), generator=random)
    side = (1 - _beta(len(images), random, options.alpha)).sqrt()
    mask = _boxes((side * height).long(), (side * width).long(), height, width, random)
    mostly_own = mask.flatten(1).float().mean(1) <= 0.5
    return torch.where(mask.to(images.device), images[partner], images), torch.where(
        mostly_own, torch.arange(len(images)), partner
    )


def _beta(n: int, random: torch.Generator, alpha: float) -> Tensor:
    """`n` draws from Beta(alpha, alpha), float32, by inversion: torch's own sampler takes no generator."""
    from scipy.special import betaincinv

    uniform = torch.rand(n, generator=random, dtype=torch.float64)
    return torch.from_numpy(betaincinv(alpha, alpha, uniform.numpy())).float()


def _boxes(rows: Tensor, columns: Tensor, height: int, width: int, random: torch.Generator) -> Tensor:
    """Masks (N,1,height,width) of one box each, `rows` by `columns` (N,) pixels around a random one."""

    def within(size: Tensor, length: int) -> Tensor:
        first = torch.randint(length, (len(size),), generator=random) - size // 2
        place = torch.arange(length)
        return (place >= first[:, None]) & (place < (first + size)[:, None])

    return (within(rows, height)[:, :, None] & within(columns, width)[:, None, :]).unsqueeze(1)
