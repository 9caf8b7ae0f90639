"""AutoAttack (Croce and Hein 2020): APGD-CE, targeted APGD, targeted FAB and Square, each on the survivors.

The attacks are pyautoattack's; the ensemble is ours, because theirs fails below ten classes and cannot be resumed.
With ten or more classes it draws the same random numbers as theirs and, with the option `reference`, gives the same
verdicts. Without it, a few steps of PGD come first (``quick``): what they break need not be attacked at length, and
what they do not break meets all that the definition asks for.

==========  =================================================================================================
classes     what runs
==========  =================================================================================================
10 or more  the definition: 9 targets, or all the others in the released code's variant (``targets: paper``)
4 to 9      all other classes as targets
2 or 3      the targeted DLR loss divides by a difference that needs four logits: targeted APGD maximises the
            plain margin z_t - z_y instead, which like DLR neither saturates nor depends on the logits' scale
==========  =================================================================================================
"""

import logging
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from dfshield.attacks.budget import TARGETS, Budget, target_classes
from dfshield.attacks.gradient import Component, Ensemble, differentiable, frozen, quick, seeded
from dfshield.options import AttackOptions
from dfshield.threat import Threat, parse_threat

NORMS = {"linf": "Linf", "l2": "L2"}
BUDGET = Budget()

_silent = logging.getLogger("dfshield.pyautoattack")  # what it warns of, the evaluation checks itself and records
_silent.disabled = True


class _MarginAPGD(APGDAttack_targeted):
    """Targeted APGD on the margin z_t - z_y, for models with fewer than four classes."""

    def dlr_loss_targeted(self, logits: Tensor, y: Tensor) -> Tensor:
        rows = torch.arange(len(logits), device=logits.device)
        return logits[rows, self.y_target] - logits[rows, y]


def autoattack(options: AttackOptions, input_shape: tuple[int, int, int], classes: int) -> Ensemble:
    """The ensemble for a model of `input_shape` (C,H,W) and `classes`, and how it departs from the definition."""
    targets = target_classes(options, classes)
    norm = parse_threat(options.threat).norm
    side = _canvas(*input_shape[1:]) if norm == "l2" else None
    return Ensemble(
        (
            *(() if options.reference else (Component("quick", quick, rounds=True),)),
            Component("apgd-ce", _apgd_ce, rounds=True),
            Component("apgd-t", _Targeted(targets, margin=classes < 4), rounds=True),
            Component("fab-t", _Fab(targets)),
            Component("square", _Square(side)),
        ),
        _note(options, classes, targets, side),
    )


def _note(options: AttackOptions, classes: int, targets: int, side: int | None) -> str:
    parts = []
    if options.targets == "standard" and targets < TARGETS:
        parts.append(f"{targets} target{'s' if targets > 1 else ''}")
    if classes < 4:
        parts.append("margin for DLR")
    if parts:
        parts[0] = f"C={classes}: {parts[0]}"
    if side:
        parts.append(f"square on {side}x{side}")
    if Budget() != BUDGET:
        parts.append(f"{BUDGET.iterations} iterations, {BUDGET.queries} queries")
    return "; ".join(parts)


def _common(threat: Threat, x: Tensor, generator: torch.Generator) -> dict[str, Any]:
    seed = generator.initial_seed()
    return {"norm": NORMS[threat.norm], "eps": threat.eps, "seed": seed, "device": x.device, "verbose": False}


def _perturb(attack: Any, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    # the components seed and use the global generators, and their backward passes would fill parameters' gradients
    with frozen(model), torch.no_grad(), seeded(attack.seed, x.device):
        x_adv: Tensor = attack.perturb(x.clone(), y.clone())
    return x_adv.detach()


def _apgd_ce(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, options: AttackOptions, generator: torch.Generator
) -> Tensor:
    attack = APGDAttack(
        differentiable(model), n_iter=BUDGET.iterations, loss="ce", logger=_silent, **_common(threat, x, generator)
    )
    return _perturb(attack, model, x, y)


@dataclass(frozen=True)
class _Targeted:
    targets: int
    margin: bool

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, options: AttackOptions, generator: torch.Generator
    ) -> Tensor:
        kind = _MarginAPGD if self.margin else APGDAttack_targeted
        attack = kind(
            differentiable(model),
            n_iter=BUDGET.iterations,
            n_target_classes=self.targets,
            logger=_silent,
            **_common(threat, x, generator),
        )
        return _perturb(attack, model, x, y)


@dataclass(frozen=True)
class _Fab:
    targets: int

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, options: AttackOptions, generator: torch.Generator
    ) -> Tensor:
        attack = FABAttack_PT(
            differentiable(model),
            n_iter=BUDGET.iterations,
            targeted=True,
            n_target_classes=self.targets,
            **_common(threat, x, generator),
        )
        return _perturb(attack, model, x, y)


@dataclass(frozen=True)
class _Square:
    side: int | None
    """side of the square canvas that the images are put on, None to attack them as they are"""

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, options: AttackOptions, generator: torch.Generator
    ) -> Tensor:
        height, width = x.shape[2:]
        logits = differentiable(model)
        attack = SquareAttack(
            (lambda image: logits(image[..., :height, :width])) if self.side else logits,
            n_queries=BUDGET.queries,
            p_init=0.8,
            resc_schedule=False,
            **_common(threat, x, generator),
        )
        canvas = F.pad(x, (0, self.side - width, 0, self.side - height)) if self.side else x
        return _perturb(attack, model, canvas, y)[..., :height, :width]


def _canvas(height: int, width: int) -> int | None:
    """Side of the smallest square canvas on which Square's l2 start can be laid out, None if the image itself is one.

    It tiles the image with squares a fifth of its height, from an offset of half of what five of them leave, which
    runs over the border of images that are not square, of those below 5 pixels and of some sides such as 14.
    """
    side = max(height, width, 5)
    while True:
        tile = side // 5
        if tile == 1 or (side - 5 * tile) // 2 + side // tile * tile <= side:
            break
        side += 1
    return None if (height, width) == (side, side) else side
