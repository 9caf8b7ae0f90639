"""The evaluation ledger: one row per attacked image, in HDF5, from which every figure of a table follows.

Reading needs h5py and numpy only. The file has no time or host in it: equal runs give equal bytes. A hash covers
every value and attribute, and each data set carries checksums, so a damaged file is refused and never misread.
"""

import json
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dfshield.core import hdf5
from dfshield.core.errors import InputError
from dfshield.core.files import atomic
from dfshield.core.hashing import canonical_json
from dfshield.core.threat import parse_threat

FORMAT = "dfshield-ledger"
VERSION = 1
REMEDY = "run the attack stage again to make it anew"

ROWS = {
    "label": np.int64,
    "clean_prediction": np.int64,
    "prediction": np.int64,
    "broken": np.bool_,
    "component": np.uint8,
    "margin": np.float32,
}
PERTURBED = {"perturbed_index": np.int64, "perturbation": np.float16}
DATASETS = ROWS | PERTURBED
OPTIONAL = {"distances": np.float32}
"""Data sets that a ledger has only where they hold something."""
JSON_ATTRIBUTES = ("components", "flags", "options", "subject", "defence_options", "others")
HEADER = ("format", "format_version", "complete")
"""Attributes that are no field of a ledger."""
CONTRACT = hdf5.Contract(
    format=FORMAT,
    version=VERSION,
    version_attribute="format_version",
    version_name="ledger format",
    name="an evaluation ledger",
    holds="evaluation ledger",
    made_by="make it with `dfshield attack`",
    remedy=REMEDY,
    datasets=DATASETS,
    optional=OPTIONAL,
)


@dataclass(frozen=True, eq=False)
class Ledger:
    """What an attack did to each of N images; accuracies are in percent."""

    label: np.ndarray
    """(N,) int64."""
    clean_prediction: np.ndarray
    """(N,) int64: predicted class of the unperturbed image."""
    prediction: np.ndarray
    """(N,) int64: predicted class of the final image: perturbed where an attack succeeded, else unperturbed; of
    corruptions always of the corrupted image."""
    broken: np.ndarray
    """(N,) bool: misclassified, without attack or under it; of corruptions, the corrupted image misclassified."""
    component: np.ndarray
    """(N,) uint8: what broke the image, an index into `components`."""
    margin: np.ndarray
    """(N,) float32: z_y - max other logit; of the stored perturbed image, else the smallest that was found."""
    perturbed_index: np.ndarray
    """(M,) int64: the images broken by an attack, ascending."""
    perturbation: np.ndarray
    """(M,C,H,W) float16; `threat.from_half` makes the perturbed image of it."""

    components: tuple[str, ...]
    """``robust``, ``clean`` (wrong without attack), then the attacks in order."""
    classes: int
    dataset: str
    model: str
    model_sha256: str
    """Of the checkpoint's tensors."""
    data_sha256: str
    """Of the images and labels that were used."""
    real_data: str
    """What real data the model has seen."""
    subject: dict[str, Any]
    """What was attacked, in the caller's own terms."""
    protocol: str
    """What exactly ran."""
    threat: str
    options: dict[str, Any]
    """Attack options."""
    seed: int
    defence: str = "none"
    """Defence at test time that stood before the model."""
    defence_options: dict[str, Any] = field(default_factory=dict)
    """Options of the defence."""
    others: dict[str, str] = field(default_factory=dict)
    """Further models that the attack used, and the fit of the ``defence``, by name: SHA-256 of their tensors."""
    distances: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    """(N,) float32, of attacks that look for the smallest perturbation: the norm, in the threat's norm and units where
    pixels lie in [0,1], of the nearest point that the model was seen to misclassify. 0 for images that are wrong
    without attack, infinite where no such point was found, at most ε exactly where `broken`. Empty for others."""
    flags: tuple[str, ...] = ()
    """Reasons to distrust the accuracy under attack; ``diverged`` where the model's training ended so."""
    version: str = ""
    """Of dfshield."""
    code: str = ""
    """Digest of the code."""
    content_sha256: str = field(default="")
    """Set when written and read."""

    @property
    def n(self) -> int:
        """Number of images."""
        return len(self.label)

    @property
    def clean_accuracy(self) -> float:
        """Share of images classified correctly without attack."""
        return 100 * float(np.mean(self.clean_prediction == self.label))

    @property
    def robust_accuracy(self) -> float:
        """Share of images classified correctly whatever the attack tried."""
        return 100 * float(np.mean(~self.broken))

    @property
    def labels(self) -> np.ndarray:
        """Images per class (classes,)."""
        return np.bincount(self.label, minlength=self.classes)

    @property
    def majority(self) -> float:
        """Share of the commonest class: the accuracy of a constant guess."""
        return 100 * float(self.labels.max()) / self.n

    @cached_property
    def confusion(self) -> np.ndarray:
        """Counts (classes, classes): row is the label, column the prediction under attack."""
        flat = self.label * self.classes + self.prediction
        return np.bincount(flat, minlength=self.classes**2).reshape(self.classes, self.classes)

    @property
    def recall(self) -> np.ndarray:
        """Recall under attack per class (classes,); NaN for classes without images."""
        with np.errstate(invalid="ignore"):
            shares: np.ndarray = 100 * self.confusion.diagonal() / self.labels
        return shares

    @property
    def balanced_accuracy(self) -> float:
        """Mean of the recalls under attack of the classes that have images."""
        return float(np.nanmean(self.recall))

    @property
    def macro_f1(self) -> float:
        """Mean F1 under attack of the classes that are labels or predictions of some image."""
        support = self.confusion.sum(axis=1) + self.confusion.sum(axis=0)
        return 100 * float(np.mean((2 * self.confusion.diagonal())[support > 0] / support[support > 0]))


def confidence_interval(k: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval in percent for `k` of `n` (Wilson 1927); (0, 100) for n = 0.

    ``100 * k / n`` lies in it, also where rounding would put an end at its wrong side (k = 0, k = n).
    """
    if n == 0:
        return 0.0, 100.0
    z = 1.959963984540054
    share = k / n
    centre = share + z**2 / (2 * n)
    half = z * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    scale = 1 + z**2 / n
    low, high = 100 * (centre - half) / scale, 100 * (centre + half) / scale
    return max(0.0, min(low, 100 * share)), min(100.0, max(high, 100 * share))


def write_ledger(path: Path, ledger: Ledger) -> str:
    """Write `ledger` atomically; returns its content SHA-256. Raises ValueError for rows that do not fit together."""
    _check(ledger)
    names = [*DATASETS, *(name for name in OPTIONAL if len(getattr(ledger, name)))]
    arrays = {name: np.ascontiguousarray(getattr(ledger, name)) for name in names}
    attributes = _attributes(ledger)
    content = _content_hash(arrays, attributes)
    with atomic(path) as temporary, hdf5.created(temporary) as file:
        for name, values in arrays.items():
            row = max(1, values[:1].nbytes)
            file.create_dataset(
                name,
                data=values,
                maxshape=(None, *values.shape[1:]),  # allows the empty set to be chunked
                chunks=(max(1, min(2**20 // row, max(1, len(values)))), *values.shape[1:]),
                fletcher32=True,
                **({"compression": "gzip", "shuffle": True} if name == "perturbation" else {}),
            )
        for key, value in attributes.items():
            file.attrs[key] = value
        hdf5.seal(file, content)
    return content


def read_ledger(path: Path) -> Ledger:
    """Read and check a ledger; raises InputError for a file that is missing, foreign, incomplete, newer or damaged."""
    with hdf5.opened(path, CONTRACT) as file:
        arrays = {name: file[name][()] for name in (*DATASETS, *OPTIONAL) if name in file}
        attributes = hdf5.attributes(file)
        if attributes["content_sha256"] != _content_hash(arrays, attributes):
            raise InputError(f"{path}: content does not match its SHA-256 (edited or damaged); {REMEDY}")
        for key in JSON_ATTRIBUTES:
            attributes[key] = json.loads(attributes[key])
        attributes["components"], attributes["flags"] = tuple(attributes["components"]), tuple(attributes["flags"])
        values = {key: value for key, value in attributes.items() if key not in HEADER} | arrays
        ledger = Ledger(**values)
        _check(ledger)
        return ledger


def _check(ledger: Ledger) -> None:
    n, classes = len(ledger.label), ledger.classes
    for name in ROWS:
        if getattr(ledger, name).shape != (n,):
            raise ValueError(f"{name} has shape {getattr(ledger, name).shape}, expected ({n},)")
    for name, dtype in (DATASETS | OPTIONAL).items():
        if getattr(ledger, name).dtype != dtype:
            raise ValueError(f"{name} is {getattr(ledger, name).dtype}, expected {np.dtype(dtype)}")
    for name in ("label", "clean_prediction", "prediction"):
        values = getattr(ledger, name)
        if n and not (values.min() >= 0 and values.max() < classes):
            raise ValueError(f"{name} lies outside 0..{classes - 1}")
    if n == 0 or ledger.components[:2] != ("robust", "clean") or ledger.component.max() >= len(ledger.components):
        raise ValueError("no images, or components that are not named")
    if not np.array_equal(ledger.broken, ledger.component > 0):
        raise ValueError("broken and component contradict each other")
    if not np.array_equal(ledger.broken, ledger.prediction != ledger.label):
        raise ValueError("broken and prediction contradict each other")
    if not np.array_equal(ledger.perturbed_index, np.flatnonzero(ledger.component > 1)):
        raise ValueError("perturbed_index does not list the images broken by an attack")
    if ledger.perturbation.ndim != 4 or len(ledger.perturbation) != len(ledger.perturbed_index):
        raise ValueError(f"perturbation has shape {ledger.perturbation.shape}, expected (M,C,H,W)")
    if len(ledger.distances):
        _check_distances(ledger)


def _check_distances(ledger: Ledger) -> None:
    if ledger.distances.shape != ledger.label.shape:
        raise ValueError(f"distances has shape {ledger.distances.shape}, expected {ledger.label.shape}")
    if not np.array_equal(ledger.distances == 0, ledger.component == 1):
        raise ValueError("distances are 0 for other images than those that are wrong without attack")
    if not np.array_equal(ledger.distances <= np.float32(parse_threat(ledger.threat).eps), ledger.broken):
        raise ValueError("broken and distances contradict each other")


def _attributes(ledger: Ledger) -> dict[str, Any]:
    names = [f.name for f in fields(ledger) if f.name not in (*DATASETS, *OPTIONAL, "content_sha256")]
    values = {name: getattr(ledger, name) for name in names}
    for name in JSON_ATTRIBUTES:
        values[name] = canonical_json(values[name])
    return {"format": FORMAT, "format_version": VERSION} | values


def _content_hash(arrays: dict[str, np.ndarray], attributes: dict[str, Any]) -> str:
    hashes = {name: hdf5.sha256([values]) for name, values in arrays.items()}
    return hdf5.content_hash(arrays, hashes, attributes)
