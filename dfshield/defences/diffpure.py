"""DiffPure (Nie et al., Diffusion Models for Adversarial Purification, ICML 2022)."""

import torch
from torch import Tensor

from dfshield.defences.diffusion import Draw, reverse
from dfshield.defences.purification import Purified, Purifier
from dfshield.options.defences_diffusion import DiffPure


class Diffused(Purified[DiffPure]):
    """A classifier that sees images noised up to t* and denoised again."""

    def purify(self, x: Tensor, draw: Draw) -> Tensor:
        path = self.process.path(self.options.time, self.options.sampling_steps)
        noised = self.process.noised(x, torch.full((len(x),), path[0]), draw(x))
        return reverse(self.denoiser, noised, self.process, path, self.options.sampler, draw)


class DiffusionPurification(Purifier[DiffPure]):
    """DiffPure: x(t*) = √ᾱ x + √(1-ᾱ) e (Eq 2), and the reverse SDE from there (Eq 4) to what the classifier sees.

    An adaptive attack goes back through all steps by plain differentiation, or takes the identity (``gradient: bpda``).

    Differs from the publication: the diffusion model is a small one that is fitted on the training set at hand, and not
    a published one of the real images; few ancestral steps take the place of a solver's hundred (``sampler: euler`` and
    ``sampling_steps: 100`` are the publication's); the gradient is that of the steps, not of the adjoint equation; what
    the classifier sees is clamped to [0,1], with the derivative of no clamp.
    """

    purified = Diffused
