"""What is hardened: a registered model on a data set of the grid, or a user's own model. One look-up for both."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dfshield import registry
from dfshield.core.errors import InputError
from dfshield.core.files import data_dir, data_file
from dfshield.models.bundles import factory_of
from dfshield.planning.config import Config, EvaluationConfig, StageOverrides
from dfshield.planning.paths import HARDEN


@dataclass(frozen=True)
class Subject:
    """One classifier to harden, and what the config says of it."""

    dataset: str
    """Data set of the grid, or ``harden``."""
    model: str
    """Registered model, or the entry's name under ``harden:``."""
    threat: str
    """Threat model such as ``linf:4/255``."""
    input_shape: tuple[int, int, int]
    """(C,H,W)."""
    classes: int
    sections: tuple[StageOverrides, ...]
    """Parts of the config with options for it, the more particular ones last."""
    overrides: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    """Options by vocabulary (``recipes``) and name of the entry."""
    factory: str | None = None
    """A user's own factory; None for a registered model."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    weights: Path | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    evaluation: EvaluationConfig | None = None
    """A user's own evaluation set, if there is one."""

    @property
    def own(self) -> bool:
        """Whether it is a user's own model."""
        return self.dataset == HARDEN

    @property
    def has_teacher_weights(self) -> bool:
        """Whether the teacher is imported, by a user or as published, so that all seeds have the same one."""
        return self.own or self.dataset in registry.MODELS[self.model].pretrained


def subjects_of(config: Config) -> dict[tuple[str, str], Subject]:
    """Every subject of a config by (data set, model), in the config's order."""
    found = {}
    for dataset, grid in config.datasets.items():
        entry = registry.DATASETS[dataset]
        overrides = {"sources": grid.by_source, "recipes": grid.by_recipe, "protocols": grid.by_protocol}
        for model in grid.models:
            sections = (config, grid, *([grid.by_model[model]] if model in grid.by_model else []))
            found[dataset, model] = Subject(
                dataset, model, grid.threat, entry.input_shape, entry.classes, sections, overrides
            )
    for name, own in config.harden.items():
        factory, arguments = own.factory, own.arguments
        if factory is None:
            factory, arguments = factory_of(data_file(own.weights, data_dir(config.data_dir)), own.input_shape)
        found[HARDEN, name] = Subject(
            HARDEN,
            name,
            own.threat,
            own.input_shape,
            own.classes,
            (config, own),
            factory=factory,
            arguments=arguments,
            weights=own.weights,
            mean=own.mean,
            std=own.std,
            evaluation=own.evaluation,
        )
    return found


def look_up(subjects: Mapping[tuple[str, str], Subject], dataset: str, model: str) -> Subject:
    """The subject, or an InputError that names those of the data set."""
    if (dataset, model) not in subjects:
        known = [own for other, own in subjects if other == dataset]
        where = "harden" if dataset == HARDEN else f"datasets.{dataset}"
        raise InputError(f"{where}: no entry {model!r}; there are {', '.join(known) or 'none'}")
    return subjects[dataset, model]
