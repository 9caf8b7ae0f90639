"""The method as the paper's released code goes about it, in the plainest loops: what every figure here is a ratio to.

Eager float32 in PyTorch's default layout and TF32 setting; one synthesis batch at a time; a copy of the student per
mini-batch; teacher and clean outputs computed again for every mini-batch; a gradient at a time in GradRefine.
"""

import copy

import torch
import torch.nn.functional as F
from pyautoattack import AutoAttack
from torch import Tensor, nn


def synthesis(teacher: nn.Module, labels: Tensor, alphas: Tensor, start: Tensor, steps: int, roll: int = 2) -> Tensor:
    """`steps` Adam steps on one batch `start` (N,C,H,W) in normalised space (Eq 3-6); returns the batch."""
    net = copy.deepcopy(teacher).eval().requires_grad_(False)
    found: list[Tensor] = []

    def record(layer: nn.BatchNorm2d, inputs: tuple[Tensor, ...]) -> None:
        mean, variance = inputs[0].mean((0, 2, 3)), inputs[0].var((0, 2, 3), unbiased=False)
        assert layer.running_mean is not None and layer.running_var is not None
        found.append((mean - layer.running_mean).norm() + (variance - layer.running_var).norm())

    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_pre_hook(record)
    x = start.clone().requires_grad_()
    adam = torch.optim.Adam([x], lr=0.1)
    for _ in range(steps):
        shifts = torch.randint(-roll, roll + 1, (2,)).tolist()
        rolled = torch.roll(x, shifts, (2, 3))
        found.clear()
        adam.zero_grad()
        terms = F.cross_entropy(net(rolled), labels), sum(found), total_variation(rolled)
        sum(alpha * term for alpha, term in zip(alphas, terms, strict=True)).backward()
        adam.step()
    return x.detach()


def total_variation(x: Tensor) -> Tensor:
    """Eq 5: L2 norms of the differences in four directions."""
    pairs = (
        (x[..., 1:], x[..., :-1]),
        (x[..., 1:, :], x[..., :-1, :]),
        (x[..., 1:, 1:], x[..., :-1, :-1]),
        (x[..., 1:, :-1], x[..., :-1, 1:]),
    )
    return sum((a - b).norm() for a, b in pairs)


def divergence(target: Tensor, student: Tensor) -> Tensor:
    """KL of the softmax of two sets of logits, mean over images."""
    return F.kl_div(F.log_softmax(student, 1), F.softmax(target, 1), reduction="batchmean")


class Training:
    """Adversarial training with L_DFShield and GradRefine (Eq 9-11)."""

    def __init__(self, teacher: nn.Module, eps: float, b: int = 20, tau: float = 0.5, lr: float = 1e-4) -> None:
        self.teacher, self.student = teacher.eval(), copy.deepcopy(teacher)
        self.eps, self.b, self.tau = eps, b, tau
        self.optimiser = torch.optim.SGD(self.student.parameters(), lr=lr, momentum=0.9)
        self.gradients: list[list[Tensor]] = []

    def step(self, x: Tensor) -> None:
        """One mini-batch (N,C,H,W) in [0,1]; every `b` of them make an update."""
        net = copy.deepcopy(self.student)
        with torch.no_grad():
            target = self.teacher(x)
        adversarial = self.inner(net.eval(), x)
        net.train()
        distilled = divergence(target, net(x))
        clean, robust = net(x), net(adversarial)
        loss = distilled + divergence(target, robust) + divergence(clean, robust)
        self.gradients.append(list(torch.autograd.grad(loss, list(net.parameters()))))
        for mine, its in zip(self.student.buffers(), net.buffers(), strict=True):
            mine.copy_(its)
        if len(self.gradients) == self.b:
            self.update()

    def inner(self, net: nn.Module, x: Tensor) -> Tensor:
        """Ten steps up KL(S(x), S(x')) from x + 0.001 N(0,1)."""
        adversarial = x + 0.001 * torch.randn_like(x)
        clean = net(x).detach()
        for _ in range(10):
            adversarial.requires_grad_()
            (gradient,) = torch.autograd.grad(divergence(clean, net(adversarial)), adversarial)
            adversarial = adversarial.detach() + self.eps / 4 * gradient.sign()
            adversarial = torch.min(torch.max(adversarial, x - self.eps), x + self.eps).clamp(0, 1)
        return adversarial

    def update(self) -> None:
        """Eq 9 and 10, parameter by parameter."""
        for position, parameter in enumerate(self.student.parameters()):
            gradients = torch.stack([found[position] for found in self.gradients])
            agreement = gradients.sign().mean(0)
            agreeing = (gradients * (gradients * agreement > 0)).sum(0)
            parameter.grad = agreeing * (agreement.abs() >= self.tau)
        self.optimiser.step()
        self.gradients.clear()


def pgd(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int = 10) -> Tensor:
    """PGD on the cross entropy from a uniform start (Eq 2); returns which images are misclassified at its end."""
    adversarial = (x + (2 * torch.rand_like(x) - 1) * eps).clamp(0, 1)
    for _ in range(steps):
        adversarial.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(adversarial), y), adversarial)
        adversarial = adversarial.detach() + eps / 4 * gradient.sign()
        adversarial = torch.min(torch.max(adversarial, x - eps), x + eps).clamp(0, 1)
    with torch.no_grad():
        return model(adversarial).argmax(1) != y


def autoattack(model: nn.Module, x: Tensor, y: Tensor, eps: float, batch: int) -> Tensor:
    """pyautoattack's standard ensemble; returns which images are misclassified at its end."""
    ensemble = AutoAttack(model, norm="Linf", eps=eps, seed=0, version="standard", device=x.device)
    _, prediction = ensemble.run_standard_evaluation(x, y, batch_size=batch)
    return prediction != y
