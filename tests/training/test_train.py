"""The train stage: resuming, divergence, what a student's file says, metrics, what is refused, profiles."""

import csv
import math
import subprocess
import sys

import pytest
import torch
from support import tiny
from support.training import QUICK, quick

from dfshield.core.errors import InputError
from dfshield.models.checkpoints import load_checkpoint, read_card
from dfshield.options import PROFILES, TrainOptions
from dfshield.planning.choices import layer
from dfshield.sources import trainset
from dfshield.training import train
from dfshield.training.train import run
from dfshield.training.trainer import Trainer

EVERYTHING = {
    "translate": True,
    "contrast": 0.3,
    "noise": 0.1,
    "awp": 0.01,
    "awp_warmup": 1,
    "average": 0.8,
    "eps_warmup": 0.8,
    "lr_warmup": 0.5,
}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"lr": 1e20, "aggregate": 1}, "the loss is "),
        ({"lr": 3e38, "aggregate": 5, "weight_decay": 1e3}, "a weight is not finite"),
    ],
)
@pytest.mark.parametrize("average", [0.0, 0.9])
def test_what_is_not_finite_ends_the_run_at_the_last_whole_epoch(files, tmp_path, capsys, changes, reason, average):
    out, metrics = tmp_path / "s.safetensors", tmp_path / "m.csv"
    run(*files, out, quick(epochs=3, average=average, **changes), metrics=metrics, state=tmp_path / "state")
    card = read_card(out)
    assert card.provenance["diverged"].startswith(reason)
    assert card.provenance["diverged"].endswith("; these are the weights after epoch 0")
    assert card.tensors_sha256 == read_card(files[0]).tensors_sha256 and card.provenance["updates"] == 0
    assert "dfshield diverged: " in capsys.readouterr().err
    assert len(metrics.read_text().splitlines()) == 1


def test_divergence_after_some_epochs_keeps_those(files, tmp_path, monkeypatch):
    run(*files, tmp_path / "two.safetensors", quick(epochs=2, average=0.9, aggregate=1))
    genuine = Trainer.gradients

    def explodes(self, rows, random):
        loss, gradients = genuine(self, rows, random)
        return loss * (math.nan if len(self.history) == 2 and self.updates > before else 1), gradients

    before = read_card(tmp_path / "two.safetensors").provenance["updates"]
    monkeypatch.setattr(Trainer, "gradients", explodes)
    run(*files, tmp_path / "three.safetensors", quick(epochs=3, average=0.9, aggregate=1))
    two, three = (read_card(tmp_path / f"{name}.safetensors") for name in ("two", "three"))
    assert two.provenance["diverged"] == "" and three.provenance["diverged"].endswith("weights after epoch 2")
    assert three.tensors_sha256 == two.tensors_sha256
    assert three.provenance["updates"] == two.provenance["updates"]


@pytest.mark.parametrize("changes", [{}, EVERYTHING, EVERYTHING | {"loss": "dart"}], ids=["plain", "all", "all-dart"])
@pytest.mark.parametrize("stop", [1, 2])
def test_a_stopped_run_goes_on_to_the_same_bytes(files, tmp_path, monkeypatch, stop, changes):
    options = quick(epochs=3, schedule="cosine", lr=0.01, **changes)
    run(*files, tmp_path / "whole.safetensors", options, metrics=tmp_path / "whole.csv")
    genuine, epochs = Trainer.epoch, []

    def epoch(self, number, bar=None):
        if len(epochs) == stop:
            raise KeyboardInterrupt
        epochs.append(number)
        return genuine(self, number, bar)

    monkeypatch.setattr(Trainer, "epoch", epoch)
    out, state = tmp_path / "resumed.safetensors", tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        run(*files, out, options, state=state, metrics=tmp_path / "resumed.csv")
    assert not out.exists()
    epochs.clear()
    stop = 9
    run(*files, out, options, state=state, metrics=tmp_path / "resumed.csv")
    assert epochs == list(range(3))[-len(epochs) :]
    assert len(epochs) < 3
    assert out.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert (tmp_path / "resumed.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not list(state.rglob("*.pt"))


def test_the_state_of_other_options_is_not_taken(files, tmp_path, monkeypatch):
    state = tmp_path / "state"
    run(*files, tmp_path / "a.safetensors", QUICK)
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(train, "save_checkpoint", lambda *a: 1 / 0)
        run(*files, tmp_path / "x.safetensors", QUICK, state=state)
    for name, kept in (("b", state), ("c", None)):
        run(*files, tmp_path / f"{name}.safetensors", quick(lr=0.01), state=kept)
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "c.safetensors").read_bytes()
    next(state.rglob("epoch.pt")).write_bytes(b"damaged")
    run(*files, tmp_path / "d.safetensors", QUICK, state=state)
    assert (tmp_path / "d.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()


def test_the_last_epoch_is_the_result(files, tmp_path, monkeypatch):
    states, genuine = [], Trainer.epoch

    def epoch(self, number, bar=None):
        row = genuine(self, number, bar)
        states.append({k: v.clone() for k, v in self.student.net.state_dict().items()})
        return row | {"robust_agreement": 100.0 - 30 * number, "clean_agreement": 100.0 - 30 * number}

    monkeypatch.setattr(Trainer, "epoch", epoch)
    run(*files, tmp_path / "student.safetensors", quick(lr=0.01, epochs=3))
    student, _ = load_checkpoint(tmp_path / "student.safetensors")
    assert all(torch.equal(v, states[-1][k]) for k, v in student.net.state_dict().items())


def test_what_the_student_says_of_itself(files, tmp_path):
    out = tmp_path / "student.safetensors"
    run(*files, out, QUICK, recipe="mine", code="digest")
    card, teacher = read_card(out), read_card(files[0])
    assert (card.kind, card.real_data, card.mean, card.std) == ("student", "none", teacher.mean, teacher.std)
    assert card.provenance["teacher_sha256"] == teacher.tensors_sha256
    assert card.provenance["data_sha256"] == trainset.header(files[1])["content_sha256"]
    assert (card.provenance["recipe"], card.provenance["code"]) == ("mine", "digest")
    assert card.provenance["updates"] == 2 * 3
    assert card.provenance["options"]["tau"] == 0.5
    assert card.tensors_sha256 != teacher.tensors_sha256


def test_real_data_is_inherited(files, tmp_path):
    sha = read_card(files[0]).tensors_sha256
    data = tiny.trainset(tmp_path / "real.h5", teacher_sha256=sha, real_data="train", source="real")
    run(files[0], data, tmp_path / "student.safetensors", quick(epochs=1))
    card = read_card(tmp_path / "student.safetensors")
    assert (card.real_data, card.provenance["source"]) == ("train", "real")


@pytest.mark.parametrize("holdout", [0, 10])
def test_metrics(files, tmp_path, holdout):
    run(*files, tmp_path / "s.safetensors", quick(holdout=holdout, lr=0.01), metrics=tmp_path / "m.csv")
    with (tmp_path / "m.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    columns = ["epoch", "loss", "clean_agreement", "robust_agreement", "updates", "passed", "lr"]
    assert list(rows[0]) == columns
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert [int(row["updates"]) for row in rows] == [3, 6]
    assert all(0 < float(row["passed"]) < 1 and float(row["loss"]) > 0 and float(row["lr"]) == 0.01 for row in rows)
    agreement = [float(row[key]) for row in rows for key in ("clean_agreement", "robust_agreement")]
    assert all(math.isnan(value) if holdout == 0 else 0 <= value <= 100 for value in agreement)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher_sha256": "f" * 64}, "made from teacher f{16}.*synthesise from this teacher"),
        ({"classes": 12}, "12 classes but .* has 10"),
        ({"shape": (1, 8, 9)}, r"images are \(1, 8, 9\) but .* takes \(1, 8, 8\)"),
        ({"shape": (3, 8, 8)}, r"images are \(3, 8, 8\)"),
        ({"groups": 2}, r"holds groups 0\.\.0 of 2; give the merged file"),
    ],
)
def test_data_of_another_teacher_are_refused(files, tmp_path, changes, message):
    sha = read_card(files[0]).tensors_sha256
    data = tiny.trainset(tmp_path / "other.h5", **({"teacher_sha256": sha} | changes))
    with pytest.raises(InputError, match=message):
        run(files[0], data, tmp_path / "s.safetensors", QUICK)
    assert not (tmp_path / "s.safetensors").exists()


def test_no_real_data_can_be_read(files, tmp_path):
    code = (
        "import sys; from pathlib import Path\n"
        "from dfshield.options import TrainOptions\n"
        "from dfshield.training import train, trainer\n"
        "genuine = trainer.Trainer.epoch\n"
        "def epoch(self, *rest):\n"
        "    try: import dfshield.data\n"
        "    except RuntimeError as error: print('refused:', error)\n"
        "    return genuine(self, *rest)\n"
        "trainer.Trainer.epoch = epoch\n"
        "options = TrainOptions.of(epochs=1, batch=10, aggregate=1, attack_steps=1, holdout=0)\n"
        "train.run(*map(Path, sys.argv[1:]), options)\n"
        "print(sorted(m for m in sys.modules if m.startswith('dfshield.data') or m == 'sklearn'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, files), str(tmp_path / "s.safetensors")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "refused: train is data-free: it must not open real data (dfshield.data)\n[]\n"


@pytest.mark.parametrize(
    ("option", "paper", "repo"),
    [
        ("temperature", 1.0, 20.0),
        ("clean_reduction", "batchmean", "mean"),
        ("weight_decay", 0.0, 1e-4),
        ("nesterov", False, True),
        ("l2_step", "15/255", "eps/5"),
        ("tie", "zero", "all"),
        ("last_group", "full", "full"),
        ("reduction", "sum", "sum"),
        ("lr_factor", "1", "1"),
        ("epochs", 100, 200),
        ("batch", 200, 200),
    ],
)
def test_profiles(option, paper, repo):
    for name, expected in (("paper", paper), ("repo", repo)):
        options = TrainOptions.of(**layer(PROFILES[name].get("train", {}), "train", "dfshield"))
        assert getattr(options, option) == expected


def test_the_papers_numbers():
    options = TrainOptions.of()
    assert (options.lr, options.momentum, options.epochs, options.batch) == (1e-4, 0.9, 100, 200)
    assert (options.aggregate, options.tau, options.lambda1, options.lambda2) == (20, 0.5, 1, 1)
    assert (options.attack_steps, options.schedule) == (10, "constant")
