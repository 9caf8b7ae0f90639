"""The files of a whole run with hashes that belong together, made without computing anything."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from support.ledgers import make_findings, make_ledger, make_record
from support.records import landscape

from dfshield.core.hashing import canonical_json, sha256_file
from dfshield.evaluation.landscapes import write_landscape
from dfshield.models.checkpoints import Card, build_network, save_checkpoint
from dfshield.models.classifier import Classifier
from dfshield.planning.companions import checked_ledgers, checks_others
from dfshield.planning.paths import (
    CHECKS,
    DATA,
    DIVERSITY,
    IMAGES,
    IMAGES_DIVERSITY,
    LANDSCAPE,
    LEDGER,
    METRICS,
    NONE,
    STUDENT,
    TEACHER,
    Place,
)
from dfshield.planning.plan import Plan
from dfshield.registry import DIVERSITY_METRICS
from dfshield.sources.trainset import Writer

SHAPE = (1, 8, 8)
EVIDENCE = (LEDGER, DIVERSITY, IMAGES_DIVERSITY, LANDSCAPE)
HISTORY = "epoch,loss\n1,0.5\n"


def save(path: Path, weights: int, kind: str, factory: str | None = None, **provenance: object) -> str:
    real_data = str(provenance.pop("real_data", "teacher"))
    own = {"factory": factory, "provenance": provenance}
    card = Card(kind, "digits", "cnn-s", SHAPE, 10, (0.3,), (0.38,), real_data, **own)  # type: ignore[arg-type]
    return save_checkpoint(path, Classifier(build_network("cnn-s", SHAPE, 10, seed=weights), (0.3,), (0.38,)), card)


def save_data(path: Path, teacher: str, real_data: str, seed: int, options: str = "{}", source: str = "") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    attributes = {"teacher_sha256": teacher, "dataset": "digits", "model": "cnn-s", "source": source or path.parts[-3]}
    attributes |= {"real_data": real_data, "options": options, "seed": seed, "classes": 10, "groups": 1}  # type: ignore[dict-item]
    writer = Writer(path, attributes | {"first_group": 0, "last_group": 0}, ())
    images = np.repeat(np.arange(20, dtype=np.float32) / 20, 64).reshape(20, 8, 8, 1)  # each of one grey
    writer.append(images, np.arange(20) % 10, np.zeros(20), {}, {})
    return writer.finish()


def save_own(plan: Plan, place: Place, teacher: str, real_data: str) -> str:
    """The data of one source, those of an augmented one with the set that they were made of, or a generator's."""
    if place.source == NONE:
        options = canonical_json(described(plan, "cotrain", place))
        return save_data(Path(place.path(IMAGES)), teacher, real_data, place.seed, options, source=place.recipe)
    stage, base = plan.sources[place.source].stage, plan.sources[place.source].base
    values = {} if stage == "export" else described(plan, stage, place)
    if base:
        values |= {"base": base, "base_sha256": save_own(plan, place.at(source=base), teacher, real_data)}
    return save_data(Path(place.path(DATA)), teacher, real_data, place.seed, canonical_json(values))


def described(plan: Plan, stage: str, place: Place) -> dict[str, object]:
    """The options that the output of a stage states."""
    return dict(plan.options(stage, place).described())


def fake_run(plan: Plan, cells: list) -> None:
    """Every file of a run's cells, with hashes that belong together."""
    teachers: dict[Place, str] = {}
    students: dict[str, str] = {}
    sets: dict[str, str] = {}
    hashes_of: dict[str, str] = {}
    checked: dict[str, tuple[str, str]] = {}
    for number, cell in enumerate(cells):
        parsed = (Place.parse(template, cell.ledger) for template in EVIDENCE)
        place = next(filter(None, parsed))
        first = plan.teacher(place)
        if first not in teachers:
            teachers[first] = save(
                Path(first.path(TEACHER)), -1 - first.seed, "teacher", plan.subject(first.dataset, first.model).factory,
                options=described(plan, "teacher", first), seed=first.seed,
            )  # fmt: skip
        teacher = teachers[first]
        real_data, sha = "teacher", teacher
        if (place.source, place.recipe) != (NONE, NONE):
            real_data = "train" if place.source == "real" else "none"
            key = place.path(IMAGES if place.source == NONE else DATA)
            if key not in sets:
                sets[key] = save_own(plan, place, teacher, real_data)
            hashes = {"teacher_sha256": teacher, "data_sha256": sets[key]}
            if cell.metric in DIVERSITY_METRICS:
                options = described(plan, "diversity", place) | {"seed": plan.config.seeds[0]}
                own = {"dataset": place.dataset, "model": place.model, "source": place.source, "seed": place.seed}
                own["options"] = options
                make_record(Path(cell.ledger), 0.5, real_data=real_data, **own, **hashes)
                continue
            student = place.path(STUDENT)
            if student not in students:
                options = described(plan, plan.recipe_stage(place.recipe), place)
                Path(student).parent.mkdir(parents=True, exist_ok=True)
                Path(place.path(METRICS)).write_text(HISTORY)
                hashes["metrics_sha256"] = sha256_file(Path(place.path(METRICS)))
                students[student] = save(
                    Path(student), 1 + number, "student", real_data=real_data, options=options, source=place.source,
                    recipe=plan.recipes[place.recipe][0], seed=cell.seed, **hashes,
                )  # fmt: skip
            sha = students[student]
        if cell.evidence == "landscape":
            own = {"dataset": place.dataset, "model": place.model, "seed": place.seed, "real_data": real_data}
            rises = (number / 8, number / 4)
            options = described(plan, "landscape", place)
            write_landscape(Path(cell.ledger), landscape(rises, options=options, model_sha256=sha, **own))
            continue
        robust = 150 if place.protocol == "clean" else 60 + number
        hashes_of[cell.ledger] = save_ledger(plan, place, cell.threat, robust, sha, real_data)
        if cell.checks:
            checked[cell.checks] = sha, real_data
    for path, (sha, real_data) in checked.items():
        save_checks(plan, path, sha, real_data, teachers, hashes_of)


def save_ledger(plan: Plan, place: Place, threat: str, robust: int, sha: str, real_data: str) -> str:
    behind = plan.defence(place.defence)
    own = {"defence": behind.defence, "defence_options": behind.described()} if behind else {}
    return make_ledger(
        Path(place.path(LEDGER)), 150, robust, protocol=place.protocol, threat=threat, model_sha256=sha,
        real_data=real_data, options=described(plan, "attack", place), seed=place.seed, **own,
    )  # fmt: skip


def save_checks(
    plan: Plan, path: str, sha: str, real_data: str, teachers: Mapping[Place, str], hashes_of: Mapping[str, str]
) -> None:
    """Robustness checks, with the ledgers that they read and that are not there yet."""
    place = Place.parse(CHECKS, path)
    assert place
    options = described(plan, "checks", place)
    read = {}
    for own in checked_ledgers(plan, place):
        made = hashes_of.get(own.path(LEDGER))
        read[own.protocol] = made or save_ledger(plan, own, str(options["threat"]), 75, sha, real_data)
    make_findings(
        Path(path), threat=options["threat"], model_sha256=sha, real_data=real_data, defence=place.defence,
        options=options, seed=place.seed, dataset=place.dataset, model=place.model, ledgers=read,
        others={name: teachers[other] for name, other in checks_others(plan, place).items()},
    )  # fmt: skip
