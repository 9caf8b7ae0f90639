"""The inner maximisation of adversarial training: find x̂' near x̂ (Eq 2, 7)."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F

from dfshield.attacks.threat import project, random_start, step
from dfshield.options import CotrainingOptions, TrainingOptions
from dfshield.runtime import fraction
from dfshield.threat import Threat
from dfshield.training.losses import kl


def step_size(options: TrainingOptions | CotrainingOptions, threat: Threat) -> float:
    """ε/4 for l∞; for l2 the stated step (15/255 in the paper, ε/5 in the released code)."""
    if threat.norm == "linf":
        return threat.eps / 4
    return threat.eps / 5 if options.l2_step == "eps/5" else fraction(options.l2_step)


def maximise(
    model: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    labels: torch.Tensor,
    objective: Literal["kl", "ce"],
    start: Literal["normal", "uniform"],
    threat: Threat,
    steps: int,
    size: float,
    generator: torch.Generator,
) -> torch.Tensor:
    """Projected gradient ascent from a random start; returns x̂' (N,C,H,W) within ε of `x` and in [0,1].

    `kl` maximises Σ KL(S(x̂) ‖ S(x̂')), `ce` the cross entropy with `labels`. `model` must be in eval mode with frozen
    parameters; the clean logits are computed once.
    """
    with torch.no_grad():
        clean = model(x).float()
    adversarial = random_start(x, threat, generator, start)
    for _ in range(steps):
        adversarial.requires_grad_()
        logits = model(adversarial).float()
        loss = kl(clean, logits, "sum") if objective == "kl" else F.cross_entropy(logits, labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, adversarial)
        adversarial = project(x, step(adversarial.detach(), gradient, size, threat.norm), threat)
    return adversarial
