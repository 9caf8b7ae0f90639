"""Methods that train a generator and a student together."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from dfshield.registry.entry import Entry


@dataclass(frozen=True)
class Baseline(Entry):
    """A method that trains a generator and a student together, and its inner maximisation.

    ``target`` is a subclass of ``dfshield.baselines.method:Method``. Such a method has no training data: it is a
    recipe with source ``none``.
    """

    inner: Literal["kl", "ce"] = "ce"
    """``ce`` is the cross entropy with the teacher's class."""
    start: Literal["normal", "uniform"] = "uniform"
    generator_loss: str = ""
    """What the generator minimises, in the notation of table 2 (ℓ: log-probabilities less their mean)."""
    student_loss: str = ""
    """What the student minimises, in the same notation."""
    generator_passes: int | Callable[[Any], int] | None = None
    """Used only by the cost model: forward passes of teacher and student per image in one generator step. A gradient
    with respect to the pixels counts as one extra pass. A function of the options if it depends on them. None: not
    known, so not estimated."""
    statistics: bool = False
    """Works by matching running statistics of BatchNorm layers, so a network without any is refused."""
    student_inputs: int = 1
    """Used only by the cost model: versions of an image in the student's loss, x' alone or x too."""


BASELINES = {
    "dast": Baseline(
        "dfshield.baselines.dast:Dast",
        "DaST",
        about="data-free substitute training (Zhou et al. 2020)",
        options="dfshield.options.baselines:Dast",
        generator_loss="exp(−CE(S(x), argmax(T(x))) − β·MSE(softmax(S(x)), softmax(T(x)))) + α·CE(S(x), y)",
        student_loss="CE(S(x'), argmax(T(x))) + β·MSE(softmax(S(x')), softmax(T(x)))",
        generator_passes=3,  # the teacher's answer is a constant
    ),
    "dfme": Baseline(
        "dfshield.baselines.dfme:Dfme",
        "DFME",
        about="data-free model extraction (Truong et al. 2021)",
        options="dfshield.options.baselines:Dfme",
        generator_loss="−‖S(x) − ℓ(T(x))‖₁/C",
        student_loss="‖S(x') − ℓ(T(x))‖₁/C",
        generator_passes=lambda options: 4 if options.gradient == "exact" else 2 * (1 + options.directions),
    ),
    "ait": Baseline(
        "dfshield.baselines.ait:Ait",
        "AIT",
        about="GDFQ's generator, the student by TRADES (Choi et al. 2022)",
        options="dfshield.options.baselines:Ait",
        inner="kl",
        start="normal",
        generator_loss="CE(T(x), y) + w·BN(x)",
        student_loss="CE(S(x), y) + β·KL(S(x), S(x'))",
        generator_passes=2,  # the teacher alone
        statistics=True,
        student_inputs=2,
    ),
    "dfard": Baseline(
        "dfshield.baselines.dfard:Dfard",
        "DFARD",
        about="data-free adversarially robust distillation, by our convention (Wang et al. 2024)",
        options="dfshield.options.baselines:Dfard",
        generator_loss="w₁·CE(T(x), y) + w₂·BN(x) − w₃·KL(T(x), S(x))",
        student_loss="τ²·(KL(T(x)/τ, S(x')/τ) + KL(T(x)/τ, S(x)/τ))",
        generator_passes=4,
        statistics=True,
        student_inputs=2,
    ),
}
