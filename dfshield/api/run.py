"""The jobs of a plan in this process, one after another, in the order in which they need each other.

The workflow starts the same stages by their commands (`workflow/rules/`); a test compares what either gives them.
"""

from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from dfshield.core.progress import log
from dfshield.planning.companions import checked_ledgers, checks_others, others
from dfshield.planning.inputs import below_data
from dfshield.planning.jobs import Job, Jobs
from dfshield.planning.paths import DATA, DEFENCE, HARDEN, LEDGER, METRICS, NONE, RESULTS, STUDENT, TEACHER, Place
from dfshield.planning.plan import Plan
from dfshield.planning.provenance import job_digest
from dfshield.planning.stages import STAGES
from dfshield.report.origin import outdated

STATE = Path(RESULTS, ".state")
STAGE_NAMES = tuple(STAGES)
MAKING = ("teacher", "synthesize", "merge", "train", "defend")
"""Stages on the way to a hardened model, which read no real image."""
Given = dict[str, Any]


def run(plan: Plan, only: Collection[str] = STAGE_NAMES) -> None:
    """Make the plan's own models below the current folder, or what the stages `only` make on the way to them.

    What is there already, whole and as the plan has it, is kept. Raises InputError as the stages do.
    """
    jobs = Jobs(plan)
    jobs.target(HARDEN)
    for number, job in enumerate(jobs.jobs.values(), 1):
        if job.stage not in only or _made(plan, job):
            continue
        log(f"{number} of {len(jobs.jobs)}: {job.stage} {job.output}")
        module, _, function = STAGES[job.stage].run.partition(":")
        getattr(import_module(module), function)(**given(plan, job))


def _made(plan: Plan, job: Job) -> bool:
    """Whether the output of a job is there, as the plan has it, and no older than what it is made of."""
    path = Path(job.output)
    if job.place is None or not STAGES[job.stage].output or not path.is_file():
        return False
    made, evaluation = path.stat().st_mtime_ns, plan.subject(job.place.dataset, job.place.model).evaluation
    read = [Path(file) for file in job.inputs]
    if evaluation and STAGES[job.stage].dataset:
        read.append(below_data(plan.config, evaluation.file))
    if any(file.stat().st_mtime_ns > made for file in read):
        return False
    return outdated(plan, job.stage, job.place, path, _code(plan, job)) is None


def _code(plan: Plan, job: Job) -> str:
    place = job.place
    assert place is not None
    behind = plan.defence(place.defence) if job.stage in ("attack", "checks") else None
    return job_digest(job.stage, place, job.options, behind)


def given(plan: Plan, job: Job) -> Given:
    """What the function that runs the stage of a job is called with."""
    assert job.place is not None
    values = STAGE_GIVEN[job.stage](plan, job.place, job)
    if job.options is not None:
        values["options"] = job.options
    if job.stage in FROM_CODE:
        values["factory"] = plan.subject(job.place.dataset, job.place.model).factory
    if STAGES[job.stage].resumes:
        values["state"] = STATE
    if STAGES[job.stage].output and job.stage != "merge":
        values["code"] = _code(plan, job)
    return values


FROM_CODE = ("teacher", "synthesize", "train", "defend", "attack", "checks")
"""Stages that build the network, by the user's factory where it is a user's."""


def _teacher(plan: Plan, place: Place, job: Job) -> Given:
    own = plan.subject(place.dataset, place.model)
    values: Given = {"out": Path(job.output), "dataset": place.dataset, "model": place.model}
    values["data_dir"] = plan.config.data_dir
    if own.weights is not None:
        values["weights"] = below_data(plan.config, own.weights)
    if own.own:
        values |= {name: getattr(own, name) for name in ("input_shape", "classes", "mean", "std")}
        values["arguments"] = dict(own.arguments)
    return values


def _synthesize(plan: Plan, place: Place, job: Job) -> Given:
    values: Given = {"teacher": Path(plan.teacher(place).path(TEACHER)), "out": Path(job.output)}
    return values | {"shard": place.shard, "shards": len(plan.shards(place)), "source": place.source}


def _train(plan: Plan, place: Place, job: Job) -> Given:
    values: Given = {"teacher": Path(plan.teacher(place).path(TEACHER)), "data": Path(place.path(DATA))}
    return values | {"out": Path(job.output), "recipe": place.recipe, "metrics": Path(place.path(METRICS))}


def _defend(plan: Plan, place: Place, job: Job) -> Given:
    values: Given = {"model_path": Path(plan.checkpoint(place)), "teacher": Path(plan.teacher(place).path(TEACHER))}
    values |= {"data": Path(plan.fitting(place).path(DATA)), "out": Path(job.output)}
    return values | {"threat": plan.fitted_for(place)}


def _judged(plan: Plan, place: Place, job: Job) -> Given:
    """What an attack and the checks both need: the model, real images, a defence."""
    own = plan.subject(place.dataset, place.model)
    fields = ("dataset", "model", "source", "recipe", "train_threat", "seed")
    return {
        "model_path": Path(plan.checkpoint(place)),
        "out": Path(job.output),
        "dataset": None if own.evaluation else place.dataset,
        "data_dir": plan.config.data_dir,
        "evaluation_npz": below_data(plan.config, own.evaluation.file) if own.evaluation else None,
        "subject": {field: getattr(place, field) for field in fields},
        "defence": plan.defence(place.defence),
        "fitted": Path(place.path(DEFENCE)) if plan.fitted(place.defence) else None,
    }


def _attack(plan: Plan, place: Place, job: Job) -> Given:
    further = {name: Path(plan.checkpoint(other)) for name, other in others(plan, place).items()}
    return _judged(plan, place, job) | {"protocol": place.protocol, "others": further}


def _checks(plan: Plan, place: Place, job: Job) -> Given:
    further = {name: Path(plan.checkpoint(other)) for name, other in checks_others(plan, place).items()}
    history = Path(place.path(METRICS)) if place.recipe != NONE else None
    ledgers = [Path(ledger.path(LEDGER)) for ledger in checked_ledgers(plan, place)]
    return _judged(plan, place, job) | {"ledgers": ledgers, "others": further, "history": history}


def _card(plan: Plan, place: Place, job: Job) -> Given:
    values: Given = {"plan": plan, "name": place.model, "student": Path(place.path(STUDENT))}
    return values | {"out": Path(job.output).parent}


STAGE_GIVEN: Mapping[str, Callable[[Plan, Place, Job], Given]] = {
    "teacher": _teacher,
    "synthesize": _synthesize,
    "merge": lambda plan, place, job: {"paths": list(map(Path, job.inputs)), "out": Path(job.output)},
    "train": _train,
    "defend": _defend,
    "attack": _attack,
    "checks": _checks,
    "card": _card,
}
"""The stages that hardening a model of one's own takes."""
