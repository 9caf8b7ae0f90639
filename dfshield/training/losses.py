"""Training losses: pure functions of logits.

Every loss takes `clean` and `adversarial` (student logits on x̂ and x̂', shape (N,C)), `teacher` (teacher logits on x̂),
`labels` (N,) and the training options, and returns a scalar. A new training method writes its loss and one registry
entry.
"""

from typing import Literal

import torch
import torch.nn.functional as F

from dfshield.options import TrainingOptions


def kl(
    target: torch.Tensor, student: torch.Tensor, reduction: Literal["batchmean", "mean", "sum"] = "batchmean"
) -> torch.Tensor:
    """KL(target ‖ student) of the softmax distributions of two sets of logits (N,C).

    The sum is divided by N (``batchmean``), by N·C (``mean``) or by nothing (``sum``).
    """
    total = F.kl_div(F.log_softmax(student, 1), F.log_softmax(target, 1), reduction="sum", log_target=True)
    return total / {"batchmean": len(student), "mean": student.numel(), "sum": 1}[reduction]


def dfshield(
    clean: torch.Tensor,
    adversarial: torch.Tensor,
    teacher: torch.Tensor,
    labels: torch.Tensor,
    options: TrainingOptions,
) -> torch.Tensor:
    """L_DFShield = KL(S(x̂),T(x̂)) + λ₁ KL(S(x̂'),T(x̂)) + λ₂ KL(S(x̂'),S(x̂)) (Eq 11; the second is the target).

    The clean term carries a temperature t and the factor t², and its own reduction, for the released code's sake.
    """
    t = options.temperature
    distillation = t * t * kl(teacher / t, clean / t, options.clean_reduction)
    robust = kl(teacher, adversarial)
    smooth = kl(clean, adversarial)
    return distillation + options.lambda1 * robust + options.lambda2 * smooth


def trades(
    clean: torch.Tensor,
    adversarial: torch.Tensor,
    teacher: torch.Tensor,
    labels: torch.Tensor,
    options: TrainingOptions,
) -> torch.Tensor:
    """TRADES (Zhang et al. 2019): CE(S(x̂),ŷ) + β KL(S(x̂) ‖ S(x̂'))."""
    return F.cross_entropy(clean, labels) + options.beta * kl(clean, adversarial)


def std(
    clean: torch.Tensor,
    adversarial: torch.Tensor,
    teacher: torch.Tensor,
    labels: torch.Tensor,
    options: TrainingOptions,
) -> torch.Tensor:
    """Standard adversarial training (Madry et al. 2018): CE(S(x̂'),ŷ)."""
    return F.cross_entropy(adversarial, labels)
