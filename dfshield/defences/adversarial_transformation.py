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
from dfshield.models.external import Imitator, external_network
from dfshield.models.size import forward_flops
from dfshield.options.attacks import Pgd
from dfshield.options.defences_transformation import AdversarialTransformation as Options

EXTERNAL, CLASSIFIER, IMITATOR, SIZE = "external.", "classifier.", "imitator.", "size"
"""Names of what is kept: networks, the last of them only if asked for, and (C, H, W, classes)."""
SIGNS: dict[str, Callable[[Tensor], Tensor]] = {"softsign": F.softsign, "tanh": torch.tanh}
"""Smooth functions whose derivatives take the place of the sign's, by `backward`."""
DERIVED = (*SIGNS, "unrolled")
"""Values of `backward` whose gradients go through all steps."""
IMITATOR_LR = 1e-3
"""Learning rate of Adam for the network that imitates the transformation; the publication states none."""


def towards_least_likely(
    network: nn.Module, x: Tensor, start: Tensor, options: Options, derived: str | None = None
) -> Tensor:
    """LL-PGD (Eq 1 to 3): images (N,C,H,W) moved from `start` towards the class that `network` finds least likely.

    The class is that of `x`, and the way stays within Δ of `x` and in [0,1]. With `derived`, one of `DERIVED`, the
    result has gradients through all steps: of a smooth sign in place of the sign, or ``unrolled``, of the sign as it
    is, which is zero. Without, it has none. A pixel at the border of the ball moves with the ball, so its derivative is
    that of `x`; one at 0 or 1 has none.
    """
    ball = Threat("linf", options.delta)
    with torch.enable_grad():
        least = network(x.detach()).argmin(dim=1)
        moved = start if derived else start.detach()
        for _ in range(options.steps):
            at = moved if derived else moved.detach()
            at = at if at.requires_grad else at.requires_grad_()
            loss = F.cross_entropy(network(at), least, reduction="sum")
            (slope,) = torch.autograd.grad(loss, at, create_graph=derived in SIGNS, retain_graph=bool(derived))
            if derived:
                soft = SIGNS[derived](slope * options.smooth) if derived in SIGNS else slope
                way = straight_through(slope.sign(), soft) if soft.requires_grad else slope.sign()
                moved = project(x, at - options.step * way, ball)
            else:
                moved = project(x, step(at, -slope, options.step, "linf"), ball).detach()
    return moved


class Moved(nn.Module):
    """f_a behind the transformation by f_b: images (N,C,H,W) in [0,1] to logits (N,classes).

    Its draws follow from the content of an image and the seed, or with `fresh` from the global generator. With
    `fresh` it has gradients, too, as `backward` of the options says; `imitator` is h for those by reparameterisation.
    """

    def __init__(
        self,
        classifier: nn.Module,
        external: nn.Module,
        options: Options,
        fresh: bool,
        imitator: Imitator | None = None,
    ) -> None:
        super().__init__()
        self.classifier, self.external, self.options, self.fresh = classifier, external, options, fresh
        self.imitator = imitator

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.transform(x))
        return logits

    def transform(self, x: Tensor) -> Tensor:
        """g(x) (N,C,H,W) in [0,1]; h(x) and the mean of several g(x) where the options say so of a `fresh` one."""
        backward = self.options.backward if self.fresh else ""
        if backward == "average":
            versions = [self._moved(x.detach()) for _ in range(self.options.draws)]
            return straight_through(torch.stack(versions).mean(dim=0), x)
        if backward == "reparameterised":
            assert self.imitator is not None
            found: Tensor = self.imitator(x, self.start(x))
            return found
        if backward in DERIVED:
            start = straight_through(self.start(x), x)
            return towards_least_likely(self.external, x, start, self.options, backward)
        return straight_through(self._moved(x), x) if self.fresh else self._moved(x)

    def _moved(self, x: Tensor) -> Tensor:
        return towards_least_likely(self.external, x, self.start(x), self.options)

    def start(self, x: Tensor) -> Tensor:
        """x + δ (N,C,H,W) in [0,1], without a gradient."""
        return (x.detach() + self._noise(x)).clamp(0, 1)

    def _noise(self, x: Tensor) -> Tensor:
        """δ ~ U(-Δ, Δ) for each image."""
        if self.fresh:
            random = drawn_anew(self.options)
            # a tuple ends any trace here, which would have one draw for all calls
            uniform = torch.rand(tuple(x.shape), generator=random)
        else:
            uniform = torch.cat(
                [torch.rand(image.shape, generator=drawn_for(image, self.options)) for image in x.split(1)]
            )
        return ((2 * uniform - 1) * self.options.delta).to(x)


def external_flops(options: Options, input_shape: tuple[int, int, int]) -> float:
    """Operations of the other network's forward pass of one image (C,H,W); its last layer hardly counts."""
    return forward_flops(lambda: external_network(input_shape, 10, options.width, options.structure), (1, *input_shape))


class AdversarialTransformation(FittedDefence[Options]):
    """f_a∘g in place of the classifier; f_b is trained on the training set, f_a is the classifier tuned on g(x).

    The surrogate makes new draws. It derives g as `backward` says: as the identity (BPDA-I); through all steps with a
    smooth sign (BPDA with soft sign or tanh) or with the sign as it is (automatic differentiation); as a fully
    convolutional network h that was fitted to g on the training set (reparameterisation, Eq 6). Or it is f_a at the
    mean of transformed images, or f_a alone (white-box transfer). `eot` of the attack averages over draws. With fewer
    `steps` than the defence it is the few-step model that table 5 transfers from.

    Differs from the publication: the projection is derived as it is, with its ball moving along, as Eq 5 did not
    survive in the text at hand; the few-step model has the defence's own f_a, not one that was trained for few steps;
    the perturbation found at the mean of transformed images is laid on the image itself, where the publication's
    images leave the ball. f_a starts from the classifier and not from random weights, with a lower learning
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

        outer = options.external_epochs or options.epochs
        epochs = (outer if options.external != "untrained" else 0) + options.epochs + options.fcn_epochs
        with torch.random.fork_rng(), progress(epochs, options.defence, "epoch") as bar:
            torch.manual_seed(int(torch.randint(2**31, (), generator=random)))
            channels, height, width = given.images.shape[1:]
            external = external_network((channels, height, width), given.classes, options.width, options.structure)
            external.to(given.images.device)
            if options.external != "untrained":
                seen = attacked if options.external == "attacked" else lambda x, y: x
                self._train(external, given, outer, options.lr, seen, bar)
            external.eval().requires_grad_(False)
            classifier = copy.deepcopy(given.model).requires_grad_(True)
            moved = Moved(classifier, external, options.model_copy(update={"backward": "identity"}), fresh=True)
            self._train(classifier, given, options.epochs, options.tuning_lr, lambda x, y: moved.transform(x), bar)
            imitator = self._imitate(moved, given, bar) if options.fcn_epochs else None
        size = torch.tensor([*given.images.shape[1:], given.classes])
        networks = [(EXTERNAL, external), (CLASSIFIER, classifier), *([(IMITATOR, imitator)] if imitator else [])]
        tensors = {prefix + name: value for prefix, net in networks for name, value in net.state_dict().items()}
        return tensors | {SIZE: size}

    def _train(
        self,
        network: nn.Module,
        given: Fitting,
        epochs: int,
        lr: float,
        seen: Callable[[Tensor, Tensor], Tensor],
        bar: Any,
    ) -> None:
        """Train `network` by SGD on what `seen` makes of each mini-batch (N,C,H,W) and its labels (N,)."""
        options = self.options
        sgd = torch.optim.SGD(network.parameters(), lr=lr, momentum=options.momentum, weight_decay=options.weight_decay)
        for _ in range(epochs):
            order = torch.randperm(len(given.images), generator=given.random).to(given.images.device)
            for chosen in order.split(options.batch):
                if len(chosen) == 1:  # BatchNorm cannot normalise a single value
                    continue
                x, y = given.images[chosen], given.labels[chosen]
                images = seen(x, y).detach()
                network.train()
                loss = F.cross_entropy(network(images), y)
                sgd.zero_grad()
                loss.backward()
                sgd.step()
                network.eval()
            bar.update()

    def _imitate(self, moved: Moved, given: Fitting, bar: Any) -> Imitator:
        """h, fitted to g by Adam on the mean squared error (Eq 6), with new δ for every mini-batch."""
        imitator = Imitator(given.images.shape[1], self.options.delta).to(given.images.device)
        adam = torch.optim.Adam(imitator.parameters(), lr=IMITATOR_LR)
        for _ in range(self.options.fcn_epochs):
            order = torch.randperm(len(given.images), generator=given.random).to(given.images.device)
            for chosen in order.split(self.options.batch):
                x = given.images[chosen]
                start = moved.start(x)
                target = towards_least_likely(moved.external, x, start, self.options)
                loss = F.mse_loss(imitator(x, start), target)
                adam.zero_grad()
                loss.backward()
                adam.step()
            bar.update()
        return imitator

    def protect(self, model: nn.Module) -> nn.Module:
        return Moved(*self._networks(model), self.options, fresh=False)

    def surrogate(self, model: nn.Module) -> nn.Module:
        classifier, external = self._networks(model)
        if self.options.backward == "transfer":
            return classifier
        return Moved(classifier, external, self.options, fresh=True, imitator=self._imitator())

    def _imitator(self) -> Imitator | None:
        """h, where gradients are by it."""
        if self.options.backward != "reparameterised":
            return None
        imitator = Imitator(int(self.tensors[SIZE][0]), self.options.delta)
        imitator.load_state_dict(self.state(IMITATOR))
        return imitator.to(self.tensors[SIZE].device).eval().requires_grad_(False)

    def _networks(self, model: nn.Module) -> tuple[nn.Module, nn.Module]:
        """f_a and f_b of what `fit` kept."""
        classifier = copy.deepcopy(model)
        classifier.load_state_dict(self.state(CLASSIFIER))
        *input_shape, classes = self.tensors[SIZE].tolist()
        external = external_network(tuple(input_shape), classes, self.options.width, self.options.structure)
        external.load_state_dict(self.state(EXTERNAL))
        for network in (classifier, external):
            network.eval().requires_grad_(False)
        return classifier, external.to(self.tensors[SIZE].device)
