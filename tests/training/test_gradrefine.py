"""GradRefine against a plain version, its threshold, ties and groups, and the sum without its sign filter."""

import numpy as np
import pytest
import torch
from support.training import make, quick, refine_plainly

from dfshield.core.rng import generator
from dfshield.training.gradrefine import GradRefine


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


# --- without the sign filter ----------------------------------------------------------------------------------------


def test_without_the_sign_filter_nothing_is_masked_at_tau_zero():
    """Section J of the paper: at τ = 0 conflicting gradients are allowed, so B mini-batches simply add up."""
    column = [[1.0, -2.0, 0.0], [3.0, 5.0, 0.0], [-0.5, -1.0, 0.0]]  # two of three up; two of three down; nothing
    found, share = refine([[*part, 0.0, 0.0, 0.0] for part in column], 3, 0.0, sign_filter=False)
    assert found.tolist()[:3] == [3.5, 2.0, 0.0] and share == 1.0
    mean, _ = refine([[*part, 0.0, 0.0, 0.0] for part in column], 3, 0.0, sign_filter=False, reduction="mean")
    assert mean.tolist()[:2] == pytest.approx([3.5 / 3, 2 / 3])
    filtered, _ = refine([[*part, 0.0, 0.0, 0.0] for part in column], 3, 0.0)
    assert filtered.tolist()[:3] == [4.0, -3.0, 0.0]


@pytest.mark.parametrize("tie", ["zero", "all"])
def test_without_the_sign_filter_ties_add_up(tie):
    found, share = refine([[1.0, 0, 0, 0], [-3.0, 0, 0, 0]], 2, 0.0, sign_filter=False, tie=tie)
    assert found[0] == -2.0 and share == 1.0


def test_without_the_sign_filter_the_threshold_still_masks():
    """Of three mini-batches, two up and one down is |s| = 1 < 0.5·3; three up is 3."""
    column = [[1.0, 1.0], [3.0, 2.0], [-0.5, 3.0]]
    found, _ = refine([[*part, 0.0, 0.0, 0.0] for part in column], 3, 0.5, sign_filter=False)
    assert found.tolist()[:2] == [0.0, 6.0]


def test_the_trainer_hands_the_filter_on_and_leaves_its_default_undescribed():
    made = make(quick(aggregate=5, tau=0, sign_filter=False, holdout=0), n=50)
    gradients = [made.gradients(torch.arange(i, i + 10), generator("a", i))[1] for i in range(0, 50, 10)]
    for part in gradients:
        made.refiner.add(part)
    refined, share = made.refiner.refine()
    assert share == 1.0
    for found, *parts in zip(refined, *gradients, strict=True):
        torch.testing.assert_close(found, torch.stack(parts).sum(0), rtol=1e-4, atol=1e-5)
    assert "sign_filter" not in quick().described() and quick(sign_filter=False).described()["sign_filter"] is False
