"""The pictures beside a model card: accuracy before and after, what broke what, and the synthetic images."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfshield.registry import metric
from dfshield.report.broken import Tally, component_title
from dfshield.report.layout import threat_title
from dfshield.report.rows import Row
from dfshield.report.sheet import sheet_of_trainset


@dataclass(frozen=True)
class Picture:
    """One picture of a card."""

    name: str
    """file name without suffix"""
    title: str
    """what it is, for who cannot see it"""
    caption: str

    @property
    def file(self) -> str:
        """The file that the card shows."""
        return f"{self.name}.png"


ACCURACY = Picture(
    "accuracy",
    "Clean and robust accuracy before and after",
    "Accuracy in percent by protocol. Bars: 95 % binomial intervals (Wilson's). Dashed: always answering the majority "
    "class.",
)
BROKEN = Picture(
    "broken",
    "What broke the test images, by component of the attack",
    "Share of the test images by what broke them first: attacks see only the images that are left. What is left at the "
    "end is robust accuracy.",
)
SYNTHETIC = Picture(
    "synthetic",
    "Synthetic training images, a row per class",
    "Some of the images that the model was hardened on, a row per class. They were made from the original model and "
    "may show what it was trained on: look at them before you pass this picture on.",
)


def shown(rows: Sequence[Row], synthesis: Mapping[str, Any] | None) -> list[Picture]:
    """The pictures of a card with these figures and this header of a training set, if it is still there.

    Images of a set that has real ones are never shown.
    """
    found = [ACCURACY, BROKEN] if accuracies(rows) else []
    return found + ([SYNTHETIC] if synthesis and synthesis["real_data"] == "none" else [])


def accuracies(rows: Sequence[Row]) -> list[Row]:
    """The rows that are accuracies."""
    return [row for row in rows if row.unit == "%" and not math.isnan(row.value)]


def draw(
    folder: Path, rows: Sequence[Row], broken: Sequence[Tally], data: Path, synthesis: Mapping[str, Any] | None
) -> None:
    """Write the pictures of a card to `folder`, and remove those of an earlier card that it no longer has."""
    drawn = shown(rows, synthesis)
    if ACCURACY in drawn:
        draw_accuracy(folder / ACCURACY.file, rows)
        draw_broken(folder / BROKEN.file, broken)
    if SYNTHETIC in drawn:
        sheet_of_trainset(data, folder / SYNTHETIC.file)
    for picture in (ACCURACY, BROKEN, SYNTHETIC):
        if picture not in drawn:
            for suffix in (".png", ".svg"):
                (folder / picture.file).with_suffix(suffix).unlink(missing_ok=True)


def draw_accuracy(path: Path, rows: Sequence[Row]) -> None:
    """Points with intervals: a line per protocol and model, a colour and a marker per model."""
    from dfshield.report import drawing

    own = accuracies(rows)
    metrics, methods = (list(dict.fromkeys(getattr(row, name) for row in own)) for name in ("metric", "method"))
    step = 0.8 / len(methods)
    with drawing.canvas(6.4, 1.1 + 0.26 * len(metrics) * len(methods) + 0.2 * len(metrics)) as figure:
        axes = figure.subplots()
        for number, method in enumerate(methods):
            shown_rows = [row for row in own if row.method == method]
            at = [metrics.index(row.metric) + (number - (len(methods) - 1) / 2) * step for row in shown_rows]
            limits = ([getattr(row, name) for row in shown_rows] for name in ("value", "ci_low", "ci_high"))
            values, low, high = limits
            drawing.points(axes, number, method, values, at, low, high)
        axes.axvline(own[0].majority, color="black", linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
        axes.set(xlim=(-2, 109), xticks=range(0, 101, 20), xlabel="accuracy, %")
        axes.set_yticks(range(len(metrics)), [_line(own, name) for name in metrics])
        axes.set_ylim(len(metrics) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        figure.legend(loc="outside upper center", ncols=len(methods))
        drawing.save(figure, path)


def _line(rows: Sequence[Row], name: str) -> str:
    threat = next(row.threat for row in rows if row.metric == name)
    return metric(name).title + ("" if name == "clean" else f"\n{threat_title(threat)}")


def draw_broken(path: Path, broken: Sequence[Tally]) -> None:
    """A stacked bar per model and protocol: survivors, images that are wrong without attack, and each component's."""
    from dfshield.report import drawing

    names = ["", *dict.fromkeys(name for tally in broken for name, _ in tally.components)]
    left = [0.0] * len(broken)
    with drawing.canvas(6.4, 1.3 + 0.42 * len(broken) + 0.2 * (len(names) // 4)) as figure:
        axes = figure.subplots()
        for number, name in enumerate(names):
            counts = [
                dict(tally.components).get(name, 0) if name else (tally.survivors or [tally.n])[-1] for tally in broken
            ]
            parts = [100 * count / tally.n for count, tally in zip(counts, broken, strict=True)]
            title = f"broken by {name}" if number > 1 else component_title(name) if name else "survived"
            drawing.shares(axes, number, title, range(len(broken)), left, parts)
            left = [start + part for start, part in zip(left, parts, strict=True)]
        axes.set(xlim=(0, 100), xlabel="test images, %")
        axes.set_yticks(range(len(broken)), [f"{tally.method}\n{metric(tally.metric).title}" for tally in broken])
        axes.invert_yaxis()
        axes.grid(visible=False)
        figure.legend(loc="outside upper center", ncols=3, fontsize=8)
        drawing.save(figure, path)
