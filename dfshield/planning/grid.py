"""Which part of a config's grid every table takes: data sets, models, rows, threat models, swept values.

With the vocabularies that the rows name.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

from dfshield import registry
from dfshield.core.errors import InputError
from dfshield.planning.choices import VOCABULARIES, Choice
from dfshield.planning.config import Config
from dfshield.planning.figures import FigureSpec
from dfshield.planning.paths import NONE, recipe_name
from dfshield.planning.tables import GridSpec, RowSpec, TableSpec
from dfshield.registry.metrics import metric as metric_entry
from dfshield.registry.metrics import protocol_of

FIELDS = {"sources": "source", "recipes": "recipe", "protocols": "protocol", "defences": "defence"}
"""Vocabularies and the fields of a place that hold their names."""
OF_STAGE = {stage: vocabulary for vocabulary, stages in VOCABULARIES.items() for stage in stages}
"""Stages and the vocabularies that their entries are in."""


@dataclass(frozen=True)
class Grid:
    """A config with the tables and figures that it names."""

    config: Config
    tables: dict[str, TableSpec]
    figures: dict[str, FigureSpec] = dataclasses.field(default_factory=dict)

    def blocks(self, spec: TableSpec) -> list[tuple[str, tuple[str, ...]]]:
        """(data set, models) of a table: the config's among the paper's, or the config's own as a stand-in."""
        own = [d for d in spec.paper.datasets if d in self.config.datasets]
        if own:
            return [(d, tuple(m for m in self.config.datasets[d].models if m in spec.paper.models)) for d in own]
        if not spec.stands_in:
            return []
        first = self.grid(spec).models == "first"
        own = [name for name in self.config.datasets if registry.DATASETS[name].stands_in]
        models = {name: self.config.datasets[name].models for name in own}
        return [(name, models[name][:1] if first else models[name]) for name in own]

    def stand_in(self, spec: TableSpec) -> bool:
        """Whether the config's own data sets take the place of the paper's, of which it has none."""
        return not any(d in self.config.datasets for d in spec.paper.datasets)

    def grid(self, spec: TableSpec) -> GridSpec:
        """The part of the config's grid that a table takes: all of it where it has the paper's data sets."""
        if not self.stand_in(spec):
            return GridSpec()
        return spec.grid.full if self.config.grid == "full" else spec.grid.demo

    def rows(self, spec: TableSpec) -> list[RowSpec]:
        """The rows of a table; those that the config's `methods` choose, if the table has them all."""
        chosen = {name.lower() for name in self.config.methods}
        names = {table: {row.method.lower() for row in one.rows} for table, one in self.tables.items()}
        if not any(chosen <= own for own in names.values()):
            table = max(names, key=lambda name: len(chosen & names[name]))
            raise InputError(
                f"methods: no table has rows for all of {', '.join(self.config.methods)}; "
                f"those of {table} are {', '.join(row.method.lower() for row in self.tables[table].rows)}"
            )
        stand_in = self.stand_in(spec)
        there = [row for row in spec.rows if row.needs is None or row.needs in self.config.datasets]
        fitting = [row for row in there if row.fits(stand_in)]
        if not chosen or not chosen <= names[spec.key]:
            return fitting
        known = {row.method for row in fitting}  # a method of other data has its row if it is named, and no other
        named = [row for row in there if row.method.lower() in chosen]
        return [row for row in named if row.fits(stand_in) or row.method not in known]

    def is_of(self, row: RowSpec, dataset: str) -> bool:
        """Whether a row is of a data set: a public training set is another data set's than the teacher's."""
        source = self.sources.get(row.source)
        return source is None or source.stage != "public" or source.name != dataset

    def table_threats(self, spec: TableSpec, dataset: str) -> list[str]:
        """Threat models that a table has for a data set: its own, or those that the table states."""
        if spec.threats is None:
            return [self.config.datasets[dataset].threat]
        return list(getattr(spec.threats, self._scale(spec, dataset)))

    def evaluations(self, spec: TableSpec, dataset: str) -> list[str]:
        """Threat models that a table evaluates at, if those are not its training's; else none."""
        return list(getattr(spec.evaluations, self._scale(spec, dataset))) if spec.evaluations else []

    def metric_threat(self, spec: TableSpec, dataset: str, metric: str) -> str | None:
        """The threat model that a table evaluates a metric at if that is not the one of its training."""
        own = spec.by_metric.get(metric)
        return getattr(own, self._scale(spec, dataset)) if own else None

    def _scale(self, spec: TableSpec, dataset: str) -> str:
        """Which of a table's threat models a data set has."""
        return "full" if dataset in spec.paper.datasets or self.config.grid == "full" else "demo"

    def sweeps(self, spec: TableSpec) -> list[dict[str, Any]]:
        """The combinations of swept options of a table; one empty combination where nothing is swept."""
        values = [getattr(sweep, self.config.grid) for sweep in spec.sweep.values()]
        return [dict(zip(spec.sweep, combination, strict=True)) for combination in product(*values)]

    @cached_property
    def own_tables(self) -> list[str]:
        """The tables that this config has cells in."""
        return [table for table, spec in self.tables.items() if any(models for _, models in self.blocks(spec))]

    def figure(self, name: str) -> FigureSpec:
        """One figure; raises InputError for one that there is not, and for one whose table lacks what it draws."""
        if name not in self.figures:
            raise InputError(f"{self.config.figures}: no {name!r}; figures are {', '.join(self.figures) or 'missing'}")
        found = self.figures[name]
        if found.table not in self.tables:
            tables = self.config.tables
            raise InputError(f"{self.config.figures}: {name}: its table {found.table!r} is none of {tables}")
        found.check(self.tables[found.table])
        return found

    @cached_property
    def own_figures(self) -> list[str]:
        """The figures that this config has cells for: those of its own tables, but for `misfits`."""
        named = [name for name, figure in self.figures.items() if figure.table in self.own_tables]
        return [name for name in named if name not in self.misfits and any(self.figure_models(name).values())]

    def figure_models(self, name: str) -> dict[str, tuple[str, ...]]:
        """Models of a figure by data set: its table's, or the one of them that it names by its number, if there is."""
        figure = self.figures[name]
        first, last = (figure.model - 1, figure.model) if figure.model else (0, None)
        return {dataset: models[first:last] for dataset, models in self.blocks(self.tables[figure.table])}

    @cached_property
    def misfits(self) -> dict[str, str]:
        """Why figures of the config's own tables cannot be drawn, by name: they may be meant for other tables."""
        found = {}
        for name in (name for name, figure in self.figures.items() if figure.table in self.own_tables):
            try:
                self.figure(name)
            except InputError as error:
                found[name] = str(error)
        return found

    @property
    def sources(self) -> dict[str, Choice]:
        """Training sets by name."""
        return self.config.choices["sources"]

    @property
    def protocols(self) -> dict[str, Choice]:
        """Evaluation protocols by name."""
        return self.config.choices["protocols"]

    @cached_property
    def recipes(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """Every recipe name of the run, swept ones included: its base recipe and overrides."""
        known = self.config.choices["recipes"]
        found: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in known}
        for spec in self.tables.values():
            for row, overrides in product(spec.rows, self.sweeps(spec)):
                if row.recipe in known:
                    name = recipe_name(row.recipe, overrides)
                    if found.setdefault(name, (row.recipe, overrides)) != (row.recipe, overrides):
                        raise InputError(
                            f"{spec.key}: {name!r} is the name of two recipes, {found[name]} and "
                            f"{(row.recipe, overrides)}; rename the recipe, or sweep values that differ in six digits"
                        )
        return found

    def recipe_stage(self, recipe: str) -> str:
        """``train`` or ``cotrain``, by a recipe's name, swept or not; a co-trained one takes source ``none``."""
        return self.config.choices["recipes"][self.recipes[recipe][0]].stage

    def check_rows(self, table: str, rows: list[RowSpec]) -> None:
        """InputError for rows that name what the config lacks, or a recipe without its training set."""
        for row, (vocabulary, field) in product(rows, FIELDS.items()):
            name = getattr(row, field, NONE)
            known: Mapping[str, Any] = self.config.choices[vocabulary]
            if name != NONE and name not in known:
                raise InputError(
                    f"{table}: its row {row.method!r} takes {field} {name!r}, which the config lacks; "
                    f"add it under {vocabulary}: (there are {', '.join(known)})"
                )
        for metric in self.tables[table].metrics:
            if metric_entry(metric).evidence == "ledger":
                self._check_protocol(table, metric)
            for row in rows:
                self._check_evidence(table, row, metric)
        for row in rows:
            if row.recipe == NONE:
                continue
            cotrained = self.recipe_stage(row.recipe) == "cotrain"
            if cotrained != (row.source == NONE):
                why = (
                    "trains a generator of its own: its source is none"
                    if cotrained
                    else f"needs a training set: its source is one of {', '.join(self.sources)}"
                )
                raise InputError(
                    f"{table}: its row {row.method!r} has source {row.source!r}, but recipe {row.recipe!r} {why}"
                )

    def _check_evidence(self, table: str, row: RowSpec, metric: str) -> None:
        """InputError for metrics of a detector without one, of others behind one, and for certificates of no noise.

        And for landscapes of what is more than a network.
        """
        choice = self.config.choices["defences"].get(row.defence)
        found = "detection" if choice and choice.stage == "detect" else "ledger"
        kind = metric_entry(metric).evidence
        if (kind == "detection") != (found == "detection"):
            what = "is of a detector: its defence is one that is {detect: NAME}"
            why = what if kind == "detection" else "is no metric of a detector, which its defence is"
            raise InputError(
                f"{table}: its row {row.method!r} has defence {row.defence!r}, but metric {metric!r} {why}"
            )
        if kind == "landscape" and row.defence != NONE:
            raise InputError(
                f"{table}: its row {row.method!r} has defence {row.defence!r}, but metric {metric!r} is of a network "
                "alone; take the defence out"
            )
        if kind == "certificates" and (choice is None or choice.name != "smoothing"):
            raise InputError(
                f"{table}: its row {row.method!r} has defence {row.defence!r}, which nothing certifies; name one "
                "that is {defend: smoothing}"
            )

    def _check_protocol(self, table: str, metric: str) -> None:
        """InputError for a metric of no protocol, and for distances under one that does not look for the smallest."""
        protocol = self.protocols.get(protocol_of(metric))
        if protocol is None:
            raise InputError(
                f"{table}: its metric {metric!r} is no protocol of the config; add it under protocols: "
                f"(there are {', '.join(self.protocols)})"
            )
        if metric_entry(metric).statistic and not registry.ATTACKS[protocol.name].minimal:
            fitting = [name for name, one in self.protocols.items() if registry.ATTACKS[one.name].minimal]
            raise InputError(
                f"{table}: its metric {metric!r} needs distances, which {protocol.name} does not look for; "
                f"protocols that do are {', '.join(fitting) or 'missing'}"
            )
