"""From a config to jobs: their options, their files, the cells of every table.

This is the one place that knows which options a job gets. It is light (no torch), because
Snakemake reads it at every start.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

from dfshield import registry
from dfshield.core.errors import InputError
from dfshield.core.threat import threat_name
from dfshield.core.validation import build
from dfshield.options import PROFILES, PROTOCOLS, STAGES, AttackOptions, CotrainOptions, DiversityOptions
from dfshield.planning.cells import Cell, variant
from dfshield.planning.config import Config, HardenConfig, StageOverrides, recipe_options
from dfshield.planning.paths import DATA, DIVERSITY, HARDEN, LEDGER, NONE, SHARD, STUDENT, recipe_name
from dfshield.planning.tables import GridSpec, RowSpec, TableSpec, load_tables


@dataclass(frozen=True)
class Work:
    """What a method makes, for one data set, model and seed; making it is what the method costs."""

    dataset: str
    model: str
    method: str
    source: str
    recipe: str
    seed: int
    data: tuple[str, ...]
    """files of its training data, those that they are made of first"""
    student: tuple[str, ...]
    """its student; empty for the teacher itself"""


@dataclass(frozen=True)
class Plan:
    """Everything that one config asks for."""

    config: Config
    tables: dict[str, TableSpec]

    @classmethod
    def of(cls, config: Config) -> "Plan":
        """The plan of a config, with the tables that it names."""
        return cls(config, load_tables(config.tables))

    def check(self) -> None:
        """InputError for what is wrong whichever target is asked for: methods' names, options that do not fit together.

        Sources and recipes that only some tables take are checked with those.
        """
        for spec in self.tables.values():
            self.rows(spec)
        for dataset, stage in product(self.datasets, ("teacher", "synthesis", "public", "diversity")):
            for model in self.models(dataset):
                self.options(stage, dataset, model)
        for name, entry in self.config.harden.items():
            if self.config.sources[entry.source].kind == "synthetic":
                self.synthesis(HARDEN, name, entry.source, 0)
            self.training(HARDEN, name, entry.recipe, 0)

    # --- what there is -----------------------------------------------------------------------------------------------

    @cached_property
    def recipes(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """Every recipe name of the run, swept ones included: its base recipe and overrides."""
        found: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in self.config.recipes}
        for spec in self.tables.values():
            for row, overrides in product(spec.rows, self.sweeps(spec)):
                if row.recipe in self.config.recipes:
                    found[recipe_name(row.recipe, overrides)] = (row.recipe, overrides)
        return found

    def cotrained(self, recipe: str) -> bool:
        """Whether a recipe, swept or not, trains a generator beside the student and so takes source ``none``."""
        return recipe_options(self.config.recipes[self.recipes[recipe][0]]) is CotrainOptions

    def models(self, dataset: str) -> tuple[str, ...]:
        """Models of a data set of the grid, or the names under ``harden:``."""
        return tuple(self.config.harden) if dataset == HARDEN else self.config.datasets[dataset].models

    @property
    def datasets(self) -> list[str]:
        """Names that the path grammar's ``dataset`` may take."""
        return [*self.config.datasets, *([HARDEN] if self.config.harden else [])]

    def threat(self, dataset: str, model: str) -> str:
        """Threat model of a data set or of a user's model."""
        return self.config.harden[model].threat if dataset == HARDEN else self.config.datasets[dataset].threat

    @cached_property
    def threats(self) -> dict[tuple[str, str], dict[str, str]]:
        """Threat models of every (data set, model), by their names in paths: its own and those of tables."""
        found = {(d, m): [self.threat(d, m)] for d in self.datasets for m in self.models(d)}
        for spec in self.tables.values():
            for dataset, models in self.blocks(spec):
                for model in models:
                    found[dataset, model] += self.table_threats(spec, dataset)
        return {place: {threat_name(text): text for text in texts} for place, texts in found.items()}

    @cached_property
    def vocabulary(self) -> dict[str, list[str]]:
        """Every value that each field of the path grammar may take."""
        config = self.config
        threats = {name for names in self.threats.values() for name in names}
        return {
            "run": [config.name],
            "dataset": self.datasets,
            "model": sorted({m for d in self.datasets for m in self.models(d)}),
            "source": [*config.sources, NONE],
            "recipe": [*self.recipes, NONE],
            "train_threat": [*sorted(threats), NONE],
            "threat": sorted(threats),
            "seed": [str(seed) for seed in config.seeds],
            "shard": [str(shard) for shard in range(config.shards)],
            "defence": [NONE],
            "protocol": list(PROTOCOLS),
            "split": sorted({self.diversity(d, m).split for d in self.datasets for m in self.models(d)}),
            "table": list(self.tables),
            "name": list(config.harden),
        }

    # --- options -----------------------------------------------------------------------------------------------------

    def options(self, stage: str, dataset: str, model: str, seed: int = 0, /, **extra: Any) -> Any:
        """Options of one job; later layers win: profile, config, data set, model, then `extra`."""
        own: StageOverrides = self.config.harden[model] if dataset == HARDEN else self.config.datasets[dataset]
        layers = [PROFILES[self.config.profile].get(stage, {}), getattr(self.config, stage), getattr(own, stage)]
        if dataset != HARDEN and model in self.config.datasets[dataset].by_model:
            layers.append(getattr(self.config.datasets[dataset].by_model[model], stage))
        values = {key: value for layer in layers for key, value in layer.items()}
        given = {"device": self.config.device, "seed": seed} | values | extra
        return build(STAGES[stage], given, f"{stage} options of {dataset}/{model}")

    def synthesis(self, dataset: str, model: str, source: str, seed: int) -> Any:
        """SynthesizeOptions of one source."""
        own = self._of_source("synthesis", dataset, model, source)
        return self.options("synthesis", dataset, model, seed, **own)

    def generation(self, dataset: str, model: str, source: str, seed: int) -> Any:
        """GenerateOptions of one source by a generator; it has as many images as the synthesised ones."""
        images = self.options("synthesis", dataset, model, seed).images
        own = self._of_source("generation", dataset, model, source)
        return self.options("generation", dataset, model, seed, **{"images": images} | own)

    def _of_source(self, stage: str, dataset: str, model: str, source: str) -> dict[str, Any]:
        """A source's own options; a data set's and, as they are more particular, a user's model's win over them."""
        own: dict[str, Any] = getattr(self.config.sources[source], stage)
        if dataset == HARDEN:
            return own | getattr(self.config.harden[model], stage)
        return own | self.config.datasets[dataset].by_source.get(source, {})

    def augmentation(self, dataset: str, model: str, source: str, seed: int) -> Any:
        """AugmentOptions of one augmented source."""
        return self.options("augmentation", dataset, model, seed, augmentation=self.config.sources[source].augmentation)

    def public(self, dataset: str, model: str, source: str, seed: int) -> Any:
        """PublicOptions of one public source."""
        own = self.config.sources[source].dataset
        return self.options("public", dataset, model, seed, **({"dataset": own} if own else {}))

    def diversity(self, dataset: str, model: str) -> DiversityOptions:
        """DiversityOptions of one model: one seed for all its surrogate sets, so that the bins are the same."""
        options: DiversityOptions = self.options("diversity", dataset, model, self.config.seeds[0])
        return options

    def training(self, dataset: str, model: str, recipe: str, seed: int, threat: str = "") -> Any:
        """TrainOptions of one recipe, swept or not; CotrainOptions where it names a method.

        `threat` is the threat model of the training, the data set's own if empty.
        """
        base, overrides = self.recipes[recipe]
        layers = dict(self.config.recipes[base])
        if dataset == HARDEN:  # a user's own training options are more particular than the recipe's
            layers |= self.config.harden[model].training
        else:
            layers |= self.config.datasets[dataset].by_recipe.get(base, {})
        stage = "cotraining" if self.cotrained(recipe) else "training"
        given = {"threat": threat or self.threat(dataset, model)}
        return self.options(stage, dataset, model, seed, **given | layers | overrides)

    def attack(self, dataset: str, model: str, protocol: str, seed: int, threat: str = "") -> AttackOptions:
        """AttackOptions of one protocol; `threat` is the threat model, the data set's own if empty."""
        given = {"threat": threat or self.threat(dataset, model), "split": self.config.split} | PROTOCOLS[protocol]
        if dataset != HARDEN:
            given |= self.config.datasets[dataset].by_protocol.get(protocol, {})
        options: AttackOptions = self.options("attack", dataset, model, seed, **given)
        evaluation = self.config.harden[model].evaluation if dataset == HARDEN else None
        if evaluation and "limit" in evaluation.model_fields_set:
            return options.model_copy(update={"limit": evaluation.limit})
        return options

    # --- paths -------------------------------------------------------------------------------------------------------

    def path(self, template: str, dataset: str, model: str, **fields: Any) -> str:
        """A path of the grammar, for this run; training and evaluation have the data set's threat unless given."""
        threat = threat_name(self.threat(dataset, model))
        fields = {"defence": NONE, "threat": threat, "train_threat": fields.get("threat", threat)} | fields
        if fields.get("recipe") == NONE:
            fields["train_threat"] = NONE
        return template.format(run=self.config.name, dataset=dataset, model=model, **fields)

    def shards(self, dataset: str, model: str, source: str, seed: int) -> list[str]:
        """The shard files of one surrogate set: as many as the config says, or as there are groups of batches."""
        count = min(self.config.shards, self.synthesis(dataset, model, source, seed).groups)
        return [self.path(SHARD, dataset, model, source=source, seed=seed, shard=i) for i in range(count)]

    def data_files(self, dataset: str, model: str, source: str, seed: int) -> list[str]:
        """A surrogate set and, before it, the files that it is made of: shards, or the set of an augmented one."""
        kind = self.config.sources[source]
        made_of = self.data_files(dataset, model, kind.base, seed) if kind.base else []
        if kind.kind == "synthetic":
            made_of = self.shards(dataset, model, source, seed)
        return [*made_of, self.path(DATA, dataset, model, source=source, seed=seed)]

    # --- tables ------------------------------------------------------------------------------------------------------

    def blocks(self, spec: TableSpec) -> list[tuple[str, tuple[str, ...]]]:
        """(data set, models) of a table: the config's among the paper's, or the config's own as a stand-in."""
        own = [d for d in spec.paper.datasets if d in self.config.datasets]
        if own:
            return [(d, tuple(m for m in self.config.datasets[d].models if m in spec.paper.models)) for d in own]
        first = self.grid(spec).models == "first"
        return [(d, c.models[:1] if first else c.models) for d, c in self.config.datasets.items()]

    def stand_in(self, spec: TableSpec) -> bool:
        """Whether the config's own data sets take the place of the paper's, of which it has none."""
        return not any(d in self.config.datasets for d in spec.paper.datasets)

    def grid(self, spec: TableSpec) -> GridSpec:
        """The part of the config's grid that a table takes: all of it where it has the paper's data sets."""
        if not self.stand_in(spec):
            return GridSpec()
        return spec.grid.full if self.config.grid == "full" else spec.grid.demo

    def seeds(self, spec: TableSpec, row: RowSpec) -> tuple[int, ...]:
        """The seeds that a table has for a row."""
        return self.config.seeds[:1] if "first" in (row.seeds, self.grid(spec).seeds) else self.config.seeds

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
        other = "paper" if self.stand_in(spec) else "stand-in"
        fitting = [row for row in spec.rows if row.only != other]
        if not chosen or not chosen <= names[spec.key]:
            return fitting
        known = {row.method for row in fitting}  # a method of other data has its row if it is named, and no other
        named = [row for row in spec.rows if row.method.lower() in chosen]
        return [row for row in named if row.only != other or row.method not in known]

    def table_threats(self, spec: TableSpec, dataset: str) -> list[str]:
        """Threat models that a table has for a data set: its own, or those that the table states."""
        if spec.threats is None:
            return [self.config.datasets[dataset].threat]
        papers = dataset in spec.paper.datasets or self.config.grid == "full"
        return list(spec.threats.full if papers else spec.threats.demo)

    def sweeps(self, spec: TableSpec) -> list[dict[str, Any]]:
        """The combinations of swept options of a table; one empty combination where nothing is swept."""
        values = [getattr(sweep, self.config.grid) for sweep in spec.sweep.values()]
        return [dict(zip(spec.sweep, combination, strict=True)) for combination in product(*values)]

    def cells(self, table: str) -> list[Cell]:
        """The cells of one table in the order of its layout."""
        if table not in self.tables:
            raise InputError(f"{self.config.tables}: no {table!r}; tables are {', '.join(self.tables)}")
        spec = self.tables[table]
        if not spec.metrics:
            return []
        rows = self.rows(spec)
        for row, kind in product(rows, ("recipe", "source")):
            name, known = getattr(row, kind), getattr(self.config, f"{kind}s")
            if name != NONE and name not in known:
                raise InputError(
                    f"{table}: its row {row.method!r} takes {kind} {name!r}, which the config lacks; "
                    f"add it under {kind}s: (there are {', '.join(known)})"
                )
        for row in rows:
            if row.recipe != NONE and self.cotrained(row.recipe) != (row.source == NONE):
                why = (
                    "trains a generator of its own: its source is none"
                    if self.cotrained(row.recipe)
                    else (f"needs training data: its source is one of {', '.join(self.config.sources)}")
                )
                raise InputError(
                    f"{table}: its row {row.method!r} has source {row.source!r}, but recipe {row.recipe!r} {why}"
                )
        found = []
        for dataset, models in self.blocks(spec):
            cut = self.config.grid == "demo" and self.stand_in(spec)
            threats = self.table_threats(spec, dataset)
            for threat, row, overrides in product(threats, rows, self.sweeps(spec)):
                for model in models[:1] if cut and row.models == "first" else models:
                    recipe = self._shared_recipe(dataset, model, row, overrides)
                    for metric, seed in product(spec.metrics, self.seeds(spec, row)):
                        if registry.metric(metric).evidence == "diversity" and row.source == NONE:
                            continue  # there are no training images
                        found.append(self._cell(table, dataset, model, row, recipe, overrides, metric, seed, threat))
        if not found:
            raise InputError(f"{table}: the config's data sets and models have no cell in it; add one of {spec.paper}")
        return found

    @cached_property
    def work(self) -> list[Work]:
        """What the methods of table 4 make, in its order; InputError where the config has no cell in it."""
        self.cells("table4")
        spec, found = self.tables["table4"], []
        for (dataset, models), row in product(self.blocks(spec), self.rows(spec)):
            for model, seed in product(models, self.seeds(spec, row)):
                source, recipe = row.source, row.recipe
                data = [] if source == NONE else self.data_files(dataset, model, source, seed)
                student = self.path(STUDENT, dataset, model, source=source, recipe=recipe, seed=seed)
                students = () if recipe == NONE else (student,)
                found.append(Work(dataset, model, row.method, source, recipe, seed, tuple(data), students))
        return found

    @cached_property
    def own_tables(self) -> list[str]:
        """The tables that this config has cells in."""
        return [table for table, spec in self.tables.items() if any(models for _, models in self.blocks(spec))]

    def _shared_recipe(self, dataset: str, model: str, row: RowSpec, overrides: dict[str, Any]) -> str:
        """The base recipe where the swept values are its own, so that nothing is trained twice."""
        if row.recipe == NONE or not overrides:
            return row.recipe
        swept = recipe_name(row.recipe, overrides)
        same = self.training(dataset, model, swept, 0) == self.training(dataset, model, row.recipe, 0)
        return row.recipe if same else swept

    def _cell(
        self,
        table: str,
        dataset: str,
        model: str,
        row: RowSpec,
        recipe: str,
        overrides: dict[str, Any],
        metric: str,
        seed: int,
        threat: str,
    ) -> Cell:
        if registry.metric(metric).evidence == "diversity":
            split = self.diversity(dataset, model).split
            file = self.path(DIVERSITY, dataset, model, source=row.source, seed=seed, split=split)
        else:
            attack = self.tables[table].clean_from if metric == "clean" else metric
            fields = {"recipe": recipe, "protocol": self.config.autoattack if attack == "autoattack" else attack}
            fields |= {"threat": threat_name(threat)}
            file = self.path(LEDGER, dataset, model, source=row.source, seed=seed, **fields)
        return Cell(
            table=table,
            dataset=dataset,
            model=model,
            method=row.method,
            variant=variant(overrides),
            defence=NONE,
            threat=threat,
            metric=metric,
            seed=seed,
            ledger=file,
        )

    # --- a user's own model ------------------------------------------------------------------------------------------

    def hardened(self, name: str) -> HardenConfig:
        """The entry of one model under ``harden:``."""
        if name not in self.config.harden:
            raise InputError(f"harden: no entry {name!r}; there are {', '.join(self.config.harden) or 'none'}")
        return self.config.harden[name]

    def harden_cells(self, name: str) -> list[Cell]:
        """The figures of one hardened model: Undefended and Hardened by every protocol of its evaluation."""
        entry = self.hardened(name)
        if entry.evaluation is None:
            return []
        rows = (
            RowSpec(method="Undefended", source=NONE, recipe=NONE),
            RowSpec(method="Hardened", source=entry.source, recipe=entry.recipe),
        )
        found = []
        protocols = entry.evaluation.protocols
        metrics = {"clean": protocols[-1]}  # every ledger holds the clean predictions
        metrics |= {"autoattack" if protocol.startswith("aa-") else protocol: protocol for protocol in protocols}
        for row, (metric, protocol) in product(rows, metrics.items()):
            ledger = self.path(
                LEDGER, HARDEN, name, source=row.source, recipe=row.recipe, seed=self.config.seeds[0], protocol=protocol
            )
            found.append(
                Cell(
                    table=HARDEN,
                    dataset=HARDEN,
                    model=name,
                    method=row.method,
                    variant="",
                    defence=NONE,
                    threat=entry.threat,
                    metric=metric,
                    seed=self.config.seeds[0],
                    ledger=ledger,
                )
            )
        return found


def title(kind: str, name: str) -> str:
    """A data set's or model's name as tables print it."""
    entries: dict[str, Any] = {**registry.DATASETS, **registry.MODELS}
    return entries[name].title if name in entries else name
