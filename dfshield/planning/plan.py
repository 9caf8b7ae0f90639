"""From a config to jobs: the cells of every table and card, with options and names of what they are read from.

This is the one place that knows which options a job gets. It is light (no torch), because Snakemake reads it at every
start.
"""

from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from itertools import pairwise, product
from typing import Any

from dfshield import registry
from dfshield.core.errors import InputError
from dfshield.core.threat import parse_threat, threat_name
from dfshield.planning.axes import check_axis, numbers
from dfshield.planning.cells import Cell, variant
from dfshield.planning.choices import MIXTURE
from dfshield.planning.companions import checked_ledgers, own_surrogate
from dfshield.planning.config import Config, shipped
from dfshield.planning.figures import OF_SETS, OF_TEACHERS, FigureSpec, load_figures
from dfshield.planning.inputs import check_files
from dfshield.planning.paths import (
    CERTIFICATES,
    CHECKS,
    DETECTION,
    DIVERSITY,
    HARDEN,
    IMAGES_DIVERSITY,
    LANDSCAPE,
    LEDGER,
    NONE,
    Place,
    recipe_name,
    train_name,
)
from dfshield.planning.settings import Settings
from dfshield.planning.tables import RowSpec, TableSpec, load_tables
from dfshield.registry.metrics import metric as metric_entry
from dfshield.registry.metrics import protocol_of


def _key(cell: Cell) -> tuple[str, ...]:
    """What tells the cells of a table apart."""
    fields = (cell.dataset, cell.model, cell.method, cell.variant, cell.defence, cell.threat, cell.metric, cell.seed)
    return tuple(map(str, fields))


def _attacks(cell: Cell, cells: list[Cell]) -> tuple[str, ...]:
    """The ledgers, among `cells`, of attacks on the classifier of a cell at its threat model."""
    same = ("dataset", "model", "method", "variant", "defence", "threat", "seed")
    own = [one for one in cells if all(getattr(one, name) == getattr(cell, name) for name in same)]
    return tuple(dict.fromkeys(one.ledger for one in own if one.evidence == "ledger"))


class Plan(Settings):
    """Everything that one config asks for."""

    @classmethod
    def of(cls, config: Config) -> "Plan":
        """The plan of a config, with the tables and figures that it names; models to harden alone need none."""
        tables = shipped(config.tables)
        needed = config.datasets or "tables" in config.model_fields_set or tables.is_file()
        figures = shipped(config.figures)
        drawn = "figures" in config.model_fields_set or figures.is_file()
        return cls(config, load_tables(tables) if needed else {}, load_figures(figures) if drawn else {})

    def check(self) -> None:
        """Check everything that is wrong regardless of the target; raises InputError.

        Training sets and recipes that only some tables take are checked with those.
        """
        for spec in self.tables.values():
            self.rows(spec)
        for dataset, model in self.subjects:
            place = self.place(dataset, model)
            for stage in ("teacher", "diversity"):
                self._options(stage, place)
            used = [name for name, choice in self.sources.items() if choice.stage in ("synthesize", "public")]
            own = self.subject(dataset, model)
            if own.own:
                used = [self.hardened(model).source]
                self.options("train", self.place(dataset, model, source=used[0], recipe=self.hardened(model).recipe))
            for name in used:
                stage = self.sources[name].stage
                if stage in ("synthesize", "public") and not (own.own and stage == "public"):
                    self._options(stage, place.at(source=name))

    def check_files(self) -> None:
        """Raise InputError for files that the config names and that cannot be used, and for data not installed."""
        for name in self.config.datasets:
            registry.DATASETS[name].check_package()
        for subject in self.subjects.values():
            if subject.own:
                check_files(self.config, subject)

    # --- tables ------------------------------------------------------------------------------------------------------

    @cached_property
    def _known_cells(self) -> dict[str, list[Cell]]:
        return {}

    def cells(self, table: str) -> list[Cell]:
        """The cells of one table in the order of its layout."""
        return self._marked(self._bare(table))

    def _bare(self, table: str) -> list[Cell]:
        """The cells of one table, each with the checks that its classifier might undergo."""
        if table not in self._known_cells:
            self._known_cells[table] = self._cells(table)
        return self._known_cells[table]

    def _marked(self, cells: list[Cell]) -> list[Cell]:
        """Cells with checks only of those classifiers that undergo them."""
        return [
            replace(cell, checks="") if cell.checks and cell.checks not in self._checked else cell for cell in cells
        ]

    @cached_property
    def _checked(self) -> set[str]:
        """Paths of the robustness checks of the classifiers that the run attacks by all of ``checked``, in any table.

        So no attack is made that no table or card of the run has.
        """
        found: list[Cell] = []
        for name in self.own_tables:
            with suppress(InputError):  # it is said where that table is asked for
                found += self._bare(name)
        for name in self.config.harden:
            found += self._bare_hardened(name)
        made = {cell.ledger for cell in found}
        places = {cell.checks: Place.parse(CHECKS, cell.checks) for cell in found if cell.checks}
        return {
            path
            for path, place in places.items()
            if place and all(ledger.path(LEDGER) in made for ledger in checked_ledgers(self, place))
        }

    def _cells(self, table: str) -> list[Cell]:
        if table not in self.tables:
            raise InputError(f"{self.config.tables}: no {table!r}; tables are {', '.join(self.tables)}")
        spec = self.tables[table]
        if not spec.metrics:
            return []
        rows = self.rows(spec)
        self.check_rows(table, rows)
        found = []
        for dataset, models in self.blocks(spec):
            cut = self.config.grid == "demo" and self.stand_in(spec)
            threats = self.table_threats(spec, dataset)
            pairs = [(one, at) for one in threats for at in self.evaluations(spec, dataset) or [one]]
            for (threat, at), row, overrides in product(pairs, rows, self.sweeps(spec)):
                if (row.norm and row.norm != parse_threat(threat).norm) or not self.is_of(row, dataset):
                    continue
                for model in models[:1] if cut and row.models == "first" else models:
                    recipe = self._shared_recipe(dataset, model, row, overrides)
                    for metric, seed in product(spec.metrics, self.seeds(spec, row, dataset, model)):
                        place = Place(
                            self.config.name, dataset, model, row.source, recipe, train_name(recipe, threat), seed,
                            defence=row.defence,
                        )  # fmt: skip
                        if self._measures(metric, place, at):
                            found.append(self._cell(spec, place, row.method, variant(overrides), metric, at))
        if not found:
            raise InputError(f"{table}: the config's data sets and models have no cell in it; add one of {spec.paper}")
        for one, other in pairwise(sorted(found, key=_key)):
            if _key(one) == _key(other):
                raise InputError(f"{table}: has one cell twice ({', '.join(_key(one))}); take a row or value out")
        return [replace(cell, attacks=_attacks(cell, found)) if cell.metric == "certified" else cell for cell in found]

    def _measures(self, metric: str, place: Place, threat: str) -> bool:
        """Whether a metric is of a place.

        Diversity needs training images, a transferred attack another model, every attack a norm that it works in.
        """
        kind = metric_entry(metric).evidence
        if kind == "diversity":
            return (place.source, place.recipe) != (NONE, NONE)
        if kind != "ledger" or metric == "clean":
            return True
        protocol = protocol_of(metric)
        works = (
            parse_threat(self._threat(protocol, threat)).norm in registry.ATTACKS[self.protocols[protocol].name].norms
        )
        return works and not own_surrogate(self, place.at(protocol=protocol))

    def _shared_recipe(self, dataset: str, model: str, row: RowSpec, overrides: dict[str, Any]) -> str:
        """The base recipe where the swept values are its own, so that nothing is trained twice."""
        if row.recipe == NONE or not overrides:
            return row.recipe
        swept = recipe_name(row.recipe, overrides)
        place = self.place(dataset, model, source=row.source, recipe=row.recipe)
        stage = self.recipe_stage(row.recipe)
        same = self._options(stage, place.at(recipe=swept)) == self._options(stage, place)
        return row.recipe if same else swept

    def _cell(self, spec: TableSpec, place: Place, method: str, variant: str, metric: str, threat: str) -> Cell:
        """One cell: a figure by `metric` at `place`, evaluated at `threat` or at the metric's or protocol's own."""
        protocol = spec.clean_from if metric == "clean" else metric
        at = {name: self.metric_threat(spec, place.dataset, name) or threat for name in (metric, protocol)}
        return Cell(
            table=spec.key,
            dataset=place.dataset,
            model=place.model,
            method=method,
            variant=variant,
            defence=place.defence,
            threat=self._threat(metric, at[metric]),
            metric=metric,
            seed=place.seed,
            ledger=self._evidence(place, metric, protocol, at[protocol]),
            checks=self._checks(place, metric, threat),
        )

    def _threat(self, metric: str, threat: str) -> str:
        """The threat model of a metric: its protocol's own, or the one given."""
        protocol = protocol_of(metric)
        return (self.protocols[protocol].threat if protocol in self.protocols else "") or threat

    def _evidence(self, place: Place, metric: str, protocol: str, threat: str) -> str:
        """The file that a metric is read from."""
        kind = metric_entry(metric).evidence
        if kind == "diversity":
            split = self.options("diversity", self.place(place.dataset, place.model)).split
            return place.at(split=split).path(IMAGES_DIVERSITY if place.source == NONE else DIVERSITY)
        if kind == "certificates":
            return place.path(CERTIFICATES)
        if kind == "detection":
            return place.at(threat=threat_name(threat)).path(DETECTION)
        if kind == "landscape":
            return place.at(threat=threat_name(threat)).path(LANDSCAPE)
        name = threat_name(self._threat(protocol, threat))
        return place.at(protocol=protocol_of(protocol), threat=name).path(LEDGER)

    def _checks(self, place: Place, metric: str, threat: str) -> str:
        """The robustness checks that may mark a figure: of accuracy under attack, at the threat model of its table."""
        if not self.config.checked or metric == "clean" or metric_entry(metric).evidence != "ledger":
            return ""
        if registry.ATTACKS[self.protocols[protocol_of(metric)].name].replaces:
            return ""
        return place.at(threat=threat_name(threat)).path(CHECKS)

    # --- figures -----------------------------------------------------------------------------------------------------

    def figure(self, name: str) -> FigureSpec:
        found = super().figure(name)
        check_axis(self, found, self.tables[found.table])
        return found

    def figure_cells(self, name: str) -> list[Cell]:
        """The cells of its table that a figure draws; none for one of training images."""
        spec = self.figure(name)
        if not spec.metrics:
            return []
        models = self.figure_models(name)
        cells = (cell for cell in self.cells(spec.table) if cell.model in models[cell.dataset])
        wanted = [cell for cell in cells if cell.metric in spec.metrics]
        found = [cell for cell in wanted if not spec.methods or cell.method in spec.methods]
        if not found:
            raise InputError(f"{self.config.figures}: {name}: the config has no cell of it in {spec.table}")
        numbers(self, spec, found)
        return found

    def figure_sets(self, name: str) -> list[tuple[str, Place]]:
        """Methods of a figure of training images, with the places of their sets; none for another figure.

        Every set comes once, of the first seed of each data set; a sheet has those of the first model.
        """
        spec = self.figure(name)
        if spec.layout not in OF_SETS:
            return []
        table, most = self.tables[spec.table], 1 if spec.layout == "sheet" else None
        found: dict[str, tuple[str, Place]] = {}
        rows = [row for row in self.rows(table) if not spec.methods or row.method in spec.methods]
        self.check_rows(spec.table, rows)
        blocks = ((dataset, model) for dataset, models in self.blocks(table) for model in models[:most])
        for dataset, model in blocks:
            for row in rows:
                if (row.source, row.recipe) == (NONE, NONE) or not self.is_of(row, dataset):
                    continue
                threat = self.table_threats(table, dataset)[0]
                place = self.place(
                    dataset, model, source=row.source, recipe=row.recipe,
                    train_threat=train_name(row.recipe, threat), seed=self.config.seeds[0],
                )  # fmt: skip
                found.setdefault(place.training_images, (row.method, place))
        if not found:
            raise InputError(f"{self.config.figures}: {name}: the config has no training set of {spec.table}")
        return list(found.values())

    def figure_teachers(self, name: str) -> list[Place]:
        """The teacher of every set of `figure_sets`, for a figure that shows what they see; none for another."""
        needed = self.figure(name).layout in OF_TEACHERS
        return [self.teacher(place) for _, place in self.figure_sets(name)] if needed else []

    # --- models to harden --------------------------------------------------------------------------------------------

    def harden_cells(self, name: str) -> list[Cell]:
        """The figures of one hardened model by every protocol of its evaluation.

        Of Undefended and Hardened, and of the two Mixed where it is to keep its accuracy.
        """
        return self._marked(self._bare_hardened(name))

    def _bare_hardened(self, name: str) -> list[Cell]:
        entry = self.hardened(name)
        if entry.evaluation is None:
            return []
        protocols = entry.evaluation.protocols
        metrics = {"clean": protocols[-1]} | {protocol: protocol for protocol in protocols}
        hardened = {"source": entry.source, "recipe": entry.recipe}
        rows = {"Undefended": {}, "Hardened": hardened}
        if entry.keep_accuracy:
            rows["Mixed"] = hardened | {"defence": MIXTURE}
        found = []
        for (method, fields), (metric, protocol) in product(rows.items(), metrics.items()):
            place = self.place(HARDEN, name, seed=self.config.seeds[0], **fields)
            if not self._measures(protocol, place, entry.threat):
                continue
            found.append(
                Cell(
                    table=HARDEN,
                    dataset=HARDEN,
                    model=name,
                    method=method,
                    variant="",
                    defence=place.defence,
                    threat=self._threat(metric, entry.threat),
                    metric=metric,
                    seed=place.seed,
                    ledger=self._evidence(place, metric, protocol, entry.threat),
                    checks=self._checks(place, metric, entry.threat),
                )
            )
        return found
