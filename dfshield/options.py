"""The options of every stage, typed once.

Defaults, the command line's help, validation and the JSON schema of config files all follow from these classes.
A field's docstring is its help text. Numbers of the paper's text are the defaults; `PROFILES["repo"]` holds what the
released code does instead.
"""

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import Field, model_validator

from dfshield import registry
from dfshield.threat import FractionText, ThreatText
from dfshield.validation import Options

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["fp32", "bf16"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
Features = Literal["teacher", "pixels", "vgg16"]

if TYPE_CHECKING:
    LossName: TypeAlias = str
    CoefficientsName: TypeAlias = str
    ObjectiveName: TypeAlias = str
    GeneratedName: TypeAlias = str
    AugmentationName: TypeAlias = str
    AttackName: TypeAlias = str
    ModelName: TypeAlias = str
    DatasetName: TypeAlias = str
else:  # the choices are the registries' own
    LossName = Literal[tuple(registry.LOSSES)]
    CoefficientsName = Literal[tuple(registry.COEFFICIENTS)]
    ObjectiveName = Literal[tuple(registry.OBJECTIVES)]
    GeneratedName = Literal[tuple(registry.GENERATED)]
    AugmentationName = Literal[tuple(registry.AUGMENTATIONS)]
    AttackName = Literal[tuple(registry.ATTACKS)]
    ModelName = Literal[tuple(registry.MODELS)]
    DatasetName = Literal[tuple(registry.DATASETS)]


class Compute(Options):
    """Where a stage runs."""

    device: Device = "auto"
    """cpu, cuda, or auto: CUDA where there is a device"""
    threads: Positive = 1
    """CPU threads of one job"""
    seed: Annotated[int, Field(ge=0)] = 0
    """random seed; everything random follows from it"""


class TeacherOptions(Compute):
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


class SynthesisOptions(Compute):
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
    """arithmetic of the teacher's forward and backward pass"""
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
    def _whole_batches(self) -> "SynthesisOptions":
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


class GenerationOptions(Compute):
    """Train a generator against a teacher and draw surrogate data from it; the defaults are Qimera's."""

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


class AugmentationOptions(Compute):
    """Derive a training set from a surrogate set by mixing or masking its images."""

    augmentation: AugmentationName = "mixup"
    """augmentation"""
    alpha: Annotated[float, Field(gt=0)] = 1.0
    """Mixup and CutMix: the share of an image is drawn from Beta(alpha, alpha)"""
    side: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Cutout: side of the square as a share of the image's"""
    probability: Share = 1.0
    """share of the images that are augmented"""


class DiversityOptions(Compute):
    """Compare a surrogate set with real images: how much of them it covers."""

    split: Literal["train", "dev", "test"] = "train"
    """part of the real data set"""
    features: Features = "teacher"
    """space of precision, recall, density and coverage; teacher: the input of its last linear layer"""
    neighbours: Positive = 5
    """nearest neighbours that set the radius of an image's ball (k)"""
    bin_features: Features = "pixels"
    """space of the bins of NDB and JSD"""
    bins: Annotated[int, Field(ge=2)] = 100
    """bins of NDB and JSD: k-means clusters of the real images (K)"""
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """significance level at which a bin counts as different"""
    sample: Annotated[int, Field(ge=0)] = 0
    """compare so many randomly drawn images of either set; 0 for all"""
    vgg16: str = ""
    """torchvision's VGG16 weights, for features vgg16; in a config below data_dir if not absolute"""

    @model_validator(mode="after")
    def _vgg16_has_weights(self) -> "DiversityOptions":
        if "vgg16" in (self.features, self.bin_features) and not self.vgg16:
            raise ValueError("features vgg16 need its weights, which are never downloaded: give vgg16, a .pth file")
        return self


class TrainingOptions(Compute):
    """Adversarially fine-tune a copy of the teacher on surrogate data (Eq 7 and 9-11)."""

    loss: LossName = "dfshield"
    """training loss"""
    threat: ThreatText = "linf:8/255"
    """threat model of the inner maximisation, NORM:EPS"""
    epochs: Positive = 100
    """passes over the surrogate data"""
    batch: Positive = 200
    """images per mini-batch"""
    lr: Annotated[float, Field(gt=0)] = 1e-4
    """SGD learning rate"""
    momentum: Share = 0.9
    """SGD momentum"""
    nesterov: bool = False
    """Nesterov momentum"""
    weight_decay: Weight = 0.0
    """SGD weight decay"""
    schedule: Literal["constant", "cosine"] = "constant"
    """learning rate over the epochs"""
    lambda1: Weight = 1.0
    """weight of the robust-teacher term of L_DFShield (b in Eq 11)"""
    lambda2: Weight = 1.0
    """weight of the smoothness term of L_DFShield (c in Eq 11)"""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """temperature of the clean term of L_DFShield"""
    clean_reduction: Literal["batchmean", "mean"] = "batchmean"
    """clean term: divided by images (batchmean) or by images times classes (mean, released code)"""
    beta: Weight = 6.0
    """weight of the robust term of TRADES"""
    inner: Literal["auto", "kl", "ce"] = "auto"
    """objective of the inner maximisation; auto is the one of the loss's own paper"""
    attack_steps: Positive = 10
    """steps of the inner maximisation"""
    l2_step: FractionText | Literal["eps/5"] = "15/255"
    """step of the inner maximisation for l2 threats (l∞ uses ε/4)"""
    aggregate: Positive = 20
    """mini-batches per update (B of GradRefine); 1 is plain SGD"""
    tau: Share = 0.5
    """agreement threshold of GradRefine, inclusive"""
    reduction: Literal["sum", "mean"] = "sum"
    """agreeing gradients are summed (Eq 10) or averaged over B"""
    lr_factor: Literal["1", "B"] = "1"
    """B multiplies the learning rate by B (the paper's text, literally, on top of the sum)"""
    tie: Literal["zero", "all"] = "zero"
    """update where signs tie at τ = 0: none (Eq 10) or the sum of all gradients (released code)"""
    last_group: Literal["full", "actual", "drop"] = "full"
    """last, shorter group of an epoch: threshold by the full B, by its own size, or no update"""
    holdout: Annotated[int, Field(ge=0)] = 200
    """surrogate images kept out of training for the per-epoch metrics; 0 for none"""
    precision: Precision = "fp32"
    """arithmetic of the inner maximisation; weight gradients are always fp32"""

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> "TrainingOptions":
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0; set momentum or nesterov to false")
        return self


class AttackOptions(Compute):
    """Attack a model on a real evaluation set and keep a ledger of every image."""

    attack: AttackName = "autoattack"
    """attack"""
    threat: ThreatText = "linf:8/255"
    """threat model, NORM:EPS"""
    steps: Positive = 10
    """PGD steps"""
    restarts: Positive = 1
    """PGD restarts from fresh random starts"""
    l2_step: FractionText = "15/255"
    """PGD step for l2 threats (l∞ uses ε/4)"""
    targets: Literal["standard", "paper"] = "standard"
    """AutoAttack target classes: standard is at most 9, paper is all C-1"""
    split: Literal["test", "dev", "train"] = "test"
    """part of the data set"""
    limit: Annotated[int, Field(ge=0)] = 0
    """attack only the first so many images; 0 for all"""
    chunk: Positive = 250
    """images attacked together; randomness is keyed by seed, attack and chunk"""


PROTOCOLS: dict[str, dict[str, Any]] = {
    "clean": {"attack": "clean"},
    "fgsm": {"attack": "fgsm"},
    "pgd10": {"attack": "pgd", "steps": 10},
    "pgd50x5": {"attack": "pgd", "steps": 50, "restarts": 5},
    "aa-standard": {"attack": "autoattack", "targets": "standard"},
    "aa-paper": {"attack": "autoattack", "targets": "paper"},
}
"""Evaluation protocols: the names that paths and tables use, and the attack options that each stands for."""
if TYPE_CHECKING:
    ProtocolName: TypeAlias = str
else:
    ProtocolName = Literal[tuple(PROTOCOLS)]

STAGES: dict[str, type[Compute]] = {
    "teacher": TeacherOptions,
    "synthesis": SynthesisOptions,
    "generation": GenerationOptions,
    "augmentation": AugmentationOptions,
    "diversity": DiversityOptions,
    "training": TrainingOptions,
    "attack": AttackOptions,
}

PROFILES: dict[str, dict[str, dict[str, Any]]] = {
    "paper": {},
    "repo": {
        "synthesis": {"batch": 250, "randomise": "class-feature"},
        "training": {
            "temperature": 20.0,
            "clean_reduction": "mean",
            "weight_decay": 1e-4,
            "nesterov": True,
            "l2_step": "eps/5",
            "tie": "all",
        },
    },
}
"""The method as the paper's text has it (the defaults) and as the released code does it (general data sets)."""
