"""From a config to jobs: their options, the cells of every table, the names that paths may have.

This is the one place that knows which options a job gets. It is light (no torch), because Snakemake reads it at every
start.
"""

from functools import cached_property
from itertools import pairwise, product
from typing import Any

from dfshield import registry
from dfshield.core.errors import InputError
from dfshield.core.threat import threat_name
from dfshield.options import PROFILES, DefendOptions
from dfshield.planning.cells import Cell, variant
from dfshield.planning.choices import Choice, layer
from dfshield.planning.companions import own_surrogate
from dfshield.planning.config import Config, HardenConfig, shipped
from dfshield.planning.grid import FIELDS, OF_STAGE, Grid
from dfshield.planning.inputs import check_files
from dfshield.planning.limits import check_job, images_in
from dfshield.planning.paths import (
    CHECKS,
    DIVERSITY,
    HARDEN,
    IMAGES_DIVERSITY,
    LEDGER,
    NONE,
    SHARD,
    Place,
    recipe_name,
    train_name,
)
from dfshield.planning.stages import STAGES, options_of
from dfshield.planning.subjects import Subject, look_up, subjects_of
from dfshield.planning.tables import RowSpec, TableSpec, load_tables
from dfshield.registry.metrics import metric as metric_entry
from dfshield.registry.metrics import protocol_of


def _key(cell: Cell) -> tuple[str, ...]:
    """What tells the cells of a table apart."""
    fields = (cell.dataset, cell.model, cell.method, cell.variant, cell.defence, cell.threat, cell.metric, cell.seed)
    return tuple(map(str, fields))


class Plan(Grid):
    """Everything that one config asks for."""

    @classmethod
    def of(cls, config: Config) -> "Plan":
        """The plan of a config, with the tables that it names; models to harden alone need none."""
        tables = shipped(config.tables)
        needed = config.datasets or "tables" in config.model_fields_set or tables.is_file()
        return cls(config, load_tables(tables) if needed else {})

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
        """Raise InputError for files that the config names and that cannot be used."""
        for subject in self.subjects.values():
            if subject.own:
                check_files(self.config, subject)

    # --- what there is -----------------------------------------------------------------------------------------------

    @cached_property
    def subjects(self) -> dict[tuple[str, str], Subject]:
        """Every classifier that is hardened, by (data set, model)."""
        return subjects_of(self.config)

    def subject(self, dataset: str, model: str) -> Subject:
        """A classifier of the grid or a user's own; raises InputError for one that is not in the config."""
        return look_up(self.subjects, dataset, model)

    def hardened(self, name: str) -> HardenConfig:
        """The entry of one model under ``harden:``."""
        self.subject(HARDEN, name)
        return self.config.harden[name]

    @property
    def datasets(self) -> list[str]:
        """Names that the path grammar's ``dataset`` may take."""
        return list(dict.fromkeys(dataset for dataset, _ in self.subjects))

    @cached_property
    def threats(self) -> dict[tuple[str, str], dict[str, str]]:
        """Threat models of every (data set, model), by their names in paths: its own, those of tables and protocols."""
        of_protocols = [choice.threat for choice in self.protocols.values() if choice.threat]
        found = {key: [subject.threat, *of_protocols] for key, subject in self.subjects.items()}
        for spec in self.tables.values():
            for dataset, models in self.blocks(spec):
                own = (self.metric_threat(spec, dataset, metric) for metric in spec.by_metric)
                threats = [*self.table_threats(spec, dataset), *filter(None, own)]
                for model in models:
                    found[dataset, model] += threats
        return {key: {threat_name(text): text for text in texts} for key, texts in found.items()}

    @cached_property
    def vocabulary(self) -> dict[str, list[str]]:
        """Every value that each field of the path grammar may take."""
        threats = sorted({name for names in self.threats.values() for name in names})
        return {
            "run": [self.config.name],
            "dataset": self.datasets,
            "model": sorted({model for _, model in self.subjects}),
            "source": [*self.sources, NONE],
            "recipe": [*self.recipes, NONE],
            "train_threat": [*threats, NONE],
            "threat": threats,
            "seed": [str(seed) for seed in self.config.seeds],
            "shard": [str(shard) for shard in range(self.config.shards)],
            "defence": [NONE, *self.config.choices["defences"]],
            "protocol": list(self.protocols),
            "split": sorted({self._options("diversity", self.place(*key)).split for key in self.subjects}),
            "table": list(self.tables),
            "name": list(self.config.harden),
        }

    def place(self, dataset: str, model: str, **fields: Any) -> Place:
        """A place of this run; training has the subject's threat model unless `train_threat` is given."""
        place = Place(self.config.name, dataset, model, **fields)
        if place.recipe != NONE and place.train_threat == NONE:
            return place.at(train_threat=threat_name(self.subject(dataset, model).threat))
        return place

    # --- options -----------------------------------------------------------------------------------------------------

    @cached_property
    def _known_options(self) -> dict[tuple[str, Place], Any]:
        return {}

    def options(self, stage: str, place: Place) -> Any:
        """Options of one job. Raises InputError for options that do not fit, and for names that do not belong together.

        Later layers win: profile, config, data set, model, then the chosen entry's own and the data set's for that
        entry; a user's own model is more particular than an entry.
        """
        key = stage, place.at(shard=0)
        if key not in self._known_options:
            made = self._options(stage, place)
            check_job(stage, made, self.subject(place.dataset, place.model), self._read_images(stage, place))
            self._known_options[key] = made
        return self._known_options[key]

    def _read_images(self, stage: str, place: Place) -> int | None:
        """Images of the training set that a job reads; None where it reads none, or only its file tells."""
        if stage not in ("train", "diversity"):
            return None
        if place.source != NONE:
            return self.images(place)
        if place.recipe != NONE and self.recipe_stage(place.recipe) == "cotrain":
            return int(self.options("cotrain", place).kept_images)
        return None

    def images(self, place: Place) -> int | None:
        """Images of a training set; None where only its file tells."""
        choice = self.sources[place.source]
        if choice.base is not None:
            return self.images(place.at(source=choice.base))
        if choice.stage == "export":
            return images_in(place.dataset, "train")
        options = self.options(choice.stage, place)
        return int(options.images) or images_in(options.dataset, "train")

    def _options(self, stage: str, place: Place) -> Any:
        subject, choice = self.subject(place.dataset, place.model), self._choice(stage, place)
        entry = choice.name if choice else ""
        family = registry.DATASETS[place.dataset].family if place.dataset in registry.DATASETS else "general"
        own_profile = PROFILES.get(f"{self.config.profile}-{family}", PROFILES[self.config.profile])
        profile = layer(own_profile.get(stage, {}), stage, entry)
        sections = [layer(getattr(section, stage), stage, entry) for section in subject.sections]
        own = dict(choice.options) if choice else {}
        vocabulary = OF_STAGE.get(stage, "")
        name = str(getattr(place, FIELDS[vocabulary])) if vocabulary else ""
        base, swept = self.recipes.get(name, (name, {})) if vocabulary == "recipes" else (name, {})
        own |= subject.overrides.get(vocabulary, {}).get(base, {})
        layers = [*sections[:-1], own, sections[-1]] if subject.own else [*sections, own]
        given: dict[str, Any] = {"device": self.config.device, "seed": place.seed}
        if stage == "generate":  # as many images as are synthesised
            given["images"] = self._synthetic_images(subject)
        for values in (profile, *layers, swept, self._fixed(stage, place, subject, choice)):
            given |= values
        return options_of(stage, given, f"{stage} options of {place.dataset}/{place.model}")

    def _choice(self, stage: str, place: Place) -> Choice | None:
        """The entry of a vocabulary that a job is of; InputError if it is of another stage."""
        vocabulary = OF_STAGE.get(stage)
        if vocabulary is None:
            return None
        name = str(getattr(place, FIELDS[vocabulary]))
        if vocabulary == "recipes":
            name = self.recipes.get(name, (name, {}))[0]
        choice = self.config.choices[vocabulary].get(name)
        if choice is None or choice.stage != stage:
            raise InputError(f"{stage}: {name!r} is none of the config's {vocabulary} of this stage")
        return choice

    def _fixed(self, stage: str, place: Place, subject: Subject, choice: Choice | None) -> dict[str, Any]:
        """Options that the config states by a key of their own."""
        known = self.threats[subject.dataset, subject.model]
        if stage in ("train", "cotrain"):
            if place.train_threat not in known:
                raise InputError(f"{place.dataset}/{place.model}: no threat model {place.train_threat!r} in the config")
            return {"threat": known[place.train_threat]}
        if stage == "attack" and choice:
            threat = choice.threat or known.get(place.threat, subject.threat if not place.threat else "")
            if not threat or (place.threat and threat_name(threat) != place.threat):
                raise InputError(
                    f"{place.dataset}/{place.model}: no threat model {place.threat!r} for {place.protocol}"
                )
            fixed: dict[str, Any] = {"threat": threat, "split": self.config.split}
            if subject.evaluation and "limit" in subject.evaluation.model_fields_set:
                fixed["limit"] = subject.evaluation.limit
            return fixed
        if stage == "checks":
            if place.threat not in known:
                raise InputError(f"{place.dataset}/{place.model}: no threat model {place.threat!r} in the config")
            return {"threat": known[place.threat], "split": self.config.split}
        if stage == "diversity":  # one seed for all training sets, so that the bins are the same
            return {"seed": self.config.seeds[0]}
        return {}

    def _synthetic_images(self, subject: Subject) -> int:
        """Images that the subject's sections ask a synthesis for."""
        given = {k: v for section in subject.sections for k, v in section.synthesize.items() if k == "images"}
        base = STAGES["synthesize"].options
        assert base is not None
        return int(given.get("images", base.model_fields["images"].default))

    def defence(self, name: str) -> DefendOptions | None:
        """Options of a defence at test time; None for ``none``."""
        if name == NONE:
            return None
        choice = self.config.choices["defences"][name]
        return DefendOptions.of(**choice.options)

    def shards(self, place: Place) -> list[str]:
        """The shard files of one training set: as many as the config says, or as there are groups of batches."""
        count = min(self.config.shards, self.options("synthesize", place).groups)
        return [place.at(shard=index).path(SHARD) for index in range(count)]

    # --- tables ------------------------------------------------------------------------------------------------------

    @cached_property
    def _known_cells(self) -> dict[str, list[Cell]]:
        return {}

    def cells(self, table: str) -> list[Cell]:
        """The cells of one table in the order of its layout."""
        if table not in self._known_cells:
            self._known_cells[table] = self._cells(table)
        return self._known_cells[table]

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
            for threat, row, overrides in product(threats, rows, self.sweeps(spec)):
                for model in models[:1] if cut and row.models == "first" else models:
                    recipe = self._shared_recipe(dataset, model, row, overrides)
                    for metric, seed in product(spec.metrics, self.seeds(spec, row)):
                        place = Place(
                            self.config.name, dataset, model, row.source, recipe, train_name(recipe, threat), seed,
                            defence=row.defence,
                        )  # fmt: skip
                        if self._measures(metric, place):
                            found.append(self._cell(spec, place, row.method, variant(overrides), metric, threat))
        if not found:
            raise InputError(f"{table}: the config's data sets and models have no cell in it; add one of {spec.paper}")
        for one, other in pairwise(sorted(found, key=_key)):
            if _key(one) == _key(other):
                raise InputError(f"{table}: has one cell twice ({', '.join(_key(one))}); take a row or value out")
        return found

    def _measures(self, metric: str, place: Place) -> bool:
        """Whether a metric is of a place: diversity needs training images, a transferred attack another model."""
        if metric_entry(metric).evidence == "diversity":
            return (place.source, place.recipe) != (NONE, NONE)
        return not own_surrogate(self, place.at(protocol=protocol_of(metric)))

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
        if metric_entry(metric).evidence == "diversity":
            split = self.options("diversity", self.place(place.dataset, place.model)).split
            return place.at(split=split).path(IMAGES_DIVERSITY if place.source == NONE else DIVERSITY)
        name = threat_name(self._threat(protocol, threat))
        return place.at(protocol=protocol_of(protocol), threat=name).path(LEDGER)

    def _checks(self, place: Place, metric: str, threat: str) -> str:
        """The robustness checks that mark a figure: of accuracy under attack, at the threat model of its table."""
        if not self.config.checked or metric == "clean" or metric_entry(metric).evidence != "ledger":
            return ""
        return place.at(threat=threat_name(threat)).path(CHECKS)

    def harden_cells(self, name: str) -> list[Cell]:
        """The figures of one hardened model: Undefended and Hardened by every protocol of its evaluation."""
        entry = self.hardened(name)
        if entry.evaluation is None:
            return []
        protocols = entry.evaluation.protocols
        metrics = {"clean": protocols[-1]} | {protocol: protocol for protocol in protocols}
        rows = {"Undefended": (NONE, NONE), "Hardened": (entry.source, entry.recipe)}
        found = []
        for (method, (source, recipe)), (metric, protocol) in product(rows.items(), metrics.items()):
            place = self.place(HARDEN, name, source=source, recipe=recipe, seed=self.config.seeds[0])
            if not self._measures(protocol, place):
                continue
            found.append(
                Cell(
                    table=HARDEN,
                    dataset=HARDEN,
                    model=name,
                    method=method,
                    variant="",
                    defence=NONE,
                    threat=self._threat(metric, entry.threat),
                    metric=metric,
                    seed=place.seed,
                    ledger=self._evidence(place, metric, protocol, entry.threat),
                    checks=self._checks(place, metric, entry.threat),
                )
            )
        return found
