"""Attacks by queries: how near they come where the distance is known, what they ask, and when they stop."""

from itertools import pairwise

import pytest
import torch
from support.attacked import Linear, Noisy, attack, images, key, network, norms, problem
from torch import nn

from dfshield.attacks import decisions, scores
from dfshield.attacks.square_alone import square
from dfshield.options import AttackOptions
from dfshield.planning.arithmetic import attack_passes

SIZES = {"linf": 0.05, "l2": 0.2}
QUERY = ["square", "spsa", "genattack", "boundary", "hopskipjump"]
SMALL = {
    "square": {"queries": 40},
    "spsa": {"samples": 8, "iterations": 4},
    "genattack": {"queries": 40},
    "boundary": {"steps": 30},
    "hopskipjump": {"steps": 3, "init_evaluations": 10},
}
FUNCTIONS = {
    "square": square,
    "spsa": scores.spsa,
    "genattack": scores.genattack,
    "boundary": decisions.boundary,
    "hopskipjump": decisions.hopskipjump,
}


def linear(norm, n=40):
    """A linear model, images away from the borders of the box, their classes and distances from the boundary."""
    model = Linear()
    x = 0.25 + 0.5 * torch.rand((n, 1, 4, 4), generator=key(5))
    score = model.score(x).detach()
    w = model.w.detach()
    return model, x, (score > 0).long(), score.abs() / (w.abs().sum() if norm == "linf" else w.norm())


def counted(net):
    """The number of images of every pass of `net`, as a list that grows."""
    passes = []
    net.register_forward_pre_hook(lambda module, inputs: passes.append(len(inputs[0])))
    return passes


@pytest.mark.parametrize(
    "name, norm, options, reach",
    [
        # the library's squares of one pixel never reach the last row and column
        ("square", "linf", {"queries": 400}, 0.5),
        ("square", "l2", {"queries": 400}, 0.7),
        ("spsa", "linf", {"samples": 64, "iterations": 20}, 0.97),
        ("spsa", "l2", {"samples": 64, "iterations": 20}, 0.97),
        ("genattack", "linf", {"queries": 2000}, 0.8),
        ("boundary", "l2", {"steps": 400}, 0.95),
        ("hopskipjump", "linf", {"steps": 12, "init_evaluations": 50}, 0.95),
        ("hopskipjump", "l2", {"steps": 12, "init_evaluations": 50}, 0.95),
    ],
)
def test_what_is_within_reach_on_a_linear_model_breaks(name, norm, options, reach):
    model, x, y, distance = linear(norm)
    rows, _ = attack(model, x, y, f"{norm}:{SIZES[norm]}", attack=name, **options)
    near = (distance < reach * SIZES[norm]).numpy()
    assert 0.2 < near.mean() < 0.9
    assert rows["broken"][near].all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_hopskipjump_finds_the_distance_of_a_linear_model(norm):
    model, x, y, distance = linear(norm)
    options = AttackOptions.of(attack="hopskipjump", steps=12)
    found = decisions.hopskipjump_search(problem(model, x, y, f"{norm}:0"), options)
    assert torch.allclose(found.distance, norms(found.nearest - x, norm))
    assert (model(found.nearest).argmax(1) != y).all()
    ratio = found.distance / distance
    assert ratio.min() > 0.9999 and ratio.max() < 1.1


def test_boundary_comes_nearer_with_every_step(monkeypatch):
    model, x, y, distance = linear("l2")
    seen = []
    attempt = decisions.Search.attempt

    def watched(self, points, rows):
        wrong = attempt(self, points, rows)
        seen.append(self.distance.clone())
        return wrong

    monkeypatch.setattr(decisions.Search, "attempt", watched)
    found = decisions.boundary_search(problem(model, x, y, "l2:0"), AttackOptions.of(attack="boundary", steps=300))
    assert all((after <= before).all() for before, after in pairwise(seen))
    ratio = found.distance / distance
    assert ratio.min() > 0.9999 and ratio.max() < 1.5
    assert (model(found.nearest).argmax(1) != y).all()
    assert torch.allclose(found.distance, norms(found.nearest - x, "l2"))


@pytest.mark.parametrize("name", ["boundary", "hopskipjump"])
def test_what_is_found_outside_the_ball_is_not_given_back(name):
    model, x, y, distance = linear("l2")
    options = AttackOptions.of(attack=name, steps=200 if name == "boundary" else 5, reference=True)
    size = float(distance.median())
    adv = FUNCTIONS[name](problem(model, x, y, f"l2:{size}"), options)
    changed = norms(adv - x, "l2") > 0
    assert torch.equal(changed, model(adv).argmax(1) != y)
    assert (norms(adv - x, "l2") <= size).all() and not changed[distance > size].any() and changed.any()


@pytest.mark.parametrize("name", ["boundary", "hopskipjump"])
def test_labels_are_all_that_it_asks(name):
    """A model of one-hot answers, in arbitrary units, is attacked with the same result to the bit."""

    class Answer(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x):
            return nn.functional.one_hot(self.net(x).argmax(1), 5) * 7.0

    net = network(5)
    x, y = images(net)
    options = AttackOptions.of(attack=name, **SMALL[name])
    plain, answers = (FUNCTIONS[name](problem(model, x, y, "linf:0.2"), options) for model in (net, Answer(net)))
    assert torch.equal(plain, answers) and not torch.equal(plain, x)


class Corner(nn.Module):
    """Class 1 where the first pixel is above 0.999, which noise of U(0,1) hardly ever is; else class 0."""

    def forward(self, x):
        first = x[:, 0, 0, 0]
        return torch.stack((0.999 - first, first - 0.999), dim=1)


@pytest.mark.parametrize("name", ["boundary", "hopskipjump"])
def test_without_misclassified_noise_other_images_are_the_start(name):
    net, x = Corner(), 0.5 * torch.rand((4, 1, 3, 3), generator=key(2))
    x[3, 0, 0, 0] = 1
    y = net(x).argmax(1)
    search = getattr(decisions, f"{name}_search")
    options = AttackOptions.of(attack=name, **SMALL[name])
    found = search(problem(net, x, y, "l2:0"), options)
    assert (net(found.nearest).argmax(1) != y).all()
    assert (found.distance[:3] <= (x[:3] - x[3]).flatten(1).norm(dim=1)).all()
    alone = search(problem(net, x[:3], y[:3], "l2:0"), options)
    assert torch.equal(alone.nearest, x[:3]) and alone.distance.isinf().all() and not alone.active.any()


def test_a_blend_has_its_share_of_the_distance():
    x, far = torch.rand((2, 6, 1, 3, 3), generator=key(3))
    share = torch.linspace(0, 1, 6)
    for norm in ("linf", "l2"):
        point = decisions.blend(x, far, share, norm)
        assert torch.allclose(norms(point - x, norm), share * norms(far - x, norm), atol=1e-6)
        assert torch.equal(point[0], x[0]) and torch.equal(point[-1], far[-1])


def test_hopskipjumps_direction_is_the_gradients():
    model, x, y, _ = linear("l2", n=3)
    towards = torch.where(y == 1, -1.0, 1.0)[:, None] * model.w.detach()  # out of the class
    for far in (0.0, 1.0, -1.0):  # on the boundary, and where all labels agree, wrong or right
        score = model.score(x).detach()[:, None]
        on = x.flatten(1) - score * model.w.detach() / model.w.detach().norm() ** 2 + 0.01 * far * towards
        search = decisions.Search(problem(model, x, y, "l2:0"), AttackOptions.of(attack="hopskipjump"), "l2")
        points, rows = on.view_as(x), torch.arange(3)
        found = decisions._direction(search, points, rows, torch.full((3,), 0.01), 4000).flatten(1)
        cosine = nn.functional.cosine_similarity(found, towards)
        assert (cosine > 0.97).all() if far == 0 else (cosine.abs() < 0.97).all()
        assert found.norm(dim=1).min() > 0


def test_rates_adapt_after_a_window_of_trials():
    rate = decisions.Rate(0.1, 3, torch.device("cpu"))
    rows = torch.arange(3)
    for trial in range(decisions.WINDOW):
        assert torch.equal(rate.adapt(1.5), torch.ones(3))
        rate.count(rows, torch.tensor([True, trial < 4, False]))
    assert torch.allclose(rate.adapt(1.5), torch.tensor([1.5, 1, 1 / 1.5]))
    assert torch.allclose(rate.length, torch.tensor([0.15, 0.1, 0.1 / 1.5]))
    assert torch.equal(rate.trials, torch.zeros(3))


def test_spsas_estimate_is_the_gradient_of_a_linear_margin():
    model, x, y, _ = linear("linf", n=5)
    options = AttackOptions.of(attack="spsa", samples=20_000)
    found = scores._spsa_gradient(model, x, y, options, key(1)).flatten(1)
    exact = torch.where(y == 1, 1.0, -1.0)[:, None] * model.w.detach()
    assert (found - exact).norm() < 0.1 * exact.norm()
    # one direction: the slope along it, in every pixel
    one = scores._spsa_gradient(model, x, y, AttackOptions.of(attack="spsa", samples=2), key(1)).flatten(1)
    slope = (exact * one.sign()).sum(1).abs()
    assert torch.allclose(one.abs(), slope[:, None].expand_as(one), rtol=1e-3)


def test_genattacks_fitness_and_children_by_hand():
    logits = torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]])
    p = logits.softmax(1)
    expected = torch.tensor([(p[0, 2] / (p[0, 0] + p[0, 1])).log(), (p[1, 0] / (p[1, 1] + p[1, 2])).log()])
    assert torch.allclose(scores._fitness(logits, torch.tensor([2, 0])), expected, atol=1e-5)

    members = torch.arange(6.0).view(1, 6, 1, 1, 1).expand(200, 6, 1, 5, 5)
    options = AttackOptions.of(attack="genattack", temperature=1)
    fitness = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0, 2.0]).expand(200, 6)
    share, step = torch.full((200,), 0.3), torch.full((200,), 0.4)
    children = scores._children(members, fitness, share, step, options, key(4))
    assert children.shape == (200, 5, 1, 5, 5)
    noise = children - children.round()
    assert noise.abs().max() <= 0.4 and abs((noise != 0).float().mean() - 0.3) < 0.01
    # a pixel's parent k is drawn as one of two by q_k, and kept by its share of their chances
    q = fitness[0].softmax(0)
    pair = q[:, None] * q[None]
    chance = 2 * (pair * (q[:, None] / (q[:, None] + q[None]))).sum(1)
    found = torch.bincount(children.round().long().flatten(), minlength=6) / children.numel()
    assert (found - chance).abs().max() < 0.03


@pytest.mark.parametrize("name", QUERY)
def test_images_that_fall_take_no_further_queries(name):
    net = network(4)
    x, y = images(net, n=20)
    given = problem(net, x, y, "linf:0.6")
    passes = counted(net)
    small = SMALL[name] | ({"lr": 0.1} if name == "spsa" else {})
    FUNCTIONS[name](given, AttackOptions.of(attack=name, **small))
    left = sum(passes)
    if name == "square":
        assert left < 20 * 20
        return
    passes.clear()
    FUNCTIONS[name](given._replace(random=key()), AttackOptions.of(attack=name, reference=True, **small))
    assert left < 0.7 * sum(passes)


@pytest.mark.parametrize("name", ["spsa", "genattack"])
def test_the_whole_budget_is_as_stated(name):
    net = network(4)
    x, y = images(net, n=5)
    passes = counted(net)
    FUNCTIONS[name](problem(net, x, y, "linf:0"), AttackOptions.of(attack=name, chunk=7, **SMALL[name]))
    # SPSA: 4 iterations of 8 samples and the new point; GenAttack: the image, 6 members, 6 generations of 5 children
    assert sum(passes) == 5 * {"spsa": 4 * 9, "genattack": 1 + 6 + 6 * 5}[name]
    assert max(passes) <= 7


@pytest.mark.parametrize("name, budgets", [("genattack", ({"queries": 12}, {"queries": 600}))])
def test_more_queries_break_more(name, budgets):
    model, x, y, _ = linear("linf")
    few, many = (attack(model, x, y, "linf:0.05", attack=name, **more)[0]["broken"] for more in budgets)
    assert few.sum() < many.sum() and many[few].all()


def test_genattack_keeps_its_fittest():
    """More generations never give a less fit point: the first ones are the same."""
    net = network(4)
    x, y = images(net, n=10)
    target = net(x).scatter(1, y[:, None], -torch.inf).argmax(1)
    fitness = []
    for queries in (7, 12, 17, 52, 202):
        options = AttackOptions.of(attack="genattack", queries=queries, reference=True)
        adv = scores.genattack(problem(net, x, y, "linf:0.02"), options)
        fitness.append(scores._fitness(net(adv), target))
    assert all((later >= earlier - 1e-5).all() for earlier, later in pairwise(fitness))
    assert (fitness[-1] > fitness[0] + 0.003).all()


@pytest.mark.parametrize("name", QUERY)
def test_models_that_draw_are_asked_once_a_query(name):
    net = Noisy(network(4), 0.02)
    x, y = images(net.net, n=6)
    passes = counted(net)
    torch.manual_seed(0)
    options = AttackOptions.of(attack=name, **SMALL[name])
    adv = FUNCTIONS[name](problem(net, x, y, "linf:0.1"), options)
    assert adv.shape == x.shape and adv.isfinite().all()
    assert 0 < sum(passes) <= attack_passes(options, 6, 1.0, 4)


class Steps(nn.Module):
    """A network whose inputs are rounded, so that it has no gradient, but scores that fall."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net((x * 100).round() / 100)


@pytest.mark.parametrize("name", QUERY)
def test_a_model_without_gradients_is_broken(name):
    model, x, y, distance = linear("linf")
    options = {
        "square": {"queries": 300},
        "spsa": {"samples": 64, "iterations": 20},
        "genattack": {"queries": 2000},
        "boundary": {"steps": 300},
        "hopskipjump": {"steps": 10},
    }[name]
    x = (x * 100).round() / 100
    near = ((distance < 0.04) & (model(x).argmax(1) == y)).numpy()
    by_gradient, _ = attack(Steps(model), x, y, "linf:0.1", attack="fgsm")
    assert near.sum() > 10 and not by_gradient["broken"][near].any()
    rows, _ = attack(Steps(model), x, y, "linf:0.1", attack=name, **options)
    # Boundary minimises l2, and small steps end at the same rounded image
    assert rows["broken"][near].mean() > (0.4 if name == "boundary" else 0.95)


@pytest.mark.slow
@pytest.mark.parametrize("name, norm", [("Boundary", "l2"), ("HopSkipJump", "l2"), ("HopSkipJump", "linf")])
def test_distances_are_those_of_foolbox(name, norm):
    foolbox = pytest.importorskip("foolbox")
    net = network(3, (1, 6, 6), seed=2)
    x, y = images(net, n=16, shape=(1, 6, 6))
    if name == "Boundary":
        steps = 5000  # theirs adapts its steps a tenth as often, and is far behind before
        theirs = foolbox.attacks.BoundaryAttack(steps=steps, tensorboard=False)
    else:
        steps = 20
        theirs = foolbox.attacks.HopSkipJumpAttack(steps=steps, constraint=norm)
    torch.manual_seed(0)
    with torch.no_grad():
        found = theirs.run(foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu"), x, y)
    options = AttackOptions.of(attack=name.lower(), steps=steps)
    ours = getattr(decisions, f"{name.lower()}_search")(problem(net, x, y, f"{norm}:0"), options)
    their, our = norms(found - x, norm).median(), ours.distance.median()
    assert 0.8 * their < our < 1.2 * their
