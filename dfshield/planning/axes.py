"""The numbers along an axis that are no training option: options of the rows' defences, or of the metrics' attacks."""

from collections.abc import Sequence

from dfshield.core.errors import InputError
from dfshield.options import AttackOptions, DefendOptions
from dfshield.options.common import StageOptions
from dfshield.planning.cells import Cell
from dfshield.planning.figures import FigureSpec
from dfshield.planning.paths import LEDGER, NONE, Place
from dfshield.planning.settings import Settings
from dfshield.planning.tables import TableSpec

Numbers = dict[tuple[str, str, str, str], float]
"""A number by data set, model, method and metric."""


def check_axis(settings: Settings, spec: FigureSpec, table: TableSpec) -> None:
    """Raise InputError for a figure along an option that a drawn row's defence or a drawn metric's attack lacks."""
    if spec.option is None:
        return
    kind, option = spec.option
    drawn = [row for row in table.rows if not spec.methods or row.method in spec.methods]
    for title, name in (
        [(f"the defence of row {row.method!r}", row.defence) for row in drawn]
        if kind == "defence"
        else [(f"the attack of metric {name!r}", name) for name in spec.metrics]
    ):
        if option not in _fields(settings, kind, name):
            raise InputError(
                f"figures: {spec.name}: x is {spec.x}, and {title} has no number {option!r}; draw only what has one"
            )


def _fields(settings: Settings, kind: str, name: str) -> list[str]:
    """Names of the numbers among the options of a defence or of a protocol; none of what the config lacks."""
    vocabulary, stage = ("defences", "defend") if kind == "defence" else ("protocols", "attack")
    choice = None if name == NONE else settings.config.choices[vocabulary].get(name)
    if choice is None or choice.stage != stage:
        return []
    base: type[StageOptions] = DefendOptions if kind == "defence" else AttackOptions
    made = base.class_for(choice.name)
    return [name for name, value in made.model_fields.items() if isinstance(value.default, int | float)]


def numbers(settings: Settings, spec: FigureSpec, cells: Sequence[Cell]) -> Numbers:
    """The number of every cell of a figure along an option; empty for another figure.

    Raises InputError for two points of one line that have the same.
    """
    found: Numbers = {}
    taken: dict[tuple[str, ...], Cell] = {}
    for cell in cells if spec.option else ():
        assert spec.option
        kind, option = spec.option
        place = Place.parse(LEDGER, cell.ledger)
        assert place
        options = settings.defence(cell.defence) if kind == "defence" else settings.options("attack", place)
        x = float(getattr(options, option))
        line = (cell.dataset, cell.model, cell.metric if kind == "defence" else cell.method, str(cell.seed))
        other = taken.setdefault((*line, f"{x:g}"), cell)
        if (other.method, other.metric) != (cell.method, cell.metric):
            both = (other.method, cell.method) if kind == "defence" else (other.metric, cell.metric)
            raise InputError(f"figures: {spec.name}: {both[0]} and {both[1]} both have {spec.x} {x:g}; draw one")
        found[cell.dataset, cell.model, cell.method, cell.metric] = x
    return found
