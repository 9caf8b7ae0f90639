"""What an attack needs besides the attacked model: further classifiers, and images of other classes."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dfshield.core.errors import InputError
from dfshield.core.rng import generator
from dfshield.models.checkpoints import Card, Classifier, load_checkpoint, read_card
from dfshield.options.attacks import GUIDE


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
