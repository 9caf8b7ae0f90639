"""Tables as Markdown and LaTeX, laid out as the paper prints them."""

import re
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean

from dfshield.evaluation.record import METRICS as DIVERSITY
from dfshield.planning.tables import TableSpec
from dfshield.report.flags import notes
from dfshield.report.layout import (
    METRICS,
    Gain,
    Item,
    Layout,
    Pair,
    Value,
    dataset_title,
    lay_out,
    measured,
    model_title,
    of_paper,
    threat_title,
)
from dfshield.report.published import published
from dfshield.report.tables import Row

Marks = dict[str, tuple[str, str]]


def markdown(rows: Sequence[Row], spec: TableSpec) -> str:
    """The table in Markdown with intervals and notes, and below it the paper's own numbers."""
    values = measured(rows)
    marks = notes(flag for value in values.values() for flag in value.flags)
    lines = [f"## {spec.heading}. {spec.title}", "", spec.caption, ""]
    lines += markdown_grid(lay_out(spec, values), marks)
    lines += [*_paragraphs(_facts(rows, spec, intervals=True)), *_paragraphs(_footnotes(marks))]
    entries = published(spec.papers_number)
    if entries:
        paper = of_paper(entries)
        paper_marks = notes(flag for value in paper.values() for flag in value.flags)
        lines += [f"### {_paper_heading(rows, spec)}", "", *markdown_grid(lay_out(spec, paper), paper_marks)]
        lines += _paragraphs(_footnotes(paper_marks))
    return "\n".join(lines).rstrip() + "\n"


def latex(rows: Sequence[Row], spec: TableSpec) -> str:
    """The table as a LaTeX float with booktabs rules and its notes beneath."""
    values = measured(rows)
    marks = notes(flag for value in values.values() for flag in value.flags)
    beneath = [tex(line) for line in [*_facts(rows, spec, intervals=False), *_footnotes(marks)]]
    return "\n".join(
        [
            r"% needs \usepackage{booktabs} and \usepackage{amssymb}",
            r"\begin{table}[tbp]",
            r"\centering",
            rf"\caption{{{tex(spec.title)}. {tex(spec.caption)}}}",
            rf"\label{{tab:{spec.key}}}",
            r"\par\smallskip",
            *latex_grid(lay_out(spec, values), marks),
            *_beneath(beneath),
            r"\end{table}",
            "",
        ]
    )


def _beneath(lines: Sequence[str]) -> list[str]:
    if not lines:
        return []
    return [r"\par\smallskip", r"\begin{minipage}{\linewidth}\footnotesize", r"\par ".join(lines), r"\end{minipage}"]


UNBALANCED = 30.0
"""Share of the largest class in percent from which balanced accuracy is printed, too."""


def _facts(rows: Sequence[Row], spec: TableSpec, intervals: bool) -> list[str]:
    """What a reader needs beside the figures: units, spread, threat, number of images, majority class, protocols."""
    if not rows:
        return []
    accuracies = any(row.unit == "%" for row in rows)
    first = "Accuracies in percent." if accuracies else ""
    seeds = len({row.seed for row in rows})
    if seeds > 1:
        first += f" Mean ± sample standard deviation over {seeds} seeds; a figure without ± is of one seed."
    if intervals and accuracies:
        shared = " of the mean (the seeds share the images)" if seeds > 1 else ""
        first += f" Brackets: 95 % Wilson interval{shared} for the given number of images."
    lines = [*_stand_in(rows, spec), *([first.strip()] if first else [])]
    for dataset in dict.fromkeys(row.dataset for row in rows):
        own = [row for row in rows if row.dataset == dataset and row.unit == "%"]
        if not own:  # diversity alone
            continue
        threats = ", ".join(dict.fromkeys(threat_title(row.threat) for row in own if row.metric != "clean"))
        sets: dict[tuple[int, float], dict[str, None]] = {}  # columns by their test images
        for row in own:
            sets.setdefault((row.n, row.majority), {})[METRICS.get(row.metric, row.metric)] = None
        sizes = "; ".join(
            f"n = {n} images{' (' + ', '.join(columns) + ')' if len(sets) > 1 else ''}, "
            f"always answering the majority class scores {majority:.2f} %"
            for (n, majority), columns in sets.items()
        )
        lines.append(f"{dataset_title(dataset)}: {threats + ', ' if threats else ''}{sizes}.")
        if max(row.majority for row in own) >= UNBALANCED:
            lines += _balanced(own)
    lines += _diversity_facts(rows)
    lines.append(f"Protocols: {', '.join(dict.fromkeys(row.protocol for row in rows))}.")
    return lines


def _balanced(rows: Sequence[Row]) -> list[str]:
    """Balanced accuracy of one data set's cells, one line a model."""
    lines, compared = [], len({row.threat for row in rows}) > 1
    for model in dict.fromkeys(row.model for row in rows):
        found: dict[str, dict[str, list[float]]] = {}
        for row in rows:
            if row.model == model:
                threat = threat_title(row.threat) if compared else ""
                name = " ".join(filter(None, (row.method, row.variant, threat)))
                found.setdefault(name, {}).setdefault(row.metric, []).append(row.balanced)
        metrics = " / ".join(METRICS.get(metric, metric) for metric in next(iter(found.values())))
        figures = ", ".join(
            f"{name} {' / '.join(f'{fmean(values):.2f}' for values in own.values())}" for name, own in found.items()
        )
        lines.append(f"{model_title(model)}, balanced accuracy (mean over the classes), {metrics}: {figures}.")
    return lines


def _diversity_facts(rows: Sequence[Row]) -> list[str]:
    sizes = {dataset_title(row.dataset): row.n for row in rows if row.metric in DIVERSITY}
    if not sizes:
        return []
    counts = ", ".join(f"{n} of {title}" for title, n in sizes.items())
    return [
        f"Diversity metrics compare the training images with real ones ({counts}), whose only use is this comparison. "
        "The more of the real images are covered, the higher are recall and coverage and the lower are NDB and JSD "
        "(in nats)."
    ]


def _stand_in(rows: Sequence[Row], spec: TableSpec) -> list[str]:
    here, there = dict.fromkeys(row.dataset for row in rows), spec.paper.datasets
    if any(name in there for name in here):
        return []
    return [f"Stand-in data: {_titles(here)} in place of {_titles(there)}."]


def _titles(datasets: Iterable[str]) -> str:
    return ", ".join(dataset_title(name) for name in datasets)


def _footnotes(marks: Marks) -> list[str]:
    return [f"{mark} {text}." for mark, text in dict.fromkeys(marks.values())]


def _paper_heading(rows: Sequence[Row], spec: TableSpec) -> str:
    heading = f"The paper's Table {spec.number} ({', '.join(map(threat_title, spec.papers_threats))})"
    if not _stand_in(rows, spec):
        return heading
    models = ", ".join(model_title(name) for name in spec.paper.models)
    other = _titles(dict.fromkeys(row.dataset for row in rows))
    return f"{heading}: {_titles(spec.paper.datasets)} with {models}; other data than {other} above, not comparable"


# --- Markdown ---------------------------------------------------------------------------------------------------------


def _paragraphs(lines: Sequence[str]) -> list[str]:
    return [text for line in lines for text in (line, "")]


def markdown_grid(layout: Layout, marks: Marks) -> list[str]:
    """A pipe table per block; Markdown has one header line, so group titles join the column titles."""
    titles = [title for title, width in layout.groups for _ in range(width)]
    matrix = any(isinstance(item, Pair) for block in layout.blocks for row in block.rows for item in row)
    names = [column if matrix or not titles else f"{titles[i]} {column}" for i, column in enumerate(layout.columns)]
    stub = list(layout.stub)
    if matrix:
        stub[0] = f"{stub[0]} \\ {titles[0].partition(':')[0]}"
    lines = []
    for block in layout.blocks:
        if block.title:
            lines += [f"**{block.title}**", ""]
        lines += [_pipe([*stub, *names]), _pipe(["---"] * len(stub) + ["---:"] * len(names))]
        lines += [_pipe([_markdown_item(item, marks) for item in row]) for row in block.rows]
        lines.append("")
    return lines


def _pipe(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _markdown_item(item: Item, marks: Marks) -> str:
    def value(v: Value, interval: bool) -> str:
        spread = "" if v.spread is None else f" ± {v.spread:.{v.places}f}"
        within = f" [{v.interval[0]:.1f}, {v.interval[1]:.1f}]" if v.interval and interval else ""
        symbols = ",".join(_symbols(v, marks))
        raised = f"<sup>{symbols}</sup>" if symbols else ""
        return f"{v.mean:.{v.places}f}{raised}{spread}{within}"

    return _text(item, value, str, ("✗", "✓"))


def _symbols(value: Value, marks: Marks) -> list[str]:
    return list(dict.fromkeys(marks[flag][0] for flag in value.flags))


def _text(item: Item, value: Callable[[Value, bool], str], plain: Callable[[str], str], ticks: tuple[str, str]) -> str:
    """One cell; `value` formats a figure (with its interval or without), `plain` a text."""
    if isinstance(item, bool):
        return ticks[item]
    if isinstance(item, str):
        return plain(item)
    if isinstance(item, Pair):
        first, second = (value(v, v is item.first) if v else "–" for v in (item.first, item.second))
        return f"{first} ({second})"
    if isinstance(item, Gain):
        gain = "" if item.difference is None else f" ({item.difference:+.2f})"
        return f"{value(item.value, True) if item.value else '–'}{gain}"
    return value(item, True) if item else "–"


# --- LaTeX ------------------------------------------------------------------------------------------------------------

TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "{": r"\{", "}": r"\}", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "τ": r"$\tau$", "ε": r"$\varepsilon$", "∞": r"$_\infty$",
    "±": r"$\pm$", "≤": r"$\leq$", "×": r"$\times$", "†": r"$\dagger$", "‡": r"$\ddagger$", "§": r"\S{}",
    "¶": r"\P{}", "‖": r"$\Vert$", "–": "--", "−": "$-$", "·": r"$\cdot$", "λ": r"$\lambda$", "α": r"$\alpha$",
    "β": r"$\beta$", "ℓ": r"$\ell$", "²": "$^2$", "₁": "$_1$", "₂": "$_2$", "₃": "$_3$",
}  # fmt: skip
"""Characters that LaTeX reads as something else, or that pdfLaTeX's fonts lack."""
TEX_WORDS = {"L_DFShield": r"$\mathcal{L}_{\mathrm{DFShield}}$", "λ1": r"$\lambda_1$", "λ2": r"$\lambda_2$", "B": "$B$"}


def tex(text: str) -> str:
    words = re.split(r"(\w+)", text)
    return "".join(TEX_WORDS.get(word) or "".join(TEX.get(c, c) for c in word) for word in words)


def latex_grid(layout: Layout, marks: Marks) -> list[str]:
    stub, width = len(layout.stub), len(layout.stub) + len(layout.columns)
    lines = [rf"\begin{{tabular}}{{{'l' * stub}{'r' * len(layout.columns)}}}", r"\toprule"]
    if layout.groups:
        spans = [rf"\multicolumn{{{n}}}{{c}}{{{tex(title)}}}" for title, n in layout.groups]
        lines.append(" & ".join([*[""] * stub, *spans]) + r" \\")
        start = stub + 1
        for _, n in layout.groups:
            lines.append(rf"\cmidrule(lr){{{start}-{start + n - 1}}}")
            start += n
    lines.append(" & ".join(tex(name) for name in [*layout.stub, *layout.columns]) + r" \\")
    for block in layout.blocks:
        lines.append(r"\midrule")
        if block.title:
            lines += [rf"\multicolumn{{{width}}}{{c}}{{{tex(block.title)}}} \\", r"\midrule"]
        lines += [" & ".join(_latex_item(item, marks) for item in row) + r" \\" for row in block.rows]
    return [*lines, r"\bottomrule", r"\end{tabular}"]


def _latex_item(item: Item, marks: Marks) -> str:
    def value(v: Value, interval: bool) -> str:
        del interval  # the Markdown and the CSV have it; a page has no room
        symbols = tex(",".join(_symbols(v, marks)))
        raised = rf"\textsuperscript{{{symbols}}}" if symbols else ""
        spread = "" if v.spread is None else rf"\,$\pm$\,{v.spread:.{v.places}f}"
        return f"{v.mean:.{v.places}f}{raised}{spread}"

    return _text(item, value, tex, (r"$\times$", r"$\checkmark$")).replace("–", "--")
