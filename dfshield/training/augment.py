"""Random variation of training images, drawn anew whenever a mini-batch is used."""

import torch
import torch.nn.functional as F

from dfshield.options import TrainOptions


def augment(x: torch.Tensor, options: TrainOptions, generator: torch.Generator) -> torch.Tensor:
    """Images (N,C,H,W) in [0,1], mirrored and shifted at random, times U(1-contrast, 1+contrast), plus noise.

    They are cut to [0,1] again. Each image has its own draws.
    """
    if options.flip:
        draws = torch.rand((len(x), 1, 1, 1), generator=generator, device=generator.device).to(x)
        x = torch.where(draws < 0.5, x.flip(3), x)
    if options.translate:
        x = translate(x, generator)
    if options.contrast:
        draws = torch.rand((len(x), 1, 1, 1), generator=generator, device=generator.device).to(x)
        x = (x * (1 + options.contrast * (2 * draws - 1))).clamp(0, 1)
    if options.noise:
        draws = torch.randn(x.shape, generator=generator, device=generator.device).to(x)
        x = (x + options.noise * draws).clamp(0, 1)
    return x


def translate(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Shift each image (N,C,H,W) by up to one eighth of its size in both directions, filling with zeros."""
    n, _, height, width = images.shape
    reach_y, reach_x = height // 8, width // 8
    padded = F.pad(images, (reach_x, reach_x, reach_y, reach_y))
    offsets = [
        torch.randint(0, 2 * reach + 1, (n, 1, 1), generator=generator, device=generator.device).to(images.device)
        for reach in (reach_y, reach_x)
    ]
    rows = offsets[0] + torch.arange(height, device=images.device).view(1, -1, 1)
    columns = offsets[1] + torch.arange(width, device=images.device).view(1, 1, -1)
    image = torch.arange(n, device=images.device).view(-1, 1, 1)
    return padded.permute(0, 2, 3, 1)[image, rows, columns].permute(0, 3, 1, 2).contiguous()
