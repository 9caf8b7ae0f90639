"""The trainer's mini-batches: crafting, BatchNorm, gradients and updates."""

import copy
import itertools

import pytest
import torch
from support import tiny
from support.training import QUICK, make, quick, refine_plainly

from dfshield.core.rng import generator
from dfshield.core.threat import Threat
from dfshield.training import losses
from dfshield.training.inner import OBJECTIVES, FoscAscent, InnerAttack, pgd_ascent
from dfshield.training.losses import Outputs

FULL = (OBJECTIVES["kl"], "normal", Threat("linf", 8 / 255), 2, 2 / 255)


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
    out = Outputs(reference(made.images[rows]), reference(adversarial), made.targets[rows], made.labels[rows])
    expected = losses.dfshield(out, QUICK)
    slopes = torch.autograd.grad(expected, list(reference.parameters()))
    found, gradients = made.gradients(rows, generator("a"))
    assert float(found) == pytest.approx(expected.item(), rel=1e-4)
    for a, b in zip(gradients, slopes, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"noise": 0.1, "translate": True}, {"batchnorm": "eval"}])
def test_features_of_student_and_teacher_are_of_the_images_in_use(changes):
    """Against a student and a teacher that are watched by hand."""
    options = quick(features=0.5, **changes)
    made = make(options)
    rows = torch.arange(10)
    seen = {}
    genuine = made._outer

    def outer(x, adversarial, targets, labels, features):
        seen.update(x=x, adversarial=adversarial, targets=targets)
        return genuine(x, adversarial, targets, labels, features)

    made._outer = outer
    found, gradients = made.gradients(rows, generator("a"))
    x, adversarial = seen["x"], seen["adversarial"]
    assert torch.equal(x, made.images[rows]) == (not made.options.varies)
    reference, teacher = tiny.classifier(), tiny.classifier()
    torch.testing.assert_close(seen["targets"], teacher(x))
    reference.train(options.batchnorm == "train")
    stages = (9, 11)  # what shrinks the map, and the Linear layer

    def features(network, images):
        inside = (images - network.mean) / network.std
        maps = []
        for number, layer in enumerate(network.net):
            maps += [inside.flatten(1)] if number in stages else []
            inside = layer(inside)
        return inside, maps

    (clean, own), (robust, moved) = features(reference, x), features(reference, adversarial)
    with torch.no_grad():
        targets, taught = features(teacher, x)
    out = Outputs(clean, robust, targets, made.labels[rows], features=losses.Features(own, moved, taught))
    expected = losses.dfshield(out, options)
    assert float(found) == pytest.approx(expected.item(), rel=1e-4)
    slopes = torch.autograd.grad(expected, list(reference.parameters()))
    for a, b in zip(gradients, slopes, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_features_of_no_weight_change_nothing():
    plain, other = make(), make(quick(features=0))
    assert other.watched is None
    assert plain.options.described() == other.options.described()
    assert "features" not in plain.options.described()  # students of before the option stay as they are
    assert plain.epoch(0) == other.epoch(0)


@pytest.mark.parametrize("changes", [{"awp": 0.01}, {"average": 0.5, "tau": 0}, {"outer_precision": "bf16"}])
def test_training_with_features_brings_them_closer_to_the_teachers(changes):
    made = make(quick(features=5.0, epochs=4, lr=0.01, aggregate=1, **changes))
    first = made.epoch(0)["loss"]
    losses_after = [made.epoch(epoch)["loss"] for epoch in range(1, 4)]
    assert losses_after[-1] < first


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


def test_the_problem_of_an_epoch_is_the_one_that_is_solved():
    made = make(quick(epochs=4, eps_warmup=1, loss="dart", holdout=20))
    solved, genuine = [], InnerAttack.solve
    furthest = []

    def solve(self, task):
        found = genuine(self, task)
        solved.append(self)
        furthest.append(float((found - task.x).abs().max()))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InnerAttack, "solve", solve)
        for epoch in range(4):
            made.epoch(epoch)
    training = [p for p in solved if isinstance(p, FoscAscent)]
    assert [p.threat.eps * 255 for p in training] == pytest.approx([2] * 4 + [4] * 4 + [6] * 4 + [8] * 4)
    assert [p.stop for p in training[::4]] == pytest.approx([0.5, 0.35, 0.2, 0.05])
    held = [(type(p), p.threat.eps) for p in solved if p not in training]
    assert held == [(InnerAttack, 8 / 255)] * 4  # the same attack after every epoch
    assert all(far <= p.threat.eps + 1e-6 for far, p in zip(furthest, solved, strict=True))
    assert max(far - p.threat.eps for far, p in zip(furthest, training, strict=False)) > -1e-3


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


@pytest.mark.parametrize("changes", [{}, {"awp": 0.01, "awp_warmup": 0}, {"loss": "gradient-penalty"}])
def test_parameters_that_no_gradient_reaches_stay_and_the_others_train_as_without(changes):
    """A layer that is not used is no layer: weight decay and momentum leave it as it is, too."""
    options = quick(weight_decay=0.1, momentum=0.9, lr=0.1, **changes)
    made, plain = make(options, teacher=tiny.with_spare()), make(options)
    before = made.student.net.spare.weight.detach().clone()
    for trainer in (made, plain):
        trainer.fit()
    assert torch.equal(made.student.net.spare.weight, before)
    expected, found = plain.student.state_dict(), made.student.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert not torch.equal(expected["net.0.weight"], tiny.classifier().net[0].weight)
