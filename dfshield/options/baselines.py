"""Options of the methods that train a generator beside the student."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dfshield import registry
from dfshield.core.errors import InputError
from dfshield.core.threat import FractionText, ThreatText
from dfshield.options.common import BaselineName, Positive, Share, StageOptions, Weight


class CotrainOptions(StageOptions):
    """Train a generator and a student together, without data (section A.4: DaST, DFME, AIT, DFARD).

    The defaults of the class are DaST's; each method has its own publication's.
    """

    entries = ("method", registry.BASELINES)

    method: BaselineName = "dast"
    """method that trains generator and student"""
    threat: ThreatText = "linf:8/255"
    """threat model of the inner maximisation, NORM:EPS"""
    epochs: Positive = 2000
    """epochs"""
    iterations: Positive = 500
    """generator steps per epoch"""
    batch: Annotated[int, Field(ge=2)] = 500
    """generated images per mini-batch"""
    student_steps: Positive = 1
    """student steps per generator step; a single one takes the generator's images, several take new ones each"""
    kept_images: Positive = 10_000
    """images of the last generator that are kept, to be looked at and measured"""
    generator_epochs: Annotated[int, Field(ge=0)] = 0
    """first epochs, in which the generator alone is trained"""
    latent: Positive = 128
    """random numbers that an image is made from"""
    generator_width: Annotated[float, Field(gt=0)] = 1.0
    """channels of the generator's layers, as a multiple of the published ones"""
    generator_lr: Annotated[float, Field(gt=0)] = 2e-4
    """Adam learning rate of the generator"""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """β1 of Adam, the generator's and the student's"""
    student_start: Literal["teacher", "random"] = "teacher"
    """weights that the student starts from (not stated for dast, dfme and dfard: the teacher's by convention)"""
    student_optimiser: Literal["adam", "sgd"] = "adam"
    """optimiser of the student"""
    student_lr: Annotated[float, Field(gt=0)] = 1e-4
    """learning rate of the student"""
    momentum: Share = 0.9
    """SGD momentum of the student"""
    nesterov: bool = False
    """Nesterov momentum of the student"""
    weight_decay: Weight = 0.0
    """weight decay of the student"""
    schedule: Literal["steps", "cosine"] = "steps"
    """steps: all learning rates fall at the milestones; cosine: the student's falls over the epochs"""
    milestones: tuple[Share, ...] = ()
    """shares of the epochs after which the learning rates fall"""
    decay: Annotated[float, Field(gt=0)] = 0.1
    """factor of the learning rates at each milestone"""
    batchnorm: Literal["train", "eval"] = "train"
    """mode of the student's BatchNorm layers in its own steps; eval keeps the teacher's statistics"""
    inner: Literal["auto", "kl", "ce"] = "auto"
    """objective of the inner maximisation; auto is kl for ait (TRADES) and, by convention, ce for the others"""
    attack_steps: Positive = 10
    """steps of the inner maximisation"""
    l2_step: FractionText | Literal["eps/5"] = "15/255"
    """step of the inner maximisation for l2 threats (l∞ uses ε/4)"""

    def check_classes(self, classes: int) -> None:
        """Raise InputError where the method cannot work for so many classes."""

    @model_validator(mode="after")
    def _of_its_entry(self) -> "CotrainOptions":
        if not isinstance(self, CotrainOptions.class_for(self.method)):
            raise ValueError(f"method {self.method} has options of its own; build them by CotrainOptions.of")
        return self

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> "CotrainOptions":
        if self.nesterov and not self.momentum and self.student_optimiser == "sgd":
            raise ValueError("nesterov needs a momentum above 0; set momentum or nesterov to false")
        return self

    @model_validator(mode="after")
    def _student_is_trained(self) -> "CotrainOptions":
        if self.generator_epochs >= self.epochs:
            raise ValueError(
                f"generator_epochs ({self.generator_epochs}) must be less than epochs ({self.epochs}), "
                "or the student is never trained"
            )
        return self


class Dast(CotrainOptions):
    """DaST (Zhou et al. 2020)."""

    branch_lr: Annotated[float, Field(gt=0)] = 1e-4
    """Adam learning rate of the generator's branches"""
    alpha: Weight = 0.2
    """weight of the label-control term; it follows the term once that is below it"""
    label_control: Literal["branch", "teacher"] = "branch"
    """class that the term asks for, the branch's (publication) or the teacher's answer (released code)"""
    beta: Weight = 0.1
    """weight of the probability term in the student's loss"""

    def check_classes(self, classes: int) -> None:
        """Raise InputError for a mini-batch that the branches, one a class, cannot share equally."""
        if self.batch % classes or self.batch < 2 * classes:
            raise InputError(
                f"batch {self.batch}: dast shares a mini-batch equally among its {classes} branches, with two images "
                f"or more for each; use a multiple of {classes} from {2 * classes} on"
            )


class Dfme(CotrainOptions):
    """DFME (Truong et al. 2021): 20 million queries of 256 x (1 x 2 + 5) an iteration, 223 epochs of 50 iterations."""

    method: BaselineName = "dfme"
    """method that trains generator and student"""
    epochs: Positive = 223
    """epochs"""
    iterations: Positive = 50
    """generator steps per epoch"""
    batch: Annotated[int, Field(ge=2)] = 256
    """generated images per mini-batch"""
    student_steps: Positive = 5
    """student steps per generator step; a single one takes the generator's images, several take new ones each"""
    latent: Positive = 256
    """random numbers that an image is made from"""
    generator_lr: Annotated[float, Field(gt=0)] = 1e-4
    """Adam learning rate of the generator"""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """β1 of Adam, the generator's and the student's"""
    student_optimiser: Literal["adam", "sgd"] = "sgd"
    """optimiser of the student"""
    student_lr: Annotated[float, Field(gt=0)] = 0.1
    """learning rate of the student"""
    weight_decay: Weight = 5e-4
    """weight decay of the student"""
    milestones: tuple[Share, ...] = (0.1, 0.3, 0.5)
    """shares of the epochs after which the learning rates fall"""
    decay: Annotated[float, Field(gt=0)] = 0.3
    """factor of the learning rates at each milestone"""
    gradient: Literal["forward-differences", "exact"] = "forward-differences"
    """how the generator learns of its loss"""
    directions: Positive = 1
    """random directions per image of the forward differences"""
    difference: Annotated[float, Field(gt=0)] = 1e-3
    """length of the forward differences"""


class Ait(CotrainOptions):
    """AIT (Choi et al. 2022), its student trained by TRADES."""

    method: BaselineName = "ait"
    """method that trains generator and student"""
    epochs: Positive = 400
    """epochs"""
    iterations: Positive = 200
    """generator steps per epoch"""
    batch: Annotated[int, Field(ge=2)] = 200
    """generated images per mini-batch"""
    generator_epochs: Annotated[int, Field(ge=0)] = 4
    """first epochs, in which the generator alone is trained"""
    latent: Positive = 100
    """random numbers that an image is made from"""
    generator_lr: Annotated[float, Field(gt=0)] = 1e-3
    """Adam learning rate of the generator"""
    student_optimiser: Literal["adam", "sgd"] = "sgd"
    """optimiser of the student"""
    nesterov: bool = True
    """Nesterov momentum of the student"""
    milestones: tuple[Share, ...] = (0.25, 0.5, 0.75)
    """shares of the epochs after which the learning rates fall"""
    batchnorm: Literal["train", "eval"] = "eval"
    """mode of the student's BatchNorm layers in its own steps; eval keeps the teacher's statistics"""
    feature_weight: Weight = 0.1
    """weight of the generator's BN-statistics term"""
    beta: Weight = 6.0
    """weight of the robust term (convention, TRADES' own: not stated)"""


class Dfard(CotrainOptions):
    """DFARD (Wang et al. 2024) by conventions of our own: its numbers are not published."""

    method: BaselineName = "dfard"
    """method that trains generator and student"""
    epochs: Positive = 200
    """epochs"""
    iterations: Positive = 200
    """generator steps per epoch"""
    batch: Annotated[int, Field(ge=2)] = 256
    """generated images per mini-batch"""
    latent: Positive = 100
    """random numbers that an image is made from"""
    generator_lr: Annotated[float, Field(gt=0)] = 1e-3
    """Adam learning rate of the generator"""
    student_optimiser: Literal["adam", "sgd"] = "sgd"
    """optimiser of the student"""
    schedule: Literal["steps", "cosine"] = "cosine"
    """steps: all learning rates fall at the milestones; cosine: the student's falls over the epochs"""
    temperature: Annotated[float, Field(gt=0)] = 4.0
    """distillation temperature at the start (convention)"""
    temperature_lr: Weight = 0.1
    """step of the temperature, which climbs the student's loss between 1 and 20 (convention)"""
