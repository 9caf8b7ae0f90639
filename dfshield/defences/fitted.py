"""Defences with something to fit: what they are fitted on, and what of it they keep."""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from dfshield.defences.defence import Defence, Options


class Fitting(NamedTuple):
    """What a defence may be fitted on: no image of the evaluation set, and a real one only of a real training set."""

    model: nn.Module
    """the classifier that is defended, in eval mode: images (N,C,H,W) in [0,1] to logits (N,classes)"""
    teacher: nn.Module
    """the classifier as it was before hardening, of the same kind; `model` itself where nothing was hardened"""
    images: Tensor
    """of a training set (N,C,H,W), float32 in [0,1], where the networks are; those last that hardening held out"""
    labels: Tensor
    """their classes (N,), int64"""
    classes: int
    threat: str
    """the threat model to fit for, such as ``linf:8/255``"""
    random: torch.Generator
    """of the CPU; all draws of a fit are its own"""


def device_of(model: nn.Module) -> torch.device:
    """Where a network's first parameter is; the CPU for one without."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


class FittedDefence(Defence[Options]):
    """Base of defences that are fitted before they defend. A subclass writes `fit`, and `protect` by `tensors`.

    A fit is made once, by the stage ``defend``, and kept in a file; every attack on the defended model reads it.
    """

    keeps: ClassVar[tuple[str, ...]] = ()
    """Names of the tensors that `fit` gives and `protect` reads; a name that ends in a dot is a prefix."""

    def __init__(self, options: Options, tensors: dict[str, Tensor] | None = None) -> None:
        super().__init__(options)
        self.tensors = tensors or {}

    def state(self, prefix: str) -> dict[str, Tensor]:
        """What was kept under a prefix, a network's state dict, by the names without it."""
        return {name.removeprefix(prefix): value for name, value in self.tensors.items() if name.startswith(prefix)}

    def fit(self, given: Fitting) -> dict[str, Tensor]:
        """What to keep, by name. Raises InputError where the training set does not allow a fit."""
        raise NotImplementedError
