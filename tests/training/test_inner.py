"""The inner maximisation: projected ascent, its objectives by hand, and the searches of single methods."""

import math

import pytest
import torch
import torch.nn.functional as F
from support import tiny

from dfshield import registry
from dfshield.core.lp import step_size
from dfshield.core.rng import generator
from dfshield.core.threat import Threat, parse_threat
from dfshield.options import TrainOptions
from dfshield.options.training import Trades
from dfshield.training import losses
from dfshield.training.inner import (
    OBJECTIVES,
    InnerAttack,
    Task,
    fosc,
    mma_boundary,
    objective,
    pgd_ascent,
    vat_direction,
)
from dfshield.training.losses import Outputs

# --- projected ascent ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("threat", "l2_step", "expected"),
    [
        ("linf:8/255", "15/255", 2 / 255),
        ("linf:8/255", "eps/5", 2 / 255),
        ("linf:4/255", "15/255", 1 / 255),
        ("l2:128/255", "15/255", 15 / 255),
        ("l2:128/255", "eps/5", 25.6 / 255),
        ("l2:128/255", "eps/4", 32 / 255),
        ("l2:128/255", "0.1", 0.1),
    ],
)
def test_step_sizes(threat, l2_step, expected):
    assert step_size(parse_threat(threat), l2_step) == pytest.approx(expected)


def craft(threat: Threat, objective="kl", start="normal", steps=10, size=None, n=8, seed=0):
    model = tiny.classifier(scale=20.0).requires_grad_(False)
    x = torch.from_numpy(tiny.images(n)).permute(0, 3, 1, 2)
    x[0], x[1] = 0.0, 1.0  # at the border of the range of pixels
    labels = torch.arange(n) % 10
    size = size or step_size(threat, "15/255")
    random = generator("test", seed)
    adversarial = pgd_ascent(model, x, labels, OBJECTIVES[objective], start, threat, steps, size, random)
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
    size = step_size(threat, "15/255")
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


# --- objectives on a linear model ------------------------------------------------------------------------------------

W = torch.tensor([[1.0, -2.0, 0.5], [-1.5, 0.5, 2.0]])  # two pixels, three classes
X = torch.tensor([[0.4, 0.6], [0.7, 0.2]])
Y = torch.tensor([0, 2])
TEACHER = torch.tensor([[0.3, 0.1, 0.6], [0.2, 0.7, 0.1]]).log()
BALL = Threat("l2", 0.05)


def linear(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(1) @ W


def one_step(objective, start="image", seed=0) -> torch.Tensor:
    """Two pixels of each image after one step of 0.01 along the unit gradient."""
    x = X.view(2, 1, 1, 2)
    found = pgd_ascent(linear, x, Y, objective, start, BALL, 1, 0.01, generator(seed), teacher=TEACHER)
    return found.view(2, 2)


def along(slope: torch.Tensor, start=X) -> torch.Tensor:
    return start + 0.01 * slope / slope.norm(dim=1, keepdim=True)


def test_cross_entropy_on_a_linear_model():
    """Its gradient is W (p - e_y); here in numbers for the first image."""
    z = [0.4 * 1 - 0.6 * 1.5, -0.4 * 2 + 0.6 * 0.5, 0.4 * 0.5 + 0.6 * 2]
    p = [math.exp(v) / sum(map(math.exp, z)) for v in z]
    error = [p[0] - 1, p[1], p[2]]
    slope = [1 * error[0] - 2 * error[1] + 0.5 * error[2], -1.5 * error[0] + 0.5 * error[1] + 2 * error[2]]
    expected = [x + 0.01 * g / math.hypot(*slope) for x, g in zip((0.4, 0.6), slope, strict=True)]
    assert one_step(OBJECTIVES["ce"])[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_the_teachers_divergence_on_a_linear_model():
    """RSLAD's inner problem: the gradient of KL(T(x) ‖ S(x')) is W (p' - p_T)."""
    slope = ((X @ W).softmax(1) - TEACHER.softmax(1)) @ W.T
    torch.testing.assert_close(one_step(objective(TrainOptions.of(loss="rslad"))), along(slope))


def test_the_students_divergence_on_a_linear_model():
    """TRADES' inner problem: the gradient of KL(S(x) ‖ S(x')) is W (p' - p), which is 0 at the image itself."""
    start = X + 0.001 * torch.randn(2, 1, 1, 2, generator=generator(0)).view(2, 2)
    slope = ((start @ W).softmax(1) - (X @ W).softmax(1)) @ W.T
    found = one_step(objective(TrainOptions.of(loss="trades")), "normal")
    torch.testing.assert_close(found, along(slope, start), rtol=0, atol=1e-4)
    x = X.clone().requires_grad_()
    (slope,) = torch.autograd.grad(OBJECTIVES["kl"](Outputs(X @ W, x @ W, TEACHER, Y)), x)
    assert float(slope.abs().max()) < 1e-6


def test_the_loss_itself_on_a_linear_model():
    """The max-Mahalanobis loss is raised along W (z - μ_y)."""
    long, short = 10 * math.sqrt(2 / 3), -10 * math.sqrt(1 / 6)
    centres = torch.tensor([[long, short, short], [short, short, long]])
    slope = (X @ W - centres) @ W.T
    torch.testing.assert_close(one_step(objective(TrainOptions.of(loss="mmc"))), along(slope))
    whole = objective(TrainOptions.of(loss="trades", inner="loss"))
    out = Outputs(*[torch.randn(4, 3) for _ in range(3)], torch.arange(4) % 3)
    torch.testing.assert_close(whole(out), 4 * losses.trades(out, Trades()))


@pytest.mark.parametrize("start", ["uniform", "normal", "image"])
@pytest.mark.parametrize("threat", [Threat("linf", 0.0005), Threat("l2", 0.0005)])
def test_without_an_objective_the_start_is_taken(start, threat):
    x = torch.from_numpy(tiny.images(5)).permute(0, 3, 1, 2)
    found = pgd_ascent(linear, x, Y, None, start, threat, 7, 1.0, generator(0))
    distance = (found - x).flatten(1).norm(dim=1, p=math.inf if threat.norm == "linf" else 2)
    assert float(distance.max()) <= 0.0005 + 1e-7
    assert (float(distance.max()) > 0) == (start != "image")
    assert float(found.min()) >= 0 and float(found.max()) <= 1


# --- the problem of an epoch -----------------------------------------------------------------------------------------


def problems(**changes) -> list[InnerAttack]:
    options = TrainOptions.of(**changes)
    return [InnerAttack.of(options, epoch) for epoch in range(options.epochs)]


def test_a_plain_problem_is_the_same_in_every_epoch():
    found = problems(epochs=5, threat="linf:4/255", attack_steps=7)
    assert len(set(found)) == 1
    assert (found[0].threat, found[0].steps, found[0].size) == (("linf", 4 / 255), 7, 1 / 255)
    assert (type(found[0]), found[0].stop) == (InnerAttack, None)


@pytest.mark.parametrize(("threat", "full", "step"), [("linf:8/255", 8 / 255, 2 / 255), ("l2:0.5", 0.5, 15 / 255)])
def test_epsilon_grows_over_the_first_epochs(threat, full, step):
    found = problems(epochs=8, threat=threat, eps_warmup=0.5)
    shares = [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]
    assert [problem.threat.eps for problem in found] == pytest.approx([share * full for share in shares])
    assert [problem.size for problem in found] == pytest.approx([share * step for share in shares])
    assert InnerAttack.full(TrainOptions.of(epochs=8, threat=threat, eps_warmup=0.5)).threat.eps == full


def test_epsilon_of_training_as_a_multiple_of_the_threats():
    found = problems(epochs=2, threat="linf:4/255", eps_factor=1.5, eps_warmup=1)
    assert [problem.threat.eps * 255 for problem in found] == pytest.approx([3, 6])
    assert [problem.size * 255 for problem in found] == pytest.approx([0.75, 1.5])
    assert InnerAttack.full(TrainOptions.of(threat="linf:4/255", eps_factor=1.5)).threat.eps == 4 / 255


def test_curriculum_takes_more_and_more_steps():
    assert [p.steps for p in problems(loss="curriculum", epochs=20)] == [k for k in range(1, 11) for _ in range(2)]
    assert [p.steps for p in problems(loss="curriculum", epochs=4)] == [3, 5, 8, 10]
    assert [p.steps for p in problems(loss="curriculum", epochs=1)] == [10]


def test_the_threshold_of_dart_falls_to_nothing():
    """c_max = 0.5 and T' = 100 of 120 epochs."""
    stops = [p.stop for p in problems(loss="dart", epochs=120)]
    assert [stops[epoch] for epoch in (0, 20, 50, 99, 100, 119)] == pytest.approx([0.5, 0.4, 0.25, 0.005, 0, 0])
    assert problems(loss="dart", epochs=2, fosc_max=3, fosc_share="1")[1].stop == pytest.approx(1.5)


@pytest.mark.parametrize("threat", ["linf:8/255", "l2:0.5"])
def test_a_single_step_has_the_length_of_epsilon(threat):
    (found,) = problems(loss="fgsm", epochs=1, threat=threat, attack_steps=9)
    assert (found.steps, found.size, found.start) == (1, found.threat.eps, "image")
    x = torch.full((2, 1, 1, 2), 0.5)
    moved = found.solve(Task(linear, x, Y, None, generator(0))).view(2, 2) - 0.5
    slope = (linear(x).softmax(1) - F.one_hot(Y, 3)) @ W.T
    unit = slope.sign() if found.threat.norm == "linf" else slope / slope.norm(dim=1, keepdim=True)
    torch.testing.assert_close(moved, found.threat.eps * unit, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", registry.LOSSES)
def test_held_out_images_are_attacked_in_full_whatever_the_search(loss):
    options = TrainOptions.of(loss=loss, threat="l2:0.5", attack_steps=7, eps_warmup=1)
    found = InnerAttack.full(options)
    assert (type(found), found.steps, found.threat, found.size) == (InnerAttack, 7, ("l2", 0.5), 15 / 255)
    assert found.objective is not None and found.start != "image" and found.stop is None


# --- first-order stationary condition --------------------------------------------------------------------------------


def test_fosc_is_the_most_that_a_linear_function_can_still_rise():
    x = torch.tensor([[[[0.5, 0.5, 0.5]]]])
    point = x + torch.tensor([0.1, -0.05, 0.0])
    slope = torch.tensor([[[[2.0, -1.0, 0.5]]]])
    corners = torch.cartesian_prod(*[torch.tensor([-0.1, 0.1])] * 3)
    most = max(float(((x.view(3) + corner - point.view(3)) * slope.view(3)).sum()) for corner in corners)
    by_hand = 0.1 * (2 + 1 + 0.5) - (0.1 * 2 + 0.05 * 1)
    assert most == pytest.approx(by_hand)
    assert fosc(x, point, slope, Threat("linf", 0.1)).item() == pytest.approx(by_hand)
    assert fosc(x, point, slope, Threat("linf", 0.1)).shape == (1, 1, 1, 1)
    in_l2 = 0.3 * math.sqrt(4 + 1 + 0.25) - 0.25
    assert fosc(x, point, slope, Threat("l2", 0.3)).item() == pytest.approx(in_l2)


@pytest.mark.parametrize("threat", [Threat("linf", 0.1), Threat("l2", 0.1)])
def test_fosc_is_zero_at_the_maximum(threat):
    x, slope = torch.full((4, 1, 2, 3), 0.5), torch.randn(4, 1, 2, 3, generator=generator(0))
    unit = slope.sign() if threat.norm == "linf" else slope / slope.flatten(1).norm(dim=1).view(4, 1, 1, 1)
    at_border = fosc(x, x + 0.1 * unit, slope, threat)
    torch.testing.assert_close(at_border, torch.zeros_like(at_border), rtol=0, atol=1e-6)
    assert (fosc(x, x - 0.1 * unit, slope, threat) > 0.1).all()


def test_dart_stops_each_image_on_its_own():
    """Slopes of 1 and 0.01 per pixel from the image on, steps of ε/4: after k steps FOSC is 2 ε (1 - k/4) slope."""
    x, scale = torch.full((2, 1, 1, 2), 0.5), torch.tensor([1.0, 0.01])
    rise = lambda out: (out.adversarial.sum(1) * scale).sum()  # noqa: E731

    def steps_taken(stop):
        found = pgd_ascent(
            lambda x: x.flatten(1), x, Y, rise, "image", Threat("linf", 0.1), 4, 0.025, generator(0), stop=stop
        )
        return ((found - x).amax((1, 2, 3)) / 0.025).tolist()

    assert steps_taken(None) == pytest.approx([4, 4], abs=1e-4)
    assert steps_taken(10.0) == pytest.approx([1, 1], abs=1e-4)  # never before the first step
    assert steps_taken(0.11) == pytest.approx([2, 1], abs=1e-4)  # 0.15 after one step, 0.1 after two
    assert steps_taken(0.06) == pytest.approx([3, 1], abs=1e-4)
    assert steps_taken(0.0012) == pytest.approx([4, 2], abs=1e-4)


# --- the nearest misclassified point (MMA) ---------------------------------------------------------------------------


def test_every_image_gets_an_epsilon_of_its_own():
    """Class 1 where the pixel is above 0.5; labels are 0. Images at 0.2, 0.45, 0.1 and, misclassified, 0.7."""
    model = lambda x: torch.cat([torch.zeros(len(x), 1), x.flatten(1) - 0.5], 1)  # noqa: E731
    x = torch.tensor([0.2, 0.45, 0.1, 0.7]).view(4, 1, 1, 1)
    reached = x + torch.tensor([0.4, 0.4, 0.3, 0.2]).view(4, 1, 1, 1)
    found = mma_boundary(model, x, reached, torch.zeros(4, dtype=torch.long), 10).flatten()
    assert found.tolist() == pytest.approx([0.5, 0.5, 0.4, 0.7], abs=0.41 / 2**10)
    assert found[:2].min() > 0.5  # on the far side of the border
    assert found[2] == reached.flatten()[2]  # never misclassified on the way: all of ε
    coarse = mma_boundary(model, x, reached, torch.zeros(4, dtype=torch.long), 1).flatten()
    assert coarse.tolist() == pytest.approx([0.6, 0.65, 0.4, 0.8])


# --- the most curved direction (VAT) ---------------------------------------------------------------------------------


def test_the_virtual_direction_of_a_logistic_model_is_its_weight():
    """With logits (0, w·x) the Hessian is p (1-p) w wᵀ: one product turns any direction into ±w."""
    w = torch.tensor([3.0, -4.0])
    model = lambda x: torch.stack([torch.zeros(len(x)), x.flatten(1) @ w], 1)  # noqa: E731
    x = torch.full((5, 1, 1, 2), 0.5)
    moved = (vat_direction(model, x, Threat("l2", 0.1), 1, generator(0)) - x).view(5, 2)
    torch.testing.assert_close(moved.abs(), torch.tensor([0.06, 0.08]).expand(5, 2))
    assert (moved[:, 0] * moved[:, 1] < 0).all()


@pytest.mark.parametrize("iterations", [1, 3])
def test_the_virtual_direction_is_the_papers_in_double_precision(iterations):
    """Miyato et al. take H d from the gradient of the divergence at x + ξ d, ξ = 1e-6."""
    model = tiny.classifier(scale=20.0).double().requires_grad_(False)
    x = torch.from_numpy(0.25 + 0.5 * tiny.images(4)).permute(0, 3, 1, 2).double()
    unit = lambda d: d / d.flatten(1).norm(dim=1).view(-1, 1, 1, 1)  # noqa: E731
    direction = unit(torch.randn(x.shape, generator=generator(0)).double())
    p = model(x).softmax(1)
    for _ in range(iterations):
        near = (x + 1e-6 * direction).requires_grad_()
        divergence = (p * (p.log() - model(near).log_softmax(1))).sum()
        direction = unit(torch.autograd.grad(divergence, near)[0])
    found = vat_direction(model, x, Threat("l2", 0.05), iterations, generator(0))
    torch.testing.assert_close(found, x + 0.05 * direction, rtol=0, atol=1e-5)
    single = vat_direction(model.float(), x.float(), Threat("l2", 0.05), iterations, generator(0))
    torch.testing.assert_close(single.double(), found, rtol=0, atol=1e-4)


def test_the_virtual_direction_raises_the_divergence_more_than_a_random_one():
    model = tiny.classifier(scale=20.0).requires_grad_(False)
    x = torch.from_numpy(0.25 + 0.5 * tiny.images(40)).permute(0, 3, 1, 2)
    ball = Threat("l2", 0.1)
    found = vat_direction(model, x, ball, 1, generator(0))
    noise = torch.randn(x.shape, generator=generator(1))
    at_random = x + 0.1 * noise / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    raised = [float(losses.kl(model(x), model(point))) for point in (found, at_random)]
    assert raised[0] > 2 * raised[1]
    assert float((found - x).flatten(1).norm(dim=1).max()) <= 0.1 + 1e-6
