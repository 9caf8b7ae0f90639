"""Attacks."""

from dataclasses import dataclass

from dfshield.registry.base import Entry


@dataclass(frozen=True)
class Attack(Entry):
    """``(model, x, y, threat, options, generator) -> x_adv``, or an ensemble of such."""

    ensemble: bool = False
    """The target is ``(options, input_shape, classes) -> Ensemble`` instead."""


ATTACKS = {
    "clean": Attack("dfshield.attacks.base:clean"),
    "fgsm": Attack("dfshield.attacks.fgsm:fgsm"),
    "pgd": Attack("dfshield.attacks.pgd:pgd"),
    "autoattack": Attack("dfshield.attacks.autoattack:autoattack", ensemble=True),
}
