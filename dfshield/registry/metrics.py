"""What tables measure: titles, units, and the evidence that a figure is read from."""

from dataclasses import dataclass
from typing import Literal

Evidence = Literal["ledger", "diversity", "certificates", "detection", "landscape"]
"""Kind of file that a figure is read from: a ledger of an attack, or a record of diversity metrics, of certificates, of
a detector's evaluation, or of a loss landscape."""


@dataclass(frozen=True)
class Metric:
    """A column of tables."""

    title: str
    unit: str = "%"
    decimals: int = 2
    evidence: Evidence = "ledger"
    statistic: Literal["", "median", "largest"] = ""
    """Figure of the ledger's distances; empty where the share of images that survive is measured."""
    bounded: bool = True
    """An attack within a threat model; a corruption is bounded by none."""
    protocol: str = ""
    """Protocol whose ledger a statistic is of; other metrics have the name of theirs."""


CORRUPTIONS = {
    "gaussian-noise": "Gaussian noise",
    "shot-noise": "Shot noise",
    "impulse-noise": "Impulse noise",
    "defocus-blur": "Defocus",
    "glass-blur": "Glass blur",
    "motion-blur": "Motion blur",
    "zoom-blur": "Zoom blur",
    "snow": "Snow",
    "frost": "Frost",
    "fog": "Fog",
    "brightness": "Brightness",
    "contrast": "Contrast",
    "elastic-transform": "Elastic",
    "pixelate": "Pixelate",
    "jpeg-compression": "JPEG",
}
"""Protocols of single kinds of common corruptions and their titles."""

METRICS = {
    "clean": Metric("Clean"),
    "fgsm": Metric("FGSM"),
    "pgd1": Metric("PGD-1"),
    "pgd2": Metric("PGD-2"),
    "pgd5": Metric("PGD-5"),
    "pgd10": Metric("PGD-10"),
    "pgd20": Metric("PGD-20"),
    "pgd50x5": Metric("PGD-50×5"),
    "pgd-unbounded": Metric("PGD, ε = ∞"),
    "pgd40": Metric("PGD-40"),
    "pgd40-static": Metric("PGD-40, static"),
    "pgd40-static-l2": Metric("PGD-40 in l2, static"),
    "pgd-static": Metric("PGD-20, static"),
    "autoattack-static": Metric("AA, static"),
    "pgd-adaptive": Metric("PGD-40, adaptive"),
    "pgd-eot-1": Metric("PGD-40, 1 draw"),
    "pgd-eot-5": Metric("PGD-40, 5 draws"),
    "pgd-eot-20": Metric("PGD-40, 20 draws"),
    "pgd-eot-80": Metric("PGD-40, 80 draws"),
    "aa-rand": Metric("AA rand"),
    "bpda-softsign": Metric("BPDA, soft sign"),
    "bpda-tanh": Metric("BPDA, tanh"),
    "unrolled": Metric("Unrolled steps"),
    "reparameterised": Metric("Reparameterised"),
    "average-start": Metric("Average transformation"),
    "white-box-transfer": Metric("White-box transfer"),
    "finite-differences": Metric("Finite differences"),
    "few-steps-1": Metric("Transfer, 1 step"),
    "few-steps-2": Metric("Transfer, 2 steps"),
    "few-steps-3": Metric("Transfer, 3 steps"),
    "genattack-short": Metric("GenAttack"),
    "hopskipjump-short": Metric("HopSkipJump"),
    "mi-fgsm": Metric("MI-FGSM"),
    "transfer": Metric("Transfer"),
    "modified-a": Metric("(a)"),
    "modified-b": Metric("(b)"),
    "modified-c": Metric("(c)"),
    "latent": Metric("Latent"),
    "md": Metric("MD"),
    "mm3": Metric("MM3"),
    "deepfool": Metric("DeepFool"),
    "cw": Metric("C&W"),
    "fab": Metric("FAB-T"),
    "square": Metric("Square"),
    "spsa": Metric("SPSA"),
    "genattack": Metric("GenAttack"),
    "boundary": Metric("Boundary"),
    "hopskipjump": Metric("HopSkipJump"),
    "a3": Metric("A³"),
    "automated": Metric("Automated"),
    "autoattack": Metric("AA"),
    "pgd-smoothed": Metric("PGD-20, adaptive"),
    "aa-smoothed": Metric("AA rand"),
    "certified": Metric("Certified", evidence="certificates"),
    "false-alarms-wanted": Metric("False alarms, wanted", evidence="detection"),
    "false-alarms": Metric("False alarms, real", evidence="detection"),
    "threshold": Metric("Threshold", "1", 3, "detection"),
    "detected": Metric("Detected, static", evidence="detection"),
    "evaded": Metric("Evaded, static", evidence="detection"),
    "evaded-adaptive": Metric("Evaded, adaptive", evidence="detection"),
    "corruptions": Metric("Corrupted", bounded=False),
    **{kind: Metric(title, bounded=False) for kind, title in CORRUPTIONS.items()},
    "precision": Metric("Precision", "1", 3, "diversity"),
    "recall": Metric("Recall", "1", 3, "diversity"),
    "density": Metric("Density", "1", 3, "diversity"),
    "coverage": Metric("Coverage", "1", 3, "diversity"),
    "ndb": Metric("NDB", "bins", 0, "diversity"),
    "jsd": Metric("JSD", "nat", 3, "diversity"),
    "sharpness": Metric("Sharpness", "nat", 3, "landscape"),
}
"""Metrics by name. A protocol of the config that is not among them is a metric by its own name; see `metric`."""
DIVERSITY_METRICS = tuple(name for name, entry in METRICS.items() if entry.evidence == "diversity")
"""Metrics of a synthetic set; every record of diversity holds all of them."""


DETECTION_METRICS = tuple(name for name, entry in METRICS.items() if entry.evidence == "detection")
"""Metrics of a detector; every record of detection gives all of them."""
DISTANCES: dict[str, Literal["median", "largest"]] = {"median-": "median", "largest-": "largest"}
"""Beginnings of the names of distance metrics, which go on with a protocol's name, and their statistics."""


def metric(name: str) -> Metric:
    """The metric called `name`.

    ``median-PROTOCOL`` and ``largest-PROTOCOL`` are the median and the largest distance to a misclassified point under
    that protocol, in units where pixels lie in [0,1]. A protocol without an entry is accuracy in percent under it.
    """
    for start, statistic in DISTANCES.items():
        if protocol := name.removeprefix(start) if name.startswith(start) else "":
            return Metric(f"{metric(protocol).title} {statistic}", "1", 4, statistic=statistic, protocol=protocol)
    return METRICS.get(name) or Metric(name)


def protocol_of(name: str) -> str:
    """The protocol whose ledger a metric called `name` is read from: all of the name, but for distance metrics."""
    return metric(name).protocol or name
