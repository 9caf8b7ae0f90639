"""Verdicts that cannot be right, told by the rows of a ledger, and evaluation sets that can give none. No PyTorch.

A flag of the images is kept in the ledger, which has none of them; all others are made of its rows when they are read.
"""

import hashlib

import numpy as np

from dfshield import registry
from dfshield.core.threat import parse_threat
from dfshield.evaluation.ledger import Ledger

DOUBTS = {
    "at-majority": "the original model is no better than always answering the commonest class, so its normalisation, "
    "the order of its classes or the scale of the images is probably wrong",
    "classes-missing": "the evaluation set has no image of some classes",
    "images-alike": "most images of the evaluation set are copies of others, or all hardly differ",
    "unbroken": "the attack broke not one image: its gradients may be of no use, or the threat model too small to tell",
}
"""What flags say."""
ALIKE = "images-alike"
FEW = 20
"""Images that are right without attack, fewer of which may all survive one by chance."""
PER_CLASS = 10
"""Images a class has on average from which a class without one is no chance."""
FLAT = 1.5 / 255
"""Difference of the brightest and the darkest pixel of a set below which it shows nothing."""


def doubts(ledger: Ledger) -> list[str]:
    """Flags that follow from a ledger's rows; detail follows a colon."""
    original = ledger.subject.get("recipe") == "none" and ledger.defence == "none"
    flags = ["at-majority"] if original and at_majority(ledger.clean_prediction, ledger.label) else []
    if _labels_miss(ledger.labels):
        flags.append(f"classes-missing:{np.count_nonzero(ledger.labels == 0)} of {ledger.classes}")
    return flags + (["unbroken"] if _unbroken(ledger) else [])


def at_majority(prediction: np.ndarray, label: np.ndarray) -> bool:
    """Whether predictions (N,) are right no more often than the commonest label; False where there is one label."""
    counts = np.bincount(label)
    return bool(np.count_nonzero(counts) > 1 and np.count_nonzero(prediction == label) <= counts.max())


def _labels_miss(counts: np.ndarray) -> bool:
    """Whether the images per class (classes,) lack classes by more than chance: too few images, or sorted ones."""
    classes, images, present = len(counts), counts.sum(), np.count_nonzero(counts)
    expected = classes * (1 - (1 - 1 / classes) ** images)
    return bool(present < classes and (images >= PER_CLASS * classes or present < expected / 2))


def _unbroken(ledger: Ledger) -> bool:
    """Whether an attack that follows gradients broke nothing."""
    attack = registry.ATTACKS.get(str(ledger.options.get("attack")))
    if attack is None or attack.access != "gradients" or len(ledger.components) < 3:
        return False
    return (
        parse_threat(ledger.threat).eps > 0
        and int(np.count_nonzero(ledger.clean_prediction == ledger.label)) >= FEW
        and not (ledger.component > 1).any()
    )


def image_flags(images: np.ndarray) -> list[str]:
    """``images-alike`` for images (N,C,H,W) in [0,1] of which most are copies of others, or that show nothing."""
    kinds = {hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest() for image in images}
    copies = len(images) - len(kinds)
    flat = float(images.max() - images.min()) < FLAT
    return [ALIKE] if len(images) > 1 and (flat or 2 * copies > len(images)) else []
