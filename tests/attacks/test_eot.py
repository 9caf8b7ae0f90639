"""Expectation over transformation: what it gains on a model that draws, what it costs, and where it may not be."""

import pytest
import torch
from support.victims import Linear, attack, images, key, network
from torch import nn

from dfshield.attacks.base import Eot, input_gradient
from dfshield.evaluation import crafting, session


class Rippled(nn.Module):
    """A linear model under ripples of random phase: they hardly move its logits, but their slope hides its own."""

    def __init__(self, height=0.004, waves=300.0):
        super().__init__()
        self.linear, self.height, self.waves = Linear(), height, waves

    def forward(self, x):
        phase = 6.2832 * torch.rand(x.shape)
        ripple = self.height * torch.sin(self.waves * x + phase).flatten(1).sum(1)
        return self.linear(x) + torch.stack((-ripple, ripple), dim=1)


def problem():
    model = Rippled()
    x = 0.25 + 0.5 * torch.rand((300, 1, 4, 4), generator=key(5))
    return model, x, (model.linear.score(x) > 0).long()


def test_mean_gradients_break_a_randomised_model_that_single_ones_do_not():
    model, x, y = problem()
    threat = "linf:0.05"
    distance = model.linear.distance(x, y, "linf")
    assert 0.3 < (distance < 0.05).float().mean() < 0.9  # what an attack could break
    one, many = (attack(model, x, y, threat, attack="pgd", eot=eot)[0]["broken"].mean() for eot in (1, 20))
    assert many > one + 0.05


def test_mean_of_passes_is_that_of_logits_and_of_gradients():
    model, x, y = problem()
    torch.manual_seed(0)
    with torch.no_grad():
        expected = sum(model(x) for _ in range(5)) / 5
        torch.manual_seed(0)
        assert torch.allclose(Eot(model, 5)(x), expected)

    def error(draws):
        torch.manual_seed(0)
        margin = lambda logits, y: logits[:, 1] - logits[:, 0]  # noqa: E731
        gradient = input_gradient(Eot(model, draws), x, y, margin)[1].flatten(1)
        return (gradient - model.linear.w.detach()).std()

    assert error(1) / error(25) == pytest.approx(5, rel=0.1)  # the error of a mean falls with the root of its size


def test_each_step_takes_as_many_passes_as_are_asked_for(monkeypatch):
    net, victim = network(4), network(4)
    x, y = images(net)
    monkeypatch.setattr(crafting, "fold", lambda model: model)
    monkeypatch.setattr(session, "gradient_masking_checks", lambda *models_and_images: [])
    passed = []
    victim.register_forward_pre_hook(lambda module, inputs: passed.append(len(inputs[0])))
    for eot in (1, 7):
        passed.clear()
        attack(net, x, y, attack="fgsm", victim=victim, eot=eot)
        assert passed == [24] * eot


@pytest.mark.parametrize("name", ["pgd", "autoattack"])
def test_verdicts_never_come_from_the_mean(name, monkeypatch, small_budget):
    net = network(4)
    x, y = images(net)
    judges, victims = [], []
    judge, part_attack = session.evaluate_perturbation, session.Session.attack

    def spy(model, *args):
        judges.append(model)
        return judge(model, *args)

    def attacking(self, part, *args):
        def attack(problem, options):
            victims.append(problem.model)
            return part.attack(problem, options)

        return part_attack(self, part._replace(attack=attack), *args)

    monkeypatch.setattr(session, "evaluate_perturbation", spy)
    monkeypatch.setattr(session.Session, "attack", attacking)
    attack(net, x, y, "linf:0.01", attack=name, eot=2)
    assert len(victims) >= 1 and all(isinstance(victim, Eot) and victim.draws == 2 for victim in victims)
    assert len(judges) == len(victims) + 1 and all(model is net for model in judges)


def test_rows_of_a_randomised_model_can_be_made_again():
    model, x, y = problem()
    found = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        found.append(attack(model, x, y, "linf:0.02", attack="fgsm", chunk=100)[0])
    for row in found[0]:
        assert found[0][row].tobytes() == found[1][row].tobytes(), row
