"""Options of the methods that train a generator beside the student."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dfshield.core.threat import FractionText, ThreatText
from dfshield.options.common import BaselineName, OfMethod, Positive, Share, Weight


class CotrainOptions(OfMethod):
    """Train a generator and a student together, without data (section A.4: DaST, DFME, AIT, DFARD).

    Options that are not given are the method's own (`by_method`); the defaults of the class are DaST's.
    """

    by_method = {
        "dfme": {
            # 20 million queries of 256 x (1 x 2 + 5) an iteration: 223 epochs of 50 iterations
            "epochs": 223,
            "iterations": 50,
            "batch": 256,
            "student_steps": 5,
            "latent": 256,
            "generator_lr": 1e-4,
            "adam_beta1": 0.9,
            "student_optimiser": "sgd",
            "student_lr": 0.1,
            "weight_decay": 5e-4,
            "milestones": (0.1, 0.3, 0.5),
            "decay": 0.3,
        },
        "ait": {
            "epochs": 400,
            "iterations": 200,
            "batch": 200,
            "generator_epochs": 4,
            "latent": 100,
            "generator_lr": 1e-3,
            "student_optimiser": "sgd",
            "nesterov": True,
            "milestones": (0.25, 0.5, 0.75),
            "batchnorm": "eval",
            "beta": 6.0,  # convention, TRADES' own: not stated
        },
        "dfard": {  # conventions: its numbers are not published
            "epochs": 200,
            "iterations": 200,
            "batch": 256,
            "latent": 100,
            "generator_lr": 1e-3,
            "student_optimiser": "sgd",
            "schedule": "cosine",
        },
    }

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
    kept_images: Annotated[int, Field(ge=0)] = 10_000
    """images of the last generator that are kept, to be looked at and measured; 0 for none"""
    generator_epochs: Annotated[int, Field(ge=0)] = 0
    """first epochs, in which the generator alone is trained"""
    latent: Positive = 128
    """random numbers that an image is made from"""
    generator_width: Annotated[float, Field(gt=0)] = 1.0
    """channels of the generator's layers, as a multiple of the published ones"""
    generator_lr: Annotated[float, Field(gt=0)] = 2e-4
    """Adam learning rate of the generator"""
    branch_lr: Annotated[float, Field(gt=0)] = 1e-4
    """dast: Adam learning rate of the generator's branches"""
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
    alpha: Weight = 0.2
    """dast: weight of the label-control term; it follows the term once that is below it"""
    label_control: Literal["branch", "teacher"] = "branch"
    """dast: class that the term asks for, the branch's (publication) or the teacher's answer (released code)"""
    beta: Weight = 0.1
    """weight in the student's loss: of dast's probability term, of ait's robust term (TRADES)"""
    gradient: Literal["forward-differences", "exact"] = "forward-differences"
    """dfme: how the generator learns of its loss"""
    directions: Positive = 1
    """dfme: random directions per image of the forward differences"""
    difference: Annotated[float, Field(gt=0)] = 1e-3
    """dfme: length of the forward differences"""
    feature_weight: Weight = 0.1
    """ait: weight of the generator's BN-statistics term"""
    temperature: Annotated[float, Field(gt=0)] = 4.0
    """dfard: distillation temperature at the start (convention)"""
    temperature_lr: Weight = 0.1
    """dfard: step of the temperature, which climbs the student's loss between 1 and 20 (convention)"""

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
