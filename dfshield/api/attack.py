"""`dfshield.attack`: any classifier under any of the program's attacks, from a program."""

import copy
from collections.abc import Sequence
from typing import Any

from torch import nn

from dfshield.api.images import as_arrays
from dfshield.attacks.base import frozen
from dfshield.core.device import resolve_precision, select_device
from dfshield.core.errors import InputError
from dfshield.evaluation.attack import components, filled, stated
from dfshield.evaluation.doubts import image_flags
from dfshield.evaluation.ledger import Ledger
from dfshield.evaluation.session import Session
from dfshield.models.card import Card
from dfshield.models.checkpoints import hash_tensors
from dfshield.models.classifier import Classifier
from dfshield.models.given import classes_of, scale
from dfshield.models.standins import arranged, settle
from dfshield.planning.stages import options_of


def attack(
    model: nn.Module,
    x: Any,
    y: Any,
    threat: str,
    attack: str = "autoattack",
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    device: str = "auto",
    seed: int = 0,
    **options: Any,
) -> Ledger:
    """Attack `model` on images `x` with classes `y` within `threat`; returns one row an image, and the accuracies.

    `model` takes images (N,C,H,W), normalised by `mean` and `std` of their channels, and returns logits (N,classes);
    without `mean` and `std` it takes pixels in [0,1]. It needs a gradient, no BatchNorm.
    `x` is a tensor (N,C,H,W) or an array (N,H,W,C) or (N,H,W), uint8 or float in [0,1], `y` (N,) its classes. `threat`
    is ``linf:4/255``, ``l2:0.5`` or ``l1:12``. `attack` is a name of ``dfshield attack --help``, `options` are its own,
    such as ``steps=40``. The model itself, in eval mode and fp32, judges what the attack finds.

    Raises `dfshield.InputError`, whose message is one line, for what cannot be attacked.
    """
    from dfshield.data.sets import to_images

    pixels, labels = as_arrays(x, y)
    asked = {"attack": attack, "threat": threat, "device": device, "seed": seed, **options}
    chosen = options_of("attack", asked, "dfshield.attack")
    if pixels.ndim not in (3, 4):
        raise InputError(f"x: has shape {pixels.shape}; give images (N,H,W,C), (N,H,W) or a tensor (N,C,H,W)")
    channels = len(mean) if mean is not None else pixels.shape[3] if pixels.ndim == 4 else 1
    shape = (channels, *pixels.shape[1:3])
    classes = classes_of(model, shape)
    images = to_images(pixels, labels, shape, classes, "x", chosen.limit)
    chosen.check_needs({})
    where = select_device(chosen.device, chosen.threads)
    chosen = resolve_precision(chosen, where)
    network = copy.deepcopy(model).cpu()
    scales = scale(mean, std, channels)
    classifier = Classifier(network, **scales, build=lambda **seed: copy.deepcopy(model).cpu()).to(where).eval()
    settle(classifier, shape)
    arranged(classifier)
    card = Card(
        kind="teacher",
        dataset="x",
        model=type(model).__name__,
        input_shape=shape,
        classes=classes,
        real_data="teacher",
        tensors_sha256=hash_tensors(network.state_dict()),
        mean=tuple(scales["mean"]),
        std=tuple(scales["std"]),
    )
    ensemble = components(chosen, shape, classes)
    with frozen(classifier):
        session = Session(classifier, images.x, images.y, chosen, ensemble, where)
        header = stated(card, images, chosen, where) | {"subject": {}, "protocol": ensemble.protocol or attack}
        return filled(session, header, image_flags(images.x.numpy()))
