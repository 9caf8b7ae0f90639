"""Training losses: pure functions of logits.

Every loss takes `clean` and `adversarial` (student logits on x̂ and x̂', shape (N,C)), `teacher` (teacher logits on x̂),
`labels` (N,) and the training options, and returns a scalar, the mean over the images unless it says otherwise. A new
training method writes its loss and one registry entry, which also says how x̂' is found and whose labels are meant.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F

from dfshield.core.fractions import fraction
from dfshield.options import TrainOptions


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
    options: TrainOptions,
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
    options: TrainOptions,
) -> torch.Tensor:
    """TRADES (Zhang et al. 2019): CE(S(x̂),ŷ) + β KL(S(x̂) ‖ S(x̂'))."""
    return F.cross_entropy(clean, labels) + options.beta * kl(clean, adversarial)


def std(
    clean: torch.Tensor,
    adversarial: torch.Tensor,
    teacher: torch.Tensor,
    labels: torch.Tensor,
    options: TrainOptions,
) -> torch.Tensor:
    """Standard adversarial training (Madry et al. 2018): CE(S(x̂'),ŷ)."""
    return F.cross_entropy(adversarial, labels)


def std_soft(
    clean: torch.Tensor,
    adversarial: torch.Tensor,
    teacher: torch.Tensor,
    labels: torch.Tensor,
    options: TrainOptions,
) -> torch.Tensor:
    """STD towards the soft labels of the teacher: KL(T(x̂) ‖ S(x̂')).

    For images whose own labels are not the teacher's classes (section 3.2 of the paper); its gradient is that of the
    cross entropy with T(x̂) in place of ŷ.
    """
    return kl(teacher, adversarial)


def mart(
    clean: torch.Tensor,
    adversarial: torch.Tensor,
    teacher: torch.Tensor,
    labels: torch.Tensor,
    options: TrainOptions,
) -> torch.Tensor:
    """MART (Wang et al. 2020): BCE(p',ŷ) + λ KL(p ‖ p') (1 - p_ŷ), with p and p' the student's on x̂ and x̂'.

    BCE = -log p'_ŷ - log(1.0001 - max of the other p'_k), the constant as in its released code.
    """
    p, wrong = clean.softmax(1), adversarial.softmax(1).scatter(1, labels[:, None], 0.0)
    boosted = F.cross_entropy(adversarial, labels) - (1.0001 - wrong.amax(1)).log().mean()
    divergence = F.kl_div(adversarial.log_softmax(1), clean.log_softmax(1), reduction="none", log_target=True).sum(1)
    misclassified = 1 - p.gather(1, labels[:, None])[:, 0]
    return boosted + options.mart_weight * (divergence * misclassified).mean()


def ard(
    clean: torch.Tensor,
    adversarial: torch.Tensor,
    teacher: torch.Tensor,
    labels: torch.Tensor,
    options: TrainOptions,
) -> torch.Tensor:
    """ARD (Goldblum et al. 2020): α t² KL(T(x̂)/t ‖ S(x̂')/t) + (1-α) CE(S(x̂),ŷ).

    KL is divided by images times classes, as in its released code.
    """
    t = options.ard_temperature
    distillation = t * t * kl(teacher / t, adversarial / t, "mean")
    return options.ard_alpha * distillation + (1 - options.ard_alpha) * F.cross_entropy(clean, labels)


def rslad(
    clean: torch.Tensor,
    adversarial: torch.Tensor,
    teacher: torch.Tensor,
    labels: torch.Tensor,
    options: TrainOptions,
) -> torch.Tensor:
    """RSLAD (Zi et al. 2021): α KL(T(x̂) ‖ S(x̂')) + (1-α) KL(T(x̂) ‖ S(x̂)), α = 5/6.

    KL is divided by images times classes, as in its released code.
    """
    alpha = fraction(options.rslad_alpha)
    return alpha * kl(teacher, adversarial, "mean") + (1 - alpha) * kl(teacher, clean, "mean")


def alp(
    clean: torch.Tensor,
    adversarial: torch.Tensor,
    teacher: torch.Tensor,
    labels: torch.Tensor,
    options: TrainOptions,
) -> torch.Tensor:
    """Adversarial logit pairing (Kannan et al. 2018): CE(S(x̂'),ŷ) + λ ‖z(x̂') - z(x̂)‖², of logits or of softmax."""
    pair = (adversarial, clean) if options.alp_pairs == "logits" else (adversarial.softmax(1), clean.softmax(1))
    return F.cross_entropy(adversarial, labels) + options.pairing_weight * _squared_distance(*pair)


def clp(
    clean: torch.Tensor,
    adversarial: torch.Tensor,
    teacher: torch.Tensor,
    labels: torch.Tensor,
    options: TrainOptions,
) -> torch.Tensor:
    """Clean logit pairing in the form that Wang et al. (2020, MART) compare with: CE(S(x̂),ŷ) + λ ‖p(x̂') - p(x̂)‖²."""
    return F.cross_entropy(clean, labels) + options.pairing_weight * _squared_distance(
        adversarial.softmax(1), clean.softmax(1)
    )


def _squared_distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a - b).square().sum(1).mean()


def mma(
    clean: torch.Tensor,
    adversarial: torch.Tensor,
    teacher: torch.Tensor,
    labels: torch.Tensor,
    options: TrainOptions,
) -> torch.Tensor:
    """Max-margin adversarial training (Ding et al. 2020, as in MART's comparison).

    CE(S(x̂'),ŷ) where x̂ is classified as ŷ and CE(S(x̂),ŷ) elsewhere; x̂' lies at the image's own margin, not at ε.
    """
    right = (clean.argmax(1) == labels)[:, None]
    return F.cross_entropy(torch.where(right, adversarial, clean), labels)


def mmc(
    clean: torch.Tensor,
    adversarial: torch.Tensor,
    teacher: torch.Tensor,
    labels: torch.Tensor,
    options: TrainOptions,
) -> torch.Tensor:
    """Max-Mahalanobis centre loss (Pang et al. 2020) on x̂': ½ ‖z - μ_ŷ‖².

    The C centres μ have norm `mmc_norm` and the largest angle between any two of them. Here z are the logits and μ_k
    points along unit vector k less its mean, so the nearest centre is the largest logit and no layer is replaced.
    """
    classes = adversarial.shape[1]
    simplex = torch.eye(classes, device=adversarial.device) - 1 / classes
    centres = options.mmc_norm * math.sqrt(classes / (classes - 1)) * simplex
    return 0.5 * _squared_distance(adversarial, centres[labels])


def vat(
    clean: torch.Tensor,
    adversarial: torch.Tensor,
    teacher: torch.Tensor,
    labels: torch.Tensor,
    options: TrainOptions,
) -> torch.Tensor:
    """Virtual adversarial training (Miyato et al. 2016): CE(S(x̂),ŷ) + λ KL(S(x̂) ‖ S(x̂')), the target held fixed."""
    return F.cross_entropy(clean, labels) + options.vat_weight * kl(clean.detach(), adversarial)


def fgsm(
    clean: torch.Tensor,
    adversarial: torch.Tensor,
    teacher: torch.Tensor,
    labels: torch.Tensor,
    options: TrainOptions,
) -> torch.Tensor:
    """Training on single-step images (Goodfellow et al. 2015): α CE(S(x̂),ŷ) + (1-α) CE(S(x̂'),ŷ)."""
    alpha = options.fgsm_alpha
    return alpha * F.cross_entropy(clean, labels) + (1 - alpha) * F.cross_entropy(adversarial, labels)


def uat(
    clean: torch.Tensor,
    adversarial: torch.Tensor,
    teacher: torch.Tensor,
    labels: torch.Tensor,
    options: TrainOptions,
) -> torch.Tensor:
    """Unsupervised adversarial training (Alayrac et al. 2019): CE(S(x̂'),ŷ) + λ KL(T(x̂) ‖ S(x̂')).

    `labels` are the teacher's classes (UAT-FT); the teacher is also the fixed model of the divergence (UAT-OT).
    """
    return F.cross_entropy(adversarial, labels) + options.uat_weight * kl(teacher, adversarial)


def gradient_penalty(
    clean: torch.Tensor,
    adversarial: torch.Tensor,
    teacher: torch.Tensor,
    labels: torch.Tensor,
    options: TrainOptions,
    images: torch.Tensor,
) -> torch.Tensor:
    """Input-gradient regularisation (Ross and Doshi-Velez 2018): CE(S(x̂),ŷ) + λ ‖∇_x̂ CE‖², both per image.

    `images` (N,C,H,W) are the leaf tensor that `clean` was computed from; the penalty is differentiated twice.
    """
    loss = F.cross_entropy(clean, labels, reduction="sum")
    (slope,) = torch.autograd.grad(loss, images, create_graph=True)
    return (loss + options.gradient_weight * slope.square().sum()) / len(images)
