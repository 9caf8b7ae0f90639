"""Every named choice of the program, one module a kind.

An entry says where its code is (``module:function``, imported only when used) and the facts that other parts need
without importing it. The command line's choices, the config schema and the code digests all read these tables.
"""

from dfshield.registry.attacks import ATTACKS, Attack
from dfshield.registry.baselines import BASELINES, Baseline
from dfshield.registry.checks import CHECKS
from dfshield.registry.datasets import DATASETS, MEDMNIST_SPLITS, Dataset
from dfshield.registry.defences import DEFENCES
from dfshield.registry.detectors import DETECTORS
from dfshield.registry.entry import Entry, RealData
from dfshield.registry.losses import LOSSES, SEARCHES, Inner, Loss, Search, Start
from dfshield.registry.metrics import DETECTION_METRICS, DIVERSITY_METRICS, METRICS, Metric, metric, protocol_of
from dfshield.registry.models import MODELS, Model
from dfshield.registry.sources import AUGMENTATIONS, COEFFICIENTS, GENERATED, OBJECTIVES, SOURCES, Source

__all__ = [
    "ATTACKS",
    "AUGMENTATIONS",
    "BASELINES",
    "CHECKS",
    "COEFFICIENTS",
    "DATASETS",
    "DEFENCES",
    "DETECTION_METRICS",
    "DETECTORS",
    "DIVERSITY_METRICS",
    "GENERATED",
    "LOSSES",
    "MEDMNIST_SPLITS",
    "METRICS",
    "MODELS",
    "OBJECTIVES",
    "SEARCHES",
    "SOURCES",
    "Attack",
    "Baseline",
    "Dataset",
    "Entry",
    "Inner",
    "Loss",
    "Metric",
    "Model",
    "RealData",
    "Search",
    "Source",
    "Start",
    "metric",
    "protocol_of",
]
