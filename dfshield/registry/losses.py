"""Training losses and the inner maximisation that each is published with."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from dfshield.registry.entry import Entry

Inner = Literal["kl", "ce", "teacher", "loss", "none"]
"""Objective of the inner maximisation: KL to the student's clean output, cross entropy with the label, KL to the
teacher's clean output, the training loss itself, or none (a random point)."""
Start = Literal["normal", "uniform", "image"]
"""Start of the inner maximisation: 0.001 times a normal draw, uniform in the ball, or the image itself."""
Search = Literal["pgd", "single-step", "power", "nearest", "curriculum", "fosc"]
"""How the inner maximisation is solved: a key of `SEARCHES`."""


@dataclass(frozen=True)
class SearchFacts:
    """What others must know of a search; `dfshield.training.inner.SEARCHES` has its code."""

    about: str
    norms: tuple[str, ...] = ("linf", "l2")
    second_derivatives: bool = False
    """Generated code has none."""
    passes: Callable[[Any, int], float] | None = None
    """For the cost model: forward passes of an image beyond those of the gradient steps, by the loss's options and the
    number of steps; None: none but the clean logits."""


SEARCHES: dict[str, SearchFacts] = {
    "pgd": SearchFacts("projected gradient ascent"),
    "single-step": SearchFacts("one step of length ε"),
    # the logits and their derivative; in each iteration its derivative, twice a pass, too
    "power": SearchFacts(
        "power iteration for the most curved direction",
        norms=("l2",),
        second_derivatives=True,
        passes=lambda options, steps: 2 + 3 * options.iterations,
    ),
    "nearest": SearchFacts(
        "ascent, then the nearest misclassified point on the way there", passes=lambda options, steps: options.halvings
    ),
    "curriculum": SearchFacts("ascent with more steps as training goes on"),
    "fosc": SearchFacts("ascent that stops at a convergence (FOSC) that is asked for more strictly with the epochs"),
}


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
    "dfshield": Loss(
        "dfshield.training.losses:dfshield",
        "L_DFShield",
        about="distillation, robust-teacher term and smoothness (Eq 11)",
        options="dfshield.options.training:Dfshield",
    ),
    "trades": Loss(
        "dfshield.training.losses:trades",
        "TRADES",
        about="cross entropy and KL between clean and perturbed outputs (Zhang et al. 2019)",
        options="dfshield.options.training:Trades",
    ),
    "std": Loss(
        "dfshield.training.losses:std",
        "STD",
        about="cross entropy on perturbed images (Madry et al. 2018)",
        inner="ce",
        start="uniform",
        robust_only=True,
    ),
    "std-soft": Loss(
        "dfshield.training.losses:std_soft",
        "STD, soft labels",
        about="KL from the teacher's outputs on perturbed images (section 3.2)",
        inner="teacher",
        start="uniform",
        robust_only=True,
    ),
    "mart": Loss(
        "dfshield.training.losses:mart",
        "MART",
        about="boosted cross entropy and weighted KL (Wang et al. 2020)",
        options="dfshield.options.training:Mart",
        inner="ce",
    ),
    "ard": Loss(
        "dfshield.training.losses:ard",
        "ARD",
        about="adversarially robust distillation (Goldblum et al. 2020)",
        options="dfshield.options.training:Ard",
        inner="ce",
        start="uniform",
    ),
    "rslad": Loss(
        "dfshield.training.losses:rslad",
        "RSLAD",
        about="robust soft-label distillation (Zi et al. 2021)",
        options="dfshield.options.training:Rslad",
        inner="teacher",
    ),
    "alp": Loss(
        "dfshield.training.losses:alp",
        "ALP",
        about="adversarial logit pairing (Kannan et al. 2018)",
        options="dfshield.options.training:Alp",
        inner="ce",
        start="uniform",
    ),
    "clp": Loss(
        "dfshield.training.losses:clp",
        "CLP",
        about="clean logit pairing (Kannan et al. 2018)",
        options="dfshield.options.training:Clp",
        inner="ce",
        start="uniform",
    ),
    "mma": Loss(
        "dfshield.training.losses:mma",
        "MMA",
        about="max-margin training at each image's own margin (Ding et al. 2020)",
        options="dfshield.options.training:Mma",
        inner="ce",
        start="uniform",
        search="nearest",
    ),
    "mmc": Loss(
        "dfshield.training.losses:mmc",
        "MMC",
        about="max-Mahalanobis centres (Pang et al. 2020)",
        options="dfshield.options.training:Mmc",
        inner="loss",
        start="uniform",
        robust_only=True,
    ),
    "vat": Loss(
        "dfshield.training.losses:vat",
        "VAT",
        about="virtual adversarial training, l2 (Miyato et al. 2016)",
        options="dfshield.options.training:Vat",
        search="power",
    ),
    "fgsm": Loss(
        "dfshield.training.losses:fgsm",
        "FGSM-AT",
        about="single-step training (Goodfellow et al. 2015)",
        options="dfshield.options.training:Fgsm",
        inner="ce",
        start="image",
        search="single-step",
    ),
    "curriculum": Loss(
        "dfshield.training.losses:std",
        "Curriculum",
        about="STD with more inner steps as training goes on (Cai et al. 2018)",
        inner="ce",
        start="uniform",
        search="curriculum",
        robust_only=True,
    ),
    "dart": Loss(
        "dfshield.training.losses:std",
        "DART",
        about="STD to a convergence that grows with the epochs (Wang et al. 2019)",
        options="dfshield.options.training:Dart",
        inner="ce",
        start="uniform",
        search="fosc",
        robust_only=True,
    ),
    "gradient-penalty": Loss(
        "dfshield.training.losses:gradient_penalty",
        "Gradient penalty",
        about="input-gradient regularisation (Ross and Doshi-Velez 2018)",
        options="dfshield.options.training:GradientPenalty",
        inner="ce",
        start="uniform",
        input_gradient=True,
    ),
    "uat": Loss(
        "dfshield.training.losses:uat",
        "UAT",
        about="the teacher's classes, and divergence from the teacher (Alayrac et al. 2019)",
        options="dfshield.options.training:Uat",
        inner="ce",
        start="uniform",
        labels="teacher",
        robust_only=True,
    ),
    "rst": Loss(
        "dfshield.training.losses:trades",
        "RST",
        about="TRADES on the teacher's classes (Carmon et al. 2019)",
        options="dfshield.options.training:Trades",
        labels="teacher",
    ),
}
