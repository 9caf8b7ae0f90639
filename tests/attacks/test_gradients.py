"""What gradient attacks do with a model: its gradients, its mode, its steps, and copies of it for crafting."""

import numpy as np
import pytest
import torch
from support.attacked import attack, images, key, network, problem, small_budget
from torch import nn

from dfshield.attacks import autoattack, pgd
from dfshield.attacks.base import Component, Eot, differentiable, input_gradient
from dfshield.evaluation.crafting import FastModels
from dfshield.options import AttackOptions

pytestmark = pytest.mark.slow


@pytest.fixture
def small(monkeypatch):
    small_budget(monkeypatch)


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


def test_iterative_attack_is_no_weaker_than_one_step_and_restarts_only_help():
    net = network(10, seed=3)
    x, y = images(net, n=200)
    one, ten = (attack(net, x, y, "linf:0.02", attack=a)[0]["broken"] for a in ("fgsm", "pgd"))
    assert ten.sum() >= one.sum() > 0
    first = attack(net, x, y, "linf:0.02", attack="pgd", steps=2)[0]["broken"]
    more = attack(net, x, y, "linf:0.02", attack="pgd", steps=2, restarts=4)[0]["broken"]
    assert (more | ~first).all() and more.sum() > first.sum()


def test_gradients_of_parameters_and_the_mode_are_left_as_they_were(small):
    net = network(4).train()
    x, y = images(net)
    before = torch.random.get_rng_state()
    options = AttackOptions.of()
    for part in (*autoattack.autoattack(options, (1, 8, 8), 4).components, Component("pgd", pgd.pgd)):
        part.attack(problem(net, x, y, "linf:8/255"), options if part.name != "pgd" else AttackOptions.of(attack="pgd"))
    assert all(p.grad is None and p.requires_grad for p in net.parameters()) and net.training
    assert torch.equal(torch.random.get_rng_state(), before)


def test_gradient_of_a_model_that_gives_none_is_zero():
    x = torch.rand(3, 1, 2, 2)
    cut = lambda x: torch.zeros(len(x), 4) + x.detach().sum()  # noqa: E731
    assert not input_gradient(cut, x, torch.zeros(3, dtype=torch.long))[1].any()
    out = differentiable(cut)(x.requires_grad_())
    assert torch.equal(out, cut(x)) and out.requires_grad


def test_images_and_networks_of_any_memory_layout_are_attacked(small):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)).eval()
    x = torch.rand((6, 3, 8, 8), generator=key()).contiguous(memory_format=torch.channels_last)
    y = net(x).argmax(1)
    plain = attack(net, x.contiguous(), y, "linf:0.01", attack="autoattack")[0]["component"]
    net.to(memory_format=torch.channels_last)
    assert np.array_equal(attack(net, x, y, "linf:0.01", attack="autoattack")[0]["component"], plain)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["pgd", "autoattack"])
def test_quick_crafting_breaks_no_fewer_images_than_the_reference(name, precision, trained, monkeypatch):
    small_budget(monkeypatch, 10, 50)
    net, x, y = trained
    options = {"threat": "linf:0.01", "attack": name}
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
        crafting = FastModels(net, AttackOptions.of(reference=reference))
        assert (crafting.fp32 is net) == reference
        handle = crafting.bf16.register_forward_pre_hook(count(reference))
        options = AttackOptions.of(attack="pgd", threat="linf:0.1", reference=reference)
        pgd.pgd(problem(crafting.bf16, x, y, options.threat), options)
        handle.remove()
    assert steps[1] == 10 * len(x) and steps[0] < steps[1] / 3  # one restart: its last points are left to the judge


class Scrambled(nn.Module):
    """A network whose logits are exact and whose gradients are mostly noise."""

    def __init__(self, net, size):
        super().__init__()
        self.net, self.size = net, size

    def forward(self, x):
        noise = (self.size * torch.randn_like(x) * (x - x.detach())).flatten(1).sum(1, keepdim=True)
        return self.net(x) + noise * torch.randn(10)


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("name", ["fgsm", "pgd"])
def test_averaged_gradients_break_what_single_ones_do_not(name, reference):
    net = Scrambled(network(10, seed=3), 0.2)
    x, y = images(net.net, n=100)
    options = {"attack": name, "threat": "linf:0.02", "reference": reference}
    bare = attack(net.net, x, y, **options)[0]["broken"].sum()
    single, averaged = (attack(net, x, y, eot=eot, **options)[0]["broken"].sum() for eot in (1, 64))
    assert single < 0.6 * bare and single + 10 < averaged <= bare + 5


def test_crafting_alone_is_averaged():
    """The verdict, the clean pass and the checks of gradients are single passes."""
    net, steps = network(10), 4
    x, y = images(net, n=20)
    passes = []
    net.register_forward_pre_hook(lambda module, inputs: passes.append(len(inputs[0])))
    totals = {}
    for eot in (1, 5):
        passes.clear()
        attack(net, x, y, attack="pgd", steps=steps, eot=eot, reference=True)
        totals[eot] = sum(passes)
    assert totals[5] - totals[1] == (5 - 1) * steps * len(x)


def test_the_mean_over_draws_is_differentiated():
    net = network(10)
    x, y = images(net, n=3)
    torch.testing.assert_close(Eot(net, 3)(x), net(x))
    torch.testing.assert_close(input_gradient(Eot(net, 3), x, y)[1], input_gradient(net, x, y)[1])


@pytest.mark.parametrize("classes", [3, 10])
def test_every_component_takes_an_averaged_model(classes, small):
    net = network(classes)
    x, y = images(net, n=6)
    once, averaged = (attack(net, x, y, "linf:0.03", eot=eot)[0] for eot in (1, 2))
    assert np.array_equal(once["broken"], averaged["broken"])
