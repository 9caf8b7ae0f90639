"""The chunks of an evaluation: who is attacked, with what randomness, what is judged and what is flagged."""

import numpy as np
import pytest
import torch
from support.attacked import Constant, Linear, Noisy, Quantised, attack, images, key, network, small_budget
from torch import nn

from dfshield import registry
from dfshield.attacks import base, fgsm
from dfshield.attacks.base import Component, Ensemble
from dfshield.core.errors import InputError
from dfshield.core.lp import from_half
from dfshield.core.threat import parse_threat
from dfshield.evaluation import session
from dfshield.evaluation.needs import guide_images
from dfshield.evaluation.session import chunk_generator
from dfshield.evaluation.verdict import Outcome


@pytest.fixture
def small(monkeypatch):
    small_budget(monkeypatch)


def test_an_attack_that_leaves_the_ball_is_cut_back_before_it_is_judged():
    model = Linear()
    x = 0.25 + 0.5 * torch.rand((100, 1, 4, 4), generator=key(5))
    y = (model.score(x) > 0).long()

    def cheat(problem, options):
        x, y = problem.x, problem.y
        return torch.where(y.view(-1, 1, 1, 1) == 1, torch.zeros_like(x), torch.ones_like(x)) * 5

    ensemble = Ensemble((Component("cheat", cheat),))
    rows, _ = attack(model, x, y, "linf:0.02", ensemble=ensemble)
    assert rows["broken"].mean() <= (model.score(x).abs() / model.w.abs().sum() <= 0.02).float().mean()


def test_randomness_differs_between_seeds_attacks_and_chunks():
    first = torch.rand(4, generator=chunk_generator(0, "pgd", 1))
    for other in ((1, "pgd", 1), (0, "fgsm", 1), (0, "pgd", 2), (0, "pgd", 0)):
        assert not torch.equal(first, torch.rand(4, generator=chunk_generator(*other)))
    assert torch.equal(first, torch.rand(4, generator=chunk_generator(0, "pgd", 1)))


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
def test_suspicious_models_are_flagged_and_do_not_crash_the_ensemble(wrap, flag, small):
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
        x = problem.x
        return torch.cat([x[-1:].expand(count, -1, -1, -1), x[count:]])  # another class

    parts = Ensemble((Component("apgd-ce", base.clean), Component("square", square)))
    rows, flags = attack(net, x, y, "linf:1", parts)
    assert rows["broken"].sum() == count and (flags == ("square-broke-after-white-box",)) is flagged


def test_square_that_beats_white_box_attacks_is_flagged(monkeypatch):
    small_budget(monkeypatch, 3, 200)
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


def test_a_guide_is_of_another_class_by_label_and_by_prediction():
    torch.manual_seed(0)
    x, y = torch.rand(60, 1, 2, 2), torch.arange(60) % 3
    prediction = np.where(np.arange(60) < 30, y.numpy(), (y.numpy() + 1) % 3)
    guides = guide_images(x, y, prediction, seed=0)
    which = (guides[:, None] == x).flatten(2).all(2).int().argmax(1)
    assert torch.equal(x[which], guides)
    assert (y[which] != y).all() and (torch.from_numpy(prediction)[which] != y).all()
    assert len(which.unique()) > 20
    assert torch.equal(guide_images(x, y, prediction, seed=0), guides)
    assert not torch.equal(guide_images(x, y, prediction, seed=1), guides)
    with pytest.raises(InputError, match="another class than 1"):
        guide_images(x[:4], torch.ones(4, dtype=torch.long), np.zeros(4, int), seed=0)


def test_an_attack_gets_a_guide_for_each_of_its_images(monkeypatch):
    net = network(4)
    x, y = images(net, n=20)
    y[:2] = (y[:2] + 1) % 4
    given = []

    def spy(problem, options):
        given.append((problem.others["guide"], problem.others["teacher"]))
        return problem.x

    monkeypatch.setitem(registry.ATTACKS, "fgsm", registry.Attack("x:y", needs=("teacher", "guide")))
    ensemble = Ensemble((Component("spy", spy),))
    attack(net, x, y, ensemble=ensemble, attack="fgsm", chunk=8, others={"teacher": net})
    prediction = net(x).argmax(1).numpy()
    alive = [i for i in range(20) if i > 1]
    assert torch.equal(torch.cat([guide for guide, _ in given]), guide_images(x, y, prediction, 0)[alive])
    assert all(teacher is net for _, teacher in given)


def test_a_session_judges_the_defended_model_and_crafts_on_the_other():
    net, seen = network(4), []
    x, y = images(net)

    def spy(problem, options):
        seen.append(problem.model)
        return problem.x

    wrapped = nn.Sequential(net)
    spies = Ensemble((Component("spy", spy),))
    rows, flags = attack(wrapped, x, y, ensemble=spies, victim=Constant(net), reference=True)
    assert isinstance(seen[0], Constant) and not rows["broken"].any() and flags == ("zero-gradients",)


def test_verdicts_on_what_another_network_led_to_are_the_models_own():
    net, other = network(4), network(4, seed=9)
    x, y = images(net, 40)
    rows, _ = attack(net, x, y, "linf:0.1", victim=other, attack="pgd")
    broken = rows["perturbed_index"]
    assert 0 < len(broken) < 40
    image = from_half(x[broken], torch.from_numpy(rows["perturbation"]), parse_threat("linf:0.1"))
    assert np.array_equal(net(image).argmax(1), rows["prediction"][broken])
    assert (rows["prediction"][broken] != y.numpy()[broken]).all()
