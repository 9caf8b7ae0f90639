"""Trace every row of a table CSV to ledger (or record of diversity metrics), student, data and teacher by hash."""

import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from dfshield.core.errors import InputError
from dfshield.core.files import read_yaml
from dfshield.core.threat import threat_name
from dfshield.evaluation.ledger import Ledger
from dfshield.evaluation.record import Record
from dfshield.models.card import read_card
from dfshield.planning.cells import swept
from dfshield.planning.config import Config
from dfshield.planning.paths import DATA, IMAGES, NONE, RESULTS, STUDENT, TEACHER, Place
from dfshield.planning.tables import SYMBOLS, RowSpec, load_tables
from dfshield.registry import metric
from dfshield.report.evidence import DAMAGED, EVIDENCE, Evidence
from dfshield.report.published import figure
from dfshield.report.rows import COLUMNS, Row, cell_of, cell_text, read_csv
from dfshield.sources.trainset import header
from dfshield.sources.trainset import verify as verify_data

T = TypeVar("T")


class BrokenLink(Exception):
    """Something in the chain from a cell to its teacher is missing or has another hash."""


def verify(table: Path) -> int:
    """Print one line per row of a table CSV, OK or the first broken link; returns 1 if any is broken, else 0.

    Files are sought below the folder ``results`` that holds the table, or else below the table's own folder. Raises
    InputError if `table` is not a table CSV.
    """
    rows = read_csv(table)
    if not rows:
        raise InputError(f"{table}: has no rows, so there is nothing to trace")
    folders = [folder for folder in table.resolve().parents if folder.name == RESULTS]
    tracer = Tracer(folders[0] if folders else table.resolve().parent, table)
    broken = 0
    for row in rows:
        name = " ".join(filter(None, (row.dataset, row.model, row.method, row.variant, row.metric, f"seed {row.seed}")))
        try:
            tracer.trace(row)
            print(f"OK      {name}")
        except BrokenLink as link:
            broken += 1
            print(f"BROKEN  {name}: {link}")
    print(f"{len(rows) - broken} of {len(rows)} rows of {table} are traced to model, data and teacher")
    return 1 if broken else 0


class Tracer:
    """Follows rows of `table` through the files below `root`; models and data are read and hashed once."""

    def __init__(self, root: Path, table: Path) -> None:
        self.root = root
        number = re.fullmatch(r"table(\d+)", table.stem)
        self.number = int(number[1]) if number else 0
        self.table = table.stem
        self.seen: dict[tuple[str, Path], Any] = {}
        self.found: dict[str, dict[str, list[Path]]] = {}

    def methods(self, run: str, method: str) -> list[RowSpec]:
        """What the tables of a run's config have as `method`; none where the table or its file is unknown."""
        config = self.root / run / "config.yaml"
        if not config.is_file():
            return []
        path = self.root.parent / self._read(read_yaml, config).get("tables", Config.model_fields["tables"].default)
        spec = self._read(load_tables, path).get(self.table) if path.is_file() else None
        return [row for row in spec.rows if row.method == method] if spec else []

    def files(self, kind: str) -> dict[str, list[Path]]:
        """Paths of all evidence of a kind, by the content hash that each states (checked when it is read)."""
        if kind not in self.found:
            paths: dict[str, list[Path]] = defaultdict(list)
            for path in sorted(self.root.rglob(EVIDENCE[kind].pattern)):
                try:
                    paths[str(EVIDENCE[kind].stated(path))].append(path)
                except DAMAGED:
                    continue  # a damaged file cannot be a row's: that row's hash will not be found
            self.found[kind] = paths
        return self.found[kind]

    def trace(self, row: Row) -> None:
        """Raise BrokenLink at the first link of `row` that does not hold."""
        printed = cell_text(figure(self.number, row.key), metric(row.metric).decimals)
        if row.paper is not None and printed != row.text("paper"):
            raise BrokenLink(f"the paper column says {row.text('paper')}, the paper does not")
        kind = metric(row.metric).evidence
        evidence = EVIDENCE[kind]
        paths = self.files(kind).get(row.ledger_sha256)
        if not paths:
            raise BrokenLink(f"no {evidence.noun} with content {row.ledger_sha256[:16]} below {self.root}")
        places = [(path, place) for path in paths if (place := self._place(path, row, evidence))]
        if not places:
            raise BrokenLink(f"{paths[0]}: the path is not that of this cell")
        path, place = places[0]
        try:
            source = evidence.read(path)
            again = evidence.row(cell_of(row, path), source, None)
        except InputError as error:
            raise BrokenLink(str(error)) from None
        for name in COLUMNS:
            stated, found = row.text(name), again.text(name)
            if stated != found and name != "paper":
                raise BrokenLink(f"{name} is {stated!r} in the table but {found!r} by its {evidence.noun} {path}")
        links: dict[str, Callable[[Place, Row, Any], None]] = {"model": self._model, "data": self._compared}
        links[evidence.traces](place, row, source)

    def _place(self, path: Path, row: Row, evidence: Evidence) -> Place | None:
        """The fields of the path of a piece of evidence; None if it lies elsewhere than the row's should."""
        place = evidence.place((RESULTS / path.relative_to(self.root)).as_posix())
        if place is None or (place.dataset, place.model, place.seed) != (row.dataset, row.model, row.seed):
            return None
        if place.threat:  # of an attack
            own, asked = self._own_threat(place), threat_name(row.threat)
            expected = asked if own and row.metric == "clean" else place.threat  # clean images are within every ball
            if (place.defence, expected) != (row.defence, asked):
                return None
            if place.train_threat not in (expected, NONE) and not (own and row.metric != "clean"):
                return None
        methods = self.methods(place.run, row.method)
        fits = [m for m in methods if m.source == place.source and _trains(m, place)]
        return place if fits or not methods else None

    def _own_threat(self, place: Place) -> bool:
        """Whether a run's config gives a protocol a threat model of its own, whatever students were trained for."""
        config = self.root / place.run / "config.yaml"
        values = self._read(read_yaml, config) if config.is_file() else {}
        protocol = (values.get("protocols") or {}).get(place.protocol) or {}
        return "threat" in protocol

    def _at(self, template: str, place: Place) -> Path:
        return self.root / Path(place.path(template)).relative_to(RESULTS)

    def _model(self, place: Place, row: Row, ledger: Ledger) -> None:
        teacher = self._at(TEACHER, place)
        if place.recipe == NONE:
            self._same(teacher, "its tensors", self._read(read_card, teacher).tensors_sha256, ledger.model_sha256)
            return
        student = self._at(STUDENT, place)
        card = self._read(read_card, student)
        self._same(student, "its tensors", card.tensors_sha256, ledger.model_sha256)
        self._same(student, "real_data", card.real_data, ledger.real_data)
        trained = card.provenance.get("options", {}).get("threat")
        if trained is None or threat_name(trained) != place.train_threat:
            expected = row.threat if place.train_threat == place.threat else place.train_threat
            raise BrokenLink(f"{student}: it was trained against {trained}, not {expected}")
        for name, value in swept(row.variant).items():
            option = next((key for key, symbol in SYMBOLS.items() if symbol == name), name)
            self._same(student, option, card.provenance.get("options", {}).get(option), value)
        if place.source != NONE:
            provenance = card.provenance
            self._data(place, provenance.get("data_sha256"), provenance.get("teacher_sha256"), card.real_data)
        taught = card.provenance.get("teacher_sha256")
        self._same(teacher, "its tensors", self._read(read_card, teacher).tensors_sha256, taught)

    def _compared(self, place: Place, row: Row, record: Record) -> None:
        """The synthetic set that a record is of, and the teacher that it was made from."""
        del row
        self._data(place, record.data_sha256, record.teacher_sha256, record.real_data)
        teacher = self._at(TEACHER, place)
        self._same(teacher, "its tensors", self._read(read_card, teacher).tensors_sha256, record.teacher_sha256)

    def _data(self, place: Place, content: object, teacher: object, real_data: object) -> None:
        data = self._at(IMAGES if place.source == NONE else DATA, place)
        self._same(data, "its content", self._read(verify_data, data), content)
        attributes = self._read(header, data)
        self._same(data, "teacher_sha256", attributes["teacher_sha256"], teacher)
        self._same(data, "real_data", attributes["real_data"], real_data)
        if base := attributes["options"].get("base_sha256"):  # the set that an augmented one was made of
            self._data(place.at(source=str(attributes["options"].get("base"))), base, teacher, real_data)

    def _same(self, path: Path, what: str, found: object, expected: object) -> None:
        if found != expected:
            raise BrokenLink(f"{path}: {what} is {str(found)[:16]}, not {str(expected)[:16]}")

    def _read(self, reader: Callable[[Path], T], path: Path) -> T:
        """`reader(path)`, once per file; what it refuses is a broken link."""
        key = (reader.__name__, path)
        try:
            if key not in self.seen:
                self.seen[key] = reader(path)
        except InputError as error:
            raise BrokenLink(str(error)) from None
        found: T = self.seen[key]
        return found


def _trains(method: RowSpec, place: Place) -> bool:
    """Whether a path is of a method's recipe, swept or not; true of the paths of training sets."""
    of_training_set = bool(place.split) and place.source != NONE
    return of_training_set or f"{place.recipe}.".startswith(f"{method.recipe}.")
