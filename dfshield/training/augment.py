"""Random variation of training images, drawn anew whenever a mini-batch is used."""

import torch

from dfshield.options import TrainOptions
from dfshield.sources.views import translate


def augment(x: torch.Tensor, options: TrainOptions, generator: torch.Generator) -> torch.Tensor:
    """Images (N,C,H,W) in [0,1], mirrored, shifted and mixed at random, times U(1-contrast, 1+contrast), plus noise.

    They are cut to [0,1] again. Each image has its own draws.
    """
    if options.flip:
        draws = torch.rand((len(x), 1, 1, 1), generator=generator, device=generator.device).to(x)
        x = torch.where(draws < 0.5, x.flip(3), x)
    if options.translate:
        x = translate(x, generator)
    if options.mix != "none":
        x = MIXES[options.mix](x, generator)
    if options.contrast:
        draws = torch.rand((len(x), 1, 1, 1), generator=generator, device=generator.device).to(x)
        x = (x * (1 + options.contrast * (2 * draws - 1))).clamp(0, 1)
    if options.noise:
        draws = torch.randn(x.shape, generator=generator, device=generator.device).to(x)
        x = (x + options.noise * draws).clamp(0, 1)
    return x


def mixup(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """λ x + (1-λ) x' (N,C,H,W) in [0,1] of images x and a permutation x' of them (Zhang et al. 2018).

    Each image has its own λ ~ Beta(1,1), which is U(0,1).
    """
    partner, weight = _partners(images, generator)
    return torch.lerp(images, images[partner], weight.view(-1, 1, 1, 1).to(images)).clamp(0, 1)


def cutmix(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Images (N,C,H,W), each with a box of another of them in the same place (Yun et al. 2019).

    The box has the share 1-λ of the area, λ ~ Beta(1,1), and lies around a random pixel. It is cut off at the border,
    so that it may come out smaller.
    """
    partner, weight = _partners(images, generator)

    def within(length: int) -> torch.Tensor:
        size = (weight.sqrt() * length).long()
        first = torch.randint(length, (len(images),), generator=generator, device=generator.device) - size // 2
        place = torch.arange(length, device=generator.device)
        return (place >= first[:, None]) & (place < (first + size)[:, None])

    rows, columns = (within(length) for length in images.shape[2:])
    box = rows[:, None, :, None] & columns[:, None, None, :]
    return torch.where(box.to(images.device), images[partner], images)


MIXES = {"mixup": mixup, "cutmix": cutmix}


def _partners(images: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """The number of another image for each, a permutation, and that one's share 1-λ in (0,1]."""
    partner = torch.randperm(len(images), generator=generator, device=generator.device).to(images.device)
    return partner, 1 - torch.rand(len(images), generator=generator, device=generator.device)
