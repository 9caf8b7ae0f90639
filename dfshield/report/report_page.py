"""Stage report: the tables, figures, model cards and robustness checks of a run on one page of HTML."""

import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import dfshield
from dfshield.core import sealed
from dfshield.core.errors import InputError
from dfshield.core.files import existing_file, write_text
from dfshield.core.hashing import sha256_file
from dfshield.evaluation.findings import read_findings
from dfshield.planning import frozen
from dfshield.planning.cells import Cell
from dfshield.planning.jobs import CARD, TABLE
from dfshield.planning.paths import FIGURE
from dfshield.planning.plan import Plan
from dfshield.planning.tables import TableSpec
from dfshield.report import card_json, cost, figure, table
from dfshield.report.checklist import markdown_of
from dfshield.report.content import all_checks
from dfshield.report.evidence import DAMAGED, EVIDENCE
from dfshield.report.model_card import JSON
from dfshield.report.origin import check
from dfshield.report.page import body_of, data_uri, deeper, of_markdown, page
from dfshield.report.rows import read_csv, shared

PAPERS_OWN, FURTHER = "The paper's tables", "Further tables"


class Part(NamedTuple):
    """One part of the page."""

    anchor: str
    title: str
    html: str
    """empty for a part that is not there"""
    parts: Sequence["Part"] = ()
    """what it consists of, below its own text"""


def run(plan: Plan, out: Path) -> None:
    """Write the page `out` of what the run has made so far, by files below ``results`` of the current folder.

    Tables, figures and cards that are not there are named. Raises InputError for one that is of another run or was made
    before its evidence; nothing is written then.
    """
    write_text(out, text(plan))


def text(plan: Plan) -> str:
    """The page. Raises as `run`."""
    parts = [part for part in (*_tables(plan), _cost(plan), _figures(plan), _cards(plan), _checks(plan)) if part]
    parts.append(_config(plan))
    name = plan.config.name
    head = (
        f"<h1>Report of the run {escape(name)}</h1>\n<p>Made by dfshield {escape(dfshield.__version__)}. Every figure "
        "is read from a per-image ledger or a record; <code>dfshield verify</code> traces it to model, training data "
        f"and teacher.</p>\n{_missing(plan)}"
    )
    body = f"<nav>\n<h2>Contents</h2>\n{_contents(parts)}</nav>\n{''.join(_written(part) for part in parts)}"
    return page(f"dfshield: {name}", head + body)


def _contents(parts: Iterable[Part]) -> str:
    lines = ["<ul>"]
    for part in parts:
        below = _contents(part.parts) if part.parts else ""
        lines.append(f'<li><a href="#{escape(part.anchor)}">{escape(part.title)}</a>{below}</li>')
    return "\n".join([*lines, "</ul>", ""])


def _written(part: Part, level: int = 2) -> str:
    inner = "".join(_written(own, level + 1) for own in part.parts)
    heading = f'<h{level} id="{escape(part.anchor)}">{escape(part.title)}</h{level}>\n'
    return f"<section>\n{heading}{part.html}{inner}</section>\n"


def _missing(plan: Plan) -> str:
    files = [TABLE.format(table=name) for name in plan.own_tables]
    files += [FIGURE.format(figure=name) for name in plan.own_figures]
    files += [CARD.format(name=name) for name in plan.config.harden]
    lacking = [file for file in files if not Path(file).is_file()]
    if not lacking:
        return ""
    said = f"{len(lacking)} of {len(files)} tables, figures and cards of this config are not made yet"
    return f"<details>\n<summary>{said}</summary>\n<p>{escape(', '.join(lacking))}</p>\n</details>\n"


# --- tables ----------------------------------------------------------------------------------------------------------


def _tables(plan: Plan) -> list[Part]:
    """The tables by the publication that they are after, in the order of the config's."""
    groups: dict[str, list[Part]] = {}
    for name in plan.own_tables:
        if Path(TABLE.format(table=name)).is_file():
            part = Part(name, plan.tables[name].heading, _table(plan, name))
            groups.setdefault(publication(plan.tables[name]), []).append(part)
    first = [PAPERS_OWN] if PAPERS_OWN in groups else []
    last = [FURTHER] if FURTHER in groups else []
    order = [*first, *(title for title in groups if title not in (PAPERS_OWN, FURTHER)), *last]
    return [Part(_anchor(title), title, "", groups[title]) for title in order]


def publication(spec: TableSpec) -> str:
    """What a table is after: the paper, another publication, or none."""
    if spec.of:
        return f"After {spec.of.title.partition(' of ')[2] or spec.of.title}"
    return FURTHER if spec.name else PAPERS_OWN


def _table(plan: Plan, name: str) -> str:
    """The HTML of one table below its title."""
    path = Path(TABLE.format(table=name))
    if not plan.tables[name].metrics:  # a table of formulas is read from no evidence
        return _below_title(table.texts(plan, name, [])[".html"], 2)
    _check_table(plan, path, plan.cells(name))
    made = existing_file(path.with_suffix(".html"), "table as HTML", f"make the table again: `snakemake {path}`")
    return _below_title(made.read_text(encoding="utf-8"), 2)


def _below_title(made: str, levels: int) -> str:
    """What a page has below its title, its headings so many levels further down."""
    return _untitled(body_of(made), levels)


def _untitled(html: str, levels: int) -> str:
    return deeper(re.sub(r"\A\s*<h1>.*?</h1>\n", "", html, flags=re.DOTALL), levels)


def _check_table(plan: Plan, path: Path, cells: Sequence[Cell]) -> None:
    """Refuse a table whose rows are not of this run's evidence as it is now, by the hashes that both state."""
    check(plan, cells)
    there = [([getattr(row, name) for name in shared(cells[0])], row.ledger_sha256) for row in read_csv(path)]
    asked = [(list(shared(cell).values()), _stated(cell)) for cell in cells]
    if there != asked:
        raise InputError(f"{path}: is of another run, or older than its evidence; make it again: `snakemake {path}`")


def _stated(cell: Cell) -> object:
    path = Path(cell.ledger)
    try:
        return EVIDENCE[cell.evidence].stated(path)
    except DAMAGED as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(
            f"{path}: cannot be read ({reason}); make it again: delete it and start the run again"
        ) from None


def _cost(plan: Plan) -> Part | None:
    """What methods cost, made again of the run's measured times; None where not all of them are there."""
    if "table4" not in plan.own_tables:
        return None
    try:
        made = cost.texts(plan)[".html"]
    except InputError:
        return None
    return Part("cost", cost.TITLE, _below_title(made, 1))


# --- pictures, cards, checks, config ---------------------------------------------------------------------------------


def _figures(plan: Plan) -> Part | None:
    """The figures that are there, in the order of the config's, as SVG."""
    there = [name for name in plan.own_figures if Path(FIGURE.format(figure=name)).is_file()]
    parts = [Part(f"figure-{name}", plan.figure(name).title, _figure(plan, name)) for name in there]
    return Part("figures", "Figures", "", parts) if parts else None


def _figure(plan: Plan, name: str) -> str:
    """The picture of a figure with its caption; refused unless it draws what its evidence gives now."""
    path = Path(FIGURE.format(figure=name))
    spec, _, drawn = figure.drawn(plan, name)
    again = f"make the figure again: `snakemake {path}`"
    if existing_file(path.with_suffix(".csv"), "what a figure draws", again).read_text(encoding="utf-8") != drawn:
        raise InputError(f"{path}: is of another run, or older than its evidence; {again}")
    picture = data_uri(existing_file(path.with_suffix(".svg"), "figure as SVG", again))
    said = f'<img src="{picture}" alt="{escape(spec.title)}">\n<figcaption>{escape(spec.caption)}</figcaption>'
    return f"<figure>\n{said}\n</figure>\n"


def _cards(plan: Plan) -> Part | None:
    parts = [
        Part(f"model-{name}", name, _card(plan, name))
        for name in plan.config.harden
        if Path(CARD.format(name=name)).is_file()
    ]
    return Part("models", "Hardened models", "", parts) if parts else None


def _card(plan: Plan, name: str) -> str:
    path = Path(CARD.format(name=name))
    frozen.own(path.parent, plan.config.name, write=False)
    pictures = {}
    for file, sha256 in sealed.read(path.with_name(JSON), card_json.KIND)["pictures"].items():
        picture = path.with_name(file)
        if not picture.is_file() or sha256_file(picture) != sha256:
            raise InputError(f"{picture}: is not the picture that {path} was written with; make the card again")
        pictures[file] = data_uri(picture)
    html = of_markdown(path.read_text(encoding="utf-8"), pictures)
    return f"<article>\n{_untitled(html, 2)}</article>\n"


def _checks(plan: Plan) -> Part | None:
    """The robustness checks that are there, as their own table has them."""
    asked = all_checks(plan)
    records = [read_findings(Path(path)) for path in asked if Path(path).is_file()]
    if not records:
        return None
    lacking = len(asked) - len(records)
    said = f"<p>Records of {lacking} models more are not there yet.</p>\n" if lacking else ""
    html = of_markdown(markdown_of(records), {})
    return Part("checks", "Robustness checks", said + _untitled(html, 1))


def _config(plan: Plan) -> Part:
    kept = frozen.kept(frozen.folder_of(plan.config.name)) or frozen.texts_of(plan.config)
    html = f"<pre>{escape(kept[frozen.CONFIG])}</pre>\n"
    return Part("config", "Config in force", f"<details>\n<summary>{frozen.CONFIG}</summary>\n{html}</details>\n")


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
