"""What is special of attacks that follow the gradients of other objectives than the cross entropy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.attacked import attack, images, network, problem
from torch import nn

from dfshield.attacks.latent import latent
from dfshield.attacks.margins import cosine, towards
from dfshield.attacks.mifgsm import mi_fgsm
from dfshield.attacks.modified import divergence
from dfshield.options import AttackOptions


@pytest.fixture(scope="module")
def given():
    net = network(10, seed=3)
    return net, *images(net, n=200)


@pytest.mark.parametrize("name", ["md", "mm"])
def test_more_steps_break_at_least_what_pgd_breaks(given, name):
    weak = attack(*given, "linf:0.02", attack="pgd")[0]["broken"].mean()
    strong = attack(*given, "linf:0.02", attack=name)[0]["broken"].mean()
    assert 1 > strong >= weak - 0.005 > 0.1


class Steep(nn.Module):
    """Class 1 is the runner-up but out of reach, class 2 is farther in logits and near in pixels."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(10.0))

    def forward(self, x):
        mean = x.flatten(1).mean(1)
        return torch.stack((0 * mean + 1, 0.9 + 0 * mean, self.slope * (mean - 0.5)), 1)


def test_the_next_target_is_tried_where_the_likeliest_is_out_of_reach():
    x = torch.full((3, 1, 8, 8), 0.55) + torch.tensor([0.0, 0.01, 0.03]).view(3, 1, 1, 1)
    y = torch.zeros(3, dtype=torch.long)
    found = [attack(Steep(), x, y, "linf:0.03", attack="mm", targets=n)[0]["broken"].tolist() for n in (1, 2)]
    assert found == [[False] * 3, [False, False, True]]


def test_steps_follow_the_momentum(given):
    """Against a plain loop over images that takes every step (Dong et al. 2018, Algorithm 1)."""
    net, x, y = given
    x, y = x[:6], y[:6]
    options = AttackOptions.of(attack="mi-fgsm", steps=4, momentum=0.5, reference=True)
    found = mi_fgsm(problem(net, x, y, "linf:0.02"), options)
    for image, label, own in zip(x, y, found, strict=True):
        point, direction = image[None], torch.zeros_like(image[None])
        for _ in range(4):
            point = point.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(net(point), label[None]), point)
            direction = 0.5 * direction + gradient / gradient.abs().mean()
            point = (point + 0.005 * direction.sign()).clamp(image - 0.02, image + 0.02).clamp(0, 1)
        assert torch.allclose(own, point[0], atol=1e-6)


def test_the_divergence_is_pytorchs(given):
    net, x, _ = given
    logits, aims = net(x[:5]), F.softmax(torch.randn(5, 2, 10), dim=2)
    theirs = [F.kl_div(F.log_softmax(logits, 1), aims[:, k], reduction="none").sum(1) for k in range(2)]
    assert torch.allclose(divergence(logits, torch.zeros(5), aims), sum(theirs), atol=1e-5)


def test_both_references_count_and_the_clean_image_is_left(given):
    """(b) without a difference between the models is (a); a teacher of its own gives other perturbations."""
    net, x, y = given
    other = network(10, seed=8)
    rows = {
        name: attack(net, x, y, "linf:0.02", others={"teacher": teacher} if teacher else {}, **options)[0]["margin"]
        for name, teacher, options in (
            ("a", None, {"attack": "tpgd"}),
            ("b own", net, {"attack": "modified-pgd"}),
            ("b", other, {"attack": "modified-pgd"}),
            ("c", other, {"attack": "modified-pgd", "objective": "both"}),
        )
    }
    clean = attack(net, x, y, "linf:0.02", attack="clean")[0]["margin"]
    assert np.array_equal(rows["b own"], rows["a"])
    assert len({float(values.sum()) for values in rows.values()} | {float(clean.sum())}) == 4


def test_a_transferred_attack_asks_the_surrogate_alone(given):
    net, x, y = given
    asked = []
    handle = net.register_forward_pre_hook(lambda module, inputs: asked.append(len(inputs[0])))
    other = network(10, seed=8)
    broken = attack(net, x, y, "linf:0.1", attack="transfer", others={"surrogate": other})[0]["broken"].mean()
    handle.remove()
    direct = attack(net, x, y, "linf:0.1", attack="pgd")[0]["broken"].mean()
    assert 0 <= broken < direct
    assert sum(asked) <= 1 + 2 * 32 + 3 * len(x)  # clean images, the signs of masking, the verdict: no step


def test_the_latent_attack_brings_features_to_the_guide(given):
    net, x, y = given
    features = torch.nn.Sequential(*list(net)[:-1])
    guide = x.flip(0)
    options = AttackOptions.of(attack="latent", iterations=20)
    found = latent(problem(net, x, y, "linf:0.1")._replace(others={"guide": guide}), options)
    before, after = ((features(points) - features(guide)).square().sum(1) for points in (x, found))
    assert (after < before).all() and after.mean() < 0.8 * before.mean()


def test_steps_fall_along_a_cosine():
    sizes = cosine(2.0, 4)
    assert sizes == pytest.approx([2.0, 1 + 2**-0.5, 1.0, 1 - 2**-0.5])
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    assert towards(logits, torch.tensor([1]), torch.tensor([2])).item() == -1
