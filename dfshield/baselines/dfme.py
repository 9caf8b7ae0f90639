"""DFME (Truong et al. 2021)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dfshield.baselines.method import Method
from dfshield.models.generators import DfmeGenerator, Generator
from dfshield.options.baselines import Dfme as DfmeOptions


def recovered_logits(teacher: Tensor) -> Tensor:
    """Logits as far as probabilities tell them: log-probabilities minus their mean over the classes."""
    logs = F.log_softmax(teacher, 1)
    return logs - logs.mean(1, keepdim=True)


def dfme_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over the classes of |S - recovered logits of T| per image (N,): minimised by the student, on its adversarial
    logits, and maximised by the generator."""
    return (student - recovered_logits(teacher)).abs().mean(1)


@torch.no_grad()
def forward_differences(
    objective: Callable[[Tensor], Tensor], x: Tensor, directions: int, size: float, random: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Value of ``objective(x).mean()`` and an estimate of its gradient (N,C,H,W) from values alone.

    `objective` gives one value per image (N,). The estimate is the mean over `directions` of d·(L(x + εu) - L(x))/ε·u
    with u uniform on the unit sphere of d = C·H·W dimensions and ε = `size`, over N for the mean over images.
    """
    values = objective(x)
    estimate = torch.zeros_like(x)
    for _ in range(directions):
        u = torch.randn(x.shape, generator=random, device=random.device).to(x)
        u = u / u.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        slopes = (objective(x + size * u) - values) / size
        estimate += slopes.view(-1, 1, 1, 1) * u
    return values.mean(), estimate * (x[0].numel() / (directions * len(x)))


def with_gradient(value: Tensor, x: Tensor, gradient: Tensor) -> Tensor:
    """A scalar equal to `value` whose gradient with respect to `x` is `gradient`."""
    carrier = (x * gradient).sum()
    return value + (carrier - carrier.detach())


class Dfme(Method):
    """DFME (Truong et al. 2021): the generator seeks disagreement, its gradient estimated from outputs alone.

    Differences are taken on the image before the tanh. The teacher is at hand in our setting, so the exact gradient is
    possible too (`gradient: exact`); the estimate keeps the publication's settings.
    """

    options: DfmeOptions

    def build(self) -> Generator:
        return DfmeGenerator(self.options.latent, self.shape, self.options.generator_width)

    def _objective(self, raw: Tensor) -> Tensor:
        images = self.generator.to_image(raw)
        return -dfme_distance(self.student(images), self.teacher(images))

    def generator_loss(self, raw: Tensor, labels: Tensor, random: torch.Generator) -> Tensor:
        if self.options.gradient == "exact":
            return self._objective(raw).mean()
        value, gradient = forward_differences(
            self._objective, raw.detach(), self.options.directions, self.options.difference, random
        )
        return with_gradient(value, raw, gradient)

    def student_loss(self, images: Tensor, adversarial: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        return dfme_distance(self.student(adversarial), teacher).mean()
