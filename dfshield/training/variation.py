"""Random variation of surrogate images, drawn anew whenever a mini-batch is used."""

import torch

from dfshield.options import TrainingOptions


def vary(x: torch.Tensor, options: TrainingOptions, generator: torch.Generator) -> torch.Tensor:
    """Images (N,C,H,W) in [0,1], mirrored at random, times U(1-contrast, 1+contrast), plus noise, cut to [0,1].

    Each image has its own draws.
    """
    if options.flip:
        draws = torch.rand((len(x), 1, 1, 1), generator=generator, device=generator.device).to(x)
        x = torch.where(draws < 0.5, x.flip(3), x)
    if options.contrast:
        draws = torch.rand((len(x), 1, 1, 1), generator=generator, device=generator.device).to(x)
        x = (x * (1 + options.contrast * (2 * draws - 1))).clamp(0, 1)
    if options.noise:
        draws = torch.randn(x.shape, generator=generator, device=generator.device).to(x)
        x = (x + options.noise * draws).clamp(0, 1)
    return x
