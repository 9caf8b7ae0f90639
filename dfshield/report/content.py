"""What reports are made from: the files of a table, of a model card and of the cost table."""

from dataclasses import asdict
from typing import Any

from dfshield.core.hashing import digest
from dfshield.planning.cells import Cell
from dfshield.planning.jobs import Jobs
from dfshield.planning.paths import DATA, HARDEN, NONE, STUDENT, benchmark_of
from dfshield.planning.plan import Plan
from dfshield.planning.tables import formulas
from dfshield.report.published import published

MAKING = ("synthesize", "merge", "generate", "augment", "export", "public")
"""Stages that make training sets."""


def evidence(cells: list[Cell]) -> list[str]:
    """The ledgers and records that cells are read from, each once."""
    return sorted({cell.ledger for cell in cells})


def table_content(plan: Plan, table: str) -> str:
    """Digest of what a table shows, for the rerun decision: its cells, its layout and the paper's figures."""
    spec = plan.tables[table]
    cells = [asdict(cell) for cell in plan.cells(table)]
    printed = [asdict(entry) for entry in published(spec.papers_number)]
    return digest(cells, spec.model_dump(mode="json"), printed, [] if spec.metrics else formulas(spec))


def card_files(plan: Plan, name: str) -> dict[str, Any]:
    """What a model card tells of: the student, its training set, and the ledgers of its evaluation."""
    entry = plan.hardened(name)
    place = plan.place(HARDEN, name, source=entry.source, recipe=entry.recipe, seed=plan.config.seeds[0])
    return {"student": place.path(STUDENT), "data": place.path(DATA), "ledgers": evidence(plan.harden_cells(name))}


def makings(plan: Plan) -> list[tuple[str, str, str, int, list[str], list[str]]]:
    """What the methods of table 4 make, in its order: data set, model, method, seed, files of the training set (those
    that it is made of first), the student; no files for the teacher itself. InputError without a cell in table 4."""
    plan.cells("table4")
    spec, jobs, found = plan.tables["table4"], Jobs(plan), []
    for dataset, models in plan.blocks(spec):
        for row in plan.rows(spec):
            for model in models:
                for seed in plan.seeds(spec, row):
                    place = plan.place(dataset, model, source=row.source, recipe=row.recipe, seed=seed)
                    data = [] if row.source == NONE else [j.output for j in jobs.needed(jobs.data(place), MAKING)]
                    student = [] if row.recipe == NONE else [jobs.student(place)]
                    found.append((dataset, model, row.method, seed, data, student))
    return found


def measurements(plan: Plan) -> list[str]:
    """Benchmark files of all that the methods of table 4 make."""
    made = {path for *_, data, student in makings(plan) for path in (*data, *student)}
    return sorted(str(benchmark_of(path)) for path in made)
