"""What the baselines have in common: a generator, its draws, its loss, the student's loss.

The student's losses are the published ones with its clean input replaced by the perturbed one, as in the paper's
appendix A.4; a method's docstring says what comes from where.
"""

from typing import Any

import torch
from torch import Tensor

from dfshield.core.rng import generator, seeded
from dfshield.models.classifier import Classifier
from dfshield.models.generators import Generator, Shape
from dfshield.options import CotrainOptions
from dfshield.sources.objective import BatchStatistics, statistics_loss


class Method:
    """Base of all methods. `state` holds what a method remembers between iterations, in plain numbers."""

    generator: Generator

    def __init__(
        self, teacher: Classifier, student: Classifier, shape: Shape, classes: int, options: CotrainOptions
    ) -> None:
        self.teacher, self.student, self.options = teacher, student, options
        self.shape, self.classes = shape, classes
        self.state: dict[str, Any] = {}
        with seeded(generator("generator", options.seed).initial_seed()):
            self.generator = self.build().to(teacher.mean.device)

    def build(self) -> Generator:
        """The generator, before training."""
        raise NotImplementedError

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups of the generator's optimiser with their learning rates."""
        return [{"params": list(self.generator.parameters()), "lr": self.options.generator_lr}]

    def draw(self, n: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Input of the generator for `n` images, on its device: z (n,latent) and labels (n,)."""
        z = torch.randn((n, self.options.latent), generator=random)
        labels = torch.randint(self.classes, (n,), generator=random)
        return self._to_device(z, labels)

    def _to_device(self, z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        device = self.teacher.mean.device
        return z.to(device), labels.to(device)

    def generator_loss(self, raw: Tensor, labels: Tensor, random: torch.Generator) -> Tensor:
        """What the generator minimises, a scalar, for images before the output mapping; the student is in eval mode."""
        raise NotImplementedError

    def student_loss(self, images: Tensor, adversarial: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """What the student minimises, a scalar; `teacher` are the teacher's logits on `images`."""
        raise NotImplementedError

    def end_epoch(self) -> None:
        """Called after every epoch."""


def answer_and_distance(teacher: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """The teacher's logits on images, and how far their statistics are from those of its BatchNorm layers."""
    statistics = BatchStatistics(teacher.net)
    try:
        logits = teacher(images)
        return logits, torch.stack(statistics_loss(statistics)).sum()
    finally:
        statistics.remove()
