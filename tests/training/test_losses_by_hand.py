"""Training losses against numbers worked out with plain mathematics, and what each is paired with."""

import math

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from support import tiny

from dfshield import registry
from dfshield.options import TrainOptions
from dfshield.options.training import GradientPenalty, Mart, Mma, Mmc, Vat
from dfshield.training import losses
from dfshield.training.losses import Outputs

# Two images, three classes. The first is classified as its label and its x̂' is not; the second never is.
P = {
    "clean": [[0.7, 0.2, 0.1], [0.2, 0.5, 0.3]],
    "adversarial": [[0.3, 0.6, 0.1], [0.25, 0.35, 0.4]],
    "teacher": [[0.6, 0.3, 0.1], [0.1, 0.8, 0.1]],
}
SHIFT = {"clean": 0.5, "adversarial": -1.0, "teacher": 3.0}  # logits are the logarithms of P and a constant
LABELS = [0, 2]
CLEAN, ADVERSARIAL, TEACHER = P.values()


def logits(name: str) -> torch.Tensor:
    return torch.tensor(P[name], dtype=torch.float64).log() + SHIFT[name]


def loss(name: str, **changes) -> float:
    return float(registry.LOSSES[name].load()(outputs(), TrainOptions.of(**of(name, **changes))))


def of(name: str, **changes) -> dict:
    """Values of the options of a loss; VAT's ball is of l2."""
    return {"loss": name, "threat": "l2:0.5"} | changes


def outputs(*names: str) -> Outputs:
    """The logits of P, or those named, in the order clean, adversarial, teacher; and the labels."""
    return Outputs(*map(logits, names or P), torch.tensor(LABELS))


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


def cross_entropy(p: list[list[float]]) -> float:
    return mean(-math.log(row[label]) for row, label in zip(p, LABELS, strict=True))


def divergences(p: list[list[float]], q: list[list[float]]) -> list[float]:
    """KL(p ‖ q) of each image."""
    return [sum(a * math.log(a / b) for a, b in zip(*rows, strict=True)) for rows in zip(p, q, strict=True)]


def kl(p: list[list[float]], q: list[list[float]]) -> float:
    return mean(divergences(p, q))


def ikl(p: list[list[float]], q: list[list[float]], alpha=1.0, beta=1.0) -> float:
    """Improved KL, pair by pair of classes."""
    pairs = [(j, k) for j in range(3) for k in range(3)]
    return mean(
        alpha / 4 * sum(a[j] * a[k] * math.log(a[j] / a[k] * b[k] / b[j]) ** 2 for j, k in pairs)
        - beta * sum(a[j] * math.log(b[j]) for j in range(3))
        for a, b in zip(p, q, strict=True)
    )


def warmed(p: list[list[float]], t: float) -> list[list[float]]:
    """Probabilities at temperature t."""
    powers = [[a ** (1 / t) for a in row] for row in p]
    return [[a / sum(row) for a in row] for row in powers]


def squares(p: list[list[float]], q: list[list[float]]) -> float:
    return mean(sum((a - b) ** 2 for a, b in zip(*rows, strict=True)) for rows in zip(p, q, strict=True))


# --- Kullback-Leibler divergence -------------------------------------------------------------------------------------


def test_kl_has_the_target_first_and_the_student_in_the_logarithm():
    found = float(losses.kl(logits("teacher"), logits("clean")))
    assert found == pytest.approx(kl(TEACHER, CLEAN))
    by_hand = 0.6 * math.log(0.6 / 0.7) + 0.3 * math.log(0.3 / 0.2)  # and 0.1 log 1
    by_hand += 0.1 * math.log(0.1 / 0.2) + 0.8 * math.log(0.8 / 0.5) + 0.1 * math.log(0.1 / 0.3)
    assert found == pytest.approx(by_hand / 2)
    assert abs(found - kl(CLEAN, TEACHER)) > 0.01
    reference = F.kl_div(logits("clean").log_softmax(1), logits("teacher").softmax(1), reduction="batchmean")
    assert found == pytest.approx(float(reference))


@pytest.mark.parametrize(("reduction", "factor"), [("batchmean", 1), ("mean", 1 / 3), ("sum", 2)])
def test_kl_reductions(reduction, factor):
    found = losses.kl(logits("teacher"), logits("clean"), reduction)
    assert float(found) == pytest.approx(factor * kl(TEACHER, CLEAN))


# --- L_DFShield ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lambda1", "lambda2"), [(1, 1), (0, 0), (3, 0), (0, 3)])
def test_dfshield_by_hand(lambda1, lambda2):
    expected = kl(TEACHER, CLEAN) + lambda1 * kl(TEACHER, ADVERSARIAL) + lambda2 * kl(CLEAN, ADVERSARIAL)
    assert loss("dfshield", lambda1=lambda1, lambda2=lambda2) == pytest.approx(expected)


@pytest.mark.parametrize("t", [1.0, 4.0, 20.0])
@pytest.mark.parametrize(("reduction", "divisor"), [("batchmean", 1), ("mean", 3)])
def test_temperature_and_reduction_touch_the_clean_term_alone(t, reduction, divisor):
    expected = t * t * kl(warmed(TEACHER, t), warmed(CLEAN, t)) / divisor
    expected += kl(TEACHER, ADVERSARIAL) + kl(CLEAN, ADVERSARIAL)
    assert loss("dfshield", temperature=t, clean_reduction=reduction) == pytest.approx(expected)


def test_a_high_temperature_matches_centred_logits():
    """At temperature 20 the released code's clean term is about the squared centred logit difference over 2C²."""
    difference = logits("clean") - logits("teacher")
    centred = (difference - difference.mean(1, keepdim=True)).square().sum(1).mean() / (2 * 3**2)
    found = loss("dfshield", temperature=20, clean_reduction="mean", lambda1=0, lambda2=0)
    assert found == pytest.approx(float(centred), rel=0.05)


# --- every other loss ------------------------------------------------------------------------------------------------


def mart(weight: float) -> float:
    boosted = [-math.log(0.3) - math.log(1.0001 - 0.6), -math.log(0.4) - math.log(1.0001 - 0.35)]
    first, second = divergences(CLEAN, ADVERSARIAL)
    return mean(boosted) + weight * (first * (1 - 0.7) + second * (1 - 0.3)) / 2


def shifted(name: str) -> list[list[float]]:
    return [[math.log(a) + SHIFT[name] for a in row] for row in P[name]]


def centres(norm: float) -> list[list[float]]:
    """Three vectors of length `norm` at 120° of one another, one for each image's label."""
    long, short = norm * math.sqrt(2 / 3), -norm * math.sqrt(1 / 6)
    return [[long, short, short], [short, short, long]]


def soft_cross_entropy(p: list[list[float]], q: list[list[float]]) -> float:
    return mean(-sum(a * math.log(b) for a, b in zip(*rows, strict=True)) for rows in zip(p, q, strict=True))


def ard(alpha: float, t: float) -> float:
    distilled = t * t * kl(warmed(TEACHER, t), warmed(ADVERSARIAL, t)) / 3
    return alpha * distilled + (1 - alpha) * cross_entropy(CLEAN)


CASES = [
    ("std", {}, cross_entropy(ADVERSARIAL)),
    ("std-soft", {}, kl(TEACHER, ADVERSARIAL)),
    ("ikl", {}, kl(TEACHER, CLEAN) + ikl(TEACHER, ADVERSARIAL) + ikl(CLEAN, ADVERSARIAL)),
    ("ikl", {"lambda1": 0, "alpha": 3, "beta": 0}, kl(TEACHER, CLEAN) + ikl(CLEAN, ADVERSARIAL, 3, 0)),
    ("ikl", {"lambda1": 2, "lambda2": 0, "alpha": 0}, kl(TEACHER, CLEAN) + 2 * ikl(TEACHER, ADVERSARIAL, 0)),
    ("trades", {"beta": 0.0}, cross_entropy(CLEAN)),
    ("trades", {}, cross_entropy(CLEAN) + 6 * kl(CLEAN, ADVERSARIAL)),
    ("mart", {}, mart(5)),
    ("mart", {"weight": 0.0}, mart(0)),
    ("ard", {}, ard(1, 30)),
    ("ard", {"alpha": 0.25, "temperature": 2.0}, ard(0.25, 2)),
    ("rslad", {}, (5 / 6 * kl(TEACHER, ADVERSARIAL) + 1 / 6 * kl(TEACHER, CLEAN)) / 3),
    ("rslad", {"alpha": "0.5"}, (kl(TEACHER, ADVERSARIAL) + kl(TEACHER, CLEAN)) / 6),
    ("alp", {}, cross_entropy(ADVERSARIAL) + 0.5 * squares(shifted("adversarial"), shifted("clean"))),
    (
        "alp",
        {"pairs": "probabilities", "weight": 2.0},
        cross_entropy(ADVERSARIAL) + 2 * (0.16 + 0.16 + 0.0025 + 0.0225 + 0.01) / 2,
    ),
    ("clp", {}, cross_entropy(CLEAN) + 0.5 * (0.16 + 0.16 + 0.0025 + 0.0225 + 0.01) / 2),
    ("clp", {"weight": 0.0}, cross_entropy(CLEAN)),
    ("mma", {}, (-math.log(0.3) - math.log(0.3)) / 2),  # x̂' of the first image, x̂ of the second
    ("mmc", {}, squares(shifted("adversarial"), centres(10)) / 2),
    ("mmc", {"norm": 3.0}, squares(shifted("adversarial"), centres(3)) / 2),
    ("vat", {}, cross_entropy(CLEAN) + kl(CLEAN, ADVERSARIAL)),
    ("vat", {"weight": 4.0}, cross_entropy(CLEAN) + 4 * kl(CLEAN, ADVERSARIAL)),
    ("fgsm", {}, (cross_entropy(CLEAN) + cross_entropy(ADVERSARIAL)) / 2),
    ("fgsm", {"alpha": 0.1}, 0.1 * cross_entropy(CLEAN) + 0.9 * cross_entropy(ADVERSARIAL)),
    ("curriculum", {}, cross_entropy(ADVERSARIAL)),
    ("dart", {}, cross_entropy(ADVERSARIAL)),
    ("distillation", {}, 20 * soft_cross_entropy(TEACHER, warmed(CLEAN, 20))),
    ("distillation", {"temperature": 3.0}, 3 * soft_cross_entropy(TEACHER, warmed(CLEAN, 3))),
    ("uat", {}, cross_entropy(ADVERSARIAL) + kl(TEACHER, ADVERSARIAL)),
    ("uat", {"weight": 3.0}, cross_entropy(ADVERSARIAL) + 3 * kl(TEACHER, ADVERSARIAL)),
    ("rst", {"beta": 2.0}, cross_entropy(CLEAN) + 2 * kl(CLEAN, ADVERSARIAL)),
]


@pytest.mark.parametrize(("name", "changes", "expected"), CASES, ids=[f"{c[0]}-{c[1]}" for c in CASES])
def test_losses_by_hand(name, changes, expected):
    assert loss(name, **changes) == pytest.approx(expected, rel=1e-6)


def test_every_loss_has_a_value_by_hand():
    assert {name for name, *_ in CASES} | {"dfshield", "gradient-penalty"} == set(registry.LOSSES)


def test_mart_names_the_largest_wrong_class_even_where_the_label_is_larger():
    """The second term takes the maximum over the classes other than the label, also if the label has more."""
    adversarial = torch.tensor([[0.8, 0.15, 0.05]]).log()
    found = losses.mart(Outputs(*[adversarial] * 3, torch.tensor([0])), Mart())
    assert float(found) == pytest.approx(-math.log(0.8) - math.log(1.0001 - 0.15), rel=1e-5)


def test_mart_stays_finite_where_a_wrong_class_is_certain():
    certain = torch.tensor([[0.0, 100.0, 0.0]], requires_grad=True)
    found = losses.mart(Outputs(*[certain] * 3, torch.tensor([0])), Mart())
    (slope,) = torch.autograd.grad(found, certain)
    assert found.item() == pytest.approx(100 - math.log(0.0001), rel=1e-3)
    assert slope.isfinite().all()


def test_mma_follows_the_students_own_clean_prediction():
    out = outputs("adversarial", "clean", "teacher")._replace(labels=torch.tensor([0, 1]))
    found = losses.mma(out, Mma())  # now neither image is classified as label 0 or, for the second, as label 1
    assert float(found) == pytest.approx((-math.log(0.3) - math.log(0.35)) / 2)


@pytest.mark.parametrize("classes", [2, 3, 10, 100])
def test_the_mahalanobis_centres_are_as_far_apart_as_can_be(classes):
    """The loss vanishes at the centres, which all have the norm and the angle arccos(-1/(C-1)) of the paper."""
    labels = torch.arange(classes)
    simplex = torch.eye(classes, dtype=torch.float64) - 1 / classes
    centres = 10 * simplex / simplex.norm(dim=1, keepdim=True)
    assert float(losses.mmc(Outputs(*[centres] * 3, labels), Mmc())) == pytest.approx(0, abs=1e-9)
    products = centres @ centres.T / 100
    others = products[~torch.eye(classes, dtype=torch.bool)]
    torch.testing.assert_close(others, torch.full_like(others, -1 / (classes - 1)))
    z = torch.randn(50, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.cdist(z, centres).argmin(1), z.argmax(1))  # the nearest centre is the largest logit


@pytest.mark.parametrize(
    ("name", "weight"),
    [
        ("dfshield", "lambda2"),
        ("ikl", "lambda2"),
        ("trades", "beta"),
        ("mart", "weight"),
        ("alp", "weight"),
        ("clp", "weight"),
    ],
)
def test_the_smoothness_term_moves_both_sides(name, weight):
    clean, adversarial = logits("clean").requires_grad_(), logits("adversarial").requires_grad_()
    out, found = Outputs(clean, adversarial, logits("teacher"), torch.tensor(LABELS)), []
    for changes in ({}, {weight: 0.0}):
        value = registry.LOSSES[name].load()(out, TrainOptions.of(**of(name, **changes)))
        found.append(torch.autograd.grad(value, (clean, adversarial), allow_unused=True, materialize_grads=True))
    for whole, without in zip(*found, strict=True):
        assert not torch.allclose(whole, without)


def test_virtual_adversarial_training_holds_its_target_fixed():
    clean, adversarial = logits("clean").requires_grad_(), logits("adversarial").requires_grad_()
    out = Outputs(clean, adversarial, logits("teacher"), torch.tensor(LABELS))
    slopes = [
        torch.autograd.grad(losses.vat(out, Vat(threat="l2:0.5", weight=weight)), clean)[0] for weight in (0.0, 5.0)
    ]
    assert torch.equal(*slopes)


# --- the input gradient ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.0, 1.0, 30.0])
def test_gradient_penalty_by_hand(weight):
    """On a linear model z = W x the gradient of the cross entropy is Wᵀ (p - e_y)."""
    matrix = [[1.0, -2.0], [0.5, 3.0]]  # two classes, two pixels
    pixels = [[0.2, 0.1], [0.6, 0.9]]
    labels = [0, 1]
    total = 0.0
    for (a, b), label in zip(pixels, labels, strict=True):
        z = [row[0] * a + row[1] * b for row in matrix]
        p = [math.exp(v) / sum(map(math.exp, z)) for v in z]
        error = [p[k] - (k == label) for k in range(2)]
        slope = [sum(matrix[k][j] * error[k] for k in range(2)) for j in range(2)]
        total += -math.log(p[label]) + weight * (slope[0] ** 2 + slope[1] ** 2)
    images = torch.tensor(pixels).view(2, 1, 1, 2).requires_grad_()
    clean = images.flatten(1) @ torch.tensor(matrix).T
    out = Outputs(clean, clean, clean, torch.tensor(labels), images)
    found = losses.gradient_penalty(out, GradientPenalty(weight=weight))
    assert found.item() == pytest.approx(total / 2, rel=1e-5)


def test_the_gradient_penalty_reaches_the_weights():
    """Double back-propagation against differences of the loss itself."""
    model = tiny.classifier(scale=5.0).double()
    x = torch.from_numpy(tiny.images(6)).permute(0, 3, 1, 2).double()
    labels = torch.arange(6)
    weight = next(model.net.parameters())

    def value(penalty=10.0):
        images = x.clone().requires_grad_()
        clean = model(images)
        return losses.gradient_penalty(Outputs(clean, clean, clean, labels, images), GradientPenalty(weight=penalty))

    (slope,) = torch.autograd.grad(value(), weight)
    (without,) = torch.autograd.grad(value(penalty=0.0), weight)
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    size = 1e-6
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            weight.add_(sign * size * direction)
        ends.append(float(value().detach()))
        with torch.no_grad():
            weight.sub_(sign * size * direction)
    assert float((slope * direction).sum()) == pytest.approx((ends[0] - ends[1]) / (2 * size), rel=1e-3)
    assert float((slope - without).norm()) > 0.1 * float(without.norm())


# --- what the table of methods says ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("dfshield", ("kl", "normal", "pgd")),
        ("ikl", ("kl", "normal", "pgd")),
        ("trades", ("kl", "normal", "pgd")),
        ("std", ("ce", "uniform", "pgd")),
        ("std-soft", ("teacher", "uniform", "pgd")),
        ("mart", ("ce", "normal", "pgd")),
        ("ard", ("ce", "uniform", "pgd")),
        ("rslad", ("teacher", "normal", "pgd")),
        ("alp", ("ce", "uniform", "pgd")),
        ("clp", ("ce", "uniform", "pgd")),
        ("mma", ("ce", "uniform", "nearest")),
        ("mmc", ("loss", "uniform", "pgd")),
        ("vat", ("kl", "normal", "power")),
        ("fgsm", ("ce", "image", "single-step")),
        ("curriculum", ("ce", "uniform", "curriculum")),
        ("dart", ("ce", "uniform", "fosc")),
        ("gradient-penalty", ("ce", "uniform", "pgd")),
        ("distillation", ("ce", "uniform", "pgd")),
        ("uat", ("ce", "uniform", "pgd")),
        ("rst", ("kl", "normal", "pgd")),
    ],
)
def test_each_loss_has_the_inner_problem_of_its_paper(name, facts):
    entry = registry.LOSSES[name]
    assert (entry.inner, entry.start, entry.search) == facts
    assert (entry.labels == "teacher") == (name in ("uat", "rst"))
    assert entry.crafts == (name not in ("gradient-penalty", "distillation"))


OWN = {
    "dfshield": {"lambda1": 1, "lambda2": 1, "temperature": 1, "clean_reduction": "batchmean", "features": 0.0},
    "ikl": {"lambda1": 1, "lambda2": 1, "alpha": 1, "beta": 1},
    "trades": {"beta": 6},
    "rst": {"beta": 6},
    "mart": {"weight": 5},
    "ard": {"alpha": 1, "temperature": 30},
    "rslad": {"alpha": "5/6"},
    "alp": {"weight": 0.5, "pairs": "logits"},
    "clp": {"weight": 0.5},
    "mma": {"halvings": 10},
    "mmc": {"norm": 10},
    "vat": {"weight": 1, "iterations": 1},
    "fgsm": {"alpha": 0.5},
    "dart": {"fosc_max": 0.5, "fosc_share": "5/6"},
    "gradient-penalty": {"weight": 1},
    "distillation": {"temperature": 20},
    "uat": {"weight": 1},
}


@pytest.mark.parametrize("name", registry.LOSSES)
def test_constants_of_the_losses(name):
    given = TrainOptions.of(**of(name)).model_dump()
    assert {key: given[key] for key in given.keys() - TrainOptions.model_fields.keys()} == OWN.get(name, {})


def test_constants_that_all_losses_have():
    given = TrainOptions.of().model_dump()
    expected = {"awp": 0, "awp_warmup": 0, "average": 0, "lr_warmup": 0, "eps_warmup": 0, "eps_factor": 1}
    expected |= {"flip": False, "contrast": 0, "noise": 0, "batchnorm": "train", "sign_filter": True, "search": "auto"}
    assert {key: given[key] for key in expected} == expected


def test_options_of_another_loss_are_refused():
    for values in ({"loss": "trades", "lambda1": 1}, {"loss": "std", "beta": 1}, {"beta": 1}):
        with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
            TrainOptions.of(**values)
    with pytest.raises(ValidationError, match=r"loss mart has options of its own; build them by TrainOptions\.of"):
        TrainOptions(loss="mart")
