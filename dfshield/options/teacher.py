"""Options of the teacher."""

from typing import Annotated

from pydantic import Field

from dfshield.options.common import Positive, Share, StageOptions, Weight


class TeacherOptions(StageOptions):
    """Train a teacher on a real training set (or import a trained one)."""

    epochs: Positive = 100
    """passes over the training set"""
    batch: Positive = 128
    """images per mini-batch"""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Adam learning rate"""
    weight_decay: Weight = 0.0
    """Adam weight decay"""
    milestones: tuple[Share, ...] = (0.5, 0.75)
    """shares of the epochs after which the learning rate falls tenfold"""
    augment: bool = False
    """random shifts of up to one pixel in eight"""
