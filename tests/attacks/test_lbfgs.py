"""Batched projected L-BFGS against SciPy's and against closed forms."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize, rosen, rosen_der
from support.attacked import key

from dfshield.attacks.budget import LINE_SEARCH
from dfshield.attacks.lbfgs import minimise


def rosenbrock(x):
    return (100 * (x[:, 1:] - x[:, :-1] ** 2) ** 2 + (1 - x[:, :-1]) ** 2).sum(1)


@pytest.mark.parametrize("top", [2.0, 0.5])
def test_where_it_ends_scipys_goes_no_further(top):
    start = 2 * torch.rand((5, 4), generator=key(), dtype=torch.float64) - 1
    start = start.clamp(-2, top)
    low, high = torch.full_like(start, -2), torch.full_like(start, top)
    found = minimise(lambda x, rows: rosenbrock(x), start, low, high, 500, 10, 0)
    for own, first in zip(found.numpy(), start.numpy(), strict=True):
        theirs = minimize(rosen, own, jac=rosen_der, method="L-BFGS-B", bounds=[(-2, top)] * 4)
        assert theirs.fun - 1e-9 <= rosen(own) <= theirs.fun + 1e-6 < rosen(first)
    assert (found >= low).all() and (found <= high).all()


def test_problems_do_not_touch_one_another():
    centre = torch.randn((6, 3), generator=key(1))
    low, high = -torch.ones(6, 3), torch.ones(6, 3)

    def distance(x, rows):
        return (torch.arange(1.0, 4.0) * (x - centre[rows]) ** 2).sum(1)

    found = minimise(distance, torch.zeros(6, 3), low, high, 50, 5, 0)
    assert torch.allclose(found, centre.clamp(-1, 1), atol=1e-3)
    alone = minimise(lambda x, rows: distance(x, rows + 4), torch.zeros(1, 3), low[:1], high[:1], 50, 5, 0)
    assert torch.equal(alone[0], found[4])


def test_what_it_asks_for_is_what_the_cost_model_counts():
    asked = []

    def function(x, rows):
        asked.append(2 if torch.is_grad_enabled() else 1)
        return rosenbrock(x)

    minimise(function, torch.zeros(1, 4), -torch.ones(1, 4) * 2, torch.ones(1, 4) * 2, 7, 5, 0)
    assert 7 * 3 <= sum(asked) <= 2 + 7 * (2 + LINE_SEARCH)


def test_a_flat_or_hopeless_function_ends_at_the_start():
    start = torch.rand((2, 3), generator=key())
    box = torch.zeros(2, 3), torch.ones(2, 3)
    for function in (lambda x, rows: 0 * x.sum(1), lambda x, rows: x.sum(1) * torch.nan):
        assert torch.equal(minimise(function, start, *box, 10, 5, 0), start)
    assert np.isfinite(minimise(lambda x, rows: x.sum(1), start, *box, 10, 5, 0).numpy()).all()
