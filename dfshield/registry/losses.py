"""Training losses and the inner maximisation that each is published with."""

from dataclasses import dataclass
from typing import Literal

from dfshield.registry.base import Entry

Inner = Literal["kl", "ce", "teacher", "loss", "none"]
"""Objective of the inner maximisation: KL to the student's clean output, cross entropy with the label, KL to the
teacher's clean output, the training loss itself, or none (a random point)."""
Start = Literal["normal", "uniform", "image"]
"""Start of the inner maximisation: 0.001 times a normal draw, uniform in the ball, or the image itself."""
Search = Literal["pgd", "single-step", "power", "nearest", "curriculum", "fosc"]
"""How the inner maximisation is solved: projected gradient ascent; one step of length ε; power iteration for the most
curved direction; ascent and then the nearest misclassified point on the way there; ascent with more steps as training
goes on; ascent that stops at a convergence that is asked for more and more strictly (FOSC)."""


@dataclass(frozen=True)
class Loss(Entry):
    """A training loss (tensors to a scalar) and what its paper pairs it with."""

    inner: Inner = "kl"
    start: Start = "normal"
    search: Search = "pgd"
    labels: Literal["data", "teacher"] = "data"
    """Labels of training and of the inner maximisation: those of the data, or the teacher's class."""
    input_gradient: bool = False
    """The loss takes one more argument, the images that the logits came from, to differentiate by; it has no x̂', so
    nothing is crafted and `adversarial` is `clean`."""
    robust_only: bool = False
    """The loss leaves the clean logits out, so that no gradient goes back through them: for the cost alone."""


LOSSES = {
    "dfshield": Loss("dfshield.training.losses:dfshield"),
    "trades": Loss("dfshield.training.losses:trades"),
    "std": Loss("dfshield.training.losses:std", inner="ce", start="uniform", robust_only=True),
    "std-soft": Loss("dfshield.training.losses:std_soft", inner="teacher", start="uniform", robust_only=True),
    "mart": Loss("dfshield.training.losses:mart", inner="ce"),
    "ard": Loss("dfshield.training.losses:ard", inner="ce", start="uniform"),
    "rslad": Loss("dfshield.training.losses:rslad", inner="teacher"),
    "alp": Loss("dfshield.training.losses:alp", inner="ce", start="uniform"),
    "clp": Loss("dfshield.training.losses:clp", inner="ce", start="uniform"),
    "mma": Loss("dfshield.training.losses:mma", inner="ce", start="uniform", search="nearest"),
    "mmc": Loss("dfshield.training.losses:mmc", inner="loss", start="uniform", robust_only=True),
    "vat": Loss("dfshield.training.losses:vat", search="power"),
    "fgsm": Loss("dfshield.training.losses:fgsm", inner="ce", start="image", search="single-step"),
    "curriculum": Loss(
        "dfshield.training.losses:std", inner="ce", start="uniform", search="curriculum", robust_only=True
    ),
    "dart": Loss("dfshield.training.losses:std", inner="ce", start="uniform", search="fosc", robust_only=True),
    "gradient-penalty": Loss(
        "dfshield.training.losses:gradient_penalty", inner="ce", start="uniform", input_gradient=True
    ),
    "uat": Loss("dfshield.training.losses:uat", inner="ce", start="uniform", labels="teacher", robust_only=True),
    "rst": Loss("dfshield.training.losses:trades", labels="teacher"),
}
