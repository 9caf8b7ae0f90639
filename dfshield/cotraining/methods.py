"""The methods: what each generator is, how its input is drawn, and what generator and student minimise.

Generator and teacher see clean images; the student is trained on their adversarial versions (appendix A.4 of the
paper). The student answers in eval mode wherever it judges images for the generator.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dfshield.cotraining import losses
from dfshield.generators import (
    AcganGenerator,
    DastGenerator,
    DfmeGenerator,
    GdfqGenerator,
    Generator,
    LabelEmbedding,
    Shape,
)
from dfshield.models.checkpoints import Classifier
from dfshield.options import CotrainingOptions, TrainingOptions
from dfshield.runtime import InputError, generator
from dfshield.synthesis.objective import BatchStatistics, statistics_loss
from dfshield.training.losses import kl, trades


class Method:
    """Base of all methods. `state` holds what a method remembers between iterations, in plain numbers."""

    generator: Generator

    def __init__(
        self, teacher: Classifier, student: Classifier, shape: Shape, classes: int, options: CotrainingOptions
    ) -> None:
        self.teacher, self.student, self.options = teacher, student, options
        self.shape, self.classes = shape, classes
        self.state: dict[str, Any] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator("generator", options.seed).initial_seed())
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


class Dast(Method):
    """DaST (Zhou et al. 2020), with probabilities (DaST-P; β = 0 is DaST-L).

    The released CIFAR-10 code never steps the generator's optimisers and asks, in the label-control term, for the
    teacher's class. Here the generator is trained, and the term asks for the class of the branch, as the publication
    has it; `label_control` gives the other.
    """

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        if self.options.batch % self.classes or self.options.batch < 2 * self.classes:
            raise InputError(
                f"batch {self.options.batch}: dast shares a mini-batch equally among its {self.classes} branches, with "
                f"two images or more for each; use a multiple of {self.classes} from {2 * self.classes} on"
            )
        self.state["alpha"] = self.options.alpha

    def build(self) -> Generator:
        return DastGenerator(self.options.latent, self.shape, self.classes, self.options.generator_width)

    def groups(self) -> list[dict[str, Any]]:
        assert isinstance(self.generator, DastGenerator)
        return [
            {"params": list(self.generator.trunk.parameters()), "lr": self.options.generator_lr},
            {"params": list(self.generator.branches.parameters()), "lr": self.options.branch_lr},
        ]

    def draw(self, n: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        return self._to_device(torch.rand((n, self.options.latent), generator=random), torch.arange(n) % self.classes)

    def generator_loss(self, raw: Tensor, labels: Tensor, random: torch.Generator) -> Tensor:
        images = self.generator.to_image(raw)
        with torch.no_grad():
            teacher = self.teacher(images)
        wanted = labels if self.options.label_control == "branch" else teacher.argmax(1)
        loss, control = losses.dast_generator(
            self.student(images), teacher, wanted, self.state["alpha"], self.options.beta
        )
        if control <= self.options.alpha:
            self.state["alpha"] = control
        return loss

    def student_loss(self, images: Tensor, adversarial: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        return losses.dast_imitation(self.student(adversarial), teacher, self.options.beta)


class Dfme(Method):
    """DFME (Truong et al. 2021): the generator seeks disagreement, its gradient estimated from outputs alone.

    Differences are taken on the image before the tanh. The teacher is at hand in our setting, so the exact gradient is
    possible too (`gradient: exact`); the estimate keeps the publication's settings.
    """

    def build(self) -> Generator:
        return DfmeGenerator(self.options.latent, self.shape, self.options.generator_width)

    def _objective(self, raw: Tensor) -> Tensor:
        images = self.generator.to_image(raw)
        return -losses.dfme_distance(self.student(images), self.teacher(images))

    def generator_loss(self, raw: Tensor, labels: Tensor, random: torch.Generator) -> Tensor:
        if self.options.gradient == "exact":
            return self._objective(raw).mean()
        value, gradient = losses.forward_differences(
            self._objective, raw.detach(), self.options.directions, self.options.difference, random
        )
        return losses.with_gradient(value, raw, gradient)

    def student_loss(self, images: Tensor, adversarial: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        return losses.dfme_distance(self.student(adversarial), teacher).mean()


class Ait(Method):
    """AIT (Choi et al. 2022) on GDFQ's generator, the student trained by TRADES in place of its own loss.

    Gradient inundation, AIT's device for weights that are quantised, has no meaning for this student and is left out.
    """

    def build(self) -> Generator:
        latent, mean, std = self.options.latent, self.teacher.mean.flatten(), self.teacher.std.flatten()
        embedding = LabelEmbedding(latent, self.classes)
        return GdfqGenerator(latent, self.shape, mean.tolist(), std.tolist(), embedding, self.options.generator_width)

    def generator_loss(self, raw: Tensor, labels: Tensor, random: torch.Generator) -> Tensor:
        logits, distance = answer_and_distance(self.teacher, self.generator.to_image(raw))
        return F.cross_entropy(logits, labels) + self.options.feature_weight * distance

    def student_loss(self, images: Tensor, adversarial: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        options = TrainingOptions(beta=self.options.beta)
        return trades(self.student(images), self.student(adversarial), teacher, labels, options)


class Dfard(Method):
    """DFARD (Wang et al. 2024) with a teacher that is not robust; loss and schedules are OUR CONVENTION.

    Its code and equations are not published. From its abstract: a distillation temperature that adapts (here: a number
    that climbs the student's loss, between 1 and 20) and adaptive weights between the generator's terms (here: each
    term over its mean magnitude in the epoch before). The generator is ACGAN's, as in the paper's appendix A.4.
    """

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.state |= {"temperature": self.options.temperature, "weights": [1.0] * 3, "sums": [0.0] * 3, "steps": 0}

    def build(self) -> Generator:
        return AcganGenerator(self.options.latent, self.shape, self.classes, self.options.generator_width)

    def generator_loss(self, raw: Tensor, labels: Tensor, random: torch.Generator) -> Tensor:
        images = self.generator.to_image(raw)
        logits, distance = answer_and_distance(self.teacher, images)
        terms = torch.stack([F.cross_entropy(logits, labels), distance, -kl(logits, self.student(images))])
        found = terms.detach().abs().tolist()
        self.state["sums"] = [total + value for total, value in zip(self.state["sums"], found, strict=True)]
        self.state["steps"] += 1
        return (torch.tensor(self.state["weights"]).to(terms) * terms).sum()

    def student_loss(self, images: Tensor, adversarial: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        clean, perturbed = self.student(images), self.student(adversarial)
        temperature = torch.tensor(self.state["temperature"], device=teacher.device)
        loss = losses.dfard_student(clean, perturbed, teacher, temperature)
        temperature = temperature.clone().requires_grad_()
        again = losses.dfard_student(clean.detach(), perturbed.detach(), teacher, temperature)
        (slope,) = torch.autograd.grad(again, temperature)
        climbed = self.state["temperature"] + self.options.temperature_lr * float(slope)
        self.state["temperature"] = min(max(climbed, 1.0), 20.0)
        return loss

    def end_epoch(self) -> None:
        means = torch.tensor(self.state["sums"]) / self.state["steps"]
        self.state |= {"weights": losses.balance(means).tolist(), "sums": [0.0] * 3, "steps": 0}


def answer_and_distance(teacher: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """The teacher's logits on images, and how far their statistics are from those of its BatchNorm layers."""
    statistics = BatchStatistics(teacher.net)
    try:
        logits = teacher(images)
        return logits, torch.stack(statistics_loss(statistics)).sum()
    finally:
        statistics.remove()
