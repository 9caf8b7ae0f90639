"""The defend stage: its file, what it refuses, and the attacks behind what it wrote."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support import tiny

from dfshield import registry
from dfshield.core.errors import InputError
from dfshield.core.rng import generator
from dfshield.defences import fit, mixture
from dfshield.defences.fit_file import KEY, check_fit_file, fit_for, is_fit, load_defended, read_fit
from dfshield.evaluation import attack, check
from dfshield.evaluation.findings import read_findings
from dfshield.evaluation.ledger import read_ledger
from dfshield.models.checkpoints import Card, load_checkpoint, read_card, save_checkpoint
from dfshield.options import AttackOptions, ChecksOptions, DefendOptions
from dfshield.tools import inspect

THREAT = "linf:0.01"
OPTIONS = DefendOptions.of(defence="mixture", device="cpu", images=60, steps=3)


def save_student(folder, teacher_sha256: str, name="student.safetensors", made=None):
    own = {"teacher_sha256": teacher_sha256} | (made or {})
    mean, std = (tuple(getattr(read_card(folder / "teacher.safetensors"), key)) for key in ("mean", "std"))
    card = Card("student", "digits", "cnn-s", tiny.SHAPE, tiny.CLASSES, mean, std, "none", provenance=own)
    save_checkpoint(folder / name, tiny.classifier(seed=1, scale=3.0), card)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Teacher, student and a training set with the student's own answers for labels."""
    teacher = read_card(tiny.teacher(tmp_path / "teacher.safetensors", scale=3.0)).tensors_sha256
    save_student(tmp_path, teacher)
    student, _ = load_checkpoint(tmp_path / "student.safetensors")
    x = torch.from_numpy(tiny.images(80)).permute(0, 3, 1, 2)
    y = student(x).argmax(1).numpy()
    tiny.trainset(tmp_path / "data.h5", values=x.numpy(), labels=y, teacher_sha256=teacher)
    np.savez(tmp_path / "set.npz", x=tiny.images(40, seed=3)[..., 0], y=y[:40])
    return tmp_path


def defend(folder, out="defence.safetensors", model="student", data="data.h5", threat=THREAT, **options):
    chosen = DefendOptions.of(**(OPTIONS.model_dump() | options))
    files = (folder / f"{model}.safetensors", folder / "teacher.safetensors", folder / data, folder / out)
    return fit.run(*files, chosen, threat, code="c0de")


def attacked(folder, model="student", fitted="defence.safetensors", out="ledger.h5", options=OPTIONS, **given):
    file = folder / fitted if fitted else None
    chosen = AttackOptions.of(device="cpu", threat=THREAT, **({"attack": "pgd", "steps": 3} | given))
    data = (None, None, folder / "set.npz", None, "pgd", {}, None, "")
    return attack.run(folder / f"{model}.safetensors", folder / out, chosen, *data, options, fitted=file)


def test_the_file_says_what_it_is_of_and_equal_runs_give_equal_bytes(folder):
    sha = defend(folder)
    defend(folder, "again.safetensors")
    assert (folder / "defence.safetensors").read_bytes() == (folder / "again.safetensors").read_bytes()
    card, tensors = read_fit(folder / "defence.safetensors")
    student, teacher = (read_card(folder / f"{name}.safetensors") for name in ("student", "teacher"))
    assert card.tensors_sha256 == sha and (card.defence, card.threat, card.code) == ("mixture", THREAT, "c0de")
    assert (card.model_sha256, card.teacher_sha256) == (student.tensors_sha256, teacher.tensors_sha256)
    assert card.options == OPTIONS.described() and "device" not in card.options and card.device == "cpu"
    assert (card.real_data, card.source, len(card.data_sha256)) == ("none", "dss", 64)
    weights = load_file(folder / "teacher.safetensors")
    assert all(torch.equal(tensors[f"teacher.net.{name}"], value) for name, value in weights.items())


@pytest.mark.parametrize("change", [{"seed": 1}, {"keep": 0.5}])
def test_other_options_give_another_file(folder, change):
    defend(folder)
    defend(folder, "other.safetensors", **change)
    assert (folder / "defence.safetensors").read_bytes() != (folder / "other.safetensors").read_bytes()


def flipped(path, where: int):
    content = bytearray(path.read_bytes())
    content[where] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("place", ["card", "tensors", "end", "empty"])
def test_a_damaged_file_is_refused(folder, place):
    defend(folder)
    path = folder / "defence.safetensors"
    content = path.read_bytes()
    if place == "card":
        flipped(path, content.index(b"linf:0.01") + 8)
    elif place == "tensors":
        flipped(path, len(content) - 5)
    else:
        path.write_bytes(content[:-1] if place == "end" else b"")
    for read in (read_fit, check_fit_file):
        with pytest.raises(InputError, match=r"defence.safetensors: ") as refused:
            read(path)
        assert "\n" not in str(refused.value)


def rewritten(path, **changes):
    """The same tensors under a card with changes, its own hash in order."""
    card, tensors = read_fit(path)
    from dfshield.models.card import sealed

    save_file(tensors, path, metadata={KEY: sealed(dataclasses.replace(card, **changes))})


def test_what_is_newer_or_no_fitted_defence_is_refused(folder):
    defend(folder)
    path = folder / "defence.safetensors"
    assert is_fit(path) and not is_fit(folder / "student.safetensors")
    with pytest.raises(InputError, match="is not a fitted defence of dfshield; fit it again with `dfshield defend`"):
        read_fit(folder / "student.safetensors")
    with pytest.raises(InputError, match="is not a checkpoint of dfshield"):
        read_card(path)
    with safe_open(path, framework="pt") as stream:
        text = stream.metadata()[KEY]
    newer = json.dumps(json.loads(text) | {"format": 99})
    save_file(load_file(path), folder / "newer.safetensors", metadata={KEY: newer})
    with pytest.raises(InputError, match="format 99 is from a newer dfshield"):
        read_fit(folder / "newer.safetensors")
    rewritten(path, defence="tte")
    with pytest.raises(InputError, match=r"defence 'tte' is not one of .*mixture"):
        read_fit(path)


def test_a_file_without_one_of_its_tensors_is_refused(folder):
    defend(folder)
    card, tensors = read_fit(folder / "defence.safetensors")
    for lost, named in (("weight", "weight"), ("teacher.", r"teacher\.")):
        from dfshield.defences.fit_file import write_fit

        kept = {name: value for name, value in tensors.items() if not name.startswith(lost)}
        write_fit(folder / "less.safetensors", card, kept)
        with pytest.raises(InputError, match=f"lacks {named}, which mixture keeps"):
            read_fit(folder / "less.safetensors")


def test_values_that_are_not_finite_are_not_written(folder, monkeypatch):
    monkeypatch.setattr(mixture.Mixture, "fit", lambda self, given: {"weight": torch.tensor(float("nan"))})
    with pytest.raises(InputError, match="not written: tensor 'weight' holds NaN"):
        defend(folder)
    assert not (folder / "defence.safetensors").exists()


def test_a_file_of_another_model_defence_or_options_is_refused(folder):
    defend(folder)
    path, sha = folder / "defence.safetensors", read_card(folder / "student.safetensors").tensors_sha256
    assert fit_for(OPTIONS, path, sha) is not None and fit_for(None, None, sha) is None
    assert fit_for(OPTIONS.model_copy(update={"seed": 9, "threads": 2}), path, sha) is not None
    refused = {
        "was fitted for model": (OPTIONS, path, "f" * 64),
        "was fitted with keep 0.985, asked for is 0.9;": (OPTIONS.model_copy(update={"keep": 0.9}), path, sha),
        "defence mixture is fitted first; give the file": (OPTIONS, None, sha),
        "no defence is given; leave out --fitted": (None, path, sha),
        "defence tte has nothing to fit; leave out --fitted": (DefendOptions.of(defence="tte"), path, sha),
        "no such file": (OPTIONS, folder / "none.safetensors", sha),
    }
    for why, given in refused.items():
        with pytest.raises(InputError, match=why):
            fit_for(*given)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"defence": "tte", "images": None}, "defence tte has nothing to fit; those that have are .*mixture"),
        ({"threat": "linf:9"}, "--threat: ε 9 in threat"),
        ({"model": "stranger"}, "stranger.safetensors: was hardened from ssssssssssssssss, but .*give its own teacher"),
        ({"data": "other.h5"}, "other.h5: made from teacher tttttttttttttttt"),
    ],
)
def test_what_does_not_belong_together_is_refused(folder, change, why):
    save_student(folder, "s" * 64, "stranger.safetensors")
    tiny.trainset(folder / "other.h5")
    if change.get("defence"):
        chosen = DefendOptions.of(defence="tte")
        with pytest.raises(InputError, match=why):
            fit.run(*(folder / "none",) * 4, chosen, THREAT)
        return
    with pytest.raises(InputError, match=why):
        defend(folder, **change)
    assert not (folder / "defence.safetensors").exists()


def test_a_fit_has_the_images_that_training_held_out_last(folder, monkeypatch):
    given = []
    keep = {name: torch.zeros(()) for name in ("scale", "shift", "power", "weight", "teacher.x")}
    monkeypatch.setattr(mixture.Mixture, "fit", lambda self, values: given.append(values) or keep)
    sha = read_card(folder / "teacher.safetensors").tensors_sha256
    from dfshield.sources.trainset import header, read

    content = header(folder / "data.h5")["content_sha256"]
    made = {"data_sha256": content, "options": {"holdout": 10, "data_share": 0.5}}
    save_student(folder, sha, "trained.safetensors", made=made | {"seed": 3})
    defend(folder, model="trained")
    defend(folder)
    images = torch.from_numpy(read(folder / "data.h5").images).permute(0, 3, 1, 2)
    held = torch.randperm(40, generator=generator("holdout", 3))[:10]
    assert torch.equal(given[0].images[-10:], images[held]) and torch.equal(given[1].images, images)
    assert torch.equal(given[0].images.flatten(1).sum(1).sort().values, images.flatten(1).sum(1).sort().values)
    labels = torch.from_numpy(read(folder / "data.h5").labels)
    assert torch.equal(given[0].labels[-10:], labels[held]) and given[0].threat == THREAT


def test_a_teacher_is_its_own_original(folder, monkeypatch):
    given = []
    keep = {name: torch.zeros(()) for name in ("scale", "shift", "power", "weight", "teacher.x")}
    monkeypatch.setattr(mixture.Mixture, "fit", lambda self, values: given.append(values) or keep)
    defend(folder, model="teacher")
    defend(folder)
    assert given[0].teacher is given[0].model and given[1].teacher is not given[1].model


def test_attack_and_checks_read_it_and_say_so(folder):
    sha = defend(folder)
    written = attacked(folder)
    ledger = read_ledger(folder / "ledger.h5")
    assert written.others == ledger.others == {"defence": sha} and ledger.defence == "mixture"
    assert ledger.defence_options == OPTIONS.described() and ledger.real_data == "none"
    model = load_defended(folder / "student.safetensors", folder / "defence.safetensors")
    x = torch.from_numpy(tiny.images(40, seed=3)).permute(0, 3, 1, 2)
    assert np.array_equal(model(x).argmax(1), ledger.clean_prediction)
    asked = ChecksOptions(device="cpu", threat=THREAT, limit=20, steps=3, queries=20, binarised=0)
    given = {"ledgers": [folder / "ledger.h5"], "evaluation_npz": folder / "set.npz", "defence": OPTIONS}
    files = (folder / "student.safetensors", folder / "checks.json", asked)
    check.run(*files, **given, fitted=folder / "defence.safetensors")
    found = read_findings(folder / "checks.json")
    assert found.others == {"defence": sha} and found.defence == "mixture"
    defend(folder, "other.safetensors", threat="linf:0.02")
    with pytest.raises(InputError, match=r"ledger.h5: is the ledger of another fit of the defence"):
        check.run(*files, **given, fitted=folder / "other.safetensors")


def test_what_the_fit_has_seen_the_ledger_says(folder):
    x = tiny.images(80)
    student, _ = load_checkpoint(folder / "student.safetensors")
    y = student(torch.from_numpy(x).permute(0, 3, 1, 2)).argmax(1)
    sha = read_card(folder / "teacher.safetensors").tensors_sha256
    tiny.trainset(folder / "real.h5", n=80, labels=y, teacher_sha256=sha, real_data="train", source="real")
    defend(folder, data="real.h5")
    assert attacked(folder).real_data == "train"
    assert attack.seen_data("none", OPTIONS) == "none"


def test_a_ledger_without_a_fitted_defence_is_as_ever(folder):
    ledger = attacked(folder, options=None, fitted="")
    named = attacked(folder, options=DefendOptions.of(defence="identity"), fitted="")
    assert ledger.others == named.others == {}


def test_it_can_be_looked_into(folder, capsys):
    sha = defend(folder)
    inspect.run(folder / "defence.safetensors", None)
    said = capsys.readouterr().out
    assert "fitted defence" in said and sha in said and THREAT in said and "keep=0.985" in said


def test_every_fitted_entry_has_options_of_its_own_and_a_stage():
    for name in (name for name, entry in registry.DEFENCES.items() if entry.fitted):
        assert DefendOptions.class_for(name) is not DefendOptions
