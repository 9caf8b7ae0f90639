"""Detectors of attacked images: what they are fitted on, and the score that each gives.

A detector is a module of images (N,C,H,W) in [0,1], the logits (N,classes) and penultimate features (N,D) that the
network gives for them; it returns a score (N,), the larger the likelier an attack. A fit is a function ``(model, x, y,
options, random)`` of images (N,C,H,W) of classes (N,) on the model's device.

The secondary classifier is that of DAD (Nayak et al. 2022). Mahalanobis is the distance of Lee et al. (A Simple Unified
Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks, NeurIPS 2018, Eq 2).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from dfshield.attacks.base import Problem, frozen
from dfshield.attacks.pgd import pgd
from dfshield.core.errors import InputError
from dfshield.core.rng import seeded
from dfshield.core.threat import parse_threat
from dfshield.defences.fitted import device_of
from dfshield.models.folding import fold
from dfshield.models.penultimate import Penultimate
from dfshield.options.attacks import Pgd
from dfshield.options.defences_detection import Dad
from dfshield.options.detectors import MahalanobisDetector, SecondaryDetector

WIDTH, DROPOUT = 128, 0.25
FEWEST = 20
"""Images that a detector needs at least."""
TOGETHER = 250
"""Images that go through a network at a time."""


class Pairs(NamedTuple):
    """Images of a training set and what attacks made of them."""

    clean: Tensor
    """(N,C,H,W)."""
    attacked: Tensor
    """(M,C,H,W), only such as are misclassified."""


def pairs(model: nn.Module, images: Tensor, threat: str, steps: int, random: torch.Generator) -> Pairs:
    """Images (N,C,H,W), and those of their attacked versions that lead `model` to another class than the image did.

    Every image is attacked twice by PGD on the cross entropy of the model's own answer: with all steps, and with a stop
    at the first clear success, as an attack that looks no further has it. Raises InputError where there are too few
    images, or attacks on too few succeed.
    """
    attacked = []
    device = device_of(model)
    with frozen(model):
        crafted = fold(model)
        for x in images.split(TOGETHER):
            x = x.to(device)
            with torch.no_grad():
                y = model(x).argmax(dim=1)
            for whole in (True, False):
                options = Pgd(threat=threat, steps=steps, reference=whole)
                found = pgd(Problem(crafted, x, y, parse_threat(threat), random), options)
                with torch.no_grad():
                    attacked.append(found[model(found).argmax(dim=1) != y].cpu())
    wrong = torch.cat(attacked)
    if min(len(images), len(wrong)) < FEWEST:
        raise InputError(
            f"a detector needs at least {FEWEST} images and as many that an attack within {threat} breaks; there are "
            f"{len(images)} and {len(wrong)}: give a larger training set, or a larger ε"
        )
    return Pairs(images.cpu(), wrong)


def perceptron(classes: int) -> nn.Sequential:
    """DAD's detector, untrained, on the CPU: logits (N,classes) to logits of clean and attacked (N,2)."""
    return nn.Sequential(
        nn.Linear(classes, WIDTH),
        nn.ReLU(),
        nn.Dropout(DROPOUT),
        nn.Linear(WIDTH, WIDTH),
        nn.ReLU(),
        nn.BatchNorm1d(WIDTH),
        nn.Dropout(DROPOUT),
        weight_norm(nn.Linear(WIDTH, 2)),
    )


@torch.no_grad()
def outputs(model: nn.Module, images: Tensor) -> Tensor:
    """What `model` gives for images (N,C,H,W), on the CPU."""
    device = device_of(model)
    with frozen(model):
        return torch.cat([model(x.to(device)).float().cpu() for x in images.split(TOGETHER)])


def trained(
    clean: Tensor, attacked: Tensor, epochs: int, batch: int, lr: float, random: torch.Generator
) -> nn.Sequential:
    """`perceptron` that tells logits of clean images (N,classes) from those of attacked ones (M,classes); in eval mode.

    RMSprop on the cross entropy, in which both kinds have the same weight.
    """
    x = torch.cat([clean, attacked])
    y = torch.cat([torch.zeros(len(clean)), torch.ones(len(attacked))]).long()
    weight = len(y) / (2 * torch.bincount(y, minlength=2).float())
    with seeded(int(torch.randint(2**31, (), generator=random))):
        detector = perceptron(x.shape[1])
        optimiser = torch.optim.RMSprop(detector.parameters(), lr)
        for _ in range(epochs):
            for rows in torch.randperm(len(y)).split(batch):
                if len(rows) == 1:  # no statistics of a mini-batch of one
                    continue
                optimiser.zero_grad()
                F.cross_entropy(detector(x[rows]), y[rows], weight).backward()
                optimiser.step()
    return detector.eval().requires_grad_(False)


class Secondary(nn.Module):
    """The logarithm of the odds of an attack (N,) by a classifier of logits."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, x: Tensor, logits: Tensor, features: Tensor) -> Tensor:
        found = self.detector(logits)
        return found[:, 1] - found[:, 0]


class Mahalanobis(nn.Module):
    """The squared Mahalanobis distance (N,) of features (N,D) from the nearest class.

    The classes have means of their own and one covariance. Directions without any variance do not count.
    Differs from the publication: the penultimate features alone, without a weighted sum over layers, whose weights are
    fitted on attacked images, and without the noise of the gradient's sign before the network.
    """

    def __init__(self, features: Tensor, labels: Tensor) -> None:
        super().__init__()
        x = features.double()
        classes = labels.unique()
        means = torch.stack([x[labels == label].mean(0) for label in classes])
        rest = x - means[torch.searchsorted(classes, labels)]
        self.register_buffer("means", means)
        self.register_buffer("precision", torch.linalg.pinv(rest.T @ rest / len(x), rtol=1e-6, hermitian=True))
        self.means: Tensor
        self.precision: Tensor

    def forward(self, x: Tensor, logits: Tensor, features: Tensor) -> Tensor:
        rest = features.double()[:, None] - self.means
        return (rest @ self.precision * rest).sum(2).amin(1).float()


def fit_secondary(
    model: nn.Module, x: Tensor, y: Tensor, options: SecondaryDetector, random: torch.Generator
) -> nn.Module:
    """DAD's classifier of logits, with DAD's mini-batches and learning rate."""
    both = pairs(model, x, options.threat, options.fit_steps, random)
    clean, attacked = (outputs(model, part) for part in both)
    given = Dad.model_fields
    made = trained(clean, attacked, options.epochs, given["batch"].default, given["lr"].default, random)
    return Secondary(made).to(x.device)


def fit_mahalanobis(
    model: nn.Module, x: Tensor, y: Tensor, options: MahalanobisDetector, random: torch.Generator
) -> nn.Module:
    """Means and covariance of the penultimate features by class."""
    return Mahalanobis(all_seen(model, x)[1], y)


class Watched(nn.Module):
    """A network with a detector: images (N,C,H,W) to logits and, last, the detector's score (N,classes + 1)."""

    def __init__(self, model: nn.Module, detector: nn.Module) -> None:
        super().__init__()
        self.model, self.detector = model, detector

    def forward(self, x: Tensor) -> Tensor:
        logits, features = seen(self.model, x)
        return torch.cat([logits, self.detector(x, logits, features)[:, None]], dim=1)


def seen(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (N,classes) and penultimate features (N,D) of images (N,C,H,W).

    Raises InputError for a network that calls no Linear layer.
    """
    watch = Penultimate(model)
    try:
        logits = model(x).float()
        return logits, watch.features.float()
    finally:
        watch.remove()


@torch.no_grad()
def all_seen(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """The same of many images (N,C,H,W), on the model's device."""
    device = device_of(model)
    with frozen(model):
        parts = [seen(model, x.to(device)) for x in images.split(TOGETHER)]
    return torch.cat([logits for logits, _ in parts]), torch.cat([features for _, features in parts])
