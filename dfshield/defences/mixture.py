"""MixedNUTS: the accurate teacher and the robust student mixed, without any training (Bai et al., TMLR 2024).

A robust network is surer of what it gets right under attack than of what it gets wrong without. The mixture widens this
gap by sharpening the student's logits where they are clear, and leaves the rest to the teacher.
"""

import copy
import math
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, log_softmax, softmax

from dfshield.attacks.base import Problem
from dfshield.attacks.pgd import pgd
from dfshield.core.errors import InputError
from dfshield.core.progress import log, progress
from dfshield.core.signals import stop_if_asked
from dfshield.core.threat import parse_threat
from dfshield.defences.defence import straight_through
from dfshield.defences.fitted import FittedDefence, Fitting
from dfshield.models.folding import fold
from dfshield.options.attacks import Pgd
from dfshield.options.defences_fitted import Mixture as MixtureOptions

BATCH = 250
NORMAL = 1e-5
"""What is added to a variance before its root is taken, as in layer normalisation."""
CLEAR = 4.0
"""How far the largest sharpened logit may lie above the next one for gradients; 1 to 8 give attacks of one strength."""
SAFETY = 1e-6
"""By how much the student's share is above the smallest one at which its answer still counts, relatively."""


class Mixture(FittedDefence[MixtureOptions]):
    """log((1-α)·softmax(g(x)) + α·softmax(h(x))) of a teacher g and h = s·|GELU(LN(f(x)) + c)|^p of a student f.

    `fit` finds s, c, p and the smallest α that keep a share of the student's accuracy under attack whatever the teacher
    says. Differs from the publication: the images are of the given training set, so that no real one is needed; PGD on
    the student stands for AutoAttack; s, c, p and α are those of the best clean accuracy of the mixture itself on these
    images, then of the fewest wrong answers of the student that outvote the teacher. Its authors attack with the
    student's plain logits in place of the sharpened ones; our surrogate keeps these and limits how clear they are.
    """

    keeps = ("teacher.", "scale", "shift", "power", "weight")

    def fit(self, given: Fitting) -> dict[str, Tensor]:
        """The teacher's weights and s, c, p, α, each float64 of shape ().

        Raises InputError for a grid of numbers that alters too many of the student's answers.
        """
        images, labels = given.images[-self.options.images :], given.labels[-self.options.images :]
        student, sure = fold(given.model), fold(given.teacher)
        problem = Pgd(steps=self.options.steps)
        threat = parse_threat(given.threat)
        parts = []
        with progress(len(images), "mixture", "image") as bar:
            for x, y in zip(images.split(BATCH), labels.split(BATCH), strict=True):
                with torch.no_grad():
                    clean, accurate = student(x), sure(x)
                found = pgd(Problem(student, x, y, threat, given.random), problem)
                with torch.no_grad():
                    parts.append((clean, accurate, student(found)))
                bar.update(len(x))
                stop_if_asked("image", int(bar.n), len(images), kept=False)
        clean, accurate, attacked = (torch.cat(values).double().cpu() for values in zip(*parts, strict=True))
        chosen = choose(clean, accurate, attacked, labels.cpu(), self.options)
        log(
            f"mixture: s {chosen.scale:g}, c {chosen.shift:g}, p {chosen.power:g}, α {chosen.weight:.6g}; clean "
            f"{100 * chosen.clean:.2f} % of {len(images)} images (student {100 * _right(clean, labels.cpu()):.2f} %), "
            f"under attack at least {100 * chosen.kept:.2f} % (student {100 * _right(attacked, labels.cpu()):.2f} %)"
        )
        if not chosen.weight:
            log("mixture: the student is right on no image under attack, so the teacher alone answers")
        numbers = {name: getattr(chosen, name) for name in ("scale", "shift", "power", "weight")}
        state = {f"teacher.{name}": value for name, value in given.teacher.state_dict().items()}
        return state | {name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}

    def protect(self, model: nn.Module) -> nn.Module:
        return Mixed(model, self._teacher(model), *self._numbers())

    def surrogate(self, model: nn.Module) -> nn.Module:
        return Softened(model, self._teacher(model), *self._numbers())

    def _teacher(self, model: nn.Module) -> nn.Module:
        teacher = copy.deepcopy(model)
        teacher.load_state_dict(self.state("teacher."))
        return teacher.eval().requires_grad_(False)

    def _numbers(self) -> tuple[float, ...]:
        return tuple(float(self.tensors[name]) for name in ("scale", "shift", "power", "weight"))


def sharpened(logits: Tensor, scale: float, shift: float, power: float) -> Tensor:
    """s·|GELU(LN(f) + c)|^p of logits (N,classes) of any size; LN is over the classes, without weights."""
    centred = logits - logits.mean(dim=1, keepdim=True)
    normal = centred * (centred.square().mean(dim=1, keepdim=True) + NORMAL).rsqrt()
    return scale * gelu(normal + shift).abs() ** power


class Mixed(nn.Module):
    """A student and a teacher mixed; images (N,C,H,W) in [0,1] to log probabilities (N,classes)."""

    def __init__(
        self, model: nn.Module, teacher: nn.Module, scale: float, shift: float, power: float, weight: float
    ) -> None:
        super().__init__()
        self.model, self.teacher = model, teacher
        self.scale, self.shift, self.power = scale, shift, power
        self.log_share, self.log_rest = _log(weight), _log(1 - weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.mixed(self.model(x), self.teacher(x))

    def mixed(self, robust: Tensor, accurate: Tensor) -> Tensor:
        """The mixture of logits (N,classes), in logarithms, so that no probability vanishes by rounding."""
        return self.joined(sharpened(robust, self.scale, self.shift, self.power), accurate)

    def joined(self, sharp: Tensor, accurate: Tensor) -> Tensor:
        """The same of logits that are sharpened already."""
        return torch.logaddexp(log_softmax(accurate, dim=1) + self.log_rest, log_softmax(sharp, dim=1) + self.log_share)


class Softened(Mixed):
    """The same forward pass; gradients are those of the mixture with sharpened logits no clearer than `CLEAR`.

    Where the sharpened logits are clear, the student's softmax has no gradient, and that of the mixture itself is the
    teacher's alone. Where they are not, this is the mixture's own gradient.
    """

    def forward(self, x: Tensor) -> Tensor:
        robust, accurate = self.model(x), self.teacher(x)
        sharp = sharpened(robust, self.scale, self.shift, self.power)
        top = sharp.detach().topk(2, dim=1).values
        gap = (top[:, :1] - top[:, 1:]).clamp_min(CLEAR)
        return straight_through(self.joined(sharp, accurate), self.joined(sharp * (CLEAR / gap), accurate))


def _log(share: float) -> float:
    return math.log(max(share, 1e-30))


class Chosen(NamedTuple):
    """The numbers of a mixture, and what it does on the images of its fit."""

    scale: float
    shift: float
    power: float
    weight: float
    """α, the student's share"""
    clean: float
    """accuracy of the mixture on clean images"""
    kept: float
    """accuracy under attack of the mixture with a teacher that is sure of another class"""


def choose(clean: Tensor, accurate: Tensor, attacked: Tensor, labels: Tensor, options: MixtureOptions) -> Chosen:
    """The best numbers of the grid, by logits (N,classes) of the student, of the teacher and of the attacked student.

    With a teacher that is sure of a wrong class, an image that the student gets right with the margin m of
    probabilities is the mixture's if α·m > 1-α. So the smallest α that keeps `options.keep` of them follows from the
    margins' quantile. Of the mixtures with the best clean accuracy, the one counts in which the fewest wrong answers
    of the student, clean or attacked, have that margin; then that of the smallest α. A student that is right on no
    attacked image has no accuracy to keep: α is 0. Raises InputError for a grid that alters too many answers.
    """
    right = int((attacked.argmax(1) == labels).sum())
    if not right:
        first = options.scales[0], options.shifts[0], options.powers[0]
        return Chosen(*first, weight=0.0, clean=_right(accurate, labels), kept=0.0)
    needed = math.ceil(options.keep * right - 1e-9)
    sure = softmax(accurate, dim=1)
    both, twice = torch.cat([clean, attacked]), torch.cat([labels, labels])
    wrong = both.argmax(1) != twice
    best: tuple[tuple[float, ...], Chosen] | None = None
    for scale, shift, power in product(options.scales, options.shifts, options.powers):
        own = softmax(sharpened(both, scale, shift, power), dim=1)
        margins = _margins(own, twice)
        attacked_margins = margins[len(labels) :].sort(descending=True).values
        limit = float(attacked_margins[needed - 1])
        if limit <= 0:
            continue
        weight = min(1.0, (1 + SAFETY) / (1 + limit))
        mixed = (1 - weight) * sure + weight * own[: len(labels)]
        accuracy = _right(mixed, labels)
        top = own.topk(2, dim=1).values
        outvoting = float((top[wrong, 0] - top[wrong, 1] >= limit).float().mean()) if bool(wrong.any()) else 0.0
        kept = float((weight * attacked_margins > 1 - weight).float().mean())
        rank = (accuracy, -outvoting, -weight)
        if best is None or rank > best[0]:
            best = rank, Chosen(scale, shift, power, weight, accuracy, kept)
    if best is None:
        raise InputError(
            "mixture: no numbers of the grid leave enough of the student's answers as they are; give other shifts, as 0"
        )
    return best[1]


def _margins(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Probability of the label less the largest other one (N,)."""
    own = probabilities.gather(1, labels[:, None])
    others = probabilities.scatter(1, labels[:, None], -1)
    return own[:, 0] - others.amax(1)


def _right(answers: Tensor, labels: Tensor) -> float:
    return float((answers.argmax(1) == labels).double().mean())
