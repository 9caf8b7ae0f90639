"""The cost model against counts made by hand."""

import dataclasses

import pytest
import torch

from dfshield import registry
from dfshield.attacks import budget, pgd
from dfshield.attacks.base import Problem
from dfshield.core.errors import InputError
from dfshield.core.threat import parse_threat
from dfshield.models.size import Network, generator_flops, network
from dfshield.options import AttackOptions, CotrainOptions, GenerateOptions, SynthesizeOptions, TrainOptions
from dfshield.planning import arithmetic

FLOPS = 2 * 78_656  # of CNN-S: 3x3 convolutions of 1, 8 and 8 channels on 8x8 pixels, and the linear layer


def test_passes_by_hand():
    assert arithmetic.synthesis_passes(SynthesizeOptions.of(images=400, batch=100, iterations=50)) == 2 * 400 * 50
    # the teacher's answers once; every epoch on 300: a clean pass, 4 steps there and back, clean and adversarial with
    # the weights' gradients; on 100 held out: a clean pass and the steps, and the predictions on both versions
    training = TrainOptions.of(epochs=3, batch=50, attack_steps=4, holdout=100)
    assert arithmetic.training_passes(training, 400) == 400 + 3 * (300 * (1 + 8 + 6) + 100 * (3 + 8))
    # whole mini-batches
    assert arithmetic.training_passes(training, 449) == 449 + 3 * (300 * (1 + 8 + 6) + 100 * (3 + 8))
    half = training.model_copy(update={"awp": 0.01, "epochs": 4, "awp_warmup": 2})
    assert arithmetic.training_passes(half, 400) == 400 + 4 * (300 * (1 + 8 + 6 * 1.5) + 100 * (3 + 8))
    attack = AttackOptions.of(attack="pgd", steps=10, restarts=2)
    assert arithmetic.attack_passes(attack, 30, 0.4) == 30 * 2 * 10 * 2
    generation = GenerateOptions.of(images=70, batch=10, epochs=2, iterations=3)
    assert arithmetic.generation_passes(generation) == (2 * 60, 3 * 60 + 70)


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
    assert arithmetic.training_passes(options, 10) == 10 + 10 * each


@pytest.mark.parametrize("loss", ["dfshield", "ikl", "trades"])
def test_n_fgsm_takes_one_step_whatever_the_steps(loss):
    options = TrainOptions.of(loss=loss, search="n-fgsm", epochs=4, batch=10, holdout=5, attack_steps=6)
    assert arithmetic.training_passes(options, 15) == 15 + 4 * (10 * (1 + 2 + 6) + 5 * (1 + 2 * 6 + 2))
    start = options.model_copy(update={"inner": "none"})
    assert arithmetic.inner_passes(start, 0) == 0


@pytest.mark.parametrize("changes", [{"features": 1.0}, {"noise": 0.1}, {"features": 1.0, "noise": 0.1}])
def test_a_teacher_that_is_asked_anew_makes_one_pass_more_of_each_image(changes):
    given = {"epochs": 4, "batch": 10, "holdout": 0, "attack_steps": 6}
    plain, asked = (arithmetic.training_passes(TrainOptions.of(**given, **more), 10) for more in ({}, changes))
    assert asked - plain == 4 * 10


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
    assert arithmetic.cotraining_passes(CotrainOptions.of(method=method, **given)) == (expected, 40 * (3 * 2 * 3 + 3))


def test_several_student_steps_have_images_of_their_own():
    given = {"batch": 8, "iterations": 2, "epochs": 3, "generator_epochs": 1, "student_steps": 5, "attack_steps": 4}
    classifiers = 8 * 2 * (3 * 4 + 2 * 5 * (2 + 8 + 3)) + 8 * 3 * (2 + 8 + 2)
    options = CotrainOptions.of(method="dfme", **given)
    assert arithmetic.cotraining_passes(options) == (classifiers, 8 * (2 * (3 * 3 + 2 * 5) + 3))


def test_a_method_that_is_only_registered_has_its_cost_and_the_stages_options(monkeypatch):
    monkeypatch.setitem(
        registry.BASELINES, "mine", registry.Baseline("mine:Mine", generator_passes=4, student_inputs=2)
    )
    options = CotrainOptions.model_construct(method="mine", batch=8, iterations=2, epochs=3, attack_steps=4)
    assert arithmetic.cotraining_passes(options)[0] == 8 * (2 * 3 * (4 + 2 + 8 + 6) + 3 * (2 + 8 + 2))
    assert CotrainOptions.class_for("mine") is CotrainOptions


@pytest.mark.parametrize(
    ("table", "name", "passes"),
    [
        (registry.ATTACKS, "pgd", lambda: arithmetic.attack_passes(AttackOptions.of(attack="pgd"), 10, 0.5)),
        (registry.OBJECTIVES, "intraq", lambda: arithmetic.synthesis_passes(SynthesizeOptions.of(objective="intraq"))),
        (registry.GENERATED, "rdskd", lambda: arithmetic.generation_passes(GenerateOptions.of(method="rdskd"))),
    ],
)
def test_an_entry_that_states_no_passes_has_none(monkeypatch, table, name, passes):
    assert passes() is not None
    monkeypatch.setitem(table, name, dataclasses.replace(table[name], passes=type(table[name])("x:y").passes))
    assert passes() is None


@pytest.mark.parametrize(
    ("version", "classes", "expected"), [("standard", 100, 9), ("paper", 100, 99), ("standard", 4, 3)]
)
def test_autoattack_by_hand(version, classes, expected):
    # quick 10 steps; then on the survivors APGD-CE and targets of APGD, targets of FAB, Square's queries
    survivors = 0.5 * 30 * (2 * 100 + 2 * 100 * expected + 3 * 100 * expected + 5000)
    assert arithmetic.attack_passes(AttackOptions.of(version=version), 30, 0.5, classes) == 30 * 20 + survivors


def test_networks_by_hand():
    net = network("cnn-s", (1, 8, 8), 10)
    assert net.flops == FLOPS
    assert arithmetic.diversity_flops(Network(7, 1, 5), 3, 2) == 5 * 7 + 2 * 5 * (9 + 4 + 6)


def test_generators_by_hand():
    # latent to 16 maps of 2x2, two doublings with convolutions of 16 to 16 and 8 channels, and 8 to 1
    linear, last = 2 * 100 * 16 * 2 * 2, 2 * 9 * 8 * 1 * 64
    convolutions = 2 * 9 * (16 * 16 * 16 + 16 * 8 * 64)
    options = CotrainOptions.of(method="ait", generator_width=0.125)
    assert generator_flops(options, (1, 8, 8), 10) == linear + convolutions + last
    generation = GenerateOptions.of(width=0.125, latent=100)
    assert generator_flops(generation, (1, 8, 8), 10) == linear + convolutions + last


def test_the_pre_filters_steps_are_those_that_are_counted(monkeypatch):
    for module in (budget, pgd):
        monkeypatch.setattr(module, "PREFILTER_STEPS", 3)
    taken = []
    monkeypatch.setattr(pgd, "ascend", lambda *given: taken.append(len(given[6])))
    problem = Problem(torch.nn.Flatten(), torch.zeros(1, 1, 2, 2), torch.zeros(1), parse_threat("linf:0.1"),
                      torch.Generator(), {})  # fmt: skip
    pgd.pgd_prefilter(problem, AttackOptions.of())
    assert arithmetic.attack_passes(AttackOptions.of(), 1, 0.0) == 2 * taken[0] == 6


@pytest.mark.parametrize(
    ("model", "shape", "steps", "hours"),
    [
        ("resnet20", (3, 32, 32), 2000, 0.6),
        ("resnet56", (3, 32, 32), 2000, 2.6),
        ("wrn28_10", (3, 32, 32), 2000, 3.6),
        ("resnet18", (3, 28, 28), 1000, 0.7),  # medical images have half the steps
    ],
)
def test_the_papers_own_times(model, shape, steps, hours):
    """Section A.2: 10,000 images take as long as the paper says, for its own networks and steps."""
    published = arithmetic.Throughput.published()
    operations = 10_000 * steps * 2 * network(model, shape, 10).flops
    assert operations / published.rate("synthesis", model) == pytest.approx(hours * 3600)
    assert published.rate("training", model) == published.rate("synthesis", model)


@pytest.mark.parametrize("content", ["", "[]", "{}", '[{"stage": "synthesis"}]', None])
def test_reports_that_cannot_serve_are_refused(tmp_path, content):
    path = tmp_path / "b.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match="run `make bench`"):
        arithmetic.Throughput.read(path)
