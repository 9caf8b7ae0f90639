"""Adversarial transformation (Xiao and Zheng, CVPR 2020): images moved towards another network's least likely class.

The defended classifier is f_a(g(x)). The transformation g starts at x + δ, δ ~ U(-Δ, Δ), and takes steps against the
loss of the least likely class under an external network f_b, within Δ of x and in [0,1] (LL-PGD). f_a was tuned on
such images. Whatever an attacker adds to x is meant to be lost in g.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfshield.attacks.base import Problem
from dfshield.attacks.pgd import pgd
from dfshield.core.errors import InputError
from dfshield.core.lp import project, step
from dfshield.core.progress import progress
from dfshield.core.threat import Threat, parse_threat
from dfshield.defences.defence import drawn_anew, drawn_for, straight_through
from dfshield.defences.fitted import FittedDefence, Fitting
from dfshield.models.size import forward_flops
from dfshield.options.attacks import Pgd
from dfshield.options.defences_transformation import AdversarialTransformation as Options

EXTERNAL, CLASSIFIER, SIZE = "external.", "classifier.", "size"
"""Names of what is kept: two networks, and (C, H, W, classes)."""
CHANNELS = (64, 128, 128, 128, 128, 128)
"""Channels of the external network's convolutions, a maximum over 2x2 pixels after all but the third and fifth."""
HIDDEN = 512
"""Units of its two hidden linear layers."""


def external_network(input_shape: tuple[int, int, int], classes: int, width: float) -> nn.Module:
    """The small VGG network f_b (table 4 of the publication): images (N,C,H,W) in [0,1] to logits (N,classes).

    `width` multiplies the published numbers of channels and units. Maps of one pixel are not pooled any further.
    """
    channels, height, side = input_shape
    layers: list[nn.Module] = []
    for place, count in enumerate(CHANNELS):
        out = max(1, round(count * width))
        layers += [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        channels = out
        if place not in (2, 4) and min(height, side) > 1:
            layers.append(nn.MaxPool2d(2))
            height, side = height // 2, side // 2
    units, hidden = channels * height * side, max(1, round(HIDDEN * width))
    head = [nn.Linear(units, hidden), nn.ReLU(), nn.Dropout(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout()]
    return nn.Sequential(*layers, nn.Flatten(), *head, nn.Linear(hidden, classes))


def towards_least_likely(
    network: nn.Module, x: Tensor, start: Tensor, options: Options, smooth: str | None = None
) -> Tensor:
    """LL-PGD (Eq 1 to 3): images (N,C,H,W) moved from `start` towards the class that `network` finds least likely.

    The class is that of `x`, and the way stays within Δ of `x` and in [0,1]. With `smooth`, ``softsign`` or ``tanh``,
    the result has gradients through all steps, of a smooth sign in place of the sign; without, it has none.
    """
    ball = Threat("linf", options.delta)
    with torch.enable_grad():
        least = network(x.detach()).argmin(dim=1)
        moved = start if smooth else start.detach()
        for _ in range(options.steps):
            at = moved if smooth else moved.detach()
            at = at if at.requires_grad else at.requires_grad_()
            loss = F.cross_entropy(network(at), least, reduction="sum")
            (slope,) = torch.autograd.grad(loss, at, create_graph=bool(smooth))
            if smooth:
                soft = (slope * options.smooth).tanh() if smooth == "tanh" else F.softsign(slope * options.smooth)
                way = straight_through(slope.sign(), soft) if soft.requires_grad else slope.sign()
                moved = project(x, at - options.step * way, ball)
            else:
                moved = project(x, step(at, -slope, options.step, "linf"), ball).detach()
    return moved


class Moved(nn.Module):
    """f_a behind the transformation by f_b: images (N,C,H,W) in [0,1] to logits (N,classes).

    Its draws follow from the content of an image and the seed, or with `fresh` from the global generator.
    """

    def __init__(self, classifier: nn.Module, external: nn.Module, options: Options, fresh: bool) -> None:
        super().__init__()
        self.classifier, self.external, self.options, self.fresh = classifier, external, options, fresh

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.transform(x))
        return logits

    def transform(self, x: Tensor) -> Tensor:
        """g(x) (N,C,H,W) in [0,1]."""
        start = (x.detach() + self._noise(x)).clamp(0, 1)
        backward = self.options.backward
        if self.fresh and backward in ("softsign", "tanh"):
            return towards_least_likely(self.external, x, straight_through(start, x), self.options, backward)
        found = towards_least_likely(self.external, x, start, self.options)
        return straight_through(found, x) if self.fresh else found

    def _noise(self, x: Tensor) -> Tensor:
        """δ ~ U(-Δ, Δ) for each image."""
        if self.fresh:
            random = drawn_anew(self.options)
            uniform = torch.rand(x.shape, generator=random)
        else:
            uniform = torch.cat(
                [torch.rand(image.shape, generator=drawn_for(image, self.options)) for image in x.split(1)]
            )
        return ((2 * uniform - 1) * self.options.delta).to(x)


def external_flops(options: Options, input_shape: tuple[int, int, int]) -> float:
    """Operations of the other network's forward pass of one image (C,H,W); its last layer hardly counts."""
    return forward_flops(lambda: external_network(input_shape, 10, options.width), (1, *input_shape))


class AdversarialTransformation(FittedDefence[Options]):
    """f_a∘g in place of the classifier; f_b is trained on the training set, f_a is the classifier tuned on g(x).

    The surrogate makes new draws. It derives g as the identity (BPDA-I), through all steps with a smooth sign (BPDA
    with soft sign or tanh; a pixel that the projection cuts off has no derivative, Eq 5), or is f_a alone (white-box
    transfer), as `backward` says. `eot` of the attack averages over draws.

    Differs from the publication: f_a starts from the classifier and not from random weights, with a lower learning
    rate; labels are those of the training set, which a synthetic one has from its teacher. What f_b is attacked with
    in its training is not stated there: here PGD within the threat model of the evaluation.
    """

    keeps = (EXTERNAL, CLASSIFIER, SIZE)

    def fit(self, given: Fitting) -> dict[str, Tensor]:
        """Train f_b, then tune f_a, both by SGD on the cross entropy; InputError for too few images."""
        if len(given.images) < self.options.batch:
            raise InputError(
                f"{self.options.defence}: batch {self.options.batch} needs as many images, and the training set has "
                f"{len(given.images)}; use a smaller batch or more images"
            )
        options, threat, random = self.options, parse_threat(given.threat), given.random
        inner = Pgd(threat=given.threat, steps=options.attack_steps, l2_step=str(threat.eps / 5))

        def attacked(x: Tensor, y: Tensor) -> Tensor:
            return pgd(Problem(external, x, y, threat, random), inner)

        with torch.random.fork_rng(), progress(2 * options.epochs, options.defence, "epoch") as bar:
            torch.manual_seed(int(torch.randint(2**31, (), generator=random)))
            channels, height, width = given.images.shape[1:]
            external = external_network((channels, height, width), given.classes, options.width)
            external.to(given.images.device)
            if options.external != "untrained":
                seen = attacked if options.external == "attacked" else lambda x, y: x
                self._train(external, given, options.lr, seen, bar)
            external.eval().requires_grad_(False)
            classifier = copy.deepcopy(given.model).requires_grad_(True)
            moved = Moved(classifier, external, options, fresh=True)
            self._train(classifier, given, options.tuning_lr, lambda x, y: moved.transform(x).detach(), bar)
        size = torch.tensor([*given.images.shape[1:], given.classes])
        networks = ((EXTERNAL, external), (CLASSIFIER, classifier))
        tensors = {prefix + name: value for prefix, net in networks for name, value in net.state_dict().items()}
        return tensors | {SIZE: size}

    def _train(
        self, network: nn.Module, given: Fitting, lr: float, seen: Callable[[Tensor, Tensor], Tensor], bar: Any
    ) -> None:
        """Train `network` by SGD on what `seen` makes of each mini-batch (N,C,H,W) and its labels (N,)."""
        options = self.options
        sgd = torch.optim.SGD(network.parameters(), lr=lr, momentum=options.momentum, weight_decay=options.weight_decay)
        for _ in range(options.epochs):
            order = torch.randperm(len(given.images), generator=given.random).to(given.images.device)
            for chosen in order.split(options.batch):
                if len(chosen) == 1:  # BatchNorm cannot normalise a single value
                    continue
                x, y = given.images[chosen], given.labels[chosen]
                images = seen(x, y)
                network.train()
                loss = F.cross_entropy(network(images), y)
                sgd.zero_grad()
                loss.backward()
                sgd.step()
                network.eval()
            bar.update()

    def protect(self, model: nn.Module) -> nn.Module:
        return Moved(*self._networks(model), self.options, fresh=False)

    def surrogate(self, model: nn.Module) -> nn.Module:
        classifier, external = self._networks(model)
        if self.options.backward == "transfer":
            return classifier
        return Moved(classifier, external, self.options, fresh=True)

    def _networks(self, model: nn.Module) -> tuple[nn.Module, nn.Module]:
        """f_a and f_b of what `fit` kept."""
        classifier = copy.deepcopy(model)
        classifier.load_state_dict(self.state(CLASSIFIER))
        *input_shape, classes = self.tensors[SIZE].tolist()
        external = external_network(tuple(input_shape), classes, self.options.width)
        external.load_state_dict(self.state(EXTERNAL))
        for network in (classifier, external):
            network.eval().requires_grad_(False)
        return classifier, external.to(self.tensors[SIZE].device)
