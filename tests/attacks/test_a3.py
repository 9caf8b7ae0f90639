"""A³: its steps, directions, discarding and strength."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from support.attacked import attack, images, key, network, problem
from torch import nn

from dfshield.attacks import a3 as module
from dfshield.attacks.base import input_gradient, margin
from dfshield.attacks.budget import DISCARDING, WARM, Round, a3_passes, kept
from dfshield.attacks.climb import climb
from dfshield.core.lp import project, step
from dfshield.core.threat import Threat
from dfshield.options import AttackOptions


def test_steps_are_of_length_eps_and_then_a_cosine():
    short, long = module._sizes(0.5, Round(7, 8)), module._sizes(0.5, Round(0, 25))
    assert short[:8] == [0.5] * 8 and len(short) == 15 and len(long) == 25
    assert np.isclose(short[-1], 0.05 + 0.45 * (1 + math.cos(math.pi * 7 / 9)) / 2)
    assert np.isclose(long[-1], 0.0005 + 0.4995 * (1 + math.cos(math.pi * 24 / 26)) / 2)
    assert all(a > b for a, b in pairwise(long))


def test_rounds_are_the_published_ones():
    assert len(DISCARDING) == len(WARM) == 13 and DISCARDING[:3] == WARM[:3]
    assert DISCARDING[-1] == Round(7, 60, 0.03, 50) and WARM[-1] == Round(10, 45, 0.5, 20)
    shares = [plan.share for plan in DISCARDING]
    assert shares == sorted(shares, reverse=True) and shares[0] == 1


def run_of(classes, n=20, **options):
    net = network(classes)
    x, y = images(net, n)
    return module._Run(problem(net, x, y, "linf:0.01"), AttackOptions.of(attack="a3", **options))


@pytest.mark.parametrize("classes, scale", [(2, 1), (10, 1), (100, 10)])
def test_a_warm_start_leads_where_the_second_round_succeeded(classes, scale):
    run, rows = run_of(classes), torch.arange(5, 15)
    first = run._direction(rows, 1)
    assert first.shape == (10, classes) and first.abs().max() <= 1 and len(first.unique()) == 10 * classes
    y = run.problem.y[rows][:, None]
    for own, wrong, low, high in ((1, 1, -0.1, 0.5), (-1, 1, -0.5, 0.1), (-1, -1, -0.5, 0.1)):
        run.toward_own, run.toward_wrong = own, wrong
        for climbs in range(3):
            run.climbs = climbs
            w = run._direction(rows, 2)
            assert (w.gather(1, y) >= low * scale - 1e-5).all() and (w.gather(1, y) <= high * scale + 1e-5).all()
            target = run.ranking[rows, climbs % min(classes - 1, 9)][:, None]
            assert torch.allclose(w.gather(1, target), torch.tensor(0.8 * wrong * scale)) and (target != y).all()
    assert (run._direction(rows, 12).gather(1, target) > 0).all()  # whatever was learnt


def test_the_likeliest_wrong_class_comes_first():
    run = run_of(10)
    with torch.no_grad():
        logits = run.problem.model(run.problem.x)
    assert torch.equal(run.ranking, logits.argsort(dim=1, descending=True)[:, 1:])  # labels are the model's own


def test_what_is_far_from_falling_is_discarded():
    run = run_of(4, n=20, least=2)
    run.gap = torch.arange(20).flip(0) * -0.1  # image 19 is nearest
    run.alive[18] = False
    assert run.nearest(0.2).tolist() == [19, 17, 16, 15] and run.nearest(0.01).tolist() == [19, 17]
    assert sorted(run.nearest(1).tolist()) == [*range(18), 19]
    run.alive[:] = False
    assert len(run.nearest(1)) == 0
    assert [kept(n, 0.3, 10) for n in (3, 20, 100)] == [3, 10, 30]


def test_warm_starts_are_preferred_where_enough_fell_to_them():
    run = run_of(4)
    assert not run.warm_starts_suffice()
    run.second, run.warm_falls = 40, 1
    assert not run.warm_starts_suffice()
    run.warm_falls = 2
    assert run.warm_starts_suffice()


def test_directions_are_learnt_from_the_second_round_alone():
    run = run_of(10, n=30)
    run.problem = run.problem._replace(threat=Threat("linf", 0.1))
    rows = torch.arange(30)
    for number, learns in ((0, False), (1, True), (2, False)):
        run.alive[:] = True
        before = run.toward_own, run.toward_wrong
        run.attack(rows, number, DISCARDING[number])
        assert not run.alive.all() and (before != (run.toward_own, run.toward_wrong)) == learns
    run.toward_own = run.toward_wrong = 0.0
    w = torch.arange(20.0).view(2, 10)
    run._learn(rows[:2], w, torch.tensor([3, 5]))
    assert run.toward_wrong == 3 + 15 and run.toward_own == float(run.problem.y[0] + 10 + run.problem.y[1])


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_climb_is_projected_steps_and_gives_the_best_point(norm):
    net, threat, sizes = network(10), Threat(norm, 0.003 if norm == "linf" else 0.02), [0.01, 0.002, 0.01]
    x, y = images(net, 40)
    calls = []

    def gradient(x_adv, rows, number):
        calls.append((len(rows), number))
        return input_gradient(net, x_adv, y[rows], lambda z, y: -margin(z, y))

    found = climb(net, x, y, x, threat, sizes, gradient, "fp32")
    for row in range(40):  # each image alone, by hand
        point, own, best, fell = x[row : row + 1], y[row : row + 1], -math.inf, 4
        for number in range(4):
            logits, uphill = input_gradient(net, point, own, lambda z, y: -margin(z, y))
            gap = -margin(logits, own).item()
            best = max(best, gap)
            if gap > 1e-3 * logits.abs().max():
                fell = number
                break
            if number < 3:
                point = project(x[row : row + 1], step(point, uphill, sizes[number], norm), threat)
        assert found.fell[row] == fell and np.isclose(found.gap[row], best, atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(-margin(net(found.x_adv), y), found.gap, atol=1e-5)
        assert torch.equal(net(found.x_adv).argmax(1), found.label)
    assert 0 < (found.fell <= 3).sum() < 40 and [number for _, number in calls] == [0, 1, 2] and calls[0][0] == 40


def test_passes_by_hand():
    one = AttackOptions.of(attack="a3", rounds=1)
    assert a3_passes(one, 30, 1.0, 10) == 30 + 30 * (2 * 8 + 1)
    assert a3_passes(AttackOptions.of(attack="a3", rounds=3), 30, 0.1, 10) == 30 + 30 * (17 + 31 + 31)
    four = AttackOptions.of(attack="a3", rounds=4, restarts=2, least=5, chunk=15)
    # two chunks of 15, of which 3 survive; two climbs of warm starts cost more than one long climb
    late = max(2 * 3 * (2 * 15 + 1), 3 * (2 * 32 + 1))
    assert a3_passes(four, 30, 0.2, 10) == 30 + 2 * (15 * (17 + 31 + 31) + late)


def test_more_rounds_and_restarts_break_no_less():
    net = network(10, seed=3)
    x, y = images(net, n=60)
    given = {"threat": "linf:0.006", "attack": "a3"}
    found = [attack(net, x, y, rounds=n, restarts=1, **given)[0]["broken"] for n in (1, 3, 6)]
    assert all((more | ~less).all() for less, more in pairwise(found)) and 0 < found[0].mean() < 1


@pytest.fixture(scope="module")
def trained():
    """A network that has learnt noisy patterns, 60 images of them, and a threat that breaks some."""
    torch.manual_seed(0)
    patterns = torch.rand((10, 1, 8, 8), generator=key(1))
    y = torch.arange(600) % 10
    x = (patterns[y] / 2 + torch.rand((600, 1, 8, 8), generator=key(2)) / 2).clamp(0, 1)
    net = nn.Sequential(nn.Conv2d(1, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten())
    net.append(nn.Linear(16, 10))
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(150):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimiser.step()
    return net.eval(), x[:150], y[:150]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a3", "automated"])
@pytest.mark.parametrize("threat", ["linf:0.06", "l2:0.3"])
def test_as_strong_as_long_gradient_attacks(name, threat, trained):
    net, x, y = trained
    options = {"l2_step": "0.05", "attack": "pgd"}
    short, long = (
        attack(net, x, y, threat, steps=n, restarts=r, **options)[0]["broken"] for n, r in ((10, 1), (50, 5))
    )
    found = attack(net, x, y, threat, attack=name)[0]["broken"]
    assert 0.1 < short.mean() < 0.9
    assert found.sum() >= short.sum() and found.sum() >= long.sum() - 1
