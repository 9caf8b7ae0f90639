"""Qimera (Choi et al., NeurIPS 2021): superposed class vectors for images near the teacher's boundaries."""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfshield.options.sources import Qimera as QimeraOptions
from dfshield.sources.generator import GeneratorSource
from dfshield.sources.objective import BatchStatistics, statistics_loss

if TYPE_CHECKING:
    from dfshield.models.generators import Generator


class Superposition(nn.Module):
    """Latents (N,latent) of superposed classes: the weighted sum of k vectors, each a class's vector plus noise.

    Takes noise (N,k,D) and shares (N,k,C): one class per slot, with its weight. A vector is brought to mean 0 and
    variance 1 over its D entries (the released code's BatchNorm over the transposed mini-batch, which for superposed
    images takes the statistics over the mini-batch besides) and, where D is not `latent`, reduced by a linear layer.
    """

    def __init__(self, table: Tensor, latent: int) -> None:
        super().__init__()
        self.table = nn.Parameter(table)
        self.reducer = nn.Linear(table.shape[1], latent) if latent != table.shape[1] else nn.Identity()

    def forward(self, noise: Tensor, shares: Tensor) -> Tensor:
        vectors = self.table[shares.argmax(2)] + noise
        reduced = self.reducer(F.layer_norm(vectors, vectors.shape[2:]))
        latent: Tensor = (shares.sum(2, keepdim=True) * reduced).sum(1)
        return latent


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of logits (N,C) with target probabilities (N,C), mean over images."""
    return -(targets * F.log_softmax(logits, 1)).sum(1).mean()


class Qimera(GeneratorSource):
    """GDFQ's generator with superposed class vectors, for images near the teacher's boundaries between classes.

    It minimises the cross entropy of the teacher's answer with the superposed labels, and the distance of the batch
    statistics from the teacher's.
    """

    options: QimeraOptions

    def build(self) -> "Generator":
        table = self.last.weight.detach().clone()
        latent = self.options.latent or table.shape[1]
        if self.options.embedding == "random":
            table = torch.randn(len(table), latent).to(table)
        self.entries = table.shape[1]
        return self.gdfq(latent, Superposition(table, latent))

    def input(self, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Noise (N,k,D) and shares (N,k,C): k is 1 for a mini-batch of pure classes, else `mix_classes`."""
        options = self.options
        mixed = float(torch.rand((), generator=random)) < options.mix_probability
        size = (options.batch, options.mix_classes if mixed else 1)
        classes = torch.randint(self.classes, size, generator=random)
        weights = torch.randn(size, generator=random).softmax(1)
        noise = torch.randn((*size, self.entries), generator=random)
        shares = weights[:, :, None] * F.one_hot(classes, self.classes)
        return noise.to(self.device), shares.to(self.device)

    def loss(self, random: torch.Generator, index: int) -> Tensor:
        noise, shares = self.input(random)
        statistics = BatchStatistics(self.teacher.net)
        try:
            logits = self.teacher(self.generator(noise, shares))
            means, variances = statistics_loss(statistics)
        finally:
            statistics.remove()
        return soft_cross_entropy(logits, shares.sum(1)) + self.options.feature_weight * (means + variances)

    def draw(self, random: torch.Generator) -> tuple[Tensor, Tensor]:
        noise, shares = self.input(random)
        return self.generator(noise, shares), shares.sum(1).argmax(1)  # in training mode, as the published student's
