"""AutoAttack (Croce and Hein 2020): APGD-CE, targeted APGD, targeted FAB and Square, each on the survivors.

The attacks are ours (`apgd`, `fab`, `square`), so that an image leaves an attack when it falls; Square within l2 and,
with the option `reference`, all of them are pyautoattack's. Their ensemble fails below ten classes and cannot
be resumed.
With ten or more classes and `reference` it draws the same random numbers as theirs and gives the same verdicts.
Without it, a few steps of PGD come first (``quick``): what they break need not be attacked at length, and what they do
not break meets all that the definition asks for, towards many target classes at once.

==========  =================================================================================================
classes     what runs
==========  =================================================================================================
10 or more  the definition: 9 targets, or all the others in the released code's variant (``version: paper``)
4 to 9      all other classes as targets
2 or 3      the targeted DLR loss divides by a difference that needs four logits: targeted APGD maximises the
            plain margin z_t - z_y instead, which like DLR neither saturates nor depends on the logits' scale
==========  =================================================================================================

``version: rand`` is the definition for models that draw: APGD-CE and APGD-DLR, on the mean of 20 passes if `eot` says
nothing else. DLR needs three classes; with two it is the margin. The mean is of the logits, theirs of the gradients.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dfshield.attacks import pyautoattack
from dfshield.attacks.apgd import Aimed, apgd, cross_entropy, dlr, dlr_targeted, targeted_margin
from dfshield.attacks.base import MISCLASSIFICATION_MARGIN, Attack, Component, Ensemble, Eot, Problem, margin
from dfshield.attacks.budget import BUDGET, TARGETS, Budget, draws, target_classes
from dfshield.attacks.fab import fab
from dfshield.attacks.pgd import pgd_prefilter
from dfshield.attacks.square import square
from dfshield.attacks.targets import attack_targets
from dfshield.core.threat import parse_threat
from dfshield.options.attacks import AttackOptions, AutoAttack


def autoattack(options: AutoAttack, input_shape: tuple[int, int, int], classes: int) -> Ensemble:
    """The ensemble for a model of `input_shape` (C,H,W) and `classes`, and how it departs from the definition."""
    norm = parse_threat(options.threat).norm
    drawn = options.version == "rand"
    side = pyautoattack.canvas(*input_shape[1:]) if norm == "l2" and not drawn else None
    made = _drawn(options, classes) if drawn else _standard(options, classes, norm, side)
    return Ensemble(made, f"aa-{options.version}", _note(options, classes, side))


def _standard(options: AutoAttack, classes: int, norm: str, side: int | None) -> tuple[Component, ...]:
    targets = target_classes(options, classes)
    theirs = pyautoattack.Square(BUDGET, side)
    if options.reference:
        return (
            Component("apgd-ce", pyautoattack.Apgd(BUDGET), bf16_safe=True),
            Component("apgd-t", pyautoattack.ApgdTargeted(BUDGET, targets, margin=classes < 4), bf16_safe=True),
            Component("fab-t", pyautoattack.Fab(BUDGET, targets)),
            Component("square", theirs),
        )
    return (
        Component("quick", pgd_prefilter, bf16_safe=True),
        Component("apgd-ce", Apgd(cross_entropy), bf16_safe=True),
        Component("apgd-t", Targeted(targets, targeted_margin if classes < 4 else dlr_targeted), bf16_safe=True),
        Component("fab-t", Fab(targets)),
        Component("square", _square if norm == "linf" else theirs),
    )


def _drawn(options: AutoAttack, classes: int) -> tuple[Component, ...]:
    more = draws(options) // options.eot  # what `eot` asks for is around the model already
    if options.reference and classes > 2:
        return tuple(
            Component(f"apgd-{loss}", pyautoattack.Apgd(BUDGET, loss, more), bf16_safe=True) for loss in ("ce", "dlr")
        )
    second = _falling_margin if classes < 3 else dlr
    found: tuple[tuple[str, Attack], ...] = (
        *(() if options.reference else (("quick", pgd_prefilter),)),
        ("apgd-ce", Apgd(cross_entropy)),
        ("apgd-dlr", Apgd(second)),
    )
    return tuple(Component(name, _Averaged(attack, more), bf16_safe=True) for name, attack in found)


def _note(options: AutoAttack, classes: int, side: int | None) -> str:
    parts = []
    drawn, targets = options.version == "rand", target_classes(options, classes)
    if options.version == "standard" and targets < TARGETS:
        parts.append(f"{targets} target{'s' if targets > 1 else ''}")
    if classes < (3 if drawn else 4):
        parts.append("margin for DLR")
    if parts:
        parts[0] = f"C={classes}: {parts[0]}"
    if side:
        parts.append(f"square on {side}x{side}")
    if Budget() != BUDGET:
        parts.append(f"{BUDGET.iterations} iterations" + ("" if drawn else f", {BUDGET.queries} queries"))
    return "; ".join(parts)


def _falling_margin(logits: Tensor, y: Tensor) -> Tensor:
    return -margin(logits, y)


@dataclass(frozen=True)
class _Averaged:
    """An attack on the mean logits of `draws` passes."""

    attack: Attack
    draws: int

    def __call__(self, problem: Problem, options: AttackOptions) -> Tensor:
        model = Eot(problem.model, self.draws) if self.draws > 1 else problem.model
        return self.attack(problem._replace(model=model), options)


@dataclass(frozen=True)
class Apgd:
    """Untargeted APGD."""

    objective: Aimed

    def __call__(self, problem: Problem, options: AttackOptions) -> Tensor:
        """Images (N,C,H,W)."""
        model, x, y, threat, generator, _ = problem
        clear = MISCLASSIFICATION_MARGIN[options.precision]
        return apgd(model, x, y, threat, self.objective, BUDGET.iterations, generator, clear=clear)[0]


@dataclass(frozen=True)
class Targeted:
    """APGD towards each image's likeliest wrong classes."""

    targets: int
    objective: Aimed

    def __call__(self, problem: Problem, options: AttackOptions) -> Tensor:
        """Images (N,C,H,W)."""
        model, x, y, threat, generator, _ = problem
        clear = MISCLASSIFICATION_MARGIN[options.precision]

        def run(x: Tensor, y: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
            return apgd(model, x, y, threat, self.objective, BUDGET.iterations, generator, target, clear)

        with torch.no_grad():
            return attack_targets(self.targets, run, model, x, y, options)


@dataclass(frozen=True)
class Fab:
    """FAB towards each image's likeliest wrong classes."""

    targets: int

    def __call__(self, problem: Problem, options: AttackOptions) -> Tensor:
        """Images (N,C,H,W)."""
        model, x, y, threat, _, _ = problem

        def run(x: Tensor, y: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
            return fab(model, x, y, target, threat, BUDGET.iterations)

        with torch.no_grad():
            return attack_targets(self.targets, run, model, x, y, options)


def _square(problem: Problem, options: AttackOptions) -> Tensor:
    model, x, y, threat, generator, _ = problem
    return square(model, x, y, threat, BUDGET.queries, generator)
