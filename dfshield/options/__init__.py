"""The options of every stage, typed once.

Defaults, the command line's help, validation and the JSON schema of config files all follow from these classes.
A field's docstring is its help text. Numbers of the paper's text are the defaults; `PROFILES["repo"]` holds what the
released code does instead.
"""

from typing import Any

from dfshield.options.common import Compute, OfMethod
from dfshield.options.cotraining import CotrainingOptions
from dfshield.options.evaluation import PROTOCOLS, AttackOptions, DiversityOptions
from dfshield.options.surrogate import (
    AugmentationOptions,
    GenerationOptions,
    PublicOptions,
    SynthesisOptions,
    TeacherOptions,
)
from dfshield.options.training import TrainingOptions

STAGES: dict[str, type[Compute]] = {
    "teacher": TeacherOptions,
    "synthesis": SynthesisOptions,
    "generation": GenerationOptions,
    "augmentation": AugmentationOptions,
    "public": PublicOptions,
    "diversity": DiversityOptions,
    "training": TrainingOptions,
    "cotraining": CotrainingOptions,
    "attack": AttackOptions,
}

PROFILES: dict[str, dict[str, dict[str, Any]]] = {
    "paper": {},
    "repo": {
        "synthesis": {"batch": 250, "randomise": "class-feature"},
        "training": {
            "epochs": 200,
            "temperature": 20.0,
            "clean_reduction": "mean",
            "weight_decay": 1e-4,
            "nesterov": True,
            "l2_step": "eps/5",
            "tie": "all",
        },
    },
}
"""The method as the paper's text has it (the defaults) and as the released code does it (general data sets), but
for its third forward pass of every mini-batch, which moves the BN statistics once more."""

__all__ = [
    "PROFILES",
    "PROTOCOLS",
    "STAGES",
    "AttackOptions",
    "AugmentationOptions",
    "Compute",
    "CotrainingOptions",
    "DiversityOptions",
    "GenerationOptions",
    "OfMethod",
    "PublicOptions",
    "SynthesisOptions",
    "TeacherOptions",
    "TrainingOptions",
]
