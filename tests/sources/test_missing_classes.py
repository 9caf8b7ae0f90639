"""Classes that get no image: said before the work as far as it follows from options, counted after it."""

import re

import numpy as np
import pytest
import torch
from support import tiny
from support.configs import ROOT, plan
from support.training import quick as train_options

from dfshield.evaluation import attack
from dfshield.models.card import read_card
from dfshield.models.checkpoints import load_checkpoint
from dfshield.options import AttackOptions
from dfshield.options.sources import Intraq, Inversion, Qimera, SynthesizeOptions
from dfshield.planning.jobs import checked_plan
from dfshield.report import model_card
from dfshield.report.notes import notes
from dfshield.report.rows import flags_of
from dfshield.sources import generator, inversion
from dfshield.sources.trainset import merge
from dfshield.training import train

TOO_FEW = {"images": 40, "batch": 10}
"""Four batches for ten classes."""


@pytest.mark.parametrize(
    ("options", "classes", "message"),
    [
        (SynthesizeOptions(), 300, ""),
        (SynthesizeOptions(), 1000, "700 of 1000 classes get no image: 300 batches have one class each; use labels"),
        (SynthesizeOptions(), 1000, "a batch of at most 60, or 200000 images"),
        (SynthesizeOptions(images=50, batch=10), 100, "95 of 100 classes .* use labels random or 1000 images"),
        (SynthesizeOptions(labels="random"), 1000, ""),
        (SynthesizeOptions(labels="random", images=2000), 1000, "about 135 of 1000 classes get no image"),
        (Intraq(images=600), 5, "2 of 5 classes"),
        (Qimera(images=200), 200, ""),
        (Qimera(images=200), 300, "100 of 300 classes get no image: there are 200"),
    ],
)
def test_what_follows_from_options(options, classes, message):
    found = options.missed_classes(classes)
    if not message:
        assert found == ""
        return
    assert re.search(message, found)


def test_random_labels_miss_about_as_many():
    drawn = torch.randint(1000, (2000,), generator=torch.Generator().manual_seed(0))
    assert 1000 - len(drawn.unique()) == pytest.approx(135, abs=25)


def test_a_plan_says_it_once(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    for images, lines in ((40, 1), (100, 0)):
        made = plan(synthesize={"images": images, "batch": 10}, train={"batch": 10, "holdout": 0, "aggregate": 2})
        checked_plan(made.config, [], ROOT, ["results/table4.csv"])
        said = [line for line in capsys.readouterr().err.splitlines() if "get no image" in line]
        assert len(said) == lines
        assert all(line.startswith("synthesize options of digits/cnn-s: 6 of 10 classes") for line in said)
    checked_plan(plan(synthesize=TOO_FEW).config, [], ROOT, None)
    assert capsys.readouterr().err == "", "a job says nothing of other jobs"


def test_stages_say_it_before_and_after(tmp_path, capsys):
    path = tiny.teacher(tmp_path / "t.safetensors")
    options = Inversion(iterations=1, device="cpu", **TOO_FEW)
    shards = [tmp_path / f"{shard}.h5" for shard in range(2)]
    for shard, out in enumerate(shards):
        inversion.run(path, out, options, shard, 2)
        before, _, after = capsys.readouterr().err.partition("content")
        assert "6 of 10 classes get no image: 4 batches" in before and "classes" not in after
    merge(shards, tmp_path / "data.h5")
    assert "data.h5: no image of 6 of 10 classes (4, 5, 6 and others)\n" in capsys.readouterr().err
    small = Qimera(images=5, batch=5, epochs=1, iterations=1, width=0.2, latent=8, device="cpu")
    generator.run(path, tmp_path / "q.h5", small)
    said = capsys.readouterr().err
    assert "5 of 10 classes get no image: there are 5" in said and "q.h5: no image of " in said


@pytest.mark.parametrize("present", [4, 10])
def test_a_student_and_its_ledgers_carry_it(tmp_path, monkeypatch, capsys, present):
    path = tiny.teacher(tmp_path / "t.safetensors")
    sha = read_card(path).tensors_sha256
    data = tiny.trainset(tmp_path / "data.h5", teacher_sha256=sha, labels=np.arange(60) % present)
    train.run(path, data, tmp_path / "s.safetensors", train_options(holdout=0))
    assert ("data.h5: no image of 6 of 10 classes" in capsys.readouterr().err) == (present == 4)
    _, card = load_checkpoint(tmp_path / "s.safetensors")
    assert card.provenance.get("classes_without_images") == (6 if present == 4 else None)
    text = model_card.model_card("mine", model_card.Evidence(card))
    assert ("6 of 10 classes had no training image" in text) == (present == 4)
    images = tiny.images(20)
    np.savez(tmp_path / "set.npz", x=images[..., 0], y=np.arange(20) % 10)
    options = AttackOptions.of(attack="clean", device="cpu")
    given = (None, None, tmp_path / "set.npz", None, "clean", {})
    flags = flags_of(attack.run(tmp_path / "s.safetensors", tmp_path / "l.h5", options, *given))
    assert ("classes-untrained:6 of 10" in flags) == (present == 4)
    explained = [text for _, text in notes(flags).values()]
    assert ("no training image had the label of some classes (6 of 10)" in explained) == (present == 4)


def test_a_teacher_that_never_answers_some_classes(tmp_path, capsys):
    """A distilled student learns of these classes no more than of those without images."""
    path = tiny.teacher(tmp_path / "t.safetensors")
    model, card = load_checkpoint(path)
    data = tiny.trainset(tmp_path / "data.h5", teacher_sha256=card.tensors_sha256)
    images = torch.from_numpy(tiny.images(60)).permute(0, 3, 1, 2)
    with torch.no_grad():
        missing = 10 - len(model(images).argmax(1).unique())
    assert missing > 0
    for loss, by, counted in (("dfshield", ", by the teacher's answers", None), ("rst", "", missing)):
        out = tmp_path / f"{loss}.safetensors"
        train.run(path, data, out, train_options(loss=loss, holdout=0))
        assert f"data.h5{by}: no image of {missing} of 10 classes" in capsys.readouterr().err
        assert read_card(out).provenance.get("classes_without_images") == counted
