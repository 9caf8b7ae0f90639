"""Losses of generator and student, by method: pure functions of logits (N,C) to scalars.

`student` are logits on clean generated images, `adversarial` on their perturbed versions, `teacher` the teacher's on
the clean ones. The student's losses are the published ones with its clean input replaced by the perturbed one, as in
the appendix A.4 of the paper; a method's docstring says what comes from where.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dfshield.training.losses import kl

# --- DaST (Zhou et al. 2020) ------------------------------------------------------------------------------------------


def dast_imitation(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """CE(S, argmax T) + β MSE(softmax S, softmax T): what the student minimises, on its adversarial logits."""
    difference = F.mse_loss(student.softmax(1), teacher.softmax(1))
    return F.cross_entropy(student, teacher.argmax(1)) + beta * difference


def dast_generator(student: Tensor, teacher: Tensor, labels: Tensor, alpha: float, beta: float) -> tuple[Tensor, float]:
    """exp(-imitation) + α CE(S, labels), and the value of the cross entropy, which α follows."""
    control = F.cross_entropy(student, labels)
    return torch.exp(-dast_imitation(student, teacher, beta)) + alpha * control, float(control.detach())


# --- DFME (Truong et al. 2021) ----------------------------------------------------------------------------------------


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


# --- AIT (Choi et al. 2022) and DFARD ---------------------------------------------------------------------------------


def dfard_student(student: Tensor, adversarial: Tensor, teacher: Tensor, temperature: Tensor) -> Tensor:
    """τ² (KL(T/τ ‖ S(x̂')/τ) + KL(T/τ ‖ S(x̂)/τ)). The published equations are not available: our convention."""
    softened = teacher / temperature
    return temperature**2 * (kl(softened, adversarial / temperature) + kl(softened, student / temperature))


def balance(magnitudes: Tensor) -> Tensor:
    """Weights that bring terms of these mean magnitudes to equal size, none raised more than tenfold (convention)."""
    return 1 / magnitudes.clamp_min(0.1)
