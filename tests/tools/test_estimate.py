"""The cost model against counts made by hand, and its jobs against those of the workflow."""

import json
import re
from pathlib import Path

import pytest
from test_rules import PAPER

from dfshield import registry
from dfshield.core.errors import InputError
from dfshield.options import CotrainOptions, GenerateOptions, SynthesizeOptions, TrainOptions
from dfshield.planning import arithmetic as cost
from dfshield.planning.config import check_config, load_config
from dfshield.planning.plan import Plan
from dfshield.tools import estimate

CONFIG = {
    "name": "count",
    "seeds": [0, 1],
    "shards": 3,
    "datasets": {"digits": {"models": ["cnn-s"], "threat": "linf:2/16"}},
    "synthesis": {"images": 400, "batch": 100, "iterations": 50},
    "training": {"epochs": 3, "batch": 50, "aggregate": 2, "attack_steps": 4, "holdout": 100},
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
    monkeypatch.setattr(estimate, "network", lambda *given, **own: cost.Network(1e3, 10, 5))
    monkeypatch.setattr(estimate, "generator_flops", lambda *given: 1e3)
    return cost.Throughput("unit", "cuda", {"synthesis": {"x": 1e12}})


def counted(jobs: estimate.Jobs) -> dict[str, int]:
    rules = [job.rule for job in jobs.found.values()]
    return {rule: rules.count(rule) for rule in rules}


def test_passes_by_hand():
    assert cost.synthesis_passes(SynthesizeOptions(images=400, batch=100, iterations=50)) == 2 * 400 * 50
    # the teacher's answers once; every epoch on 300: a clean pass, 4 steps there and back, clean and adversarial with
    # the weights' gradients; on 100 held out: a clean pass and the steps, and the predictions on both versions
    training = TrainOptions.of(epochs=3, batch=50, attack_steps=4, holdout=100)
    assert cost.training_passes(training, 400) == 400 + 3 * (300 * (1 + 8 + 6) + 100 * (3 + 8))
    assert cost.training_passes(training, 449) == 449 + 3 * (300 * (1 + 8 + 6) + 100 * (3 + 8))  # whole mini-batches
    half = training.model_copy(update={"awp": 0.01, "epochs": 4, "awp_warmup": 2})
    assert cost.training_passes(half, 400) == 400 + 4 * (300 * (1 + 8 + 6 * 1.5) + 100 * (3 + 8))
    generation = GenerateOptions(images=70, batch=10, epochs=2, iterations=3)
    assert cost.generation_passes(generation) == (2 * 60, 3 * 60 + 70)


@pytest.mark.parametrize(
    ("loss", "each"),
    [
        ("fgsm", 4 * (1 + 2 + 6)),
        ("gradient-penalty", 4 * 6),
        ("std", 4 * (1 + 2 * 6 + 4)),  # its clean pass has no gradient
        ("mma", 4 * (1 + 2 * 6 + 10 + 6)),  # ten halvings
        ("curriculum", 4 * (1 + 4) + 2 * (2 + 3 + 5 + 6)),  # a quarter, a half… of six steps, rounded up
        ("vat", 4 * (2 + 3 + 6)),
    ],
)
def test_losses_by_hand(loss, each):
    threat = "l2:1" if loss == "vat" else "linf:0.1"
    options = TrainOptions.of(loss=loss, epochs=4, batch=10, holdout=0, attack_steps=6, threat=threat)
    assert cost.training_passes(options, 10) == 10 + 10 * each


@pytest.mark.parametrize(
    ("method", "changes", "generator", "student"),
    [
        ("dast", {}, 3, 3),  # the teacher's answer, and a pass through the student and back
        ("dfme", {"student_steps": 1}, 4, 3),  # values at the image and in one direction
        ("dfme", {"student_steps": 1, "directions": 2}, 6, 3),
        ("dfme", {"student_steps": 1, "gradient": "exact"}, 4, 3),
        ("ait", {}, 2, 6),
        ("dfard", {}, 4, 6),
    ],
)
def test_cotraining_by_hand(method, changes, generator, student):
    """Three epochs of two mini-batches of 40, the first without the student; its images are the generator's."""
    given = {"batch": 40, "iterations": 2, "epochs": 3, "generator_epochs": 1, "attack_steps": 4} | changes
    measured = 40 * 3 * (1 + 1 + 8 + 2)
    expected = 40 * 2 * (3 * generator + 2 * (1 + 1 + 8 + student)) + measured
    assert cost.cotraining_passes(CotrainOptions.of(method=method, **given)) == (expected, 40 * (3 * 2 * 3 + 3))


def test_several_student_steps_have_images_of_their_own():
    given = {"batch": 8, "iterations": 2, "epochs": 3, "generator_epochs": 1, "student_steps": 5, "attack_steps": 4}
    classifiers = 8 * 2 * (3 * 4 + 2 * 5 * (2 + 8 + 3)) + 8 * 3 * (2 + 8 + 2)
    options = CotrainOptions.of(method="dfme", **given)
    assert cost.cotraining_passes(options) == (classifiers, 8 * (2 * (3 * 3 + 2 * 5) + 3))


def test_a_method_that_is_only_registered_has_its_cost(monkeypatch):
    mine = registry.Baseline("mine:Mine", generator_passes=4, student_inputs=2)
    monkeypatch.setitem(registry.BASELINES, "mine", mine)
    options = CotrainOptions.model_construct(method="mine", batch=8, iterations=2, epochs=3, attack_steps=4)
    assert cost.cotraining_passes(options)[0] == 8 * (2 * 3 * (4 + 2 + 8 + 6) + 3 * (2 + 8 + 2))


def test_networks_by_hand():
    net = cost.network("cnn-s", (1, 8, 8), 10)
    assert net.flops == FLOPS
    assert cost.diversity_flops(cost.Network(7, 1, 5), 3, 2) == 5 * 7 + 2 * 5 * (9 + 4 + 6)


def test_generators_by_hand():
    # latent to 16 maps of 2x2, two doublings with convolutions of 16 to 16 and 8 channels, and 8 to 1
    linear, last = 2 * 100 * 16 * 2 * 2, 2 * 9 * 8 * 1 * 64
    convolutions = 2 * 9 * (16 * 16 * 16 + 16 * 8 * 64)
    options = CotrainOptions.of(method="ait", generator_width=0.125)
    assert cost.generator_flops(options, (1, 8, 8), 10) == linear + convolutions + last
    generation = GenerateOptions(width=0.125, latent=100)
    assert cost.generator_flops(generation, (1, 8, 8), 10) == linear + convolutions + last


def test_the_split_that_is_asked_for_is_counted():
    assert estimate._count("digits", "dev") == 300 and estimate._count("svhn", "test") == 26_032
    assert estimate._count("breastmnist", "dev") == 78  # MedMNIST's validation split
    with pytest.raises(InputError, match="cifar10: has no split 'dev'; it has train, test"):
        estimate._count("cifar10", "dev")


def test_the_data_sets_are_as_large_as_the_registry_says():
    from dfshield.data import sets

    for name in ("digits", "photographs"):
        for split, count in registry.DATASETS[name].images.items():
            assert len(sets.load(name, split, Path("nowhere"))) == count


@pytest.mark.parametrize("table", PAPER)
def test_the_jobs_are_those_of_the_workflow(paper, unit, table):
    jobs = estimate.estimate(paper, [table], unit, 0.4)
    assert counted(jobs) == PAPER[table]
    assert all(other in jobs.found for job in jobs.found.values() for other in job.inputs)


def test_tables_share_what_they_can(paper, unit):
    found = counted(estimate.estimate(paper, paper.own_tables, unit, 0.4))
    # as in the workflow's test: the general data sets and the medical ones
    assert (found["teacher"], found["synthesize"]) == (9 + 16, (9 + 6 + 1 + 16) * 6)
    assert (found["export"], found["public"], found["table"]) == (9 + 14, 16, 21)
    assert found["cotrain"] == 36 + 9 + 2 * 4 * 3 * 3 + 64
    assert (found["augment"], found["generate"], found["diversity"]) == (18, 2, 15 + 15 + 3)  # IntraQ, Qimera, RDSKD


def test_time_and_disk_by_hand(report):
    plan, throughput = Plan.of(check_config(CONFIG)), cost.Throughput.read(report)
    assert throughput.rate("synthesis", "cnn-s") == 2e9 and throughput.rate("training", "resnet20") == 8e9
    jobs = estimate.estimate(plan, ["table8"], throughput, 0.4)
    # two sources and seeds in three shards of 1, 1 and 2 batches
    shards = [job for job in jobs.found.values() if job.rule == "synthesize"]
    assert len(shards) == 2 * 2 * 3
    assert sum(job.bytes for job in shards) == 4 * 400 * 64 * 4
    whole = 2 * 400 * 50 * FLOPS / 2e9
    assert sum(job.seconds for job in shards) == pytest.approx(4 * (3 * estimate.START_SECONDS + whole))
    # the longest chain: a teacher of 100 epochs, the largest shard, merging, training, AutoAttack, the table
    training = (400 + 3 * (300 * 15 + 100 * 11)) * FLOPS / 8e9
    attack = 500 * (20 + 0.4 * (200 + 4500 + 5000)) * FLOPS / 2e9
    starts = 4 * estimate.START_SECONDS + 2 * estimate.LIGHT_SECONDS
    merging = 2 * 400 * 64 * 4 / estimate.DISK_RATE
    taught = 3 * 100 * 997 * FLOPS / 8e9
    chain = taught + whole / 2 + merging + training + attack + starts
    assert jobs.seconds(100) == pytest.approx(chain)
    assert jobs.seconds(1) == pytest.approx(sum(job.seconds for job in jobs.found.values()))


@pytest.mark.parametrize("workers", [2, 4, 16])
def test_all_workers_are_busy_and_no_more(unit, workers):
    """In the demo's table 4 jobs wait for a core or for their inputs, for nothing else, and the cores are at work."""
    plan = Plan.of(load_config(Path(__file__).parents[2] / "config/config.yaml"))
    jobs = estimate.estimate(plan, ["table4"], unit, 0.4)
    schedule = jobs.schedule(workers)
    assert schedule.keys() == jobs.found.keys()
    starts = sorted({start for start, _ in schedule.values()})
    for now in starts:
        running = sum(start <= now < end for start, end in schedule.values())
        ready = [
            path
            for path, job in jobs.found.items()
            if schedule[path][0] > now and all(schedule[other][1] <= now for other in job.inputs)
        ]
        assert running <= workers and (running == workers or not ready)
    busy = sum(job.seconds for job in jobs.found.values()) / (workers * jobs.seconds(workers))
    assert busy > 0.7  # with 16 they wait for teachers and for the last attack


def test_own_models_and_generated_sources(report):
    values = CONFIG | {"harden": {"mine": MINE, "plain": MINE | {"source": "qimera", "evaluation": None}}}
    jobs = estimate.estimate(Plan.of(check_config(values)), ["harden"], cost.Throughput.read(report), 0.4)
    assert counted(jobs) == {"teacher": 2, "synthesize": 3, "merge": 1, "generate": 1, "train": 2, "attack": 2} | {
        "model_card": 2
    }
    attacked = [job for job in jobs.found.values() if job.rule == "attack"]
    assert {job.bytes for job in attacked} == {estimate.OWN_TEST_IMAGES * 64 * 2}


def test_text_names_its_basis(report, unit):
    plan = Plan.of(check_config(CONFIG))
    text = estimate.run(plan, ["table8"], report, 2, 0.4)
    assert "GPU hours" in text and "with 2 jobs at a time" in text and "40 %" in text
    assert "X, 1 threads" in text and "cnn-s at the rate of resnet20" in text
    assert re.search(r"^attack +8 +\d+\.\d (s|min) +0\.5 MB$", text, re.MULTILINE)  # 500 perturbations of 64 each
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
            "train (bf16 and fp32, generated code), attack (fp32, eager).",
        ),
    ],
)
def test_text_says_what_runs_otherwise_than_it_was_measured(report, unit, evidence, training, said):
    entries = json.loads(report.read_text())
    report.write_text(json.dumps([entry | {"evidence": entry["evidence"] | evidence} for entry in entries]))
    plan = Plan.of(check_config(CONFIG | {"training": CONFIG["training"] | training}))
    lines = estimate.run(plan, ["table8"], report, 1, 0.4).splitlines()
    assert [line for line in lines if line.startswith("Measured was")] == ([said] if said else [])


def test_the_documents_example_is_what_is_printed(paper):
    document = (Path(__file__).parents[2] / "docs/cost.md").read_text(encoding="utf-8")
    command = "$ dfshield estimate table8 --config config/paper.yaml --workers 8\n"
    assert command + estimate.run(paper, ["table8"], None, 8, 0.4) + "\n" in document


def test_the_papers_own_times():
    """10,000 images of 2,000 steps take as long as the paper says, for its own networks."""
    rates = cost.Throughput.published()
    work = cost.synthesis_passes(SynthesizeOptions(images=10_000)) * cost.network("resnet20", (3, 32, 32), 10).flops
    assert work / rates.rate("synthesis", "resnet20") == pytest.approx(0.6 * 3600)
    assert rates.rate("training", "wrn28_10") == rates.rate("synthesis", "wrn28_10")


@pytest.mark.parametrize("content", ["", "[]", "{}", '[{"stage": "synthesis"}]', None])
def test_reports_that_cannot_serve_are_refused(tmp_path, content):
    path = tmp_path / "b.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match="run `make bench`"):
        cost.Throughput.read(path)


def test_harden_without_entries_is_refused(unit):
    with pytest.raises(InputError, match="no models under harden:"):
        estimate.run(Plan.of(check_config(CONFIG)), ["harden"], None, 1, 0.4)
