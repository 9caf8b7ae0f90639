"""The benchmarks: the reference computes what we compute, and the report is one that the cost model reads."""

import copy
import json
import sys

import numpy as np
import pytest
import torch
from support import tiny

from benchmarks import bench, reference
from dfshield.core.rng import generator
from dfshield.options import TrainOptions
from dfshield.options.sources import Inversion
from dfshield.planning.arithmetic import Throughput
from dfshield.sources.inversion import ModelInversion
from dfshield.sources.trainset import TrainSet
from dfshield.training.trainer import Trainer

EPS = 0.1


@pytest.fixture
def x():
    return torch.from_numpy(tiny.images(40)).permute(0, 3, 1, 2)


def test_synthesis_is_ours():
    teacher, steps = tiny.classifier(scale=3.0), 8
    start = torch.randn((20, *tiny.SHAPE), generator=generator("start"))
    labels, alphas = torch.arange(20) % tiny.CLASSES, torch.tensor([0.7, 0.4, 1e-3])
    plain = reference.synthesis(copy.deepcopy(teacher.net), labels, alphas, start, steps, roll=0)
    expected = (teacher.mean + teacher.std * plain).clamp(0, 1)
    options = Inversion(images=20, batch=20, iterations=steps, roll=0, device="cpu")
    made = ModelInversion(copy.deepcopy(teacher), tiny.SHAPE, tiny.CLASSES, options)
    images, _ = made._optimise(start.clone(), labels, alphas[None].double(), generator("rolls"), None)
    assert (images - (teacher.mean + teacher.std * start).clamp(0, 1)).abs().max() > 0.05
    apart = (images - expected).abs()  # Adam's first steps make much of a gradient that is nothing but rounding
    assert (apart < 1e-4).float().mean() > 0.97 and apart.max() < 0.05


def test_training_is_ours():
    """One update of four mini-batches (of two, τ would not matter); ε = 0 leaves nothing of the random start."""
    teacher, rate = tiny.classifier(scale=3.0), 0.1
    slow = reference.Training(copy.deepcopy(teacher), eps=0.0, b=4, tau=0.75, lr=rate)
    threat = {"threat": "linf:0", "attack_steps": 1}
    options = TrainOptions.of(batch=10, aggregate=4, tau=0.75, holdout=0, lr=rate, device="cpu", **threat)
    made = Trainer(teacher, TrainSet(tiny.images(40), np.arange(40) % tiny.CLASSES, {}), options)
    for index, rows in enumerate(torch.arange(40).split(10)):
        slow.step(made.images[rows])
        made.refiner.add(made.gradients(rows, generator("start", index))[1])
    made._update()
    before = list(teacher.parameters())
    found = [after - old for after, old in zip(made.student.parameters(), before, strict=True)]
    expected = [after - old for after, old in zip(slow.student.parameters(), before, strict=True)]
    for ours, theirs in zip(found, expected, strict=True):
        assert theirs.abs().max() > 0
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_the_references_inner_maximisation(x):
    student = tiny.classifier(scale=3.0).requires_grad_(False)
    torch.manual_seed(0)
    adversarial = reference.Training(student, EPS).inner(student, x)
    assert (adversarial - x).abs().max() <= EPS + 1e-6
    assert adversarial.min() >= 0 and adversarial.max() <= 1
    clean, near = student(x), student((x + 0.001 * torch.randn(x.shape)).clamp(0, 1))
    assert reference.divergence(clean, student(adversarial)) > 100 * reference.divergence(clean, near)


def test_the_report_is_one_that_the_cost_model_reads(tmp_path, monkeypatch, capsys):
    out = tmp_path / "report.json"
    words = "--stages synthesis training --repeats 1 --steps 1 --batch 10 --no-compile --threads 1 --model cnn-s"
    monkeypatch.setattr(
        sys, "argv", ["bench", *words.split(), "--device", "cpu", "--precision", "fp32", "--out", str(out)]
    )
    monkeypatch.setattr(bench, "ceilings", lambda device: {"fp32": 1e9, "bf16": 1e9, "copy": 1e9})
    bench.main()
    found = Throughput.read(out)
    assert found.device == "cpu" and "1 threads, fp32" in found.basis
    assert (found.precision, found.generated) == ("fp32", False)
    entries = {entry["stage"]: entry for entry in json.loads(out.read_text())}
    for stage in ("synthesis", "training"):
        assert found.rate(stage, "cnn-s") == entries[stage]["flops"] / entries[stage]["seconds_ours"] > 0
    assert "| training | cnn-s |" in capsys.readouterr().out
