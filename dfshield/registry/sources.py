"""Training sets and how they are made."""

from dataclasses import dataclass

from dfshield.registry.base import Entry, RealData


@dataclass(frozen=True)
class Source(Entry):
    """Where training images come from and which real data that touches."""

    real_data: RealData = "none"


COEFFICIENTS = {
    "fixed": Entry("dfshield.sources.coefficients:fixed"),
    "dss": Entry("dfshield.sources.coefficients:dss"),
    "linear": Entry("dfshield.sources.coefficients:linear"),
}
OBJECTIVES = {
    "inversion": Entry("dfshield.sources.inversion:Synthesizer"),
    "intraq": Entry("dfshield.sources.intraq:IntraQ"),
}
GENERATED = {
    "qimera": Entry("dfshield.sources.qimera:Qimera"),
    "rdskd": Entry("dfshield.sources.rdskd:Rdskd"),
}
AUGMENTATIONS = {
    "mixup": Entry("dfshield.sources.augmentation:mixup"),
    "cutout": Entry("dfshield.sources.augmentation:cutout"),
    "cutmix": Entry("dfshield.sources.augmentation:cutmix"),
}
SOURCES = {
    "synthetic": Source("dfshield.sources.inversion:run"),
    "real": Source("dfshield.sources.real:export", real_data="train"),
    "public": Source("dfshield.sources.public:run", real_data="public"),
}
