"""The baselines' own parts: losses by hand, the estimated gradient, what each remembers, the published numbers."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from support import tiny
from support.cotraining import METHODS, SHAPE, cotrainer, quick, shift_head

from dfshield import registry
from dfshield.baselines import dast
from dfshield.baselines.dast import dast_generator, dast_imitation
from dfshield.baselines.dfard import balance, dfard_student
from dfshield.baselines.dfme import dfme_distance, forward_differences, recovered_logits, with_gradient
from dfshield.baselines.method import answer_and_distance
from dfshield.core.errors import InputError
from dfshield.core.rng import generator
from dfshield.models.classifier import Classifier
from dfshield.options import CotrainOptions
from dfshield.training.losses import kl

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
    return float(eval(formula, functions | {"recovered": recovered_logits} | names))


@pytest.mark.parametrize("method", METHODS)
def test_the_printed_formulas_are_what_is_minimised(method):
    teacher, student = tiny.classifier(scale=3.0), tiny.classifier(seed=1, scale=3.0)
    options = quick(method, **({"gradient": "exact"} if method == "dfme" else {}))
    made = registry.BASELINES[method].load()(teacher, student, tiny.SHAPE, tiny.CLASSES, options)
    random = torch.Generator().manual_seed(5)
    if method == "dfard":
        made.state["weights"] = [0.5, 2.0, 3.0]
    names = {"S": student, "T": teacher, "y": torch.arange(20) % 10, "beta": getattr(options, "beta", None)}
    names |= {"alpha": made.state.get("alpha"), "t": made.state.get("temperature")}
    names |= {"w": made.state.get("weights", getattr(options, "feature_weight", None))}
    names |= {"BN": lambda x: answer_and_distance(teacher, x)[1]}
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
        assert float(dast_imitation(STUDENT, TEACHER, beta)) == pytest.approx(answer + beta * difference)


def test_dast_generator_by_hand():
    imitation = (-math.log(0.75) - math.log(0.25)) / 2 + 0.1 * (0.15**2 + 0.65**2) / 2
    control = -math.log(0.75)
    loss, found = dast_generator(STUDENT, TEACHER, torch.tensor([1, 1]), 0.2, 0.1)
    assert found == pytest.approx(control)
    assert float(loss) == pytest.approx(math.exp(-imitation) + 0.2 * control)


def test_dfme_distance_by_hand():
    recovered = recovered_logits(TEACHER)
    assert recovered[0].tolist() == pytest.approx([-math.log(9) / 2, math.log(9) / 2])
    assert torch.allclose(recovered_logits(TEACHER + 5.0), recovered, atol=1e-6)  # what probabilities tell
    found = dfme_distance(STUDENT, TEACHER).tolist()
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
        found = dfard_student(STUDENT, ADVERSARIAL, TEACHER, torch.tensor(t))
        assert float(found) == pytest.approx(t * t * expected / 2, rel=1e-5)


def test_balance_brings_terms_to_equal_size_but_never_beyond_tenfold():
    assert balance(torch.tensor([2.0, 0.5, 1e-9])).tolist() == pytest.approx([0.5, 2.0, 10.0])


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
    _, distance = answer_and_distance(Classifier(net, (0.0, 0.0), (1.0, 1.0)), x)
    assert float(distance.detach()) == pytest.approx(expected / 2, rel=1e-5)


# --- the gradient from values ----------------------------------------------------------------------------------------


def test_forward_differences_find_the_gradient_of_a_linear_function():
    slope = torch.randn((1, 2, 2), generator=generator("slope"))
    x = torch.randn((3, 1, 2, 2), generator=generator("x"))

    def objective(x: torch.Tensor) -> torch.Tensor:
        return (x * slope).flatten(1).sum(1)

    value, found = forward_differences(objective, x, 20_000, 1e-2, generator("u"))
    exact = (slope / 3).expand(3, 1, 2, 2)  # of the mean over three images
    assert float(value) == pytest.approx(float(objective(x).mean()))
    assert torch.allclose(found, exact, atol=0.05 * float(exact.abs().max()))
    # with one direction it is the slope along that direction, times the dimension
    _, one = forward_differences(objective, x, 1, 1e-2, generator("u"))
    u = torch.randn(x.shape, generator=generator("u"))
    u = u / u.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    assert torch.allclose(one, 4 * (u * slope).sum((1, 2, 3), keepdim=True) * u / 3, atol=1e-3)


def test_a_given_gradient_is_what_autograd_finds():
    x, gradient = torch.ones(3, requires_grad=True), torch.tensor([1.0, -2.0, 5.0])
    scalar = with_gradient(torch.tensor(7.0), x, gradient)
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


# --- what each remembers ---------------------------------------------------------------------------------------------


def test_dast_labels_control_and_alpha(monkeypatch):
    made = cotrainer("dast")
    z, labels = made.method.draw(20, generator("z"))
    assert labels.tolist() == 2 * list(range(10)) and z.min() >= 0 and z.max() <= 1
    asked = []
    monkeypatch.setattr(dast, "dast_generator", lambda s, t, wanted, a, b: (asked.append((wanted, a)) or s.sum(), 0.15))
    raw = made.method.generator.raw(z, labels)
    for _ in range(2):
        made.method.generator_loss(raw, labels, generator("u"))
    assert torch.equal(asked[0][0], labels)
    assert [alpha for _, alpha in asked] == [0.2, 0.15]  # lowered to the term once that is no larger
    other = cotrainer("dast", label_control="teacher")
    other.method.generator_loss(raw, labels, generator("u"))
    assert torch.equal(asked[-1][0], other.teacher(other.method.generator.to_image(raw)).argmax(1))
    monkeypatch.setattr(dast, "dast_generator", lambda s, t, wanted, a, b: (s.sum(), 0.3))
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
    logits, _ = answer_and_distance(made.teacher, images)
    assert torch.allclose(logits, made.teacher(images), atol=1e-5)
    assert not any("forward" in vars(module) for module in made.teacher.modules())


# --- options ---------------------------------------------------------------------------------------------------------


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
