"""`dfshield estimate`: its jobs against those of the workflow, time and disk by hand, what it says."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
from support.workflow import PAPER

from dfshield import registry
from dfshield.core.errors import InputError
from dfshield.models.size import Network
from dfshield.planning import pricing
from dfshield.planning.arithmetic import Throughput
from dfshield.planning.config import check_config, load_config
from dfshield.planning.plan import Plan
from dfshield.tools import estimate
from dfshield.tools.estimate import Estimate

CONFIG = {
    "name": "count",
    "seeds": [0, 1],
    "shards": 3,
    "datasets": {"digits": {"models": ["cnn-s"], "threat": "linf:2/16"}},
    "synthesize": {"images": 400, "batch": 100, "iterations": 50},
    "train": {"epochs": 3, "batch": 50, "aggregate": 2, "attack_steps": 4, "holdout": 100},
}
MINE = {
    "factory": "dfshield.models.cnn:cnn_s",
    "arguments": {"input_shape": [1, 8, 8], "classes": 10},
    "weights": "w.pt",
    "input_shape": [1, 8, 8],
    "classes": 10,
    "mean": [0.3],
    "std": [0.38],
    "threat": "linf:8/255",
    "evaluation": {"file": "eval.npz", "protocols": ["pgd10"]},
}
FLOPS = 2 * 78_656  # of CNN-S: 3x3 convolutions of 1, 8 and 8 channels on 8x8 pixels, and the linear layer


@pytest.fixture
def report(tmp_path):
    path = tmp_path / "benchmarks.json"
    evidence = {"hardware": "X", "threads": 1, "precision": "fp32"}
    entry = {"device": "cuda", "evidence": evidence, "seconds_ours": 0.5, "model": "resnet20"}
    path.write_text(json.dumps([entry | {"stage": s, "flops": f} for s, f in (("synthesis", 1e9), ("training", 4e9))]))
    return path


@pytest.fixture(scope="module")
def paper():
    return Plan.of(load_config(Path(__file__).parents[2] / "config/paper.yaml"))


@pytest.fixture
def unit(monkeypatch):
    """Every network has 1000 operations, 10 parameters, 5 features: the jobs alone are looked at."""
    monkeypatch.setattr("dfshield.models.size.network", lambda *given, **own: Network(1e3, 10, 5))
    monkeypatch.setattr("dfshield.models.size.generator_flops", lambda *given: 1e3)
    return Throughput("unit", "cuda", {"synthesis": {"x": 1e12}})


def counted(made: Estimate) -> dict[str, int]:
    stages = [job.stage for job in made.jobs.values()]
    return {stage: stages.count(stage) for stage in stages}


def test_the_split_that_is_asked_for_is_counted():
    assert pricing.count("digits", "dev") == 300 and pricing.count("svhn", "test") == 26_032
    assert pricing.count("breastmnist", "dev") == 78  # MedMNIST's validation split
    with pytest.raises(InputError, match="cifar10: has no split 'dev'; it has train, test"):
        pricing.count("cifar10", "dev")


def test_the_data_sets_are_as_large_as_the_registry_says():
    from dfshield.data import sets

    for name in ("digits", "photographs"):
        for split, count in registry.DATASETS[name].images.items():
            assert len(sets.load(name, split, Path("nowhere"))) == count


@pytest.mark.parametrize("table", PAPER)
def test_the_jobs_are_those_of_the_workflow(paper, unit, table):
    jobs = Estimate(paper, [table], unit, 0.4)
    assert counted(jobs) == PAPER[table]
    assert all(other in jobs.jobs for job in jobs.jobs.values() for other in job.inputs)


def test_tables_share_what_they_can(paper, unit):
    found = counted(Estimate(paper, paper.own_tables, unit, 0.4))
    # as in the workflow's test: the general data sets and the medical ones
    assert (found["teacher"], found["synthesize"]) == (9 + 16, (9 + 6 + 1 + 16 + 2 * 3) * 6)
    assert (found["export"], found["public"], found["table"]) == (9 + 14, 16 + 4 * 3, 41)
    assert found["cotrain"] == 36 + 9 + 2 * 4 * 3 * 3 + 64
    assert (found["augment"], found["generate"], found["diversity"]) == (
        18,
        2,
        15 + 15 + 3 + 9,
    )  # IntraQ, Qimera, RDSKD


def test_time_and_disk_by_hand(report):
    plan, throughput = Plan.of(check_config(CONFIG)), Throughput.read(report)
    assert throughput.rate("synthesis", "cnn-s") == 2e9 and throughput.rate("training", "resnet20") == 8e9
    jobs = Estimate(plan, ["table8"], throughput, 0.4)
    # two sources and seeds in three shards of 1, 1 and 2 batches
    shards = [jobs.of(path) for path, job in jobs.jobs.items() if job.stage == "synthesize"]
    assert len(shards) == 2 * 2 * 3
    assert sum(price.bytes for price in shards) == 4 * 400 * 64 * 4
    whole = 2 * 400 * 50 * FLOPS / 2e9
    assert sum(price.seconds for price in shards) == pytest.approx(4 * (3 * pricing.START_SECONDS + whole))
    # the longest chain: a teacher of 100 epochs, the largest shard, merging, training, AutoAttack, checks, the table
    training = (400 + 3 * (300 * 15 + 100 * 11)) * FLOPS / 8e9
    attack = 500 * (20 + 0.4 * (200 + 4500 + 5000)) * FLOPS / 2e9
    # 100 images: the clean one, flags, a gradient, PGD, an ε curve; for survivors PGD five times, FGSM, Square, noise
    pgd = 4 * (20 * 2 + 1)
    checks = 100 * (1 + 2 + 2 + pgd + 5 * 41 + 0.4 * (5 * pgd + 3 + 502 + 10))
    checks += 16 * (2 + 2 * 16) + 16 * (1000 + 4 * (20 * 5 + 1))  # slopes, and the binarisation test
    starts = 5 * pricing.START_SECONDS + 2 * pricing.LIGHT_SECONDS
    merging = 2 * 400 * 64 * 4 / pricing.DISK_RATE
    taught = 3 * 100 * 997 * FLOPS / 8e9
    chain = taught + whole / 2 + merging + training + attack + checks * FLOPS / 2e9 + starts
    assert jobs.seconds(100) == pytest.approx(chain)
    assert jobs.seconds(1) == pytest.approx(sum(jobs.of(path).seconds for path in jobs.jobs))


@pytest.mark.parametrize("workers", [2, 4, 16])
def test_all_workers_are_busy_and_no_more(unit, workers):
    """In the demo's table 4 jobs wait for a core or for their inputs, for nothing else, and the cores are at work."""
    plan = Plan.of(load_config(Path(__file__).parents[2] / "config/config.yaml"))
    jobs = Estimate(plan, ["table4"], unit, 0.4)
    schedule = jobs.schedule(workers)
    assert schedule.keys() == jobs.jobs.keys()
    starts = sorted({start for start, _ in schedule.values()})
    for now in starts:
        running = sum(start <= now < end for start, end in schedule.values())
        ready = [
            path
            for path, job in jobs.jobs.items()
            if schedule[path][0] > now and all(schedule[other][1] <= now for other in job.inputs)
        ]
        assert running <= workers and (running == workers or not ready)
    busy = sum(jobs.of(path).seconds for path in jobs.jobs) / (workers * jobs.seconds(workers))
    assert busy > 0.7  # with 16 they wait for teachers and for the last attack


def test_own_models_and_generated_sources(report):
    values = CONFIG | {"harden": {"mine": MINE, "plain": MINE | {"source": "qimera", "evaluation": None}}}
    jobs = Estimate(Plan.of(check_config(values)), ["harden"], Throughput.read(report), 0.4)
    assert counted(jobs) == {"teacher": 2, "synthesize": 3, "merge": 1, "generate": 1, "train": 2, "attack": 2} | {
        "card": 2
    }
    attacked = [jobs.of(path) for path, job in jobs.jobs.items() if job.stage == "attack"]
    assert {price.bytes for price in attacked} == {pricing.OWN_TEST_IMAGES * 64 * 2}


def test_what_says_nothing_of_its_cost_is_not_estimated(unit, monkeypatch):
    """Its jobs are counted, their time and disk are not, and the text names it instead."""
    plan = Plan.of(check_config(CONFIG))
    whole = Estimate(plan, ["table4", "table6"], unit, 0.4)
    for table, name in ((registry.ATTACKS, "pgd"), (registry.OBJECTIVES, "inversion"), (registry.GENERATED, "qimera")):
        silent = dataclasses.replace(table[name], passes=type(table[name])("x:y").passes)
        monkeypatch.setitem(table, name, silent)
    made = Estimate(plan, ["table4", "table6"], unit, 0.4)
    assert sorted(made.unknown) == ["attack pgd", "generate qimera", "synthesize inversion"]
    assert not whole.unknown and whole.jobs.keys() == made.jobs.keys()
    for path, job in made.jobs.items():
        chosen = {getattr(job.options, name, None) for name in ("attack", "objective", "method")}
        if chosen & {"pgd", "inversion", "qimera"}:
            assert made.priced[path] is None and whole.of(path).seconds > 0 == made.of(path).seconds
        else:
            assert made.priced[path] == whole.priced[path]
    lines = estimate.run(plan, ["table8", "table4"], None, 1, 0.4).splitlines()
    (named,) = (line for line in lines if line.startswith("Not estimated"))
    assert named == "Not estimated, and so not in these figures: synthesize inversion, attack pgd."


def test_text_names_its_basis(report, unit):
    plan = Plan.of(check_config(CONFIG | {"synthesize": {"images": 4000, "batch": 100, "iterations": 50}}))
    text = estimate.run(plan, ["table8"], report, 2, 0.4)
    assert "GPU hours" in text and "with 2 jobs at a time" in text and "40 %" in text
    assert "X, 1 threads" in text and "cnn-s at the rate of resnet20" in text
    assert re.search(r"^attack +14 +\d+\.\d (s|min) +0\.9 MB$", text, re.MULTILINE)  # 500 perturbations of 64 each
    text = estimate.run(plan, [], None, 1, 0.4)
    assert "assumed, the paper's synthesis times on one RTX 3090" in text and "cotrain" in text


@pytest.mark.parametrize(
    ("evidence", "training", "said"),
    [
        ({"compile": False}, {}, ""),
        ({}, {}, ""),
        ({}, {"precision": "auto", "outer_precision": "auto"}, ""),
        ({}, {"compile": True}, "Measured was fp32, eager; run otherwise: train (fp32, generated code)."),
        (
            {"precision": "bf16", "compile": True},
            {"precision": "bf16", "compile": True},
            "Measured was bf16, generated code; run otherwise: teacher (fp32, eager), synthesize (fp32, eager), "
            "train (bf16 and fp32, generated code), attack (fp32, eager), checks (fp32, eager).",
        ),
    ],
)
def test_text_says_what_runs_otherwise_than_it_was_measured(report, unit, evidence, training, said):
    entries = json.loads(report.read_text())
    report.write_text(json.dumps([entry | {"evidence": entry["evidence"] | evidence} for entry in entries]))
    plan = Plan.of(check_config(CONFIG | {"train": CONFIG["train"] | training}))
    lines = estimate.run(plan, ["table8"], report, 1, 0.4).splitlines()
    assert [line for line in lines if line.startswith("Measured was")] == ([said] if said else [])


@pytest.mark.parametrize("targets", [["table8"], []])
def test_the_documents_example_is_what_is_printed(paper, targets):
    document = (Path(__file__).parents[2] / "docs/cost.md").read_text(encoding="utf-8")
    command = " ".join(["$ dfshield estimate", *targets, "--config config/paper.yaml --workers 8\n"])
    assert command + estimate.run(paper, targets, None, 8, 0.4) + "\n" in document


def test_harden_without_entries_is_refused(unit):
    with pytest.raises(InputError, match="no models under harden:"):
        estimate.run(Plan.of(check_config(CONFIG)), ["harden"], None, 1, 0.4)


def test_an_attack_behind_a_defence_takes_the_passes_of_the_defence(unit):
    made = Estimate(Plan.of(check_config(CONFIG)), ["table3"], unit, 0.4)
    operations = {job.place.defence: made.of(path).flops for path, job in made.jobs.items() if job.stage == "attack"}
    assert set(operations) == {"none", "dad", "diffpure", "tte"}
    # an image, 4 crops, mirrored; the verdict, on the clean images and on those of each attack, is a part of a percent
    assert 1 < operations["tte"] / (10 * operations["none"]) < 1.01
