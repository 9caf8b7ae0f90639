"""Training: losses by hand, GradRefine against a plain version, the inner maximisation, resuming, what is refused."""

import copy
import csv
import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F

from dfshield import registry, shards
from dfshield.models.checkpoints import load_checkpoint, read_card
from dfshield.options import PROFILES, TrainingOptions
from dfshield.runtime import InputError, generator
from dfshield.shards import Surrogate
from dfshield.threat import Threat, parse_threat
from dfshield.training import losses, trainer
from dfshield.training.gradrefine import GradRefine
from dfshield.training.inner import maximise, step_size
from dfshield.training.trainer import Trainer, run

QUICK = TrainingOptions(device="cpu", epochs=2, batch=10, aggregate=2, attack_steps=2, holdout=10)


def quick(**changes) -> TrainingOptions:
    return TrainingOptions(**(QUICK.model_dump() | changes))


# --- losses ----------------------------------------------------------------------------------------------------------

Z = {  # two images, two classes; the probability of class 1 is the second number
    "clean": ([0.0, math.log(3)], 0.75),
    "adversarial": ([math.log(4), 0.0], 0.2),
    "teacher": ([0.0, 0.0], 0.5),
}
LOGITS = {name: torch.tensor([logits, logits]) for name, (logits, _) in Z.items()}
LABELS = torch.tensor([1, 1])


def divergence(p: float, q: float) -> float:
    """KL(p ‖ q) of two Bernoulli distributions."""
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


CLEAN, ADVERSARIAL, TEACHER = (probability for _, probability in Z.values())


def loss(name: str, **changes) -> float:
    function = registry.LOSSES[name].load()
    options = TrainingOptions(**changes)
    return float(function(LOGITS["clean"], LOGITS["adversarial"], LOGITS["teacher"], LABELS, options))


def test_kl_has_the_target_first_and_the_student_in_the_logarithm():
    found = losses.kl(LOGITS["teacher"], LOGITS["clean"])
    assert float(found) == pytest.approx(divergence(TEACHER, CLEAN))
    assert float(found) == pytest.approx(0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25))
    assert abs(float(found) - divergence(CLEAN, TEACHER)) > 0.01
    assert float(found) == pytest.approx(
        float(F.kl_div(LOGITS["clean"].log_softmax(1), LOGITS["teacher"].softmax(1), reduction="batchmean"))
    )


@pytest.mark.parametrize(("reduction", "factor"), [("batchmean", 1), ("mean", 0.5), ("sum", 2)])
def test_kl_reductions(reduction, factor):
    found = losses.kl(LOGITS["teacher"], LOGITS["clean"], reduction)
    assert float(found) == pytest.approx(factor * divergence(TEACHER, CLEAN))


@pytest.mark.parametrize(("lambda1", "lambda2"), [(1, 1), (0, 0), (3, 0), (0, 3)])
def test_dfshield_loss_by_hand(lambda1, lambda2):
    expected = (
        divergence(TEACHER, CLEAN)
        + lambda1 * divergence(TEACHER, ADVERSARIAL)
        + lambda2 * divergence(CLEAN, ADVERSARIAL)
    )
    assert loss("dfshield", lambda1=lambda1, lambda2=lambda2) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("t", [1.0, 4.0, 20.0])
@pytest.mark.parametrize(("reduction", "divisor"), [("batchmean", 1), ("mean", 2)])
def test_temperature_and_reduction_touch_the_clean_term_alone(t, reduction, divisor):
    warm = 1 / (1 + math.exp(-math.log(3) / t))
    expected = (
        t * t * divergence(0.5, warm) / divisor + divergence(TEACHER, ADVERSARIAL) + divergence(CLEAN, ADVERSARIAL)
    )
    assert loss("dfshield", temperature=t, clean_reduction=reduction) == pytest.approx(expected, rel=1e-4)


def test_a_high_temperature_matches_centred_logits():
    """At temperature 20 the released code's clean term is about the squared centred logit difference over 2C²."""
    difference = LOGITS["clean"] - LOGITS["teacher"]
    centred = (difference - difference.mean(1, keepdim=True)).square().sum(1).mean() / (2 * 2**2)
    found = loss("dfshield", temperature=20, clean_reduction="mean", lambda1=0, lambda2=0)
    assert found == pytest.approx(float(centred), rel=0.01)


@pytest.mark.parametrize("beta", [0.0, 6.0])
def test_trades_by_hand(beta):
    expected = -math.log(CLEAN) + beta * divergence(CLEAN, ADVERSARIAL)
    assert loss("trades", beta=beta) == pytest.approx(expected, rel=1e-5)


def test_standard_adversarial_training_by_hand():
    assert loss("std") == pytest.approx(-math.log(ADVERSARIAL))


@pytest.mark.parametrize("name", ["dfshield", "trades"])
def test_the_smoothness_term_moves_both_sides(name):
    clean, adversarial = LOGITS["clean"].clone().requires_grad_(), LOGITS["adversarial"].clone().requires_grad_()
    options = TrainingOptions(lambda1=0, lambda2=5, beta=5)
    whole = registry.LOSSES[name].load()(clean, adversarial, LOGITS["teacher"], LABELS, options)
    only_clean = registry.LOSSES[name].load()(
        clean, adversarial, LOGITS["teacher"], LABELS, options.model_copy(update={"lambda2": 0.0, "beta": 0.0})
    )
    moved = [torch.autograd.grad(value, clean, retain_graph=True)[0] for value in (whole, only_clean)]
    assert not torch.allclose(*moved)
    assert torch.autograd.grad(whole, adversarial)[0].abs().max() > 0


# --- GradRefine ------------------------------------------------------------------------------------------------------


def refine_plainly(gradients, b, tau, reduction="sum", tie="zero", size=None):
    """Eq 9 and 10 entry by entry, in Python numbers."""
    b = size or b
    result = []
    for entries in zip(*gradients, strict=True):
        entries = [float(g) for g in entries]
        signs = sum((g > 0) - (g < 0) for g in entries)
        agreement = signs / b
        agreeing = [g for g in entries if agreement * g > 0]
        kept = sum(entries if signs == 0 and tie == "all" else agreeing)
        passes = abs(signs) >= tau * b
        result.append(kept / (b if reduction == "mean" else 1) if passes else 0.0)
    return result


def refine(gradients, b, tau, size=None, **settings):
    shapes = [torch.zeros(len(gradients[0]) - 3), torch.zeros(3)]
    refiner = GradRefine(shapes, b, tau, **settings)
    for gradient in gradients:
        refiner.add(tuple(torch.tensor(gradient).split([len(gradient) - 3, 3])))
    assert refiner.count == len(gradients)
    refined, share = refiner.refine(size)
    assert refiner.count == 0
    return torch.cat(refined), share


@pytest.mark.parametrize("b", [1, 2, 3, 8, 20])
@pytest.mark.parametrize("tau", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("tie", ["zero", "all"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_gradrefine_against_a_plain_version(b, tau, tie, reduction):
    random = np.random.RandomState(b)
    gradients = (random.randn(b, 400) * (random.rand(b, 400) > 0.2)).astype(np.float32)  # some entries are zero
    gradients[:, :5] = 0
    found, _ = refine(gradients.tolist(), b, tau, reduction=reduction, tie=tie)
    expected = refine_plainly(gradients, b, tau, reduction, tie)
    assert found.tolist() == pytest.approx(expected, abs=1e-5)
    assert (found[:5] == 0).all()
    assert (found != 0).any() or (tau == 1 and b > 3)


def test_the_threshold_is_inclusive():
    # of four mini-batches: 3 up and 1 down is |s| = 2 = 0.5·4; 2 up, 1 down, one zero is |s| = 1
    column = [[1.0, 1.0], [2.0, 2.0], [3.0, -4.0], [-5.0, 0.0]]
    gradients = [[*pair, 0.0, 0.0, 0.0] for pair in column]
    assert refine(gradients, 4, 0.5)[0].tolist()[:2] == [6.0, 0.0]
    assert refine(gradients, 4, 0.51)[0].tolist()[:2] == [0.0, 0.0]
    assert refine(gradients, 4, 0.25)[0].tolist()[:2] == [6.0, 3.0]
    assert refine(gradients, 4, 0.5, reduction="mean")[0].tolist()[:2] == [1.5, 0.0]


def test_the_majority_sign_is_counted_not_weighed():
    gradients = [[0.1, 0, 0, 0], [0.1, 0, 0, 0], [-9.0, 0, 0, 0]]
    assert refine(gradients, 3, 0.0)[0][0] == pytest.approx(0.2)


@pytest.mark.parametrize(("tie", "expected"), [("zero", 0.0), ("all", -2.0)])
def test_ties_at_tau_zero(tie, expected):
    gradients = [[1.0, 0, 0, 0], [-3.0, 0, 0, 0]]
    found, share = refine(gradients, 2, 0.0, tie=tie)
    assert found[0] == expected
    assert share == (1.0 if tie == "all" else 0.0)
    assert refine(gradients, 2, 0.1, tie=tie)[0][0] == 0


def test_a_group_of_one_is_plain_sgd():
    gradient = torch.randn(50).tolist()
    for tau in (0.0, 0.5, 1.0):
        found, share = refine([gradient], 1, tau)
        assert found.tolist() == gradient
        assert share == 1.0


def test_share_of_passed_entries_and_a_new_group_starts_from_nothing():
    refiner = GradRefine([torch.zeros(4)], 2, 1.0)
    for _ in range(2):
        for gradient in ([1.0, 1.0, 1.0, 0.0], [1.0, -1.0, 1.0, 0.0]):
            refiner.add([torch.tensor(gradient)])
        refined, share = refiner.refine()
        assert refined[0].tolist() == [2, 0, 2, 0]
        assert share == 0.5


def test_the_size_of_a_short_group():
    gradients = [[1.0, 0, 0, 0]] * 3
    assert refine(gradients, 10, 0.5)[0][0] == 0  # 3 of 10 can never reach half
    assert refine(gradients, 10, 0.5, size=3)[0][0] == 3
    assert refine(gradients, 10, 0.5, size=3, reduction="mean")[0][0] == 1


# --- the inner maximisation ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("threat", "l2_step", "expected"),
    [
        ("linf:8/255", "15/255", 2 / 255),
        ("linf:8/255", "eps/5", 2 / 255),
        ("linf:4/255", "15/255", 1 / 255),
        ("l2:128/255", "15/255", 15 / 255),
        ("l2:128/255", "eps/5", 25.6 / 255),
    ],
)
def test_step_sizes(threat, l2_step, expected):
    assert step_size(TrainingOptions(l2_step=l2_step), parse_threat(threat)) == pytest.approx(expected)


def craft(threat: Threat, objective="kl", start="normal", steps=10, size=None, n=8, seed=0):
    model = tiny.classifier(scale=20.0).requires_grad_(False)
    x = torch.from_numpy(tiny.images(n)).permute(0, 3, 1, 2)
    x[0], x[1] = 0.0, 1.0  # at the border of the range of pixels
    labels = torch.arange(n) % 10
    size = size or step_size(TrainingOptions(), threat)
    adversarial = maximise(model, x, labels, objective, start, threat, steps, size, generator("test", seed))
    return model, x, labels, adversarial


@pytest.mark.parametrize("objective", ["kl", "ce"])
@pytest.mark.parametrize("start", ["normal", "uniform"])
@pytest.mark.parametrize("threat", [Threat("linf", 8 / 255), Threat("l2", 128 / 255), Threat("linf", 0.0)])
def test_adversarial_images_stay_within_the_threat_and_in_range(objective, start, threat):
    _, x, _, adversarial = craft(threat, objective, start)
    distance = (adversarial - x).flatten(1).norm(dim=1, p=math.inf if threat.norm == "linf" else 2)
    assert float(distance.max()) <= threat.eps + 1e-6
    assert float(adversarial.min()) >= 0
    assert float(adversarial.max()) <= 1
    assert not adversarial.requires_grad
    if threat.eps:
        assert float(distance.max()) > 0.9 * threat.eps


@pytest.mark.parametrize(("objective", "other"), [("kl", "ce"), ("ce", "kl")])
def test_each_objective_is_the_one_that_is_raised(objective, other):
    threat = Threat("linf", 16 / 255)

    def reached(chosen):
        model, x, labels, adversarial = craft(threat, chosen, n=40)
        values = {"kl": losses.kl(model(x), model(adversarial)), "ce": F.cross_entropy(model(adversarial), labels)}
        return float(values[objective])

    model, x, labels, _ = craft(threat, n=40)
    start = 0.0 if objective == "kl" else float(F.cross_entropy(model(x), labels))
    assert reached(objective) > start
    assert reached(objective) > reached(other)


@pytest.mark.parametrize("threat", [Threat("linf", 8 / 255), Threat("l2", 128 / 255)])
def test_a_single_step_by_hand(threat):
    """From x + 0.001·N(0,1): up the gradient of KL(S(x) ‖ S(x')), by sign or by unit vector, then projected."""
    model, x, _, adversarial = craft(threat, steps=1)
    start = (x + 0.001 * torch.randn(x.shape, generator=generator("test", 0))).requires_grad_()
    p, q = model(x).softmax(1).detach(), model(start).log_softmax(1)
    (slope,) = torch.autograd.grad((p * (p.log() - q)).sum(), start)
    size = step_size(TrainingOptions(), threat)
    if threat.norm == "linf":
        expected = (start + size * slope.sign()).clamp(x - threat.eps, x + threat.eps)
    else:
        expected = start + size * slope / slope.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    close = ((adversarial - expected.clamp(0, 1)).abs() < 1e-5).float().mean()
    assert float(close) > 0.99  # the sign of a gradient near zero is up to rounding


def test_starts_depend_on_the_generator_alone():
    threat = Threat("linf", 8 / 255)
    first, torch_state = craft(threat)[3], torch.rand(1)
    assert torch.equal(craft(threat)[3], first)
    assert not torch.equal(craft(threat, seed=1)[3], first)
    assert torch_state.numel() == 1


@pytest.mark.parametrize(("loss", "inner", "start"), [("dfshield", "kl", "normal"), ("trades", "kl", "normal"),
                                                     ("std", "ce", "uniform")])  # fmt: skip
def test_each_loss_has_the_inner_problem_of_its_paper(loss, inner, start):
    made = make(quick(loss=loss))
    assert (made.inner, made.start) == (inner, start)
    assert make(quick(loss=loss, inner="ce")).inner == "ce"


# --- the trainer -----------------------------------------------------------------------------------------------------


def data(n=60, seed=0) -> Surrogate:
    return Surrogate(tiny.images(n, seed=seed), np.arange(n) % tiny.CLASSES, {})


def make(options=QUICK, n=60) -> Trainer:
    return Trainer(tiny.classifier(), data(n), options)


def test_crafting_is_in_eval_mode_and_touches_nothing_of_the_student():
    made = make()
    before = {name: value.clone() for name, value in made.student.state_dict().items()}
    x = made.images[:10]
    adversarial = made._craft(x, made.labels[:10], generator("a"))
    assert all(torch.equal(value, before[name]) for name, value in made.student.state_dict().items())
    assert all(parameter.grad is None for parameter in made.student.parameters())
    made.student.eval()
    plain = made.student.requires_grad_(False)
    expected = maximise(plain, x, made.labels[:10], "kl", "normal", made.threat, 2, 2 / 255, generator("a"))
    assert float(((adversarial - expected).abs() < 1e-5).float().mean()) > 0.98
    made.student.train()  # whatever the student's mode: crafting sees running statistics
    assert torch.equal(made._craft(x, made.labels[:10], generator("a")), adversarial)


def test_crafting_follows_the_students_weights_and_statistics():
    made = make()
    for epoch in range(2):
        made.epoch(epoch)
    with torch.no_grad():
        for parameter in made.parameters:
            parameter.mul_(1.5)
    plain = copy.deepcopy(made.student).eval().requires_grad_(False)
    x = made.images[:20]
    found = made._craft(x, made.labels[:20], generator("a"))
    expected = maximise(plain, x, made.labels[:20], "kl", "normal", made.threat, 2, 2 / 255, generator("a"))
    assert float(((found - expected).abs() < 1e-5).float().mean()) > 0.98


def test_batchnorm_moves_at_every_mini_batch_of_a_group_and_weights_at_its_end():
    made = make(quick(aggregate=5, holdout=0), n=50)
    norm = next(m for m in made.student.modules() if isinstance(m, torch.nn.BatchNorm2d))
    weights, running, modes = [], [], []
    genuine = made.gradients

    def gradients(rows, random):
        weights.append(made.parameters[0].detach().clone())
        result = genuine(rows, random)
        running.append(norm.running_mean.clone())
        modes.append(made.student.training)
        return result

    made.gradients = gradients
    counted = int(norm.num_batches_tracked)
    made.epoch(0)
    assert all(torch.equal(weights[0], w) for w in weights)
    assert not torch.equal(weights[0], made.parameters[0])
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(running))
    assert int(norm.num_batches_tracked) == counted + 2 * 5  # one forward on x̂ and one on x̂' per mini-batch
    assert all(modes)


def test_gradients_are_those_of_the_loss_in_train_mode():
    made = make()
    rows = torch.arange(10)
    adversarial = made._craft(made.images[rows], made.labels[rows], generator("a"))
    reference = tiny.classifier().train()
    expected = losses.dfshield(
        reference(made.images[rows]), reference(adversarial), made.targets[rows], made.labels[rows], QUICK
    )
    slopes = torch.autograd.grad(expected, list(reference.parameters()))
    found, gradients = made.gradients(rows, generator("a"))
    assert float(found) == pytest.approx(expected.item(), rel=1e-4)
    for a, b in zip(gradients, slopes, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_one_update_is_sgd_on_the_refined_gradients():
    options = quick(aggregate=5, holdout=0, momentum=0.9, weight_decay=0.01, lr=0.1)
    made = make(options, n=50)
    before = [p.detach().clone() for p in made.parameters]
    collected = []
    genuine = made.gradients
    made.gradients = lambda rows, random: collected.append(genuine(rows, random)) or collected[-1]
    made.epoch(0)
    refined = refine_plainly(
        [torch.cat([g.flatten() for g in gradients])[:5000] for _, gradients in collected], 5, options.tau
    )
    found = torch.cat([((a - p) / 0.1 - 0.01 * a).flatten() for a, p in zip(before, made.parameters, strict=True)])
    assert found[:5000].tolist() == pytest.approx(refined, abs=2e-4)


@pytest.mark.parametrize(("mode", "updates", "moved"), [("full", 2, False), ("actual", 2, True), ("drop", 1, False)])
def test_the_last_short_group(mode, updates, moved):
    made = make(quick(aggregate=5, tau=0.5, last_group=mode, momentum=0, holdout=0), n=70)
    states, genuine = [], made._update

    def update():
        before = [p.detach().clone() for p in made.parameters]
        share = genuine()
        states.append(any(not torch.equal(a, b) for a, b in zip(before, made.parameters, strict=True)))
        return share

    made._update = update
    made.epoch(0)
    assert made.updates == updates
    assert states == [True, moved]  # 2 of 5 mini-batches never reach half of 5, but they do half of 2
    assert made.refiner.count == 0


def test_b_multiplies_the_learning_rate_only_when_asked():
    assert make(quick(aggregate=5, lr=0.01)).base_lr == pytest.approx(0.01)
    assert make(quick(aggregate=5, lr=0.01, lr_factor="B")).base_lr == pytest.approx(0.05)


def test_schedules():
    rates = {}
    for schedule in ("constant", "cosine"):
        made = make(quick(epochs=4, schedule=schedule, lr=0.1))
        rates[schedule] = [made._set_rate(epoch) or made.optimiser.param_groups[0]["lr"] for epoch in range(4)]
    assert rates["constant"] == [0.1] * 4
    assert rates["cosine"] == pytest.approx([0.05 * (1 + math.cos(math.pi * epoch / 4)) for epoch in range(4)])


def test_optimiser_settings():
    settings = make(quick(momentum=0.8, nesterov=True, weight_decay=0.3)).optimiser.param_groups[0]
    assert (settings["momentum"], settings["nesterov"], settings["weight_decay"]) == (0.8, True, 0.3)


def test_held_out_images_are_never_trained_on():
    made = make(quick(holdout=20))
    seen = set()
    genuine = made.gradients
    made.gradients = lambda rows, random: (
        seen.update(made.images[rows].flatten(1).sum(1).tolist()) or genuine(rows, random)
    )
    for epoch in range(3):
        made.epoch(epoch)
    held = set(made.held[0].flatten(1).sum(1).tolist())
    assert len(held) == 20
    assert len(seen) == 40
    assert not held & seen


def test_every_epoch_sees_every_image_in_another_order():
    made = make(quick(holdout=0))
    orders = []
    genuine = made.gradients
    made.gradients = lambda rows, random: orders.extend(rows.tolist()) or genuine(rows, random)
    made.epoch(0)
    made.epoch(1)
    first, second = orders[:60], orders[60:]
    assert sorted(first) == sorted(second) == list(range(60))
    assert first != second


def test_the_teacher_is_asked_once_and_stays_as_it_is():
    teacher = tiny.classifier()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    images = []
    teacher.register_forward_pre_hook(  # the student, a copy, has this hook too
        lambda module, inputs: images.append(len(inputs[0])) if module is teacher else None
    )
    made = Trainer(teacher, data(), quick(epochs=3))
    made.fit(None)
    assert sum(images) == 60
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    expected = tiny.classifier()(made.images)
    torch.testing.assert_close(made.targets, expected.detach(), rtol=1e-4, atol=1e-4)


def test_the_student_starts_as_the_teacher():
    teacher = tiny.classifier()
    made = Trainer(teacher, data(), QUICK)
    assert all(torch.equal(v, teacher.state_dict()[k]) for k, v in made.student.state_dict().items())
    assert all(a.data_ptr() != b.data_ptr() for a, b in zip(made.parameters, teacher.parameters(), strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"aggregate": 6}, r"aggregate \(B = 6\).*50 images \(5 mini-batches\).*use aggregate <= 5, batch <= 8"),
        ({"aggregate": 1, "batch": 51}, "holdout 10 leaves 50 of 60 images.*smaller holdout or batch"),
        ({"aggregate": 1, "holdout": 60}, "holdout 60 leaves 0 of 60 images"),
    ],
)
def test_an_epoch_without_an_update_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        make(quick(**changes))


def test_b_of_a_whole_epoch_is_allowed():
    made = make(quick(aggregate=5))
    made.epoch(0)
    assert made.updates == 1


def test_divergence_ends_in_one_line():
    with pytest.raises(InputError, match=r"diverged: the loss is (nan|inf) in epoch \d.*lower lr \(1e\+20\)"):
        make(quick(lr=1e20, aggregate=1, epochs=3)).fit(None)


# --- the stage -------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    teacher = tiny.teacher(tmp_path / "teacher.safetensors")
    surrogate = tiny.surrogate(tmp_path / "data.h5", teacher_sha256=read_card(teacher).tensors_sha256)
    return teacher, surrogate


@pytest.mark.parametrize("stop", [1, 2])
def test_a_stopped_run_goes_on_to_the_same_bytes(files, tmp_path, monkeypatch, stop):
    options = quick(epochs=3, schedule="cosine", lr=0.01)
    run(*files, tmp_path / "whole.safetensors", options, metrics=tmp_path / "whole.csv")
    genuine, epochs = Trainer.epoch, []

    def epoch(self, number, bar=None):
        if len(epochs) == stop:
            raise KeyboardInterrupt
        epochs.append(number)
        return genuine(self, number, bar)

    monkeypatch.setattr(Trainer, "epoch", epoch)
    out, state = tmp_path / "resumed.safetensors", tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        run(*files, out, options, state=state, metrics=tmp_path / "resumed.csv")
    assert not out.exists()
    epochs.clear()
    stop = 9
    run(*files, out, options, state=state, metrics=tmp_path / "resumed.csv")
    assert epochs == list(range(3))[-len(epochs) :]
    assert len(epochs) < 3
    assert out.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert (tmp_path / "resumed.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not list(state.rglob("*.pt"))


def test_the_state_of_other_options_is_not_taken(files, tmp_path, monkeypatch):
    state = tmp_path / "state"
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(trainer, "save_checkpoint", lambda *a: 1 / 0)
        run(*files, tmp_path / "a.safetensors", QUICK, state=state)
    for name, kept in (("b", state), ("c", None)):
        run(*files, tmp_path / f"{name}.safetensors", quick(lr=0.01), state=kept)
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "c.safetensors").read_bytes()
    next(state.rglob("epoch.pt")).write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"epoch\.pt: damaged state of a stopped run .*; delete it"):
        run(*files, tmp_path / "d.safetensors", QUICK, state=state)


def test_the_last_epoch_is_the_result(files, tmp_path, monkeypatch):
    states, genuine = [], Trainer.epoch

    def epoch(self, number, bar=None):
        row = genuine(self, number, bar)
        states.append({k: v.clone() for k, v in self.student.net.state_dict().items()})
        return row | {"robust_agreement": 100.0 - 30 * number, "clean_agreement": 100.0 - 30 * number}

    monkeypatch.setattr(Trainer, "epoch", epoch)
    run(*files, tmp_path / "student.safetensors", quick(lr=0.01, epochs=3))
    student, _ = load_checkpoint(tmp_path / "student.safetensors")
    assert all(torch.equal(v, states[-1][k]) for k, v in student.net.state_dict().items())


def test_what_the_student_says_of_itself(files, tmp_path):
    out = tmp_path / "student.safetensors"
    run(*files, out, QUICK, recipe="mine", code="digest")
    card, teacher = read_card(out), read_card(files[0])
    assert (card.kind, card.real_data, card.mean, card.std) == ("student", "none", teacher.mean, teacher.std)
    assert card.provenance["teacher_sha256"] == teacher.tensors_sha256
    assert card.provenance["data_sha256"] == shards.header(files[1])["content_sha256"]
    assert (card.provenance["recipe"], card.provenance["code"]) == ("mine", "digest")
    assert card.provenance["updates"] == 2 * 3
    assert card.provenance["options"]["tau"] == 0.5
    assert card.tensors_sha256 != teacher.tensors_sha256


def test_real_data_is_inherited(files, tmp_path):
    sha = read_card(files[0]).tensors_sha256
    data = tiny.surrogate(tmp_path / "real.h5", teacher_sha256=sha, real_data="train", source="real")
    run(files[0], data, tmp_path / "student.safetensors", quick(epochs=1))
    card = read_card(tmp_path / "student.safetensors")
    assert (card.real_data, card.provenance["source"]) == ("train", "real")


@pytest.mark.parametrize("holdout", [0, 10])
def test_metrics(files, tmp_path, holdout):
    run(*files, tmp_path / "s.safetensors", quick(holdout=holdout, lr=0.01), metrics=tmp_path / "m.csv")
    with (tmp_path / "m.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    columns = ["epoch", "loss", "clean_agreement", "robust_agreement", "updates", "passed", "lr"]
    assert list(rows[0]) == columns
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert [int(row["updates"]) for row in rows] == [3, 6]
    assert all(0 < float(row["passed"]) < 1 and float(row["loss"]) > 0 and float(row["lr"]) == 0.01 for row in rows)
    agreement = [float(row[key]) for row in rows for key in ("clean_agreement", "robust_agreement")]
    assert all(math.isnan(value) if holdout == 0 else 0 <= value <= 100 for value in agreement)


def test_agreement_is_with_the_teachers_class_on_held_out_images():
    made = make(quick(holdout=20))
    made.held = (made.held[0], (made.held[1] + 1) % 10)
    assert made._agreement(0)[0] == 0.0
    made.held = (made.held[0], (made.held[1] - 1) % 10)
    assert made._agreement(0)[0] == 100.0
    clean, robust = make(quick(holdout=20, threat="linf:1", attack_steps=10))._agreement(0)
    assert robust < clean


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher_sha256": "f" * 64}, "made from teacher f{16}.*synthesise from this teacher"),
        ({"classes": 12}, "12 classes but .* has 10"),
        ({"shape": (1, 8, 9)}, r"images are \(1, 8, 9\) but .* takes \(1, 8, 8\)"),
        ({"shape": (3, 8, 8)}, r"images are \(3, 8, 8\)"),
        ({"groups": 2}, r"holds groups 0\.\.0 of 2; give the merged file"),
    ],
)
def test_data_of_another_teacher_are_refused(files, tmp_path, changes, message):
    sha = read_card(files[0]).tensors_sha256
    data = tiny.surrogate(tmp_path / "other.h5", **({"teacher_sha256": sha} | changes))
    with pytest.raises(InputError, match=message):
        run(files[0], data, tmp_path / "s.safetensors", QUICK)
    assert not (tmp_path / "s.safetensors").exists()


def test_no_real_data_can_be_read(files, tmp_path):
    code = (
        "import sys; from pathlib import Path\n"
        "from dfshield.options import TrainingOptions\n"
        "from dfshield.training import trainer\n"
        "genuine = trainer.Trainer.epoch\n"
        "def epoch(self, *rest):\n"
        "    try: import dfshield.data\n"
        "    except RuntimeError as error: print('refused:', error)\n"
        "    return genuine(self, *rest)\n"
        "trainer.Trainer.epoch = epoch\n"
        "options = TrainingOptions(epochs=1, batch=10, aggregate=1, attack_steps=1, holdout=0)\n"
        "trainer.run(*map(Path, sys.argv[1:]), options)\n"
        "print(sorted(m for m in sys.modules if m.startswith('dfshield.data') or m == 'sklearn'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, files), str(tmp_path / "s.safetensors")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "refused: train is data-free: it must not import dfshield.data\n[]\n"


# --- profiles --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "paper", "repo"),
    [
        ("temperature", 1.0, 20.0),
        ("clean_reduction", "batchmean", "mean"),
        ("weight_decay", 0.0, 1e-4),
        ("nesterov", False, True),
        ("l2_step", "15/255", "eps/5"),
        ("tie", "zero", "all"),
        ("last_group", "full", "full"),
        ("reduction", "sum", "sum"),
        ("lr_factor", "1", "1"),
    ],
)
def test_profiles(option, paper, repo):
    assert getattr(TrainingOptions(**PROFILES["paper"].get("training", {})), option) == paper
    assert getattr(TrainingOptions(**PROFILES["repo"]["training"]), option) == repo


def test_the_papers_numbers():
    options = TrainingOptions()
    assert (options.lr, options.momentum, options.epochs, options.batch) == (1e-4, 0.9, 100, 200)
    assert (options.aggregate, options.tau, options.lambda1, options.lambda2) == (20, 0.5, 1, 1)
    assert (options.attack_steps, options.schedule, options.beta) == (10, "constant", 6)
