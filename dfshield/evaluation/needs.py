"""What an attack needs besides the attacked model: further classifiers, and images of other classes."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dfshield import registry
from dfshield.core.errors import InputError
from dfshield.core.rng import generator
from dfshield.core.threat import parse_threat
from dfshield.models.checkpoints import Card, Classifier, load_checkpoint, read_card
from dfshield.options import AttackOptions

GUIDE = "guide"
"""The need that the evaluation set meets; all others are checkpoints."""


def check_needs(options: AttackOptions, others: Mapping[str, Path]) -> None:
    """Raise InputError for a threat model or further checkpoints `others` that are not what the attack works with."""
    name, entry = options.attack, registry.ATTACKS[options.attack]
    norm = parse_threat(options.threat).norm
    if norm not in entry.norms:
        raise InputError(f"attack {name} works within {', '.join(entry.norms)}, but threat is {options.threat}")
    needed = [need for need in entry.needs if need != GUIDE]
    for need in needed:
        if need not in others:
            raise InputError(f"attack {name} needs a {need}; give --other {need}=CHECKPOINT")
    for other in others:
        if other not in needed:
            raise InputError(f"attack {name} makes no use of another model as its {other}; leave --other {other} out")


def load_other(path: Path, card: Card, device: torch.device, factory: str | None) -> tuple[Classifier, str]:
    """Another classifier on `device`, in eval mode, and the SHA-256 of its tensors.

    It must take the images of the attacked model, whose card is `card`, and tell the same classes. `factory` is the
    user's code that may be run for it, as for the attacked model. Raises InputError.
    """
    other, own = load_checkpoint(path, device, factory if read_card(path).factory else None)
    theirs, ours = (own.input_shape, own.classes), (card.input_shape, card.classes)
    if theirs != ours:
        raise InputError(
            f"{path}: takes images {theirs[0]} of {theirs[1]} classes, the attacked model {ours[0]} of {ours[1]}; "
            "give a model of the same data"
        )
    return other, own.tensors_sha256


def guide_images(x: Tensor, y: Tensor, prediction: np.ndarray, seed: int) -> Tensor:
    """For each image another one whose label and prediction differ from the image's label: (N,C,H,W).

    `x` (N,C,H,W), `y` (N,) and `prediction` (N,) are of the whole evaluation set. The choice follows from `seed`: the
    set is shuffled, and the images of a class take those of the other classes in turn. Raises InputError if a class
    has no such image.
    """
    order = torch.randperm(len(y), generator=generator(seed, GUIDE))
    labels, predicted = y.cpu(), torch.from_numpy(prediction)
    chosen = torch.empty_like(labels)
    for label in labels.unique():
        found = order[(labels[order] != label) & (predicted[order] != label)]
        if not len(found):
            raise InputError(
                f"no image of the evaluation set is of another class than {label} and predicted so; the attack needs "
                "one to imitate, so give more images"
            )
        own = (labels == label).nonzero()[:, 0]
        chosen[own] = found[torch.arange(len(own)) % len(found)]
    return x[chosen.to(x.device)]
