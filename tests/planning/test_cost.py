"""The cost table: seconds out of benchmark files, arithmetic by hand."""

import csv
import dataclasses

import pytest
from support.snakemake import ROOT

from dfshield import registry
from dfshield.core.errors import InputError
from dfshield.models.size import generator_flops, network
from dfshield.planning.config import check_config
from dfshield.planning.paths import NONE, benchmark_of
from dfshield.planning.plan import Plan
from dfshield.report.content import makings
from dfshield.report.cost import run, seconds

CONFIG = {
    "name": "count",
    "seeds": [0, 1],
    "shards": 2,
    "tables": str(ROOT / "config/tables.yaml"),
    "datasets": {"digits": {"models": ["cnn-s"], "threat": "linf:2/16"}},
    "synthesize": {"images": 400, "batch": 100, "iterations": 50},
    "train": {"epochs": 3, "batch": 50, "aggregate": 2, "attack_steps": 4, "holdout": 0},
    "cotrain": {"epochs": 2, "iterations": 3, "batch": 20, "attack_steps": 2, "generator_epochs": 0},
}
HEADER = "s\th:m:s\tmax_rss"


@pytest.fixture
def costs(tmp_path, monkeypatch):
    """The rows of a cost table whose every job has a time of its own, by method and seed; and the plan."""
    monkeypatch.chdir(tmp_path)
    plan = Plan.of(check_config(CONFIG))
    outputs = list(dict.fromkeys(job.output for made in makings(plan) for job in (*made.data, *made.student)))
    for number, output in enumerate(outputs):
        path = benchmark_of(output)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{HEADER}\n{10 + number}.25\t0:00:10\t100\n")
    run(plan, tmp_path / "cost.csv")
    with (tmp_path / "cost.csv").open() as file:
        return {(row["method"], row["seed"]): row for row in csv.DictReader(file)}, plan, outputs


def test_seconds_are_those_of_the_jobs(costs):
    rows, plan, outputs = costs
    for made in makings(plan):
        row = rows[made.method, str(made.seed)]
        for kind, jobs in (("data", made.data), ("training", made.student)):
            expected = sum(10.25 + outputs.index(job.output) for job in jobs)
            assert float(row[f"{kind}_seconds"]) == pytest.approx(expected)
    ours = next(made for made in makings(plan) if (made.method, made.seed) == ("Ours", 1))
    home = "results/count/digits/cnn-s/dss"
    assert [job.output for job in ours.data] == [f"{home}/seed-1/{name}.h5" for name in ("shard-0", "shard-1", "data")]
    assert [job.output for job in ours.student] == [f"{home}/dfshield/linf-2-16/seed-1/student.safetensors"]
    undefended = rows["Undefended", "0"]
    assert [float(undefended[key]) for key in undefended if "seconds" in key or "flops" in key] == [0] * 4
    assert all(not made.data for made in makings(plan) if made.student and made.student[0].place.source == NONE)


def test_arithmetic_by_hand(costs):
    """Of the network's forward pass: 2 for a gradient of pixels, 3 for one of the weights too."""
    rows, plan, _ = costs
    flops = network("cnn-s", (1, 8, 8), 10).flops
    ours, original, dast = (rows[method, "0"] for method in ("Ours", "Original", "DaST"))
    assert float(ours["data_flops"]) == pytest.approx(400 * 50 * 2 * flops, rel=1e-4)
    step = 1 + 2 * 4 + 2 * 3  # clean answers, four steps of crafting, gradients on clean and on adversarial images
    assert float(ours["training_flops"]) == pytest.approx((400 + 3 * 400 * step) * flops, rel=1e-4)
    plus = plan.place("digits", "cnn-s", source="dss", recipe="plus")
    assert plan.options("train", plus).varies  # so the teacher is asked once more about each image
    assert float(rows["Plus", "0"]["training_flops"]) == pytest.approx((400 + 3 * 400 * (step + 1)) * flops, rel=1e-4)
    robust = step - 2  # a loss of the adversarial images alone; 19 whole mini-batches
    assert float(original["training_flops"]) == pytest.approx((997 + 3 * 950 * robust) * flops, rel=1e-4)
    assert float(original["data_flops"]) == 0
    options = plan.options("cotrain", plan.place("digits", "cnn-s", source=NONE, recipe="dast"))
    student, generator, measured = 2 + 2 * 2 + 3, 1 + 2, 2 + 2 * 2 + 2
    drawn = 20 * generator_flops(options, (1, 8, 8), 10)
    expected = 2 * (3 * (20 * (student + generator) * flops + 3 * drawn) + 20 * measured * flops + drawn)
    assert float(dast["training_flops"]) == pytest.approx(expected, rel=1e-4)


def test_text(costs, tmp_path):
    text, tex = (tmp_path / "cost.md").read_text(), (tmp_path / "cost.tex").read_text()
    assert "| Method | CNN-S data, s | CNN-S training, s | CNN-S total, s | CNN-S GFLOP |" in text
    assert "| Undefended | 0.0 ± 0.0 | 0.0 ± 0.0 | 0.0 ± 0.0 | 0.00 ± 0.00 |" in text
    assert "over 2 seeds" in text and "| Ours | " in text and " ± " in text
    assert tex.isascii() and tex.count(r" \\") >= 8 and r"\begin{tabular}{lrrrr}" in tex


@pytest.mark.parametrize("content", ["", "s\n", "s\nsoon\n", "h:m:s\n0:01\n", None])
def test_what_is_no_benchmark_file_is_refused(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    output = "results/count/digits/cnn-s/dss/seed-0/data.h5"
    path = benchmark_of(output)
    path.parent.mkdir(parents=True)
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=f"{path}: (no such file|is no benchmark file)"):
        seconds(output)


def test_a_config_without_table_4_has_no_cost_table():
    lone = {"name": "x", "datasets": {"svhn": {"models": ["cnn-s"], "threat": "linf:4/255"}}}
    with pytest.raises(InputError, match="table4: the config's data sets and models have no cell in it"):
        makings(Plan.of(check_config(lone | {"tables": CONFIG["tables"]})))


def test_arithmetic_that_is_not_known_is_left_empty_and_said(costs, tmp_path, monkeypatch):
    """Without a word of its loss's passes, a method has seconds and no operations; never those of its data alone."""
    _, plan, _ = costs
    silent = dataclasses.replace(registry.LOSSES["dfshield"], passes=None)
    monkeypatch.setitem(registry.LOSSES, "dfshield", silent)
    run(plan, tmp_path / "cost.csv")
    with (tmp_path / "cost.csv").open() as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert rows["Ours"]["training_flops"] == "" and float(rows["Ours"]["data_flops"]) > 0
    assert float(rows["Ours"]["training_seconds"]) > 0 and float(rows["DaST"]["training_flops"]) > 0
    text = (tmp_path / "cost.md").read_text()
    assert "Arithmetic not estimated: Ours, Plus." in text
    (ours,) = [line for line in text.splitlines() if line.startswith("| Ours ")]
    assert ours.endswith("| – |")
