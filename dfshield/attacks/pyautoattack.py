"""pyautoattack's own attacks as components: the whole of AutoAttack with the option `reference`, else Square within l2.

They draw the same random numbers as pyautoattack's ensemble does, and give the same verdicts.
"""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from dfshield.attacks.base import Problem, differentiable, frozen
from dfshield.attacks.budget import Budget
from dfshield.attacks.targets import attack_targets
from dfshield.core.rng import seeded
from dfshield.core.threat import Threat
from dfshield.options.attacks import AttackOptions

NORMS = {"linf": "Linf", "l2": "L2"}
ORDERS = {"linf": torch.inf, "l2": 2}

_silent = logging.getLogger("dfshield.pyautoattack")  # what it warns of, the evaluation checks itself and records
_silent.disabled = True


class _MarginAPGD(APGDAttack_targeted):
    """Targeted APGD on the margin z_t - z_y, for models with fewer than four classes."""

    def dlr_loss_targeted(self, logits: Tensor, y: Tensor) -> Tensor:
        rows = torch.arange(len(logits), device=logits.device)
        return logits[rows, self.y_target] - logits[rows, y]


def _common(threat: Threat, x: Tensor, generator: torch.Generator) -> dict[str, Any]:
    seed = generator.initial_seed()
    return {"norm": NORMS[threat.norm], "eps": threat.eps, "seed": seed, "device": x.device, "verbose": False}


@contextlib.contextmanager
def _prepared(model: nn.Module, seed: int, device: torch.device) -> Iterator[None]:
    # the components use the global generators, and their backward passes would fill parameters' gradients
    with frozen(model), torch.no_grad(), seeded(seed, device):
        yield


def _perturb(attack: Any, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with _prepared(model, attack.seed, x.device):
        x_adv: Tensor = attack.perturb(x.clone(), y.clone())
    return x_adv.detach()


@dataclass(frozen=True)
class Apgd:
    """Untargeted APGD on a loss of theirs, ``ce`` or ``dlr``, with the gradient of `draws` passes."""

    budget: Budget
    loss: str = "ce"
    draws: int = 1

    def __call__(self, problem: Problem, options: AttackOptions) -> Tensor:
        """Images (N,C,H,W)."""
        model, x, y, threat, generator, _ = problem
        attack = APGDAttack(
            differentiable(model),
            n_iter=self.budget.iterations,
            loss=self.loss,
            eot_iter=self.draws,
            logger=_silent,
            **_common(threat, x, generator),
        )
        return _perturb(attack, model, x, y)


@dataclass(frozen=True)
class ApgdTargeted:
    """APGD towards the likeliest wrong classes, one by one, on the targeted DLR loss or the plain margin."""

    budget: Budget
    targets: int
    margin: bool

    def __call__(self, problem: Problem, options: AttackOptions) -> Tensor:
        """Images (N,C,H,W)."""
        model, x, y, threat, generator, _ = problem
        kind = _MarginAPGD if self.margin else APGDAttack_targeted
        attack = kind(
            differentiable(model), n_iter=self.budget.iterations, logger=_silent, **_common(threat, x, generator)
        )
        attack.init_hyperparam(x)

        def run(x: Tensor, y: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
            attack.y_target = target
            _, robust, _, x_adv = attack.attack_single_run(x, y)
            return x_adv, ~robust

        with _prepared(model, attack.seed, x.device):
            return attack_targets(self.targets, run, model, x, y, options)


@dataclass(frozen=True)
class Fab:
    """FAB towards the likeliest wrong classes, one by one."""

    budget: Budget
    targets: int

    def __call__(self, problem: Problem, options: AttackOptions) -> Tensor:
        """Images (N,C,H,W)."""
        model, x, y, threat, generator, _ = problem
        attack = _PairwiseFAB(differentiable(model), n_iter=self.budget.iterations, **_common(threat, x, generator))

        def run(x: Tensor, y: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
            attack.target = target
            # without labels it takes the predictions, which they are, and leaves no row out; gives the nearest
            # points that it found, however far
            x_adv = attack.attack_single_run(x, is_targeted=True)
            far = torch.linalg.vector_norm((x_adv - x).flatten(1), ORDERS[threat.norm], dim=1) > threat.eps
            return x_adv, (model(x_adv).argmax(dim=1) != y) & ~far

        with _prepared(model, attack.seed, x.device):
            return attack_targets(self.targets, run, model, x, y, options)


class _PairwiseFAB(FABAttack_PT):
    """FAB with a target of its own for every image; theirs has one rank among the logits for all."""

    target: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.target_class = 1  # of the ranking that is not used

    def get_diff_logits_grads_batch_targeted(
        self, imgs: Tensor, la: Tensor, la_target: Tensor
    ) -> tuple[Tensor, Tensor]:
        pair: tuple[Tensor, Tensor] = super().get_diff_logits_grads_batch_targeted(imgs, la, self.target)
        return pair


@dataclass(frozen=True)
class Square:
    """Square; within l2 on a canvas of `side` that the images are put on, None to attack them as they are."""

    budget: Budget
    side: int | None

    def __call__(self, problem: Problem, options: AttackOptions) -> Tensor:
        """Images (N,C,H,W)."""
        model, x, y, threat, generator, _ = problem
        height, width = x.shape[2:]
        logits = differentiable(model)
        attack = SquareAttack(
            (lambda image: logits(image[..., :height, :width])) if self.side else logits,
            n_queries=self.budget.queries,
            p_init=0.8,
            resc_schedule=False,
            **_common(threat, x, generator),
        )
        canvas = F.pad(x, (0, self.side - width, 0, self.side - height)) if self.side else x
        return _perturb(attack, model, canvas, y)[..., :height, :width]


def canvas(height: int, width: int) -> int | None:
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
