"""Verdicts that cannot be right are said: in the log before the attack, and wherever the ledger is read."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support import tiny
from support.cells import cell
from support.ledgers import make_ledger

from dfshield.evaluation import attack
from dfshield.evaluation.doubts import DOUBTS, at_majority, doubts, image_flags
from dfshield.evaluation.ledger import read_ledger
from dfshield.models.checkpoints import load_checkpoint
from dfshield.options import AttackOptions
from dfshield.report.notes import NOTES, notes
from dfshield.report.table import build

ORIGINAL = {"recipe": "none"}
WHITE_BOX = {"attack": "pgd", "steps": 10}


def found(tmp_path, clean, robust, n=200, **changes):
    make_ledger(tmp_path / "l.h5", clean, robust, n, **changes)
    return doubts(read_ledger(tmp_path / "l.h5"))


@pytest.mark.parametrize(
    ("clean", "subject", "defence", "flags"),
    [
        (20, ORIGINAL, "none", ["at-majority"]),
        (0, ORIGINAL, "none", ["at-majority"]),
        (21, ORIGINAL, "none", []),
        (0, {"recipe": "dfshield"}, "none", []),
        (0, {}, "none", []),
        (0, ORIGINAL, "tte", []),
    ],
)
def test_an_original_model_that_is_no_better_than_a_constant(tmp_path, clean, subject, defence, flags):
    assert found(tmp_path, clean, 0, subject=subject, defence=defence) == flags


def test_the_majority_of_one_class_is_no_bar():
    assert not at_majority(np.zeros(5, dtype=int), np.zeros(5, dtype=int))
    assert at_majority(np.zeros(5, dtype=int), np.array([0, 0, 0, 1, 1]))
    assert not at_majority(np.array([0, 0, 0, 1, 0]), np.array([0, 0, 0, 1, 1]))


@pytest.mark.parametrize(
    ("options", "threat", "clean", "robust", "flags"),
    [
        (WHITE_BOX, "linf:8/255", 150, 150, ["unbroken"]),
        (WHITE_BOX, "linf:8/255", 150, 149, []),
        (WHITE_BOX, "linf:0", 150, 150, []),
        (WHITE_BOX, "linf:8/255", 19, 19, []),
        (WHITE_BOX, "linf:8/255", 20, 20, ["unbroken"]),
        (WHITE_BOX, "linf:8/255", 0, 0, []),
        ({"attack": "clean"}, "linf:8/255", 150, 150, []),
        ({}, "linf:8/255", 150, 150, []),
    ],
)
def test_an_attack_that_breaks_nothing(tmp_path, options, threat, clean, robust, flags):
    assert found(tmp_path, clean, robust, options=options, threat=threat) == flags


@pytest.mark.parametrize(
    ("labels", "classes", "flags"),
    [
        (np.arange(100) % 9, 10, ["classes-missing:1 of 10"]),
        (np.arange(99) % 9, 10, []),
        (np.arange(100) % 10, 10, []),
        (np.zeros(40, dtype=np.int64), 10, ["classes-missing:9 of 10"]),
        (np.arange(500) // 50, 1000, ["classes-missing:990 of 1000"]),
        (np.random.RandomState(0).randint(0, 1000, 500), 1000, []),
        (np.array([3, 4]), 10, []),
    ],
    ids=["one", "too few to tell", "none", "sorted", "many classes, sorted", "many classes", "two images"],
)
def test_labels_that_miss_classes(tmp_path, labels, classes, flags):
    rows = {"label": labels.astype(np.int64), "clean_prediction": labels, "prediction": labels, "classes": classes}
    assert found(tmp_path, len(labels), len(labels), len(labels), **rows) == flags


def test_images_that_are_alike():
    images = np.random.RandomState(0).rand(10, 1, 4, 4).astype(np.float32)
    assert image_flags(images) == image_flags(images[:1]) == []
    assert image_flags(images[[0, 1, 2, 3, 4, 0, 1, 2, 3, 4]]) == []  # half of them
    assert image_flags(images[[0, 1, 2, 3, 0, 0, 1, 2, 3, 3]]) == ["images-alike"]
    assert image_flags(np.zeros((3, 1, 4, 4), dtype=np.float32)) == ["images-alike"]
    assert image_flags(images / 255) == ["images-alike"]  # scaled twice


def test_every_doubt_has_a_note():
    assert set(DOUBTS) <= set(NOTES)
    assert notes(["classes-missing:1 of 10"])["classes-missing:1 of 10"] == (
        "a",
        "the evaluation set has no image of some classes (1 of 10)",
    )


def test_rows_of_tables_have_them(tmp_path: Path) -> None:
    facts = {"subject": ORIGINAL, "options": WHITE_BOX, "flags": ("images-alike", "zero-gradients")}
    make_ledger(tmp_path / "l.h5", 20, 20, **facts)
    clean, robust = build([cell(tmp_path / "l.h5", metric="clean"), cell(tmp_path / "l.h5")])
    assert clean.flags == ("images-alike", "at-majority")
    assert robust.flags == ("images-alike", "masked-gradients:zero-gradients", "at-majority", "unbroken")


@pytest.fixture
def stage(tmp_path):
    """Attack a tiny teacher on given images and labels; returns the ledger."""
    teacher = tiny.teacher(tmp_path / "teacher.safetensors")

    def run(x, y, **options):
        np.savez(tmp_path / "set.npz", x=x, y=y)
        chosen = AttackOptions.of(device="cpu", **options)
        return attack.run(teacher, tmp_path / "l.h5", chosen, None, None, tmp_path / "set.npz", None, "p", ORIGINAL)

    return run


def test_the_stage_says_it_before_the_attack(stage, capsys, monkeypatch):
    x, y = tiny.images(30), np.arange(30) % 9
    with monkeypatch.context() as patch:
        patch.setattr(attack, "Session", None)
        with pytest.raises(TypeError, match="not callable"):
            stage(x[[0] * 30], y, attack="pgd", steps=1)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3 and DOUBTS["images-alike"] in said[0] and "no image of 1 of 10 classes (9)" in said[1]
    assert DOUBTS["at-majority"] in said[2] and "commonest class 13.33 %, and answers " in said[2]
    ledger = stage(x[[0] * 30], y, attack="clean")
    assert ledger.flags == ("images-alike",)


def test_the_stage_says_nothing_of_sound_sets(stage, capsys, tmp_path):
    x = tiny.images(400)
    with torch.no_grad():
        logits = load_checkpoint(tmp_path / "teacher.safetensors")[0](torch.from_numpy(x).permute(0, 3, 1, 2))
    order = (logits - logits.mean(0)).argsort(dim=1)
    chosen = [int(index) for label in range(10) for index in (order[:, -1] == label).nonzero()[:4, 0]]
    y = logits.argmax(1)[chosen].numpy()
    right = np.arange(len(y)) % 2 == 0  # half of the labels are the model's own answers, half are all classes
    y[~right] = np.arange(np.count_nonzero(~right)) % 10
    assert not at_majority(logits.argmax(1)[chosen].numpy(), y)
    ledger = stage(x[chosen], y, attack="clean")
    assert ledger.flags == () and doubts(ledger) == []
    assert capsys.readouterr().err == ""
