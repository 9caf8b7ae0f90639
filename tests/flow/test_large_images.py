"""Images of 64 pixels through all stages, with a network that knows its classes."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from support import tiny
from torch import nn
from torch.nn import functional as F

from dfshield.evaluation import attack
from dfshield.models.checkpoints import Card, load_checkpoint, save_checkpoint
from dfshield.models.classifier import Classifier
from dfshield.models.factory import build_network
from dfshield.options import AttackOptions, TrainOptions
from dfshield.options.sources import Inversion
from dfshield.sources import inversion, stored, trainset
from dfshield.training import train

SHAPE = (1, 64, 64)
THREAT = "linf:4/255"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A network that was trained on 1,000 enlarged digits, and 200 others to try it on."""
    folder = tmp_path_factory.mktemp("large")
    digits = load_digits()
    x = F.interpolate(torch.from_numpy(digits.images).float()[:, None] / 16, size=SHAPE[1:], mode="bilinear")
    y = torch.from_numpy(digits.target)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Classifier(build_network("cnn-s", SHAPE, tiny.CLASSES), (0.3,), (0.38,))
        adam = torch.optim.Adam(model.parameters(), 0.01)
        for step in range(120):
            rows = slice(50 * (step % 20), 50 * (step % 20) + 50)
            loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
            adam.zero_grad()
            loss.backward()
            adam.step()
    card = Card("teacher", "digits", "cnn-s", SHAPE, tiny.CLASSES, (0.3,), (0.38,), "teacher")
    save_checkpoint(folder / "t.safetensors", model.eval(), card)
    test = x[1000:1200].permute(0, 2, 3, 1).numpy()
    np.savez(folder / "test.npz", x=test, y=y[1000:1200].numpy())
    return folder


def accuracies(folder, file):
    options = AttackOptions.of(attack="pgd", steps=5, threat=THREAT, device="cpu")
    path = folder / f"{file}.h5"
    ledger = attack.run(folder / file, path, options, None, None, folder / "test.npz", None, "pgd", {})
    return ledger.clean_accuracy, ledger.robust_accuracy


@pytest.mark.parametrize("coarse", [0.0, 0.5])
def test_a_network_for_64_pixels_is_hardened(made, coarse, monkeypatch):
    """Its images stay in the file, half of their steps are at 32 pixels, and the student still knows its classes."""
    data, student = made / f"{coarse}.h5", f"{coarse}.safetensors"
    own = Inversion(device="cpu", images=60, batch=20, iterations=40, labels="random", coarse=coarse)
    inversion.run(made / "t.safetensors", data, own)
    found = trainset.read(data)
    assert found.images.shape == (60, 64, 64, 1)
    teacher, _ = load_checkpoint(made / "t.safetensors", "cpu")
    with torch.no_grad():
        seen = teacher(torch.from_numpy(found.images).permute(0, 3, 1, 2)).argmax(1).numpy()
    assert (seen == found.labels).mean() > 0.9
    monkeypatch.setattr(stored, "IN_MEMORY", 0)
    options = TrainOptions.of(
        device="cpu",
        epochs=2,
        batch=10,
        aggregate=1,
        holdout=0,
        attack_steps=3,
        threat=THREAT,
        batchnorm="eval",
        lr=1e-4,
    )
    train.run(made / "t.safetensors", data, made / student, options)
    before, after = accuracies(made, "t.safetensors"), accuracies(made, student)
    assert before[0] > 70 and after[0] > before[0] - 40, (before, after)
