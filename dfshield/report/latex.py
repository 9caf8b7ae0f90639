"""Tables as LaTeX floats, laid out as the paper prints them."""

import re
from collections.abc import Sequence

from dfshield.planning.tables import Scale, TableSpec
from dfshield.report.facts import facts, footnotes
from dfshield.report.items import Efforts, Item, Value, item_text, symbols
from dfshield.report.layout import Layout, lay_out, measured
from dfshield.report.notes import Marks, notes
from dfshield.report.rows import Row

CHARACTERS = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "{": r"\{", "}": r"\}", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "τ": r"$\tau$", "ε": r"$\varepsilon$", "∞": r"$_\infty$",
    "±": r"$\pm$", "≤": r"$\leq$", "×": r"$\times$", "†": r"$\dagger$", "‡": r"$\ddagger$", "§": r"\S{}",
    "¶": r"\P{}", "‖": r"$\Vert$", "–": "--", "−": "$-$", "·": r"$\cdot$", "λ": r"$\lambda$", "α": r"$\alpha$",
    "β": r"$\beta$", "ℓ": r"$\ell$", "Δ": r"$\Delta$", "²": "$^2$", "³": "$^3$", "₁": "$_1$", "₂": "$_2$", "₃": "$_3$",
}  # fmt: skip
"""Characters that LaTeX reads as something else, or that pdfLaTeX's fonts lack."""
WORDS = {"L_DFShield": r"$\mathcal{L}_{\mathrm{DFShield}}$", "λ1": r"$\lambda_1$", "λ2": r"$\lambda_2$", "B": "$B$"}


def tex(text: str) -> str:
    """Plain text for LaTeX: its special characters escaped, the paper's symbols in mathematics."""
    words = re.split(r"(\w+)", text)
    return "".join(WORDS.get(word) or "".join(CHARACTERS.get(c, c) for c in word) for word in words)


def render(rows: Sequence[Row], spec: TableSpec, scale: Scale = "demo", efforts: Efforts | None = None) -> str:
    """The table as a LaTeX float with its notes beneath; `scale` is as in Markdown, which alone states it."""
    del scale
    values = measured(rows)
    marks = notes(flag for value in values.values() for flag in value.flags)
    beneath = [*facts(rows, spec, intervals=False), *footnotes(marks)]
    return table_float(spec.key, f"{spec.title}. {spec.caption}", lay_out(spec, values, efforts), marks, beneath)


def table_float(key: str, caption: str, layout: Layout, marks: Marks, beneath: Sequence[str] = ()) -> str:
    """A float with booktabs rules, its caption above and the lines `beneath` below; label ``tab:key``.

    `caption` and `beneath` are plain texts.
    """
    lines = [
        r"% needs \usepackage{booktabs} and \usepackage{amssymb}",
        r"\begin{table}[tbp]",
        r"\centering",
        rf"\caption{{{tex(caption)}}}",
        rf"\label{{tab:{key}}}",
        r"\par\smallskip",
        *grid(layout, marks),
    ]
    if beneath:
        notes_below = r"\par ".join(map(tex, beneath))
        lines += [r"\par\smallskip", r"\begin{minipage}{\linewidth}\footnotesize", notes_below, r"\end{minipage}"]
    return "\n".join([*lines, r"\end{table}", ""])


def grid(layout: Layout, marks: Marks) -> list[str]:
    """Lines of the tabular: groups span their columns, blocks are set off by rules."""
    stub, width = len(layout.stub), len(layout.stub) + len(layout.columns)
    lines = [rf"\begin{{tabular}}{{{'l' * stub}{'r' * len(layout.columns)}}}", r"\toprule"]
    if layout.groups:
        spans = [rf"\multicolumn{{{n}}}{{c}}{{{tex(title)}}}" for title, n in layout.groups]
        lines.append(" & ".join([*[""] * stub, *spans]) + r" \\")
        start = stub + 1
        for title, n in layout.groups:
            if title:
                lines.append(rf"\cmidrule(lr){{{start}-{start + n - 1}}}")
            start += n
    lines.append(" & ".join(tex(name) for name in [*layout.stub, *layout.columns]) + r" \\")
    for block in layout.blocks:
        lines.append(r"\midrule")
        if block.title:
            lines += [rf"\multicolumn{{{width}}}{{c}}{{{tex(block.title)}}} \\", r"\midrule"]
        lines += [" & ".join(_item(item, marks) for item in row) + r" \\" for row in block.rows]
    return [*lines, r"\bottomrule", r"\end{tabular}"]


def _item(item: Item, marks: Marks) -> str:
    def figure(value: Value, interval: bool) -> str:
        del interval  # the Markdown and the CSV have it; a page has no room
        raised = tex(symbols(value.flags, marks))
        spread = "" if value.spread is None else rf"\,$\pm$\,{value.spread:.{value.places}f}"
        return f"{value.mean:.{value.places}f}" + (rf"\textsuperscript{{{raised}}}" if raised else "") + spread

    return item_text(item, figure, tex, (r"$\times$", r"$\checkmark$")).replace("–", "--")
