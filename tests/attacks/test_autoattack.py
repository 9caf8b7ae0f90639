"""AutoAttack: every number of classes and image shape, and the verdicts of the reference implementation."""

import numpy as np
import pytest
import torch
from pyautoattack import AutoAttack
from support.attacked import attack, images, network, norms, problem, robust, small_budget
from torch import nn

from dfshield.attacks import autoattack, pyautoattack, targets
from dfshield.attacks.autoattack import Budget
from dfshield.core.threat import parse_threat
from dfshield.options import AttackOptions

CPU = torch.device("cpu")


@pytest.fixture
def small(monkeypatch):
    small_budget(monkeypatch)


@pytest.mark.parametrize("classes, version", [*((c, "standard") for c in (2, 3, 4, 5, 9, 10, 11)), (11, "paper")])
@pytest.mark.parametrize("threat", ["linf:0.02", "l2:0.2"])
def test_ensemble_runs_for_every_number_of_classes(classes, threat, version, small, capsys):
    net = network(classes)
    x, y = images(net, n=8)
    rows, _ = attack(net, x, y, threat, attack="autoattack", version=version)
    assert np.array_equal(rows["broken"], rows["prediction"] != y.numpy()) and rows["broken"].any()
    assert rows["broken"].mean() >= 1 - robust(net, x, y, threat, attack="pgd")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "classes, version, shape, threat, note",
    [
        (10, "standard", (3, 32, 32), "linf:8/255", ""),
        (100, "standard", (3, 32, 32), "l2:0.5", ""),
        (100, "paper", (3, 32, 32), "linf:8/255", ""),
        (9, "standard", (3, 28, 28), "l2:0.5", "C=9: 8 targets"),
        (7, "paper", (3, 28, 28), "linf:8/255", ""),
        (3, "paper", (3, 28, 28), "linf:8/255", "C=3: margin for DLR"),
        (2, "standard", (3, 28, 28), "linf:8/255", "C=2: 1 target; margin for DLR"),
        (10, "standard", (1, 14, 14), "linf:8/255", ""),
        (10, "standard", (1, 14, 14), "l2:0.5", "square on 15x15"),
        (4, "standard", (1, 28, 32), "l2:0.5", "C=4: 3 targets; square on 32x32"),
    ],
)
def test_protocol_note_says_what_departs_from_the_definition(classes, version, shape, threat, note):
    options = AttackOptions.of(version=version, threat=threat)
    ensemble = autoattack.autoattack(options, shape, classes)
    assert ensemble.note == note
    assert [c.name for c in ensemble.components] == ["quick", "apgd-ce", "apgd-t", "fab-t", "square"]
    assert ensemble.components[2].attack.targets == (classes - 1 if version == "paper" else min(9, classes - 1))


def test_default_budget_is_autoattacks():
    reference = AutoAttack(nn.Identity(), eps=0.1, seed=0)
    assert reference.apgd.n_iter == reference.apgd_targeted.n_iter == reference.fab.n_iter == Budget().iterations
    assert reference.square.n_queries == Budget().queries
    assert reference.apgd_targeted.n_target_classes == reference.fab.n_target_classes == autoattack.TARGETS


def reference(net, threat, seed, budget):
    """pyautoattack's own ensemble with a smaller budget."""
    ensemble = AutoAttack(net, norm=pyautoattack.NORMS[threat.norm], eps=threat.eps, seed=seed, version="standard")
    ensemble.fab.n_iter, ensemble.square.n_queries = budget.iterations, budget.queries
    for part in (ensemble.apgd, ensemble.apgd_targeted):
        part.n_iter = part.n_iter_orig = budget.iterations
        part.n_iter_2, part.n_iter_min, part.size_decr = (max(int(s * part.n_iter), 1) for s in (0.22, 0.06, 0.03))
    ensemble.fab.targeted = True  # which their loop sets, too
    return ensemble


@pytest.mark.parametrize("classes, seed", [(10, 0), (11, 7)])
@pytest.mark.parametrize("threat", ["linf:0.02", "l2:0.15"])
def test_verdicts_equal_those_of_the_reference(classes, threat, seed, monkeypatch):
    budget = Budget(iterations=10, queries=100)
    monkeypatch.setattr(autoattack, "BUDGET", budget)
    net = network(classes, seed=seed)
    x, y = images(net, n=32)
    y[0] = (y[0] + 1) % classes
    rows, _ = attack(net, x, y, threat, attack="autoattack", seed=seed, reference=True)
    _, prediction = reference(net, parse_threat(threat), seed, budget).run_standard_evaluation(x, y, batch_size=32)
    assert len(np.unique(rows["component"])) >= 3  # broken by different components, and survivors
    assert np.array_equal(rows["broken"], (prediction != y).numpy())


@pytest.mark.parametrize("threat", ["linf:0.02", "l2:0.15"])
def test_each_component_finds_the_references_images(threat, monkeypatch):
    """One by one: in the ensemble the first attacks leave little to the others."""
    small_budget(monkeypatch, 10, 100)
    net = network(10)
    x, y = images(net, n=32)
    options, limit = AttackOptions.of(threat=threat, reference=True), parse_threat(threat)
    theirs = reference(net, limit, 5, autoattack.BUDGET)
    parts = autoattack.autoattack(options, (1, 8, 8), 10).components
    for part, other in zip(parts, (theirs.apgd, theirs.apgd_targeted, theirs.fab, theirs.square), strict=True):
        x_adv = part.attack(problem(net, x, y, threat, 5), options)
        assert not torch.equal(x_adv, x)
        with torch.no_grad():
            assert torch.equal(x_adv, other.perturb(x, y)), part.name


@pytest.mark.parametrize("threat", ["linf:0.02", "l2:0.15"])
@pytest.mark.parametrize("chunk", [1, 20, 500])
def test_many_targets_at_once_break_what_fab_breaks_one_by_one(threat, chunk, monkeypatch):
    small_budget(monkeypatch, 10, 100)
    net = network(10)
    x, y = images(net, n=32)
    options, limit = AttackOptions.of(threat=threat, chunk=chunk), parse_threat(threat)
    part = autoattack.autoattack(options, (1, 8, 8), 10).components[-2]
    with torch.no_grad():
        ours = part.attack(problem(net, x, y, threat), options)
        theirs = reference(net, limit, 0, autoattack.BUDGET).fab.perturb(x, y)
        broken = net(theirs).argmax(1) != y
        assert 0 < broken.sum() < len(x) and torch.equal(net(ours).argmax(1) != y, broken)


def test_targets_come_by_rank_until_an_image_is_broken():
    """Ten images that fall to their targets of rank 1 to 10, of which the last is beyond the nine asked for."""
    net, n = network(11), 10
    x, y = images(net, n)
    with torch.no_grad():
        ranking = net(x).argsort(dim=1, descending=True)
    rows, passes = [], []

    def run(xs, ys, target):
        which = (xs[:, None] == x).flatten(2).all(2).int().argmax(1)
        assert torch.equal(ys, y[which])
        rank = (ranking[which] == target[:, None]).int().argmax(1)
        rows.extend(zip(which.tolist(), rank.tolist(), strict=True))
        passes.append(len(xs))
        return xs + rank[:, None, None, None], rank == which + 1

    for reference, chunk, expected in (
        (True, 500, [10, 9, 8, 7, 6, 5, 4, 3, 2]),
        (False, 1, [10, 9, 8, 7, 6, 5, 4, 3, 2]),
        (False, 27, [10, 27, 24, 2]),
        (False, 500, [10, 72]),
    ):
        rows.clear(), passes.clear()
        options = AttackOptions.of(reference=reference, chunk=chunk)
        with torch.no_grad():
            x_adv = targets.attack_targets(9, run, net, x, y, options)
        assert passes == expected
        assert len(set(rows)) == len(rows) and {(i, r) for i in range(n) for r in range(1, min(i + 1, 9) + 1)} <= set(
            rows
        )
        moved = (x_adv - x).amax((1, 2, 3)).round().tolist()
        assert moved == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_version_rand_is_apgd_on_the_mean_of_twenty_passes(classes, small):
    net = network(classes)
    x, y = images(net, n=12)
    options = AttackOptions.of(threat="linf:0.02", version="rand")
    ensemble = autoattack.autoattack(options, (1, 8, 8), classes)
    note = "C=2: margin for DLR; 6 iterations" if classes == 2 else "6 iterations"
    assert (ensemble.protocol, ensemble.note) == ("aa-rand", note)
    assert [c.name for c in ensemble.components] == ["quick", "apgd-ce", "apgd-dlr"]
    passes = []
    net.register_forward_pre_hook(lambda module, inputs: passes.append(1))
    for eot, expected in ((1, 20), (5, 1)):  # an eot of one's own is around the model already
        passes.clear()
        part = autoattack.autoattack(options.model_copy(update={"eot": eot}), (1, 8, 8), classes).components[1]
        with torch.no_grad():
            part.attack(problem(net, x, y, "linf:0.0001"), options)
        assert len(passes) == expected * (autoattack.BUDGET.iterations + 1)
    rows, _ = attack(net, x, y, "linf:0.05", attack="autoattack", version="rand")
    assert rows["broken"].any()


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 14, 14), (1, 6, 9), (3, 9, 6), (2, 1, 1), (1, 1, 30), (1, 3, 3)])
@pytest.mark.parametrize("threat", ["linf:0.01", "l2:0.05"])
@pytest.mark.parametrize("n", [1, 3])
def test_components_take_single_images_of_any_shape(shape, threat, n, small):
    net = network(4, shape)
    x, y = images(net, n, shape)
    limit = parse_threat(threat)
    options = AttackOptions.of(threat=threat)
    for part in autoattack.autoattack(options, shape, 4).components:
        x_adv = part.attack(problem(net, x, y, threat), options)
        assert x_adv.shape == x.shape
        assert norms(x_adv - x, limit.norm).max() <= limit.eps + 1e-5


@pytest.mark.parametrize("height", range(1, 40))
@pytest.mark.parametrize("width", [None, 7, 33])
def test_squares_l2_start_fits_on_its_canvas(height, width):
    side = pyautoattack.canvas(height, width or height)
    canvas = torch.rand(1, 1, *((side, side) if side else (height, width or height)))
    model = lambda x: torch.stack((x.flatten(1).sum(1), -x.flatten(1).sum(1)), 1) + torch.tensor([99.0, 0])  # noqa: E731
    attack = pyautoattack.SquareAttack(model, norm="L2", eps=0.1, n_queries=1, seed=0, device=CPU)
    assert attack.perturb(canvas, torch.tensor([0])).shape == canvas.shape
    if side:
        assert side - max(height, width or height, 5) <= 3
