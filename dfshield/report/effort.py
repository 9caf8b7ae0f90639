"""What every attack of a table takes: passes by the cost model at the measured share of survivors, seconds as measured.

Seconds come from the benchmark files that Snakemake writes beside the logs.
"""

import statistics
from collections.abc import Sequence

from dfshield.core.errors import InputError
from dfshield.planning.arithmetic import attack_passes
from dfshield.planning.cells import Cell
from dfshield.planning.paths import LEDGER, Place, benchmark_of
from dfshield.planning.plan import Plan
from dfshield.report.cost import seconds
from dfshield.report.items import Effort, Efforts
from dfshield.report.rows import Row, key_of


def efforts(plan: Plan, table: str, rows: Sequence[Row]) -> Efforts:
    """Efforts of the attacks in a table's rows, by data set, model and metric.

    Clean accuracy has none: it is read from the ledger of an attack. Raises InputError for a row that is no cell of the
    table and for a benchmark file that cannot be read.
    """
    cells = {(*key_of(cell), cell.seed): cell for cell in plan.cells(table)}
    found: dict[tuple[str, str, str], list[Effort]] = {}
    for row in rows:
        cell = cells.get((*row.key, row.seed))
        if cell is None:
            raise InputError(f"{table}: {row.method} by {row.metric}, seed {row.seed}, is no cell of the config")
        if row.metric != "clean":
            found.setdefault((row.dataset, row.model, row.metric), []).append(_effort(plan, cell, row))
    return {key: _mean(own) for key, own in found.items()}


def _effort(plan: Plan, cell: Cell, row: Row) -> Effort:
    place = Place.parse(LEDGER, cell.ledger)
    assert place is not None
    classes = plan.subject(place.dataset, place.model).classes
    passes = attack_passes(plan.options("attack", place), row.n, row.value / 100, classes)
    measured = seconds(cell.ledger) if benchmark_of(cell.ledger).is_file() else None
    return Effort(row.n, None if passes is None else passes / row.n, measured)


def _mean(efforts: Sequence[Effort]) -> Effort:
    """The mean over methods and seeds; None where one of them has no figure."""
    passes, measured = [one.passes for one in efforts], [one.seconds for one in efforts]
    return Effort(min(one.images for one in efforts), _mean_of(passes), _mean_of(measured))


def _mean_of(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if len(known) == len(values) else None
