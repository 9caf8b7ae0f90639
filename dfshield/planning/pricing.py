"""What every job takes, before it is run: operations, seconds and bytes, by the cost model and a throughput."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dfshield import registry
from dfshield.core.files import data_dir, data_file
from dfshield.planning.arithmetic import (
    UPDATE,
    Throughput,
    attack_passes,
    checks_passes,
    cotraining_passes,
    diversity_flops,
    generation_passes,
    synthesis_passes,
    training_passes,
)
from dfshield.planning.jobs import Job
from dfshield.planning.limits import images_in
from dfshield.planning.paths import HARDEN, NONE, Place
from dfshield.planning.plan import Plan
from dfshield.registry.entry import named

if TYPE_CHECKING:
    from dfshield.models.size import Network

START_SECONDS = 4.0
"""Start of a job and its imports (assumed)."""
LIGHT_SECONDS = 1.0
"""Start of a job that computes nothing (assumed)."""
DISK_RATE = 1e8
"""Bytes per second of jobs that only copy, check and hash (assumed)."""
OWN_TEST_IMAGES = 10_000
"""Test images of a user's own model whose file is not there to count them (assumed)."""


MOST_ATTACKS = 5
"""Attacks of an ensemble, each of whose results a defence judges (AutoAttack with its pre-filter)."""


class Price(NamedTuple):
    """What a job takes."""

    seconds: float
    bytes: float = 0.0
    flops: float = 0.0
    """Operations of the classifiers and of a generator, as far as they are counted."""


class Work(NamedTuple):
    """What a job computes."""

    passes: float
    """Forward passes of the classifier."""
    bytes: float
    generator: float = 0.0
    """Operations of a generator."""
    flops: float = 0.0
    """Other operations."""


class Prices:
    """Prices jobs of a plan on a device; `robust` is the share of images that survive every attack."""

    def __init__(self, plan: Plan, throughput: Throughput, robust: float) -> None:
        self.plan, self.throughput, self.robust = plan, throughput, robust
        self.models: set[str] = set()
        self.otherwise: dict[str, None] = {}  # a set in order
        self._networks: dict[tuple[str, str], Network] = {}
        self._generators: dict[tuple[Any, ...], float] = {}

    def price(self, job: Job) -> Price | None:
        """What `job` takes; None if the cost model does not know it."""
        if job.stage in LIGHT:
            size = LIGHT[job.stage](self, job)
            copying = 2 * size / DISK_RATE if job.stage in ("merge", "augment", "export") else 0.0
            started = START_SECONDS if job.stage in ("augment", "export") else 0.0
            return Price(LIGHT_SECONDS + copying + started, size)
        assert job.place is not None
        subject = self.plan.subject(job.place.dataset, job.place.model)
        if job.stage == "teacher" and subject.has_teacher_weights:
            return Price(START_SECONDS, 4 * self.network(job.place).parameters)
        work = WORK[job.stage](self, job.place, job.options)
        if work is None:
            return None
        model, kind = job.place.model, "training" if job.stage in ("teacher", "train", "cotrain") else "synthesis"
        self.models.add(model)
        if how := self.throughput.otherwise(job.options):
            self.otherwise[f"{job.stage} ({how})"] = None
        classifiers = job.share * (work.passes * self.network(job.place).flops + work.flops)
        seconds = classifiers / self.throughput.rate(kind, model) + work.generator / self.throughput.best(kind)
        return Price(START_SECONDS + seconds, job.share * work.bytes, classifiers + work.generator)

    # --- sizes -------------------------------------------------------------------------------------------------------

    def network(self, place: Place) -> "Network":
        """Size of a network, counted once."""
        key = place.dataset, place.model
        if key not in self._networks:
            from dfshield.models.size import network

            subject = self.plan.subject(*key)
            own = {"factory": subject.factory, "arguments": subject.arguments} if subject.own else {}
            self._networks[key] = network(place.model, subject.input_shape, subject.classes, **own)
        return self._networks[key]

    def generator(self, place: Place, options: Any) -> float:
        """Operations of a generator's forward pass, counted once."""
        subject = self.plan.subject(place.dataset, place.model)
        width = getattr(options, "generator_width", getattr(options, "width", 1.0))
        key = (options.method, subject.input_shape, subject.classes, width, options.latent)
        if key not in self._generators:
            from dfshield.models.size import generator_flops

            self._generators[key] = generator_flops(options, subject.input_shape, subject.classes)
        return self._generators[key]

    def image_bytes(self, place: Place) -> int:
        """Bytes of one image in float32."""
        channels, height, width = self.plan.subject(place.dataset, place.model).input_shape
        return 4 * channels * height * width

    def images(self, place: Place) -> int:
        """Images of a training set."""
        choice = self.plan.sources[place.source]
        if choice.base is not None:
            return self.images(place.at(source=choice.base))
        if choice.stage == "export":
            return count(place.dataset, "train")
        options = self.plan.options(choice.stage, place)
        return int(options.images) or count(options.dataset, "train")

    def data_bytes(self, place: Place) -> int:
        """Bytes of a training set."""
        return self.images(place) * self.image_bytes(place)

    def tested(self, place: Place, split: str) -> int:
        """Images of a data set's split, or of a user's own file."""
        if place.dataset != HARDEN:
            return count(place.dataset, split)
        import numpy as np

        config, evaluation = self.plan.config, self.plan.hardened(place.model).evaluation
        file = data_file(evaluation.file, data_dir(config.data_dir)) if evaluation else Path()
        try:
            with np.load(file, allow_pickle=False) as arrays:
                return len(arrays["y"])
        except (OSError, ValueError, KeyError):  # the attack will say what is wrong with it
            return OWN_TEST_IMAGES


# --- what the jobs of each stage compute -----------------------------------------------------------------------------


def _teacher(prices: Prices, place: Place, options: Any) -> Work:
    return Work(UPDATE * options.epochs * count(place.dataset, "train"), 4 * prices.network(place).parameters)


def _synthesize(prices: Prices, place: Place, options: Any) -> Work | None:
    passes = synthesis_passes(options)
    return None if passes is None else Work(passes, options.images * prices.image_bytes(place))


def _generate(prices: Prices, place: Place, options: Any) -> Work | None:
    passes = generation_passes(options)
    if passes is None:
        return None
    size = options.images * prices.image_bytes(place)
    return Work(passes[0], size, passes[1] * prices.generator(place, options))


def _public(prices: Prices, place: Place, options: Any) -> Work:
    return Work(prices.images(place), prices.data_bytes(place))  # the teacher answers once


def _train(prices: Prices, place: Place, options: Any) -> Work | None:
    passes = training_passes(options, round(options.data_share * prices.images(place)))
    return None if passes is None else Work(passes, 4 * prices.network(place).parameters)


def _cotrain(prices: Prices, place: Place, options: Any) -> Work | None:
    passes = cotraining_passes(options)
    if passes is None:
        return None
    classifiers, generator = passes
    size = 4 * prices.network(place).parameters + options.kept_images * prices.image_bytes(place)
    return Work(classifiers, size, generator * prices.generator(place, options))


def _defend(prices: Prices, place: Place, options: Any) -> Work | None:
    """Up to the whole teacher is kept, and tensors of few values."""
    images = prices.images(prices.plan.fitting(place))
    passes = options.fitting_passes(images)
    if passes is None:
        return None
    counted = registry.DEFENCES[options.defence].network
    shape = prices.plan.subject(place.dataset, place.model).input_shape
    other = options.network_passes(images) * named(counted)(options, shape) if counted else 0
    return Work(passes, 4 * prices.network(place).parameters, flops=other)


def _attack(prices: Prices, place: Place, options: Any) -> Work | None:
    tested = options.limit or prices.tested(place, options.split)
    classes = prices.plan.subject(place.dataset, place.model).classes
    passes = attack_passes(options, tested, prices.robust, classes)
    if passes is None:
        return None
    defence = prices.plan.defence(place.defence)
    if defence:
        judged = 1 + (MOST_ATTACKS if registry.ATTACKS[options.attack].ensemble else 1)
        passes = passes * defence.passes + judged * tested * defence.verdict_passes
    return Work(passes, tested * prices.image_bytes(place) / 2)  # a float16 perturbation for every image at most


def _certify(prices: Prices, place: Place, options: Any) -> Work:
    """A record has a class and a radius for every image."""
    tested = min(options.limit or math.inf, prices.tested(place, options.split))
    return Work(tested * options.passes, tested * 40)


def _detect(prices: Prices, place: Place, options: Any) -> Work:
    """At most: every image is attacked to the end, whether it is classified rightly or not."""
    tested = min(options.limit or math.inf, prices.tested(place, options.split))
    fitted = options.fitting_passes(prices.images(prices.plan.fitting(place)))
    return Work(fitted + tested * options.evaluation_passes, 2_000)


def _checks(prices: Prices, place: Place, options: Any) -> Work:
    tested = min(options.limit or math.inf, prices.tested(place, options.split))
    defence = prices.plan.defence(place.defence)
    behind = defence.verdict_passes if defence else 1  # at most: the checks craft little and judge much
    return Work(checks_passes(options, tested, prices.robust) * behind, 10_000)


def _diversity(prices: Prices, place: Place, options: Any) -> Work:
    kept = place.source == NONE
    synthetic = prices.plan.options("cotrain", place).kept_images if kept else prices.images(place)
    real = count(place.dataset, options.split)
    return Work(0, 0, flops=diversity_flops(prices.network(place), real, synthetic))


def _landscape(prices: Prices, place: Place, options: Any) -> Work:
    """A record has some twenty characters for every point of the surface."""
    tested = min(options.limit or math.inf, prices.tested(place, options.split))
    return Work(tested * options.passes, 20 * options.points**2)


WORK: dict[str, Callable[[Prices, Place, Any], Work | None]] = {
    "teacher": _teacher,
    "synthesize": _synthesize,
    "generate": _generate,
    "public": _public,
    "train": _train,
    "cotrain": _cotrain,
    "defend": _defend,
    "attack": _attack,
    "certify": _certify,
    "detect": _detect,
    "checks": _checks,
    "diversity": _diversity,
    "landscape": _landscape,
}
"""Stages that compute, and what; None where the cost model does not know the chosen entry."""


def _data_size(prices: Prices, job: Job) -> float:
    return prices.data_bytes(job.place) if job.place else 0


def _model_size(prices: Prices, job: Job) -> float:
    return 4 * prices.network(job.place).parameters if job.place else 0


LIGHT: dict[str, Callable[[Prices, Job], float]] = {
    **dict.fromkeys(("merge", "augment", "export"), _data_size),
    "card": _model_size,
    "table": lambda prices, job: 0.0,
    "figure": lambda prices, job: 0.0,
    "checklist": lambda prices, job: 0.0,
}
"""Stages that compute nothing to speak of, and the bytes that their jobs write."""


def count(dataset: str, split: str) -> int:
    """Images of a data set's split, without reading them; raises InputError for a split that it lacks."""
    known = images_in(dataset, split)
    if known is not None:
        return known
    import medmnist

    return int(medmnist.INFO[dataset]["n_samples"][registry.MEDMNIST_SPLITS[split]])
