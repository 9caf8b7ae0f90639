"""Attacks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from dfshield.registry.entry import Entry, named

EVERYWHERE = "linf:1"
"""The threat model whose ball around any image holds every other: no bound at all."""


@dataclass(frozen=True)
class Attack(Entry):
    """``(problem, options) -> x_adv``, or an ensemble of such."""

    ensemble: bool = False
    """The target is ``(options, input_shape, classes) -> Ensemble`` instead."""
    access: Literal["none", "gradients", "scores", "labels"] = "gradients"
    """What it asks of the model."""
    aim: Literal["label", "output"] = "label"
    """What it moves an image away from: its label, or the output, whichever way that leads."""
    bf16_safe: bool = False
    """It works as well in bf16: it follows signs of gradients, not small differences of logits."""
    minimal: bool = False
    """It finds the smallest perturbation of an image, however large, instead of any within ε."""
    replaces: bool = False
    """It shows every image in another form, which is judged by itself, be the image right as it is or wrong; no ε
    bounds it, so its threat model is `EVERYWHERE`."""
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
        norms=("linf", "l2", "l1"),
        passes="dfshield.attacks.budget:clean_passes",
    ),
    "corruption": Attack(
        "dfshield.attacks.corruption:corruption",
        "Corruption",
        about="noise, blur, weather or digital damage in place of an attack (Hendrycks and Dietterich 2019)",
        options="dfshield.options.attacks_corruption:Corruption",
        access="none",
        replaces=True,
        norms=("linf",),
        passes="dfshield.attacks.budget:clean_passes",
    ),
    "fgsm": Attack(
        "dfshield.attacks.fgsm:fgsm",
        "FGSM",
        about="one step of length ε along the gradient (Goodfellow et al. 2015)",
        bf16_safe=True,
        passes="dfshield.attacks.budget:fgsm_passes",
    ),
    "pgd": Attack(
        "dfshield.attacks.pgd:pgd",
        "PGD",
        about="projected gradient ascent from random starts (Madry et al. 2018)",
        options="dfshield.options.attacks:Pgd",
        bf16_safe=True,
        norms=("linf", "l2", "l1"),
        passes="dfshield.attacks.budget:pgd_passes",
    ),
    "mi-fgsm": Attack(
        "dfshield.attacks.mifgsm:mi_fgsm",
        "MI-FGSM",
        about="gradient ascent with momentum (Dong et al. 2018)",
        options="dfshield.options.attacks_gradients:MiFgsm",
        bf16_safe=True,
        passes="dfshield.attacks.budget:steps_passes",
    ),
    "transfer": Attack(
        "dfshield.attacks.transfer:transfer",
        "Transfer",
        about="PGD on another model, tried on this one (Papernot et al. 2017)",
        options="dfshield.options.attacks_gradients:Transfer",
        access="none",
        needs=("surrogate",),
        bf16_safe=True,
        passes="dfshield.attacks.budget:pgd_passes",
    ),
    "tpgd": Attack(
        "dfshield.attacks.modified:tpgd",
        "TPGD",
        about="PGD away from the model's own output on the clean image (Zhang et al. 2019)",
        options="dfshield.options.attacks_gradients:Tpgd",
        aim="output",
        bf16_safe=True,
        passes="dfshield.attacks.budget:modified_passes",
    ),
    "modified-pgd": Attack(
        "dfshield.attacks.modified:modified_pgd",
        "Modified PGD",
        about="PGD away from the teacher's output on the clean image, or from both models' (Lee et al. 2024)",
        options="dfshield.options.attacks_gradients:ModifiedPgd",
        aim="output",
        needs=("teacher",),
        bf16_safe=True,
        passes="dfshield.attacks.budget:modified_passes",
    ),
    "latent": Attack(
        "dfshield.attacks.latent:latent",
        "Latent",
        about="towards the penultimate features of another class's image, by L-BFGS (Sabour et al. 2016)",
        options="dfshield.options.attacks_gradients:Latent",
        aim="output",
        norms=("linf",),
        needs=("guide",),
        passes="dfshield.attacks.budget:latent_passes",
    ),
    "md": Attack(
        "dfshield.attacks.margins:margin_decomposition",
        "MD",
        about="margin decomposition: one term of the margin, then the margin (Ma et al. 2020)",
        options="dfshield.options.attacks_gradients:MarginDecomposition",
        bf16_safe=True,
        passes="dfshield.attacks.budget:md_passes",
    ),
    "mm": Attack(
        "dfshield.attacks.margins:minimum_margin",
        "MM",
        about="minimum margin: towards the likeliest wrong classes one by one (Gao et al. 2022)",
        options="dfshield.options.attacks_gradients:MinimumMargin",
        bf16_safe=True,
        passes="dfshield.attacks.budget:mm_passes",
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
        "dfshield.attacks.fab_alone:fab",
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
    "a3": Attack(
        "dfshield.attacks.a3:a3",
        "A³",
        about="warm starts and climbs of the margin, with restarts for the images nearest to falling (Liu et al. 2022)",
        options="dfshield.options.attacks_adaptive:A3",
        bf16_safe=True,
        passes="dfshield.attacks.budget:a3_passes",
    ),
    "automated": Attack(
        "dfshield.attacks.automated:automated",
        "Automated",
        about="a sequence of attack programs that is searched for each model (Yao et al. 2021)",
        options="dfshield.options.attacks_adaptive:Automated",
        passes="dfshield.attacks.budget:automated_passes",
    ),
    "square": Attack(
        "dfshield.attacks.square_alone:square",
        "Square",
        about="random search with squares, by the scores alone (Andriushchenko et al. 2020)",
        options="dfshield.options.attacks_blackbox:Square",
        access="scores",
        passes="dfshield.attacks.budget:square_passes",
    ),
    "spsa": Attack(
        "dfshield.attacks.scores:spsa",
        "SPSA",
        about="Adam on gradients that are estimated from scores at random points (Uesato et al. 2018)",
        options="dfshield.options.attacks_blackbox:Spsa",
        access="scores",
        passes="dfshield.attacks.budget:spsa_passes",
    ),
    "genattack": Attack(
        "dfshield.attacks.scores:genattack",
        "GenAttack",
        about="a genetic search towards the runner-up class, by the scores alone (Alzantot et al. 2019)",
        options="dfshield.options.attacks_blackbox:GenAttack",
        access="scores",
        norms=("linf",),
        passes="dfshield.attacks.budget:genattack_passes",
    ),
    "boundary": Attack(
        "dfshield.attacks.decisions:boundary",
        "Boundary",
        about="a random walk along the decision boundary towards the image, by labels alone (Brendel et al. 2018)",
        options="dfshield.options.attacks_blackbox:Boundary",
        access="labels",
        passes="dfshield.attacks.budget:boundary_passes",
    ),
    "hopskipjump": Attack(
        "dfshield.attacks.decisions:hopskipjump",
        "HopSkipJump",
        about="steps along gradients estimated at the decision boundary, by labels alone (Chen et al. 2020)",
        options="dfshield.options.attacks_blackbox:HopSkipJump",
        access="labels",
        passes="dfshield.attacks.budget:hopskipjump_passes",
    ),
}
