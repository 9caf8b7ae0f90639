"""Attacks that look for the smallest perturbation: closed forms on linear models, and their distances in a ledger."""

from typing import Any

import numpy as np
import pytest
import torch
from support.attacked import attack, images, key, network, norms, problem, session
from torch import Tensor, nn

from dfshield import registry
from dfshield.attacks.base import Component, Ensemble
from dfshield.core.threat import parse_threat
from dfshield.evaluation.verdict import evaluate_distance
from dfshield.options import AttackOptions

MINIMAL = [name for name, entry in registry.ATTACKS.items() if entry.minimal]
OPTIONS: dict[str, dict[str, Any]] = {"cw": {"steps": 80, "lr": 0.02}, "fab": {"steps": 30}}
SHAPE = (1, 4, 4)


def linear(classes: int) -> nn.Sequential:
    """A linear model that prefers no class on grey, and whose classes have logits of different sizes."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, classes))
    with torch.no_grad():
        net[1].weight.copy_(
            torch.randn((classes, 16), generator=key(classes)) * torch.linspace(0.3, 2, classes)[:, None]
        )
        net[1].bias.copy_(-net[1].weight.sum(1) / 2)
    return net


def given(model: nn.Module, spread: float, n: int = 30) -> tuple[Tensor, Tensor]:
    """Images at most `spread` from grey, and what the model makes of them."""
    x = 0.5 + spread * (2 * torch.rand((n, *SHAPE), generator=key(1)) - 1)
    with torch.no_grad():
        return x, model(x).argmax(1)


def closed_form(model: nn.Sequential, x: Tensor, y: Tensor, norm: str) -> Tensor:
    """Distance (N,) to the nearest other class of a linear model, without borders of the box."""
    w = model[1].weight.detach()
    with torch.no_grad():
        logits = model(x)
    gaps = logits.gather(1, y[:, None]) - logits
    difference = w[y][:, None] - w[None]
    dual = difference.abs().sum(2) if norm == "linf" else difference.norm(dim=2)
    return (gaps / dual.clamp_min(1e-9)).scatter(1, y[:, None], torch.inf).amin(1)


def found(name: str, model: nn.Module, x: Tensor, y: Tensor, norm: str, **options: Any) -> tuple[Tensor, Tensor]:
    """Distance (N,) of what an attack returns, and whether it is misclassified."""
    own = AttackOptions.of(attack=name, threat=f"{norm}:0.03", **(OPTIONS.get(name, {}) | options))
    x_adv = registry.ATTACKS[name].load()(problem(model, x, y, own.threat), own)
    assert ((x_adv >= 0) & (x_adv <= 1)).all()
    with torch.no_grad():
        return norms(x_adv - x, norm), model(x_adv).argmax(1) != y


@pytest.mark.parametrize("classes", [2, 5, 10])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", MINIMAL)
def test_a_linear_models_distance_is_reached(name, norm, classes):
    model = linear(classes)
    x, y = given(model, 0.3)
    exact = closed_form(model, x, y, norm)
    assert exact.max() < 0.6 and 0 < (exact > 0.03).sum() < 30  # within the box, within ε and beyond
    distance, broken = found(name, model, x, y, norm)
    assert broken.all()
    assert (distance >= exact * (1 - 1e-4)).all() and (distance <= exact * 1.05 + 1e-5).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_deepfool_takes_one_step_on_a_linear_model_and_lengthens_it(norm):
    model = linear(5)
    x, y = given(model, 0.1)
    passes: list[int] = []
    model.register_forward_pre_hook(lambda module, inputs: passes.append(len(inputs[0])))
    exact = closed_form(model, x, y, norm)
    del passes[:]
    distance, _ = found("deepfool", model, x, y, norm, overshoot=0.1)
    assert distance.numpy() == pytest.approx(1.1 * exact.numpy(), abs=2e-5)
    assert passes == [30, 30, 30]  # the images, the step, and the verdict of this test


@pytest.mark.parametrize("name, only", [("deepfool", {"candidates": 2}), ("fab", {"targets": 1})])
def test_deepfools_candidates_and_fabs_targets_bound_the_classes(name, only):
    model = linear(12)
    x, y = given(model, 0.1)
    with torch.no_grad():
        runner_up = model(x).scatter(1, y[:, None], -torch.inf).argmax(1)
        w, logits = model[1].weight, model(x)
        gap = (logits.gather(1, y[:, None]) - logits.gather(1, runner_up[:, None]))[:, 0]
        one = gap / (w[y] - w[runner_up]).norm(dim=1)
    few, _ = found(name, model, x, y, "l2", **only)
    exact = closed_form(model, x, y, "l2")
    assert (one > 1.1 * exact).any()  # the likeliest class is not always the nearest
    assert (few <= 1.05 * one + 1e-5).all() and (few[one > 1.1 * exact] > 1.05 * exact[one > 1.1 * exact]).any()


def boxed(model: nn.Sequential, x: Tensor, y: Tensor) -> Tensor:
    """The l∞ distance (N,) of a linear model of two classes within [0,1], by bisection over corners of the ball."""
    w = model[1].weight.detach()
    low, high = torch.zeros(len(x)), torch.ones(len(x))
    for _ in range(40):
        radius = (low + high) / 2
        sign = (w[1 - y] - w[y]).sign().view(x.shape)
        corner = (x + radius.view(-1, 1, 1, 1) * sign).clamp(0, 1)
        with torch.no_grad():
            crossed = model(corner).argmax(1) != y
        low, high = torch.where(crossed, low, radius), torch.where(crossed, radius, high)
    return high


@pytest.mark.parametrize("name", MINIMAL)
def test_borders_of_the_box_are_counted(name):
    model = linear(2)
    x = torch.rand((30, *SHAPE), generator=key(1)).round()  # black and white pixels
    with torch.no_grad():
        model[1].bias += (model(x)[:, :1] - model(x)[:, 1:]).median() * torch.tensor([-0.5, 0.5])
        y = model(x).argmax(1)
    clear = boxed(model, x, y) > 0.01  # a search by halves has an end
    x, y = x[clear], y[clear]
    exact = boxed(model, x, y)
    free = closed_form(model, x, y, "linf")
    assert (exact / free).median() > 1.2 and exact.max() < 1
    distance, broken = found(name, model, x, y, "linf", **({"binary_steps": 13} if name == "cw" else {}))
    limit = 1.05 if name != "deepfool" else 2.5  # its steps are exact without borders only
    assert broken.all() and (distance >= exact * (1 - 1e-4)).all() and (distance <= exact * limit + 1e-5).all()
    assert found(name, model, x, y, "l2", **({"steps": 100, "lr": 0.05} if name == "cw" else {}))[1].all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_longer_search_of_the_constant_is_not_worse(norm):
    """But for what drawing the points back changes."""
    net = network(4)
    x, y = images(net, n=8)
    reached = [found("cw", net, x, y, norm, binary_steps=k, steps=15, lr=0.05) for k in (2, 5, 8)]
    size = [torch.where(broken, distance, torch.inf) for distance, broken in reached]
    assert (size[1] <= 1.05 * size[0]).all() and (size[2] <= 1.05 * size[1]).all() and (size[2] < size[0]).any()


def test_confidence_is_the_margin_at_least():
    model = linear(3)
    x, y = given(model, 0.1)
    for norm in ("linf", "l2"):
        own = AttackOptions.of(attack="cw", threat=f"{norm}:0.1", steps=60, lr=0.03, confidence=0.2)
        with torch.no_grad():
            logits = model(registry.ATTACKS["cw"].load()(problem(model, x, y, own.threat), own))
        margin = logits.gather(1, y[:, None])[:, 0] - logits.scatter(1, y[:, None], -torch.inf).amax(1)
        assert (margin <= -0.2 + 1e-4).all() and (margin > -0.3).float().mean() > 0.8


class Band(nn.Module):
    """Class 1 for images whose mean lies within a band, else class 0."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N,2)."""
        mean = x.double().flatten(1).mean(1)
        inside = ((mean > self.low) & (mean < self.high)).float()
        return torch.stack((1 - inside, inside), dim=1)


@pytest.mark.parametrize(
    ("size", "band", "distance", "broken"),
    [
        (0.05, (0.54, 0.56), 0.05, False),  # beyond ε
        (0.05, (0.51, 0.56), 0.02, True),  # beyond ε, and within it when cut back
        (0.01, (0.505, 0.56), 0.01, True),
        (0.05, (0.6, 0.7), np.inf, False),
        (0.01, (0.509, 0.510001), np.nextafter(np.float32(0.02), np.float32(1)), False),  # float16 rounds out of it
        (np.nan, (0.4, 0.45), np.inf, False),
        (0.8, (0.9, 1.1), 0.5, False),  # cut to the box
    ],
)
def test_a_distance_is_of_a_point_that_the_model_was_seen_to_misclassify(size, band, distance, broken):
    x, y = torch.full((2, 1, 4, 4), 0.5), torch.tensor([0, 0])
    x_adv = x.clone()
    x_adv[0] += size
    outcome = evaluate_distance(Band(*band), x, y, x_adv, parse_threat("linf:0.02"))
    assert outcome.distance.dtype == np.float32 and outcome.distance[1] == np.inf
    assert outcome.distance[0] == pytest.approx(distance, rel=2e-3) and (outcome.prediction[0] != 0) == broken
    assert (outcome.distance[0] <= np.float32(0.02)) == broken


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", MINIMAL)
def test_distances_of_an_evaluation(name, norm):
    model = linear(5)
    x, y = given(model, 0.3, n=40)
    exact = closed_form(model, x, y, norm).numpy()
    eps = float(np.median(exact))
    y[:5] = (y[:5] + 1) % 5
    rows, _ = attack(model, x, y, f"{norm}:{eps}", attack=name, chunk=16, **OPTIONS.get(name, {}))
    assert (rows["distances"][:5] == 0).all() and (rows["component"][:5] == 1).all()
    reached = rows["distances"][5:]
    assert (reached >= 0.999 * exact[5:]).all() and (reached <= 1.05 * exact[5:] + 1e-5).all()
    assert np.array_equal(rows["distances"] <= np.float32(eps), rows["broken"])
    assert 0.3 < rows["broken"].mean() < 0.8


def test_other_attacks_have_no_distances():
    model = linear(5)
    rows, _ = attack(model, *given(model, 0.1), "linf:0.03", attack="fgsm")
    assert "distances" not in rows


def test_a_resumed_evaluation_keeps_its_distances(tmp_path):
    model = linear(5)
    x, y = given(model, 0.1, n=24)

    def refuse(problem, options):
        raise AssertionError("is attacked again")

    found = []
    for step in (registry.ATTACKS["deepfool"].load(), refuse):
        made = session(model, x, y, "linf:0.03", Ensemble((Component("deepfool", step),)), attack="deepfool", chunk=8)
        made.folder = tmp_path
        found.append(made.run()[0])
    assert found[0].keys() == found[1].keys() and "distances" in found[0]
    assert all(found[0][row].tobytes() == found[1][row].tobytes() for row in found[0])
