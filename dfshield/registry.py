"""Every named choice of the program, in one light module.

An entry says where its code is (``module:function``, imported only when used) and the facts that other parts need
without importing it. The command line's choices, the config schema and the code digests all read these tables, so
adding a loss, an attack, a data set or a model is one function and one entry here.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

RealData = Literal["none", "teacher", "train", "test", "public"]
"""What real data an artefact has seen since the teacher: nothing, the named split, or another data set (``public``);
``teacher`` marks the teacher itself, whose training is outside of the data-free claim."""


@dataclass(frozen=True)
class Entry:
    """A registered choice; ``target`` is ``package.module:function``."""

    target: str

    def load(self) -> Callable[..., Any]:
        """Import and return the function."""
        module, _, name = self.target.partition(":")
        function: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return function


Inner = Literal["kl", "ce", "teacher", "loss", "none"]
"""Objective of the inner maximisation: KL to the student's clean output, cross entropy with the label, KL to the
teacher's clean output, the training loss itself, or none (a random point)."""
Start = Literal["normal", "uniform", "image"]
"""Start of the inner maximisation: 0.001 times a normal draw, uniform in the ball, or the image itself."""
Search = Literal["pgd", "single-step", "power", "nearest", "curriculum", "fosc"]
"""How the inner maximisation is solved: projected gradient ascent; one step of length ε; power iteration for the most
curved direction; ascent and then the nearest misclassified point on the way there; ascent with more steps as training
goes on; ascent that stops at a convergence that is asked for more and more strictly (FOSC)."""


@dataclass(frozen=True)
class Loss(Entry):
    """A training loss (tensors to a scalar) and what its paper pairs it with."""

    inner: Inner = "kl"
    start: Start = "normal"
    search: Search = "pgd"
    labels: Literal["data", "teacher"] = "data"
    """Labels of training and of the inner maximisation: those of the data, or the teacher's class."""
    input_gradient: bool = False
    """The loss takes one more argument, the images that the logits came from, to differentiate by; it has no x̂', so
    nothing is crafted and `adversarial` is `clean`."""
    robust_only: bool = False
    """The loss leaves the clean logits out, so that no gradient goes back through them: for the cost alone."""


@dataclass(frozen=True)
class Cotraining(Entry):
    """A method that trains a generator and a student together, and its inner maximisation.

    ``target`` is a subclass of ``dfshield.cotraining.methods:Method``. Such a method has no training data: it is a
    recipe with source ``none``.
    """

    inner: Literal["kl", "ce"] = "ce"
    """``ce`` is the cross entropy with the teacher's class."""
    start: Literal["normal", "uniform"] = "uniform"
    generator_loss: str = ""
    """What the generator minimises, in the notation of table 2 (ℓ: log-probabilities less their mean)."""
    student_loss: str = ""
    """What the student minimises, in the same notation."""
    generator_passes: int | Callable[[Any], int] = 4
    """For the cost alone: forward passes of an image through teacher and student, a gradient of its pixels as one more,
    in a step of the generator; by the options where it depends on them."""
    student_inputs: int = 1
    """For the cost alone: versions of an image that the student's loss has the student answer (x', or x too)."""


@dataclass(frozen=True)
class Source(Entry):
    """Where training images come from and which real data that touches."""

    real_data: RealData = "none"


@dataclass(frozen=True)
class Attack(Entry):
    """``(model, x, y, threat, options, generator) -> x_adv``, or an ensemble of such."""

    ensemble: bool = False
    """The target is ``(options, input_shape, classes) -> Ensemble`` instead."""


@dataclass(frozen=True)
class Dataset(Entry):
    """A real data set: read by ``dfshield.data`` alone.

    ``target`` is a function ``(name, split, data_dir) -> (images uint8/float NHWC, labels)``.
    """

    title: str = ""
    classes: int = 10
    input_shape: tuple[int, int, int] = (3, 32, 32)
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    files: tuple[str, ...] = ()
    """Names below ``data_dir``; empty where the data come with a package."""
    images: dict[str, int] = field(default_factory=dict)
    """Number of images in each split; empty for MedMNIST, whose package says it."""


@dataclass(frozen=True)
class Model(Entry):
    """A network: ``target`` is a factory ``(input_shape, classes) -> nn.Module`` without a normalisation layer."""

    title: str = ""
    pretrained: dict[str, str] = field(default_factory=dict)
    """Data set to weights file name, for models that come trained (pytorchcv); empty: the teacher stage trains."""


COEFFICIENTS = {
    "fixed": Entry("dfshield.synthesis.coefficients:fixed"),
    "dss": Entry("dfshield.synthesis.coefficients:dss"),
    "linear": Entry("dfshield.synthesis.coefficients:linear"),
}

OBJECTIVES = {
    "inversion": Entry("dfshield.synthesis.inversion:Synthesizer"),
    "intraq": Entry("dfshield.synthesis.intraq:IntraQ"),
}

GENERATED = {
    "qimera": Entry("dfshield.synthesis.generated:Qimera"),
    "rdskd": Entry("dfshield.synthesis.generated:Rdskd"),
}

AUGMENTATIONS = {
    "mixup": Entry("dfshield.synthesis.augmentation:mixup"),
    "cutout": Entry("dfshield.synthesis.augmentation:cutout"),
    "cutmix": Entry("dfshield.synthesis.augmentation:cutmix"),
}

SOURCES = {
    "synthetic": Source("dfshield.synthesis.inversion:run"),
    "real": Source("dfshield.data.export:export", real_data="train"),
    "public": Source("dfshield.data.public:run", real_data="public"),
}

LOSSES = {
    "dfshield": Loss("dfshield.training.losses:dfshield"),
    "trades": Loss("dfshield.training.losses:trades"),
    "std": Loss("dfshield.training.losses:std", inner="ce", start="uniform", robust_only=True),
    "std-soft": Loss("dfshield.training.losses:std_soft", inner="teacher", start="uniform", robust_only=True),
    "mart": Loss("dfshield.training.losses:mart", inner="ce"),
    "ard": Loss("dfshield.training.losses:ard", inner="ce", start="uniform"),
    "rslad": Loss("dfshield.training.losses:rslad", inner="teacher"),
    "alp": Loss("dfshield.training.losses:alp", inner="ce", start="uniform"),
    "clp": Loss("dfshield.training.losses:clp", inner="ce", start="uniform"),
    "mma": Loss("dfshield.training.losses:mma", inner="ce", start="uniform", search="nearest"),
    "mmc": Loss("dfshield.training.losses:mmc", inner="loss", start="uniform", robust_only=True),
    "vat": Loss("dfshield.training.losses:vat", search="power"),
    "fgsm": Loss("dfshield.training.losses:fgsm", inner="ce", start="image", search="single-step"),
    "curriculum": Loss(
        "dfshield.training.losses:std", inner="ce", start="uniform", search="curriculum", robust_only=True
    ),
    "dart": Loss("dfshield.training.losses:std", inner="ce", start="uniform", search="fosc", robust_only=True),
    "gradient-penalty": Loss(
        "dfshield.training.losses:gradient_penalty", inner="ce", start="uniform", input_gradient=True
    ),
    "uat": Loss("dfshield.training.losses:uat", inner="ce", start="uniform", labels="teacher", robust_only=True),
    "rst": Loss("dfshield.training.losses:trades", labels="teacher"),
}

COTRAINING = {
    "dast": Cotraining(
        "dfshield.cotraining.methods:Dast",
        generator_loss="exp(−CE(S(x), argmax(T(x))) − β·MSE(softmax(S(x)), softmax(T(x)))) + α·CE(S(x), y)",
        student_loss="CE(S(x'), argmax(T(x))) + β·MSE(softmax(S(x')), softmax(T(x)))",
        generator_passes=3,  # the teacher's answer is a constant
    ),
    "dfme": Cotraining(
        "dfshield.cotraining.methods:Dfme",
        generator_loss="−‖S(x) − ℓ(T(x))‖₁/C",
        student_loss="‖S(x') − ℓ(T(x))‖₁/C",
        generator_passes=lambda options: 4 if options.gradient == "exact" else 2 * (1 + options.directions),
    ),
    "ait": Cotraining(
        "dfshield.cotraining.methods:Ait",
        inner="kl",
        start="normal",
        generator_loss="CE(T(x), y) + w·BN(x)",
        student_loss="CE(S(x), y) + β·KL(S(x), S(x'))",
        generator_passes=2,  # the student is not asked
        student_inputs=2,
    ),
    "dfard": Cotraining(
        "dfshield.cotraining.methods:Dfard",
        generator_loss="w₁·CE(T(x), y) + w₂·BN(x) − w₃·KL(T(x), S(x))",
        student_loss="τ²·(KL(T(x)/τ, S(x')/τ) + KL(T(x)/τ, S(x)/τ))",
        student_inputs=2,
    ),
}

ATTACKS = {
    "clean": Attack("dfshield.attacks.gradient:clean"),
    "fgsm": Attack("dfshield.attacks.gradient:fgsm"),
    "pgd": Attack("dfshield.attacks.gradient:pgd"),
    "autoattack": Attack("dfshield.attacks.autoattack:autoattack", ensemble=True),
}

_CIFAR: dict[str, Any] = {
    "mean": (0.4914, 0.4822, 0.4465),
    "std": (0.2023, 0.1994, 0.2010),
    "images": {"train": 50_000, "test": 10_000},
}
_MEDMNIST_CLASSES = {
    "tissuemnist": ("Tissue", 8),
    "bloodmnist": ("Blood", 8),
    "dermamnist": ("Derma", 7),
    "pathmnist": ("Path", 9),
    "octmnist": ("OCT", 4),
    "organamnist": ("OrganA", 11),
    "organcmnist": ("OrganC", 11),
    "organsmnist": ("OrganS", 11),
    "pneumoniamnist": ("Pneumonia", 2),
    "breastmnist": ("Breast", 2),
    "retinamnist": ("Retina", 5),
}

MEDMNIST_SPLITS = {"train": "train", "dev": "val", "test": "test"}
"""MedMNIST's own name of each split."""

DATASETS = {
    "digits": Dataset(
        "dfshield.data.digits:load",
        *("Digits", 10, (1, 8, 8), (0.3,), (0.38,)),
        images={"train": 997, "dev": 300, "test": 500},
    ),
    "photographs": Dataset("dfshield.data.photographs:load", "Photographs", 2, images={"train": 5000}),
    "cifar10": Dataset("dfshield.data.general:load", "CIFAR-10", 10, files=("cifar-10-batches-py",), **_CIFAR),
    "cifar100": Dataset("dfshield.data.general:load", "CIFAR-100", 100, files=("cifar-100-python",), **_CIFAR),
    "svhn": Dataset(
        "dfshield.data.general:load",
        "SVHN",
        files=("train_32x32.mat", "test_32x32.mat"),
        **_CIFAR | {"images": {"train": 73_257, "test": 26_032}},
    ),
} | {
    flag: Dataset("dfshield.data.medical:load", title, classes, (3, 28, 28), files=(f"{flag}.npz",))
    for flag, (title, classes) in _MEDMNIST_CLASSES.items()
}

_PYTORCHCV = {
    ("resnet20", "cifar10"): "0597-9b0024ac",
    ("resnet20", "cifar100"): "2964-a5322afe",
    ("resnet20", "svhn"): "0343-8232e6e4",
    ("resnet56", "cifar10"): "0452-628c42a2",
    ("resnet56", "cifar100"): "2488-d65f53b1",
    ("resnet56", "svhn"): "0275-6e08ed92",
    ("wrn28_10", "cifar10"): "0239-fe97dcd6",
    ("wrn28_10", "cifar100"): "1788-8c3fe818",
    ("wrn28_10", "svhn"): "0271-d62b6bba",
}


def _pytorchcv(model: str, title: str) -> Model:
    files = {data: f"{model}_{data}-{tail}.pth" for (name, data), tail in _PYTORCHCV.items() if name == model}
    return Model(f"dfshield.models.general:{model}", title, files)


MODELS = {
    "cnn-s": Model("dfshield.models.demo:cnn_s", "CNN-S"),
    "cnn-m": Model("dfshield.models.demo:cnn_m", "CNN-M"),
    "resnet20": _pytorchcv("resnet20", "ResNet-20"),
    "resnet56": _pytorchcv("resnet56", "ResNet-56"),
    "wrn28_10": _pytorchcv("wrn28_10", "WRN-28-10"),
    "resnet18": Model("dfshield.models.medical:resnet18", "ResNet-18"),
    "resnet50": Model("dfshield.models.medical:resnet50", "ResNet-50"),
}
