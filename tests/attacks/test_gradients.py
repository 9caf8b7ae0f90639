"""Attacks that follow gradients: what they share, and how their strength grows."""

import itertools

import pytest
import torch
from support.victims import attack, images, key, network, robust

from dfshield.attacks import autoattack, pgd
from dfshield.attacks.base import Component, Problem, differentiable, input_gradient
from dfshield.core.threat import Threat
from dfshield.options import AttackOptions


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name, options", [("fgsm", {}), ("pgd", {"l2_step": "0.3"}), ("autoattack", {})])
def test_robust_accuracy_falls_from_clean_to_nothing_as_eps_grows(name, options, norm, small_budget):
    net = network(4)
    x, y = images(net)
    y[:3] = (y[:3] + 1) % 4
    sizes = ("0", "0.01", "0.03", "0.1", "0.9") if norm == "linf" else ("0", "0.05", "0.15", "0.5", "8")
    shares = [robust(net, x, y, f"{norm}:{eps}", attack=name, **options) for eps in sizes]
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


def test_gradients_of_parameters_and_the_mode_are_left_as_they_were(small_budget):
    net = network(4).train()
    x, y = images(net)
    before = torch.random.get_rng_state()
    ensemble = autoattack.autoattack(AttackOptions.of(attack="autoattack"), (1, 8, 8), 4)
    cases = [(part, AttackOptions.of(attack="autoattack")) for part in ensemble.components]
    for part, options in (*cases, (Component("pgd", pgd.pgd), AttackOptions.of(attack="pgd"))):
        part.attack(Problem(net, x, y, Threat("linf", 8 / 255), key()), options)
    assert all(p.grad is None and p.requires_grad for p in net.parameters()) and net.training
    assert torch.equal(torch.random.get_rng_state(), before)


def test_gradient_of_a_model_that_gives_none_is_zero():
    x = torch.rand(3, 1, 2, 2)
    cut = lambda x: torch.zeros(len(x), 4) + x.detach().sum()  # noqa: E731
    assert not input_gradient(cut, x, torch.zeros(3, dtype=torch.long))[1].any()
    out = differentiable(cut)(x.requires_grad_())
    assert torch.equal(out, cut(x)) and out.requires_grad
