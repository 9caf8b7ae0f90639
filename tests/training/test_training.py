"""Training: GradRefine against a plain version, the trainer, every loss, resuming, what is refused."""

import copy
import csv
import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from support import tiny

from dfshield import registry
from dfshield.core.errors import InputError
from dfshield.core.rng import generator
from dfshield.core.threat import Threat
from dfshield.models.checkpoints import load_checkpoint, read_card
from dfshield.options import PROFILES, TrainOptions
from dfshield.sources import trainset as shards
from dfshield.sources.trainset import TrainSet
from dfshield.training import losses, trainer
from dfshield.training.augment import augment
from dfshield.training.awp import frozen_buffers
from dfshield.training.gradrefine import GradRefine
from dfshield.training.inner import OBJECTIVES, InnerAttack, pgd_ascent
from dfshield.training.train import run
from dfshield.training.trainer import Trainer

QUICK = TrainOptions.of(device="cpu", epochs=2, batch=10, aggregate=2, attack_steps=2, holdout=10)


def quick(**changes) -> TrainOptions:
    return TrainOptions.of(**(QUICK.model_dump() | changes))


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


# --- the trainer -----------------------------------------------------------------------------------------------------


FULL = (OBJECTIVES["kl"], "normal", Threat("linf", 8 / 255), 2, 2 / 255)


def data(n=60, seed=0) -> TrainSet:
    return TrainSet(tiny.images(n, seed=seed), np.arange(n) % tiny.CLASSES, {})


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
    expected = pgd_ascent(plain, x, made.labels[:10], *FULL, generator("a"))
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
    expected = pgd_ascent(plain, x, made.labels[:20], *FULL, generator("a"))
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


@pytest.mark.parametrize("awp", [0, 0.01])
def test_batchnorm_in_eval_mode_keeps_the_teachers_statistics(awp):
    teacher, made = tiny.classifier(), make(quick(batchnorm="eval", lr=0.01, awp=awp))
    made.epoch(0)
    assert all(torch.equal(value, dict(teacher.named_buffers())[name]) for name, value in made.student.named_buffers())
    affine = [m.weight for m in made.student.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert all(not torch.equal(weight, torch.ones_like(weight)) for weight in affine)  # which are trained like others


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_gradients_are_those_of_the_loss_in_its_mode(mode):
    made = make(quick(batchnorm=mode))
    rows = torch.arange(10)
    adversarial = made._craft(made.images[rows], made.labels[rows], generator("a"))
    reference = tiny.classifier().train(mode == "train")
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


def test_learning_rate_grows_over_the_first_epochs():
    made = make(quick(epochs=4, lr_warmup=0.5, lr=0.1))
    rates = [made._set_rate(epoch) or made.optimiser.param_groups[0]["lr"] for epoch in range(4)]
    assert rates == pytest.approx([0.05, 0.1, 0.1, 0.1])
    made = make(quick(epochs=4, lr_warmup=1, lr=0.1, schedule="cosine"))
    rates = [made._set_rate(epoch) or made.optimiser.param_groups[0]["lr"] for epoch in range(4)]
    cosine = [0.05 * (1 + math.cos(math.pi * epoch / 4)) for epoch in range(4)]
    assert rates == pytest.approx([cosine[epoch] * (epoch + 1) / 4 for epoch in range(4)])


def test_the_problem_of_an_epoch_is_the_one_that_is_solved():
    made = make(quick(epochs=4, eps_warmup=1, loss="dart", holdout=20))
    solved, genuine = [], InnerAttack.solve
    furthest = []

    def solve(self, model, x, *rest):
        found = genuine(self, model, x, *rest)
        solved.append(self)
        furthest.append(float((found - x).abs().max()))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InnerAttack, "solve", solve)
        for epoch in range(4):
            made.epoch(epoch)
    training = [p for p in solved if p.search == "fosc"]
    assert [p.threat.eps * 255 for p in training] == pytest.approx([2] * 4 + [4] * 4 + [6] * 4 + [8] * 4)
    assert [p.stop for p in training[::4]] == pytest.approx([0.5, 0.35, 0.2, 0.05])
    held = [(p.search, p.threat.eps) for p in solved if p not in training]
    assert held == [("pgd", 8 / 255)] * 4  # the same attack after every epoch
    assert all(far <= p.threat.eps + 1e-6 for far, p in zip(furthest, solved, strict=True))
    assert max(far - p.threat.eps for far, p in zip(furthest, training, strict=False)) > -1e-3


@pytest.mark.parametrize(("contrast", "noise"), [(0.3, 0), (0, 0.1), (0.3, 0.1), (0, 0)])
def test_variation_of_images(contrast, noise):
    x = torch.full((400, 1, 4, 4), 0.5)
    options = quick(contrast=contrast, noise=noise)
    found = augment(x, options, generator("a"))
    assert options.varies == bool(contrast or noise)
    assert torch.equal(found, augment(x, options, generator("a"))) and (options.varies or torch.equal(found, x))
    factors = found.mean((1, 2, 3)) / 0.5  # one for each image, U(1-contrast, 1+contrast)
    assert float(factors.std()) == pytest.approx(math.hypot(contrast / math.sqrt(3), noise / 2), abs=0.02)
    assert float(found.std(dim=(2, 3)).mean()) == pytest.approx(noise, abs=0.01)
    bright = augment(x + 0.5, options, generator("a"))
    assert float(bright.min()) >= 0 and float(bright.max()) == 1
    if contrast and not noise:
        assert float(factors.min()) == pytest.approx(0.7, abs=0.01) and float(factors.max()) == pytest.approx(
            1.3, abs=0.01
        )


def test_half_of_the_images_are_mirrored():
    x = torch.rand(400, 1, 4, 4)
    options = quick(flip=True)
    found = augment(x, options, generator("a"))
    kept = (found == x).flatten(1).all(1)
    assert options.varies
    assert torch.equal(found[~kept], x[~kept].flip(3))
    assert 160 < int(kept.sum()) < 240


def test_whole_images_are_moved_and_zeros_fill_in():
    images = torch.rand(64, 2, 16, 16) + 0.1
    options = quick(translate=True)
    moved = augment(images, options, generator("a"))
    assert options.varies
    offsets = set()
    for before, after in zip(images, moved, strict=True):
        rows, columns = (after[0] > 0).any(1).nonzero().flatten(), (after[0] > 0).any(0).nonzero().flatten()
        top, left, height, width = int(rows[0]), int(columns[0]), len(rows), len(columns)
        dy = top or height - 16
        dx = left or width - 16
        expected = torch.zeros_like(before)
        expected[:, max(dy, 0) : 16 + min(dy, 0), max(dx, 0) : 16 + min(dx, 0)] = before[
            :, max(-dy, 0) : 16 - max(dy, 0), max(-dx, 0) : 16 - max(dx, 0)
        ]
        assert torch.equal(after, expected)
        offsets.add((dy, dx))
    assert {dy for dy, _ in offsets} == {dx for _, dx in offsets} == {-2, -1, 0, 1, 2}


@pytest.mark.parametrize("loss", ["dfshield", "uat", "gradient-penalty"])
def test_the_teacher_is_asked_about_the_varied_images(loss):
    made, seen = make(quick(loss=loss, contrast=0.3, noise=0.1)), []
    genuine = made._outer
    made._outer = lambda *parts: seen.append(parts) or genuine(*parts)
    made.gradients(torch.arange(10), generator("a"))
    ((x, adversarial, targets, labels),) = seen
    assert torch.equal(x, augment(made.images[:10], made.options, generator("a")))
    torch.testing.assert_close(targets, tiny.classifier()(x).detach(), rtol=1e-4, atol=1e-4)
    assert float((targets - made.targets[:10]).abs().max()) > 0.01
    assert torch.equal(labels, targets.argmax(1) if loss == "uat" else made.labels[:10])
    if adversarial is not None:
        assert float((adversarial - x).abs().max()) <= 8 / 255 + 1e-6


@pytest.mark.parametrize("loss", ["uat", "rst", "trades"])
def test_labels_of_the_data_or_of_the_teacher(loss):
    made = make(quick(loss=loss, holdout=0, threat="linf:0"))
    teacher = made.targets.argmax(1)
    assert float((teacher == torch.arange(60) % 10).float().mean()) < 0.5
    given = data().labels[[int(i) for i in _order(made)]]
    assert made.labels.tolist() == (given.tolist() if loss == "trades" else teacher.tolist())
    seen = []
    made.loss = lambda clean, adversarial, targets, labels, options: seen.append(labels) or clean.sum()
    made.gradients(torch.arange(10), generator("a"))
    assert torch.equal(seen[0], made.labels[:10])


def _order(made: Trainer) -> torch.Tensor:
    """Rows of `data()` in the trainer's order."""
    flat = torch.from_numpy(data().images).permute(0, 3, 1, 2).flatten(1)
    return torch.cdist(made.images.flatten(1), flat).argmin(1)


def test_rslad_crafts_against_the_teacher():
    made = make(quick(loss="rslad", attack_steps=5, threat="linf:16/255"))
    for epoch in range(2):  # away from the teacher
        made.epoch(epoch)
    x, targets = made.images[:20], made.targets[:20]
    plain = copy.deepcopy(made.student).eval().requires_grad_(False)
    found = made._craft(x, made.labels[:20], generator("a"), targets)
    other = made._craft(x, made.labels[:20], generator("a"), targets.roll(1, 1))
    reached = [float(losses.kl(targets, plain(point))) for point in (x, other, found)]
    assert reached[2] > max(reached[:2])


def test_the_gradient_penalty_sees_each_image_once_and_crafts_nothing():
    made = make(quick(loss="gradient-penalty", weight=3.0))
    norm = next(m for m in made.student.modules() if isinstance(m, torch.nn.BatchNorm2d))
    counted = int(norm.num_batches_tracked)
    made._craft = None  # would fail
    rows = torch.arange(10)
    found, gradients = made.gradients(rows, generator("a"))
    assert int(norm.num_batches_tracked) == counted + 1
    assert not made.images.requires_grad
    reference = tiny.classifier().train()
    x = made.images[rows].requires_grad_()
    loss = torch.nn.functional.cross_entropy(reference(x), made.labels[rows])
    (slope,) = torch.autograd.grad(loss, x, create_graph=True)  # of the mean: 1/N of each image's
    expected = loss + 3 * 10 * slope.square().sum()
    assert float(found) == pytest.approx(expected.item(), rel=1e-4)
    for a, b in zip(gradients, torch.autograd.grad(expected, list(reference.parameters())), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


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


def test_a_share_of_the_data_is_what_a_smaller_synthesis_made():
    half, small = make(quick(data_share=0.5), n=60), make(QUICK, n=30)
    for one, other in ((half.images, small.images), (half.labels, small.labels), (half.held[0], small.held[0])):
        assert torch.equal(one, other)
    assert len(make(quick(data_share=0.5001, holdout=0)).images) == 30
    with pytest.raises(InputError, match="holdout 10 leaves 2 of 12 images"):
        make(quick(data_share=0.2))


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


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"lr": 1e20, "aggregate": 1}, "the loss is "),
        ({"lr": 3e38, "aggregate": 5, "weight_decay": 1e3}, "a weight is not finite"),
    ],
)
@pytest.mark.parametrize("average", [0.0, 0.9])
def test_what_is_not_finite_ends_the_run_at_the_last_whole_epoch(files, tmp_path, capsys, changes, reason, average):
    out, metrics = tmp_path / "s.safetensors", tmp_path / "m.csv"
    run(*files, out, quick(epochs=3, average=average, **changes), metrics=metrics, state=tmp_path / "state")
    card = read_card(out)
    assert card.provenance["diverged"].startswith(reason)
    assert card.provenance["diverged"].endswith("; these are the weights after epoch 0")
    assert card.tensors_sha256 == read_card(files[0]).tensors_sha256 and card.provenance["updates"] == 0
    assert "dfshield diverged: " in capsys.readouterr().err
    assert len(metrics.read_text().splitlines()) == 1


def test_divergence_after_some_epochs_keeps_those(files, tmp_path, monkeypatch):
    run(*files, tmp_path / "two.safetensors", quick(epochs=2, average=0.9, aggregate=1))
    genuine = Trainer.gradients

    def explodes(self, rows, random):
        loss, gradients = genuine(self, rows, random)
        return loss * (math.nan if len(self.history) == 2 and self.updates > before else 1), gradients

    before = read_card(tmp_path / "two.safetensors").provenance["updates"]
    monkeypatch.setattr(Trainer, "gradients", explodes)
    run(*files, tmp_path / "three.safetensors", quick(epochs=3, average=0.9, aggregate=1))
    two, three = (read_card(tmp_path / f"{name}.safetensors") for name in ("two", "three"))
    assert two.provenance["diverged"] == "" and three.provenance["diverged"].endswith("weights after epoch 2")
    assert three.tensors_sha256 == two.tensors_sha256
    assert three.provenance["updates"] == two.provenance["updates"]


# --- every loss ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("loss", registry.LOSSES)
def test_every_loss_trains_and_falls(loss, everything):
    """An epoch of a tiny student: finite throughout, and then less of the loss on the x̂' of before."""
    more = {"awp": 0.005, "average": 0.5, "eps_warmup": 1, "lr_warmup": 1, "tau": 0} if everything else {"aggregate": 1}
    threat = "l2:0.25" if loss == "vat" else "linf:4/255"
    made = make(quick(loss=loss, threat=threat, epochs=1, lr=0.005, **more))
    parts = [
        (x, None if made.entry.input_gradient else made._craft(x, labels, generator("a"), targets), targets, labels)
        for x, targets, labels in zip(made.images.split(10), made.targets.split(10), made.labels.split(10), strict=True)
    ]
    made.student.train()

    def value():
        with frozen_buffers(made.student):
            return sum(float(made._outer(*part)[0]) for part in parts)

    before = value()
    row = made.epoch(0)
    assert math.isfinite(row["loss"]) and row["updates"] > 0
    assert all(v.isfinite().all() for v in made.student.state_dict().values())
    made.student.train()
    assert value() < before


# --- the stage -------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    teacher = tiny.teacher(tmp_path / "teacher.safetensors")
    surrogate = tiny.surrogate(tmp_path / "data.h5", teacher_sha256=read_card(teacher).tensors_sha256)
    return teacher, surrogate


EVERYTHING = {
    "translate": True,
    "contrast": 0.3,
    "noise": 0.1,
    "awp": 0.01,
    "awp_warmup": 1,
    "average": 0.8,
    "eps_warmup": 0.8,
    "lr_warmup": 0.5,
}


@pytest.mark.parametrize("changes", [{}, EVERYTHING, EVERYTHING | {"loss": "dart"}], ids=["plain", "all", "all-dart"])
@pytest.mark.parametrize("stop", [1, 2])
def test_a_stopped_run_goes_on_to_the_same_bytes(files, tmp_path, monkeypatch, stop, changes):
    options = quick(epochs=3, schedule="cosine", lr=0.01, **changes)
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
        "from dfshield.options import TrainOptions\n"
        "from dfshield.training import trainer\n"
        "genuine = trainer.Trainer.epoch\n"
        "def epoch(self, *rest):\n"
        "    try: import dfshield.data\n"
        "    except RuntimeError as error: print('refused:', error)\n"
        "    return genuine(self, *rest)\n"
        "trainer.Trainer.epoch = epoch\n"
        "options = TrainOptions.of(epochs=1, batch=10, aggregate=1, attack_steps=1, holdout=0)\n"
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
        ("epochs", 100, 200),
        ("batch", 200, 200),
    ],
)
def test_profiles(option, paper, repo):
    assert getattr(TrainOptions.of(**PROFILES["paper"].get("training", {})), option) == paper
    assert getattr(TrainOptions.of(**PROFILES["repo"]["training"]), option) == repo


def test_the_papers_numbers():
    options = TrainOptions.of()
    assert (options.lr, options.momentum, options.epochs, options.batch) == (1e-4, 0.9, 100, 200)
    assert (options.aggregate, options.tau, options.lambda1, options.lambda2) == (20, 0.5, 1, 1)
    assert (options.attack_steps, options.schedule, options.beta) == (10, "constant", 6)
