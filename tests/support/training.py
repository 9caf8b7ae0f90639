"""Small training runs for tests of the trainer and of what it is made of."""

import numpy as np
from support import tiny

from dfshield.options import TrainOptions
from dfshield.sources.trainset import TrainSet
from dfshield.training.trainer import Trainer

GIVEN = {"device": "cpu", "epochs": 2, "batch": 10, "aggregate": 2, "attack_steps": 2, "holdout": 10}


def quick(**changes) -> TrainOptions:
    """Options of two epochs of tiny mini-batches, of L_DFShield unless a loss is given."""
    return TrainOptions.of(**(GIVEN | changes))


QUICK = quick()


def data(n=60, seed=0) -> TrainSet:
    """A training set of `n` random images."""
    return TrainSet(tiny.images(n, seed=seed), np.arange(n) % tiny.CLASSES, {})


def make(options=QUICK, n=60, teacher=None) -> Trainer:
    """A trainer of a tiny student, or of the `teacher`, on `data`."""
    return Trainer(teacher or tiny.classifier(), data(n), options)


def refine_plainly(gradients, b, tau, reduction="sum", tie="zero", size=None):
    """Eq 9 and 10 entry by entry, in Python numbers."""
    b = size or b
    result = []
    for entries in zip(*gradients, strict=True):
        entries = [float(g) for g in entries]
        signs = sum((g > 0) - (g < 0) for g in entries)
        agreement = signs / b
        agreeing = [g for g in entries if agreement * g > 0]
        kept = sum(entries if signs == 0 and tie == "all" else agreeing)
        passes = abs(signs) >= tau * b
        result.append(kept / (b if reduction == "mean" else 1) if passes else 0.0)
    return result
