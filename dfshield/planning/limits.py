"""What the options of a job cannot do, as far as it follows from a config: said before any job, by the stages' rules.

The rules are methods of the options, which the stages call too, with the numbers that they then know for certain.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from dfshield import registry
from dfshield.core.errors import InputError
from dfshield.options.attacks import GUIDE
from dfshield.planning.subjects import Subject


class Known(NamedTuple):
    """What is known of a job before any work; None for a number that only the files tell."""

    subject: Subject
    images: int | None
    """Images of the training set that it reads."""


def images_in(dataset: str, split: str) -> int | None:
    """Images of a data set's split, None if no file tells; raises InputError for a split that it lacks."""
    known = registry.DATASETS[dataset].images
    if known and split not in known:
        raise InputError(f"{dataset}: has no split {split!r}; it has {', '.join(known)}")
    return known.get(split)


def _teacher(options: Any, job: Known) -> None:
    if not job.subject.has_teacher_weights:
        images_in(job.subject.dataset, "train")


def _train(options: Any, job: Known) -> None:
    if job.images is not None:
        options.mini_batches(job.images)


def _cotrain(options: Any, job: Known) -> None:
    options.check_classes(job.subject.classes)


def _public(options: Any, job: Known) -> None:
    options.check_dataset(job.subject.dataset, job.subject.input_shape[0])
    images = images_in(options.dataset, "train")
    if images is not None:
        options.check_images(images)


def _attack(options: Any, job: Known) -> None:
    options.check_needs(
        [need for need in registry.ATTACKS[options.attack].needs if need != GUIDE]
    )  # the flow gives them
    if not job.subject.own:
        images_in(job.subject.dataset, options.split)


def _diversity(options: Any, job: Known) -> None:
    if not job.subject.own:
        options.check_sizes(images_in(job.subject.dataset, options.split), job.images)


CHECKS: dict[str, Callable[[Any, Known], None]] = {
    "teacher": _teacher,
    "train": _train,
    "cotrain": _cotrain,
    "public": _public,
    "attack": _attack,
    "diversity": _diversity,
}


MAKERS = ("synthesize", "generate")
"""Stages whose options tell how many classes get images."""


def missed_classes(stage: str, options: Any, subject: Subject) -> str:
    """What there is to say of classes that get no image, which is allowed; empty for nothing."""
    found = options.missed_classes(subject.classes) if stage in MAKERS else ""
    return f"{stage} options of {subject.dataset}/{subject.model}: {found}" if found else ""


def check_job(stage: str, options: Any, subject: Subject, images: int | None = None) -> None:
    """Raise InputError for options of a stage that fit neither their subject nor a training set of so many images."""
    try:
        CHECKS.get(stage, lambda options, job: None)(options, Known(subject, images))
    except InputError as error:
        raise InputError(f"{stage} options of {subject.dataset}/{subject.model}: {error}") from None
