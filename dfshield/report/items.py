"""What a cell of a printed table holds, and its text; a renderer says how figures and marks look."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dfshield.report.notes import Marks


@dataclass(frozen=True)
class Value:
    """A figure: mean over seeds, sample standard deviation (None for one seed), 95 % interval, flags, decimals.

    Accuracies are in percent; diversity metrics have no interval.
    """

    mean: float
    spread: float | None = None
    interval: tuple[float, float] | None = None
    flags: tuple[str, ...] = ()
    places: int = 2


@dataclass(frozen=True)
class Pair:
    """Two figures in one cell, printed as ``first (second)``."""

    first: Value | None
    second: Value | None


@dataclass(frozen=True)
class Gain:
    """A figure and its difference from another row's, printed as ``45.50 (+8.79)``."""

    value: Value
    difference: float


@dataclass(frozen=True)
class Effort:
    """What an attack takes: mean over the models that it was run on."""

    images: int
    passes: float | None
    """forward passes an image by the cost model; None for an attack that is not estimated"""
    seconds: float | None
    """of the whole job as Snakemake measured it; None where no benchmark file says it"""


Efforts = Mapping[tuple[str, str, str], Effort]
"""Efforts by data set, model and metric."""

Item = str | bool | Value | Pair | Gain | None
"""Text, tick or cross, figures, or nothing."""


def symbols(flags: Sequence[str], marks: Marks) -> str:
    """The marks of a figure's flags, separated by commas."""
    return ",".join(dict.fromkeys(marks[flag][0] for flag in flags))


def item_text(
    item: Item, figure: Callable[[Value, bool], str], plain: Callable[[str], str], ticks: tuple[str, str]
) -> str:
    """Text of one cell.

    `figure` writes a value, with its interval if its second argument is true; `plain` writes a text; `ticks` are what
    stands for no and yes.
    """
    if isinstance(item, bool):
        return ticks[item]
    if isinstance(item, str):
        return plain(item)
    if isinstance(item, Pair):
        first, second = (figure(v, v is item.first) if v else "–" for v in (item.first, item.second))
        return f"{first} ({second})"
    if isinstance(item, Gain):
        return f"{figure(item.value, True)} ({item.difference:+.2f})"
    return figure(item, True) if item else "–"
