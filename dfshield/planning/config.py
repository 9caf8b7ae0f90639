"""What a config file says: the grid of data sets, models, training sets and recipes, or models to harden.

Options of stages are in `dfshield.options`; a config gives them by stage, data set, model, source, recipe and protocol.
`dfshield.planning.choices` has the form of the vocabularies.
"""

import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

import dfshield
from dfshield.core.errors import InputError
from dfshield.core.files import read_yaml
from dfshield.core.threat import ThreatText, parse_threat
from dfshield.core.validation import Options, build, check_keys
from dfshield.options.common import DatasetName, Device, ModelName, Name, Positive, Seed
from dfshield.planning.choices import (
    VOCABULARIES,
    Choice,
    check_mixture,
    check_section,
    merged,
    read_defaults,
    refuse_misplaced,
)
from dfshield.planning.stages import OLD_NAMES, STAGES, sections
from dfshield.registry import ATTACKS, DIVERSITY_METRICS, metric

PROGRAM = (Path(dfshield.__file__).parent / "shipped/config").resolve().parent
"""Where ``config/`` with the built-in tables and entries lies: the checkout, or the installed package."""
RESERVED = re.compile(r"seed-\d+|eval|none|.*\.(safetensors|h5|csv|json|md|tex|html|log|tsv|yaml)", re.I)
"""Names that the path grammar has for files and folders of its own."""


class StageOverrides(Options):
    """Options of the stages, by stage; a stage's section may have a part for one entry alone, by its name."""

    teacher: dict[str, Any] = {}
    """teacher options"""
    synthesize: dict[str, Any] = {}
    """options of synthesis"""
    generate: dict[str, Any] = {}
    """options of training sets by a generator"""
    augment: dict[str, Any] = {}
    """options of augmented training sets"""
    public: dict[str, Any] = {}
    """options of public training sets"""
    certify: dict[str, Any] = {}
    """options of certificates"""
    detect: dict[str, Any] = {}
    """options of detectors of attacked images"""
    checks: dict[str, Any] = {}
    """options of the robustness checks"""
    diversity: dict[str, Any] = {}
    """options of the diversity metrics"""
    landscape: dict[str, Any] = {}
    """options of loss landscapes"""
    train: dict[str, Any] = {}
    """training options"""
    cotrain: dict[str, Any] = {}
    """options of recipes that train a generator and a student together"""
    attack: dict[str, Any] = {}
    """attack options"""

    @model_validator(mode="before")
    @classmethod
    def _new_names(cls, values: Any) -> Any:
        for old, new in OLD_NAMES.items() if isinstance(values, dict) else ():
            if old in values:
                raise ValueError(f"{old}: is called {new} now, as the stage; rename the section")
        return values

    @model_validator(mode="after")
    def _known_options(self) -> "StageOverrides":
        for stage in sections():
            check_section(getattr(self, stage), stage, stage)
            refuse_misplaced(getattr(self, stage), stage, stage)
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
    """options by training set"""
    by_recipe: dict[str, dict[str, Any]] = {}
    """options by recipe"""
    by_protocol: dict[str, dict[str, Any]] = {}
    """options by evaluation protocol"""

    @model_validator(mode="after")
    def _sensible(self) -> "DatasetConfig":
        _positive(self.threat, "threat")
        _once(self.models, "models")
        return self


class EvaluationConfig(Options):
    """The evaluation set of a user's own model."""

    file: Path
    """.npz with x (N,H,W,C) or (N,H,W), uint8 or float in [0,1], and y (N,); below data_dir if not absolute"""
    limit: Annotated[int, Field(ge=0)] = 0
    """use only the first so many images; 0 for all"""
    protocols: tuple[Name, ...] = Field(("pgd10", "autoattack"), min_length=1)
    """evaluation protocols, of the config's; each gives clean accuracy, too"""


class HardenConfig(StageOverrides):
    """A user's own model."""

    factory: Annotated[str, Field(pattern=r"^.+:[A-Za-z_]\w*$")] | None = None
    """package.module:function or path/to/file.py:function that returns the network; none if its file brings it along"""
    arguments: dict[str, Any] = {}
    """keyword arguments of the factory"""
    weights: Path
    """.safetensors or PyTorch state dict, .onnx, TorchScript, .pt2 or a folder; below data_dir if not absolute"""
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
    """training set, one of the config's sources"""
    recipe: Name = "dfshield"
    """training recipe, one of the config's recipes"""
    keep_accuracy: bool = False
    """add the defence `mixture`, of the hardened and the original model: its file, and its figures beside the others"""
    evaluation: EvaluationConfig | None = None
    """real images to measure on, after everything is decided; none: no figures in the model card"""

    @model_validator(mode="after")
    def _sensible(self) -> "HardenConfig":
        _positive(self.threat, "threat")
        if self.arguments and self.factory is None:
            raise ValueError("arguments: are those of a factory, and none is given; give factory or leave them out")
        _number_as_text(self.arguments, "arguments")
        _once(self.evaluation.protocols if self.evaluation else (), "evaluation.protocols")
        return self

    @model_validator(mode="after")
    def _channels(self) -> "HardenConfig":
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.input_shape[0]:
                raise ValueError(f"{name} has {len(values)} values but input_shape has {self.input_shape[0]} channels")
        return self


class Config(StageOverrides):
    """A whole config file: the grid of data sets, models, training sets and recipes, or models to harden."""

    name: Name
    """name of the run: the folder below results/"""
    profile: Literal["paper", "repo"] = "paper"
    """defaults from the paper's text or from its released code"""
    device: Device = "auto"
    """device of all stages"""
    data_dir: Path | None = None
    """folder of real data and weights; the variable DFSHIELD_DATA wins, without either: ./data"""
    seeds: tuple[Seed, ...] = Field((0,), min_length=1)
    """seeds of teacher, synthesis, training and attacks: a figure of one is all of that seed; tables give mean and
    spread. A network that comes trained, published or your own, is the same for all"""
    shards: Positive = 1
    """parallel jobs of one synthesis"""
    grid: Literal["demo", "full"] = "demo"
    """cells of the tables: cut to demo scale, or the paper's"""
    methods: tuple[str, ...] = ()
    """rows of the tables that compare methods, such as undefended, ours, original; none: all"""
    split: Literal["test", "dev"] = "test"
    """evaluation split: test for tables, dev for choices"""
    checked: tuple[Name, ...] = ("pgd10", "autoattack")
    """protocols whose ledgers the robustness checks read: every model that a table or card of the run attacks by all of
    them undergoes the checks; none: no checks"""
    datasets: dict[DatasetName, DatasetConfig] = {}
    """the grid: data sets and their models"""
    sources: dict[Name, dict[str, Any] | None] = {}
    """training sets by name: {synthesize: inversion, …}, {generate: qimera}, {augment: mixup, base: fixed}, {public:
    cifar10}, {export: train}; merged with config/defaults.yaml, null takes a built-in one out"""
    recipes: dict[Name, dict[str, Any] | None] = {}
    """recipes by name: {train: LOSS, …} or {cotrain: METHOD, …}; merged as sources"""
    protocols: dict[Name, dict[str, Any] | None] = {}
    """evaluation protocols by name: {attack: pgd, steps: 10}, with a threat of its own if need be; merged as sources"""
    defences: dict[Name, dict[str, Any] | None] = {}
    """defences at test time by name: {defend: tte}, {defend: mixture, base: dss} with the training set of a fit;
    detectors of attacked images, {detect: lid}; merged as sources"""
    harden: dict[Name, HardenConfig] = {}
    """your own models"""
    tables: Path = Path("config/tables.yaml")
    """what each table is"""
    figures: Path = Path("config/figures.yaml")
    """what each figure is"""
    defaults: Path = Path("config/defaults.yaml")
    """built-in sources, recipes, protocols and defences"""

    @cached_property
    def choices(self) -> dict[str, dict[str, Choice]]:
        """The entries in force of every vocabulary, by name."""
        built_in = read_defaults(shipped(self.defaults))
        return {name: merged(name, getattr(self, name), built_in[name]) for name in VOCABULARIES}

    @model_validator(mode="before")
    @classmethod
    def _new_keys(cls, values: Any) -> Any:
        if isinstance(values, dict) and "autoattack" in values:
            version = str(values["autoattack"]).removeprefix("aa-")
            entry = f"{{autoattack: {{attack: autoattack, version: {version}}}}}"
            raise ValueError(f"autoattack: is a protocol now; write protocols: {entry}")
        return values

    @model_validator(mode="after")
    def _names(self) -> "Config":
        _once(self.seeds, "seeds")
        _once([name.lower() for name in self.methods], "methods")
        if self.name.lower() in ("harden", "figures") or self.name.lower().endswith((".csv", ".md", ".tex", ".html")):
            raise ValueError(f"name: results/{self.name} is the place of cards, figures or tables; choose another name")
        vocabularies: dict[str, Iterable[str]] = {**self.choices, "harden": self.harden}
        for where, names in vocabularies.items():
            for name in names:
                if RESERVED.fullmatch(name):
                    raise ValueError(f"{where}.{name}: is a name of files or folders of a run; choose another")
            _once([name.lower() for name in names], where, " (upper and lower case are one name on some disks)")
        for name in self.choices["protocols"]:
            if name in DIVERSITY_METRICS:
                raise ValueError(f"protocols.{name}: is the name of a diversity metric; choose another")
            if metric(name).statistic:
                raise ValueError(f"protocols.{name}: is the name of a distance metric; choose another")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        sources, recipes = self.choices["sources"], self.choices["recipes"]
        for name in VOCABULARIES:
            for key, choice in self.choices[name].items():
                if choice.stage in STAGES:
                    refuse_misplaced(dict(choice.options), choice.stage, f"{name}.{key}")
        synthetic = [name for name, choice in sources.items() if choice.stage == "synthesize"]
        for name, choice in sources.items():
            if choice.base is not None:
                _among([choice.base], synthetic, f"sources.{name}.base")
        for name, choice in self.choices["defences"].items():
            if choice.base is not None:
                _among([choice.base], sources, f"defences.{name}.base")
        for name, dataset in self.datasets.items():
            _among(dataset.by_model, dataset.models, f"datasets.{name}.by_model")
            for key, vocabulary in (("by_source", "sources"), ("by_recipe", "recipes"), ("by_protocol", "protocols")):
                self._check_overrides(getattr(dataset, key), vocabulary, f"datasets.{name}.{key}")
        _among(self.checked, self.choices["protocols"], "checked")
        for name, choice in self.choices["protocols"].items():
            if name in self.checked and ATTACKS[choice.name].replaces:
                raise ValueError(f"checked: {name!r} is no attack, so its ledger has nothing to check; take it out")
            source, _, recipe = choice.surrogate.partition("/")
            if recipe:
                _among([source], {*sources, "none"}, f"protocols.{name}.surrogate")
                _among([recipe], recipes, f"protocols.{name}.surrogate")
        for name, harden in self.harden.items():
            _among([harden.source], sources, f"harden.{name}.source")
            _among([harden.recipe], recipes, f"harden.{name}.recipe")
            if recipes[harden.recipe].stage == "cotrain":
                raise ValueError(
                    f"harden.{name}.recipe: {harden.recipe!r} trains a generator in place of a training set; such "
                    "recipes are for comparisons, by datasets: or `dfshield cotrain`"
                )
            if sources[harden.source].stage in ("export", "public"):
                raise ValueError(f"harden.{name}.source: {harden.source!r} is real data; choose a synthetic source")
            if harden.keep_accuracy:
                check_mixture(self.choices, f"harden.{name}.keep_accuracy")
            if harden.evaluation:
                _among(harden.evaluation.protocols, self.choices["protocols"], f"harden.{name}.evaluation.protocols")
        if not self.datasets and not self.harden:
            raise ValueError("there is nothing to do: give datasets: (a grid) or harden: (your own models)")
        return self

    def _check_overrides(self, overrides: dict[str, dict[str, Any]], vocabulary: str, where: str) -> None:
        """Options that a data set has for single entries of a vocabulary."""
        _among(overrides, self.choices[vocabulary], where)
        for name, options in overrides.items():
            choice = self.choices[vocabulary][name]
            if choice.options_class is None:
                raise ValueError(f"{where}.{name}: {choice.stage} has no options; take it out")
            check_keys(options, choice.options_class, f"{where}.{name}")
            refuse_misplaced(options, choice.stage, f"{where}.{name}")


def _among(values: Any, allowed: Any, where: str) -> None:
    for value in values:
        if value not in allowed:
            raise ValueError(f"{where}: {value!r} is not one of {', '.join(sorted(allowed))}")


def _once(values: Iterable[Any], where: str, why: str = "") -> None:
    for value, count in Counter(values).items():
        if count > 1:
            raise ValueError(f"{where}: {value} is given {count} times{why}; take one out")


def _positive(threat: str, where: str) -> None:
    if parse_threat(threat).eps == 0:
        raise ValueError(f"{where}: ε is 0 in {threat}, so nothing is perturbed; write for example linf:8/255")


def _number_as_text(value: Any, where: str) -> None:
    """Refuse texts such as 1e-3 among a factory's arguments, which YAML 1.1 does not read as numbers."""
    if isinstance(value, dict):
        for key, item in value.items():
            _number_as_text(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _number_as_text(item, f"{where}.{index}")
    elif isinstance(value, str) and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+", value):
        raise ValueError(f"{where}: {value} is a text to YAML; write it with a point and a sign, {float(value):.6e}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where}: {value} is no finite number")


def shipped(path: Path) -> Path:
    """`path` itself or, where there is no such file in the current folder, the one that came with the program."""
    own = PROGRAM / path
    return own if not path.is_file() and own.is_file() else path


def located(values: dict[str, Any], where: str, folders: Mapping[str, Path], home: Path | None) -> dict[str, Any]:
    """The config's values with ``tables``, ``figures`` and ``defaults`` where they lie.

    A relative path is sought beside the config file that states it (`folders`, by key), in the working folder, beside
    the workflow (`home`) and beside the package. A file of the working folder keeps its relative path. Raises
    InputError with the places where it was sought, for one that the config states and for the default of ``defaults``.
    """
    found = dict(values)
    for key in ("tables", "figures", "defaults"):
        given = values.get(key)
        if given is not None and not isinstance(given, str | Path):
            continue  # for the check of types
        path = Path(given or Config.model_fields[key].default).expanduser()
        beside = [folders[key]] if given is not None and key in folders else []
        places = (
            [path]
            if path.is_absolute()
            else [folder / path for folder in (*beside, Path.cwd(), *([home] if home else []), PROGRAM)]
        )
        place = next((place for place in places if place.is_file()), None)
        if place is not None:
            below = Path(os.path.relpath(place)) if place.absolute().is_relative_to(Path.cwd()) else place.absolute()
            if below != path or given is not None:
                found[key] = str(below)
        elif given is not None or key == "defaults":
            sought = " or ".join(dict.fromkeys(str(place.absolute()) for place in places))
            raise InputError(f"{where}: {key}: {path}: cannot be read, there is no such file ({sought})")
    return found


def load_config(path: Path) -> Config:
    """Read and check one config file; raises InputError naming file and key."""
    values = _read_config(path)
    return check_config(values, str(path), dict.fromkeys(values, path.parent))


def load_configs(values: dict[str, Any], paths: Sequence[Path], home: Path | None = None) -> Config:
    """Check `values` that Snakemake has merged from config files and its command line; raises InputError.

    The files are read again, because Snakemake's reader loses keys that are given twice. `home` is the folder of the
    Snakefile, beside which the default tables lie.
    """
    folders: dict[str, Path] = {}
    for path in paths:
        if path.exists() and not path.is_file():
            raise InputError(f"{path}: is no regular file, and every job reads the config again; write it to a file")
        folders |= {key: path.absolute().parent for key in _read_config(path)}
    return check_config(values, " + ".join(map(str, paths)) or "config", folders, home)


def _read_config(path: Path) -> dict[str, Any]:
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise InputError(f"{path}: a config is a mapping of keys to values, this is {type(values).__name__}")
    return values


def check_config(
    values: dict[str, Any], where: str = "config", folders: Mapping[str, Path] | None = None, home: Path | None = None
) -> Config:
    """Check a config that is already parsed; raises InputError naming the key. `folders` and `home` as in `located`."""
    return build(Config, located(values, where, folders or {}, home), where)
