"""DaST (Zhou et al. 2020)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dfshield.baselines.method import Method
from dfshield.models.generators import DastGenerator, Generator
from dfshield.options.baselines import Dast as DastOptions


def dast_imitation(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """CE(S, argmax T) + β MSE(softmax S, softmax T): what the student minimises, on its adversarial logits."""
    difference = F.mse_loss(student.softmax(1), teacher.softmax(1))
    return F.cross_entropy(student, teacher.argmax(1)) + beta * difference


def dast_generator(student: Tensor, teacher: Tensor, labels: Tensor, alpha: float, beta: float) -> tuple[Tensor, float]:
    """exp(-imitation) + α CE(S, labels), and the value of the cross entropy, which α follows."""
    control = F.cross_entropy(student, labels)
    return torch.exp(-dast_imitation(student, teacher, beta)) + alpha * control, float(control.detach())


class Dast(Method):
    """DaST (Zhou et al. 2020), with probabilities (DaST-P; β = 0 is DaST-L).

    The released CIFAR-10 code never steps the generator's optimisers and asks, in the label-control term, for the
    teacher's class. Here the generator is trained, and the term asks for the class of the branch, as the publication
    has it; `label_control` gives the other.
    """

    options: DastOptions

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.options.check_classes(self.classes)
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
        loss, control = dast_generator(self.student(images), teacher, wanted, self.state["alpha"], self.options.beta)
        if control <= self.options.alpha:
            self.state["alpha"] = control
        return loss

    def student_loss(self, images: Tensor, adversarial: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        return dast_imitation(self.student(adversarial), teacher, self.options.beta)
