"""Options of the stages that make training sets. What one entry alone reads is in the class of that entry."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from dfshield import registry
from dfshield.core.errors import InputError
from dfshield.options.common import (
    AugmentationName,
    CoefficientsName,
    DatasetName,
    GeneratedName,
    ObjectiveName,
    Positive,
    Precision,
    Schedule,
    Share,
    StageOptions,
    Weight,
)


class SynthesizeOptions(StageOptions):
    """Synthesise a training set by optimising pixels against a teacher (Eq 3-6 and 8)."""

    entries = ("objective", registry.OBJECTIVES)

    objective: ObjectiveName = "inversion"
    """what is minimised: the terms of Eq 3-6, or IntraQ's own"""
    images: Positive = 60_000
    """images in the whole training set"""
    batch: Positive = 200
    """images per synthesis batch (the unit of BN statistics and of DSS coefficients)"""
    group: Positive = 1
    """batches optimised in one pass: the unit of seeding, sharding and resuming"""
    iterations: Positive = 2000
    """Adam steps per batch (Q)"""
    lr: Annotated[float, Field(gt=0)] = 0.1
    """Adam learning rate in normalised pixel space"""
    start: Literal["white", "smooth"] = "white"
    """what images start from: white noise (paper), or noise with the spectrum of photographs and channels that agree"""
    labels: Literal["cycle", "random"] = "cycle"
    """cycle: one class per batch in turn; random: a uniform label per image"""
    clamp: Literal["end", "step"] = "end"
    """bring pixels into [0,1] at the end (paper), or after every step: what is optimised is what is stored"""
    storage: Literal["float32", "uint8"] = "float32"
    """number type of the stored images; uint8 rounds to 1/255"""
    precision: Precision = "fp32"
    """arithmetic of the teacher's forward and backward pass; auto: bf16 on hardware that is faster in it"""

    @model_validator(mode="after")
    def _whole_batches(self) -> "SynthesizeOptions":
        if self.images % self.batch:
            raise ValueError(
                f"images ({self.images}) must be a multiple of batch ({self.batch}); "
                f"the nearest is {max(1, round(self.images / self.batch)) * self.batch}"
            )
        return self

    @property
    def full_steps(self) -> float:
        """Steps at full resolution that are as much work as all of them."""
        return self.iterations

    @property
    def groups(self) -> int:
        """Number of groups of batches in the whole set."""
        return -(-self.images // (self.batch * self.group))

    def missed_classes(self, classes: int) -> str:
        """What there is to say of classes, among so many, that get no image; empty if there are none."""
        batches, most = self.images // self.batch, self.images // classes
        if self.labels == "cycle" and batches < classes:
            smaller = f", a batch of at most {most}," if most else ""
            return (
                f"{classes - batches} of {classes} classes get no image: {batches} batches have one class each; "
                f"use labels random{smaller} or {classes * self.batch} images"
            )
        by_chance = round(classes * (1 - 1 / classes) ** self.images) if self.labels == "random" else 0
        if not by_chance:
            return ""
        return f"about {by_chance} of {classes} classes get no image: {self.images} random labels; use more images"


class Inversion(SynthesizeOptions):
    """Model inversion with the terms of Eq 3-5, weighted by coefficients that a batch may draw (Eq 6 and 8)."""

    neutral: ClassVar[dict[str, Any]] = {"coarse": 0.0}

    schedule: Schedule = "constant"
    """learning rate over the steps; cosine ends closer to the BN statistics, if steps are few"""
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
    roll: Annotated[int, Field(ge=0)] = 2
    """largest circular shift in pixels applied at each step"""
    vary: bool = False
    """at each step mirror, turn, scale and move every image at random, for photographs: evidence that survives it"""
    coarse: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """first share of the steps at half the resolution, a quarter of the work each, for images of 64 pixels or more"""
    compile: bool = False
    """generate code for the loop: twice the speed after up to a minute, for long jobs; needs a C++ compiler"""

    @property
    def coarse_steps(self) -> int:
        """Steps at half the resolution."""
        return round(self.coarse * self.iterations)

    @property
    def full_steps(self) -> float:
        return self.iterations - 0.75 * self.coarse_steps


class Intraq(SynthesizeOptions):
    """IntraQ's objective (Zhong et al., CVPR 2022): heterogeneous images of each class."""

    objective: ObjectiveName = "intraq"
    """what is minimised"""
    label_floor: Share = 0.95
    """least probability that a softened label asks for (ε)"""
    near: Annotated[float, Field(ge=0, le=2)] = 0.05
    """least cosine distance from the mean feature of a class (λ_l)"""
    far: Annotated[float, Field(ge=0, le=2)] = 0.8
    """largest cosine distance from the mean feature of a class (λ_u)"""
    crop: Annotated[float, Field(gt=0, le=1)] = 0.5
    """least share of an image that a random crop keeps (η)"""
    patience: Positive = 50
    """steps without progress before the learning rate falls tenfold"""

    @model_validator(mode="after")
    def _near_before_far(self) -> "Intraq":
        if self.near > self.far:
            raise ValueError(f"near ({self.near}) must not be above far ({self.far})")
        return self


class GenerateOptions(StageOptions):
    """Train a generator against a teacher and draw a training set from it."""

    entries = ("method", registry.GENERATED)

    method: GeneratedName = "qimera"
    """what the generator learns from"""
    images: Positive = 60_000
    """images in the training set"""
    batch: Annotated[int, Field(ge=2)] = 200
    """images per mini-batch"""
    epochs: Positive = 400
    """epochs; a stopped run resumes after the last whole one"""
    iterations: Positive = 200
    """mini-batches per epoch"""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Adam learning rate"""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """β1 of Adam"""
    milestones: tuple[Share, ...] = (0.25, 0.5, 0.75)
    """shares of the epochs after which the learning rate falls tenfold"""
    latent: Annotated[int, Field(ge=0)] = 0
    """numbers that an image is made from; 0 for as many as the teacher has penultimate features"""
    width: Annotated[float, Field(gt=0)] = 1.0
    """channels of the generator's layers, as a multiple of the published ones"""

    @property
    def rounds(self) -> int:
        """Epochs that there are."""
        return self.epochs

    def missed_classes(self, classes: int) -> str:
        """What there is to say of classes, among so many, that get no image; empty if none is known to."""
        missed = classes - self.images
        return f"{missed} of {classes} classes get no image: there are {self.images}; use more" if missed > 0 else ""


class Qimera(GenerateOptions):
    """Qimera (Choi et al., NeurIPS 2021): superposed class vectors."""

    embedding: Literal["teacher", "random"] = "teacher"
    """vectors of the classes at the start, the rows of the teacher's last layer or random"""
    mix_probability: Share = 0.4
    """share of the mini-batches whose images are superpositions of classes (p)"""
    mix_classes: Positive = 2
    """classes in a superposition (k)"""
    feature_weight: Weight = 0.1
    """weight of the BN-statistics term"""


class Rdskd(GenerateOptions):
    """RDSKD (Han et al., ICASSP 2021): an unconditional generator; the defaults are its publication's numbers."""

    method: GeneratedName = "rdskd"
    """what the generator learns from"""
    batch: Annotated[int, Field(ge=2)] = 512
    """images per mini-batch"""
    epochs: Positive = 20
    """epochs; a stopped run resumes after the last whole one"""
    iterations: Positive = 120
    """mini-batches per epoch"""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """β1 of Adam"""
    milestones: tuple[Share, ...] = ()
    """shares of the epochs after which the learning rate falls tenfold"""
    latent: Annotated[int, Field(ge=0)] = 1000
    """numbers that an image is made from; 0 for as many as the teacher has penultimate features"""


class Fast(GenerateOptions):
    """FastDFKD (Fang et al., AAAI 2022) without its student: a generator that is adapted to each mini-batch."""

    method: GeneratedName = "fast"
    """what the generator learns from"""
    batch: Annotated[int, Field(ge=2)] = 256
    """images of a round, which is an epoch"""
    epochs: Annotated[int, Field(ge=0)] = 0
    """rounds, of which the last make the set; 0 for as many as that takes and `warmup` before them"""
    iterations: Positive = 5
    """Adam steps of a round on the noise and on a clone of the generator (k)"""
    lr: Annotated[float, Field(gt=0)] = 3e-3
    """Adam learning rate of the clone"""
    latent_lr: Annotated[float, Field(gt=0)] = 0.01
    """Adam learning rate of the noise"""
    milestones: tuple[Share, ...] = ()
    """shares of the rounds after which all learning rates fall tenfold"""
    latent: Annotated[int, Field(ge=0)] = 256
    """numbers that an image is made from; 0 for as many as the teacher has penultimate features"""
    warmup: Annotated[int, Field(ge=0)] = 20
    """first rounds, whose images are not kept; `epochs`, if given, says how many there are"""
    meta: Literal["fomaml", "reptile"] = "fomaml"
    """how the generator learns from a round: by the clone's gradients (FOMAML), or towards the clone's weights"""
    meta_lr: Annotated[float, Field(gt=0)] = 0.015
    """learning rate of fomaml's Adam; published is lr times iterations"""
    meta_rate: Share = 0.5
    """part of the way to the clone's weights that reptile goes; a convention of this project"""
    feature_weight: Weight = 10.0
    """weight of the BN-statistics term"""
    class_weight: Weight = 0.5
    """weight of the cross entropy"""
    least_factor: Share = 0.2
    """each round multiplies both weights by draws from U(least_factor, 1); 1 for the weights themselves"""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """share of earlier rounds in the batch statistics that are compared with the teacher's"""
    flip: bool = False
    """mirror half of the images before the teacher sees them; what is kept is not mirrored"""

    @property
    def making(self) -> int:
        """Rounds that make the images."""
        return -(-self.images // self.batch)

    @property
    def rounds(self) -> int:
        return self.epochs or self.warmup + self.making

    @model_validator(mode="after")
    def _enough_rounds(self) -> "Fast":
        if self.rounds < self.making:
            raise ValueError(
                f"epochs ({self.epochs}) times batch ({self.batch}) is less than images ({self.images}); "
                f"use at least {self.making} epochs, or 0 for as many as it takes"
            )
        return self


class PublicOptions(StageOptions):
    """Take the images of another real data set, with the teacher's answers for labels (not data-free)."""

    dataset: DatasetName = "cifar10"
    """the other data set; its training split is taken"""
    images: Annotated[int, Field(ge=0)] = 0
    """use only so many images, drawn by the seed; 0 for all"""

    def check_dataset(self, dataset: str, channels: int) -> None:
        """Raise InputError for the teacher's own data set, and for a teacher of neither grey nor RGB images."""
        if self.dataset == dataset:
            raise InputError(
                f"the teacher was trained on {dataset}, which is not another data set; name one, or use source real"
            )
        if channels not in (1, 3):
            raise InputError(f"the teacher takes {channels} channels; public images are grey or RGB")

    def check_images(self, images: int) -> None:
        """Raise InputError for more images than the other data set's training split has."""
        if self.images > images:
            raise InputError(f"{self.dataset}: has {images} training images, not {self.images}; ask for fewer")


class AugmentOptions(StageOptions):
    """Derive a training set from another by mixing or masking its images."""

    entries = ("augmentation", registry.AUGMENTATIONS)

    augmentation: AugmentationName = "mixup"
    """augmentation"""
    probability: Share = 1.0
    """share of the images that are augmented"""


class Mixup(AugmentOptions):
    """Mixup (Zhang et al., ICLR 2018)."""

    alpha: Annotated[float, Field(gt=0)] = 1.0
    """the share of an image is drawn from Beta(alpha, alpha)"""


class Cutmix(AugmentOptions):
    """CutMix (Yun et al., ICCV 2019)."""

    augmentation: AugmentationName = "cutmix"
    """augmentation"""
    alpha: Annotated[float, Field(gt=0)] = 1.0
    """the share of an image that stays is drawn from Beta(alpha, alpha)"""


class Cutout(AugmentOptions):
    """Cutout (DeVries and Taylor 2017)."""

    augmentation: AugmentationName = "cutout"
    """augmentation"""
    side: Annotated[float, Field(gt=0, le=1)] = 0.5
    """side of the square as a share of the image's"""
