"""DFARD (Wang et al. 2024), by a convention of our own."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dfshield.baselines.method import Method, answer_and_distance
from dfshield.models.generators import AcganGenerator, Generator
from dfshield.options.baselines import Dfard as DfardOptions
from dfshield.training.losses import kl


def dfard_student(student: Tensor, adversarial: Tensor, teacher: Tensor, temperature: Tensor) -> Tensor:
    """τ² (KL(T/τ ‖ S(x̂')/τ) + KL(T/τ ‖ S(x̂)/τ)). The published equations are not available: our convention."""
    softened = teacher / temperature
    return temperature**2 * (kl(softened, adversarial / temperature) + kl(softened, student / temperature))


def balance(magnitudes: Tensor) -> Tensor:
    """Weights that bring terms of these mean magnitudes to equal size, none raised more than tenfold (convention)."""
    return 1 / magnitudes.clamp_min(0.1)


class Dfard(Method):
    """DFARD (Wang et al. 2024) with a teacher that is not robust; loss and schedules are OUR CONVENTION.

    Its code and equations are not published. From its abstract: a distillation temperature that adapts (here: a number
    that climbs the student's loss, between 1 and 20) and adaptive weights between the generator's terms (here: each
    term over its mean magnitude in the epoch before). The generator is ACGAN's, as in the paper's appendix A.4.
    """

    options: DfardOptions

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
        loss = dfard_student(clean, perturbed, teacher, temperature)
        temperature = temperature.clone().requires_grad_()
        again = dfard_student(clean.detach(), perturbed.detach(), teacher, temperature)
        (slope,) = torch.autograd.grad(again, temperature)
        climbed = self.state["temperature"] + self.options.temperature_lr * float(slope)
        self.state["temperature"] = min(max(climbed, 1.0), 20.0)
        return loss

    def end_epoch(self) -> None:
        means = torch.tensor(self.state["sums"]) / self.state["steps"]
        self.state |= {"weights": balance(means).tolist(), "sums": [0.0] * 3, "steps": 0}
