"""What an artefact records of how it was made, and where that is not what a config says.

Every artefact states its options, its seed and the hashes of what it was made from. Only these statements are read
here, not the values: a table over hundreds of files is checked in a second.
"""

import functools
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dfshield.core import hdf5
from dfshield.core.errors import InputError
from dfshield.core.files import data_dir, data_file
from dfshield.core.hashing import sha256_file
from dfshield.defences.fit_file import stated_fit
from dfshield.evaluation import ledger as ledgers
from dfshield.evaluation.certificates import read_certificates
from dfshield.evaluation.detections import read_detection
from dfshield.evaluation.findings import read_findings
from dfshield.evaluation.landscapes import read_landscape
from dfshield.evaluation.record import read_record
from dfshield.models.bundles import wherever
from dfshield.models.card import Card, stated_card
from dfshield.options import StageOptions
from dfshield.planning.cells import Cell
from dfshield.planning.jobs import Job, Jobs
from dfshield.planning.paths import IMAGES, NONE, Place
from dfshield.planning.plan import Plan
from dfshield.planning.stages import STAGES
from dfshield.sources import trainset

UNSEEN = ("synthesize", "table", "figure", "card")
"""Stages whose outputs are no part of the chain from a figure to its teacher: a merged set says what its shards say."""
MADE_BY = {"merge": "synthesize", "images": "cotrain"}
"""Stages whose outputs state the options of another."""
IMPORTED = ("input_shape", "classes", "mean", "std", "factory", "arguments")
"""What the card of a user's own teacher and the config both state."""


@dataclass(frozen=True)
class Origin:
    """What an artefact states of itself."""

    content: str
    """Hash of its tensors or values."""
    made_of: tuple[str, ...]
    """Hashes of the artefacts that it was made from."""
    real_data: str
    code: str
    seed: int | None
    options: Mapping[str, Any] | None
    """None for a teacher that was imported."""
    defence: Mapping[str, Any] | None = None
    """Options of the defence that an attacked model stood behind, or of a detector; None without one."""
    card: Card | None = None
    """Of a checkpoint."""
    history: str = ""
    """Hash of the CSV of metrics that training wrote beside a checkpoint; empty where it is not stated."""


def _of_checkpoint(path: Path) -> Origin:
    card = stated_card(path)
    made = card.provenance
    hashes = tuple(str(made[key]) for key in ("teacher_sha256", "data_sha256") if made.get(key))
    code, seed, options = (made.get(key) for key in ("code", "seed", "options"))
    history = str(made.get("metrics_sha256", ""))
    return Origin(card.tensors_sha256, hashes, card.real_data, str(code), seed, options, card=card, history=history)


def _of_trainset(path: Path) -> Origin:
    stated = trainset.header(path)
    options, code = stated["options"], str(stated.get("code"))
    hashes = (stated["teacher_sha256"], str(options.get("base_sha256")))
    return Origin(stated["content_sha256"], hashes, stated["real_data"], code, stated["seed"], options)


def _of_ledger(path: Path) -> Origin:
    with hdf5.opened(path, ledgers.CONTRACT) as file:
        stated = hdf5.attributes(file)
        options, defence = json.loads(stated["options"]), json.loads(stated["defence_options"])
        behind = defence | {"defence": stated["defence"]} if stated["defence"] != NONE else None
        hashes, code, seed = (
            (stated["model_sha256"], *json.loads(stated["others"]).values()),
            stated["code"],
            stated["seed"],
        )
        return Origin(stated["content_sha256"], hashes, stated["real_data"], code, seed, options, behind)


def _of_fit(path: Path) -> Origin:
    own = stated_fit(path)
    hashes = (own.model_sha256, own.teacher_sha256, own.data_sha256)
    options = own.options | {"threat": own.threat}
    return Origin(own.tensors_sha256, hashes, own.real_data, own.code, own.seed, options)


def _of_record(path: Path) -> Origin:
    own = read_record(path)
    hashes = (own.data_sha256, own.teacher_sha256)
    return Origin(own.content_sha256, hashes, own.real_data, own.code, None, own.options)


def _of_findings(path: Path) -> Origin:
    own = read_findings(path)
    behind = own.defence_options | {"defence": own.defence} if own.defence != NONE else None
    hashes = (own.model_sha256, *own.ledgers.values(), *own.others.values())
    return Origin(own.content_sha256, hashes, own.real_data, own.code, own.seed, own.options, behind)


def _of_certificates(path: Path) -> Origin:
    own = read_certificates(path)
    return Origin(own.content_sha256, (own.model_sha256,), own.real_data, own.code, own.seed, own.options)


def _of_detection(path: Path) -> Origin:
    own = read_detection(path)
    hashes = (own.model_sha256, own.training_sha256)
    return Origin(own.content_sha256, hashes, own.real_data, own.code, own.seed, own.options, defence=own.options)


def _of_landscape(path: Path) -> Origin:
    own = read_landscape(path)
    return Origin(own.content_sha256, (own.model_sha256,), own.real_data, own.code, own.seed, own.options)


READERS: Mapping[str, Callable[[Path], Origin]] = {
    **dict.fromkeys(("teacher", "train", "cotrain"), _of_checkpoint),
    **dict.fromkeys(("synthesize", "merge", "generate", "augment", "public", "export", "images"), _of_trainset),
    "defend": _of_fit,
    "attack": _of_ledger,
    "certify": _of_certificates,
    "detect": _of_detection,
    "checks": _of_findings,
    "diversity": _of_record,
    "landscape": _of_landscape,
}
"""How the statements of a stage's output are read; raises InputError for a file that is not whole."""


def origin(stage: str, path: Path) -> Origin:
    """What the output `path` of a stage states of itself; raises InputError for a file that is not whole."""
    return READERS[stage](path)


def chain(jobs: Jobs, path: str) -> list[Job]:
    """The jobs from a ledger or record back to its teacher, the first ones first.

    A merged set counts as made from what its shards were. The images that a co-training keeps beside its student count
    as the output of a stage ``images``.
    """
    if kept := Place.parse(IMAGES, path):
        own = chain(jobs, jobs.student(kept))
        return [*own, Job("images", path, (own[0].output,), kept)]
    found = [
        replace(job, inputs=jobs.jobs[job.inputs[0]].inputs) if job.stage == "merge" else job
        for job in jobs.needed(path, STAGES.keys() - set(UNSEEN))
    ]
    beside = [name for name in found[-1].inputs if name not in jobs.jobs]
    images = [Job("images", name, (found[0].output,), found[-1].place) for name in beside]
    return [*found[:-1], *images, found[-1]]


def other_than_asked(plan: Plan, stage: str, place: Place, made: Origin) -> str | None:
    """What the config says otherwise than an artefact does: ``epochs is 3, the config says 9``; None for nothing."""
    if stage == "teacher" and plan.subject(place.dataset, place.model).own:
        return _imported_otherwise(plan, place, made)
    options = _options(plan, stage, place)
    if options is None or made.options is None:  # of a real training set, of weights that were published
        return None
    seed = made.options.get("seed") if stage == "diversity" else made.seed
    found = _first(options, made.options) or _said("seed", seed, options.seed)
    if stage == "defend" and not found:
        return _said("threat", made.options.get("threat"), plan.fitted_for(place))
    if stage in ("attack", "checks") and not found:
        asked = plan.defence(place.defence)
        if (asked is None) != (made.defence is None):
            return _said("defence", (made.defence or {}).get("defence", "none"), place.defence)
        found = _first(asked, made.defence) if asked and made.defence else None
    return found


def _options(plan: Plan, stage: str, place: Place) -> StageOptions | None:
    """The options that an artefact should have."""
    own = MADE_BY.get(stage, stage)
    if STAGES[own].options is None:
        return None
    options: StageOptions = plan.options(own, place)
    return options


def _first(options: StageOptions, made: Mapping[str, Any]) -> str | None:
    """The first option that is recorded otherwise; the device and what it decides do not count."""
    for name, value in options.model_dump(mode="json", exclude={"device", "threads", "seed", "vgg16"}).items():
        found = made.get(name, options.neutral.get(name))
        if found != value and not (name.endswith("precision") and value == "auto"):
            return _said(name, found, value)
    return None


def _said(name: str, found: object, asked: object) -> str | None:
    return None if found == asked else f"{name} is {found}, the config says {asked}"


def _imported_otherwise(plan: Plan, place: Place, made: Origin) -> str | None:
    own, card = plan.subject(place.dataset, place.model), made.card
    assert card is not None and own.weights is not None
    for name in IMPORTED:
        asked, found = getattr(own, name), getattr(card, name)
        if name == "arguments":
            asked, found = (wherever(own.factory, values) for values in (asked, found))
        if asked != found:
            return _said(name, found, asked)
    weights = data_file(own.weights, data_dir(plan.config.data_dir))
    if weights.is_file() and card.provenance.get("weights_sha256") != _hash_of(weights, weights.stat().st_mtime_ns):
        return f"it is of other weights than {weights}"
    return None


@functools.cache
def _hash_of(path: Path, changed: int) -> str:
    del changed
    return sha256_file(path)


def broken_link(job: Job, made: Mapping[str, Origin]) -> str | None:
    """What does not hold between the output of a job and its inputs, as far as `made` has them; None for nothing."""
    own = made[job.output]
    for path in job.inputs:
        if path not in made:
            continue
        if made[path].content not in own.made_of:
            return f"it was not made from {path} as it is now"
        # The first model is what was attacked; others that the attack needs may have seen any data.
        attacked = job.stage in ("attack", "checks", "certify", "landscape") and path == job.inputs[0]
        trained_on = made[path].card is None or attacked
        if made[path].real_data != own.real_data and trained_on and not own.defence:
            return f"real_data is {own.real_data}, that of {path} is {made[path].real_data}"
    return None


def check(
    plan: Plan,
    cells: Iterable[Cell],
    students: Iterable[Place] = (),
    defended: Iterable[Place] = (),
    sets: Iterable[Place] = (),
) -> None:
    """Refuse cells, students, fits of defences and training sets whose chain is of another config or changed.

    What is not there is left out.

    Raises InputError naming the file, the option and both values.
    """
    jobs = Jobs(plan)
    made: dict[str, Origin] = {}
    fits = [path for place in defended for path in jobs.defence(place)]
    images = map(jobs.images, sets)
    for path in dict.fromkeys([*jobs.files(cells), *map(jobs.student, students), *fits, *images]):
        for job in chain(jobs, path):
            if job.output in made or not Path(job.output).is_file():
                continue
            made[job.output] = origin(job.stage, Path(job.output))
            why = job.place and other_than_asked(plan, job.stage, job.place, made[job.output])
            if why := why or broken_link(job, made):
                raise InputError(f"{job.output}: {why}; make it again: delete it and start the run again")


def outdated(plan: Plan, stage: str, place: Place, path: Path, code: str) -> str | None:
    """Why the output `path` of a stage is not what the config and this version's code would make; None if it is."""
    try:
        made = origin(stage, path)
    except InputError as error:
        return str(error)
    if why := other_than_asked(plan, stage, place, made):
        return why
    return "its code is of another version" if made.code != code and stage != "merge" else None
