"""Equal runs give equal bytes whatever a network draws in its layers, stopped and resumed ones too."""

import random

import numpy as np
import pytest
import torch
from support import drawing, tiny
from support.cotraining import quick as cotrain_options
from support.training import quick as train_options

from dfshield import registry
from dfshield.baselines import cotrain
from dfshield.evaluation import attack
from dfshield.evaluation.session import Session
from dfshield.models.checkpoints import load_checkpoint
from dfshield.options import AttackOptions, TeacherOptions
from dfshield.options.sources import Inversion, Qimera
from dfshield.registry.models import Model
from dfshield.sources import generator, inversion
from dfshield.sources.generator import GeneratorSource
from dfshield.sources.inversion import ModelInversion
from dfshield.training import teacher, train
from dfshield.training.teacher import TeacherTraining
from dfshield.training.trainer import Trainer

NAME = "draws"


@pytest.fixture(autouse=True)
def network(monkeypatch):
    monkeypatch.setitem(registry.MODELS, NAME, Model("support.drawing:build", "Draws"))
    monkeypatch.setattr(drawing, "EVAL_NOISE", [0.0])
    drawing.drawn.clear()


@pytest.fixture
def files(tmp_path):
    """A teacher whose network draws, a training set of it, and images to attack it with."""
    path = tiny.teacher(tmp_path / "t.safetensors", model=NAME, scale=3.0)
    model, card = load_checkpoint(path)
    data = tiny.trainset(tmp_path / "data.h5", teacher_sha256=card.tensors_sha256)
    images = tiny.images(20)
    with torch.no_grad():
        labels = model(torch.from_numpy(images).permute(0, 3, 1, 2)).argmax(1)
    np.savez(tmp_path / "set.npz", x=images[..., 0], y=labels)
    return tmp_path, path, data


def make_teacher(files, out, state):
    options = TeacherOptions(epochs=3, lr=3e-3, device="cpu", augment=True)
    teacher.run(out, options, "digits", NAME, None, state=state)


def make_student(files, out, state):
    train.run(files[1], files[2], out, train_options(epochs=3), state=state)


def make_with_generator(files, out, state):
    cotrain.run(files[1], out, cotrain_options("dfard"), state=state)


def make_images(files, out, state):
    inversion.run(
        files[1], out, Inversion(images=30, batch=10, iterations=3, labels="random", device="cpu"), state=state
    )


def make_by_generator(files, out, state):
    options = Qimera(images=20, batch=10, epochs=3, iterations=2, width=0.2, latent=8, device="cpu")
    generator.run(files[1], out, options, state=state)


def make_ledger(files, out, state):
    options = AttackOptions.of(attack="pgd", steps=2, threat="linf:2/255", chunk=7, device="cpu")
    given = (None, None, files[0] / "set.npz", None, "pgd", {}, state)
    attack.run(files[1], out, options, *given)


STAGES = {
    "teacher": (make_teacher, TeacherTraining, "epoch", "train"),
    "train": (make_student, Trainer, "epoch", "train"),
    "cotrain": (make_with_generator, cotrain.Cotrainer, "epoch", "train"),
    "synthesize": (make_images, ModelInversion, "group", "eval"),
    "generate": (make_by_generator, GeneratorSource, "epoch", "eval"),
    "attack": (make_ledger, Session, "attack", "eval"),
}
"""How a stage is run, what it does piece by piece, and the mode in which its network draws."""


def disturb() -> None:
    """Another process, which has drawn other things before."""
    torch.rand(7)
    np.random.rand(3)
    random.random()


@pytest.mark.parametrize("noise", [0.0, 0.3], ids=["in training mode", "in eval mode, too"])
@pytest.mark.parametrize("stage", STAGES)
def test_equal_runs_and_resumed_ones_give_equal_bytes(files, tmp_path, monkeypatch, stage, noise):
    make, owner, piece, mode = STAGES[stage]
    drawing.EVAL_NOISE[0] = noise
    make(files, tmp_path / "one", None)
    assert mode in drawing.drawn
    disturb()
    make(files, tmp_path / "two", None)
    assert (tmp_path / "two").read_bytes() == (tmp_path / "one").read_bytes()
    genuine, done = getattr(owner, piece), []

    def stops(self, *given):
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(given)
        return genuine(self, *given)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(owner, piece, stops)
        make(files, tmp_path / "resumed", tmp_path / "state")
    again = []
    monkeypatch.setattr(owner, piece, lambda *given: again.append(given) or genuine(*given))
    disturb()
    make(files, tmp_path / "resumed", tmp_path / "state")
    assert len(done) == 1 and len(again) == 2, "two of three pieces are left"
    assert (tmp_path / "resumed").read_bytes() == (tmp_path / "one").read_bytes()


def test_each_epoch_draws_anew(files, tmp_path, monkeypatch):
    """Not the same features dropped in every epoch, nor in runs of other seeds."""
    firsts, genuine = [], Trainer.epoch

    def epoch(self, number, bar=None):
        before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        firsts.append((float(torch.rand(())), float(np.random.rand()), random.random()))
        torch.set_rng_state(before[0])
        return genuine(self, number, bar)

    monkeypatch.setattr(Trainer, "epoch", epoch)
    for seed in (0, 1):
        train.run(files[1], files[2], tmp_path / f"{seed}", train_options(epochs=2, seed=seed))
    assert all(len(set(values)) == 4 for values in zip(*firsts, strict=True))
