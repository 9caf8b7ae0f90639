"""Distribution transfer (Adversarial defense based on distribution transfer, 2023): purification that is guided."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dfshield.core.ssim import ssim
from dfshield.defences.diffusion import Draw, Guide, reverse
from dfshield.defences.purification import Purified, Purifier
from dfshield.options.defences_diffusion import DistributionTransfer

DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": lambda a, b: (a - b).square().flatten(1).mean(1),
    "ssim": lambda a, b: 1 - ssim((a + 1) / 2, (b + 1) / 2),
}
"""Distances (N,) of images (N,C,H,W) in [-1,1]."""


class Transferred(Purified[DistributionTransfer]):
    """A classifier that sees images noised and denoised again, guided by the image itself and by its logits."""

    def purify(self, x: Tensor, draw: Draw) -> Tensor:
        path = self.process.path(self.options.time, self.options.sampling_steps)
        noised = self.process.noised(x, torch.full((len(x),), path[0]), draw(x))
        guide = self._guide(x) if self.options.scale else None
        return reverse(self.denoiser, noised, self.process, path, "ancestral", draw, guide)

    def divergence(self, image: Tensor, x: Tensor, logits: Tensor) -> Tensor:
        """D (N,), Eq 11, of predicted images (N,C,H,W) from the input `x`, both in [-1,1]; `logits` are those of `x`.

        The distance of the images, and KL(f(x) ‖ f(image)); the coordination factor stands before one of them. The
        classifier sees the prediction as it is, beyond the range of pixels, too, so that derivatives are exact.
        """
        distance = DISTANCES[self.options.distance](image, x)
        reached = F.log_softmax(self.model((image + 1) / 2), dim=1)
        output = F.kl_div(reached, F.log_softmax(logits, dim=1), reduction="none", log_target=True).sum(1)
        if self.options.coordinated == "output":
            return distance + self.options.coordination * output
        return self.options.coordination * distance + output

    def _guide(self, x: Tensor) -> Guide:
        """The guidance s ∇ D (Eq 9). Where gradients of `x` are asked for, they go through it with ``gradient: full``.

        That takes the second derivative of the denoiser and of the classifier. ``constant`` leaves it out.
        """
        options, asked = self.options, torch.is_grad_enabled() and x.requires_grad
        logits = self.model((x + 1) / 2)

        def guide(noisy: Tensor, look: Callable[[Tensor], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                start = noisy if asked else noisy.detach().requires_grad_()
                noise, image = look(start)
                total = self.divergence(image, x, logits).sum()
                through = asked and options.gradient == "full"
                (gradient,) = torch.autograd.grad(total, start, create_graph=through, retain_graph=asked)
            if not asked:
                noise = noise.detach()
            return noise, options.scale * gradient

        return guide


class Transfer(Purifier[DistributionTransfer]):
    """Distribution transfer: N(μ_θ(x_t, t) - s Σ_t ∇ D, Σ_t) on the way back (Eq 8-10).

    D (Eq 11) has two parts, a distance to the input and the agreement of the classifier's outputs; which of them the
    coordination factor stands before is not stated (``coordinated``). An adaptive attack goes through all of it,
    guidance included; ``gradient: constant`` spares the second derivatives.

    Not stated in the publication: the number of noise levels (1000 here, of which it takes 470 steps), the factors s
    and λ, the form of the output's part (KL divergence here, from the output of the input to that of the prediction),
    whether the distance is of the prediction x̂_0 or of x_t (x̂_0 here), and Σ_t (the posterior's variance here).

    Differs from the publication: the diffusion model is a small one that is fitted on the training set at hand, and the
    way back has few steps.
    """

    purified = Transferred
