"""RDSKD (Han et al., ICASSP 2021): a generator without classes, trained for confidence, balance and diversity."""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from dfshield.models.generators import Unconditional
from dfshield.options.sources import Rdskd as RdskdOptions
from dfshield.sources.generator import GeneratorSource

if TYPE_CHECKING:
    from dfshield.models.generators import Generator


def confidence_loss(logits: Tensor) -> Tensor:
    """Cross entropy of logits (N,C) with their own largest class."""
    return F.cross_entropy(logits, logits.argmax(1))


def balance_loss(logits: Tensor) -> Tensor:
    """Negative entropy Σ p log p of the mean probabilities of logits (N,C): least where all classes are as frequent."""
    mean = logits.softmax(1).mean(0)
    return (mean * mean.clamp(min=1e-12).log()).sum()


def similarity_loss(images: Tensor, logits: Tensor) -> Tensor:
    """‖p₂ - p₁‖ / ‖x₂ - x₁‖ of the two halves of a mini-batch: small where images differ more than answers do."""
    half = len(images) // 2
    x, p = ((both[half : 2 * half] - both[:half]).norm() for both in (images, logits.softmax(1)))
    return p / x.clamp(min=1e-12)


class Rdskd(GeneratorSource):
    """Unconditional generator trained for confident teacher predictions, balanced classes and diverse images.

    The first two terms count relative to their values near the start of the epoch before: exp(L - earlier L).
    """

    options: RdskdOptions

    def build(self) -> "Generator":
        self.memory |= {"confidence": 0.0, "balance": 0.0}
        self.latent = self.options.latent or self.last.in_features
        return self.gdfq(self.latent, Unconditional())

    def _images(self, random: torch.Generator) -> Tensor:
        n = self.options.batch
        noise = torch.randn((n, self.latent), generator=random).to(self.device)
        return self.generator(noise, torch.zeros(n, dtype=torch.long, device=self.device))

    def loss(self, random: torch.Generator, index: int) -> Tensor:
        images = self._images(random)
        logits = self.teacher(images)
        confidence, balance = confidence_loss(logits), balance_loss(logits)
        relative = torch.exp(confidence - self.memory["confidence"]) + torch.exp(balance - self.memory["balance"])
        if index == 1:  # as released: the second mini-batch of each epoch
            self.memory |= {"confidence": float(confidence.detach()), "balance": float(balance.detach())}
        return relative + similarity_loss((images - self.teacher.mean) / self.teacher.std, logits)

    def draw(self, random: torch.Generator) -> tuple[Tensor, Tensor]:
        self.generator.eval()  # as released
        images = self._images(random)
        return images, self.teacher(images).argmax(1)
