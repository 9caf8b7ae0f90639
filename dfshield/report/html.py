"""Tables as HTML, laid out as the paper prints them."""

from collections.abc import Sequence
from html import escape

from dfshield.planning.tables import Scale, TableSpec
from dfshield.report.facts import facts, footnotes, paper_heading, scope
from dfshield.report.items import Efforts, Item, Value, item_text, symbols
from dfshield.report.layout import Layout, lay_out, measured, of_paper
from dfshield.report.notes import Marks, notes
from dfshield.report.page import page, scrolling
from dfshield.report.published import published
from dfshield.report.rows import Row


def render(rows: Sequence[Row], spec: TableSpec, scale: Scale = "demo", efforts: Efforts | None = None) -> str:
    """The table as a page of HTML with intervals and notes, and below it the paper's own numbers.

    `scale` is the config's `grid`, which decides about how much of the table is computed.
    """
    values = measured(rows)
    marks = notes(flag for value in values.values() for flag in value.flags)
    beneath = [*facts(rows, spec, intervals=True), *scope(rows, spec, scale), *footnotes(marks)]
    parts = [grid(lay_out(spec, values, efforts), marks, spec.heading), listed(beneath)]
    entries = published(spec.on_file)
    if entries:
        paper, title = of_paper(entries), paper_heading(rows, spec)
        paper_marks = notes(flag for value in paper.values() for flag in value.flags)
        printed = grid(lay_out(spec, paper), paper_marks, title) + listed(footnotes(paper_marks))
        parts.append(f"<details>\n<summary>{escape(title)}</summary>\n{printed}</details>\n")
    return table_page(spec.heading, spec.caption, "".join(parts))


def table_page(title: str, caption: str, body: str) -> str:
    """A page of one table with the HTML `body`; title and caption are plain texts."""
    said = f"<p>{escape(caption)}</p>\n" if caption else ""
    return page(title, f"<h1>{escape(title)}</h1>\n{said}{body}")


def listed(lines: Sequence[str]) -> str:
    """Notes below a table; nothing for none."""
    items = "".join(f"<li>{escape(line)}</li>\n" for line in lines)
    return f'<ul class="notes">\n{items}</ul>\n' if items else ""


def grid(layout: Layout, marks: Marks, title: str) -> str:
    """A table: groups span their columns, every block is a body of its own; `title` is read to who cannot see it."""
    stub, width = len(layout.stub), len(layout.stub) + len(layout.columns)
    lines = ["<table>", f"<caption>{escape(title)}</caption>", "<thead>"]
    if layout.groups:
        spans = [f'<th class="group" scope="colgroup" colspan="{n}">{escape(name)}</th>' for name, n in layout.groups]
        blank = f'<td colspan="{stub}"></td>' if stub else ""
        lines.append(f"<tr>{blank}{''.join(spans)}</tr>")
    heads = [f'<th scope="col">{escape(name)}</th>' for name in layout.stub]
    heads += [f'<th class="number" scope="col">{escape(name)}</th>' for name in layout.columns]
    lines += [f"<tr>{''.join(heads)}</tr>", "</thead>"]
    for block in layout.blocks:
        lines.append("<tbody>")
        if block.title:
            lines.append(f'<tr><th class="block" scope="rowgroup" colspan="{width}">{escape(block.title)}</th></tr>')
        lines += [_row(row, stub, marks) for row in block.rows]
        lines.append("</tbody>")
    return scrolling("\n".join([*lines, "</table>", ""]))


def _row(row: Sequence[Item], stub: int, marks: Marks) -> str:
    cells = [f'<th scope="row">{_item(item, marks)}</th>' for item in row[:stub]]
    cells += [f'<td class="number">{_item(item, marks)}</td>' for item in row[stub:]]
    return f"<tr>{''.join(cells)}</tr>"


def _item(item: Item, marks: Marks) -> str:
    def figure(value: Value, interval: bool) -> str:
        raised = escape(symbols(value.flags, marks))
        spread = "" if value.spread is None else f" ± {value.spread:.{value.places}f}"
        within = _within(value) if value.interval and interval else ""
        return f"{value.mean:.{value.places}f}" + (f"<sup>{raised}</sup>" if raised else "") + spread + within

    return item_text(item, figure, escape, ("✗", "✓"))


def _within(value: Value) -> str:
    """A figure's interval, with a decimal less than the figure."""
    low, high = value.interval or (0, 0)
    return f' <span class="within">[{low:.{value.places - 1}f}, {high:.{value.places - 1}f}]</span>'
