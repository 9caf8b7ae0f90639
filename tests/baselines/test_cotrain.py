"""Co-training: losses by hand, the estimated gradient, that generator and student learn, resuming, divergence."""

import copy
import csv
import math
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from dfshield.cotraining import losses, methods
from support import tiny

from dfshield import registry
from dfshield.baselines import cotrain as trainer
from dfshield.baselines.cotrain import Cotrainer, run
from dfshield.core.errors import InputError
from dfshield.core.rng import generator
from dfshield.models.checkpoints import Card, load_checkpoint, read_card
from dfshield.models.classifier import Classifier
from dfshield.models.factory import build_network
from dfshield.options import CotrainOptions
from dfshield.options.flags import as_flags
from dfshield.training.inner import OBJECTIVES
from dfshield.training.losses import kl

METHODS = tuple(registry.BASELINES)
QUICK = {
    "threat": "linf:0.1",
    "epochs": 3,
    "iterations": 2,
    "batch": 20,
    "generator_width": 0.05,
    "generator_epochs": 0,
    "attack_steps": 2,
    "device": "cpu",
}


def quick(method: str, **changes: object) -> CotrainOptions:
    return CotrainOptions.of(method=method, **(QUICK | changes))


# --- losses ----------------------------------------------------------------------------------------------------------

STUDENT = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)]])  # probability of class 1: 0.75
ADVERSARIAL = torch.tensor([[math.log(4), 0.0]] * 2)  # 0.2
TEACHER = torch.tensor([[0.0, math.log(9)], [math.log(9), 0.0]])  # 0.9 and 0.1: classes 1 and 0


PLAIN = {"−": "-", "·": "*", "τ²": "t**2", "τ": "t", "ℓ": "recovered", "β": "beta", "α": "alpha", "x'": "adversarial"}
PLAIN |= {"w₁": "w[0]", "w₂": "w[1]", "w₃": "w[2]"}


def meaning(formula: str, names: dict) -> float:
    """The value of a formula of table 2."""
    for printed, plain in PLAIN.items():
        formula = formula.replace(printed, plain)
    formula = re.sub(r"‖(.*)‖₁/C", r"abs(\1).mean()", formula)
    functions = {"CE": F.cross_entropy, "MSE": F.mse_loss, "KL": kl, "exp": torch.exp, "abs": torch.abs}
    functions |= {"softmax": lambda z: z.softmax(1), "argmax": lambda z: z.argmax(1)}
    return float(eval(formula, functions | {"recovered": losses.recovered_logits} | names))


@pytest.mark.parametrize("method", METHODS)
def test_the_printed_formulas_are_what_is_minimised(method):
    teacher, student = tiny.classifier(scale=3.0), tiny.classifier(seed=1, scale=3.0)
    options = quick(method, gradient="exact")
    made = registry.BASELINES[method].load()(teacher, student, tiny.SHAPE, tiny.CLASSES, options)
    random = torch.Generator().manual_seed(5)
    if method == "dfard":
        made.state["weights"] = [0.5, 2.0, 3.0]
    names = {"S": student, "T": teacher, "y": torch.arange(20) % 10, "beta": options.beta}
    names |= {"alpha": made.state.get("alpha"), "t": made.state.get("temperature")}
    names |= {"w": made.state.get("weights", options.feature_weight)}
    names |= {"BN": lambda x: methods.answer_and_distance(teacher, x)[1]}
    with torch.no_grad():
        raw = made.generator(*made.draw(20, random))
        names["x"] = made.generator.to_image(raw)
        names["adversarial"] = (names["x"] + 0.1 * torch.rand(names["x"].shape, generator=random)).clamp(0, 1)
        entry = registry.BASELINES[method]
        expected = meaning(entry.generator_loss, names), meaning(entry.student_loss, names)
    found = float(made.generator_loss(raw, names["y"], random))
    assert found == pytest.approx(expected[0], rel=1e-4)
    found = float(made.student_loss(names["x"], names["adversarial"], teacher(names["x"]), names["y"]))
    assert found == pytest.approx(expected[1], rel=1e-4)


def test_dast_imitation_by_hand():
    answer = (-math.log(0.75) - math.log(0.25)) / 2
    difference = (0.15**2 + 0.65**2) / 2  # both classes of an image differ alike
    for beta in (0.0, 0.1):
        assert float(losses.dast_imitation(STUDENT, TEACHER, beta)) == pytest.approx(answer + beta * difference)


def test_dast_generator_by_hand():
    imitation = (-math.log(0.75) - math.log(0.25)) / 2 + 0.1 * (0.15**2 + 0.65**2) / 2
    control = -math.log(0.75)
    loss, found = losses.dast_generator(STUDENT, TEACHER, torch.tensor([1, 1]), 0.2, 0.1)
    assert found == pytest.approx(control)
    assert float(loss) == pytest.approx(math.exp(-imitation) + 0.2 * control)


def test_dfme_distance_by_hand():
    recovered = losses.recovered_logits(TEACHER)
    assert recovered[0].tolist() == pytest.approx([-math.log(9) / 2, math.log(9) / 2])
    assert torch.allclose(losses.recovered_logits(TEACHER + 5.0), recovered, atol=1e-6)  # what probabilities tell
    found = losses.dfme_distance(STUDENT, TEACHER).tolist()
    first = (math.log(3) + 0) / 2  # half of ln 9 is ln 3
    assert found == pytest.approx([first, (math.log(3) + 2 * math.log(3)) / 2], abs=1e-6)


def test_dfard_student_by_hand():
    def divergence(p: float, q: float) -> float:
        return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))

    def at(logit: float, t: float) -> float:
        return 1 / (1 + math.exp(-logit / t))

    for t in (1.0, 4.0):
        expected = 0.0
        for teacher in (math.log(9), -math.log(9)):
            expected += divergence(at(teacher, t), at(-math.log(4), t)) + divergence(at(teacher, t), at(math.log(3), t))
        found = losses.dfard_student(STUDENT, ADVERSARIAL, TEACHER, torch.tensor(t))
        assert float(found) == pytest.approx(t * t * expected / 2, rel=1e-5)


def test_balance_brings_terms_to_equal_size_but_never_beyond_tenfold():
    assert losses.balance(torch.tensor([2.0, 0.5, 1e-9])).tolist() == pytest.approx([0.5, 2.0, 10.0])


def test_distance_from_the_batchnorm_statistics_by_hand():
    """Mean over two layers of squared differences of means and of variances, mean over channels."""
    net = torch.nn.Sequential(torch.nn.BatchNorm2d(2), torch.nn.BatchNorm2d(2)).eval()
    net[0].running_mean = torch.tensor([1.0, 0.0])
    net[1].running_var = torch.tensor([4.0, 1.0])
    x = torch.randn((5, 2, 3, 3), generator=torch.Generator().manual_seed(0))
    second = net[0](x)
    expected = 0.0
    for layer, value in ((net[0], x), (net[1], second)):
        for channel in range(2):
            v = value[:, channel].detach()
            expected += float((v.mean() - layer.running_mean[channel]) ** 2) / 2
            expected += float((v.var(unbiased=False) - layer.running_var[channel]) ** 2) / 2
    _, distance = methods.answer_and_distance(Classifier(net, (0.0, 0.0), (1.0, 1.0)), x)
    assert float(distance.detach()) == pytest.approx(expected / 2, rel=1e-5)


# --- the gradient from values ----------------------------------------------------------------------------------------


def test_forward_differences_find_the_gradient_of_a_linear_function():
    slope = torch.randn((1, 2, 2), generator=generator("slope"))
    x = torch.randn((3, 1, 2, 2), generator=generator("x"))

    def objective(x: torch.Tensor) -> torch.Tensor:
        return (x * slope).flatten(1).sum(1)

    value, found = losses.forward_differences(objective, x, 20_000, 1e-2, generator("u"))
    exact = (slope / 3).expand(3, 1, 2, 2)  # of the mean over three images
    assert float(value) == pytest.approx(float(objective(x).mean()))
    assert torch.allclose(found, exact, atol=0.05 * float(exact.abs().max()))
    # with one direction it is the slope along that direction, times the dimension
    _, one = losses.forward_differences(objective, x, 1, 1e-2, generator("u"))
    u = torch.randn(x.shape, generator=generator("u"))
    u = u / u.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    assert torch.allclose(one, 4 * (u * slope).sum((1, 2, 3), keepdim=True) * u / 3, atol=1e-3)


def test_a_given_gradient_is_what_autograd_finds():
    x, gradient = torch.ones(3, requires_grad=True), torch.tensor([1.0, -2.0, 5.0])
    scalar = losses.with_gradient(torch.tensor(7.0), x, gradient)
    assert float(scalar.detach()) == 7.0
    assert torch.equal(torch.autograd.grad(scalar, x)[0], gradient)


def test_dfme_gradients_agree_where_many_directions_are_taken():
    found = {}
    for kind, directions in (("exact", 1), ("forward-differences", 800)):
        made = cotrainer("dfme", gradient=kind, directions=directions, batch=2)
        shift_head(made)
        z, labels = made.method.draw(2, generator("z"))
        raw = made.method.generator.raw(z, labels).detach().requires_grad_()
        loss = made.method.generator_loss(raw, labels, generator("u"))
        found[kind] = torch.autograd.grad(loss, raw)[0].flatten(1), float(loss.detach())
    (exact, value), (estimate, same) = found.values()
    assert value == pytest.approx(same, rel=1e-5) and value < 0
    assert float(F.cosine_similarity(exact, estimate).min()) > 0.9
    assert float(exact.norm() / estimate.norm()) == pytest.approx(1, abs=0.15)


# --- a toy that can be learned ---------------------------------------------------------------------------------------

SHAPE = (1, 8, 8)


def toy(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images with a bright bar at the left, in the middle or at the right."""
    images = 0.2 * torch.rand((n, *SHAPE), generator=generator("toy", seed))
    labels = torch.arange(n) % 3
    for image, label in zip(images, labels.tolist(), strict=True):
        image[0, :, 3 * label : 3 * label + 2] += 0.7
    return images, labels


@pytest.fixture(scope="module")
def bars() -> tuple[Classifier, Card]:
    """A teacher of the toy."""
    model = Classifier(build_network("cnn-s", SHAPE, 3), (0.3,), (0.3,)).train()
    images, labels = toy(96, 0)
    adam = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(40):
        adam.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        adam.step()
    assert accuracy(model) == 1
    return model, Card("teacher", "digits", "cnn-s", SHAPE, 3, (0.3,), (0.3,), "teacher")


def accuracy(model: Classifier) -> float:
    """Share of new toy images that are classified correctly."""
    images, labels = toy(90, 1)
    with torch.no_grad():
        return float((model.eval()(images).argmax(1) == labels).float().mean())


def shift_head(made: Cotrainer) -> None:
    """Make the student wrong everywhere: its last layer answers with the next class."""
    state = made.teacher.net[-1].state_dict()
    made.student.net[-1].load_state_dict({name: value.roll(1, 0) for name, value in state.items()})


LEARNING = {
    "dast": {"student_lr": 1e-2, "generator_lr": 2e-3, "branch_lr": 2e-3, "alpha": 1.0, "batchnorm": "eval"},
    "dfme": {"student_lr": 0.05, "generator_lr": 1e-3, "student_steps": 2, "milestones": ()},
    "ait": {"student_lr": 0.02, "generator_lr": 5e-3, "batchnorm": "train", "milestones": ()},
    "dfard": {"student_lr": 0.02, "generator_lr": 5e-4},
}


def learn(bars: tuple[Classifier, Card], method: str, broken: str | None) -> tuple[bool, bool]:
    """Whether the generator, and then a student that starts wrong everywhere, learn; `broken` makes no steps."""
    options = CotrainOptions.of(
        method=method, threat="linf:0.02", epochs=4, iterations=20, batch=30, generator_width=0.125, attack_steps=2,
        generator_epochs=1, device="cpu", **LEARNING[method],
    )  # fmt: skip
    made = Cotrainer(copy.deepcopy(bars[0]), bars[1], options)
    if broken:
        made.optimisers[broken].step = lambda: None  # type: ignore[method-assign]

    begun = copy.deepcopy(made.method.state)  # so that both are judged by the same weights

    def loss_of_generator() -> float:
        kept, made.method.state = made.method.state, copy.deepcopy(begun)
        z, labels = made.method.draw(30, generator("judge"))
        loss = made.method.generator_loss(made.method.generator.raw(z, labels), labels, generator("judge"))
        made.method.state = kept
        return float(loss.detach())

    before = loss_of_generator()
    made.epoch(0)
    generator_learned = loss_of_generator() < before - 0.03 * abs(before)
    if broken == "generator":
        return generator_learned, False
    shift_head(made)
    assert accuracy(made.student) == 0
    for epoch in range(1, options.epochs):
        row = made.epoch(epoch)
    learned = row["clean_agreement"] >= 60
    if method in ("dfme", "ait"):  # whose images are varied enough to learn the toy itself from
        learned = learned and accuracy(made.student) > 0.9
    return generator_learned, learned


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("broken", [None, "student", "generator"])
def test_both_learn_and_neither_does_without_its_steps(bars, method, broken):
    assert learn(bars, method, broken) == (broken != "generator", broken is None)


# --- what the loop does ----------------------------------------------------------------------------------------------


def cotrainer(method: str, **changes: object) -> Cotrainer:
    card = Card("teacher", "digits", "cnn-s", SHAPE, 10, (0.3,), (0.38,), "teacher")
    return Cotrainer(tiny.classifier(scale=3.0), card, quick(method, **changes))


@pytest.mark.parametrize("method", METHODS)
def test_only_the_student_sees_perturbed_images(monkeypatch, method):
    made, seen = cotrainer(method), []
    plain = type(made.method).student_loss

    def spy(self, images, adversarial, teacher, labels):
        seen.append((images, adversarial, teacher))
        return plain(self, images, adversarial, teacher, labels)

    monkeypatch.setattr(type(made.method), "student_loss", spy)
    made.epoch(0)
    assert len(seen) == 2 * made.options.student_steps
    for images, adversarial, teacher in seen:
        assert images.min() >= 0 and images.max() <= 1 and not images.requires_grad
        assert 0.05 < float((adversarial - images).abs().max()) <= 0.1 + 1e-6
        assert torch.allclose(teacher, made.teacher(images), atol=1e-5)
    assert torch.equal(seen[0][0], seen[1][0]) is False


@pytest.mark.parametrize("method", METHODS)
def test_the_teacher_stays_as_it_is_and_the_student_starts_from_it(method):
    made = cotrainer(method)
    before = {name: value.clone() for name, value in made.teacher.state_dict().items()}
    assert all(torch.equal(value, before[name]) for name, value in made.student.state_dict().items())
    made.epoch(0)
    assert all(torch.equal(value, before[name]) for name, value in made.teacher.state_dict().items())
    assert any(not torch.equal(value, before[name]) for name, value in made.student.state_dict().items())
    assert not any(parameter.requires_grad for parameter in made.teacher.parameters())


def test_a_random_start_depends_on_the_seed_alone():
    first, same, other = (cotrainer("dfme", student_start="random", seed=seed).student for seed in (1, 1, 2))
    assert torch.equal(first.net[0].weight, same.net[0].weight)
    assert not torch.equal(first.net[0].weight, other.net[0].weight)
    assert not torch.equal(first.net[0].weight, tiny.classifier().net[0].weight)


@pytest.mark.parametrize(("mode", "moves"), [("train", True), ("eval", False)])
def test_batchnorm_modes(mode, moves):
    made = cotrainer("ait", batchnorm=mode)
    before = made.student.net[1].running_mean.clone()
    made.epoch(0)
    assert torch.equal(before, made.student.net[1].running_mean) != moves


def test_generator_epochs_leave_the_student_alone():
    made = cotrainer("ait", generator_epochs=2)
    row = made.epoch(1)
    pairs = zip(made.student.state_dict().values(), made.teacher.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert math.isnan(row["student_loss"]) and row["updates"] == 0 and row["clean_agreement"] == 100
    assert trainer.describe(row).startswith("epoch 2: the student waits, loss of generator ")
    assert made.epoch(2)["updates"] == 2


def test_learning_rates_over_the_epochs():
    def rates(made: Cotrainer, epoch: int) -> list[float]:
        made._set_rates(epoch)
        return [group["lr"] for name in ("generator", "student") for group in made.optimisers[name].param_groups]

    steps = cotrainer("dast", epochs=10, milestones=(0.2, 0.5), decay=0.5)
    assert rates(steps, 1) == pytest.approx([2e-4, 1e-4, 1e-4])
    assert rates(steps, 2) == pytest.approx([1e-4, 5e-5, 5e-5])
    assert rates(steps, 9) == pytest.approx([5e-5, 2.5e-5, 2.5e-5])
    cosine = cotrainer("dfard", epochs=10)
    assert rates(cosine, 0) == pytest.approx([1e-3, 1e-4])
    assert rates(cosine, 5) == pytest.approx([1e-3, 5e-5])


def test_optimisers_are_the_publications():
    dast, dfme = cotrainer("dast"), cotrainer("dfme")
    assert [len(made.optimisers["generator"].param_groups) for made in (dast, dfme)] == [2, 1]
    assert (
        dast.optimisers["student"].defaults["betas"] == dast.optimisers["generator"].defaults["betas"] == (0.5, 0.999)
    )
    sgd = dfme.optimisers["student"].defaults
    assert (sgd["lr"], sgd["momentum"], sgd["weight_decay"], sgd["nesterov"]) == (0.1, 0.9, 5e-4, False)
    assert dfme.optimisers["generator"].defaults["betas"] == (0.9, 0.999)
    assert cotrainer("ait").optimisers["student"].defaults["nesterov"]


def test_dast_labels_control_and_alpha(monkeypatch):
    made = cotrainer("dast")
    z, labels = made.method.draw(20, generator("z"))
    assert labels.tolist() == 2 * list(range(10)) and z.min() >= 0 and z.max() <= 1
    asked = []
    monkeypatch.setattr(
        losses, "dast_generator", lambda s, t, wanted, a, b: (asked.append((wanted, a)) or s.sum(), 0.15)
    )
    raw = made.method.generator.raw(z, labels)
    for _ in range(2):
        made.method.generator_loss(raw, labels, generator("u"))
    assert torch.equal(asked[0][0], labels)
    assert [alpha for _, alpha in asked] == [0.2, 0.15]  # lowered to the term once that is no larger
    other = cotrainer("dast", label_control="teacher")
    other.method.generator_loss(raw, labels, generator("u"))
    assert torch.equal(asked[-1][0], other.teacher(other.method.generator.to_image(raw)).argmax(1))
    monkeypatch.setattr(losses, "dast_generator", lambda s, t, wanted, a, b: (s.sum(), 0.3))
    other.method.generator_loss(raw, labels, generator("u"))
    assert other.method.state["alpha"] == 0.15


@pytest.mark.parametrize("batch", [25, 10])
def test_dast_needs_an_equal_share_for_every_branch(batch):
    with pytest.raises(InputError, match="use a multiple of 10 from 20 on"):
        cotrainer("dast", batch=batch)


def test_dfard_temperature_climbs_the_loss_within_its_bounds():
    made = cotrainer("dfard", temperature=4.0, temperature_lr=1e-3)
    images = torch.rand((20, *SHAPE), generator=generator("x"))
    given = (images, 1 - images, made.teacher(images), torch.zeros(20, dtype=torch.long))

    def loss(t: float) -> float:
        made.method.state["temperature"] = t
        return float(made.method.student_loss(*given).detach())

    rises = loss(4.05) > loss(3.95)
    loss(4.0)
    assert (made.method.state["temperature"] > 4.0) == rises and made.method.state["temperature"] != 4.0
    for rate in (1e9, -1e9):
        made.method.options = made.options.model_copy(update={"temperature_lr": rate})
        loss(4.0)
        assert made.method.state["temperature"] == (20.0 if (rate > 0) == rises else 1.0)


def test_dfard_weights_follow_the_epoch_before():
    made = cotrainer("dfard")
    made.method.state |= {"sums": [4.0, 1.0, 0.0], "steps": 2}
    made.method.end_epoch()
    assert made.method.state == {"temperature": 4.0, "weights": [0.5, 2.0, 10.0], "sums": [0.0] * 3, "steps": 0}


def test_bn_terms_leave_the_teacher_unwatched():
    made = cotrainer("ait")
    images = torch.rand((20, *SHAPE), generator=generator("x"))
    logits, _ = methods.answer_and_distance(made.teacher, images)
    assert torch.allclose(logits, made.teacher(images), atol=1e-5)
    assert not any("forward" in vars(module) for module in made.teacher.modules())


# --- options ---------------------------------------------------------------------------------------------------------


def test_what_is_not_given_is_the_methods_own():
    assert set(CotrainOptions.by_method) <= set(METHODS)
    for method, own in CotrainOptions.by_method.items():
        made = CotrainOptions.of(method=method)
        assert {name: getattr(made, name) for name in own} == own
    assert CotrainOptions.of(method="dfme", epochs=7).epochs == 7


@pytest.mark.parametrize(
    ("method", "published"),
    {
        "dast": {
            **{
                "epochs": 2000,
                "iterations": 500,
                "batch": 500,
                "student_steps": 1,
                "generator_epochs": 0,
                "latent": 128,
            },
            **{"generator_lr": 2e-4, "branch_lr": 1e-4, "adam_beta1": 0.5, "student_optimiser": "adam"},
            **{"student_lr": 1e-4, "weight_decay": 0, "milestones": (), "alpha": 0.2, "beta": 0.1},
            **{"label_control": "branch", "batchnorm": "train"},
        },
        "dfme": {
            **{"iterations": 50, "batch": 256, "student_steps": 5, "generator_epochs": 0, "latent": 256},
            **{"generator_lr": 1e-4, "adam_beta1": 0.9, "student_optimiser": "sgd", "student_lr": 0.1, "momentum": 0.9},
            **{"nesterov": False, "weight_decay": 5e-4, "milestones": (0.1, 0.3, 0.5), "decay": 0.3},
            **{"schedule": "steps", "gradient": "forward-differences", "directions": 1, "difference": 1e-3},
        },
        "ait": {
            **{
                "epochs": 400,
                "iterations": 200,
                "batch": 200,
                "student_steps": 1,
                "generator_epochs": 4,
                "latent": 100,
            },
            **{
                "generator_lr": 1e-3,
                "adam_beta1": 0.5,
                "student_optimiser": "sgd",
                "student_lr": 1e-4,
                "momentum": 0.9,
            },
            **{"nesterov": True, "weight_decay": 0, "milestones": (0.25, 0.5, 0.75), "decay": 0.1, "schedule": "steps"},
            **{"feature_weight": 0.1, "beta": 6, "batchnorm": "eval"},
        },
        "dfard": {
            **{"epochs": 200, "batch": 256, "latent": 100, "generator_lr": 1e-3, "adam_beta1": 0.5},
            **{"student_optimiser": "sgd", "student_lr": 1e-4, "schedule": "cosine"},
        },
    }.items(),
)
def test_the_publications_numbers(method, published):
    made = CotrainOptions.of(method=method)
    assert {name: getattr(made, name) for name in published} == published
    assert (made.student_start, made.attack_steps, made.generator_width) == ("teacher", 10, 1)


def test_dfme_has_its_query_budget():
    made = CotrainOptions.of(method="dfme")
    asked = made.batch * (made.directions + 1 + made.student_steps)  # an iteration's
    assert abs(made.epochs * made.iterations * asked - 20e6) < made.iterations * asked


@pytest.mark.parametrize(("method", "inner"), [("dast", "ce"), ("dfme", "ce"), ("ait", "kl"), ("dfard", "ce")])
def test_the_inner_maximisation_is_the_methods_against_the_teachers_answer(monkeypatch, method, inner):
    made, seen = cotrainer(method), []

    def spy(model, x, labels, objective, start, threat, steps, *rest):
        seen.append((objective, labels, made.teacher(x).argmax(1), model is made.crafting, steps))
        return x

    monkeypatch.setattr(trainer, "maximise", spy)
    images = torch.rand((20, *SHAPE), generator=generator("x"))
    made._student_loss(images, torch.full((20,), 3), generator("r"))
    ((objective, labels, answers, on_student, steps),) = seen
    assert objective is OBJECTIVES[inner] and on_student and steps == made.options.attack_steps
    assert torch.equal(labels, answers) and len(answers.unique()) > 1
    other = cotrainer(method, inner={"ce": "kl", "kl": "ce"}[inner])
    assert other.inner != made.inner == inner


def test_flags_give_a_value_that_is_another_methods_default():
    made = CotrainOptions.of(method="dfme", student_lr=1e-4)  # DaST's
    assert as_flags(made) == ["--method", "dfme", "--student-lr", "0.0001"]
    assert as_flags(CotrainOptions.of(method="dfme")) == ["--method", "dfme"]


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return tiny.teacher(tmp_path_factory.mktemp("teacher") / "t.safetensors", scale=3.0)


@pytest.mark.parametrize("method", METHODS)
def test_a_student_and_its_metrics(teacher, tmp_path, method):
    out, metrics = tmp_path / "s.safetensors", tmp_path / "m.csv"
    run(teacher, out, quick(method), recipe="mine", metrics=metrics, state=tmp_path / "state", code="c0de")
    _, card = load_checkpoint(out)
    assert (card.kind, card.real_data, card.input_shape, card.classes) == ("student", "none", SHAPE, 10)
    made = card.provenance
    assert (made["recipe"], made["source"], made["code"]) == ("mine", "none", "c0de")
    assert made["teacher_sha256"] == read_card(teacher).tensors_sha256
    assert made["diverged"] == "" or made["diverged"].startswith("one class")
    assert made["updates"] == 3 * 2 * quick(method).student_steps
    assert made["options"]["method"] == method and "threads" not in made["options"]
    rows = list(csv.DictReader(metrics.open()))
    assert tuple(rows[0]) == trainer.METRICS and [row["epoch"] for row in rows] == ["1", "2", "3"]
    for row in rows:
        assert 0 <= float(row["robust_agreement"]) <= 100 and 0 <= float(row["clean_agreement"]) <= 100
        assert 1 <= int(row["teacher_classes"]) <= 10 and 1 <= int(row["student_classes"]) <= 10
    assert not list((tmp_path / "state").iterdir())


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(teacher, tmp_path, monkeypatch, method):
    files = {name: (tmp_path / f"{name}.safetensors", tmp_path / f"{name}.csv") for name in ("whole", "stopped")}
    settings = {"recipe": method, "state": tmp_path / "state"}
    run(teacher, files["whole"][0], quick(method), metrics=files["whole"][1], **settings)
    plain = Cotrainer.epoch

    def stops(self, epoch, bar=None):
        if epoch == 2:
            raise KeyboardInterrupt
        return plain(self, epoch, bar)

    with monkeypatch.context() as patch:
        patch.setattr(Cotrainer, "epoch", stops)
        with pytest.raises(KeyboardInterrupt):
            run(teacher, files["stopped"][0], quick(method), metrics=files["stopped"][1], **settings)
    assert not files["stopped"][0].exists()
    begun = []
    monkeypatch.setattr(Cotrainer, "epoch", lambda *given: begun.append(given[1]) or plain(*given))
    run(teacher, files["stopped"][0], quick(method), metrics=files["stopped"][1], **settings)
    assert begun == [2]
    assert files["stopped"][0].read_bytes() == files["whole"][0].read_bytes()
    assert files["stopped"][1].read_text() == files["whole"][1].read_text()


def test_another_seed_gives_another_student(teacher, tmp_path):
    shas = set()
    for seed in (0, 1):
        run(teacher, tmp_path / "s.safetensors", quick("dfme", seed=seed, epochs=1), "dfme")
        shas.add(read_card(tmp_path / "s.safetensors").tensors_sha256)
    assert len(shas) == 2


# --- divergence ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "changes", "reason"),
    [
        ("dfme", {"iterations": 3, "student_lr": 1e30}, "the loss of the"),
        ("ait", {"iterations": 1, "student_lr": 3e38, "beta": 1e4}, "a weight is not finite after epoch 2"),
        ("dfme", {"iterations": 1, "student_lr": 1e38, "student_steps": 1}, "an output is not finite after epoch 2"),
    ],
)
def test_what_is_not_finite_ends_the_run_at_the_last_whole_epoch(teacher, tmp_path, capsys, method, changes, reason):
    out, metrics = tmp_path / "s.safetensors", tmp_path / "m.csv"
    run(teacher, out, quick(method, generator_epochs=1, **changes), method, metrics=metrics)
    card = read_card(out)
    assert card.provenance["diverged"].startswith(reason)
    assert card.provenance["diverged"].endswith("; these are the weights after epoch 1")
    assert f"{method} diverged: " in capsys.readouterr().err
    assert card.tensors_sha256 == read_card(teacher).tensors_sha256
    assert [row["epoch"] for row in csv.DictReader(metrics.open())] == ["1"]


def test_a_student_that_sees_one_class_where_the_teacher_sees_several_has_diverged():
    for constant in (False, True):
        made = cotrainer("ait", student_lr=1e-12, epochs=1)
        if constant:
            with torch.no_grad():
                made.student.net[-1].weight.zero_()
                made.student.net[-1].bias.copy_(F.one_hot(torch.tensor(4), 10).float())
        made.fit(None)
        row = made.history[-1]
        assert row["teacher_classes"] > 1 and (row["student_classes"] == 1) == constant
        assert made.diverged.startswith("one class for all generated images") == constant
