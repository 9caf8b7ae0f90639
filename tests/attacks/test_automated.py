"""The search over attack programs: its losses, its budget, what it learns and what it finds."""

import numpy as np
import pytest
import torch
from support.attacked import Constant, Quantised, attack, images, key, network, problem
from torch.nn import functional

from dfshield.attacks import automated as module
from dfshield.attacks import programs
from dfshield.attacks.budget import automated_passes, rungs
from dfshield.attacks.programs import KINDS, LOSSES, Program, fit, run_program
from dfshield.core.threat import parse_threat
from dfshield.options import AttackOptions

Z = torch.tensor([[4.0, 1.0, 3.0, -2.0, 0.0]])
Y, TARGET = torch.tensor([0]), torch.tensor([3])
OWN = torch.tensor([[5.0, 1.0, 2.0, -1.0, 0.0]])


@pytest.mark.parametrize(
    "loss, untargeted, targeted",
    [
        ("ce", float(functional.cross_entropy(Z, Y)), -float(functional.cross_entropy(Z, TARGET))),
        ("hinge", 3 - 4, -2 - 4),
        ("dlr", (3 - 4) / (4 - 1), (-2 - 4) / (4 - (1 + 0) / 2)),
        ("l1", -4, -2),
        ("logit", 1 + 0 + 1 + 1 + 0, -(25 + 0 + 1 + 49 + 0)),
    ],
)
def test_losses_by_hand(loss, untargeted, targeted):
    assert LOSSES[loss](Z, Y, None, OWN).item() == pytest.approx(untargeted)
    assert LOSSES[loss](Z, Y, TARGET, OWN).item() == pytest.approx(targeted)


def test_with_too_few_classes_dlr_is_the_hinge():
    for classes, target in ((2, None), (3, torch.tensor([1])), (2, torch.tensor([1]))):
        values = Z[:, :classes]
        assert torch.equal(LOSSES["dlr"](values, Y, target, values), LOSSES["hinge"](values, Y, target, values))


def test_every_loss_and_kind_is_tried():
    assert module.CHOICES["kind"] == tuple(KINDS) and module.CHOICES["loss"] == tuple(LOSSES)


def test_halving_is_the_published_one():
    assert rungs(64, 100) == [(64, 100), (16, 100), (4, 200)]
    assert rungs(16, 20) == [(16, 20), (4, 20)] and rungs(1, 5) == [(1, 5)]


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_program_takes_no_more_passes_than_it_says(kind, norm, targeted):
    net = network(10)
    x, y = images(net, 7)
    passes = []
    net.register_forward_pre_hook(lambda module, inputs: passes.append(len(inputs[0])))
    for limit in (40, 130):
        program = fit(Program(kind, "hinge", targeted, False, KINDS[kind].steps[1], KINDS[kind].runs[1], 0.3), limit)
        assert program.passes <= limit and (kind == "fgsm" or program.passes > 0.4 * limit)
        passes.clear()
        found = run_program(problem(net, x, y, f"{norm}:0"), program, "fp32")  # nothing falls: all effort is spent
        assert 0 < sum(passes) <= 7 * (program.passes + 1) and not found.clear.any()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_each_kind_breaks_images_within_the_ball_and_says_which(kind, norm):
    net, threat = network(10, seed=3), {"linf": "linf:0.03", "l2": "l2:0.3"}[norm]
    x, y = images(net, 50)
    program = Program(kind, "hinge", False, False, 60 if kind != "fgsm" else 1, 1, 0.3)
    found = run_program(problem(net, x, y, threat), program, "fp32")
    delta = (found.x_adv - x).flatten(1)
    length = delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)
    assert (length <= parse_threat(threat).eps + 1e-6).all() and found.x_adv.min() >= 0 and found.x_adv.max() <= 1
    with torch.no_grad():
        wrong = net(found.x_adv).argmax(1) != y
    assert torch.equal(wrong, found.margin < 0) and not (found.clear & ~wrong).any()
    assert wrong.float().mean() > 0.4


def test_runs_of_a_targeted_program_go_from_class_to_class():
    net = network(4)
    x, y = images(net, 6)
    seen = []

    def spy(part, program, objective, precision):
        rows = torch.arange(len(part.x))
        seen.append(torch.stack([objective(torch.eye(4)[[c] * 6], rows) for c in range(4)]).argmax(0))
        return part.x

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(KINDS, "spy", programs.Kind(spy, (1, 1), (1, 9), lambda steps: 0))
        run_program(problem(net, x, y, "linf:0.1"), Program("spy", "l1", True, False, 1, 4, 1.0), "fp32")
    with torch.no_grad():
        ranking = net(x).argsort(dim=1, descending=True)[:, 1:]
    assert torch.equal(torch.stack(seen[:3], 1), ranking) and torch.equal(seen[3], seen[0])


def test_the_estimator_suggests_what_did_well():
    random, choices = key(1), module.CHOICES

    def share(told):
        drawn = [module.suggest(told, random) for _ in range(200)]
        assert all(0 <= s[name] < len(choices[name]) for s in drawn for name in choices)
        return np.mean([(s["kind"], s["loss"]) == (1, 2) for s in drawn])

    none = share([])
    blank = dict.fromkeys(choices, 0)
    told = [({**blank, "kind": k, "loss": n}, float((k == 1) + (n == 2))) for k in range(5) for n in range(5)]
    assert none < 0.15 and share(told) > 3 * none
    assert share([(s, -score) for s, score in told]) < none


def test_the_search_finds_the_program_that_works(monkeypatch, capfd):
    """All kinds do nothing, but one, which does most with its largest step."""
    net = network(10, seed=3)
    x, y = images(net, 200)
    with torch.no_grad():
        by_size = [net((x + 0.03 * size).clamp(0, 1)).argmax(1) != y for size in module.CHOICES["size"]]
    falls, tried = by_size[0], torch.stack(by_size).any(dim=0)
    assert falls.any() and not tried.all()

    def run(part, program, objective, precision):
        return part.x + 0.03 * program.size * (program.kind == "nes")

    for name in KINDS:
        monkeypatch.setitem(KINDS, name, programs.Kind(run, (1, 1), (1, 1), lambda steps: 1))
    options = {"attack": "automated", "trials": 40, "base": 100, "attacks": 1, "chunk": 200}
    rows, _ = attack(net, x, y, "linf:0.03", **options)
    broken = torch.as_tensor(rows["broken"])
    assert (broken >= falls).all() and (broken <= tried).all()  # of all images, not of those of the trials alone
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("automated: attack")]
    assert len(said) == 1 and "attack 1 of 1: nes, " in said[0] and "step 1 ε" in said[0]
    assert said[0].endswith(f"{200 - int(broken.sum())} of 200 images left")


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Quantised, Constant])
def test_scores_win_where_there_is_no_gradient(kind, capfd):
    net = kind(network(10, seed=3))
    x, y = images(net, 60)
    pgd = attack(net, x, y, "linf:0.03", attack="pgd", steps=50, restarts=5)[0]["broken"]
    capfd.readouterr()
    found = attack(net, x, y, "linf:0.03", attack="automated", attacks=1)[0]["broken"]
    assert found.sum() >= 1.3 * pgd.sum() + 5
    said = capfd.readouterr().err
    assert "attack 1 of 1: nes" in said or "attack 1 of 1: square" in said


def test_passes_by_hand():
    options = AttackOptions.of(attack="automated", trials=16, base=5, budget=30, attacks=2, chunk=20)
    # two chunks of 20: 16 programs on 5 images and 4 on 5, then the chosen one on all, and their logits
    assert automated_passes(options, 40, 0.3, 10) == 2 * 2 * ((16 * 5 + 4 * 5 + 20) * 61 + 20)
