"""Test-time transformation ensembling (Pérez et al., ICCV Workshops 2021): mean logits over crops and mirror images."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfshield.core.rng import generator
from dfshield.defences.defence import Defence
from dfshield.options.defences import Tte


class Ensembled(nn.Module):
    """Mean logits over versions of every image: itself, `crops` crops of it after zero padding, mirror images of all.

    The offsets of the crops are drawn once, by the seed of the options, so the model is deterministic. The published
    code takes one and the same crop for all of them (a closure over the last); here each has an offset of its own.
    """

    def __init__(self, model: nn.Module, options: Tte) -> None:
        super().__init__()
        self.model, self.options = model, options
        draws = torch.rand((options.crops, 2), generator=generator("tte", options.seed))
        self.draws: list[tuple[float, float]] = [(float(top), float(left)) for top, left in draws]

    def forward(self, x: Tensor) -> Tensor:
        """Images (N,C,H,W) in [0,1] to logits (N,classes)."""
        versions = self.versions(x)
        total = self.model(versions[0])
        for version in versions[1:]:
            total = total + self.model(version)
        return total / len(versions)

    def versions(self, x: Tensor) -> list[Tensor]:
        """The transformed images, each (N,C,H,W), the image itself first."""
        height, width = x.shape[2:]
        pad = self.options.pad or max(1, height // 7)
        padded = F.pad(x, (pad, pad, pad, pad))
        places = [(int(top * (2 * pad + 1)), int(left * (2 * pad + 1))) for top, left in self.draws]
        found = [x, *(padded[:, :, top : top + height, left : left + width] for top, left in places)]
        return [*found, *(version.flip(3) for version in found)] if self.options.flip else found


class TestTimeEnsemble(Defence[Tte]):
    """TTE; differentiable, so an adaptive attack goes through the ensemble itself."""

    __test__ = False  # no test, for pytest

    def protect(self, model: nn.Module) -> nn.Module:
        return Ensembled(model, self.options)
