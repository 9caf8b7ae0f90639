"""Evaluation ledgers with chosen accuracies and records of diversity, for tests of what is made from them."""

from pathlib import Path

import numpy as np

from dfshield.evaluation.findings import Finding, Findings, write_findings
from dfshield.evaluation.ledger import Ledger, write_ledger
from dfshield.evaluation.record import Record, write_record
from dfshield.registry import CHECKS


def make_ledger(path: Path, clean: int, robust: int, n: int = 200, **changes: object) -> str:
    """A ledger of `n` images of 10 classes in turn, `clean` correct without and `robust` under attack."""
    classes = 10
    label = np.arange(n, dtype=np.int64) % classes
    wrong = (label + 1) % classes
    clean_prediction = np.where(np.arange(n) < clean, label, wrong)
    prediction = np.where(np.arange(n) < robust, label, wrong)
    component = np.zeros(n, dtype=np.uint8)
    component[robust:] = 2
    component[clean:] = 1
    index = np.flatnonzero(component == 2)
    fields = {
        "label": label,
        "clean_prediction": clean_prediction,
        "prediction": prediction,
        "broken": component > 0,
        "component": component,
        "margin": np.where(component > 0, -1, 1).astype(np.float32),
        "perturbed_index": index,
        "perturbation": np.full((len(index), 1, 4, 4), 0.05, dtype=np.float16),
        "components": ("robust", "clean", "pgd"),
        "classes": classes,
        "dataset": "digits",
        "model": "cnn-s",
        "model_sha256": "m" * 64,
        "data_sha256": "d" * 64,
        "real_data": "none",
        "subject": {},
        "protocol": "pgd10",
        "threat": "linf:8/255",
        "options": {"steps": 10},
        "seed": 0,
        "version": "0.1.0",
        "code": "c" * 16,
    }
    return write_ledger(path, Ledger(**(fields | changes)))  # type: ignore[arg-type]


def make_record(path: Path, recall: float = 0.5, **changes: object) -> str:
    """A record of the diversity of some training set of digits for cnn-s."""
    values = {"precision": 0.25, "recall": recall, "density": 1.125, "coverage": recall / 4, "ndb": 88.0, "jsd": 0.25}
    options = {"features": "teacher", "neighbours": 5, "bin_features": "pixels", "bins": 100, "alpha": 0.05}
    fields = {"dataset": "digits", "model": "cnn-s", "source": "fixed", "seed": 0, "split": "train", "n_real": 997}
    fields |= {"n_synthetic": 60, "values": values, "options": options, "real_data": "none", "weights_sha256": ""}
    fields |= {"teacher_sha256": "t" * 64, "data_sha256": "d" * 64, "real_sha256": "r" * 64}
    return write_record(path, Record(**(fields | {"package_version": "0.1.0", "code": ""} | changes)))  # type: ignore[arg-type]


def make_findings(path: Path, verdict: str = "passed", **changes: object) -> str:
    """A record of robustness checks of cnn-s on digits: all passed but the last one, which has `verdict`."""
    found = [Finding(name, "passed", 0.0, 1.0, "fine") for name in CHECKS]
    found[-1] = Finding(found[-1].check, verdict, None, 1.0, "fine")  # type: ignore[arg-type]
    subject = {"source": "dss", "recipe": "dfshield", "train_threat": "linf-8-255", "seed": 2}
    fields = {"dataset": "digits", "model": "cnn-s", "subject": subject, "defence": "none", "defence_options": {}}
    fields |= {"threat": "linf:8/255", "n": 100, "findings": tuple(found), "options": {}, "seed": 0}
    fields |= {"model_sha256": "m", "data_sha256": "d", "ledgers": {}, "others": {}, "real_data": "none"}
    return write_findings(path, Findings(**(fields | {"package_version": "0", "code": ""} | changes)))  # type: ignore[arg-type]
