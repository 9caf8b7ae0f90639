"""The jobs that targets need: stage, place, options and inputs of each, once by the file that it makes.

The workflow starts the same jobs (a test compares the counts); estimates and the cost table are computed of these.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from dfshield.core.errors import InputError
from dfshield.core.progress import log
from dfshield.planning.cells import Cell
from dfshield.planning.choices import MIXTURE
from dfshield.planning.companions import checked_ledgers, checks_others, others
from dfshield.planning.config import Config
from dfshield.planning.inputs import below_data, check_file
from dfshield.planning.limits import missed_classes
from dfshield.planning.paths import (
    CERTIFICATES,
    CHECKS,
    DATA,
    DEFENCE,
    DETECTION,
    DIVERSITY,
    FIGURE,
    FIGURES,
    HARDEN,
    IMAGES_DIVERSITY,
    LANDSCAPE,
    LEDGER,
    NONE,
    RESULTS,
    SHARD,
    STUDENT,
    TEACHER,
    Place,
)
from dfshield.planning.plan import Plan

CARD = RESULTS + "/" + HARDEN + "/{name}/MODEL_CARD.md"
TABLE = RESULTS + "/{table}.csv"
PAGE = RESULTS + "/report.html"
"""All that a run shows on one page."""


def default_tables(plan: Plan) -> list[str]:
    """The tables of a run without a target: table 4, or what the config has."""
    return ["table4"] if "table4" in plan.own_tables else plan.own_tables


def own_figures(plan: Plan) -> list[str]:
    """The figures that a config has cells for, as targets: ``figures/NAME``."""
    return [f"{FIGURES}/{name}" for name in plan.own_figures]


def checked_plan(config: Config, files: Sequence[Path], home: Path, words: Sequence[str] | None) -> Plan:
    """The plan of a config that was read from `files`; `home` is the folder of the Snakefile.

    Raises InputError, starting with the names of the files, for what cannot work: of the config, of the files that it
    names, and of the jobs of the targets among the `words` of the command line. Those are tables and figures by their
    files, ``tables``, ``figures``, ``harden`` and ``all``, the default; other results are left to Snakemake, which says
    it at length. None, in a job, leaves out all but the config. What those jobs leave out although they may is logged.
    """
    if "{" in str(home) or "}" in str(home):
        raise InputError(f"{home}: Snakemake takes braces in the workflow's own path for wildcards; rename the folder")
    plan = Plan.of(config)
    if words is None:
        return plan
    jobs = Jobs(plan)
    meant = {"tables": plan.own_tables, FIGURES: own_figures(plan), HARDEN: [HARDEN]}
    meant[PAGE] = [*plan.own_tables, *own_figures(plan), *([HARDEN] if config.harden else [])]
    meant["all"] = default_tables(plan) or [HARDEN]
    known = [*plan.tables, *(f"{FIGURES}/{name}" for name in plan.figures)]
    by_file = {PurePath(RESULTS) / name: name for name in known}
    try:
        plan.check()
        plan.check_files()
        targets = [word for word in words if word in meant or PurePath(RESULTS) in PurePath(word).parents]
        for why in plan.misfits.values() if FIGURES in targets else ():
            log(f"{why}; it is left out")
        for target in targets or ["all"]:
            own = by_file.get(PurePath(target).parent / PurePath(target).stem)
            for name in meant.get(target, [own] if own else []):
                jobs.target(name)
        for path in {job.options.vgg16 for job in jobs.jobs.values() if job.stage == "diversity" and job.options.vgg16}:
            check_file(below_data(plan.config, path), "diversity.vgg16", "give the path of torchvision's weights")
    except InputError as error:
        raise InputError(f"{' + '.join(map(str, files)) or 'config'}: {error}") from None
    for line in dict.fromkeys(filter(None, map(jobs.missed_classes, jobs.jobs.values()))):
        log(line)
    return plan


@dataclass(frozen=True)
class Job:
    """One job of the workflow; `inputs` are the files of the jobs that it waits for."""

    stage: str
    output: str
    inputs: tuple[str, ...]
    place: Place | None = None
    """None for a table or a figure."""
    options: Any = None
    share: float = 1.0
    """Share of a synthesis that a shard makes."""


class Jobs:
    """The jobs of some targets of a plan, by the file that each makes, in the order of the flow."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.jobs: dict[str, Job] = {}

    def target(self, name: str) -> None:
        """A table by its name and all that its cells are read from, a figure by ``figures/NAME``, or ``harden``.

        The last are the config's own models.
        """
        folder, _, figure = name.rpartition("/")
        if folder == FIGURES:
            sets = [self.images(place) for _, place in self.plan.figure_sets(figure)]
            files = self.files(self.plan.figure_cells(figure))
            teachers = [self.teacher(place) for place in self.plan.figure_teachers(figure)]
            self._add("figure", FIGURE.format(figure=figure), [*files, *sets, *teachers])
            return
        if name != HARDEN:
            self._add("table", TABLE.format(table=name), self.files(self.plan.cells(name)))
            return
        for own, entry in self.plan.config.harden.items():
            inputs = self.files(self.plan.harden_cells(own))
            seed = self.plan.config.seeds[0]
            place = self.plan.place(HARDEN, own, source=entry.source, recipe=entry.recipe, seed=seed)
            inputs += [self.student(place), self.data(place)]
            inputs += self.defence(place.at(defence=MIXTURE)) if entry.keep_accuracy else []
            self._add("card", CARD.format(name=own), inputs, place)

    def files(self, cells: Iterable[Cell]) -> list[str]:
        """All that cells are made from: what their figures are read from, and what marks them."""
        return [path for cell in cells for path in (self.evidence(cell), *self.attacks(cell), *self.checks(cell))]

    def attacks(self, cell: Cell) -> list[str]:
        """The ledgers that a certified accuracy is compared with."""
        places = (Place.parse(LEDGER, path) for path in cell.attacks)
        return [self.ledger(place) for place in places if place]

    def evidence(self, cell: Cell) -> str:
        """The ledger or record that a cell is read from; returns its path, as all that follow."""
        if cell.ledger in self.jobs:
            return cell.ledger
        made = {
            LEDGER: self.ledger,
            CERTIFICATES: self._certificates,
            DETECTION: self._detection,
            DIVERSITY: self._diversity,
            IMAGES_DIVERSITY: self._diversity_of_images,
            LANDSCAPE: self._landscape,
        }
        places = ((Place.parse(template, cell.ledger), job) for template, job in made.items())
        return next(job(place) for place, job in places if place)

    def _certificates(self, place: Place) -> str:
        return self._add("certify", place.path(CERTIFICATES), [self.classifier(place)], place)

    def _detection(self, place: Place) -> str:
        inputs = [self.classifier(place), self.data(self.plan.fitting(place))]
        return self._add("detect", place.path(DETECTION), inputs, place)

    def _diversity(self, place: Place) -> str:
        return self._add("diversity", place.path(DIVERSITY), [self.teacher(place), self.data(place)], place)

    def _diversity_of_images(self, place: Place) -> str:
        return self._add("diversity", place.path(IMAGES_DIVERSITY), [self.teacher(place), self.images(place)], place)

    def _landscape(self, place: Place) -> str:
        return self._add("landscape", place.path(LANDSCAPE), [self.classifier(place)], place)

    def ledger(self, place: Place) -> str:
        """The ledger of an attack."""
        models = [place, *others(self.plan, place).values()]
        return self._add("attack", place.path(LEDGER), [*map(self.classifier, models), *self.defence(place)], place)

    def defence(self, place: Place) -> list[str]:
        """The fit of the defence at a place; none where there is nothing to fit."""
        if not self.plan.fitted(place.defence):
            return []
        own = place.at(protocol="", threat="")
        inputs = [self.classifier(own), self.teacher(own), self.data(self.plan.fitting(own))]
        return [self._add("defend", own.path(DEFENCE), inputs, own)]

    def checks(self, cell: Cell) -> list[str]:
        """The robustness checks that mark a cell, if any."""
        place = Place.parse(CHECKS, cell.checks) if cell.checks else None
        if place is None:
            return []
        models = [place, *checks_others(self.plan, place).values()]
        ledgers = map(self.ledger, checked_ledgers(self.plan, place))
        inputs = [*map(self.classifier, models), *ledgers, *self.defence(place)]
        return [self._add("checks", cell.checks, inputs, place)]

    def classifier(self, place: Place) -> str:
        """A student, or the teacher where nothing is trained."""
        return self.teacher(place) if place.recipe == NONE else self.student(place)

    def student(self, place: Place) -> str:
        """A trained or co-trained student."""
        path = place.path(STUDENT)
        if path in self.jobs:
            return path
        stage = self.plan.recipe_stage(place.recipe)
        inputs = [self.teacher(place)] + ([] if stage == "cotrain" else [self.data(place)])
        return self._add(stage, path, inputs, place)

    def images(self, place: Place) -> str:
        """The images that the student at a place is trained on, those of a co-training among them."""
        if place.source == NONE:
            self.student(place)
        else:
            self.data(place)
        return place.training_images

    def data(self, place: Place) -> str:
        """A training set of any kind, with the shards or the set that it is made of."""
        path, choice = place.path(DATA), self.plan.sources[place.source]
        if path in self.jobs:
            return path
        if choice.stage == "synthesize":
            return self._add("merge", path, self.shards(place), place)
        if choice.base is not None:
            return self._add(choice.stage, path, [self.data(place.at(source=choice.base))], place)
        return self._add(choice.stage, path, [self.teacher(place)], place)

    def shards(self, place: Place) -> list[str]:
        """The shards of a synthetic training set."""
        options, count = self.plan.options("synthesize", place), len(self.plan.shards(place))
        teacher = self.teacher(place)
        for index in range(count):
            groups = options.groups * (index + 1) // count - options.groups * index // count
            own = place.at(shard=index)
            self._add("synthesize", own.path(SHARD), [teacher], own, groups / options.groups)
        return self.plan.shards(place)

    def teacher(self, place: Place) -> str:
        """The trained classifier that everything starts from."""
        own = self.plan.teacher(place)
        return self._add("teacher", own.path(TEACHER), [], own)

    def missed_classes(self, job: Job) -> str:
        """What there is to say of classes that a job makes no image of; empty for nothing."""
        if job.place is None:
            return ""
        return missed_classes(job.stage, job.options, self.plan.subject(job.place.dataset, job.place.model))

    def needed(self, path: str, stages: Iterable[str]) -> list[Job]:
        """The job of a file and those of `stages` that it waits for, the first ones first."""
        job, wanted = self.jobs[path], set(stages)
        found = {other.output: other for name in job.inputs if name in self.jobs for other in self.needed(name, wanted)}
        return [*found.values(), *([job] if job.stage in wanted else [])]

    def _add(self, stage: str, path: str, inputs: Iterable[str], place: Place | None = None, share: float = 1.0) -> str:
        if path not in self.jobs:
            options = None
            if place is not None and stage not in ("merge", "export", "card"):
                options = self.plan.options(stage, place)
            self.jobs[path] = Job(stage, path, tuple(dict.fromkeys(inputs)), place, options, share)
        return path
