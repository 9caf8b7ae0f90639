"""Minutes into settings: a few steps of each stage are timed, and the largest run that the time allows is chosen.

Small runs keep the proportions of `examples/cifar10_resnet20/`: 250 steps of synthesis an image and 15 epochs. From
6,000 images on, steps and epochs grow with the images towards the paper's 60,000 images, 2,000 steps and 200 epochs.
"""

import contextlib
import io
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dfshield.api.run import MAKING
from dfshield.core.errors import InputError
from dfshield.core.progress import log
from dfshield.planning.arithmetic import Throughput, synthesis_passes, training_passes
from dfshield.planning.jobs import Jobs
from dfshield.planning.paths import HARDEN, NONE, TEACHER
from dfshield.planning.plan import Plan
from dfshield.planning.pricing import START_SECONDS, Prices
from dfshield.report.content import hardened_place

BATCH = 100
"""Images of a batch of synthesis."""
SMALL, PAPER = (6_000, 250, 15), (60_000, 2_000, 200)
"""Images, steps of synthesis and epochs: of the example, and of the paper."""
FULL_STEPS = 1_000
"""Images from which on each has all of the example's steps."""
HELD_OUT = 200
"""Synthetic images that training leaves out, to say how it goes."""
FEWEST_STEPS = 60
"""Of synthesis: fewer leave noise."""
TRIAL_SECONDS = 1.5
"""Of the steps that are timed."""
SLOW_SECONDS = 20
"""Of a step, beside which what it takes to start is nothing."""
EVALUATION = 0.25
"""Largest share of the minutes that the evaluation may take."""
FEWEST_EVALUATED = 25
"""Real images below which no evaluation is cut."""
ROBUST, UNDEFENDED = 0.25, 0.05
"""Share of the real images that survive every attack, of a hardened and another model: these take time (assumed)."""
START = 0.5
"""Seconds that a stage takes to begin, its libraries being in memory (assumed)."""

Sections = dict[str, dict[str, Any]]


def sized(images: int) -> Sections:
    """The sections of a config for a synthetic set of so many images."""
    steps, epochs = SMALL[1], SMALL[2]
    if images > SMALL[0]:
        share = _exponent(images)
        steps, epochs = (round(SMALL[i] * (PAPER[i] / SMALL[i]) ** share) for i in (1, 2))
    elif images < FULL_STEPS:
        steps = max(FEWEST_STEPS, round(steps * images / FULL_STEPS))
    return {
        "synthesize": {"images": images, "iterations": steps},
        "train": {"epochs": epochs, "holdout": min(HELD_OUT, images // 10)},
    }


def _exponent(images: int) -> float:
    """How far a number of images lies from the example's to the paper's, on a logarithmic scale."""
    return math.log(images / SMALL[0]) / math.log(PAPER[0] / SMALL[0])


def measured(plan: Plan) -> Throughput:
    """Operations a second of synthesis and training with the options of the plan's first own model, on its device.

    The teacher's checkpoint is there.
    """
    from dfshield.sources import inversion
    from dfshield.training import train

    name = next(iter(plan.config.harden))
    place, factory = hardened_place(plan, name), plan.subject(HARDEN, name).factory
    teacher = Path(plan.teacher(place).path(TEACHER))
    synthesis, training = plan.options("synthesize", place), plan.options("train", place)
    used = min(synthesis.batch, training.batch * training.aggregate)  # an update of the weights an epoch
    flops = Prices(plan, Throughput("nothing measured yet", rates={"synthesis": {"": 1.0}}), 0.0).network(place).flops
    log("timing a few steps of synthesis and of training")
    with TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        data, student = Path(folder, "data.h5"), Path(folder, "student.safetensors")

        def make(steps: int) -> float | None:
            own = synthesis.model_copy(update={"images": synthesis.batch, "iterations": steps})
            inversion.run(teacher, data, own, factory=factory)
            return synthesis_passes(own)

        def fit(epochs: int) -> float | None:
            own = training.model_copy(update={"epochs": epochs, "holdout": 0, "data_share": used / synthesis.batch})
            train.run(teacher, data, student, own, factory=factory)
            return training_passes(own, used)

        rates = {stage: {name: flops * _rate(work)} for stage, work in (("synthesis", make), ("training", fit))}
    return Throughput("measured on a few steps", plan.options("train", place).device, rates)


def _rate(work: Callable[[int], float | None]) -> float:
    """Passes a second of `work`, by the difference of two sizes of it: a stage's start is no part of it."""
    _timed(work, 1)  # the first use of a library takes longer
    size, (before, least) = 2, _timed(work, 1)
    if before > SLOW_SECONDS:
        return least / before
    while True:
        after, passes = _timed(work, size)
        if after - before > TRIAL_SECONDS or size >= 512:
            return (passes - least) / max(after - before, 1e-3)
        size *= 4


def _timed(work: Callable[[int], float | None], size: int) -> tuple[float, float]:
    start = time.perf_counter()
    passes = work(size)
    if passes is None:
        raise InputError("minutes: what the recipe takes is not known; give images, iterations and epochs instead")
    return time.perf_counter() - start, passes


def chosen(
    plan_of: Callable[[Mapping[str, Any]], Plan], minutes: float, rates: Throughput, evaluated: int, spent: float
) -> Sections:
    """The sections for the largest run within so many minutes; `plan_of` makes the plan of some.

    `evaluated` is the number of real images to attack, 0 for none; `spent` are the seconds that have gone already.
    Raises InputError if the smallest run takes longer.
    """

    def seconds(sections: Sections, stages: tuple[str, ...]) -> float:
        plan = plan_of(sections)
        jobs, hardened, original = Jobs(plan), Prices(plan, rates, ROBUST), Prices(plan, rates, UNDEFENDED)
        jobs.target(HARDEN)
        total = 0.0
        for job in jobs.jobs.values():
            if job.stage in stages:
                price = (original if job.place and job.place.recipe == NONE else hardened).price(job)
                total += max(START, price.seconds - START_SECONDS + START) if price else 0.0
        return total

    available = whole = 60 * minutes - spent
    attack: Sections = {}
    if evaluated:
        limit = evaluated
        judging = ("attack", "checks")
        while limit > FEWEST_EVALUATED and seconds(_limited(limit), judging) > EVALUATION * whole:
            limit = max(FEWEST_EVALUATED, limit // 2)
        attack = _limited(limit)
        whole -= seconds(attack, judging)
    low, high = 1, PAPER[0] // BATCH
    least = seconds(sized(BATCH), MAKING)
    if least > whole:
        needed = math.ceil((spent + least + available - whole) / 60)
        raise InputError(f"minutes: {minutes:g} are too few for this network here; give {needed} or more")
    while low < high:
        middle = (low + high + 1) // 2
        if seconds(sized(middle * BATCH), MAKING) <= whole:
            low = middle
        else:
            high = middle - 1
    found = sized(low * BATCH) | attack
    said = ", ".join(f"{key} {value}" for section in found.values() for key, value in section.items())
    log(f"chosen for {minutes:g} minutes: {said}")
    return found


def _limited(limit: int) -> Sections:
    return {"attack": {"limit": limit}, "checks": {"limit": min(limit, FEWEST_EVALUATED)}}
