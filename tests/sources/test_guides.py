"""Guides of a synthesis: students of the teacher whose class term stands beside its own."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import tiny

from dfshield.core.errors import InputError
from dfshield.models.card import student_card
from dfshield.models.checkpoints import load_checkpoint, read_card, save_checkpoint
from dfshield.options.sources import Intraq, Inversion
from dfshield.sources import inversion
from dfshield.sources.inversion import ModelInversion, run
from dfshield.sources.trainset import merge
from dfshield.tools.inspect import describe_trainset

QUICK = Inversion(device="cpu", images=40, batch=20, iterations=2, labels="random")


def student(path: Path, teacher: Path, seed: int, real_data="none") -> Path:
    """Write a student of a teacher, of other weights, and return the path."""
    card = read_card(teacher)
    own = student_card(
        card,
        real_data=real_data,
        inputs={"teacher_sha256": card.tensors_sha256, "data_sha256": "d" * 64},
        recipe="dfshield",
        source="dss",
        options={},
        seed=0,
        updates=1,
        diverged="",
        metrics="",
        code="",
    )
    save_checkpoint(path, tiny.classifier(seed=seed), own)
    return path


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    return tiny.teacher(tmp_path / "teacher.safetensors")


def attributes(path: Path) -> dict:
    with h5py.File(path) as file:
        return dict(file.attrs)


def images(path: Path) -> np.ndarray:
    with h5py.File(path) as file:
        return file["images"][:]


@pytest.mark.parametrize("guides", [1, 2])
def test_the_class_term_by_hand(guides):
    """Guides see the pixels, whatever the scale in which the teacher is inverted."""
    models = [tiny.classifier(mean=(0.1 * i,), std=(0.3 + 0.1 * i,), seed=i) for i in range(1 + guides)]
    made = ModelInversion(models[0], tiny.SHAPE, tiny.CLASSES, QUICK)
    made.statistics.k = 2
    z, labels = torch.randn(40, *tiny.SHAPE), torch.arange(40) % tiny.CLASSES
    with torch.no_grad():
        alone = made._terms(z, labels, 2)
        made.guide(models[1:])
        found = made._terms(z, labels, 2)
        x = models[0].mean + models[0].std * z
        own = torch.stack([F.cross_entropy(m(x), labels, reduction="none") for m in models[1:]]).sum(0)
    assert found[:, 1:].equal(alone[:, 1:])
    torch.testing.assert_close(found[:, 0] - alone[:, 0], own.view(2, -1).mean(1), atol=1e-5, rtol=1e-5)


def test_a_guided_set_says_so_and_is_another(teacher, tmp_path):
    guides = [student(tmp_path / f"{seed}.safetensors", teacher, seed) for seed in (1, 2)]
    run(teacher, tmp_path / "plain.h5", QUICK)
    run(teacher, tmp_path / "guided.h5", QUICK, guides=guides)
    run(teacher, tmp_path / "one.h5", QUICK, guides=guides[:1])
    plain, guided = attributes(tmp_path / "plain.h5"), attributes(tmp_path / "guided.h5")
    assert "guides" not in plain
    assert json.loads(guided["guides"]) == [read_card(path).tensors_sha256 for path in guides]
    stated = [value for name, value in describe_trainset(tmp_path / "guided.h5")[1] if name == "guide"]
    assert stated == json.loads(guided["guides"])
    assert plain["real_data"] == guided["real_data"] == "none"
    made = [images(tmp_path / f"{name}.h5") for name in ("plain", "guided", "one")]
    assert not np.array_equal(made[0], made[1]) and not np.array_equal(made[1], made[2])


def test_what_a_guide_has_seen_the_set_has_seen(teacher, tmp_path):
    clean = student(tmp_path / "clean.safetensors", teacher, 1)
    real = student(tmp_path / "real.safetensors", teacher, 2, "train")
    run(teacher, tmp_path / "d.h5", QUICK, guides=[clean, real])
    assert attributes(tmp_path / "d.h5")["real_data"] == "train"


def test_what_other_guides_made_is_not_gone_on_with(teacher, tmp_path, monkeypatch):
    guides = [student(tmp_path / f"{seed}.safetensors", teacher, seed) for seed in (1, 2)]
    monkeypatch.setattr(inversion, "forget", lambda folder: None)  # as if each call had been stopped at its end
    for name, chosen in (("a", guides[:1]), ("b", guides[1:])):
        run(teacher, tmp_path / f"{name}.h5", QUICK, guides=chosen, state=tmp_path / "state")
    assert len(list((tmp_path / "state").rglob("group-000000.npz"))) == 2
    assert not np.array_equal(images(tmp_path / "a.h5"), images(tmp_path / "b.h5"))


@pytest.mark.parametrize("guided", [0, 1])
def test_shards_of_a_guided_and_an_unguided_set_are_not_merged(teacher, tmp_path, guided):
    guide = student(tmp_path / "s.safetensors", teacher, 1)
    shards = [tmp_path / f"{shard}.h5" for shard in (0, 1)]
    for shard, path in enumerate(shards):
        run(teacher, path, QUICK, shard, 2, guides=[guide] if shard == guided else None)
    with pytest.raises(InputError, match=r"1\.h5: guides differs from"):
        merge(shards, tmp_path / "d.h5")


def test_what_is_no_guide_is_refused(teacher, tmp_path):
    other = tiny.teacher(tmp_path / "other.safetensors", seed=3)
    stranger = student(tmp_path / "stranger.safetensors", other, 1)
    for path in (stranger, other, teacher):
        with pytest.raises(InputError, match=r"is no student of .*teacher\.safetensors"):
            run(teacher, tmp_path / "d.h5", QUICK, guides=[path])
    own = student(tmp_path / "own.safetensors", teacher, 1)
    intraq = Intraq(device="cpu", images=40, batch=20, iterations=2)
    with pytest.raises(InputError, match="objective intraq asks the teacher alone"):
        run(teacher, tmp_path / "d.h5", intraq, guides=[own], state=tmp_path / "state")
    assert not (tmp_path / "d.h5").exists() and not (tmp_path / "state").exists()


def test_guides_are_frozen_and_unchanged(teacher, tmp_path):
    guide, _ = load_checkpoint(student(tmp_path / "s.safetensors", teacher, 1))
    before = {name: value.clone() for name, value in guide.state_dict().items()}
    made = ModelInversion(load_checkpoint(teacher)[0], tiny.SHAPE, tiny.CLASSES, QUICK)
    made.guide([guide])
    made.group(0)
    assert all(torch.equal(value, before[name]) for name, value in guide.state_dict().items())
    assert not any(parameter.requires_grad for own in made.guides for parameter in own.parameters())
