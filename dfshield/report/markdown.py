"""Tables in Markdown, laid out as the paper prints them."""

from collections.abc import Sequence

from dfshield.planning.tables import Scale, TableSpec
from dfshield.report.facts import facts, footnotes, paper_heading, scope
from dfshield.report.items import Efforts, Item, Pair, Value, item_text, symbols
from dfshield.report.layout import Layout, lay_out, measured, of_paper
from dfshield.report.notes import Marks, notes
from dfshield.report.published import published
from dfshield.report.rows import Row


def render(rows: Sequence[Row], spec: TableSpec, scale: Scale = "demo", efforts: Efforts | None = None) -> str:
    """The table in Markdown with intervals and notes, and below it the paper's own numbers.

    `scale` is the config's `grid`, which decides about how much of the table is computed.
    """
    values = measured(rows)
    marks = notes(flag for value in values.values() for flag in value.flags)
    lines = [f"## {spec.heading}", "", spec.caption, "", *grid(lay_out(spec, values, efforts), marks)]
    lines += paragraphs([*facts(rows, spec, intervals=True), *scope(rows, spec, scale), *footnotes(marks)])
    entries = published(spec.on_file)
    if entries:
        paper = of_paper(entries)
        paper_marks = notes(flag for value in paper.values() for flag in value.flags)
        lines += [f"### {paper_heading(rows, spec)}", "", *grid(lay_out(spec, paper), paper_marks)]
        lines += paragraphs(footnotes(paper_marks))
    return "\n".join(lines).rstrip() + "\n"


def paragraphs(lines: Sequence[str]) -> list[str]:
    """Every line followed by an empty one."""
    return [text for line in lines for text in (line, "")]


def grid(layout: Layout, marks: Marks) -> list[str]:
    """A pipe table per block; Markdown has one header line, so group titles join the column titles."""
    titles = [title for title, width in layout.groups for _ in range(width)]
    matrix = any(isinstance(item, Pair) for block in layout.blocks for row in block.rows for item in row)
    names = [
        column if matrix or not titles else f"{titles[i]} {column}".lstrip() for i, column in enumerate(layout.columns)
    ]
    stub = list(layout.stub)
    if matrix:
        stub[0] = f"{stub[0]} \\ {titles[0].partition(':')[0]}"
    lines = []
    for block in layout.blocks:
        if block.title:
            lines += [f"**{block.title}**", ""]
        lines += [_pipe([*stub, *names]), _pipe(["---"] * len(stub) + ["---:"] * len(names))]
        lines += [_pipe([_item(item, marks) for item in row]) for row in block.rows]
        lines.append("")
    return lines


def _pipe(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _item(item: Item, marks: Marks) -> str:
    def figure(value: Value, interval: bool) -> str:
        spread = "" if value.spread is None else f" ± {value.spread:.{value.places}f}"
        within = _within(value) if value.interval and interval else ""
        return f"{value.mean:.{value.places}f}{raised(symbols(value.flags, marks))}{spread}{within}"

    return item_text(item, figure, str, ("✗", "✓"))


def _within(value: Value) -> str:
    """A figure's interval, with a decimal less than the figure."""
    low, high = value.interval or (0, 0)
    return f" [{low:.{value.places - 1}f}, {high:.{value.places - 1}f}]"


def raised(text: str) -> str:
    """Superscript; nothing for no text."""
    return f"<sup>{text}</sup>" if text else ""
