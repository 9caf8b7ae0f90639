"""Attacks against models whose robustness is known, the ensemble against its reference, and the attack stage."""

import itertools
import shutil

import numpy as np
import pytest
import torch
from pyautoattack import AutoAttack
from torch import nn

from dfshield import registry
from dfshield.attacks import autoattack, base, fgsm, pgd
from dfshield.attacks.autoattack import Budget
from dfshield.attacks.base import Component, Ensemble, differentiable, frozen, input_gradient
from dfshield.core.errors import InputError
from dfshield.core.lp import from_half, project, random_start, step, to_half
from dfshield.core.threat import Threat, parse_threat
from dfshield.evaluation import attack as evaluate
from dfshield.evaluation.crafting import FastModels
from dfshield.evaluation.ledger import read_ledger
from dfshield.models.checkpoints import Card, build_network, load_checkpoint, save_checkpoint
from dfshield.models.classifier import Classifier
from dfshield.options import AttackOptions
from dfshield.report.rows import flags_of, metric_of

CPU = torch.device("cpu")
THREATS = (Threat("linf", 8 / 255), Threat("linf", 0.25), Threat("l2", 128 / 255))


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def small_budget(monkeypatch):
    monkeypatch.setattr(autoattack, "BUDGET", Budget(iterations=6, queries=25))


def norms(delta, norm):
    return delta.flatten(1).abs().amax(1) if norm == "linf" else delta.flatten(1).norm(dim=1)


def key(seed=0):
    return torch.Generator().manual_seed(seed)


class Linear(nn.Module):
    """Two classes; class 1 where w·x + b > 0."""

    def __init__(self, size=16, seed=0):
        super().__init__()
        self.w = nn.Parameter(torch.randn(size, generator=key(seed)))
        self.b = nn.Parameter(-self.w.detach().sum() / 2)

    def score(self, x):
        return x.flatten(1) @ self.w + self.b

    def forward(self, x):
        return torch.stack((-self.score(x) / 2, self.score(x) / 2), dim=1)


def network(classes, shape=(1, 8, 8), seed=0):
    """A random network that prefers no class on uniform noise."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(shape[0], 8, 3, padding=1), nn.ReLU(), nn.Flatten())
    net.append(nn.Linear(8 * shape[1] * shape[2], classes))
    with torch.no_grad():
        net[-1].bias -= net(torch.rand(500, *shape)).mean(0)
    return net.eval()


def images(net, n=24, shape=(1, 8, 8), seed=1):
    """Noise, labelled by the network itself."""
    x = torch.rand((n, *shape), generator=key(seed))
    with torch.no_grad():
        return x, net(x).argmax(1)


def attack(net, x, y, threat="linf:8/255", ensemble=None, folder=None, **options):
    options = AttackOptions(threat=threat, **options)
    ensemble = ensemble or evaluate.plan(options, tuple(x.shape[1:]), net(x[:1]).shape[1])
    with frozen(net):
        return evaluate.attack_all(net, x, y, parse_threat(threat), options, ensemble, CPU, folder)


def robust(net, x, y, threat="linf:8/255", **options):
    return 1 - attack(net, x, y, threat, **options)[0]["broken"].mean()


# --- geometry ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threat", THREATS)
def test_projection_and_stored_form_stay_within_eps_and_the_unit_box(threat):
    x = torch.rand((10_000, 1, 4, 4), generator=key(1))
    wild = x + torch.randn(x.shape, generator=key(2))
    for image in (project(x, wild, threat), from_half(x, to_half(x, wild, threat), threat)):
        assert norms(image - x, threat.norm).max() <= threat.eps + 1e-6
        assert image.min() >= 0 and image.max() <= 1


@pytest.mark.parametrize("threat", THREATS)
def test_projection_leaves_points_of_the_ball_alone(threat):
    x = 0.3 + 0.4 * torch.rand((50, 1, 4, 4), generator=key(1))
    inside = random_start(x, threat, key(2))
    assert torch.allclose(project(x, inside, threat), inside, atol=1e-7)


def test_stored_form_restores_corners_of_the_linf_ball_exactly():
    x = torch.rand((2000, 1, 4, 4), generator=key(1))
    threat = Threat("linf", 4 / 255)
    corner = (x + threat.eps * torch.randn(x.shape, generator=key(2)).sign()).clamp(0, 1)
    half = to_half(x, corner, threat)
    assert half.dtype == torch.float16
    assert torch.equal(from_half(x, half, threat), corner)


def test_stored_form_of_pixels_that_are_not_finite_is_no_perturbation():
    x = torch.rand((2, 1, 2, 2), generator=key(1))
    assert not to_half(x, torch.full_like(x, torch.nan), THREATS[0]).any()


@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e-38])
def test_steps_have_their_length_whatever_the_scale_of_the_gradient(scale):
    x, grad = torch.rand((4, 1, 8, 8), generator=key(1)), torch.randn((4, 1, 8, 8), generator=key(2))
    assert torch.allclose(norms(step(x, grad * scale, 0.1, "l2") - x, "l2"), torch.full((4,), 0.1), atol=1e-5)
    assert torch.allclose((step(x, grad * scale, 0.1, "linf") - x).abs(), torch.tensor(0.1), atol=1e-6)
    for norm in ("linf", "l2"):
        assert torch.equal(step(x, torch.zeros_like(x), 0.1, norm), x)


def test_random_starts_fill_the_ball():
    x = torch.full((4000, 1, 4, 4), 0.5)
    noise = random_start(x, Threat("linf", 0.1), key()) - x
    assert noise.abs().max() <= 0.1 + 1e-6 and abs(noise.std() - 0.1 / 3**0.5) < 1e-3
    radius = norms(random_start(x, Threat("l2", 0.4), key()) - x, "l2")
    assert radius.max() <= 0.4 + 1e-6 and abs(radius.mean() - 0.2) < 0.01 and radius.min() < 0.01
    assert abs((random_start(x, Threat("linf", 0.1), key(), "normal") - x).std() - 0.001) < 1e-4
    assert torch.equal(random_start(x, Threat("l2", 0.1), key(3)), random_start(x, Threat("l2", 0.1), key(3)))


# --- models with known robustness -------------------------------------------------------------------------------


@pytest.mark.parametrize("norm, eps", [("linf", "0.02"), ("linf", "0.05"), ("l2", "0.1"), ("l2", "0.2")])
@pytest.mark.parametrize("name", ["fgsm", "pgd", "autoattack"])
def test_linear_model_has_its_closed_form_robust_accuracy(name, norm, eps, small_budget):
    model = Linear()
    x = 0.25 + 0.5 * torch.rand((400, 1, 4, 4), generator=key(5))  # away from the borders of the box
    x, score = x, model.score(x).detach()
    y = (score > 0).long()
    y[::10] = 1 - y[::10]  # clean errors
    dual = model.w.detach().abs().sum() if norm == "linf" else model.w.detach().norm()
    distance = torch.where(y == 1, score, -score) / dual
    clear = (distance.abs() - float(eps)).abs() > 0.01 * float(eps)  # where rounding does not decide
    x, y, distance = x[clear], y[clear], distance[clear]
    x = x[:60] if name == "autoattack" else x
    rows, _ = attack(model, x, y[: len(x)], f"{norm}:{eps}", attack=name, l2_step="0.05", steps=20)
    expected = (distance[: len(x)] <= float(eps)).numpy()
    assert 0.2 < expected.mean() < 0.9
    assert np.array_equal(rows["broken"], expected)
    assert np.allclose(rows["margin"][rows["component"] == 1], (distance * dual)[: len(x)][rows["component"] == 1])


@pytest.mark.parametrize("name", ["fgsm", "pgd", "autoattack"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_robust_accuracy_falls_from_clean_to_nothing_as_eps_grows(name, norm, small_budget):
    net = network(4)
    x, y = images(net)
    y[:3] = (y[:3] + 1) % 4
    sizes = ("0", "0.01", "0.03", "0.1", "0.9") if norm == "linf" else ("0", "0.05", "0.15", "0.5", "8")
    shares = [robust(net, x, y, f"{norm}:{eps}", attack=name, l2_step="0.3") for eps in sizes]
    assert shares[0] == robust(net, x, y, attack="clean") == 21 / 24
    assert all(a >= b for a, b in itertools.pairwise(shares)) and len(set(shares)) > 2
    if name != "fgsm":
        assert shares[-1] == 0


def test_iterative_attack_is_no_weaker_than_one_step_and_restarts_only_help():
    net = network(10, seed=3)
    x, y = images(net, n=200)
    one, ten = (attack(net, x, y, "linf:0.02", attack=a)[0]["broken"] for a in ("fgsm", "pgd"))
    assert ten.sum() >= one.sum() > 0
    first = attack(net, x, y, "linf:0.02", attack="pgd", steps=2)[0]["broken"]
    more = attack(net, x, y, "linf:0.02", attack="pgd", steps=2, restarts=4)[0]["broken"]
    assert (more | ~first).all() and more.sum() > first.sum()


def test_perturbations_are_within_eps_and_say_the_same_when_replayed(small_budget):
    net = network(10)
    x, y = images(net, n=30)
    for threat in ("linf:0.03", "l2:0.3"):
        for name in ("pgd", "autoattack"):
            rows, _ = attack(net, x, y, threat, attack=name)
            limit = parse_threat(threat)
            assert rows["perturbation"].dtype == np.float16 and len(rows["perturbation"]) > 0
            chosen = rows["perturbed_index"]
            image = from_half(x[chosen], torch.from_numpy(rows["perturbation"]), limit)
            assert norms(image - x[chosen], limit.norm).max() <= limit.eps + 1e-6
            assert image.min() >= 0 and image.max() <= 1
            logits = net(image).detach()
            assert (logits.argmax(1) != y[chosen]).all()
            own = logits[torch.arange(len(chosen)), y[chosen]]
            logits[torch.arange(len(chosen)), y[chosen]] = -torch.inf
            assert np.allclose(rows["margin"][chosen], own - logits.amax(1), atol=1e-5)
            assert np.array_equal(rows["prediction"][chosen], logits.argmax(1))


def test_an_attack_that_leaves_the_ball_is_cut_back_before_it_is_judged():
    model = Linear()
    x = 0.25 + 0.5 * torch.rand((100, 1, 4, 4), generator=key(5))
    y = (model.score(x) > 0).long()

    def cheat(model, x, y, threat, options, generator):
        return torch.where(y.view(-1, 1, 1, 1) == 1, torch.zeros_like(x), torch.ones_like(x)) * 5

    ensemble = Ensemble((Component("cheat", cheat),))
    rows, _ = attack(model, x, y, "linf:0.02", ensemble=ensemble)
    assert rows["broken"].mean() <= (model.score(x).abs() / model.w.abs().sum() <= 0.02).float().mean()


def test_gradients_of_parameters_and_the_mode_are_left_as_they_were(small_budget):
    net = network(4).train()
    x, y = images(net)
    before = torch.random.get_rng_state()
    options = AttackOptions()
    for part in (*autoattack.autoattack(options, (1, 8, 8), 4).components, Component("pgd", pgd.pgd)):
        part.attack(net, x, y, THREATS[0], options, key())
    assert all(p.grad is None and p.requires_grad for p in net.parameters()) and net.training
    assert torch.equal(torch.random.get_rng_state(), before)


def test_gradient_of_a_model_that_gives_none_is_zero():
    x = torch.rand(3, 1, 2, 2)
    cut = lambda x: torch.zeros(len(x), 4) + x.detach().sum()  # noqa: E731
    assert not input_gradient(cut, x, torch.zeros(3, dtype=torch.long))[1].any()
    out = differentiable(cut)(x.requires_grad_())
    assert torch.equal(out, cut(x)) and out.requires_grad


# --- the ensemble -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes, targets", [*((c, "standard") for c in (2, 3, 4, 5, 9, 10, 11)), (11, "paper")])
@pytest.mark.parametrize("threat", ["linf:0.02", "l2:0.2"])
def test_ensemble_runs_for_every_number_of_classes(classes, threat, targets, small_budget, capsys):
    net = network(classes)
    x, y = images(net, n=8)
    rows, _ = attack(net, x, y, threat, attack="autoattack", targets=targets)
    assert np.array_equal(rows["broken"], rows["prediction"] != y.numpy()) and rows["broken"].any()
    assert rows["broken"].mean() >= 1 - robust(net, x, y, threat, attack="pgd")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "classes, targets, shape, threat, note",
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
def test_protocol_note_says_what_departs_from_the_definition(classes, targets, shape, threat, note):
    options = AttackOptions(targets=targets, threat=threat)
    ensemble = autoattack.autoattack(options, shape, classes)
    assert ensemble.note == note
    assert [c.name for c in ensemble.components] == ["quick", "apgd-ce", "apgd-t", "fab-t", "square"]
    assert ensemble.components[2].attack.targets == (classes - 1 if targets == "paper" else min(9, classes - 1))


def test_default_budget_is_autoattacks():
    reference = AutoAttack(nn.Identity(), eps=0.1, seed=0)
    assert reference.apgd.n_iter == reference.apgd_targeted.n_iter == reference.fab.n_iter == Budget().iterations
    assert reference.square.n_queries == Budget().queries
    assert reference.apgd_targeted.n_target_classes == reference.fab.n_target_classes == autoattack.TARGETS


def reference(net, threat, seed, budget):
    """pyautoattack's own ensemble with a smaller budget."""
    ensemble = AutoAttack(net, norm=autoattack.NORMS[threat.norm], eps=threat.eps, seed=seed, version="standard")
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
    monkeypatch.setattr(autoattack, "BUDGET", Budget(iterations=10, queries=100))
    net = network(10)
    x, y = images(net, n=32)
    options, limit = AttackOptions(threat=threat, reference=True), parse_threat(threat)
    theirs = reference(net, limit, 5, autoattack.BUDGET)
    parts = autoattack.autoattack(options, (1, 8, 8), 10).components
    for part, other in zip(parts, (theirs.apgd, theirs.apgd_targeted, theirs.fab, theirs.square), strict=True):
        x_adv = part.attack(net, x, y, limit, options, key(5))
        assert not torch.equal(x_adv, x)
        with torch.no_grad():
            assert torch.equal(x_adv, other.perturb(x, y)), part.name


@pytest.mark.parametrize("threat", ["linf:0.02", "l2:0.15"])
@pytest.mark.parametrize("chunk", [1, 20, 500])
def test_many_targets_at_once_break_what_fab_breaks_one_by_one(threat, chunk, monkeypatch):
    monkeypatch.setattr(autoattack, "BUDGET", Budget(iterations=10, queries=100))
    net = network(10)
    x, y = images(net, n=32)
    options, limit = AttackOptions(threat=threat, chunk=chunk), parse_threat(threat)
    part = autoattack.autoattack(options, (1, 8, 8), 10).components[-2]
    with torch.no_grad():
        ours = part.attack(net, x, y, limit, options, key())
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
        options = AttackOptions(reference=reference, chunk=chunk)
        with torch.no_grad():
            x_adv = autoattack.attack_targets(9, run, net, x, y, options)
        assert passes == expected
        assert len(set(rows)) == len(rows) and {(i, r) for i in range(n) for r in range(1, min(i + 1, 9) + 1)} <= set(
            rows
        )
        moved = (x_adv - x).amax((1, 2, 3)).round().tolist()
        assert moved == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]


def test_square_on_remembered_logits_is_square(monkeypatch):
    monkeypatch.setattr(autoattack, "BUDGET", Budget(iterations=10, queries=600))
    monkeypatch.setattr(autoattack, "KEPT", 1000)  # so that they are forgotten on the way, too
    net = network(10)
    x, y = images(net, n=32)
    passed = []
    net.register_forward_pre_hook(lambda module, inputs: passed.append(len(inputs[0])))
    found = {}
    for reference in (True, False):
        passed.clear()
        options = AttackOptions(threat="linf:0.02", reference=reference)
        part = autoattack.autoattack(options, (1, 8, 8), 10).components[-1]
        found[reference] = part.attack(net, x, y, parse_threat("linf:0.02"), options, key()), sum(passed)
    torch.testing.assert_close(found[True][0], found[False][0], rtol=0, atol=1e-6)
    assert found[False][1] < found[True][1] / 2


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 14, 14), (1, 6, 9), (3, 9, 6), (2, 1, 1), (1, 1, 30), (1, 3, 3)])
@pytest.mark.parametrize("threat", ["linf:0.01", "l2:0.05"])
@pytest.mark.parametrize("n", [1, 3])
def test_components_take_single_images_of_any_shape(shape, threat, n, small_budget):
    net = network(4, shape)
    x, y = images(net, n, shape)
    limit = parse_threat(threat)
    options = AttackOptions(threat=threat)
    for part in autoattack.autoattack(options, shape, 4).components:
        x_adv = part.attack(net, x, y, limit, options, key())
        assert x_adv.shape == x.shape
        assert norms(x_adv - x, limit.norm).max() <= limit.eps + 1e-5


@pytest.mark.parametrize("height", range(1, 40))
@pytest.mark.parametrize("width", [None, 7, 33])
def test_squares_l2_start_fits_on_its_canvas(height, width):
    side = autoattack._canvas(height, width or height)
    canvas = torch.rand(1, 1, *((side, side) if side else (height, width or height)))
    model = lambda x: torch.stack((x.flatten(1).sum(1), -x.flatten(1).sum(1)), 1) + torch.tensor([99.0, 0])  # noqa: E731
    attack = autoattack.SquareAttack(model, norm="L2", eps=0.1, n_queries=1, seed=0, device=CPU)
    assert attack.perturb(canvas, torch.tensor([0])).shape == canvas.shape
    if side:
        assert side - max(height, width or height, 5) <= 3


# --- chunks, resuming, flags ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pgd", "autoattack"])
def test_a_chunks_result_does_not_depend_on_other_chunks(name, small_budget):
    net = network(10)
    x, y = images(net, n=24)
    options = {"threat": "linf:0.02", "attack": name, "chunk": 8}
    whole, _ = attack(net, x, y, **options)
    other = torch.cat((torch.rand(8, 1, 8, 8, generator=key(9)), x[8:]))
    changed, _ = attack(net, other, torch.cat(((y[:8] + 1) % 10, y[8:])), **options)
    for row in ("broken", "component", "margin", "prediction"):
        assert np.array_equal(whole[row][8:], changed[row][8:])
    tail = whole["perturbed_index"] >= 8
    assert np.array_equal(whole["perturbation"][tail], changed["perturbation"][changed["perturbed_index"] >= 8])


def test_randomness_differs_between_seeds_attacks_and_chunks():
    first = torch.rand(4, generator=evaluate.chunk_generator(0, "pgd", 1))
    for other in ((1, "pgd", 1), (0, "fgsm", 1), (0, "pgd", 2), (0, "pgd", 0)):
        assert not torch.equal(first, torch.rand(4, generator=evaluate.chunk_generator(*other)))
    assert torch.equal(first, torch.rand(4, generator=evaluate.chunk_generator(0, "pgd", 1)))


def test_no_attack_sees_an_image_that_is_already_broken():
    net = network(4)
    x, y = images(net)
    y[:2] = (y[:2] + 1) % 4
    seen = []

    def spy(model, x, y, threat, options, generator):
        seen.append(len(x))
        return fgsm.fgsm(model, x, y, threat, options, generator)

    ensemble = Ensemble((Component("a", spy), Component("b", spy)))
    rows, _ = attack(net, x, y, "linf:0.03", ensemble=ensemble)
    assert seen == [22, 22 - (rows["component"] == 2).sum()] and 0 < seen[1] < 22


@pytest.fixture(scope="module")
def trained():
    """A BatchNorm network and images that it classifies with margins of all sizes."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2))
    net += nn.Sequential(nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    x = torch.rand((300, 1, 8, 8), generator=key(4))
    net(x)  # running statistics
    net.eval()
    with torch.no_grad():
        net[-1].bias -= net(x).mean(0)
        return net, x, net(x).argmax(1)


def test_images_and_networks_of_any_memory_layout_are_attacked(small_budget):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)).eval()
    x = torch.rand((6, 3, 8, 8), generator=key()).contiguous(memory_format=torch.channels_last)
    y = net(x).argmax(1)
    plain = attack(net, x.contiguous(), y, "linf:0.01", attack="autoattack")[0]["component"]
    net.to(memory_format=torch.channels_last)
    assert np.array_equal(attack(net, x, y, "linf:0.01", attack="autoattack")[0]["component"], plain)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["pgd", "autoattack"])
def test_quick_crafting_breaks_no_fewer_images_than_the_reference(name, precision, trained, monkeypatch):
    monkeypatch.setattr(autoattack, "BUDGET", Budget(iterations=10, queries=50))
    net, x, y = trained
    options = {"threat": "linf:0.01", "attack": name, "steps": 10}
    slow = attack(net, x, y, reference=True, **options)[0]["broken"]
    fast = attack(net, x, y, precision=precision, **options)[0]["broken"]
    assert 0.2 < slow.mean() < 0.9
    assert (slow & ~fast).sum() <= 2 and fast.sum() >= slow.sum() - 1


def test_crafting_takes_no_step_on_a_broken_image_and_verdicts_come_from_the_model_itself(trained):
    net, x, y = trained
    steps = [0, 0]

    def count(reference):
        def forward(module, inputs):
            steps[reference] += len(inputs[0])

        return forward

    for reference in (False, True):
        crafting = FastModels(net, AttackOptions(reference=reference))
        assert (crafting.fp32 is net) == reference
        handle = crafting.bf16.register_forward_pre_hook(count(reference))
        options = AttackOptions(threat="linf:0.1", reference=reference)
        pgd.pgd(crafting.bf16, x, y, parse_threat(options.threat), options, key())
        handle.remove()
    assert steps[1] == 10 * len(x) and steps[0] < steps[1] / 3  # one restart: its last points are left to the judge


class Noisy(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x + 0.05 * torch.randn_like(x))


class Quantised(Noisy):
    def forward(self, x):
        return self.net((x * 8).round() / 8)


class Constant(Noisy):
    def forward(self, x):
        with torch.no_grad():
            return self.net(x)


@pytest.mark.parametrize(
    "wrap, flag",
    [
        (lambda net: net, None),
        (Noisy, "randomised"),
        (lambda net: nn.Sequential(net, nn.Softmax(1)), "softmax-outputs"),
        (Quantised, "zero-gradients"),
        (Constant, "zero-gradients"),
    ],
)
def test_suspicious_models_are_flagged_and_do_not_crash_the_ensemble(wrap, flag, small_budget):
    net = network(4)
    x, y = images(net)
    _, flags = attack(wrap(net).eval(), x, y, "linf:0.02", attack="autoattack")
    assert (flag in flags) if flag else flags == ()
    assert attack(wrap(net).eval(), x, y, attack="clean")[1] == ()


@pytest.mark.parametrize("count, flagged", [(1, False), (2, True)])
def test_one_image_that_square_breaks_is_no_sign(count, flagged):
    net = network(4)
    x, y = images(net, n=32)
    x, y = x[y.argsort()], y.sort()[0]

    def square(model, x, y, threat, options, generator):
        return torch.cat([x[-1:].expand(count, -1, -1, -1), x[count:]])  # another class

    parts = Ensemble((Component("apgd-ce", base.clean), Component("square", square)))
    everywhere = parse_threat("linf:1")
    rows, flags = evaluate.attack_all(net, x, y, everywhere, AttackOptions(), parts, torch.device("cpu"), None)
    assert rows["broken"].sum() == count and (flags == ("square-broke-after-white-box",)) is flagged


def test_square_that_beats_white_box_attacks_is_flagged(monkeypatch):
    monkeypatch.setattr(autoattack, "BUDGET", Budget(iterations=3, queries=200))
    net = network(4)
    x, y = images(net)
    rows, flags = attack(Constant(net), x, y, "linf:0.06", attack="autoattack")
    assert (rows["component"] == 6).any() and "square-broke-after-white-box" in flags
    assert "square-broke-after-white-box" not in attack(net, x, y, "linf:0.06", attack="autoattack")[1]


def test_logits_that_are_not_finite_are_refused():
    net = network(4)
    net[-1].bias.data[0] = torch.nan
    x = torch.rand(4, 1, 8, 8)
    with pytest.raises(InputError, match="not finite"):
        attack(net, x, torch.zeros(4, dtype=torch.long), attack="pgd")


# --- the stage --------------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    model = Classifier(build_network("cnn-s", (1, 8, 8), 10), (0.3,), (0.38,)).eval()
    card = Card("student", "digits", "cnn-s", (1, 8, 8), 10, (0.3,), (0.38,), "none")
    x = torch.rand((23, 1, 8, 8), generator=key(1))
    with torch.no_grad():
        model.net[-1].bias -= model(x).mean(0)
        y = model(x).argmax(1)
    save_checkpoint(tmp_path / "student.safetensors", model, card)
    y[0] = (y[0] + 1) % 10
    np.savez(tmp_path / "set.npz", x=x.numpy()[:, 0], y=y.numpy())
    return tmp_path, model, x, y


def stage(folder, out="ledger.h5", state=None, protocol="p", evaluation="set.npz", dataset=None, **options):
    options = AttackOptions(device="cpu", **options)
    evaluation = folder / evaluation if evaluation else None
    model, subject = folder / "student.safetensors", {"a": 1}
    return evaluate.run(model, folder / out, options, dataset, None, evaluation, None, protocol, subject, state)


def test_stage_writes_a_ledger_that_reads_back_and_replays(checkpoint, small_budget):
    folder, model, x, y = checkpoint
    written = stage(folder, attack="autoattack", threat="linf:2/255", chunk=9, protocol="aa-standard")
    ledger = read_ledger(folder / "ledger.h5")
    assert ledger.n == 23 and ledger.clean_accuracy == pytest.approx(100 * 22 / 23)
    assert ledger.components == ("robust", "clean", "quick", "apgd-ce", "apgd-t", "fab-t", "square")
    assert ledger.protocol == "aa-standard[6 iterations, 25 queries]" and ledger.subject == {"a": 1}
    assert ledger.real_data == "none" and ledger.dataset == "digits" and len(ledger.model_sha256) == 64
    assert np.array_equal(ledger.broken, written.broken) and 1 < ledger.broken.sum() < 23
    assert np.array_equal(evaluate.replay(model, x, y, ledger), ledger.broken)


def test_a_protocol_says_which_split_it_had(checkpoint):
    folder, *_ = checkpoint
    for split, expected in (("test", "pgd10"), ("dev", "pgd10[dev]")):
        made = stage(folder, attack="pgd", steps=1, limit=5, protocol="pgd10", evaluation=None, split=split)
        assert made.protocol == expected
    assert metric_of("pgd10[dev]") == "pgd10"
    made = stage(folder, attack="clean", protocol="clean", split="dev")
    assert made.protocol == "clean"  # a user's own file has no splits


def test_a_ledger_says_that_the_models_training_diverged(checkpoint):
    """As the last whole epoch's weights, its predictions alone would not tell."""
    folder, *_ = checkpoint
    model, card = load_checkpoint(folder / "student.safetensors", "cpu")
    for reason in ("", "the loss of the student is nan in epoch 2"):
        card.provenance["diverged"] = reason
        save_checkpoint(folder / "student.safetensors", model, card)
        ledger = stage(folder, f"{bool(reason)}.h5", attack="clean")
        assert ("diverged" in ledger.flags) == ("diverged" in flags_of(ledger)) == bool(reason)


def test_a_stopped_run_resumes_to_the_same_bytes(checkpoint, monkeypatch, small_budget):
    folder, *_ = checkpoint
    options = {"attack": "autoattack", "threat": "linf:0.002", "chunk": 8}
    original, calls, limit = evaluate._attack, [], 1000

    def counting(part, *args):
        if len(calls) == limit:
            raise KeyboardInterrupt
        calls.append(part.name)
        return original(part, *args)

    monkeypatch.setattr(evaluate, "_attack", counting)
    stage(folder, "straight.h5", **options)
    pieces, limit = len(calls), len(calls) + 6
    assert pieces > 8
    with pytest.raises(KeyboardInterrupt):
        stage(folder, state=folder / "state", **options)
    kept = sorted((folder / "state").rglob("*.npz"))
    assert len(kept) == 6 and not (folder / "ledger.h5").exists()
    kept[0].write_bytes(kept[0].read_bytes()[:100])  # damaged: made again
    limit = 1000
    stage(folder, state=folder / "state", **options)
    assert len(calls) == 2 * pieces + 1
    assert (folder / "ledger.h5").read_bytes() == (folder / "straight.h5").read_bytes()
    assert not list((folder / "state").rglob("*.npz"))


def test_pieces_of_other_options_or_models_are_not_used(checkpoint, monkeypatch):
    folder, *_ = checkpoint
    monkeypatch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)
    stage(folder, "a.h5", state=folder / "state", attack="pgd", threat="linf:2/255")
    stage(folder, "b.h5", state=folder / "state", attack="pgd", threat="linf:4/255")
    stage(folder, "c.h5", attack="pgd", threat="linf:4/255")
    assert (folder / "b.h5").read_bytes() == (folder / "c.h5").read_bytes() != (folder / "a.h5").read_bytes()
    assert len(list((folder / "state").iterdir())) == 2


def test_a_kept_piece_of_other_survivors_is_not_used(tmp_path):
    verdict = evaluate.Outcome(np.zeros(4, np.int64), np.ones(4, np.float32), np.zeros((4, 1, 2, 2), np.float16))
    evaluate._save(tmp_path / "a.npz", np.array([0, 2]), verdict)
    assert np.array_equal(evaluate._load(tmp_path / "a.npz", np.array([0, 2])).margin, verdict.margin)
    assert evaluate._load(tmp_path / "a.npz", np.array([0, 3])) is None


def test_stage_on_a_registered_set_with_a_limit(checkpoint):
    folder, *_ = checkpoint
    ledger = stage(folder, evaluation=None, split="dev", limit=40, attack="fgsm", chunk=16)
    assert ledger.n == 40 and ledger.dataset == "digits" and ledger.options["limit"] == 40
    assert stage(folder, evaluation=None, split="test", limit=40, attack="clean").data_sha256 != ledger.data_sha256


@pytest.mark.parametrize(
    "change, message",
    [
        ({"dataset": "svhn", "evaluation": None}, r"data set svhn has \(3, 32, 32\)"),
        ({"dataset": "cifar", "evaluation": None}, "is not one of digits"),
        ({"evaluation": "none.npz"}, "no such file"),
        ({"evaluation": "wide.npz"}, "8x8"),
        ({"evaluation": "labels.npz"}, "labels lie in"),
    ],
)
def test_data_that_do_not_fit_the_model_are_refused(checkpoint, change, message):
    folder, *_ = checkpoint
    np.savez(folder / "wide.npz", x=np.zeros((2, 8, 9)), y=np.zeros(2, int))
    np.savez(folder / "labels.npz", x=np.zeros((2, 8, 8)), y=np.array([0, 10]))
    with pytest.raises(InputError, match=message) as error:
        stage(folder, attack="clean", **change)
    assert "\n" not in str(error.value) and not (folder / "ledger.h5").exists()


def test_every_registered_attack_loads_and_runs(checkpoint, small_budget):
    folder, *_ = checkpoint
    for name in registry.ATTACKS:
        assert stage(folder, f"{name}.h5", attack=name, threat="l2:0.2").robust_accuracy <= 100 * 22 / 23
