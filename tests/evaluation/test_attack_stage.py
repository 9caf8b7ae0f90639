"""The attack stage: checkpoint, images and options to a ledger, stopped and resumed."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from support import tiny
from support.attacked import key, small_budget

from dfshield import registry
from dfshield.attacks import fgsm
from dfshield.core.errors import InputError
from dfshield.defences.tte import Ensembled
from dfshield.evaluation import attack as evaluate
from dfshield.evaluation.ledger import read_ledger
from dfshield.evaluation.session import Session
from dfshield.evaluation.verdict import replay
from dfshield.models.checkpoints import Card, build_network, load_checkpoint, save_checkpoint
from dfshield.models.classifier import Classifier
from dfshield.options import AttackOptions, DefendOptions
from dfshield.report.rows import flags_of, metric_of


@pytest.fixture
def small(monkeypatch):
    small_budget(monkeypatch)


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    model = Classifier(build_network("cnn-s", (1, 8, 8), 10), (0.3,), (0.38,)).eval()
    card = Card("student", "digits", "cnn-s", (1, 8, 8), 10, (0.3,), (0.38,), "none")
    x = torch.rand((23, 1, 8, 8), generator=key(1))
    with torch.no_grad():
        model.net[-1].bias -= model(x).mean(0)
        y = model(x).argmax(1)
    save_checkpoint(tmp_path / "student.safetensors", model, card)
    y[0] = (y[0] + 1) % 10
    np.savez(tmp_path / "set.npz", x=x.numpy()[:, 0], y=y.numpy())
    return tmp_path, model, x, y


def stage(
    folder,
    out="ledger.h5",
    state=None,
    protocol="p",
    evaluation="set.npz",
    dataset=None,
    defence=None,
    others=None,
    **options,
):
    options = AttackOptions.of(device="cpu", **options)
    evaluation = folder / evaluation if evaluation else None
    model, subject = folder / "student.safetensors", {"a": 1}
    given = (dataset, None, evaluation, None, protocol, subject, state, "", defence, others)
    return evaluate.run(model, folder / out, options, *given)


def test_stage_writes_a_ledger_that_reads_back_and_replays(checkpoint, small):
    folder, model, x, y = checkpoint
    written = stage(folder, attack="autoattack", threat="linf:2/255", chunk=9, protocol="aa-standard")
    ledger = read_ledger(folder / "ledger.h5")
    assert ledger.n == 23 and ledger.clean_accuracy == pytest.approx(100 * 22 / 23)
    assert ledger.components == ("robust", "clean", "quick", "apgd-ce", "apgd-t", "fab-t", "square")
    assert ledger.protocol == "aa-standard[6 iterations, 25 queries]" and ledger.subject == {"a": 1}
    assert ledger.real_data == "none" and ledger.dataset == "digits" and len(ledger.model_sha256) == 64
    assert np.array_equal(ledger.broken, written.broken) and 1 < ledger.broken.sum() < 23
    assert np.array_equal(replay(model, x, y, ledger), ledger.broken)


def test_a_protocol_says_which_split_it_had(checkpoint):
    folder, *_ = checkpoint
    for split, expected in (("test", "pgd10"), ("dev", "pgd10[dev]")):
        made = stage(folder, attack="pgd", steps=1, limit=5, protocol="pgd10", evaluation=None, split=split)
        assert made.protocol == expected
    assert metric_of("pgd10[dev]") == "pgd10"
    made = stage(folder, attack="clean", protocol="clean", split="dev")
    assert made.protocol == "clean"  # a user's own file has no splits


def test_a_ledger_says_that_the_models_training_diverged(checkpoint):
    """As the last whole epoch's weights, its predictions alone would not tell."""
    folder, *_ = checkpoint
    model, card = load_checkpoint(folder / "student.safetensors", "cpu")
    for reason in ("", "the loss of the student is nan in epoch 2"):
        card.provenance["diverged"] = reason
        save_checkpoint(folder / "student.safetensors", model, card)
        ledger = stage(folder, f"{bool(reason)}.h5", attack="clean")
        assert ("diverged" in ledger.flags) == ("diverged" in flags_of(ledger)) == bool(reason)


def test_a_stopped_run_resumes_to_the_same_bytes(checkpoint, monkeypatch, small):
    folder, *_ = checkpoint
    options = {"attack": "autoattack", "threat": "linf:0.002", "chunk": 8}
    original, calls, limit = Session.attack, [], 1000

    def counting(self, part, *args):
        if len(calls) == limit:
            raise KeyboardInterrupt
        calls.append(part.name)
        return original(self, part, *args)

    monkeypatch.setattr(Session, "attack", counting)
    stage(folder, "straight.h5", **options)
    pieces, limit = len(calls), len(calls) + 6
    assert pieces > 8
    with pytest.raises(KeyboardInterrupt):
        stage(folder, state=folder / "state", **options)
    kept = sorted((folder / "state").rglob("*.npz"))
    assert len(kept) == 6 and not (folder / "ledger.h5").exists()
    kept[0].write_bytes(kept[0].read_bytes()[:100])  # damaged: made again
    limit = 1000
    stage(folder, state=folder / "state", **options)
    assert len(calls) == 2 * pieces + 1
    assert (folder / "ledger.h5").read_bytes() == (folder / "straight.h5").read_bytes()
    assert not list((folder / "state").rglob("*.npz"))


def test_a_stopped_run_keeps_distances_and_resumes_to_the_same_bytes(checkpoint, monkeypatch):
    """Stopped after two of three chunks; the third alone is then attacked."""
    folder, model, x, y = checkpoint
    options = {"attack": "deepfool", "threat": "linf:0.001", "chunk": 9}
    stage(folder, **options)
    whole = (folder / "ledger.h5").read_bytes()
    attack, calls = Session.attack, []

    def stopping(self, part, *args):
        calls.append(part.name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return attack(self, part, *args)

    monkeypatch.setattr(Session, "attack", stopping)
    with pytest.raises(KeyboardInterrupt):
        stage(folder, "again.h5", state=folder / "state", **options)
    stage(folder, "again.h5", state=folder / "state", **options)
    assert len(calls) == 4 and (folder / "again.h5").read_bytes() == whole
    ledger = read_ledger(folder / "again.h5")
    assert ledger.distances[0] == 0 and (ledger.distances[1:] > 0).all() and np.isfinite(ledger.distances).all()
    assert 0 < ledger.robust_accuracy < 100
    assert np.array_equal(replay(model, x, y, ledger), ledger.broken)


def test_pieces_of_other_options_or_models_are_not_used(checkpoint, monkeypatch):
    folder, *_ = checkpoint
    monkeypatch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)
    stage(folder, "a.h5", state=folder / "state", attack="pgd", threat="linf:2/255")
    stage(folder, "b.h5", state=folder / "state", attack="pgd", threat="linf:4/255")
    stage(folder, "c.h5", attack="pgd", threat="linf:4/255")
    assert (folder / "b.h5").read_bytes() == (folder / "c.h5").read_bytes() != (folder / "a.h5").read_bytes()
    assert len(list((folder / "state").iterdir())) == 2


def test_stage_on_a_registered_set_with_a_limit(checkpoint):
    folder, *_ = checkpoint
    ledger = stage(folder, evaluation=None, split="dev", limit=40, attack="fgsm", chunk=16)
    assert ledger.n == 40 and ledger.dataset == "digits" and ledger.options["limit"] == 40
    assert stage(folder, evaluation=None, split="test", limit=40, attack="clean").data_sha256 != ledger.data_sha256


@pytest.mark.parametrize(
    "change, message",
    [
        ({"dataset": "svhn", "evaluation": None}, r"data set svhn has \(3, 32, 32\)"),
        ({"dataset": "cifar", "evaluation": None}, "is not one of digits"),
        ({"evaluation": "none.npz"}, "no such file"),
        ({"evaluation": "wide.npz"}, "8x8"),
        ({"evaluation": "labels.npz"}, "labels lie in"),
    ],
)
def test_data_that_do_not_fit_the_model_are_refused(checkpoint, change, message):
    folder, *_ = checkpoint
    np.savez(folder / "wide.npz", x=np.zeros((2, 8, 9)), y=np.zeros(2, int))
    np.savez(folder / "labels.npz", x=np.zeros((2, 8, 8)), y=np.array([0, 10]))
    with pytest.raises(InputError, match=message) as error:
        stage(folder, attack="clean", **change)
    assert "\n" not in str(error.value) and not (folder / "ledger.h5").exists()


def defend(**options):
    return DefendOptions.of(**options)


def test_no_defence_by_name_is_none(checkpoint):
    folder, *_ = checkpoint
    plain = stage(folder, "plain.h5", attack="pgd", threat="linf:0.05")
    named = stage(folder, "named.h5", attack="pgd", threat="linf:0.05", defence=defend(defence="identity"))
    assert (plain.defence, plain.defence_options, named.defence) == ("none", {}, "identity")
    for row in ("broken", "prediction", "margin", "perturbation", "perturbed_index"):
        assert getattr(plain, row).tobytes() == getattr(named, row).tobytes()


def test_a_ledger_is_of_the_defended_model(checkpoint):
    folder, model, x, y = checkpoint
    defence = defend(defence="tte", crops=2)
    stage(folder, attack="pgd", threat="linf:0.05", chunk=9, seed=4, defence=defence)
    ledger = read_ledger(folder / "ledger.h5")
    assert ledger.defence == "tte" and ledger.defence_options == defence.described()
    assert ledger.real_data == "none" and "adaptive" not in ledger.options
    # the crops are drawn by the attack's seed, which the ledger states
    protected = Ensembled(model, defence.model_copy(update={"seed": 4})).eval()
    assert np.array_equal(replay(protected, x, y, ledger), ledger.broken)
    assert np.array_equal(protected(x).argmax(1), ledger.clean_prediction)


def test_an_attack_that_does_not_know_of_the_defence_is_crafted_on_the_bare_network(checkpoint, monkeypatch):
    folder, *_ = checkpoint
    models = []

    def spy(problem, options):
        models.append(problem.model)
        return problem.x

    monkeypatch.setattr(fgsm, "fgsm", spy)
    for adaptive in (True, False):
        stage(folder, attack="fgsm", reference=True, adaptive=adaptive, defence=defend(defence="tte"))
    assert [type(model) for model in models] == [Ensembled, Classifier]
    assert read_ledger(folder / "ledger.h5").options["adaptive"] is False


def test_what_a_defence_has_seen_the_ledger_says(checkpoint, monkeypatch):
    folder, *_ = checkpoint
    entry = dataclasses.replace(registry.DEFENCES["identity"], real_data="public")
    monkeypatch.setitem(registry.DEFENCES, "identity", entry)
    assert stage(folder, attack="clean", defence=defend(defence="identity")).real_data == "public"
    assert stage(folder, attack="clean").real_data == "none"


@pytest.fixture
def needy(monkeypatch):
    """FGSM that asks for a teacher, and what it was given."""
    given = []

    def spy(problem, options):
        given.append(problem.others["teacher"])
        return problem.x

    monkeypatch.setattr(fgsm, "fgsm", spy)
    monkeypatch.setitem(registry.ATTACKS, "fgsm", dataclasses.replace(registry.ATTACKS["fgsm"], needs=("teacher",)))
    return given


def test_a_missing_need_is_told_before_any_work(needy, tmp_path):
    with pytest.raises(InputError, match="attack fgsm needs a teacher; give --other teacher=CHECKPOINT") as error:
        stage(tmp_path / "nowhere", attack="fgsm")
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="pgd makes no use of another model as its teacher"):
        stage(tmp_path / "nowhere", attack="pgd", others={"teacher": tmp_path})


def test_another_model_is_given_to_the_attack_and_named_in_the_ledger(checkpoint, needy):
    folder, *_ = checkpoint
    teacher = tiny.teacher(folder / "teacher.safetensors")
    made = stage(folder, attack="fgsm", others={"teacher": teacher})
    assert isinstance(needy[0], Classifier) and not needy[0].training
    assert made.others == {"teacher": load_checkpoint(teacher)[1].tensors_sha256}
    assert read_ledger(folder / "ledger.h5").others == made.others
    wide = tiny.teacher(folder / "wide.safetensors", classes=4)
    with pytest.raises(InputError, match="of 4 classes, the attacked model"):
        stage(folder, attack="fgsm", others={"teacher": wide})
