"""What attacks cost, by hand."""

import pytest
from support.attacked import images, network, problem

from dfshield.attacks import budget, pgd
from dfshield.options import AttackOptions
from dfshield.planning.arithmetic import attack_passes
from dfshield.registry import ATTACKS, Attack


def test_passes_by_hand():
    assert attack_passes(AttackOptions.of(attack="clean"), 30, 0.4) == 30
    assert attack_passes(AttackOptions.of(attack="fgsm"), 30, 0.4) == 60
    assert attack_passes(AttackOptions.of(attack="pgd", steps=10, restarts=2), 30, 0.4) == 30 * 2 * 10 * 2


@pytest.mark.parametrize(
    ("version", "classes", "expected"), [("standard", 100, 9), ("paper", 100, 99), ("standard", 4, 3)]
)
def test_autoattack_by_hand(version, classes, expected):
    # quick 10 steps; then on the survivors APGD-CE and targets of APGD, targets of FAB, Square's queries
    survivors = 0.5 * 30 * (2 * 100 + 2 * 100 * expected + 3 * 100 * expected + 5000)
    assert attack_passes(AttackOptions.of(version=version), 30, 0.5, classes) == 30 * 20 + survivors


def test_query_attacks_by_hand():
    def passes(**options):
        return attack_passes(AttackOptions.of(**options), 30, 0.4)

    assert passes(attack="square", queries=500) == 30 * 503
    assert passes(attack="spsa", iterations=7, samples=20) == 30 * 7 * 21
    assert passes(attack="genattack", queries=60) == 30 * 60
    assert passes(attack="genattack", queries=1, population=9) == 30 * 10
    assert passes(attack="boundary", steps=50) == 30 * (1 + 100 + 10 + 2 * 50)
    # draws of 10·√t: 10, 14, 17, 20, but at most 17; a bisection at the start, and with a step's halvings in every
    # iteration
    iterations = 10 + 14 + 17 + 17 + 4 * 2 * 24
    assert passes(attack="hopskipjump", steps=4, init_evaluations=10, max_evaluations=17) == 30 * (
        101 + 24 + iterations
    )


QUERY = ["square", "spsa", "genattack", "boundary", "hopskipjump"]


@pytest.mark.parametrize("name", ["fgsm", "pgd", "autoattack", *QUERY])
def test_each_draw_is_a_pass(name):
    one, five = (attack_passes(AttackOptions.of(attack=name, eot=eot), 30, 0.5) for eot in (1, 5))
    assert five == 5 * one


def test_an_attack_without_a_formula_is_not_estimated(monkeypatch):
    monkeypatch.setitem(ATTACKS, "fgsm", Attack("dfshield.attacks.fgsm:fgsm", access="scores"))
    assert attack_passes(AttackOptions.of(attack="fgsm"), 30, 0.5) is None


def test_the_pre_filters_steps_are_those_that_are_counted(monkeypatch):
    for module in (budget, pgd):
        monkeypatch.setattr(module, "PREFILTER_STEPS", 3)
    net = network(10)
    x, y = images(net, 4)
    passes = []
    net.register_forward_pre_hook(lambda module, inputs: passes.append(len(inputs[0])))
    pgd.pgd_prefilter(problem(net, x, y, "linf:0"), AttackOptions.of())
    assert sum(passes) == 4 * 3 and attack_passes(AttackOptions.of(), 4, 0.0) == 2 * 4 * 3
