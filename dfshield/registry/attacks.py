"""Attacks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from dfshield.registry.entry import Entry, named


@dataclass(frozen=True)
class Attack(Entry):
    """``(problem, options) -> x_adv``, or an ensemble of such."""

    ensemble: bool = False
    """The target is ``(options, input_shape, classes) -> Ensemble`` instead."""
    access: Literal["none", "gradients", "scores", "labels"] = "gradients"
    """What it asks of the model."""
    minimal: bool = False
    """It finds the smallest perturbation of an image, however large, instead of any within ε."""
    norms: tuple[str, ...] = ("linf", "l2")
    """Norms of the threat models that it can attack within."""
    needs: tuple[str, ...] = ()
    """What else it needs: ``teacher`` or ``surrogate``, other models; ``guide``, images of other classes."""
    passes: str = ""
    """For the cost model: ``module:function`` from ``(options, images, robust, classes)`` to forward passes; without it
    the attack is not estimated."""

    def count(self) -> Callable[[Any, int, float, int], float] | None:
        """The function of `passes`; None for an attack that is not estimated."""
        return named(self.passes) if self.passes else None


ATTACKS = {
    "clean": Attack(
        "dfshield.attacks.base:clean",
        "Clean",
        about="no attack: the images as they are",
        access="none",
        passes="dfshield.attacks.budget:clean_passes",
    ),
    "fgsm": Attack(
        "dfshield.attacks.fgsm:fgsm",
        "FGSM",
        about="one step of length ε along the gradient (Goodfellow et al. 2015)",
        passes="dfshield.attacks.budget:fgsm_passes",
    ),
    "pgd": Attack(
        "dfshield.attacks.pgd:pgd",
        "PGD",
        about="projected gradient ascent from random starts (Madry et al. 2018)",
        options="dfshield.options.attacks:Pgd",
        passes="dfshield.attacks.budget:pgd_passes",
    ),
    "deepfool": Attack(
        "dfshield.attacks.deepfool:deepfool",
        "DeepFool",
        about="steps to the nearest boundary of the linearised model (Moosavi-Dezfooli et al. 2016)",
        options="dfshield.options.attacks_minimal:DeepFool",
        minimal=True,
        passes="dfshield.attacks.budget:deepfool_passes",
    ),
    "cw": Attack(
        "dfshield.attacks.cw:cw",
        "C&W",
        about="the smallest perturbation by penalised minimisation (Carlini and Wagner 2017)",
        options="dfshield.options.attacks_minimal:CarliniWagner",
        minimal=True,
        passes="dfshield.attacks.budget:cw_passes",
    ),
    "fab": Attack(
        "dfshield.attacks.fab:fab",
        "FAB-T",
        about="projections onto linearised boundaries to the likeliest wrong classes (Croce and Hein 2020)",
        options="dfshield.options.attacks_minimal:Fab",
        minimal=True,
        passes="dfshield.attacks.budget:fab_passes",
    ),
    "autoattack": Attack(
        "dfshield.attacks.autoattack:autoattack",
        "AutoAttack",
        about="APGD-CE, targeted APGD and FAB, Square, each on the survivors (Croce and Hein 2020)",
        options="dfshield.options.attacks:AutoAttack",
        ensemble=True,
        passes="dfshield.attacks.budget:autoattack_passes",
    ),
}
