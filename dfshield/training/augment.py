"""Random variation of training images, drawn anew whenever a mini-batch is used."""

import torch

from dfshield import registry
from dfshield.options import AugmentOptions, TrainOptions
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
        x, _ = registry.AUGMENTATIONS[options.mix].load()(x, generator, AugmentOptions.of(augmentation=options.mix))
    if options.contrast:
        draws = torch.rand((len(x), 1, 1, 1), generator=generator, device=generator.device).to(x)
        x = (x * (1 + options.contrast * (2 * draws - 1))).clamp(0, 1)
    if options.noise:
        draws = torch.randn(x.shape, generator=generator, device=generator.device).to(x)
        x = (x + options.noise * draws).clamp(0, 1)
    return x
