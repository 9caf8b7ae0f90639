"""Every network of the zoo goes through the teacher stage: accepted, or refused in one line and soon."""

import re
import time

import numpy as np
import pytest
import torch
from support.zoo import SMALL, TORCHVISION, ZOO

from dfshield.core.errors import InputError
from dfshield.core.rng import seeded
from dfshield.evaluation import attack
from dfshield.models.checkpoints import load_checkpoint
from dfshield.options import AttackOptions, TeacherOptions, TrainOptions
from dfshield.options.sources import Inversion
from dfshield.report import model_card
from dfshield.sources import inversion, trainset
from dfshield.training import train
from dfshield.training.teacher import run

OPTIONS = TeacherOptions(device="cpu")
SYNTHESIS = Inversion(device="cpu", images=40, batch=10, iterations=3)
TRAINING = TrainOptions.of(device="cpu", epochs=1, batch=10, aggregate=1, holdout=0, attack_steps=2)
ATTACK = AttackOptions.of(attack="pgd", device="cpu")
SECONDS = 5
"""A refusal takes no longer, in time of this process's own."""
NAMES = [pytest.param(name, marks=[pytest.mark.slow] if entry.slow else []) for name, entry in ZOO.items()]


def brought_in(name, folder, factory="support.zoo:build"):
    """The teacher stage on a network of the zoo; returns the checkpoint."""
    entry, weights = ZOO[name], folder / "weights.pt"
    state = {key: value for key, value in entry.network().state_dict().items() if isinstance(value, torch.Tensor)}
    torch.save(state, weights)
    facts = {"input_shape": entry.shape, "classes": entry.classes, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    out = folder / "teacher.safetensors"
    began = time.process_time()
    try:
        run(out, OPTIONS, "mine", "mine", None, factory, {"name": name}, weights, **facts)
    finally:
        assert time.process_time() - began < SECONDS or not entry.refusal
    return out


@pytest.mark.parametrize("name", NAMES)
def test_accepted_or_refused_in_one_line(name, tmp_path, capfd, request):
    if name in TORCHVISION:
        request.getfixturevalue("torchvision")
    entry = ZOO[name]
    if entry.refusal:
        with pytest.raises(InputError, match=entry.refusal) as caught:
            brought_in(name, tmp_path)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "teacher.safetensors").exists()
        return
    model, card = load_checkpoint(brought_in(name, tmp_path), factory="support.zoo:build")
    said = "\n".join(card.provenance.get("said", []))
    assert bool(re.search(entry.says, said)) if entry.says else not said
    network = entry.network()
    expected = {key: value.float() for key, value in network.state_dict().items()}
    found = model.net.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key].float(), value) for key, value in expected.items())
    assert capfd.readouterr().out == ""


USED = [name for name, entry in SMALL.items() if not entry.refusal]


def through_all_stages(name, folder, monkeypatch, factory):
    """Synthetic images, weights before and after training, and the ledger of an attack on either."""
    folder.mkdir()
    path = brought_in(name, folder, factory)
    synthetic, student, images = (folder / file for file in ("data.h5", "student.safetensors", "test.npz"))
    inversion.run(path, synthetic, SYNTHESIS, factory=factory)
    train.run(path, synthetic, student, TRAINING, factory=factory)
    random = np.random.RandomState(0)
    np.savez(images, x=random.rand(20, 16, 16, 3).astype(np.float32), y=np.arange(20) % 4)
    ledgers = [
        attack.run(file, folder / "ledger.h5", ATTACK, None, None, images, factory, "pgd", {})
        for file in (path, student)
    ]
    weights = [load_checkpoint(file, factory=factory)[0].net.state_dict() for file in (path, student)]
    return trainset.read(synthetic).images, weights, ledgers


def as_the_model_card_says(student, factory, x):
    """Logits of a student by the code of its model card, and by the program."""
    model, card = load_checkpoint(student, factory=factory)
    (code,) = re.findall(r"```python\n(.*?)```", model_card.model_card("mine", model_card.Evidence(card)), re.DOTALL)
    *loading, computing = code.replace(model_card.MODEL, str(student)).splitlines()
    space = {"images": x}
    exec("\n".join(loading), space)
    with seeded(0), torch.no_grad():
        exec(computing, space)
    with seeded(0), torch.no_grad():
        return space["logits"], model(x)


@pytest.mark.parametrize("name", USED)
def test_what_is_accepted_is_as_its_plain_self_in_all_stages(name, tmp_path, monkeypatch):
    images, (before, after), ledgers = through_all_stages(name, tmp_path / "own", monkeypatch, "support.zoo:build")
    assert any(not torch.equal(before[key], value) for key, value in after.items())
    assert all(len(ledger.label) == 20 for ledger in ledgers)
    by_hand = as_the_model_card_says(
        tmp_path / "own/student.safetensors", "support.zoo:build", torch.rand(5, 3, 16, 16)
    )
    torch.testing.assert_close(*by_hand)
    if ZOO[name].plainly is None:
        return
    plain, weights, verdicts = through_all_stages(name, tmp_path / "plain", monkeypatch, "support.zoo:plain")
    assert np.abs(images - plain).max() < 1e-3
    for key, value in weights[1].items():
        torch.testing.assert_close(after[key], value, rtol=1e-3, atol=1e-4)
    for found, expected in zip(ledgers, verdicts, strict=True):
        assert np.array_equal(found.clean_prediction, expected.clean_prediction)
        assert np.array_equal(found.broken, expected.broken)


@pytest.mark.parametrize("name", [name for name, entry in SMALL.items() if not entry.refusal])
def test_the_plain_form_computes_the_same(name):
    entry = ZOO[name]
    x = torch.rand(5, *entry.shape)
    outputs = []
    for net in (entry.network().float(), entry.plain().float()):
        with torch.no_grad(), seeded(0):
            outputs.append(net(x))
    torch.testing.assert_close(outputs[0], outputs[1])
    assert outputs[0].std(0).min() > 1e-4  # images differ
