"""Training sets and how they are made."""

from dataclasses import dataclass

from dfshield.registry.entry import Entry, RealData


@dataclass(frozen=True)
class Source(Entry):
    """Where training images come from and which real data that touches."""

    real_data: RealData = "none"


@dataclass(frozen=True)
class Objective(Entry):
    """What synthetic images, or a generator of them, are optimised for."""

    passes: int | None = None
    """For the cost model alone: forward passes of the teacher for an image and step, a gradient of its pixels as one
    more. None: not known, so not estimated."""
    statistics: bool = False
    """Works by matching running statistics of BatchNorm layers, so a network without any is refused."""


COEFFICIENTS = {
    "fixed": Entry(
        "dfshield.sources.coefficients:fixed",
        "fixed",
        about="the base weights themselves, the same for every batch (Eq 6)",
    ),
    "dss": Entry(
        "dfshield.sources.coefficients:dss",
        "DSS",
        about="diversified sample synthesis: each base weight times U(0,1), drawn per batch (Eq 8)",
    ),
    "linear": Entry(
        "dfshield.sources.coefficients:linear",
        "linear",
        about="class weight U(0,1), feature weight its complement, prior unchanged (released code)",
    ),
}
"""Ways to draw the loss coefficients of a synthesis batch: ``(base, generator, options) -> (3,)``."""

OBJECTIVES = {
    "inversion": Objective(
        "dfshield.sources.inversion:ModelInversion",
        "model inversion",
        about="cross entropy, distance of the BN statistics and total variation (Eq 3-6)",
        options="dfshield.options.sources:Inversion",
        passes=2,
    ),
    "intraq": Objective(
        "dfshield.sources.intraq:IntraQ",
        "IntraQ",
        about="soft labels, random crops and a margin around the mean feature of each class (Zhong et al. 2022)",
        options="dfshield.options.sources:Intraq",
        passes=2,
        statistics=True,
    ),
}
"""What synthesis minimises: subclasses of ``dfshield.sources.inversion.Synthesizer``."""

GENERATED = {
    "qimera": Objective(
        "dfshield.sources.qimera:Qimera",
        "Qimera",
        about="a conditional generator on superposed class vectors (Choi et al. 2021)",
        options="dfshield.options.sources:Qimera",
        passes=2,
        statistics=True,
    ),
    "rdskd": Objective(
        "dfshield.sources.rdskd:Rdskd",
        "RDSKD",
        about="an unconditional generator trained for confidence, balance and diversity (Han et al. 2021)",
        options="dfshield.options.sources:Rdskd",
        passes=2,
    ),
    "fast": Objective(
        "dfshield.sources.fast:Fast",
        "FastDFKD",
        about="a meta-learnt generator, adapted to each mini-batch in a few steps (Fang et al. 2022)",
        options="dfshield.options.sources:Fast",
        passes=2,
        statistics=True,
    ),
}
"""Generators that a teacher trains: subclasses of ``dfshield.sources.generator.GeneratorSource``."""

AUGMENTATIONS = {
    "mixup": Entry(
        "dfshield.sources.augmentation:mixup",
        "Mixup",
        about="convex combinations of two images (Zhang et al. 2018)",
        options="dfshield.options.sources:Mixup",
    ),
    "cutout": Entry(
        "dfshield.sources.augmentation:cutout",
        "Cutout",
        about="a black square around a random pixel (DeVries and Taylor 2017)",
        options="dfshield.options.sources:Cutout",
    ),
    "cutmix": Entry(
        "dfshield.sources.augmentation:cutmix",
        "CutMix",
        about="a box of another image in the same place (Yun et al. 2019)",
        options="dfshield.options.sources:Cutmix",
    ),
}
"""Ways to derive a set from another: ``(images, random, options) -> (images, index of the image with the label)``."""

SOURCES = {
    "synthetic": Source(
        "dfshield.sources.inversion:run", "synthetic", about="made out of the teacher alone, without any real image"
    ),
    "real": Source(
        "dfshield.sources.real:export",
        "real",
        real_data="train",
        about="the real training set: an upper bound, not data-free",
    ),
    "public": Source(
        "dfshield.sources.public:run",
        "public",
        real_data="public",
        about="another real data set's images with the teacher's labels: not data-free",
    ),
}
"""Origins of training images, and the real data that each touches."""
