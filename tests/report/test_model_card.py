"""The model card: what it claims, and its code."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from support.cells import cell
from support.checkpoints import save_card
from support.ledgers import make_ledger

from dfshield.core.errors import InputError
from dfshield.defences.fit_file import FitCard, load_defended, write_fit
from dfshield.models.checkpoints import Card, build_network, load_checkpoint, save_checkpoint
from dfshield.models.classifier import Classifier
from dfshield.options import DefendOptions
from dfshield.report import model_card
from dfshield.report.model_card import Evidence
from dfshield.report.rows import Row
from dfshield.report.table import build


def test_model_card_says_what_the_ledgers_say_and_its_code_runs(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    save_card(tmp_path / "model.safetensors", "student", "none", 1, teacher_sha256="t" * 64, data_sha256="d" * 64)
    classifier, card = load_checkpoint(tmp_path / "model.safetensors")
    make_ledger(tmp_path / "a.h5", 150, 50)
    make_ledger(tmp_path / "b.h5", 190, 3, flags=("randomised",))
    rows = build([cell(tmp_path / "b.h5", method="Undefended"), cell(tmp_path / "a.h5")])
    text = model_card.model_card("mine", Evidence(card, rows, {"options": {"iterations": 7}, "real_data": "none"}))
    assert "| Ours | PGD-10 | 25.00 | 19.5 to 31.4 | 200 | pgd10 at `linf:8/255` |" in text
    assert "| Undefended | PGD-10 | 1.50<sup>‖</sup> |" in text and "‖ the model's output varies" in text
    for wanted in (card.tensors_sha256, "t" * 64, "d" * 64, "iterations `7`", "not a claim of privacy", "synthetic"):
        assert wanted in text
    monkeypatch.chdir(tmp_path)
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]  # type: ignore[index]
    assert len(code.splitlines()) == 8
    space: dict = {"images": images}
    exec(code, space)
    assert torch.allclose(space["logits"], classifier(images), atol=1e-6)


def test_model_card_of_real_data_and_without_figures(tmp_path: Path) -> None:
    save_card(tmp_path / "model.safetensors", "student", "train", 1)
    text = model_card.model_card("mine", Evidence(load_checkpoint(tmp_path / "model.safetensors")[1]))
    assert "not data-free" in text and "No real image was read" not in text
    assert "Not evaluated" in text


def test_model_card_of_a_users_factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "users_net.py").write_text(
        "from dfshield.models.cnn import cnn_s\n\n"
        "def make(width):\n    assert width == 2\n    return cnn_s((1, 8, 8), 10)\n"
    )
    factory = "users_net.py:make"
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    net = build_network("x", (1, 8, 8), 10, factory, {"width": 2}, seed=4)
    card = Card("student", "harden", "mine", (1, 8, 8), 10, (0.3,), (0.38,), "none", factory, {"width": 2})
    save_checkpoint(tmp_path / "model.safetensors", Classifier(net, (0.3,), (0.38,)), card)
    text = model_card.model_card("mine", Evidence(card))
    space: dict = {"images": torch.zeros(2, 1, 8, 8)}
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], space)  # type: ignore[index]
    classifier = load_checkpoint(tmp_path / "model.safetensors", factory=factory)[0]
    assert torch.allclose(space["logits"], classifier(space["images"]), atol=1e-6)


def test_the_card_of_a_model_that_keeps_its_accuracy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its code makes one module of the two files; the mixture of another model is refused."""
    monkeypatch.chdir(tmp_path)
    save_card(tmp_path / "teacher.safetensors", "teacher", "teacher", 2)
    save_card(tmp_path / "model.safetensors", "student", "none", 1, teacher_sha256="t" * 64)
    (teacher, _), (_, card) = (load_checkpoint(tmp_path / f"{name}.safetensors") for name in ("teacher", "model"))
    tensors = {f"teacher.{name}": value for name, value in teacher.state_dict().items()}
    tensors |= {"scale": torch.tensor(5.0), "shift": torch.tensor(0.0), "power": torch.tensor(1.0)}
    tensors |= {"weight": torch.tensor(0.0)}  # the student has no share
    options = DefendOptions.of(defence="mixture").described()
    fit = FitCard("mixture", options, "linf:8/255", 0, "cpu", card.tensors_sha256, "t", "d", "dss", "none", "0", "")
    mixture = tmp_path / "defence.safetensors"
    write_fit(mixture, fit, tensors)
    rows = [dataclasses.replace(row, defence="mixture") for row in _rows(tmp_path)]
    text = model_card.model_card("mine", Evidence.of(card, rows, tmp_path / "none.h5", mixture=mixture))
    assert "Mixed is both together, behind the defence `mixture`." in text and "fitted for `linf:8/255`" in text
    space: dict = {"images": torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))}
    _, mixed = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(mixed, space)
    assert torch.allclose(space["logits"], teacher(space["images"]).log_softmax(1), atol=1e-5)
    assert not load_defended(Path("model.safetensors"), mixture).training
    plain = model_card.model_card("mine", Evidence.of(card, _rows(tmp_path), tmp_path / "none.h5"))
    assert "mixture" not in plain and "Mixed" not in plain
    write_fit(mixture, dataclasses.replace(fit, model_sha256="x" * 64), tensors)
    with pytest.raises(InputError, match=r"defence\.safetensors: is of another model than this one; fit it again"):
        model_card.model_card("mine", Evidence.of(card, rows, tmp_path / "none.h5", mixture=mixture))


def _rows(folder: Path) -> list[Row]:
    make_ledger(folder / "a.h5", 150, 50)
    return build([cell(folder / "a.h5")])
