"""What every check gets, what it says, and the attacks that checks have in common."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dfshield.attacks.base import Objective, ascend
from dfshield.core.lp import project, random_start
from dfshield.core.rng import generator, seeded
from dfshield.core.threat import Threat, parse_threat
from dfshield.evaluation.findings import Verdict
from dfshield.evaluation.ledger import Ledger
from dfshield.options.attacks import AttackOptions
from dfshield.options.checks import ChecksOptions


class Finding(NamedTuple):
    """What one check found."""

    verdict: Verdict
    figure: float | None
    """What was measured, in the unit that `text` says; None where nothing was."""
    limit: float | None
    """The largest figure that passes, or the smallest where `text` says so; None where there is none."""
    text: str


def absent(why: str) -> Finding:
    """The finding of a check that does not apply."""
    return Finding("not-applicable", None, None, why)


@dataclass
class Case:
    """A model whose evaluation is checked. Both modules are frozen and in eval mode."""

    model: nn.Module
    """Images (N,C,H,W) in [0,1] to logits (N,classes): what is judged."""
    victim: nn.Module
    """The same: what gradients go through."""
    x: Tensor
    """Images (N,C,H,W) in [0,1]."""
    y: Tensor
    """Labels (N,)."""
    options: ChecksOptions
    ledgers: Sequence[Ledger] = ()
    """Ledgers of the model at the threat model, each of images that begin with or are the beginning of the others'."""
    surrogate: nn.Module | None = None
    """Another classifier of the same images."""
    history: Sequence[Mapping[str, float]] = field(default_factory=tuple)
    """Metrics of every epoch of the model's training."""

    @property
    def n(self) -> int:
        """Number of images."""
        return len(self.x)

    @cached_property
    def threat(self) -> Threat:
        """The threat model."""
        return parse_threat(self.options.threat)

    @cached_property
    def right(self) -> Tensor:
        """Which images are classified rightly without attack (N,) bool."""
        return self.holds(torch.arange(self.n, device=self.x.device), self.x, self.threat)

    @cached_property
    def direct(self) -> Tensor:
        """Which images survive the checks' PGD (N,) bool."""
        return self.pgd(self.options.steps)

    def holds(self, rows: Tensor, x_adv: Tensor, threat: Threat) -> Tensor:
        """Which of the perturbed images (M,C,H,W) of images `rows` (M,), projected, the model classifies rightly."""
        with torch.no_grad(), seeded(self.options.seed, self.x.device):
            parts = zip(rows.split(self.options.chunk), x_adv.split(self.options.chunk), strict=True)
            found = [self.model(project(self.x[i], part, threat)).argmax(dim=1) == self.y[i] for i, part in parts]
        return torch.cat(found) if found else rows.bool()

    def survivors(
        self, attack: Callable[[Tensor, Tensor], Tensor], alive: Tensor, threat: Threat | None = None
    ) -> Tensor:
        """Which of the images `alive` (N,) bool survive an attack (N,) bool.

        `attack` makes perturbed images (M,C,H,W) of some images and their labels (M,).
        """
        alive = alive.clone()
        rows = alive.nonzero()[:, 0]
        for part in rows.split(self.options.chunk):
            if len(part):
                with seeded(self.options.seed, self.x.device):
                    x_adv = attack(self.x[part], self.y[part])
                alive[part] = self.holds(part, x_adv, threat or self.threat)
        return alive

    def pgd(
        self,
        steps: int,
        threat: Threat | None = None,
        model: nn.Module | None = None,
        starts: Iterable[int] | None = None,
        alive: Tensor | None = None,
        objective: Objective | None = None,
    ) -> Tensor:
        """Which of the images `alive` (N,) bool survive PGD of so many steps of ε/4 (N,) bool.

        `starts` are the numbers of its random starts, by default the first ones, as many as the options say. Each has
        what the ones before it left. By default it works on the images that are right, within the case's threat model,
        on its victim and on the cross entropy.
        """
        ball, net = threat or self.threat, self.victim if model is None else model
        alive = self.right if alive is None else alive
        for start in range(self.options.restarts) if starts is None else starts:
            random = generator("checks", self.options.seed, start)

            def attack(x: Tensor, y: Tensor, random: torch.Generator = random) -> Tensor:
                first = random_start(x, ball, random)
                return ascend(net, x, y, first, ball, AttackOptions(), [ball.eps / 4] * steps, objective)

            alive = self.survivors(attack, alive, ball)
        return alive

    def share(self, images: int | Tensor) -> float:
        """A number of images, or how many of them a mask (N,) marks, in percent of all."""
        count = int(images.sum()) if isinstance(images, Tensor) else images
        return 100 * count / self.n


def allowed(points: float, n: int) -> float:
    """So many percentage points of `n` images, as images; one image alone is no sign, however few there are."""
    return max(1.0, points * n / 100)


def gained(case: Case, left: Tensor, points: float, text: str, before: Tensor | None = None) -> Finding:
    """The finding of an attack on the images `before` (N,) bool, of which those of `left` (N,) bool survive it.

    Without `before` it is on what the checks' PGD leaves. It fails for more than `points` of all images, and never for
    one image alone. `text` names the attack.
    """
    own = int((case.direct if before is None else before).sum())
    count = own - int(left.sum())
    verdict: Verdict = "failed" if count > allowed(points, case.n) else "passed"
    said = f"{text} breaks {count} of {own} images left, of {case.n}; limit in points"
    return Finding(verdict, case.share(count), points, said)
