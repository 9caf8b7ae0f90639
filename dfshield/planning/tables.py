"""What each table is: config/tables.yaml as typed specifications."""

import itertools
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from dfshield import registry
from dfshield.core.errors import InputError
from dfshield.core.files import read_yaml
from dfshield.core.threat import BallText, ThreatText
from dfshield.core.validation import Options, build
from dfshield.options import TrainOptions
from dfshield.options.common import Name
from dfshield.registry.attacks import EVERYWHERE

SYMBOLS = {"aggregate": "B", "data_share": "share"}
"""Training options that the paper's tables call by another name."""
RESERVED = ("cost", "report", "robustness-checks")
"""Names of results that are no tables of a config."""
Scale = Literal["demo", "full"]
"""How much of a table a config computes: its ``grid``."""


class PaperGrid(Options):
    """What the paper's own table covers."""

    datasets: tuple[str, ...] = Field(min_length=1)
    models: tuple[str, ...] = Field(min_length=1)
    threat: ThreatText | None = None
    """its one threat model; none where the table itself states its `threats`"""


class ThreatSpec(Options):
    """Threat models that a table trains and evaluates at, whatever the data sets' own are; nothing is trained in l1."""

    demo: tuple[BallText, ...] = Field(min_length=1)
    """of stand-ins at demo scale"""
    full: tuple[BallText, ...] = Field(min_length=1)
    """the paper's"""


class MetricThreat(Options):
    """The threat model that a table evaluates one metric at, whatever it trains at."""

    demo: ThreatText
    """of stand-ins at demo scale"""
    full: ThreatText
    """the paper's"""


class RowSpec(Options):
    """A method of a table: the training data it uses and the recipe it is trained by."""

    method: str
    """its name in the CSV, and in the CSV of the paper's figures"""
    printed: str = ""
    """the paper's name for it where that is another; printed on the paper's data sets"""
    source: Name
    recipe: Name
    defence: Name = "none"
    """defence at test time, one of the config's"""
    norm: Literal["linf", "l2", "l1"] | None = None
    """norm of the threat models that the row has, of those that the table compares; none: all of them"""
    marks: dict[str, bool] = Field(default_factory=dict)
    """columns with a tick or a cross beside the row's name, by their titles"""
    seeds: Literal["all", "first"] = "all"
    """the config's seeds, or its first alone, which is enough for a row of reference; of a network that comes trained,
    the first alone in any case"""
    models: Literal["all", "first"] = "all"
    """models of this row on stand-in data at demo scale: the table's, or the first of them alone"""
    needs: Name | None = None
    """a data set that the config must have for the row, such as the one whose images it is trained on"""
    only: Literal["stand-in", "paper", "named"] | None = None
    """show the row for stand-in data alone, for the paper's data sets alone, or where it is named alone; the config's
    `methods` override this"""

    def fits(self, stand_in: bool) -> bool:
        """Whether data have this row unless it is named: stand-ins, or the paper's data sets."""
        return self.only not in ("named", "paper" if stand_in else "stand-in")


class SweepSpec(Options):
    """Values of a swept training option, at demo scale and as the paper has them."""

    demo: tuple[int | float, ...] = Field(min_length=1)
    full: tuple[int | float, ...] = Field(min_length=1)


class GridSpec(Options):
    """Part of the config's grid that a table takes where the config holds none of the paper's data sets."""

    models: Literal["first", "all"] = "all"
    seeds: Literal["first", "all"] = "all"


class Grids(Options):
    """The grid by scale (the config's `grid`)."""

    demo: GridSpec = Field(default_factory=GridSpec)
    full: GridSpec = Field(default_factory=GridSpec)


class Printed(Options):
    """A table of another publication than the paper's own."""

    title: str
    """its name in print, such as ``Table 1 of Xiao and Zheng 2020``"""
    file: Name
    """its figures on file, ``report/paper/FILE.csv``"""


class TableSpec(Options):
    """One table: what it measures and how the paper lays it out."""

    number: int = 0
    """the paper's; 0 for a table of our own"""
    name: Name = ""
    """of a table of our own: its key in tables.yaml"""
    figure: bool = False
    """the paper has it as a figure of this number"""
    of: Printed | None = None
    """for a table of our own: the table of another publication that it is after"""
    stands_in: bool = True
    """whether data sets that are none of the paper's stand in for them"""
    title: str
    caption: str
    paper: PaperGrid
    rows: tuple[RowSpec, ...] = Field(min_length=1)
    """methods; with a sweep, each is trained at every combination of the swept values"""
    sweep: dict[str, SweepSpec] = Field(default_factory=dict)
    """swept training options; a matrix has its first option along the rows, its second along the columns"""
    threats: ThreatSpec | None = None
    """threat models, for a table that compares them or has another than the data sets' own"""
    evaluations: ThreatSpec | None = None
    """threat models that every metric is evaluated at, whatever the training's"""
    by_metric: dict[Name, MetricThreat] = Field(default_factory=dict)
    """metrics that are evaluated at a threat model of their own"""
    metrics: tuple[Name, ...] = ()
    """what is measured: names of `registry.METRICS` or of the config's protocols, or ``median-`` and
    ``largest-`` before a protocol that looks for the smallest perturbation; nothing in a table of formulas"""
    groups: dict[str, tuple[Name, ...]] = Field(default_factory=dict)
    """headings that span columns, in the layout of models: metrics that stand side by side"""
    clean_of: Name | None = None
    """the metric whose ledger clean accuracy is read from; by default the table's first attack"""
    gain_of: Name | None = None
    """metric that is printed with its gain over another row, such as ``45.50 (+8.79)``"""
    gain_from: Literal["first", "best"] = "first"
    """first: every row's gain over the first row · best: the last row's gain over the best of the others"""
    layout: Literal["rows", "datasets", "models", "ablation", "sweep", "matrix", "formulas", "attacks"]
    grid: Grids = Field(default_factory=Grids)

    @model_validator(mode="after")
    def _layout_fits(self) -> "TableSpec":
        unknown = [name for name in self.sweep if name not in sweepable()]
        if unknown:
            raise ValueError(f"sweep: {unknown[0]!r} is not a training option")
        if (self.layout == "formulas") == bool(self.metrics):
            raise ValueError("metrics: a table needs some, and one of formulas has none")
        swept = {"sweep": 1, "matrix": 2}.get(self.layout, 0)
        if len(self.sweep) != swept:
            raise ValueError(f"layout {self.layout} takes {swept} swept options, sweep has {len(self.sweep)}")
        if (self.paper.threat is None) == (self.threats is None):
            raise ValueError(
                "the paper's threat model belongs in paper.threat or, if not the data sets' own, in threats"
            )
        unknown = [row.recipe for row in self.rows if not self.metrics and row.recipe not in registry.BASELINES]
        if unknown:
            raise ValueError(f"rows: {unknown[0]!r} is none of {', '.join(registry.BASELINES)}, which have formulas")
        if any(list(row.marks) != list(self.rows[0].marks) for row in self.rows):
            raise ValueError("rows: every row needs the same marks, in the same order")
        self._check_metrics()
        if self.gain_of and (swept or self.gain_of not in self.metrics):
            raise ValueError(f"gain_of: {self.gain_of!r} is none of the metrics, or the layout has no rows of methods")
        return self

    def _check_metrics(self) -> None:
        """ValueError for metrics that are named beside those measured."""
        named = {"by_metric": tuple(self.by_metric), "clean_of": tuple(filter(None, [self.clean_of]))}
        for key, names in (named | {f"groups: {title}": names for title, names in self.groups.items()}).items():
            unknown = [name for name in names if name not in self.metrics]
            if unknown:
                raise ValueError(f"{key}: {unknown[0]!r} is none of the metrics")
        if self.by_metric and self.compares_threats:
            raise ValueError("by_metric: a table that compares threat models evaluates every metric at each of them")
        if self.groups and self.layout != "models":
            raise ValueError(f"groups: layout {self.layout} has none")
        if sorted(filter(None, (title for title, _ in self.headings))) != sorted(self.groups):
            raise ValueError("groups: each needs metrics that stand side by side")

    @property
    def key(self) -> str:
        """The table's name, such as ``table4`` or, for one of our own, ``losses``."""
        return self.name or f"{'figure' if self.figure else 'table'}{self.number}"

    @property
    def heading(self) -> str:
        """Its title, after ``Table 4`` or ``Figure 5`` if the paper has it."""
        return self.title if self.name else f"{'Figure' if self.figure else 'Table'} {self.number}. {self.title}"

    @property
    def headings(self) -> list[tuple[str, int]]:
        """Headings of `groups` with the number of metrics below each, empty over those that belong to none."""
        titles = {name: title for title, names in self.groups.items() for name in names}
        runs = itertools.groupby(self.metrics, key=lambda name: titles.get(name, ""))
        return [(title, len(list(names))) for title, names in runs] if titles else []

    @property
    def on_file(self) -> int | str:
        """What the printed figures are on file by: the paper's number, or a file's name; 0 for a figure or none."""
        return self.of.file if self.of else 0 if self.figure or self.name else self.number

    @property
    def printed(self) -> str:
        """The name of the printed table."""
        return self.of.title if self.of else f"The paper's Table {self.number}"

    @property
    def clean_from(self) -> str:
        """The metric whose ledger clean accuracy is read from: `clean_of`, or the table's first attack.

        Every ledger holds the clean predictions, so clean accuracy needs no job of its own beside an attack; ``clean``
        in a table without one.
        """
        attacks = (name for name in self.metrics if name != "clean" and registry.metric(name).evidence == "ledger")
        return self.clean_of or next(attacks, "clean")

    @property
    def compares_threats(self) -> bool:
        """Whether the table evaluates at several threat models."""
        compared = self.evaluations or self.threats
        return compared is not None and max(len(compared.demo), len(compared.full)) > 1

    @property
    def papers_threats(self) -> tuple[str, ...]:
        """The threat models that the paper's own table evaluates at."""
        stated = self.evaluations or self.threats
        return stated.full if stated else tuple(filter(None, [self.paper.threat]))

    def papers_threats_of(self, metric: str) -> tuple[str, ...]:
        """The threat models that the paper evaluates a metric at."""
        if not registry.metric(metric).bounded:
            return (EVERYWHERE,)
        return (self.by_metric[metric].full,) if metric in self.by_metric else self.papers_threats


def sweepable() -> set[str]:
    """Names of training options, common ones and those of single losses."""
    return {name for loss in registry.LOSSES for name in TrainOptions.class_for(loss).model_fields}


def formulas(spec: TableSpec) -> list[tuple[str, str, str]]:
    """Method, generator's loss and student's loss by row of a table of formulas, from the registry."""
    entries = [(row.method, registry.BASELINES[row.recipe]) for row in spec.rows]
    return [(method, entry.generator_loss, entry.student_loss) for method, entry in entries]


def load_tables(path: Path) -> dict[str, TableSpec]:
    """Read tables.yaml: specifications by key (``table4``). Raises InputError naming file, table and key."""
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise InputError(f"{path}: must be a mapping of table names to their specifications")
    specs: dict[str, TableSpec] = {}
    for key, given in values.items():
        own = {} if "number" in (given or {}) else {"name": str(key)}
        specs[str(key)] = build(TableSpec, (given or {}) | own, f"{path}: {key}")
        if key in RESERVED:
            raise InputError(f"{path}: {key}: results/{key} is made by the stage of that name; choose another name")
        if key != specs[key].key:
            number = specs[key].number
            raise InputError(f"{path}: {key}: its number is {number}, so its name must be {specs[key].key}")
    return specs
