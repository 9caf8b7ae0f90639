"""Training losses: pure functions of logits.

Every loss takes the networks' `Outputs` on a mini-batch and its own options, and returns a scalar, the mean over the
images unless it says otherwise. A new training method writes its loss and one registry entry, which also says how x̂' is
found and whose labels are meant.
"""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F

from dfshield.core.fractions import fraction
from dfshield.options import TrainOptions
from dfshield.options.training import (
    Alp,
    Ard,
    Clp,
    Dfshield,
    Distillation,
    Fgsm,
    GradientPenalty,
    Ikl,
    Mart,
    Mmc,
    Rslad,
    Trades,
    Uat,
    Vat,
)


class Outputs(NamedTuple):
    """What the networks say of a mini-batch of N images in C classes."""

    clean: torch.Tensor
    """Student logits (N,C) on the clean images x̂."""
    adversarial: torch.Tensor
    """Student logits (N,C) on the perturbed images x̂'; those on x̂ for a loss that crafts none."""
    teacher: torch.Tensor
    """Teacher logits (N,C) on x̂."""
    labels: torch.Tensor
    """Labels ŷ (N,)."""
    images: torch.Tensor | None = None
    """For a loss of the input gradient: the leaf tensor (N,C,H,W) that `clean` was computed from."""
    features: "Features | None" = None
    """For a loss of features."""


class Features(NamedTuple):
    """Features (N,D) of every stage, as `dfshield.models.stage_features` has them."""

    clean: list[torch.Tensor]
    """Student's on x̂."""
    adversarial: list[torch.Tensor]
    """Student's on x̂'."""
    teacher: list[torch.Tensor]
    """Teacher's on x̂."""


def kl(
    target: torch.Tensor, student: torch.Tensor, reduction: Literal["batchmean", "mean", "sum"] = "batchmean"
) -> torch.Tensor:
    """KL(target ‖ student) of the softmax distributions of two sets of logits (N,C).

    The sum is divided by N (``batchmean``), by N·C (``mean``) or by nothing (``sum``).
    """
    total = F.kl_div(F.log_softmax(student, 1), F.log_softmax(target, 1), reduction="sum", log_target=True)
    return total / {"batchmean": len(student), "mean": student.numel(), "sum": 1}[reduction]


def dfshield(out: Outputs, options: Dfshield) -> torch.Tensor:
    """L_DFShield = KL(S(x̂),T(x̂)) + λ₁ KL(S(x̂'),T(x̂)) + λ₂ KL(S(x̂'),S(x̂)) (Eq 11; the second is the target).

    The clean term carries a temperature t and the factor t², and its own reduction, for the released code's sake.
    With `features` above 0 that multiple of `feature_distance` is added, which is ours.
    """
    t = options.temperature
    distillation = t * t * kl(out.teacher / t, out.clean / t, options.clean_reduction)
    robust = kl(out.teacher, out.adversarial)
    smooth = kl(out.clean, out.adversarial)
    total = distillation + options.lambda1 * robust + options.lambda2 * smooth
    return total if out.features is None else total + options.features * feature_distance(out.features)


def feature_distance(features: Features) -> torch.Tensor:
    """Distance of the student's features on x̂ and on x̂' from the teacher's on x̂: the mean over the stages of

    (‖f_S(x̂) - f_T(x̂)‖² + ‖f_S(x̂') - f_T(x̂)‖²) / ‖f_T(x̂)‖², each norm over the whole mini-batch.
    """
    stages = zip(features.clean, features.adversarial, features.teacher, strict=True)
    shares = [
        ((c - t).square().sum() + (a - t).square().sum()) / t.square().sum().clamp(min=1e-12) for c, a, t in stages
    ]
    return torch.stack(shares).mean()


def ikl(out: Outputs, options: Ikl) -> torch.Tensor:
    """L_DFShield with IKL (Cui et al. 2024) in place of KL in its robust and smoothness terms:

    KL(S(x̂),T(x̂)) + λ₁ IKL(T(x̂) ‖ S(x̂')) + λ₂ IKL(S(x̂) ‖ S(x̂')), IKL as in `decoupled_kl`.

    Differs from the publication:
    - The weights of the squares are the image's own; the publication takes the mean over the images of a class.
    - The terms are those of L_DFShield; the publication has cross entropy with labels, and the smoothness term alone.
    """
    weights = options.alpha, options.beta
    robust = decoupled_kl(out.teacher, out.adversarial, *weights)
    consistent = decoupled_kl(out.clean, out.adversarial, *weights)
    return kl(out.teacher, out.clean) + options.lambda1 * robust + options.lambda2 * consistent


def decoupled_kl(
    target: torch.Tensor, student: torch.Tensor, alpha: float = 1.0, beta: float = 1.0, both: bool = True
) -> torch.Tensor:
    """Decoupled KL of two sets of logits o_m, the target, and o_n (N,C) (Cui et al. 2024), the mean over the images of

    α/4 Σ_jk w_jk (Δm_jk - Δn_jk)² + β CE(s_m, s_n), where Δm_jk = o_m[j] - o_m[k], s = softmax, w_jk = s_m[j] s_m[k].

    w and the s_m of the cross entropy are constants. If not `both`, Δn is one, too: this is DKL, which at α = β = 1 has
    the gradients of KL(s_m ‖ s_n). With `both` it is IKL: the squares also move o_n, even to a target that is fixed.
    """
    shares = target.detach().softmax(1)
    difference = target - (student if both else student.detach())
    deviation = difference - (shares * difference).sum(1, keepdim=True)
    squares = 2 * (shares * deviation.square()).sum(1).mean()  # pairs of classes: twice the variance under s_m
    return alpha / 4 * squares + beta * F.cross_entropy(student, shares)


def trades(out: Outputs, options: Trades) -> torch.Tensor:
    """TRADES (Zhang et al. 2019): CE(S(x̂),ŷ) + β KL(S(x̂) ‖ S(x̂'))."""
    return trades_loss(out.clean, out.adversarial, out.labels, options.beta)


def trades_loss(clean: torch.Tensor, adversarial: torch.Tensor, labels: torch.Tensor, beta: float) -> torch.Tensor:
    """CE(clean, labels) + β KL(clean ‖ adversarial) of logits (N,C) and labels (N,)."""
    return F.cross_entropy(clean, labels) + beta * kl(clean, adversarial)


def std(out: Outputs, options: TrainOptions) -> torch.Tensor:
    """Standard adversarial training (Madry et al. 2018): CE(S(x̂'),ŷ)."""
    return F.cross_entropy(out.adversarial, out.labels)


def std_soft(out: Outputs, options: TrainOptions) -> torch.Tensor:
    """STD towards the soft labels of the teacher: KL(T(x̂) ‖ S(x̂')).

    For images whose own labels are not the teacher's classes (section 3.2 of the paper); its gradient is that of the
    cross entropy with T(x̂) in place of ŷ.
    """
    return kl(out.teacher, out.adversarial)


def mart(out: Outputs, options: Mart) -> torch.Tensor:
    """MART (Wang et al. 2020): BCE(p',ŷ) + λ KL(p ‖ p') (1 - p_ŷ), with p and p' the student's on x̂ and x̂'.

    BCE = -log p'_ŷ - log(1.0001 - max of the other p'_k), the constant as in its released code.
    """
    p, wrong = out.clean.softmax(1), out.adversarial.softmax(1).scatter(1, out.labels[:, None], 0.0)
    boosted = F.cross_entropy(out.adversarial, out.labels) - (1.0001 - wrong.amax(1)).log().mean()
    divergence = F.kl_div(
        out.adversarial.log_softmax(1), out.clean.log_softmax(1), reduction="none", log_target=True
    ).sum(1)
    misclassified = 1 - p.gather(1, out.labels[:, None])[:, 0]
    return boosted + options.weight * (divergence * misclassified).mean()


def ard(out: Outputs, options: Ard) -> torch.Tensor:
    """ARD (Goldblum et al. 2020): α t² KL(T(x̂)/t ‖ S(x̂')/t) + (1-α) CE(S(x̂),ŷ).

    KL is divided by images times classes, as in its released code.
    """
    t = options.temperature
    distillation = t * t * kl(out.teacher / t, out.adversarial / t, "mean")
    return options.alpha * distillation + (1 - options.alpha) * F.cross_entropy(out.clean, out.labels)


def rslad(out: Outputs, options: Rslad) -> torch.Tensor:
    """RSLAD (Zi et al. 2021): α KL(T(x̂) ‖ S(x̂')) + (1-α) KL(T(x̂) ‖ S(x̂)), α = 5/6.

    KL is divided by images times classes, as in its released code.
    """
    alpha = fraction(options.alpha)
    return alpha * kl(out.teacher, out.adversarial, "mean") + (1 - alpha) * kl(out.teacher, out.clean, "mean")


def alp(out: Outputs, options: Alp) -> torch.Tensor:
    """Adversarial logit pairing (Kannan et al. 2018): CE(S(x̂'),ŷ) + λ ‖z(x̂') - z(x̂)‖², of logits or of softmax."""
    pair = (
        (out.adversarial, out.clean)
        if options.pairs == "logits"
        else (out.adversarial.softmax(1), out.clean.softmax(1))
    )
    return F.cross_entropy(out.adversarial, out.labels) + options.weight * _squared_distance(*pair)


def clp(out: Outputs, options: Clp) -> torch.Tensor:
    """Clean logit pairing in the form that Wang et al. (2020, MART) compare with: CE(S(x̂),ŷ) + λ ‖p(x̂') - p(x̂)‖²."""
    return F.cross_entropy(out.clean, out.labels) + options.weight * _squared_distance(
        out.adversarial.softmax(1), out.clean.softmax(1)
    )


def _squared_distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a - b).square().sum(1).mean()


def mma(out: Outputs, options: TrainOptions) -> torch.Tensor:
    """Max-margin adversarial training (Ding et al. 2020, as in MART's comparison).

    CE(S(x̂'),ŷ) where x̂ is classified as ŷ and CE(S(x̂),ŷ) elsewhere; x̂' lies at the image's own margin, not at ε.
    """
    right = (out.clean.argmax(1) == out.labels)[:, None]
    return F.cross_entropy(torch.where(right, out.adversarial, out.clean), out.labels)


def mmc(out: Outputs, options: Mmc) -> torch.Tensor:
    """Max-Mahalanobis centre loss (Pang et al. 2020) on x̂': ½ ‖z - μ_ŷ‖².

    The C centres μ have norm `norm` and the largest angle between any two of them. Here z are the logits and μ_k
    points along unit vector k less its mean, so the nearest centre is the largest logit and no layer is replaced.
    """
    classes = out.adversarial.shape[1]
    simplex = torch.eye(classes, device=out.adversarial.device) - 1 / classes
    centres = options.norm * math.sqrt(classes / (classes - 1)) * simplex
    return 0.5 * _squared_distance(out.adversarial, centres[out.labels])


def vat(out: Outputs, options: Vat) -> torch.Tensor:
    """Virtual adversarial training (Miyato et al. 2016): CE(S(x̂),ŷ) + λ KL(S(x̂) ‖ S(x̂')), the target held fixed."""
    return F.cross_entropy(out.clean, out.labels) + options.weight * kl(out.clean.detach(), out.adversarial)


def fgsm(out: Outputs, options: Fgsm) -> torch.Tensor:
    """Training on single-step images (Goodfellow et al. 2015): α CE(S(x̂),ŷ) + (1-α) CE(S(x̂'),ŷ)."""
    alpha = options.alpha
    return alpha * F.cross_entropy(out.clean, out.labels) + (1 - alpha) * F.cross_entropy(out.adversarial, out.labels)


def uat(out: Outputs, options: Uat) -> torch.Tensor:
    """Unsupervised adversarial training (Alayrac et al. 2019): CE(S(x̂'),ŷ) + λ KL(T(x̂) ‖ S(x̂')).

    `labels` are the teacher's classes (UAT-FT); the teacher is also the fixed model of the divergence (UAT-OT).
    """
    return F.cross_entropy(out.adversarial, out.labels) + options.weight * kl(out.teacher, out.adversarial)


def distillation(out: Outputs, options: Distillation) -> torch.Tensor:
    """Defensive distillation (Papernot et al. 2016): t CE(softmax(z/t), T(x̂)), z the student's logits on x̂.

    Where the student answers as the teacher does, z is t times the teacher's logits, so that at temperature 1, at which
    it is used, its softmax saturates and its cross entropy has next to no slope. The defence is no more than that.

    Differs from the publication: the teacher was trained at temperature 1, at which T(x̂) is read, too; the publication
    trains it at t and reads it there. With the factor t the slope in z does not shrink with t.
    """
    t = options.temperature
    return t * F.cross_entropy(out.clean / t, out.teacher.softmax(1))


def gradient_penalty(out: Outputs, options: GradientPenalty) -> torch.Tensor:
    """Input-gradient regularisation (Ross and Doshi-Velez 2018): CE(S(x̂),ŷ) + λ ‖∇_x̂ CE‖², both per image.

    The penalty is differentiated twice.
    """
    assert out.images is not None
    loss = F.cross_entropy(out.clean, out.labels, reduction="sum")
    (slope,) = torch.autograd.grad(loss, out.images, create_graph=True)
    return (loss + options.weight * slope.square().sum()) / len(out.images)
