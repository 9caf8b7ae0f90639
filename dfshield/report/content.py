"""What reports are made from: the files of a table, of a model card, of the cost table and of the page of a run."""

from dataclasses import asdict
from itertools import product
from typing import Any, NamedTuple

from dfshield.core.hashing import digest
from dfshield.planning.cells import Cell
from dfshield.planning.choices import MIXTURE
from dfshield.planning.jobs import Job, Jobs
from dfshield.planning.paths import DATA, DEFENCE, HARDEN, NONE, STUDENT, TEACHER, Place, benchmark_of
from dfshield.planning.plan import Plan
from dfshield.planning.tables import formulas
from dfshield.report.published import printed_notes, published

MAKING = ("synthesize", "merge", "generate", "augment", "export", "public")
"""Stages that make training sets."""


def evidence(cells: list[Cell]) -> list[str]:
    """The ledgers and records that cells are read from, and the checks that mark them, each once."""
    return sorted({path for cell in cells for path in (cell.ledger, cell.checks, *cell.attacks) if path})


def timings(plan: Plan, table: str) -> list[str]:
    """Benchmark files of the attacks in a table that states what they take; none for another table."""
    if plan.tables[table].layout != "attacks":
        return []
    return sorted({str(benchmark_of(cell.ledger)) for cell in plan.cells(table)})


def all_checks(plan: Plan) -> list[str]:
    """The records of robustness checks of all cells of the config's tables and of its own models, each once."""
    tables = [plan.cells(name) for name in plan.own_tables] + [plan.harden_cells(name) for name in plan.config.harden]
    return sorted({cell.checks for cells in tables for cell in cells if cell.checks})


def table_content(plan: Plan, table: str) -> str:
    """Digest of what a table shows, for the rerun decision: its cells, its layout and the paper's figures."""
    spec = plan.tables[table]
    cells = [asdict(cell) for cell in plan.cells(table)]
    printed = [asdict(entry) for entry in published(spec.on_file)]
    notes = [*printed_notes().items()] if printed else []
    rules = [] if spec.metrics else formulas(spec)
    return digest(cells, spec.model_dump(mode="json"), plan.config.grid, printed, notes, rules)


def page_content(plan: Plan) -> str:
    """Digest of what the page of a run shows besides its tables and cards, for the rerun decision: the config."""
    headings = [plan.tables[name].heading for name in plan.own_tables]
    figures = [plan.figure(name).model_dump(mode="json") for name in plan.own_figures]
    return digest(plan.config.model_dump(mode="json"), plan.own_tables, headings, figures)


def figure_files(plan: Plan, figure: str) -> list[str]:
    """All that a figure is drawn from: evidence of its cells, training images, and the teachers that see them."""
    sets = [place.training_images for _, place in plan.figure_sets(figure)]
    teachers = dict.fromkeys(place.path(TEACHER) for place in plan.figure_teachers(figure))
    return [*evidence(plan.figure_cells(figure)), *sets, *teachers]


def figure_content(plan: Plan, figure: str) -> str:
    """Digest of what a figure draws, for the rerun decision: its cells, its training sets, its layout."""
    cells = [asdict(cell) for cell in plan.figure_cells(figure)]
    sets = [(method, asdict(place)) for method, place in plan.figure_sets(figure)]
    return digest(cells, sets, plan.figure(figure).model_dump(mode="json"))


def hardened_place(plan: Plan, name: str) -> Place:
    """Where the student of an entry under ``harden:`` belongs."""
    entry = plan.hardened(name)
    return plan.place(HARDEN, name, source=entry.source, recipe=entry.recipe, seed=plan.config.seeds[0])


def mixed_places(plan: Plan, name: str) -> list[Place]:
    """Where the mixture of a hardened model that is to keep its accuracy belongs; empty for another."""
    return [hardened_place(plan, name).at(defence=MIXTURE)] if plan.hardened(name).keep_accuracy else []


def card_files(plan: Plan, name: str) -> dict[str, Any]:
    """What a model card tells of: the student, its training set, the ledgers of its evaluation and their checks.

    And the mixture, where there is one.
    """
    place = hardened_place(plan, name)
    found = {"student": place.path(STUDENT), "data": place.path(DATA), "ledgers": evidence(plan.harden_cells(name))}
    mixed = mixed_places(plan, name)
    return found | ({"mixture": mixed[0].path(DEFENCE)} if mixed else {})


class Making(NamedTuple):
    """What a method of table 4 makes for one data set, model and seed."""

    dataset: str
    model: str
    method: str
    seed: int
    data: list[Job]
    """Jobs that make its training set, those that others wait for first; empty without one."""
    student: list[Job]
    """The job that makes its student; empty for the teacher itself."""


def makings(plan: Plan) -> list[Making]:
    """What the methods of table 4 make, in its order. Raises InputError for a config without a cell in table 4."""
    plan.cells("table4")
    spec, jobs, found = plan.tables["table4"], Jobs(plan), []
    for (dataset, models), row in product(plan.blocks(spec), plan.rows(spec)):
        for model in models:
            for seed in plan.seeds(spec, row, dataset, model):
                place = plan.place(dataset, model, source=row.source, recipe=row.recipe, seed=seed)
                data = [] if row.source == NONE else jobs.needed(jobs.data(place), MAKING)
                student = [] if row.recipe == NONE else [jobs.jobs[jobs.student(place)]]
                found.append(Making(dataset, model, row.method, seed, data, student))
    return found


def measurements(plan: Plan) -> list[str]:
    """Benchmark files of all that the methods of table 4 make."""
    outputs = {job.output for made in makings(plan) for job in (*made.data, *made.student)}
    return sorted(str(benchmark_of(path)) for path in outputs)
