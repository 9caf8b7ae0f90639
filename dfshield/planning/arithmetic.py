"""The cost model: the arithmetic of every stage, counted from its options, and how fast a device does it.

`docs/cost.md` derives the formulas. Work is counted in forward passes of one image through the classifier.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from dfshield import registry
from dfshield.core.errors import InputError
from dfshield.core.schedules import inner_steps
from dfshield.models.size import Network, Shape, network
from dfshield.options import (
    AttackOptions,
    ChecksOptions,
    CotrainOptions,
    GenerateOptions,
    SynthesizeOptions,
    TrainOptions,
)
from dfshield.options.checks import DIRECTIONS, FACTORS

GRADIENT = 2
"""Forward pass and gradient of the pixels, in forward passes."""
UPDATE = 3
"""The same with the gradient of the weights."""
PAPER_IMAGES = 10_000


class Published(NamedTuple):
    """A synthesis of `PAPER_IMAGES` images whose time the paper states (section A.2)."""

    hours: float
    """of one RTX 3090"""
    steps: int
    """optimisation steps: medical images have half of the others'"""
    shape: Shape
    """(C,H,W)"""


PAPER_TIMES = {
    "resnet20": Published(0.6, 2000, (3, 32, 32)),
    "resnet56": Published(2.6, 2000, (3, 32, 32)),
    "wrn28_10": Published(3.6, 2000, (3, 32, 32)),
    "resnet18": Published(0.7, 1000, (3, 28, 28)),
}
"""The paper's own times by network."""


@dataclass
class Throughput:
    """Operations per second of one device, by stage (``synthesis``, ``training``) and model, and their `basis`."""

    basis: str
    device: str = "cuda"
    rates: dict[str, dict[str, float]] = field(default_factory=dict)
    precision: str = ""
    """Arithmetic that was measured; empty where nothing was."""
    generated: bool = False
    """Whether generated code was measured."""

    @classmethod
    def read(cls, path: Path) -> "Throughput":
        """The report of `make bench`; InputError if there is none with the figures that are needed."""
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
            first = entries[0]
            made = first["evidence"]
            found = cls(
                f"measured, {path} ({made.get('hardware')}, {made.get('threads')} threads, {made.get('precision')})",
                first["device"],
                precision=made["precision"],
                generated=made.get("compile", False),
            )
            for entry in entries:
                if entry["flops"]:
                    found.rates.setdefault(entry["stage"], {})[entry["model"]] = entry["flops"] / entry["seconds_ours"]
        except (OSError, ValueError, LookupError, TypeError, AttributeError, ZeroDivisionError) as error:
            raise InputError(
                f"{path}: no benchmark report ({error}); run `make bench` on the device in question"
            ) from None
        for stage in ("synthesis", "training"):
            if stage not in found.rates:
                raise InputError(f"{path}: has no figure of {stage}; run `make bench` with this stage")
        return found

    @classmethod
    def published(cls) -> "Throughput":
        """By the paper's synthesis times, for want of a measurement."""
        rates = {}
        for model, (hours, steps, shape) in PAPER_TIMES.items():
            passes = GRADIENT * PAPER_IMAGES * steps
            rates[model] = passes * network(model, shape, 10).flops / (3600 * hours)
        return cls("assumed, the paper's synthesis times on one RTX 3090", rates={"synthesis": rates})

    def rate(self, stage: str, model: str) -> float:
        """Of the model itself where it is known, else of the first one that is."""
        rates = self.rates.get(stage) or self.rates["synthesis"]
        return rates.get(model, next(iter(rates.values())))

    def best(self, stage: str) -> float:
        """Of the network that uses the device best; generators, with their wide layers, are taken to do the same."""
        return max((self.rates.get(stage) or self.rates["synthesis"]).values())

    def otherwise(self, options: Any) -> str:
        """How a stage with these options runs, if that is not what was measured; empty if it is.

        ``auto`` is taken to be what was measured: on one device it is the same. A stage without a choice is eager fp32.
        """
        if not self.precision:
            return ""
        names = [name for name in type(options).model_fields if name.endswith("precision")]
        chosen = {getattr(options, name) for name in names} or {"fp32"}
        settled = {self.precision if precision == "auto" else precision for precision in chosen}
        generated = getattr(options, "compile", False)
        return "" if (settled, generated) == ({self.precision}, self.generated) else manner(settled, generated)

    def stand_ins(self, models: Iterable[str]) -> str:
        """Which models' rates are those of another; empty if none."""
        rates = self.rates["synthesis"]
        others = sorted(set(models) - set(rates))
        return f"{', '.join(others)} at the rate of {next(iter(rates))}" if others else ""


def manner(precisions: Iterable[str], generated: bool) -> str:
    """Arithmetic and kind of code in words."""
    return f"{' and '.join(sorted(precisions))}, {'generated code' if generated else 'eager'}"


def synthesis_passes(options: SynthesizeOptions) -> float | None:
    """Forward passes of a whole training set; None for an objective whose entry does not say."""
    passes = registry.OBJECTIVES[options.objective].passes
    return None if passes is None else passes * options.images * options.full_steps


def generation_passes(options: GenerateOptions) -> tuple[float, float] | None:
    """Forward passes of the teacher, and of the generator, in its training and the drawing of the set.

    None for a method whose entry does not say.
    """
    passes = registry.GENERATED[options.method].passes
    trained = options.batch * options.iterations * options.rounds
    return None if passes is None else (passes * trained, UPDATE * trained + options.images)


def training_passes(options: TrainOptions, images: int) -> float | None:
    """Forward passes of a whole training run on `images` images, those held out and the teacher's logits included.

    None where the loss or its search states no `passes`.
    """
    outer = registry.LOSSES[options.loss].passes
    epochs = [inner_passes(options, epoch) for epoch in range(options.epochs)]
    known = [passes for passes in epochs if passes is not None]
    if outer is None or len(known) < len(epochs):
        return None
    held = min(options.holdout, images)
    trained = (images - held) // options.batch * options.batch  # an epoch has whole mini-batches
    perturbed = max(0, options.epochs - options.awp_warmup) if options.awp else 0  # epochs that do all of it twice
    recomputed = 1 if options.varies or options.reads_features else 0  # the teacher on what it is asked about anew
    last = {"none": 0, "clean": 1, "both": 2 + known[-1]}[options.reestimate]  # the pass for BatchNorm's statistics
    measured = held * (1 + GRADIENT * options.attack_steps + 2)  # attacked, then both versions classified
    trained *= sum(known) + options.epochs * (recomputed + outer) + perturbed * outer + last
    return images + trained + options.epochs * measured


def inner_passes(options: TrainOptions, epoch: int) -> int | None:
    """Forward passes of an image's inner maximisation in epoch `epoch` (from 0); None where they are not known."""
    entry = registry.LOSSES[options.loss]
    if not entry.crafts:
        return 0
    objective = entry.inner if options.inner == "auto" else options.inner
    steps = inner_steps(options.searched, options.attack_steps, epoch, options.epochs) if objective != "none" else 0
    passes = registry.SEARCHES[options.searched].passes
    return passes(options, steps) if passes else None


def cotraining_passes(options: CotrainOptions) -> tuple[float, float] | None:
    """Forward passes of the classifiers, teacher and student, and of the generator in a whole co-training run.

    None where the method states no `generator_passes`.
    """
    entry, steps = registry.BASELINES[options.method], options.student_steps
    judged = entry.generator_passes(options) if callable(entry.generator_passes) else entry.generator_passes
    if judged is None:
        return None
    attacked = 1 + 1 + GRADIENT * options.attack_steps  # the teacher's logits, and the inner maximisation
    student = steps * (attacked + UPDATE * entry.student_inputs)
    again = steps if steps > 1 else 0  # new images for each of several student steps
    drawn = options.epochs * options.iterations
    trained = (options.epochs - options.generator_epochs) * options.iterations
    measured = options.epochs * (attacked + 2)  # a held-out mini-batch, both its versions classified
    classifiers = drawn * judged + trained * student + measured
    return options.batch * classifiers, options.batch * (drawn * UPDATE + trained * again + options.epochs)


def attack_passes(options: AttackOptions, images: int, robust: float, classes: int = 10) -> float | None:
    """Forward passes of an attack on `images` images of which the share `robust` survives everything.

    None for an attack whose entry does not say: it is not estimated.
    """
    count = registry.ATTACKS[options.attack].count()
    factor = options.eot * (0.5 + options.differences if options.differences else 1)  # a gradient counts as two passes
    return None if count is None else factor * count(options, images, robust, classes)


def checks_passes(options: ChecksOptions, images: float, robust: float) -> float:
    """Forward passes of the robustness checks on `images` images of which the share `robust` survives PGD.

    At most: clean images, flags, PGD and the ε curve on all; on the survivors twice the steps, as many starts again,
    PGD on the margin and on another model of the same size, FGSM, Square and noise; slopes; the binarisation test.
    """
    pgd = options.steps * options.restarts * GRADIENT + options.restarts
    survivors = 5 * pgd + GRADIENT + 1 + options.queries + 2 + options.draws
    curve = (len(FACTORS) + 1) * (GRADIENT * options.steps + 1)
    slopes = GRADIENT + 2 * DIRECTIONS
    task = options.inner + 1 + options.restarts * (3 * options.steps + GRADIENT * options.steps + 1)
    every = 1 + 2 + GRADIENT + pgd + curve
    return images * (every + robust * survivors) + options.gradients * slopes + options.binarised * task


def diversity_flops(net: Network, real: int, synthetic: int) -> float:
    """Operations of the features of both sets and of the distances between their points; k-means is left out."""
    distances = real * real + synthetic * synthetic + real * synthetic
    return (real + synthetic) * net.flops + 2 * net.features * distances
