"""Stage table: a table of the paper as CSV, Markdown, LaTeX and HTML."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dfshield.core.errors import InputError
from dfshield.core.files import write_text
from dfshield.core.threat import parse_threat
from dfshield.evaluation.findings import Findings, read_findings
from dfshield.evaluation.ledger import Ledger
from dfshield.planning.cells import Cell
from dfshield.planning.tables import Scale, TableSpec
from dfshield.report import html, latex, markdown
from dfshield.report.effort import efforts
from dfshield.report.evidence import EVIDENCE
from dfshield.report.items import Efforts
from dfshield.report.origin import check
from dfshield.report.published import figure
from dfshield.report.rows import Row, csv_of, csv_of_formulas, key_of, marked

if TYPE_CHECKING:
    from dfshield.planning.plan import Plan

RENDERERS: dict[str, Callable[[Sequence[Row], TableSpec, Scale, Efforts | None], str]] = {
    ".md": markdown.render,
    ".tex": latex.render,
    ".html": html.render,
}
"""Text of a table by the suffix of its file."""


def run(plan: "Plan", table: str, out: Path) -> None:
    """Write table `table` of a run to the CSV `out`, and a file of every renderer beside it.

    Raises InputError for an unknown table, evidence that cannot be used, and files that another config or another
    version of their inputs made; nothing is written then.
    """
    cells = plan.cells(table)
    check(plan, cells)
    for suffix, text in texts(plan, table, build(cells, plan.tables[table])).items():
        write_text(out.with_suffix(suffix), text)


def texts(plan: "Plan", table: str, rows: Sequence[Row]) -> dict[str, str]:
    """The text of a table by the suffix of its file, the CSV last."""
    spec = plan.tables[table]
    taken = efforts(plan, table, rows) if spec.layout == "attacks" else None
    found = {suffix: render(rows, spec, plan.config.grid, taken) for suffix, render in RENDERERS.items()}
    return found | {".csv": csv_of(rows) if spec.metrics else csv_of_formulas(spec)}


def build(cells: Sequence[Cell], spec: TableSpec | None = None) -> list[Row]:
    """Rows of the given cells, in their order.

    `spec` says which of the paper's tables this is; without it no row has a published value. Raises InputError for a
    file that is missing, damaged or not the cell's. One ledger is held at a time: they may be hundreds of MB.
    """
    return [_read(cell, spec) for cell in cells]


def _read(cell: Cell, spec: TableSpec | None) -> Row:
    paper = figure(spec.on_file, key_of(cell)) if spec and _papers_own(cell, spec) else None
    evidence = EVIDENCE[cell.evidence]
    made = evidence.read(Path(cell.ledger))
    row = evidence.row(cell, made, paper)
    return marked(row, _findings(cell, made)) if cell.checks else row


def _findings(cell: Cell, ledger: Ledger) -> Findings:
    """The robustness checks of a cell's model; InputError if they are of another model than its ledger."""
    found = read_findings(Path(cell.checks))
    if (found.model_sha256, found.defence) != (ledger.model_sha256, ledger.defence):
        raise InputError(f"{cell.checks}: is of another model than {cell.ledger}; make both again")
    return found


def _papers_own(cell: Cell, spec: TableSpec) -> bool:
    """Whether the paper has this cell's data set and threat; its method tells what stood before the network."""
    if cell.dataset not in spec.paper.datasets:
        return False
    here, papers = parse_threat(cell.threat), map(parse_threat, spec.papers_threats_of(cell.metric))
    return any(here.norm == p.norm and math.isclose(here.eps, p.eps, rel_tol=1e-6) for p in papers)
