"""Options of attacks that look for the smallest perturbation of each image."""

from typing import Annotated

from pydantic import Field

from dfshield.options.attacks import AttackName, AttackOptions
from dfshield.options.common import Positive


class DeepFool(AttackOptions):
    """DeepFool (Moosavi-Dezfooli et al. 2016)."""

    attack: AttackName = "deepfool"
    """attack"""
    steps: Positive = 50
    """steps at most"""
    overshoot: Annotated[float, Field(ge=0)] = 0.02
    """share by which the perturbation is lengthened to get over the boundary"""
    candidates: Annotated[int, Field(ge=2)] = 10
    """likeliest classes whose boundaries are looked at, the image's own among them"""


class CarliniWagner(AttackOptions):
    """Carlini and Wagner's attack (2017)."""

    attack: AttackName = "cw"
    """attack"""
    binary_steps: Positive = 9
    """steps of the search of the constant (l2) or of the radius (l∞)"""
    steps: Positive = 200
    """steps of the descent for each constant or radius"""
    lr: Annotated[float, Field(gt=0)] = 0.01
    """learning rate of Adam (l2)"""
    confidence: Annotated[float, Field(ge=0)] = 0.0
    """margin of the logits by which an image has to be misclassified"""


class Fab(AttackOptions):
    """Targeted FAB (Croce and Hein 2020)."""

    attack: AttackName = "fab"
    """attack"""
    steps: Positive = 100
    """steps for each target class"""
    targets: Positive = 9
    """likeliest wrong classes that are aimed at"""
