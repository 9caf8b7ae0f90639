"""The options of every stage, typed once.

Defaults, the command line's help, validation and the JSON schema of config files all follow from these classes.
A field's docstring is its help text. Numbers of the paper's text are the defaults; `PROFILES["repo"]` holds what the
released code does instead.
"""

from typing import Any

from dfshield.options.attacks import PROTOCOLS, AttackOptions
from dfshield.options.baselines import CotrainOptions
from dfshield.options.common import OfMethod, StageOptions
from dfshield.options.diversity import DiversityOptions
from dfshield.options.sources import AugmentOptions, GenerateOptions, PublicOptions, SynthesizeOptions
from dfshield.options.teacher import TeacherOptions
from dfshield.options.training import TrainOptions

STAGES: dict[str, type[StageOptions]] = {
    "teacher": TeacherOptions,
    "synthesis": SynthesizeOptions,
    "generation": GenerateOptions,
    "augmentation": AugmentOptions,
    "public": PublicOptions,
    "diversity": DiversityOptions,
    "training": TrainOptions,
    "cotraining": CotrainOptions,
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
    "AugmentOptions",
    "CotrainOptions",
    "DiversityOptions",
    "GenerateOptions",
    "OfMethod",
    "PublicOptions",
    "StageOptions",
    "SynthesizeOptions",
    "TeacherOptions",
    "TrainOptions",
]
