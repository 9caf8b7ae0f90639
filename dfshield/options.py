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
    CotrainingName: TypeAlias = str
    CoefficientsName: TypeAlias = str
    ObjectiveName: TypeAlias = str
    GeneratedName: TypeAlias = str
    AugmentationName: TypeAlias = str
    AttackName: TypeAlias = str
    ModelName: TypeAlias = str
    DatasetName: TypeAlias = str
else:  # the choices are the registries' own
    LossName = Literal[tuple(registry.LOSSES)]
    CotrainingName = Literal[tuple(registry.COTRAINING)]
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

    def defaults(self) -> dict[str, Any]:
        """What every option is where it is not given."""
        return {name: field.default for name, field in type(self).model_fields.items()}


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
    lr_warmup: Share = 0.0
    """share of the epochs in which the learning rate grows linearly to its full value"""
    eps_warmup: Share = 0.0
    """share of the epochs in which ε of the inner maximisation grows linearly to its full value"""
    average: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """decay of an exponential moving average of weights and BN statistics, which is then the result; 0 for none"""
    awp: Share = 0.0
    """size of adversarial weight perturbation, relative to each layer's norm; 0 for none (AT 0.01, TRADES 0.005)"""
    awp_warmup: Annotated[int, Field(ge=0)] = 0
    """epochs before adversarial weight perturbation sets in"""
    lambda1: Weight = 1.0
    """weight of the robust-teacher term of L_DFShield (b in Eq 11)"""
    lambda2: Weight = 1.0
    """weight of the smoothness term of L_DFShield (c in Eq 11)"""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """temperature of the clean term of L_DFShield"""
    clean_reduction: Literal["batchmean", "mean"] = "batchmean"
    """clean term: divided by images (batchmean) or by images times classes (mean, released code)"""
    beta: Weight = 6.0
    """weight of the robust term of TRADES and RST"""
    mart_weight: Weight = 5.0
    """weight of the KL term of MART"""
    ard_alpha: Share = 1.0
    """share of the distillation term of ARD; the rest is cross entropy on clean images"""
    ard_temperature: Annotated[float, Field(gt=0)] = 30.0
    """temperature of ARD"""
    rslad_alpha: FractionText = "5/6"
    """share of the adversarial term of RSLAD"""
    pairing_weight: Weight = 0.5
    """weight of the pairing term of ALP and CLP"""
    alp_pairs: Literal["logits", "probabilities"] = "logits"
    """what ALP pairs"""
    mma_halvings: Positive = 10
    """halvings in the search for the margin of an image (mma)"""
    mmc_norm: Annotated[float, Field(gt=0)] = 10.0
    """norm of the class centres of the max-Mahalanobis centre loss (mmc)"""
    vat_weight: Weight = 1.0
    """weight of the KL term of virtual adversarial training"""
    vat_iterations: Positive = 1
    """power iterations of virtual adversarial training"""
    fgsm_alpha: Share = 0.5
    """share of the clean term of single-step training (fgsm)"""
    fosc_max: Annotated[float, Field(gt=0)] = 0.5
    """convergence (FOSC) at which DART stops an inner maximisation in the first epoch; falls linearly to 0"""
    fosc_share: FractionText = "5/6"
    """share of the epochs after which DART's threshold is 0"""
    gradient_weight: Weight = 1.0
    """weight of the squared input gradient (gradient-penalty)"""
    uat_weight: Weight = 1.0
    """weight of the divergence from the teacher in UAT"""
    inner: Literal["auto", registry.Inner] = "auto"
    """objective of the inner maximisation; auto is the one of the loss's own paper, none takes its random start"""
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
    """arithmetic of the inner maximisation"""
    outer_precision: Precision = "fp32"
    """arithmetic of the student's forward and backward pass; weights and updates are always fp32"""
    compile: bool = False
    """generate code for the loops: faster after up to a minute, for long jobs; needs a C++ compiler"""

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> "TrainingOptions":
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0; set momentum or nesterov to false")
        return self

    @model_validator(mode="after")
    def _perturbs_some_epoch(self) -> "TrainingOptions":
        if self.awp and self.awp_warmup >= self.epochs:
            raise ValueError(
                f"awp_warmup ({self.awp_warmup}) leaves none of the {self.epochs} epochs for awp; "
                f"use awp_warmup <= {self.epochs - 1} or awp 0"
            )
        return self

    @model_validator(mode="after")
    def _inner_problem_fits_the_loss(self) -> "TrainingOptions":
        entry = registry.LOSSES[self.loss]
        if entry.search == "power" and not self.threat.startswith("l2:"):
            raise ValueError(f"loss {self.loss} searches an l2 ball, threat is {self.threat}; give l2:EPS")
        if self.inner != "auto" and (entry.search == "power" or entry.input_gradient):
            raise ValueError(f"inner {self.inner}: loss {self.loss} has no inner maximisation to choose; use auto")
        if self.inner in ("kl", "teacher") and entry.start == "image":
            raise ValueError(
                f"inner {self.inner}: loss {self.loss} starts at the image, where this divergence has no slope; "
                "use auto or ce"
            )
        return self


COTRAINING_DEFAULTS: dict[str, dict[str, Any]] = {
    "dast": {},
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
"""What each method has instead of the defaults of `CotrainingOptions`, which are DaST's: each its publication's."""


class CotrainingOptions(Compute):
    """Train a generator and a student together, without data (section A.4: DaST, DFME, AIT, DFARD).

    Options that are not given are the method's own (`COTRAINING_DEFAULTS`).
    """

    method: CotrainingName = "dast"
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

    @model_validator(mode="before")
    @classmethod
    def _of_method(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return COTRAINING_DEFAULTS.get(str(values.get("method", "dast")), {}) | values

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> "CotrainingOptions":
        if self.nesterov and not self.momentum and self.student_optimiser == "sgd":
            raise ValueError("nesterov needs a momentum above 0; set momentum or nesterov to false")
        return self

    @model_validator(mode="after")
    def _student_is_trained(self) -> "CotrainingOptions":
        if self.generator_epochs >= self.epochs:
            raise ValueError(
                f"generator_epochs ({self.generator_epochs}) must be less than epochs ({self.epochs}), "
                "or the student is never trained"
            )
        return self

    def defaults(self) -> dict[str, Any]:
        """What every option is where it is not given with this method."""
        return super().defaults() | COTRAINING_DEFAULTS[self.method]


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
    precision: Precision = "fp32"
    """arithmetic of crafting where rounding does no harm (PGD and APGD); verdicts are always fp32"""
    reference: bool = False
    """craft as a reference library does, slowly: on the model as it is, every step for every image, no pre-filter"""


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
    "cotraining": CotrainingOptions,
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
