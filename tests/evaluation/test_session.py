"""Chunks, verdicts and flags of an evaluation."""

import numpy as np
import pytest
import torch
from support.victims import Linear, attack, images, key, network
from torch import nn

from dfshield.attacks import autoattack, base, fgsm, pgd
from dfshield.attacks.base import Component, Ensemble, Problem
from dfshield.attacks.budget import Budget
from dfshield.core.errors import InputError
from dfshield.core.threat import parse_threat
from dfshield.evaluation import session
from dfshield.evaluation.crafting import FastModels
from dfshield.evaluation.verdict import Outcome
from dfshield.options import AttackOptions


def test_randomness_differs_between_seeds_attacks_and_chunks():
    first = torch.rand(4, generator=session.chunk_generator(0, "pgd", 1))
    for other in ((1, "pgd", 1), (0, "fgsm", 1), (0, "pgd", 2), (0, "pgd", 0)):
        assert not torch.equal(first, torch.rand(4, generator=session.chunk_generator(*other)))
    assert torch.equal(first, torch.rand(4, generator=session.chunk_generator(0, "pgd", 1)))


def test_no_attack_sees_an_image_that_is_already_broken():
    net = network(4)
    x, y = images(net)
    y[:2] = (y[:2] + 1) % 4
    seen = []

    def spy(problem, options):
        seen.append(len(problem.x))
        return fgsm.fgsm(problem, options)

    ensemble = Ensemble((Component("a", spy), Component("b", spy)))
    rows, _ = attack(net, x, y, "linf:0.03", ensemble=ensemble)
    assert seen == [22, 22 - (rows["component"] == 2).sum()] and 0 < seen[1] < 22


def test_an_attack_that_leaves_the_ball_is_cut_back_before_it_is_judged():
    model = Linear()
    x = 0.25 + 0.5 * torch.rand((100, 1, 4, 4), generator=key(5))
    y = (model.score(x) > 0).long()

    def cheat(problem, options):
        return torch.where(problem.y.view(-1, 1, 1, 1) == 1, torch.zeros_like(x), torch.ones_like(x)) * 5

    ensemble = Ensemble((Component("cheat", cheat),))
    rows, _ = attack(model, x, y, "linf:0.02", ensemble=ensemble)
    assert rows["broken"].mean() <= (model.score(x).abs() / model.w.abs().sum() <= 0.02).float().mean()


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
        pgd.pgd(Problem(crafting.bf16, x, y, parse_threat(options.threat), key()), options)
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

    def square(problem, options):
        return torch.cat([x[-1:].expand(count, -1, -1, -1), x[count:]])  # another class

    parts = Ensemble((Component("apgd-ce", base.clean), Component("square", square)))
    rows, flags = attack(net, x, y, "linf:1", ensemble=parts)
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


def test_a_kept_piece_of_other_survivors_is_not_used(tmp_path):
    verdict = Outcome(np.zeros(4, np.int64), np.ones(4, np.float32), np.zeros((4, 1, 2, 2), np.float16))
    session.save_piece(tmp_path / "a.npz", np.array([0, 2]), verdict)
    assert np.array_equal(session.load_piece(tmp_path / "a.npz", np.array([0, 2])).margin, verdict.margin)
    assert session.load_piece(tmp_path / "a.npz", np.array([0, 3])) is None
