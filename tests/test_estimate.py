"""The cost model against counts made by hand."""

import json

import pytest

from dfshield import estimate
from dfshield.config import check_config
from dfshield.options import AttackOptions, SynthesisOptions, TrainingOptions
from dfshield.plan import Plan
from dfshield.runtime import InputError

CONFIG = {
    "name": "count",
    "seeds": [0, 1],
    "datasets": {"digits": {"models": ["cnn-s"], "threat": "linf:2/16"}},
    "synthesis": {"images": 400, "batch": 100, "iterations": 50},
    "training": {"epochs": 3, "batch": 50, "aggregate": 2, "attack_steps": 4},
}


@pytest.fixture
def report(tmp_path):
    path = tmp_path / "benchmarks.json"
    entry = {"device": "cuda", "evidence": {"hardware": "X", "threads": 1}, "seconds_ours": 0.5, "model": "resnet20"}
    path.write_text(json.dumps([entry | {"stage": s, "flops": f} for s, f in (("synthesis", 1e9), ("training", 4e9))]))
    return path


def test_passes_by_hand():
    assert estimate.synthesis_passes(SynthesisOptions(images=400, batch=100, iterations=50)) == 2 * 400 * 50
    assert estimate.training_passes(TrainingOptions(epochs=3, attack_steps=4), 400) == 400 * 3 * (1 + 8 + 6)
    assert estimate.attack_passes(AttackOptions(attack="pgd", steps=10, restarts=2), 30, 0.4) == 30 * 2 * 10 * 2
    # quick 10 steps; then on the survivors APGD-CE and nine targets of APGD, nine targets of FAB, Square's queries
    survivors = 0.5 * 30 * (2 * 100 + 2 * 900 + 3 * 900 + 5000)
    assert estimate.attack_passes(AttackOptions(), 30, 0.5) == 30 * 20 + survivors


def test_forward_pass_by_hand():
    # two operations a multiplication: 3x3 convolutions of 1, 8 and 8 channels on 8x8 pixels, and the linear layer
    flops = estimate.forward_flops("cnn-s", (1, 8, 8), 10)
    assert flops == 2 * 78_656


def test_shared_jobs_count_once(report):
    plan = Plan.of(check_config(CONFIG))
    throughput = estimate.Throughput.read(report)
    assert throughput.rate("synthesis", "cnn-s") == 2e9 and throughput.rate("training", "resnet20") == 8e9
    one = estimate.estimate(plan, ["table8"], throughput, 0.4)
    assert (one["synthesis"].jobs, one["training"].jobs, one["attack"].jobs) == (2 * 2, 2 * 4, 2 * 4)
    both = estimate.estimate(plan, ["table8", "table4"], throughput, 0.4)
    assert both["synthesis"].jobs == one["synthesis"].jobs  # table 4 needs none that table 8 does not
    flops = estimate.forward_flops("cnn-s", (1, 8, 8), 10)
    seconds = 4 * (estimate.START_SECONDS + 2 * 400 * 50 * flops / 2e9)
    assert one["synthesis"].seconds == pytest.approx(seconds)
    assert one["synthesis"].bytes == 4 * 2 * 400 * 64 * 4


def test_text_names_its_basis(report):
    text = estimate.run(Plan.of(check_config(CONFIG)), ["table8"], report, 2, 0.4)
    assert "GPU hours" in text and "with 2 such devices" in text and "X, 1 threads" in text and "40 %" in text


@pytest.mark.parametrize("content", ["", "[]", "{}", '[{"stage": "synthesis"}]', None])
def test_reports_that_cannot_serve_are_refused(tmp_path, content):
    path = tmp_path / "b.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match="run `make bench`"):
        estimate.Throughput.read(path)
