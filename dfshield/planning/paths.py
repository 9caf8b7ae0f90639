"""The path grammar: where every file of a run lies, and what its path says."""

import functools
import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from dfshield.core.threat import threat_name

RESULTS = "results"
HARDEN = "harden"
NONE = "none"

TEACHER = RESULTS + "/{run}/{dataset}/{model}/seed-{seed}/teacher.safetensors"
SOURCE = RESULTS + "/{run}/{dataset}/{model}/{source}/seed-{seed}"
SHARD = SOURCE + "/shard-{shard}.h5"
DATA = SOURCE + "/data.h5"
DIVERSITY = SOURCE + "/diversity@{split}.json"
TRAINED = RESULTS + "/{run}/{dataset}/{model}/{source}/{recipe}/{train_threat}/seed-{seed}"
STUDENT = TRAINED + "/student.safetensors"
METRICS = TRAINED + "/metrics.csv"
IMAGES = TRAINED + "/images.h5"
IMAGES_DIVERSITY = TRAINED + "/diversity@{split}.json"
LEDGER = TRAINED + "/eval/{defence}/{protocol}@{threat}/ledger.h5"
DEFENCE = TRAINED + "/eval/{defence}/defence.safetensors"
CERTIFICATES = TRAINED + "/eval/{defence}/certificates.json"
DETECTION = TRAINED + "/eval/{defence}/detection@{threat}/detection.json"
LANDSCAPE = TRAINED + "/landscape@{threat}.json"
CHECKS = TRAINED + "/eval/{defence}/checks@{threat}/checks.json"
FIGURES = "figures"
FIGURE = RESULTS + "/" + FIGURES + "/{figure}.png"
"""The path grammar; Snakemake's wildcards and these fields are the same names."""


@dataclass(frozen=True)
class Place:
    """Where a file of a run belongs: the fields of the path grammar, as paths have them.

    Training and evaluation have threat models of their own (`train_threat`, `threat`), by their names in paths.
    """

    run: str
    dataset: str
    model: str
    source: str = NONE
    recipe: str = NONE
    train_threat: str = NONE
    seed: int = 0
    shard: int = 0
    defence: str = NONE
    protocol: str = ""
    threat: str = ""
    split: str = ""

    def path(self, template: str) -> str:
        """The path of the grammar that `template` is."""
        return template.format(**vars(self))

    def at(self, **changes: Any) -> "Place":
        """The same place but for some fields."""
        return replace(self, **changes)

    @property
    def training_images(self) -> str:
        """The path of the images that are trained on: of a source, or those that co-training keeps."""
        return self.path(IMAGES if self.source == NONE else DATA)

    @classmethod
    def of(cls, wildcards: dict[str, Any]) -> "Place":
        """The place that Snakemake's wildcards name; other wildcards are left out."""
        known = {field.name for field in fields(cls)}
        numbers = ("seed", "shard")
        values: dict[str, Any] = {k: int(v) if k in numbers else v for k, v in wildcards.items() if k in known}
        return cls(**values)

    @classmethod
    def parse(cls, template: str, path: str) -> "Place | None":
        """The place that a path of the grammar names, by its template; None if it is no such path."""
        match = _pattern(template).fullmatch(path)
        return cls.of(match.groupdict()) if match else None


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/@]+)", re.escape(template)))


def train_name(recipe: str, threat: str) -> str:
    """The `train_threat` of a recipe at a threat model such as ``linf:4/255``; ``none`` where nothing is trained."""
    return NONE if recipe == NONE else threat_name(threat)


def log_of(output: str) -> Path:
    """Log of the job that makes `output`."""
    return Path("logs", *Path(output).with_suffix(".log").parts[1:])


def benchmark_of(output: str) -> Path:
    """Time and memory of the job that makes `output`, as Snakemake measures them, beside its log."""
    return log_of(output).with_suffix(".benchmark.tsv")


def recipe_name(base: str, overrides: dict[str, Any]) -> str:
    """Canonical name of a swept recipe: ``recipe_name("dfshield", {"tau": 0.3})`` is ``dfshield.tau-0.3``."""
    return ".".join([base, *(f"{key}-{_text(value)}" for key, value in overrides.items())])


def _text(value: Any) -> str:
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    return f"{value:g}" if plain else str(value).lower()
