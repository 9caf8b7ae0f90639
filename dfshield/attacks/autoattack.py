"""AutoAttack (Croce and Hein 2020): APGD-CE, targeted APGD, targeted FAB and Square, each on the survivors.

The attacks are pyautoattack's; the ensemble is ours, because theirs fails below ten classes and cannot be resumed.
With ten or more classes and the option `reference` it draws the same random numbers as theirs and gives the same
verdicts. Without it, a few steps of PGD come first (``quick``): what they break need not be attacked at length, and
what they do not break meets all that the definition asks for, towards many target classes at once.

==========  =================================================================================================
classes     what runs
==========  =================================================================================================
10 or more  the definition: 9 targets, or all the others in the released code's variant (``version: paper``)
4 to 9      all other classes as targets
2 or 3      the targeted DLR loss divides by a difference that needs four logits: targeted APGD maximises the
            plain margin z_t - z_y instead, which like DLR neither saturates nor depends on the logits' scale
==========  =================================================================================================
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from dfshield.attacks.base import Component, Ensemble, Problem, differentiable, frozen
from dfshield.attacks.budget import TARGETS, Budget, target_classes
from dfshield.attacks.pgd import pgd_prefilter
from dfshield.core.rng import seeded
from dfshield.core.threat import Threat, parse_threat
from dfshield.options.attacks import AttackOptions, AutoAttack

NORMS = {"linf": "Linf", "l2": "L2"}
ORDERS = {"linf": torch.inf, "l2": 2}
BUDGET = Budget()
SMALL = 256
"""Values of the largest image whose logits are kept during Square; of larger ones few are seen twice."""
KEPT = 200_000
"""Images whose logits are kept at most: some 0.3 GB."""

_silent = logging.getLogger("dfshield.pyautoattack")  # what it warns of, the evaluation checks itself and records
_silent.disabled = True


class _MarginAPGD(APGDAttack_targeted):
    """Targeted APGD on the margin z_t - z_y, for models with fewer than four classes."""

    def dlr_loss_targeted(self, logits: Tensor, y: Tensor) -> Tensor:
        rows = torch.arange(len(logits), device=logits.device)
        return logits[rows, self.y_target] - logits[rows, y]


def autoattack(options: AutoAttack, input_shape: tuple[int, int, int], classes: int) -> Ensemble:
    """The ensemble for a model of `input_shape` (C,H,W) and `classes`, and how it departs from the definition."""
    targets = target_classes(options, classes)
    norm = parse_threat(options.threat).norm
    side = _canvas(*input_shape[1:]) if norm == "l2" else None
    return Ensemble(
        (
            *(() if options.reference else (Component("quick", pgd_prefilter, bf16_safe=True),)),
            Component("apgd-ce", _apgd_ce, bf16_safe=True),
            Component("apgd-t", _Targeted(targets, margin=classes < 4), bf16_safe=True),
            Component("fab-t", _Fab(targets)),
            Component("square", _Square(side)),
        ),
        f"aa-{options.version}",
        _note(options, classes, targets, side),
    )


def _note(options: AutoAttack, classes: int, targets: int, side: int | None) -> str:
    parts = []
    if options.version == "standard" and targets < TARGETS:
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


@contextlib.contextmanager
def _prepared(model: nn.Module, seed: int, device: torch.device) -> Iterator[None]:
    # the components use the global generators, and their backward passes would fill parameters' gradients
    with frozen(model), torch.no_grad(), seeded(seed, device):
        yield


def _perturb(attack: Any, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with _prepared(model, attack.seed, x.device):
        x_adv: Tensor = attack.perturb(x.clone(), y.clone())
    return x_adv.detach()


def _apgd_ce(problem: Problem, options: AttackOptions) -> Tensor:
    model, x, y, threat, generator, _ = problem
    attack = APGDAttack(
        differentiable(model), n_iter=BUDGET.iterations, loss="ce", logger=_silent, **_common(threat, x, generator)
    )
    return _perturb(attack, model, x, y)


@dataclass(frozen=True)
class _Targeted:
    targets: int
    margin: bool

    def __call__(self, problem: Problem, options: AttackOptions) -> Tensor:
        model, x, y, threat, generator, _ = problem
        kind = _MarginAPGD if self.margin else APGDAttack_targeted
        attack = kind(differentiable(model), n_iter=BUDGET.iterations, logger=_silent, **_common(threat, x, generator))
        attack.init_hyperparam(x)

        def run(x: Tensor, y: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
            attack.y_target = target
            _, robust, _, x_adv = attack.attack_single_run(x, y)
            return x_adv, ~robust

        with _prepared(model, attack.seed, x.device):
            return attack_targets(self.targets, run, model, x, y, options)


@dataclass(frozen=True)
class _Fab:
    targets: int

    def __call__(self, problem: Problem, options: AttackOptions) -> Tensor:
        model, x, y, threat, generator, _ = problem
        attack = _PairwiseFAB(differentiable(model), n_iter=BUDGET.iterations, **_common(threat, x, generator))

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


def attack_targets(
    targets: int,
    run: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    options: AttackOptions,
) -> Tensor:
    """Attack `x` (N,C,H,W) towards its `targets` likeliest wrong classes; what is broken is not attacked again.

    `run` takes images, labels and targets and returns perturbed images and which of them are broken. The runner-up
    class is tried first, because it succeeds most often. The remaining targets are batched until the chunk is full:
    small batches take as much time as large ones. With `options.reference` all targets go one by one.
    """
    result = x.clone()
    logits = model(x)
    ranking = logits.sort(dim=1)[1].flip(1)
    alive = (logits.argmax(dim=1) == y).nonzero()[:, 0]
    rank = at_once = 1
    while rank <= targets and len(alive):
        ranks = ranking[alive, rank : min(rank + at_once, targets + 1)]
        n, k = ranks.shape
        x_adv, broken = run(x[alive].repeat(k, 1, 1, 1), y[alive].repeat(k), ranks.T.reshape(-1))
        x_adv, broken = x_adv.unflatten(0, (k, n)), broken.unflatten(0, (k, n))
        first = broken.int().argmax(dim=0)
        won = broken.any(dim=0)
        result[alive[won]] = x_adv[first, torch.arange(n, device=x.device)][won]
        alive = alive[~won]
        rank += k
        at_once = 1 if options.reference else max(1, options.chunk // max(1, len(alive)))
    return result


@dataclass(frozen=True)
class _Square:
    side: int | None
    """side of the square canvas that the images are put on, None to attack them as they are"""
    queries: int | None = None
    """queries an image, None for AutoAttack's"""

    def __call__(self, problem: Problem, options: AttackOptions) -> Tensor:
        model, x, y, threat, generator, _ = problem
        height, width = x.shape[2:]
        logits = differentiable(model)
        if threat.norm == "linf" and x.device.type == "cpu" and x[0].numel() <= SMALL and not options.reference:
            logits = CachedLogits(logits)
        attack = SquareAttack(
            (lambda image: logits(image[..., :height, :width])) if self.side else logits,
            n_queries=self.queries or BUDGET.queries,
            p_init=0.8,
            resc_schedule=False,
            **_common(threat, x, generator),
        )
        canvas = F.pad(x, (0, self.side - width, 0, self.side - height)) if self.side else x
        return _perturb(attack, model, canvas, y)[..., :height, :width]


class CachedLogits:
    """Logits of images (N,C,H,W), each computed once: on small images Square's l∞ search soon repeats itself."""

    def __init__(self, logits: Callable[[Tensor], Tensor]) -> None:
        self.logits = logits
        self.known: dict[bytes, Tensor] = {}

    def __call__(self, x: Tensor) -> Tensor:
        if len(self.known) > KEPT:
            self.known.clear()
        names = [image.tobytes() for image in x.numpy()]
        new = {name: row for row, name in enumerate(names) if name not in self.known}
        if new:
            self.known.update(zip(new, self.logits(x[list(new.values())]), strict=True))
        return torch.stack([self.known[name] for name in names])


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
