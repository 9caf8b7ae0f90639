"""The options of every stage, typed once.

Defaults, the command line's help, validation and the JSON schema of config files all follow from these classes.
A field's docstring is its help text. Numbers of the paper's text are the defaults; `PROFILES["repo"]` holds what the
released code does instead.
"""

from typing import Any

from dfshield.options.attacks import AttackOptions
from dfshield.options.baselines import CotrainOptions
from dfshield.options.checks import ChecksOptions
from dfshield.options.common import StageOptions
from dfshield.options.defences import DefendOptions
from dfshield.options.defences_smoothing import CertifyOptions
from dfshield.options.detectors import DetectOptions
from dfshield.options.diversity import DiversityOptions
from dfshield.options.landscape import LandscapeOptions
from dfshield.options.sources import AugmentOptions, GenerateOptions, PublicOptions, SynthesizeOptions
from dfshield.options.teacher import TeacherOptions
from dfshield.options.training import TrainOptions

PROFILES: dict[str, dict[str, dict[str, Any]]] = {
    "paper": {},
    "repo": {
        "synthesize": {"batch": 250, "inversion": {"randomise": "class-feature"}},
        "train": {
            "epochs": 200,
            "weight_decay": 1e-4,
            "nesterov": True,
            "l2_step": "eps/5",
            "tie": "all",
            "dfshield": {"temperature": 20.0, "clean_reduction": "mean"},
        },
    },
    "repo-medical": {
        "synthesize": {"labels": "random", "inversion": {"randomise": "class-feature"}},
        "train": {
            "batch": 128,
            "weight_decay": 1e-4,
            "nesterov": True,
            "l2_step": "eps/5",
            "tie": "all",
            "dfshield": {"temperature": 1.0, "clean_reduction": "mean"},
        },
    },
}
"""The method as the paper's text has it (the defaults) and as the released code does it, but for its third forward pass
of every mini-batch, which moves the BN statistics once more. ``repo-medical`` is what a config's profile ``repo`` means
with the medical data sets. A profile has the form of a config's sections: common options, and options of single entries
by their names."""

__all__ = [
    "PROFILES",
    "AttackOptions",
    "AugmentOptions",
    "CertifyOptions",
    "ChecksOptions",
    "CotrainOptions",
    "DefendOptions",
    "DetectOptions",
    "DiversityOptions",
    "GenerateOptions",
    "LandscapeOptions",
    "PublicOptions",
    "StageOptions",
    "SynthesizeOptions",
    "TeacherOptions",
    "TrainOptions",
]
