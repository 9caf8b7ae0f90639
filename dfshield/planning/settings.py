"""The options of every job of a config, the names that its paths may have, and whose teacher has which seed."""

from functools import cached_property
from typing import Any

from dfshield import registry
from dfshield.core.errors import InputError
from dfshield.core.threat import threat_name
from dfshield.options import PROFILES, DefendOptions
from dfshield.options.defences_smoothing import Smoothing
from dfshield.planning.choices import Choice, layer
from dfshield.planning.config import HardenConfig
from dfshield.planning.grid import FIELDS, OF_STAGE, Grid
from dfshield.planning.limits import check_job, images_in
from dfshield.planning.paths import HARDEN, NONE, SHARD, STUDENT, TEACHER, Place
from dfshield.planning.stages import STAGES, options_of
from dfshield.planning.subjects import Subject, look_up, subjects_of
from dfshield.planning.tables import RowSpec, TableSpec

FITTED_ON = "dss"
"""The training set of a fit for a classifier that was trained on none."""


class Settings(Grid):
    """A grid with the options of its jobs."""

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
                threats = [*self.table_threats(spec, dataset), *self.evaluations(spec, dataset), *filter(None, own)]
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
            "figure": list(self.figures),
            "name": list(self.config.harden),
        }

    def place(self, dataset: str, model: str, **fields: Any) -> Place:
        """A place of this run; training has the subject's threat model unless `train_threat` is given."""
        place = Place(self.config.name, dataset, model, **fields)
        if place.recipe != NONE and place.train_threat == NONE:
            return place.at(train_threat=threat_name(self.subject(dataset, model).threat))
        return place

    def teacher(self, place: Place) -> Place:
        """The place of a place's teacher: that of its seed; one for all seeds, at the first, if it comes trained."""
        imported = self.subject(place.dataset, place.model).has_teacher_weights
        return Place(place.run, place.dataset, place.model, seed=self.config.seeds[0] if imported else place.seed)

    def checkpoint(self, place: Place) -> str:
        """The path of the classifier at a place: the teacher itself where nothing was trained."""
        return self.teacher(place).path(TEACHER) if place.recipe == NONE else place.path(STUDENT)

    def seeds(self, spec: TableSpec, row: RowSpec, dataset: str, model: str) -> tuple[int, ...]:
        """The seeds that a table has for a row; of a teacher that comes trained, the first alone."""
        imported = row.source == row.recipe == NONE and self.subject(dataset, model).has_teacher_weights
        first = imported or "first" in (row.seeds, self.grid(spec).seeds)
        return self.config.seeds[:1] if first else self.config.seeds

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
            if stage == "attack":
                self._check_through(made, place)
            self._known_options[key] = made
        return self._known_options[key]

    def _check_through(self, options: Any, place: Place) -> None:
        """InputError for an attack that goes through its defence as the defence does not allow."""
        try:
            options.crafted_through(self.defence(place.defence))
        except InputError as error:
            raise InputError(f"protocols.{place.protocol} behind {place.defence}: {error}") from None

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
        sections = [layer(getattr(section, stage, {}), stage, entry) for section in subject.sections]
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
            return {"threat": self._known_threat(place, place.train_threat)}
        if stage == "attack" and choice:
            threat = choice.threat or known.get(place.threat, subject.threat if not place.threat else "")
            if not threat or (place.threat and threat_name(threat) != place.threat):
                raise InputError(
                    f"{place.dataset}/{place.model}: no threat model {place.threat!r} for {place.protocol}"
                )
            return {"threat": threat} | self._images(subject)
        if stage == "certify":
            noise = self.smoothing(place.defence)
            return {"distribution": noise.distribution, "sigma": noise.sigma} | self._images(subject)
        if stage in ("detect", "landscape"):
            return {"threat": self._known_threat(place, place.threat)} | self._images(subject)
        if stage == "checks":
            return {"threat": self._known_threat(place, place.threat), "split": self.config.split}
        if stage == "diversity":  # one seed for all training sets, so that the bins are the same
            return {"seed": self.config.seeds[0]}
        return {}

    def _images(self, subject: Subject) -> dict[str, Any]:
        """Which images are evaluated on."""
        limited = subject.evaluation is not None and "limit" in subject.evaluation.model_fields_set
        return {"split": self.config.split} | ({"limit": subject.evaluation.limit} if limited else {})  # type: ignore[union-attr]

    def _synthetic_images(self, subject: Subject) -> int:
        """Images that the subject's sections ask a synthesis for."""
        given = {k: v for section in subject.sections for k, v in section.synthesize.items() if k == "images"}
        base = STAGES["synthesize"].options
        assert base is not None
        return int(given.get("images", base.model_fields["images"].default))

    def defence(self, name: str) -> DefendOptions | None:
        """Options of a defence at test time; None for ``none``. Raises InputError for a detector."""
        if name == NONE:
            return None
        choice = self.config.choices["defences"][name]
        if choice.stage != "defend":
            raise InputError(
                f"defences.{name}: is a detector, which nothing is attacked behind; see to its own metrics"
            )
        return DefendOptions.of(**choice.options)

    def fitted(self, name: str) -> bool:
        """Whether a defence of the config, or ``none``, is fitted before it defends; detectors fit themselves."""
        choice = None if name == NONE else self.config.choices["defences"][name]
        return choice is not None and choice.stage == "defend" and registry.DEFENCES[choice.name].fitted

    def smoothing(self, name: str) -> Smoothing:
        """Options of a defence by randomised smoothing; raises InputError for another, which nothing certifies."""
        own = None if name == NONE else self.config.choices["defences"][name]
        if own is None or own.name != "smoothing":
            raise InputError(f"certify: nothing certifies defence {name!r}; take one that is {{defend: smoothing}}")
        found = self.defence(name)
        assert isinstance(found, Smoothing)
        return found

    def fitting(self, place: Place) -> Place:
        """The place of the training set that the defence at `place` is fitted on.

        It is the one that the defence names, else the defended student's own, else `FITTED_ON`. Raises InputError if
        the config has no such set.
        """
        base = self.config.choices["defences"][place.defence].base
        source = base or (place.source if place.source != NONE else FITTED_ON)
        if source not in self.sources:
            raise InputError(
                f"defences.{place.defence}: is fitted on training set {source!r}, which the config lacks; name one of "
                f"{', '.join(self.sources)} by base:"
            )
        return place.at(source=source, protocol="", threat="")

    def fitted_for(self, place: Place) -> str:
        """The threat model that the defence at `place` is fitted for: the one that its student was trained for.

        For a classifier that was not, the data set's or the model's own.
        """
        subject = self.subject(place.dataset, place.model)
        return subject.threat if place.train_threat == NONE else self._known_threat(place, place.train_threat)

    def _known_threat(self, place: Place, name: str) -> str:
        """The threat model of a name in paths; raises InputError for one that the config lacks."""
        known = self.threats[place.dataset, place.model]
        if name not in known:
            raise InputError(f"{place.dataset}/{place.model}: no threat model {name!r} in the config")
        return known[name]

    def shards(self, place: Place) -> list[str]:
        """The shard files of one training set: as many as the config says, or as there are groups of batches."""
        count = min(self.config.shards, self.options("synthesize", place).groups)
        return [place.at(shard=index).path(SHARD) for index in range(count)]
