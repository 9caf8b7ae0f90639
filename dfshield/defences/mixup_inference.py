"""Mixup inference (Pang et al., ICLR 2020)."""

import torch
from torch import Tensor

from dfshield.defences.defence import Transformation
from dfshield.defences.fitted import FittedDefence, Fitting
from dfshield.options.defences_fitted import MixupInference


class MixtureEnsemble(FittedDefence[MixupInference], Transformation[MixupInference]):
    """Mean logits over mixtures λx + (1-λ)s of the image with others, s drawn from a pool of the training set.

    λ is the option `share`.

    Differs from the publication:

    - s is of any class, all images of the pool equally likely; the variants PL and OL draw it from the class that the
      network first predicts, or from the others, which takes a further pass;
    - logits are averaged, not probabilities;
    - the network need not be trained with Mixup (a student is by ``mix: mixup``).
    """

    keeps = ("pool",)
    draws = True
    differentiable = True

    def fit(self, given: Fitting) -> dict[str, Tensor]:
        """The pool, ``pool`` (n,C,H,W) in [0,1]."""
        chosen = torch.randperm(len(given.images), generator=given.random)[: self.options.pool]
        return {"pool": given.images[chosen.to(given.images.device)]}

    def transform(self, x: Tensor, random: torch.Generator | None) -> Tensor:
        """Images (N,C,H,W) in [0,1] to one mixture of each, (N,C,H,W) in [0,1]."""
        pool = self.tensors["pool"].to(x)
        drawn = torch.randint(len(pool), (len(x),), generator=random).to(x.device)
        return self.options.share * x + (1 - self.options.share) * pool[drawn]
