"""What a config file says: the grid of data sets, models, sources and recipes, or models to harden.

The options of the stages themselves are in `dfshield.options`; a config file gives them by stage, and for single data
sets, models and recipes.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from dfshield.core.errors import InputError
from dfshield.core.files import read_yaml
from dfshield.core.threat import ThreatText
from dfshield.core.validation import Options, build, check_keys
from dfshield.options import STAGES, AttackOptions, CotrainOptions, GenerateOptions, SynthesizeOptions, TrainOptions
from dfshield.options.attacks import PROTOCOLS, ProtocolName
from dfshield.options.common import AugmentationName, DatasetName, Device, ModelName, Name, Positive

ELSEWHERE = {
    "seed": "seeds:",
    "threat": "threat: of the data set or model, or threats: of a table",
    "split": "split: of the config",
    **dict.fromkeys({key for options in PROTOCOLS.values() for key in options}, "the name of an evaluation's protocol"),
}
"""Options that a config states in a place of their own, which would win in silence."""


def _refuse_misplaced(options: dict[str, Any], stage: str, where: str) -> None:
    fixed = {"attack": ELSEWHERE, "training": ("seed", "threat"), "cotraining": ("seed", "threat")}
    seeded = () if stage in ("teacher", "diversity") else ("seed",)  # which are made once, whatever the seeds
    for key in options.keys() & set(fixed.get(stage, seeded)):
        raise ValueError(f"{where}.{key}: is said elsewhere, by {ELSEWHERE[key]}; take it out here")


SOURCE_OPTIONS: dict[str, type[SynthesizeOptions] | type[GenerateOptions]] = {
    "synthetic": SynthesizeOptions,
    "generator": GenerateOptions,
}
"""What options a source takes that is made out of the teacher, by kind."""


class SourceConfig(Options):
    """One kind of training data."""

    kind: Literal["synthetic", "generator", "augmented", "real", "public"] = "synthetic"
    """synthetic: out of the teacher, pixel by pixel; generator: by a network that the teacher trains; augmented: out of
    another source; real: the real training set (an upper bound); public: another real data set's images"""
    synthesis: dict[str, Any] = {}
    """synthesis options of this source"""
    generation: dict[str, Any] = {}
    """generation options of this source"""
    base: Name | None = None
    """the synthetic source that an augmented one is made of"""
    augmentation: AugmentationName | None = None
    """how an augmented source is made"""
    dataset: DatasetName | None = None
    """the data set of a public source; without it the one that the options of stage public name"""

    @model_validator(mode="after")
    def _kind_has_its_keys(self) -> "SourceConfig":
        needed = {"base", "augmentation"} if self.kind == "augmented" else set[str]()
        optional = {"synthetic": {"synthesis"}, "generator": {"generation"}, "public": {"dataset"}}
        given = {key for key in ("synthesis", "generation", "base", "augmentation", "dataset") if getattr(self, key)}
        for key in sorted(needed - given):
            raise ValueError(f"{key} is missing; a source of kind {self.kind} needs it")
        for key in sorted(given - needed - optional.get(self.kind, set())):
            raise ValueError(f"{key} is not for a source of kind {self.kind}; leave it out")
        return self


class StageOverrides(Options):
    """Options of the stages, by stage; each is checked against the stage's own options."""

    teacher: dict[str, Any] = {}
    """teacher options"""
    synthesis: dict[str, Any] = {}
    """synthesis options"""
    generation: dict[str, Any] = {}
    """generation options"""
    augmentation: dict[str, Any] = {}
    """augmentation options"""
    public: dict[str, Any] = {}
    """options of public sources"""
    diversity: dict[str, Any] = {}
    """options of the diversity metrics"""
    training: dict[str, Any] = {}
    """training options"""
    cotraining: dict[str, Any] = {}
    """options of recipes that name a method"""
    attack: dict[str, Any] = {}
    """attack options"""

    @model_validator(mode="after")
    def _known_options(self) -> "StageOverrides":
        for stage, options in STAGES.items():
            check_keys(getattr(self, stage), options, stage)
            _refuse_misplaced(getattr(self, stage), stage, stage)
        return self


class DatasetConfig(StageOverrides):
    """One data set of the grid: its models, its threat model, options that differ from the config's."""

    models: tuple[ModelName, ...] = Field(min_length=1)
    """models of this data set, smallest first"""
    threat: ThreatText
    """threat model of training and evaluation"""
    by_model: dict[str, StageOverrides] = {}
    """options by model"""
    by_source: dict[str, dict[str, Any]] = {}
    """synthesis options by source, or generation options where a generator makes it"""
    by_recipe: dict[str, dict[str, Any]] = {}
    """training options by recipe, or co-training options where the recipe names a method"""
    by_protocol: dict[str, dict[str, Any]] = {}
    """attack options by evaluation protocol"""


class EvaluationConfig(Options):
    """The evaluation set of a user's own model."""

    file: Path
    """.npz with x (N,H,W,C) or (N,H,W), uint8 or float in [0,1], and y (N,); below data_dir if not absolute"""
    limit: Annotated[int, Field(ge=0)] = 0
    """use only the first so many images; 0 for all"""
    protocols: tuple[ProtocolName, ...] = Field(("pgd10", "aa-standard"), min_length=1)
    """evaluation protocols, one of AutoAttack's at most; each gives clean accuracy, too"""

    @model_validator(mode="after")
    def _one_autoattack(self) -> "EvaluationConfig":
        if len([name for name in self.protocols if PROTOCOLS[name]["attack"] == "autoattack"]) > 1:
            raise ValueError("protocols: aa-standard and aa-paper would share one line of the model card; choose one")
        return self


class HardenConfig(StageOverrides):
    """A user's own model."""

    factory: Annotated[str, Field(pattern=r"^.+:[A-Za-z_]\w*$")]
    """package.module:function or path/to/file.py:function that returns the network, without a normalisation layer"""
    arguments: dict[str, Any] = {}
    """keyword arguments of the factory"""
    weights: Path
    """.safetensors or PyTorch state dict; below data_dir if not absolute"""
    input_shape: tuple[Positive, Positive, Positive]
    """channels, height, width"""
    classes: Annotated[int, Field(ge=2)]
    """number of classes"""
    mean: tuple[float, ...]
    """normalisation mean per channel, for pixels in [0,1]"""
    std: tuple[Annotated[float, Field(gt=0)], ...]
    """normalisation standard deviation per channel"""
    threat: ThreatText
    """threat model to harden against"""
    source: Name = "dss"
    """training data, one of the config's sources"""
    recipe: Name = "dfshield"
    """training recipe, one of the config's recipes"""
    evaluation: EvaluationConfig | None = None
    """real images to measure on, after everything is decided; none: no figures in the model card"""

    @model_validator(mode="after")
    def _channels(self) -> "HardenConfig":
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.input_shape[0]:
                raise ValueError(f"{name} has {len(values)} values but input_shape has {self.input_shape[0]} channels")
        return self


class Config(StageOverrides):
    """A whole config file: the grid of data sets, models, sources and recipes, or models to harden."""

    name: Name
    """name of the run: the folder below results/"""
    profile: Literal["paper", "repo"] = "paper"
    """defaults from the paper's text or from its released code"""
    device: Device = "auto"
    """device of all stages"""
    data_dir: Path | None = None
    """folder of real data and weights; the variable DFSHIELD_DATA wins, without either: ./data"""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((0,), min_length=1)
    """seeds of synthesis and training; tables give mean and spread"""
    shards: Positive = 1
    """parallel jobs of one synthesis"""
    grid: Literal["demo", "full"] = "demo"
    """cells of the tables: cut to demo scale, or the paper's"""
    methods: tuple[str, ...] = ()
    """rows of the tables that compare methods, such as undefended, ours, original; none: all"""
    autoattack: Literal["aa-standard", "aa-paper"] = "aa-standard"
    """protocol of the AutoAttack columns"""
    split: Literal["test", "dev"] = "test"
    """evaluation split: test for tables, dev for choices"""
    datasets: dict[DatasetName, DatasetConfig] = {}
    """the grid: data sets and their models"""
    sources: dict[Name, SourceConfig] = {
        "fixed": SourceConfig(synthesis={"coefficients": "fixed"}),
        "dss": SourceConfig(synthesis={"coefficients": "dss"}),
        "real": SourceConfig(kind="real"),
        "public": SourceConfig(kind="public"),
        # IntraQ's own numbers, but for the batch; images keep their distance from earlier ones of a group's 20 batches
        "intraq": SourceConfig(
            synthesis={"objective": "intraq", "lr": 0.5, "iterations": 1000, "group": 20, "labels": "random"}
        ),
        "qimera": SourceConfig(kind="generator", generation={"method": "qimera"}),
        "rdskd": SourceConfig(kind="generator", generation={"method": "rdskd"}),
        "mixup": SourceConfig(kind="augmented", base="fixed", augmentation="mixup"),
        "cutout": SourceConfig(kind="augmented", base="fixed", augmentation="cutout"),
        "cutmix": SourceConfig(kind="augmented", base="fixed", augmentation="cutmix"),
    }
    """kinds of training data by name"""
    recipes: dict[Name, dict[str, Any]] = {
        "dfshield": {"loss": "dfshield"},
        "dfshield-8": {"loss": "dfshield", "aggregate": 8},
        # docs/plus.md says what each of these brought
        "plus": {
            "loss": "dfshield",
            "translate": True,
            "contrast": 0.3,
            "noise": 0.01,
            "weight_decay": 5e-4,
            "average": 0.99,
        },
        "dfshield-plain": {"loss": "dfshield", "aggregate": 1},
        "trades": {"loss": "trades", "aggregate": 1},
        "std": {"loss": "std", "aggregate": 1},
        "std-soft": {"loss": "std-soft", "aggregate": 1},
        "mart": {"loss": "mart", "aggregate": 1},
        "ard": {"loss": "ard", "aggregate": 1},
        "rslad": {"loss": "rslad", "aggregate": 1},
        "dast": {"method": "dast"},
        "dfme": {"method": "dfme"},
        "ait": {"method": "ait"},
        "dfard": {"method": "dfard"},
    }
    """training options by recipe; one that names a method trains a generator too, and takes co-training options"""
    harden: dict[Name, HardenConfig] = {}
    """your own models"""
    tables: Path = Path("config/tables.yaml")
    """what each table is"""

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        for name, recipe in self.recipes.items():
            check_keys(recipe, recipe_options(recipe), f"recipes.{name}")
            _refuse_misplaced(recipe, "training", f"recipes.{name}")
        for name, source in self.sources.items():
            for stage in ("synthesis", "generation"):
                check_keys(getattr(source, stage), STAGES[stage], f"sources.{name}.{stage}")
                _refuse_misplaced(getattr(source, stage), stage, f"sources.{name}.{stage}")
            if source.base is not None:
                synthetic = [other for other, own in self.sources.items() if own.kind == "synthetic"]
                _among([source.base], synthetic, f"sources.{name}.base")
        for key in ("recipes", "sources"):
            if "none" in getattr(self, key):
                raise ValueError(f"{key}.none: this name stands for the teacher itself; choose another")
        for name, dataset in self.datasets.items():
            _among(dataset.by_model, dataset.models, f"datasets.{name}.by_model")
            kinds = {source: own.kind for source, own in self.sources.items() if own.kind in SOURCE_OPTIONS}
            _among(dataset.by_source, kinds, f"datasets.{name}.by_source")
            for key, options in dataset.by_source.items():
                check_keys(options, SOURCE_OPTIONS[kinds[key]], f"datasets.{name}.by_source.{key}")
                _refuse_misplaced(options, "synthesis", f"datasets.{name}.by_source.{key}")
            _among(dataset.by_recipe, self.recipes, f"datasets.{name}.by_recipe")
            for base, options in dataset.by_recipe.items():
                check_keys(options, recipe_options(self.recipes[base]), f"datasets.{name}.by_recipe.{base}")
                _refuse_misplaced(options, "training", f"datasets.{name}.by_recipe.{base}")
            _among(dataset.by_protocol, PROTOCOLS, f"datasets.{name}.by_protocol")
            for protocol, options in dataset.by_protocol.items():
                check_keys(options, AttackOptions, f"datasets.{name}.by_protocol.{protocol}")
                _refuse_misplaced(options, "attack", f"datasets.{name}.by_protocol.{protocol}")
        for name, harden in self.harden.items():
            _among([harden.source], self.sources, f"harden.{name}.source")
            _among([harden.recipe], self.recipes, f"harden.{name}.recipe")
            if recipe_options(self.recipes[harden.recipe]) is CotrainOptions:
                raise ValueError(
                    f"harden.{name}.recipe: {harden.recipe!r} trains a generator in place of the source's data; such "
                    "recipes are for comparisons, by datasets: or `dfshield cotrain`"
                )
            if self.sources[harden.source].kind in ("real", "public"):
                raise ValueError(f"harden.{name}.source: {harden.source!r} is real data; choose a synthetic source")
        if not self.datasets and not self.harden:
            raise ValueError("there is nothing to do: give datasets: (a grid) or harden: (your own models)")
        return self


def recipe_options(recipe: dict[str, Any]) -> type[TrainOptions] | type[CotrainOptions]:
    """The options that a recipe takes: a recipe that names a method trains a generator and a student together."""
    return CotrainOptions if "method" in recipe else TrainOptions


def _among(values: Any, allowed: Any, where: str) -> None:
    for value in values:
        if value not in allowed:
            raise ValueError(f"{where}: {value!r} is not one of {', '.join(sorted(allowed))}")


def load_config(path: Path) -> Config:
    """Read and check one config file; raises InputError naming file and key."""
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise InputError(f"{path}: a config is a mapping of keys to values, this is {type(values).__name__}")
    return check_config(values, str(path))


def check_config(values: dict[str, Any], where: str = "config") -> Config:
    """Check a config that is already parsed (Snakemake's); raises InputError naming the key."""
    config: Config = build(Config, values, where)
    return config
