"""AutoAttack's parts against plain versions of the same algorithms."""

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize
from support.attacked import images, key, network, norms
from torch import nn

from dfshield.attacks import apgd as module
from dfshield.attacks import square as square_module
from dfshield.attacks.apgd import apgd, checkpoints, cross_entropy, dlr, dlr_targeted, targeted_margin
from dfshield.attacks.base import input_gradient
from dfshield.attacks.fab import fab, project_on_hyperplane
from dfshield.attacks.inference import forward_only
from dfshield.attacks.square import share, side, square
from dfshield.core.threat import Threat


def test_checkpoints_are_the_papers():
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(6) == [1, 2, 3, 4, 5, 6] and checkpoints(1) == [1]


def plain_apgd(net, x, y, threat, steps, start):
    """One image, as Algorithm 1 has it; the points that it visits."""

    def value(at):
        logits, gradient = input_gradient(net, at, y)
        return float(cross_entropy(logits, y)), gradient

    def ball(point):
        delta = point - x
        if threat.norm == "linf":
            delta = delta.clamp(-threat.eps, threat.eps)
        elif delta.norm() > threat.eps:
            delta = delta / delta.norm() * threat.eps
        return (x + delta).clamp(0, 1)

    point = before = best = start
    now, gradient = value(point)
    best_value, best_gradient, size = now, gradient, 2 * threat.eps
    visited, values, checked, halved, last = [start], [now], now, True, 0
    for done in range(1, steps):
        direction = gradient.sign() if threat.norm == "linf" else gradient / gradient.norm()
        to = ball(point + size * direction)
        if done > 1:
            to = ball(point + 0.75 * (to - point) + 0.25 * (point - before))
        before, point = point, to
        visited.append(point)
        now, gradient = value(point)
        values.append(now)
        if now > best_value:
            best, best_value, best_gradient = point, now, gradient
        if done in checkpoints(steps):
            rises = sum(values[i] > values[i - 1] for i in range(last + 1, done + 1))
            halve = rises <= 0.75 * (done - last) or (not halved and checked == best_value)
            last, halved, checked = done, halve, best_value
            if halve:
                size, point, gradient = size / 2, best, best_gradient
    return visited, size


@pytest.mark.parametrize("threat", [Threat("linf", 0.1), Threat("l2", 1.0)])
def test_apgd_goes_where_a_plain_one_goes_image_by_image(threat, monkeypatch):
    net = network(10)
    x, y = images(net, n=6)
    seen, sizes = [], []
    genuine = module.input_gradient

    def watched(model, at, *given):
        seen.append(at.clone())
        return genuine(model, at, *given)

    reconsider = module._reconsider

    def noted(rows, steps):
        reconsider(rows, steps)
        sizes.append(rows.size.flatten().clone())

    monkeypatch.setattr(module, "input_gradient", watched)
    monkeypatch.setattr(module, "_reconsider", noted)
    apgd(net, x, y, threat, cross_entropy, 40, key(3), clear=1e9)  # none stops
    assert len(seen) == 40 and len(set(sizes[-1].tolist())) > 1
    for i in range(len(x)):
        visited, size = plain_apgd(net, x[i : i + 1], y[i : i + 1], threat, 40, seen[0][i : i + 1])
        assert max(float((a - b[i]).abs().max()) for a, b in zip(visited, seen, strict=True)) < 1e-4
        assert sizes[-1][i] == pytest.approx(size)


def test_apgd_stops_for_what_is_broken_and_says_so():
    net = network(10)
    x, y = images(net, n=24)
    passes = []
    net.register_forward_pre_hook(lambda module, inputs: passes.append(len(inputs[0])))
    threat = Threat("linf", 0.02)
    x_adv, broken = apgd(net, x, y, threat, cross_entropy, 20, key())
    assert passes == sorted(passes, reverse=True) and passes[-1] < len(x) and len(passes) <= 21
    with torch.no_grad():
        assert torch.equal(net(x_adv).argmax(1) != y, broken) and 0 < broken.sum() < len(x)
    assert torch.equal(x_adv[~broken], x[~broken]) and norms(x_adv - x, "linf").max() <= 0.02 + 1e-6


def test_objectives_by_hand():
    logits, y, t = (
        torch.tensor([[5.0, 1.0, 3.0, 0.0], [1.0, 5.0, 3.0, 0.0]]),
        torch.tensor([0, 0]),
        torch.tensor([1, 2]),
    )
    assert targeted_margin(logits, y, t).tolist() == [-4, 2]
    assert dlr(logits, y).tolist() == [-0.5, 1]  # -(5 - 3) / (5 - 1), -(1 - 5) / (5 - 1)
    assert torch.allclose(dlr_targeted(logits, y, t), torch.tensor([-4 / 4.5, 2 / 4.5]))


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("distance", [0.01, 0.5, 3.0, -1.0, 100.0])
def test_fabs_projection_is_the_nearest_point(norm, distance):
    random = np.random.default_rng(int(10 * abs(distance)))
    point, w = random.random((4, 7)), random.normal(size=(4, 7))
    point[0, :3], w[1, 2] = (0, 1, 0), 0
    b = (w * point).sum(1) + distance * np.abs(w).mean(1)
    found = project_on_hyperplane(*(torch.from_numpy(a) for a in (point, w, b)), norm).numpy()
    assert ((point + found >= -1e-9) & (point + found <= 1 + 1e-9)).all()
    for i in range(4):
        reach = (w[i] * (np.where((w[i] > 0) == (distance > 0), 1, 0) - point[i])).sum()
        wanted = b[i] - w[i] @ point[i]
        if abs(reach) <= abs(wanted):  # beyond the box: as close as it lets
            assert w[i] @ found[i] == pytest.approx(reach)
            continue
        assert w[i] @ found[i] == pytest.approx(wanted, rel=1e-4)
        if norm == "linf":  # min t with |d| <= t
            bounds = [(-p, 1 - p) for p in point[i]] + [(0, None)]
            sides = np.block([[np.eye(7), -np.ones((7, 1))], [-np.eye(7), -np.ones((7, 1))]])
            best = linprog([0] * 7 + [1], sides, np.zeros(14), [[*w[i], 0]], [wanted], bounds).fun
            assert np.abs(found[i]).max() == pytest.approx(best, rel=1e-4)
        else:
            best = minimize(
                lambda d: d @ d,
                np.zeros(7),
                jac=lambda d: 2 * d,
                bounds=[(-p, 1 - p) for p in point[i]],
                constraints={"type": "eq", "fun": lambda d, i=i, wanted=wanted: w[i] @ d - wanted},
                options={"ftol": 1e-12},
            ).fun
            assert found[i] @ found[i] == pytest.approx(best, rel=1e-3)


@pytest.mark.parametrize("norm, eps", [("linf", 0.02), ("l2", 0.15)])
def test_fab_finds_only_what_is_within_eps(norm, eps):
    net = network(10)
    x, y = images(net, n=24)
    with torch.no_grad():
        target = net(x).argsort(dim=1, descending=True)[:, 1]
        x_adv, broken = fab(net, x, y, target, Threat(norm, eps), 10)
        assert torch.equal(net(x_adv).argmax(1) != y, broken) and 0 < broken.sum() < len(x)
    assert torch.equal(x_adv[~broken], x[~broken]) and norms(x_adv - x, norm).max() <= eps + 1e-6


def test_squares_halve_after_the_papers_queries():
    shares = [
        share(query) for query in (0, 10, 11, 50, 51, 200, 201, 500, 501, 1000, 1001, 2000, 2001, 4000, 4001, 4999)
    ]
    assert shares == [0.8 / 2**k for k in (0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7)]
    assert [side(query, 32, 32) for query in (0, 11, 51, 201, 501, 1001, 2001, 4001)] == [29, 20, 14, 10, 7, 5, 4, 3]
    assert side(0, 3, 30) == 3 and side(4999, 1, 1) == 1


def test_square_asks_only_what_it_does_not_know():
    """The margins fall to those of a search that asks everything."""
    net = network(10)
    x, y = images(net, n=8)
    asked = []

    class Counted(nn.Module):
        def forward(self, x):
            asked.append(len(x))
            if x.sum() > 1e9:  # cannot be traced
                raise ValueError
            return net(x)

    threat, n = Threat("linf", 0.003), len(x)
    found = square(Counted(), x, y, threat, 400, key(2))
    draws = torch.rand((400, 3), generator=(random := key(2)))
    point = (x + 0.003 * (1 - 2 * (torch.rand((n, 1, 1, 8), generator=random) < 0.5).float())).clamp(0, 1)

    def margins(at):
        with torch.no_grad():
            z = net(at)
        return z.gather(1, y[:, None])[:, 0] - z.scatter(1, y[:, None], -torch.inf).amax(1)

    least = margins(point)
    for query, (a, b, sign) in enumerate(draws.tolist()):
        size = side(query, 8, 8)
        top, left = int(a * (9 - size)), int(b * (9 - size))
        new = point.clone()
        window = (..., slice(top, top + size), slice(left, left + size))
        new[window] = (x[window] + (-0.003 if not sign < 0.5 else 0.003) * -1).clamp(0, 1)
        better = margins(new) < least
        point[better], least = new[better], torch.minimum(least, margins(new))
    assert (least > 0).any()
    assert torch.allclose(margins(found)[least > 0], least[least > 0], atol=1e-5)
    assert sum(asked) < 0.7 * n * 401


def test_a_network_that_cannot_be_traced_is_asked_itself():
    net = network(4)
    x, _ = images(net, 4)

    class Branching(nn.Module):
        def forward(self, x):
            return net(x) if float(x.mean()) > 0.2 else -net(x)

    class Counting(nn.Module):
        calls = 0

        def forward(self, x):
            Counting.calls += 1
            return net(x) * Counting.calls

    with torch.no_grad():
        assert torch.allclose(forward_only(net, x)(x), net(x), atol=1e-5) and forward_only(net, x) is not net
        for model in (Branching().eval(), Counting().eval()):
            assert forward_only(model, x) is model


@pytest.mark.parametrize("draws", [False, True])
def test_a_model_that_draws_is_asked_again(monkeypatch, draws):
    """On one pixel squares soon repeat: a model that answers the same is not asked, one that draws is every time."""
    asked = []

    class Drawing(nn.Module):
        def forward(self, x):
            asked.append(len(x))
            score = x.flatten(1).sum(1) + 5 + (1e-3 * torch.randn(len(x)) if draws else 0)
            return torch.stack((score, 0 * score), 1)

    monkeypatch.setattr(square_module, "forward_only", lambda model, x: model)
    x, y = torch.full((3, 1, 1, 1), 0.5), torch.zeros(3, dtype=torch.long)
    square_module.square(Drawing(), x, y, Threat("linf", 0.1), 30, key())
    assert (sum(asked) == 3 * 32) == draws
