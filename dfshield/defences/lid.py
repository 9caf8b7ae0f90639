"""Local intrinsic dimensionality as a detector (Ma et al., Characterizing Adversarial Subspaces Using Local Intrinsic
Dimensionality, ICLR 2018).
"""

import torch
from torch import Tensor, nn

from dfshield.core.errors import InputError
from dfshield.defences.detectors import all_seen, pairs
from dfshield.options.detectors import LidDetector


def dimensionality(points: Tensor, reference: Tensor, neighbours: int) -> Tensor:
    """Estimates (N,) at points (N,D) by their distances from the nearest of a reference (M,D), M >= `neighbours`.

    Ma et al. 2018, Eq 4: minus the reciprocal of the mean logarithm of the distances of the k nearest, in units of that
    of the k-th. Points of the reference itself at distance zero are left out.
    """
    distance = torch.cdist(points, reference, compute_mode="donot_use_mm_for_euclid_dist")
    nearest = distance.masked_fill(distance == 0, torch.inf).topk(neighbours, largest=False).values
    ratio = (nearest / nearest[:, -1:]).clamp_min(torch.finfo(points.dtype).tiny)
    return -1 / ratio.log().mean(dim=1).clamp_max(-1e-6)


class Lid(nn.Module):
    """A weighted sum (N,) of the dimensionality of logits and of penultimate features.

    The weights are those of a logistic regression that tells attacked from clean images.
    Differs from the publication: two layers in place of all; one fixed reference in place of the mini-batch at hand.
    """

    def __init__(self, logits: Tensor, features: Tensor, neighbours: int) -> None:
        super().__init__()
        self.neighbours = neighbours
        self.register_buffer("logits", logits)
        self.register_buffer("features", features)
        self.register_buffer("weights", torch.ones(2))
        self.logits: Tensor
        self.features: Tensor
        self.weights: Tensor

    def both(self, logits: Tensor, features: Tensor) -> Tensor:
        """Dimensionality of logits and of features (N,2)."""
        pairs = ((logits, self.logits), (features, self.features))
        return torch.stack([dimensionality(own, known, self.neighbours) for own, known in pairs], dim=1)

    def forward(self, x: Tensor, logits: Tensor, features: Tensor) -> Tensor:
        return self.both(logits, features) @ self.weights


def fit_lid(model: nn.Module, x: Tensor, y: Tensor, options: LidDetector, random: torch.Generator) -> nn.Module:
    """The reference of `options.reference` images, and weights by the other images (N,C,H,W) of a set.

    Raises InputError for a set that is too small for both.
    """
    from sklearn.linear_model import LogisticRegression  # not at the top: it takes long to import

    if len(x) <= options.reference:
        raise InputError(
            f"lid needs more than the {options.reference} images of its reference to fit on, there are {len(x)}: "
            "give a larger training set or a smaller reference"
        )
    made = Lid(*all_seen(model, x[: options.reference]), options.neighbours)
    told = pairs(model, x[options.reference :], options.threat, options.fit_steps, random)
    found = [made.both(*all_seen(model, part)).cpu() for part in told]
    labels = torch.cat([torch.full((len(part),), float(kind)) for kind, part in enumerate(found)])
    regression = LogisticRegression(class_weight="balanced").fit(torch.cat(found).numpy(), labels.numpy())
    made.weights.copy_(torch.from_numpy(regression.coef_[0]))
    return made
