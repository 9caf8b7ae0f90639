"""The attack stage: its ledger, resuming, and data that it refuses."""

import shutil

import numpy as np
import pytest
from support.victims import save_victim, stage

from dfshield.core.errors import InputError
from dfshield.evaluation.ledger import read_ledger
from dfshield.evaluation.session import Session
from dfshield.evaluation.verdict import replay
from dfshield.models.checkpoints import load_checkpoint, save_checkpoint
from dfshield.report.rows import flags_of, metric_of


@pytest.fixture
def checkpoint(tmp_path):
    return tmp_path, *save_victim(tmp_path)


def test_stage_writes_a_ledger_that_reads_back_and_replays(checkpoint, small_budget):
    folder, model, x, y = checkpoint
    written = stage(folder, attack="autoattack", threat="linf:2/255", chunk=9, protocol="autoattack")
    ledger = read_ledger(folder / "ledger.h5")
    assert ledger.n == 23 and ledger.clean_accuracy == pytest.approx(100 * 22 / 23)
    assert ledger.components == ("robust", "clean", "quick", "apgd-ce", "apgd-t", "fab-t", "square")
    assert ledger.protocol == "autoattack[6 iterations, 25 queries]" and ledger.subject == {"a": 1}
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


def test_a_stopped_run_resumes_to_the_same_bytes(checkpoint, monkeypatch, small_budget):
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
