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
Search = Literal["pgd", "single-step", "power", "nearest", "curriculum", "fosc", "n-fgsm"]
"""How the inner maximisation is solved: a key of `SEARCHES`."""


@dataclass(frozen=True)
class SearchFacts:
    """Facts about a search; `dfshield.training.inner.SEARCHES` has its code, `core.schedules` its steps per epoch."""

    about: str
    norms: tuple[str, ...] = ("linf", "l2")
    """Norms of the balls that it searches."""
    objective: bool = True
    """Whether it climbs an objective that can be chosen."""
    beyond: float = 1.0
    """How far from x̂ it may end, in multiples of ε."""
    passes: Callable[[Any, int], int] | None = None
    """Used only by the cost model: forward passes of an image, ``(options of the loss, gradient steps) -> passes``. A
    gradient counts as one extra pass; the steps are 0 where nothing is climbed. None: not known, so not estimated."""


def _ascent(options: Any, steps: int) -> int:
    """The clean logits, then a forward pass and a gradient a step."""
    return 1 + 2 * steps if steps else 0


SEARCHES: dict[str, SearchFacts] = {
    "pgd": SearchFacts("projected gradient ascent", passes=_ascent),
    "single-step": SearchFacts("one step of length ε", passes=_ascent),
    "power": SearchFacts(
        "power iteration for the most curved direction",
        norms=("l2",),
        objective=False,
        # the logits and their derivative; each iteration differentiates the derivative, which takes two passes, too
        passes=lambda options, steps: 2 + 3 * options.iterations,
    ),
    "nearest": SearchFacts(
        "ascent, then the nearest misclassified point on the way there",
        passes=lambda options, steps: _ascent(options, steps) + options.halvings,
    ),
    "curriculum": SearchFacts("ascent with more steps as training goes on", passes=_ascent),
    "fosc": SearchFacts("ascent that stops at a convergence (FOSC), ever stricter over the epochs", passes=_ascent),
    "n-fgsm": SearchFacts(
        "noise of up to 2ε, then one step of length ε, not projected (de Jorge et al. 2022)",
        norms=("linf",),
        beyond=3.0,
        passes=_ascent,
    ),
}
BOTH, ROBUST_ONLY = 6, 4
"""Passes of a loss of both logits, and of one without the clean logits, through which no gradient goes back: a forward
pass counts as 1, the gradients of pixels and of weights as 1 each."""
CLEAN_ONLY = 3
"""Passes of a loss of the clean logits alone."""


@dataclass(frozen=True)
class Loss(Entry):
    """A training loss ``(outputs, options) -> scalar`` and the inner maximisation that its paper pairs it with."""

    inner: Inner = "kl"
    start: Start = "normal"
    search: Search = "pgd"
    """Its own search; an option may choose another: `TrainOptions.searched` is the one in force."""
    labels: Literal["data", "teacher"] = "data"
    """Labels of training and of the inner maximisation: those of the data, or the teacher's class."""
    crafts: bool = True
    """x̂' is found. Where it is not, `Outputs.adversarial` is `clean`, and the loss may differentiate by `images`."""
    passes: int | None = None
    """Used only by the cost model: forward passes of an image in the student's forward and backward pass. None: not
    known, so not estimated."""


LOSSES = {
    "dfshield": Loss(
        "dfshield.training.losses:dfshield",
        "L_DFShield",
        about="distillation, robust-teacher term and smoothness (Eq 11)",
        options="dfshield.options.training:Dfshield",
        passes=BOTH,
    ),
    "ikl": Loss(
        "dfshield.training.losses:ikl",
        "L_DFShield, IKL",
        about="L_DFShield with Improved KL in its robust and smoothness terms (Cui et al. 2024)",
        options="dfshield.options.training:Ikl",
        passes=BOTH,
    ),
    "trades": Loss(
        "dfshield.training.losses:trades",
        "TRADES",
        about="cross entropy and KL between clean and perturbed outputs (Zhang et al. 2019)",
        options="dfshield.options.training:Trades",
        passes=BOTH,
    ),
    "std": Loss(
        "dfshield.training.losses:std",
        "STD",
        about="cross entropy on perturbed images (Madry et al. 2018)",
        inner="ce",
        start="uniform",
        passes=ROBUST_ONLY,
    ),
    "std-soft": Loss(
        "dfshield.training.losses:std_soft",
        "STD, soft labels",
        about="KL from the teacher's outputs on perturbed images (section 3.2)",
        inner="teacher",
        start="uniform",
        passes=ROBUST_ONLY,
    ),
    "mart": Loss(
        "dfshield.training.losses:mart",
        "MART",
        about="boosted cross entropy and weighted KL (Wang et al. 2020)",
        options="dfshield.options.training:Mart",
        inner="ce",
        passes=BOTH,
    ),
    "ard": Loss(
        "dfshield.training.losses:ard",
        "ARD",
        about="adversarially robust distillation (Goldblum et al. 2020)",
        options="dfshield.options.training:Ard",
        inner="ce",
        start="uniform",
        passes=BOTH,
    ),
    "rslad": Loss(
        "dfshield.training.losses:rslad",
        "RSLAD",
        about="robust soft-label distillation (Zi et al. 2021)",
        options="dfshield.options.training:Rslad",
        inner="teacher",
        passes=BOTH,
    ),
    "alp": Loss(
        "dfshield.training.losses:alp",
        "ALP",
        about="adversarial logit pairing (Kannan et al. 2018)",
        options="dfshield.options.training:Alp",
        inner="ce",
        start="uniform",
        passes=BOTH,
    ),
    "clp": Loss(
        "dfshield.training.losses:clp",
        "CLP",
        about="clean logit pairing (Kannan et al. 2018)",
        options="dfshield.options.training:Clp",
        inner="ce",
        start="uniform",
        passes=BOTH,
    ),
    "mma": Loss(
        "dfshield.training.losses:mma",
        "MMA",
        about="max-margin training at each image's own margin (Ding et al. 2020)",
        options="dfshield.options.training:Mma",
        inner="ce",
        start="uniform",
        search="nearest",
        passes=BOTH,
    ),
    "mmc": Loss(
        "dfshield.training.losses:mmc",
        "MMC",
        about="max-Mahalanobis centres (Pang et al. 2020)",
        options="dfshield.options.training:Mmc",
        inner="loss",
        start="uniform",
        passes=ROBUST_ONLY,
    ),
    "vat": Loss(
        "dfshield.training.losses:vat",
        "VAT",
        about="virtual adversarial training, l2 (Miyato et al. 2016)",
        options="dfshield.options.training:Vat",
        search="power",
        passes=BOTH,
    ),
    "fgsm": Loss(
        "dfshield.training.losses:fgsm",
        "FGSM-AT",
        about="single-step training (Goodfellow et al. 2015)",
        options="dfshield.options.training:Fgsm",
        inner="ce",
        start="image",
        search="single-step",
        passes=BOTH,
    ),
    "curriculum": Loss(
        "dfshield.training.losses:std",
        "Curriculum",
        about="STD with more inner steps as training goes on (Cai et al. 2018)",
        inner="ce",
        start="uniform",
        search="curriculum",
        passes=ROBUST_ONLY,
    ),
    "dart": Loss(
        "dfshield.training.losses:std",
        "DART",
        about="STD to a convergence that grows with the epochs (Wang et al. 2019)",
        options="dfshield.options.training:Dart",
        inner="ce",
        start="uniform",
        search="fosc",
        passes=ROBUST_ONLY,
    ),
    "gradient-penalty": Loss(
        "dfshield.training.losses:gradient_penalty",
        "Gradient penalty",
        about="input-gradient regularisation (Ross and Doshi-Velez 2018)",
        options="dfshield.options.training:GradientPenalty",
        inner="ce",
        start="uniform",
        crafts=False,
        passes=BOTH,
    ),
    "distillation": Loss(
        "dfshield.training.losses:distillation",
        "Distillation",
        about="defensive distillation: logits that grow with the temperature (Papernot et al. 2016)",
        options="dfshield.options.training:Distillation",
        inner="ce",
        start="uniform",
        crafts=False,
        passes=CLEAN_ONLY,
    ),
    "uat": Loss(
        "dfshield.training.losses:uat",
        "UAT",
        about="the teacher's classes, and divergence from the teacher (Alayrac et al. 2019)",
        options="dfshield.options.training:Uat",
        inner="ce",
        start="uniform",
        labels="teacher",
        passes=ROBUST_ONLY,
    ),
    "rst": Loss(
        "dfshield.training.losses:trades",
        "RST",
        about="TRADES on the teacher's classes (Carmon et al. 2019)",
        options="dfshield.options.training:Trades",
        labels="teacher",
        passes=BOTH,
    ),
}
