"""Options of the stages that make training sets."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dfshield.options.common import (
    AugmentationName,
    CoefficientsName,
    DatasetName,
    GeneratedName,
    ObjectiveName,
    OfMethod,
    Positive,
    Precision,
    Schedule,
    Share,
    StageOptions,
    Weight,
)


class SynthesizeOptions(StageOptions):
    """Synthesise surrogate data out of a teacher (Eq 3-6 and 8)."""

    images: Positive = 60_000
    """images in the whole surrogate set"""
    batch: Positive = 200
    """images per synthesis batch (the unit of BN statistics and of DSS coefficients)"""
    group: Positive = 1
    """batches optimised in one pass: the unit of seeding, sharding and resuming"""
    iterations: Positive = 2000
    """Adam steps per batch (Q)"""
    lr: Annotated[float, Field(gt=0)] = 0.1
    """Adam learning rate in normalised pixel space"""
    schedule: Schedule = "constant"
    """learning rate over the steps; cosine ends closer to the BN statistics, if steps are few (IntraQ has its own)"""
    start: Literal["white", "smooth"] = "white"
    """what images start from: white noise (paper), or mostly noise of a quarter of the resolution, for photographs"""
    objective: ObjectiveName = "inversion"
    """what is minimised: the terms of Eq 3-6, or IntraQ's own"""
    coefficients: CoefficientsName = "dss"
    """how the loss coefficients of a batch are drawn: dss is U(0,1) for each term (Eq 8)"""
    alpha_class: Weight = 1.0
    """weight of the class term (Eq 3)"""
    alpha_feature: Weight = 1.0
    """weight of the BN-statistics term (Eq 4)"""
    alpha_prior: Weight = 2.5e-5
    """weight of the total-variation term (Eq 5)"""
    randomise: Literal["all", "class-feature"] = "all"
    """terms that dss randomises: all three (paper) or class and feature only (released code)"""
    shift: Weight = 0.0
    """added to each U(0,1) draw"""
    labels: Literal["cycle", "random"] = "cycle"
    """cycle: one class per batch in turn; random: a uniform label per image"""
    roll: Annotated[int, Field(ge=0)] = 2
    """largest circular shift in pixels applied at each step"""
    clamp: Literal["end", "step"] = "end"
    """bring pixels into [0,1] at the end (paper), or after every step: what is optimised is what is stored"""
    storage: Literal["float32", "uint8"] = "float32"
    """number type of the stored images; uint8 rounds to 1/255"""
    precision: Precision = "fp32"
    """arithmetic of the teacher's forward and backward pass; auto: bf16 on hardware that is faster in it"""
    compile: bool = False
    """generate code for the loop: twice the speed after up to a minute, for long jobs; needs a C++ compiler"""
    intraq_label: Share = 0.95
    """IntraQ: least probability that a softened label asks for (ε)"""
    intraq_near: Annotated[float, Field(ge=0, le=2)] = 0.05
    """IntraQ: least cosine distance from the mean feature of a class (λ_l)"""
    intraq_far: Annotated[float, Field(ge=0, le=2)] = 0.8
    """IntraQ: largest cosine distance from the mean feature of a class (λ_u)"""
    intraq_crop: Annotated[float, Field(gt=0, le=1)] = 0.5
    """IntraQ: least share of an image that a random crop keeps (η)"""
    intraq_patience: Positive = 50
    """IntraQ: steps without progress before the learning rate falls tenfold"""

    @model_validator(mode="after")
    def _whole_batches(self) -> "SynthesizeOptions":
        if self.images % self.batch:
            raise ValueError(
                f"images ({self.images}) must be a multiple of batch ({self.batch}); "
                f"the nearest is {max(1, round(self.images / self.batch)) * self.batch}"
            )
        if self.intraq_near > self.intraq_far:
            raise ValueError(f"intraq_near ({self.intraq_near}) must not be above intraq_far ({self.intraq_far})")
        return self

    @property
    def groups(self) -> int:
        """Number of groups of batches in the whole set."""
        return -(-self.images // (self.batch * self.group))


class GenerateOptions(OfMethod):
    """Train a generator against a teacher and draw surrogate data from it.

    Options that are not given are the method's own (`by_method`); the defaults of the class are Qimera's.
    """

    by_method = {
        "rdskd": {
            "batch": 512,
            "epochs": 20,
            "iterations": 120,
            "adam_beta1": 0.9,
            "milestones": (),
            "latent": 1000,
        }
    }

    method: GeneratedName = "qimera"
    """what the generator learns from"""
    images: Positive = 60_000
    """images in the surrogate set"""
    batch: Annotated[int, Field(ge=2)] = 200
    """images per mini-batch"""
    epochs: Positive = 400
    """passes; a stopped run goes on at the last one"""
    iterations: Positive = 200
    """mini-batches per pass"""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Adam learning rate"""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """β1 of Adam"""
    milestones: tuple[Share, ...] = (0.25, 0.5, 0.75)
    """shares of the passes after which the learning rate falls tenfold"""
    latent: Annotated[int, Field(ge=0)] = 0
    """numbers that an image is made from; 0 for as many as the teacher has penultimate features"""
    width: Annotated[float, Field(gt=0)] = 1.0
    """channels of the generator's layers, as a multiple of the published ones"""
    embedding: Literal["teacher", "random"] = "teacher"
    """Qimera: vectors of the classes at the start, the rows of the teacher's last layer or random"""
    mix_probability: Share = 0.4
    """Qimera: share of the mini-batches whose images are superpositions of classes (p)"""
    mix_classes: Positive = 2
    """Qimera: classes in a superposition (k)"""
    feature_weight: Weight = 0.1
    """Qimera: weight of the BN-statistics term"""


class PublicOptions(StageOptions):
    """Take the images of another real data set, with the teacher's answers for labels (not data-free)."""

    dataset: DatasetName = "cifar10"
    """the other data set; its training split is taken"""
    images: Annotated[int, Field(ge=0)] = 0
    """use only so many images, drawn by the seed; 0 for all"""


class AugmentOptions(StageOptions):
    """Derive a training set from a surrogate set by mixing or masking its images."""

    augmentation: AugmentationName = "mixup"
    """augmentation"""
    alpha: Annotated[float, Field(gt=0)] = 1.0
    """Mixup and CutMix: the share of an image is drawn from Beta(alpha, alpha)"""
    side: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Cutout: side of the square as a share of the image's"""
    probability: Share = 1.0
    """share of the images that are augmented"""
