"""Trace every row of a table CSV to ledger (or record of diversity metrics), student, data and teacher by hash.

The table is made again from the config that its run kept and from the evidence: rows, bytes and layouts have to be the
same. Every file of the chain is read whole and has to state the options that the config asks for.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from dfshield.core.errors import InputError
from dfshield.core.files import existing_file
from dfshield.core.hashing import sha256_file
from dfshield.defences.fit_file import check_fit_file
from dfshield.evaluation.certificates import read_certificates
from dfshield.evaluation.detections import read_detection
from dfshield.evaluation.findings import read_findings
from dfshield.evaluation.landscapes import read_landscape
from dfshield.evaluation.ledger import read_ledger
from dfshield.models.card import read_card
from dfshield.planning import frozen
from dfshield.planning.cells import Cell
from dfshield.planning.jobs import Job, Jobs
from dfshield.planning.paths import DATA, DEFENCE, HARDEN, METRICS, RESULTS, STUDENT
from dfshield.planning.plan import Plan
from dfshield.planning.tables import TableSpec
from dfshield.registry import metric
from dfshield.report import cost
from dfshield.report.content import hardened_place, mixed_places
from dfshield.report.evidence import DAMAGED, EVIDENCE
from dfshield.report.model_card import MIXTURE, MODEL, REPORT, Evidence
from dfshield.report.model_card import texts as card_texts
from dfshield.report.origin import Origin, broken_link, chain, origin, other_than_asked
from dfshield.report.rows import COLUMNS, Row, read_csv
from dfshield.report.table import build, texts
from dfshield.sources.trainset import verify as verify_data

Identity = tuple[str, str, str, str, str, str, str, int]
WHOLE: Mapping[str, Callable[[Path], object]] = {
    **dict.fromkeys(("teacher", "train", "cotrain"), read_card),
    "defend": check_fit_file,
    "attack": read_ledger,
    "certify": read_certificates,
    "detect": read_detection,
    "checks": read_findings,
    "landscape": read_landscape,
}
"""How all values of a stage's output are checked; `verify_data` for stages that make training sets."""


class BrokenLink(Exception):
    """Something in the chain from a cell to its teacher is missing, has another hash, or is of another config."""


def verify(table: Path) -> int:
    """Print one line per row of a table CSV, OK or the first broken link; returns 1 if anything is broken, else 0.

    Lines of rows that are missing, and of files beside the table that say otherwise, follow: Markdown, LaTeX, a
    hardened model and its card. Files are sought below the folder ``results`` that holds the table, or else below the
    table's own folder. A table without measured cells (formulas, cost) is made again and compared. Raises InputError if
    `table` is not a table CSV, or if no run below that folder has such a table.
    """
    existing_file(table, "table CSV", f"make it with `snakemake {table}`")
    if (other := _unmeasured(table)) is not None:
        return _compared(table, other)
    rows = read_csv(table)
    if not rows:
        raise InputError(f"{table}: has no rows, so there is nothing to trace")
    tracer = Tracer.of(table, rows)
    broken = 0
    for row in rows:
        try:
            tracer.trace(row)
            print(f"OK      {_name(row)}")
        except BrokenLink as link:
            broken += 1
            print(f"BROKEN  {_name(row)}: {link}")
    said = tracer.layouts(rows) if not broken else tracer.missing(rows)
    for line in said:
        print(f"BROKEN  {line}")
    print(f"{len(rows) - broken} of {len(rows)} rows of {table} are traced to model, data and teacher")
    return 1 if broken or said else 0


def _name(row: Row | Cell) -> str:
    parts = (row.dataset, row.model, row.method, row.variant, row.metric, f"seed {row.seed}")
    return " ".join(filter(None, parts))


def _identity(row: Row | Cell) -> Identity:
    """What tells the rows of a table apart."""
    return row.dataset, row.model, row.method, row.variant, row.defence, row.threat, row.metric, row.seed


class Tracer:
    """Follows rows of a table through the files below `root`; every file is read and hashed once."""

    def __init__(self, root: Path, table: Path, plan: Plan, cells: list[Cell], spec: TableSpec | None) -> None:
        self.root, self.table, self.plan, self.spec = root, table, plan, spec
        self.jobs = Jobs(plan)
        self.cells = cells
        self.config = frozen.folder_of(plan.config.name) / frozen.CONFIG
        self.rows: dict[Cell, Row] = {}
        self.read: set[str] = set()
        self.made: dict[str, Origin] = {}
        self.wrong: dict[str, str | None] = {}

    @classmethod
    def of(cls, table: Path, rows: list[Row]) -> "Tracer":
        """The tracer of the run that a table is of: the one most of whose evidence its rows name."""
        root = _root(table)
        found: list[tuple[int, Tracer]] = []
        for plan in _plans(root):
            cells, spec = _cells(plan, table)
            if cells:
                own = cls(root, table, plan, cells, spec)
                found.append((sum(own.stated(own.cell(row)) == row.ledger_sha256 for row in rows), own))
        if not found:
            raise InputError(
                f"{table}: no run has kept a config of this table in {root}/RUN/{frozen.CONFIG}; start the run again, "
                "which writes it anew"
            )
        return max(found, key=lambda pair: pair[0])[1]

    def at(self, path: str) -> Path:
        """Where a file of the path grammar lies."""
        return self.root / Path(path).relative_to(RESULTS)

    def cell(self, row: Row) -> Cell | None:
        """The cell that a row is of: of those that have its columns, the one whose evidence it names, or the first."""
        found = [cell for cell in self.cells if _identity(cell) == _identity(row)]
        named = (cell for cell in found if len(found) > 1 and self.stated(cell) == row.ledger_sha256)
        return next(named, found[0] if found else None)

    def stated(self, cell: Cell | None) -> object:
        """The content hash that the evidence of a cell states; None where there is none."""
        try:
            return EVIDENCE[cell.evidence].stated(self.at(cell.ledger)) if cell else None
        except DAMAGED:
            return None

    def again(self, cell: Cell) -> Row:
        """The row of a cell, made again; its evidence is read whole. Raises InputError if that cannot be used."""
        if cell not in self.rows:
            checks = str(self.at(cell.checks)) if cell.checks else ""
            attacks = tuple(str(self.at(path)) for path in cell.attacks)
            there = replace(cell, ledger=str(self.at(cell.ledger)), checks=checks, attacks=attacks)
            (self.rows[cell],) = build([there], self.spec)
            self.read |= {cell.ledger, cell.checks, *cell.attacks}
        return self.rows[cell]

    def trace(self, row: Row) -> None:
        """Raise BrokenLink at the first link of `row` that does not hold."""
        cell = self.cell(row)
        if cell is None:
            raise BrokenLink(f"{self._stranger(row)} ({self.config})")
        try:
            again = self.again(cell)
        except InputError as error:
            raise BrokenLink(str(error)) from None
        for name in COLUMNS:
            stated, found = row.text(name), again.text(name)
            if stated != found and name == "paper":
                raise BrokenLink(f"the paper column says {stated!r}, the paper says {found!r}")
            if stated != found:
                noun = EVIDENCE[metric(row.metric).evidence].noun
                raise BrokenLink(f"{name} is {stated!r} in the table but {found!r} by its {noun} {cell.ledger}")
        for path in self.jobs.files([cell]):
            for job in chain(self.jobs, path):
                if why := self.problem(job):
                    raise BrokenLink(why)

    def _stranger(self, row: Row) -> str:
        """Why the run's table has no such row: the first column whose value none of its rows has."""
        for name in ("dataset", "model", "method", "variant", "defence", "threat", "metric", "seed"):
            if all(getattr(cell, name) != getattr(row, name) for cell in self.cells):
                return f"no row of the run's table has {name} {getattr(row, name)!r}"
        return "the run's table has no such row"

    def problem(self, job: Job) -> str | None:
        """What does not hold of a job's output, its options and its inputs; None if all does."""
        if job.output not in self.wrong:
            self.wrong[job.output] = self._problem(job)
        return self.wrong[job.output]

    def _problem(self, job: Job) -> str | None:
        path = self.at(job.output)
        try:
            if job.output not in self.read:
                WHOLE.get(job.stage, verify_data)(path)
            made = self.made[job.output] = origin(job.stage, path)
        except InputError as error:
            return str(error)
        assert job.place is not None
        history = self.at(job.place.path(METRICS))
        if made.history and history.is_file() and sha256_file(history) != made.history:
            return f"{history}: is not as the training of {path} wrote it (edited or damaged); train again"
        if why := other_than_asked(self.plan, job.stage, job.place, self.made[job.output]):
            return f"{path}: {why} ({self.config})"
        why = broken_link(job, self.made)
        return f"{path}: {why}" if why else None

    def missing(self, rows: list[Row]) -> list[str]:
        """Rows that the run's table has and this one lacks."""
        there = {_identity(row) for row in rows}
        lacking = (cell for cell in self.cells if _identity(cell) not in there)
        return [f"{_name(cell)}: the run's table has this row, {self.table} lacks it" for cell in lacking]

    def layouts(self, rows: list[Row]) -> list[str]:
        """What in the table's files is not as the run's config and evidence give it, rows being so each by itself."""
        if said := self.missing(rows):
            return said
        made = [self.again(cell) for cell in self.cells]
        if self.spec:
            return _otherwise(self.table, again(self.plan, self.table, made))
        return self._hardened(made)

    def _found(self, path: str) -> str:
        """Where a file of a cell is; empty for one that the cell does not have."""
        return str(self.at(path)) if path else ""

    def _hardened(self, rows: list[Row]) -> list[str]:
        """What is wrong with the model and the card beside the report of a hardened model."""
        name = self.table.resolve().parent.name
        place = hardened_place(self.plan, name)
        student, data = (self.at(place.path(template)) for template in (STUDENT, DATA))
        folder = self.table.resolve().parent
        cells = [replace(cell, ledger=self._found(cell.ledger), checks=self._found(cell.checks)) for cell in self.cells]
        fits = [self.at(place.path(DEFENCE)) for place in mixed_places(self.plan, name)]
        evidence = Evidence.of(read_card(student), rows, data, cells, *fits)
        said = []
        for file, text in card_texts(name, evidence, folder).items():
            said += _otherwise(self.table.with_name(file), {Path(file).suffix: text})
        model = self.table.with_name(MODEL)
        for own, made in [(model, student), *((self.table.with_name(MIXTURE), fit) for fit in fits)]:
            if own.is_file() and own.read_bytes() != made.read_bytes():
                said.append(f"{own}: is not {made} to the byte; make the hardened model again")
        return said


def again(plan: Plan, table: Path, rows: list[Row]) -> dict[str, str]:
    """The texts of a table by the suffix of its file, made again of its rows."""
    with contextlib.chdir(_root(table).parent):  # the measured times are in the folder ``logs`` there
        return texts(plan, table.stem, rows)


def _root(table: Path) -> Path:
    """The folder that holds the folders of runs."""
    folders = [folder for folder in table.resolve().parents if folder.name == RESULTS]
    return folders[0] if folders else table.resolve().parent


def _plans(root: Path) -> Iterator[Plan]:
    """The plans of the runs whose config is kept below `root`."""
    for config in sorted(root.glob(f"*/{frozen.CONFIG}")):
        yield Plan.of(frozen.load(config.parent).model_copy(update={"name": config.parent.name}))


def _unmeasured(table: Path) -> list[dict[str, str]] | None:
    """What the runs' configs make of a table without measured cells, by suffix; None for a table that has some."""
    if table.stem == "cost":
        with contextlib.chdir(_root(table).parent):  # the measured times are in the folder ``logs`` there
            return [cost.texts(plan) for plan in _plans(_root(table)) if plan.config.datasets]
    plans = (plan for plan in _plans(_root(table)) if table.stem in plan.tables)
    found = [texts(plan, table.stem, []) for plan in plans if not plan.tables[table.stem].metrics]
    return found or None


def _compared(table: Path, made: list[dict[str, str]]) -> int:
    """Say whether the files of a table are those of one of the runs; returns 1 if not, else 0."""
    said = min((_otherwise(table, own) for own in made), key=len, default=[f"{table}: no run has such a table"])
    for line in said:
        print(f"BROKEN  {line}")
    if not said:
        print(f"OK      {table} is as the run's config gives it")
    return 1 if said else 0


def _otherwise(table: Path, made: Mapping[str, str]) -> list[str]:
    """A line for each file of a table, by its suffix, that is not as it was `made` again."""
    files = {table.with_suffix(suffix): text for suffix, text in made.items()}
    return [
        f"{path}: line {_line(path, text)} is not as the run's config and evidence give it; make it again"
        for path, text in files.items()
        if path.is_file() and path.read_bytes() != text.encode()
    ]


def _line(path: Path, text: str) -> int:
    """Number of the first line in which a file is not `text`."""
    lines, expected = path.read_bytes().split(b"\n"), text.encode().split(b"\n")
    same = (number for number, pair in enumerate(zip(lines, expected, strict=False), 1) if pair[0] != pair[1])
    return next(same, min(len(lines), len(expected)) + 1)


def _cells(plan: Plan, table: Path) -> tuple[list[Cell], TableSpec | None]:
    """The cells that a run has in a table and what the table is; no cells if it has no such table.

    The report of a hardened model, in its folder below ``harden``, is of no table.
    """
    folder = table.resolve().parent
    try:
        if table.name == REPORT and folder.parent.name == HARDEN:
            return plan.harden_cells(folder.name), None
        return plan.cells(table.stem), plan.tables[table.stem]
    except InputError:
        return [], None
