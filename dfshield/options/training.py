"""Options of adversarial training on a training set."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from dfshield import registry
from dfshield.core.errors import InputError
from dfshield.core.threat import FractionText, ThreatText
from dfshield.options.common import LossName, Positive, Precision, Schedule, Share, StageOptions, Weight


class TrainOptions(StageOptions):
    """Adversarially fine-tune a copy of the teacher on a training set (Eq 7 and 9-11)."""

    entries = ("loss", registry.LOSSES)
    neutral: ClassVar[dict[str, Any]] = {"sign_filter": True, "search": "auto", "mix": "none", "reestimate": "none"}

    loss: LossName = "dfshield"
    """training loss"""
    threat: ThreatText = "linf:8/255"
    """threat model of the inner maximisation, NORM:EPS"""
    epochs: Positive = 100
    """passes over the training set"""
    data_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """share of the synthetic images that is used, from the first on: what a smaller synthesis would have made"""
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
    schedule: Schedule = "constant"
    """learning rate over the epochs"""
    lr_warmup: Share = 0.0
    """share of the epochs in which the learning rate grows linearly to its full value"""
    eps_warmup: Share = 0.0
    """share of the epochs in which ε of the inner maximisation grows linearly to its full value"""
    flip: bool = False
    """mirror synthetic images left to right at random; for photographs, not for digits"""
    translate: bool = False
    """shift synthetic images at random by up to one pixel in eight, filling black; teacher logits are recomputed"""
    mix: Literal["none", "mixup", "cutmix"] = "none"
    """mix each image with one of its mini-batch, anew at each use; logits and label are the teacher's of the mixture"""
    contrast: Share = 0.0
    """largest relative change of a synthetic image's brightness, drawn at each use; teacher logits are recomputed"""
    noise: Weight = 0.0
    """standard deviation of normal noise on synthetic images, drawn at each use; teacher logits are recomputed"""
    eps_factor: Annotated[float, Field(gt=0)] = 1.0
    """ε of the inner maximisation as a multiple of the threat model's, which the student is meant to withstand"""
    batchnorm: Literal["train", "eval"] = "train"
    """student's BatchNorm layers in its training step: batch statistics, or the teacher's kept as they are"""
    reestimate: Literal["none", "clean", "both"] = "none"
    """BN statistics anew after training, by one pass of the set's images as they are, or of these and perturbed ones"""
    average: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """decay of an exponential moving average of weights and BN statistics, which is then the result; 0 for none"""
    awp: Share = 0.0
    """size of adversarial weight perturbation, relative to each layer's norm; 0 for none (AT 0.01, TRADES 0.005)"""
    awp_warmup: Annotated[int, Field(ge=0)] = 0
    """epochs before adversarial weight perturbation sets in"""
    inner: Literal["auto", registry.Inner] = "auto"
    """objective of the inner maximisation; auto is the one of the loss's own paper, none takes its random start"""
    search: Literal["auto", "pgd", "n-fgsm"] = "auto"
    """how the inner maximisation is solved; auto is the loss's own search, n-fgsm takes one step"""
    attack_steps: Positive = 10
    """steps of the inner maximisation"""
    l2_step: FractionText | Literal["eps/5"] = "15/255"
    """step of the inner maximisation for l2 threats (l∞ uses ε/4)"""
    aggregate: Positive = 20
    """mini-batches per update (B of GradRefine); 1 is plain SGD"""
    tau: Share = 0.5
    """agreement threshold of GradRefine, inclusive"""
    sign_filter: bool = True
    """gradients against the majority of the signs are left out (Eq 10); false: all are added, so τ = 0 masks nothing"""
    reduction: Literal["sum", "mean"] = "sum"
    """agreeing gradients are summed (Eq 10) or averaged over B"""
    lr_factor: Literal["1", "B"] = "1"
    """B multiplies the learning rate by B (the paper's text, literally, on top of the sum)"""
    tie: Literal["zero", "all"] = "zero"
    """update where signs tie at τ = 0: none (Eq 10) or the sum of all gradients (released code)"""
    last_group: Literal["full", "actual", "drop"] = "full"
    """last, shorter group of an epoch: threshold by the full B, by its own size, or no update"""
    holdout: Annotated[int, Field(ge=0)] = 200
    """synthetic images kept out of training for the per-epoch metrics; 0 for none"""
    precision: Precision = "fp32"
    """arithmetic of the inner maximisation; auto: bf16 on hardware that is faster in it"""
    outer_precision: Precision = "fp32"
    """arithmetic of the student's forward and backward pass (auto as above); weights and updates are always fp32"""
    compile: bool = False
    """generate code for the loops: faster after up to a minute, for long jobs; needs a C++ compiler"""

    @property
    def varies(self) -> bool:
        """Whether images change from one use to the next, so that teacher logits are recomputed."""
        return self.flip or self.translate or self.mix != "none" or self.contrast > 0 or self.noise > 0

    @property
    def searched(self) -> str:
        """The search in force, a key of `registry.SEARCHES`."""
        return registry.LOSSES[self.loss].search if self.search == "auto" else self.search

    @property
    def reads_features(self) -> bool:
        """Whether the loss reads features besides logits."""
        return False

    def used_images(self, images: int) -> int:
        """How many of a training set's images are used, held-out ones included."""
        return max(1, round(self.data_share * images))

    def mini_batches(self, images: int) -> int:
        """Mini-batches of an epoch on a training set of so many images; InputError if no update could be made."""
        used = self.used_images(images)
        kept = max(0, used - self.holdout)
        batches = kept // self.batch
        if not batches:
            raise InputError(
                f"holdout {self.holdout} leaves {kept} of {used} images to train on, less than one mini-batch of "
                f"{self.batch}; use a smaller holdout or batch, or more images"
            )
        if batches < self.aggregate:
            raise InputError(
                f"aggregate (B = {self.aggregate}) mini-batches of {self.batch} do not fit in an epoch of {kept} "
                f"images ({batches} mini-batches), so no update could ever be made: use aggregate <= {batches}, "
                f"batch <= {kept // self.aggregate} or more images"
            )
        return batches

    @model_validator(mode="after")
    def _of_its_entry(self) -> "TrainOptions":
        if not isinstance(self, TrainOptions.class_for(self.loss)):
            raise ValueError(f"loss {self.loss} has options of its own; build them by TrainOptions.of")
        return self

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> "TrainOptions":
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0; set momentum or nesterov to false")
        return self

    @model_validator(mode="after")
    def _batch_has_statistics(self) -> "TrainOptions":
        if self.batch == 1 and self.batchnorm == "train":
            raise ValueError("batch 1: a single image has no batch statistics; use batch >= 2 or batchnorm eval")
        return self

    @model_validator(mode="after")
    def _mini_batch_can_be_mixed(self) -> "TrainOptions":
        if self.batch == 1 and self.mix != "none":
            raise ValueError(f"mix {self.mix}: batch 1 has no other image to mix with; use batch >= 2 or mix none")
        return self

    @model_validator(mode="after")
    def _statistics_can_be_estimated(self) -> "TrainOptions":
        if self.reestimate != "none" and self.batchnorm == "eval":
            raise ValueError(
                f"reestimate {self.reestimate}: batchnorm eval keeps the teacher's statistics; "
                "use batchnorm train or reestimate none"
            )
        if self.reestimate == "both" and not registry.LOSSES[self.loss].crafts:
            raise ValueError(f"reestimate both: loss {self.loss} perturbs no images; use reestimate clean")
        return self

    @model_validator(mode="after")
    def _perturbs_some_epoch(self) -> "TrainOptions":
        if self.awp and self.awp_warmup >= self.epochs:
            raise ValueError(
                f"awp_warmup ({self.awp_warmup}) leaves none of the {self.epochs} epochs for awp; "
                f"use awp_warmup <= {self.epochs - 1} or awp 0"
            )
        return self

    @model_validator(mode="after")
    def _inner_problem_fits_the_loss(self) -> "TrainOptions":
        entry = registry.LOSSES[self.loss]
        search = registry.SEARCHES[self.searched]
        if self.search != "auto" and not entry.crafts:
            raise ValueError(f"search {self.search}: loss {self.loss} has no inner maximisation to solve; use auto")
        if self.search != "auto" and entry.search != "pgd":
            raise ValueError(
                f"search {self.search}: loss {self.loss} has a search of its own, {entry.search}; use auto"
            )
        if self.threat.partition(":")[0] not in search.norms:
            balls = " or ".join(search.norms)
            who = f"loss {self.loss}" if self.search == "auto" else f"search {self.search}"
            raise ValueError(f"{who} searches an {balls} ball, threat is {self.threat}; give {balls}:EPS")
        if self.inner != "auto" and not (entry.crafts and search.objective):
            raise ValueError(f"inner {self.inner}: loss {self.loss} has no inner maximisation to choose; use auto")
        if self.inner in ("kl", "teacher") and entry.start == "image":
            raise ValueError(
                f"inner {self.inner}: loss {self.loss} starts at the image, where this divergence has no slope; "
                "use auto or ce"
            )
        return self


class Dfshield(TrainOptions):
    """L_DFShield (Eq 11)."""

    neutral: ClassVar[dict[str, Any]] = TrainOptions.neutral | {"features": 0.0}

    lambda1: Weight = 1.0
    """weight of the robust-teacher term (b in Eq 11)"""
    lambda2: Weight = 1.0
    """weight of the smoothness term (c in Eq 11)"""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """temperature of the clean term"""
    clean_reduction: Literal["batchmean", "mean"] = "batchmean"
    """clean term: divided by images (batchmean) or by images times classes (mean, released code)"""
    features: Weight = 0.0
    """weight of the distance of the student's stage features, clean and perturbed, from the teacher's; 0 for none"""

    @property
    def reads_features(self) -> bool:
        return self.features > 0


class Ikl(TrainOptions):
    """L_DFShield with Improved KL (Cui et al. 2024) in its robust and smoothness terms."""

    loss: LossName = "ikl"
    """training loss"""
    lambda1: Weight = 1.0
    """weight of the robust-teacher term"""
    lambda2: Weight = 1.0
    """weight of the smoothness term"""
    alpha: Weight = 1.0
    """weight of the squares; 1 is their weight in KL"""
    beta: Weight = 1.0
    """weight of the cross entropy; 1 is its weight in KL"""


class Trades(TrainOptions):
    """TRADES (Zhang et al. 2019); also of RST, which trains by it on the teacher's classes."""

    loss: LossName = "trades"
    """training loss"""
    beta: Weight = 6.0
    """weight of the robust term (1/λ)"""


class Mart(TrainOptions):
    """MART (Wang et al. 2020)."""

    loss: LossName = "mart"
    """training loss"""
    weight: Weight = 5.0
    """weight of the KL term (λ)"""


class Ard(TrainOptions):
    """ARD (Goldblum et al. 2020)."""

    loss: LossName = "ard"
    """training loss"""
    alpha: Share = 1.0
    """share of the distillation term; the rest is cross entropy on clean images"""
    temperature: Annotated[float, Field(gt=0)] = 30.0
    """temperature of the distillation term"""


class Rslad(TrainOptions):
    """RSLAD (Zi et al. 2021)."""

    loss: LossName = "rslad"
    """training loss"""
    alpha: FractionText = "5/6"
    """share of the adversarial term"""


class Alp(TrainOptions):
    """Adversarial logit pairing (Kannan et al. 2018)."""

    loss: LossName = "alp"
    """training loss"""
    weight: Weight = 0.5
    """weight of the pairing term"""
    pairs: Literal["logits", "probabilities"] = "logits"
    """what is paired"""


class Mma(TrainOptions):
    """Max-margin adversarial training (Ding et al. 2020)."""

    loss: LossName = "mma"
    """training loss"""
    halvings: Positive = 10
    """halvings in the search for the margin of an image"""


class Mmc(TrainOptions):
    """Max-Mahalanobis centre loss (Pang et al. 2020)."""

    loss: LossName = "mmc"
    """training loss"""
    norm: Annotated[float, Field(gt=0)] = 10.0
    """norm of the class centres"""


class Vat(TrainOptions):
    """Virtual adversarial training (Miyato et al. 2016)."""

    loss: LossName = "vat"
    """training loss"""
    weight: Weight = 1.0
    """weight of the KL term"""
    iterations: Positive = 1
    """power iterations"""


class Fgsm(TrainOptions):
    """Training on single-step images (Goodfellow et al. 2015)."""

    loss: LossName = "fgsm"
    """training loss"""
    alpha: Share = 0.5
    """share of the clean term"""


class Dart(TrainOptions):
    """DART (Wang et al. 2019): inner maximisation to a convergence that grows with the epochs."""

    loss: LossName = "dart"
    """training loss"""
    fosc_max: Annotated[float, Field(gt=0)] = 0.5
    """convergence (FOSC) at which an inner maximisation stops in the first epoch; falls linearly to 0"""
    fosc_share: FractionText = "5/6"
    """share of the epochs after which the threshold is 0"""


class GradientPenalty(TrainOptions):
    """Input-gradient regularisation (Ross and Doshi-Velez 2018)."""

    loss: LossName = "gradient-penalty"
    """training loss"""
    weight: Weight = 1.0
    """weight of the squared input gradient"""


class Distillation(TrainOptions):
    """Defensive distillation (Papernot et al. 2016)."""

    loss: LossName = "distillation"
    """training loss"""
    temperature: Annotated[float, Field(gt=0)] = 20.0
    """temperature of the student in training; published: 1 to 100"""


class Uat(TrainOptions):
    """Unsupervised adversarial training (Alayrac et al. 2019)."""

    loss: LossName = "uat"
    """training loss"""
    weight: Weight = 1.0
    """weight of the divergence from the teacher"""


class Clp(TrainOptions):
    """Clean logit pairing (Kannan et al. 2018, in the form of MART's comparison)."""

    loss: LossName = "clp"
    """training loss"""
    weight: Weight = 0.5
    """weight of the pairing term"""
