"""FastDFKD (Fang et al., AAAI 2022): a generator that learns to be adapted quickly, and a pool of what it made."""

import copy
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfshield.core.rng import generator, seeded
from dfshield.models.classifier import Classifier
from dfshield.models.generators import FastGenerator
from dfshield.options.sources import Fast as FastOptions
from dfshield.sources.generator import GeneratorSource
from dfshield.sources.objective import BatchStatistics
from dfshield.sources.views import translate

if TYPE_CHECKING:
    from dfshield.models.generators import Generator, Shape

RENEWAL = 2 / 3
"""Share of the rounds after which the generator's first linear layer is made anew; published is 140 of 220."""


def recorded(statistics: BatchStatistics) -> tuple[list[Tensor], list[Tensor]]:
    """Means and variances (C,) of one batch, layer by layer in turn, and the running ones; forgets the former."""
    own, running = [], []
    for layer, mean, variance in statistics.seen:
        own += [mean[0], variance[0]]
        running += [layer.get_buffer("running_mean"), layer.get_buffer("running_var")]
    statistics.seen.clear()
    return own, running


def average(own: Sequence[Tensor], moving: Sequence[Tensor], momentum: float) -> list[Tensor]:
    """The moving average of statistics after those of one batch more; these themselves where there is none yet."""
    if not moving:
        return list(own)
    return [momentum * before + (1 - momentum) * now for before, now in zip(moving, own, strict=True)]


def statistics_distance(own: Sequence[Tensor], running: Sequence[Tensor]) -> Tensor:
    """Sum of the L2 distances of statistics (C,) from the running ones, not squared, all layers weighted alike."""
    return torch.stack([(now - stated).norm() for now, stated in zip(own, running, strict=True)]).sum()


class Fast(GeneratorSource):
    """A generator that is carried from round to round, and a clone of it that each round adapts to a mini-batch.

    A round, which is an epoch, draws noise z (N,latent) and labels y (N,) and takes `iterations` steps of Adam on z and
    the clone's weights. With the clone's images x (N,C,H,W) in [0,1], shifted by up to an eighth and, by option,
    mirrored, they minimise

        feature_weight · u₁ · Σ (‖m - μ‖₂ + ‖v - σ²‖₂) + class_weight · u₂ · CE(T(x), y),

    where m and v are the moving average of the batch statistics over rounds with the current batch's, μ and σ² the
    running ones of the teacher's BatchNorm layers, and u₁, u₂ ~ U(least_factor, 1) are drawn once a round. Then the
    generator itself learns from the round: with FOMAML it takes one step of its own Adam on the sum of the clone's
    gradients, with Reptile it goes part of the way to the clone's weights. The images of the step with the lowest loss
    go to the pool with their labels, unless the round is one of the warm-up. The pool is the set.

    Differs from the publication: there is no student, hence neither an adversarial term nor a choice of images by what
    the student knows; the weights vary as in DSS (Eq 8); pixels are kept as multiples of 1/255.
    """

    options: FastOptions
    generator: FastGenerator

    def __init__(self, teacher: Classifier, shape: "Shape", classes: int, options: FastOptions) -> None:
        super().__init__(teacher, shape, classes, options)
        self.moving: list[Tensor] = []
        """Moving average of the batch statistics, in the order of `recorded`; empty before the first round."""
        self.filled = 0
        """Images that the pool has."""
        self.pool = torch.zeros((options.images, *shape), dtype=torch.uint8)
        self.labels = torch.zeros(options.images, dtype=torch.long)

    def build(self) -> "Generator":
        self.latent = self.options.latent or self.last.in_features
        return FastGenerator(self.latent, self.shape, self.options.width)

    def epoch(self, epoch: int, bar: Any = None) -> dict[str, Any]:
        """One round; a loss that is not finite raises InputError."""
        options, decay = self.options, self.decay(epoch)
        if epoch == int(RENEWAL * options.rounds) and epoch:
            self.renew()
        random = generator("generation", options.seed, epoch)
        weights = self.weights(random)
        noise = torch.randn((options.batch, self.latent), generator=random).to(self.device).requires_grad_()
        labels = torch.randint(self.classes, (options.batch,), generator=random).to(self.device)
        clone = copy.deepcopy(self.generator).train()
        adapted = list(clone.parameters())
        groups: list[dict[str, Any]] = [{"params": adapted}, {"params": [noise], "lr": options.latent_lr * decay}]
        adam = torch.optim.Adam(groups, options.lr * decay, (options.adam_beta1, 0.999))
        total = [torch.zeros_like(parameter) for parameter in adapted]
        best, lowest = torch.empty(0), math.inf
        statistics = BatchStatistics(self.teacher.net)
        try:
            for step in range(options.iterations):
                images = clone(noise, labels)
                logits = self.teacher(self.view(images, generator("generation", options.seed, epoch, step)))
                own, running = recorded(statistics)
                distance = statistics_distance(average(own, self.moving, options.momentum), running)
                loss = weights[0] * distance + weights[1] * F.cross_entropy(logits, labels)
                value = self.finite(loss, epoch)
                if value < lowest:
                    best, lowest = images.detach(), value
                *gradients, noise.grad = torch.autograd.grad(loss, [*adapted, noise])
                for parameter, gradient, earlier in zip(adapted, gradients, total, strict=True):
                    parameter.grad = gradient
                    earlier += gradient
                adam.step()
                if bar is not None:
                    bar.set_postfix({"loss": f"{value:.4g}"}, refresh=False)
                    bar.update()
        finally:
            statistics.remove()
        self.moving = average([values.detach() for values in own], self.moving, options.momentum)
        self.learn(adapted, total, decay)
        if epoch >= options.rounds - options.making:
            self.keep(best, labels)
        return {"epoch": epoch + 1, "loss": lowest}

    def weights(self, random: torch.Generator) -> list[float]:
        """Weights of the statistics and the class term in one round."""
        options = self.options
        factors = options.least_factor + (1 - options.least_factor) * torch.rand(2, generator=random)
        first, second = factors.tolist()
        return [options.feature_weight * first, options.class_weight * second]

    def view(self, images: Tensor, random: torch.Generator) -> Tensor:
        """Images (N,C,H,W) as the teacher sees them in one step: each shifted at random and, by option, mirrored."""
        if self.options.flip:
            draws = torch.rand((len(images), 1, 1, 1), generator=random).to(images)
            images = torch.where(draws < 0.5, images.flip(3), images)
        return translate(images, random)

    @torch.no_grad()
    def learn(self, adapted: Sequence[Tensor], gradients: Sequence[Tensor], decay: float) -> None:
        """The generator's own step, from the clone's weights after a round and its gradients' sum over the steps."""
        options = self.options
        if options.meta == "reptile":
            for parameter, goal in zip(self.generator.parameters(), adapted, strict=True):
                parameter.lerp_(goal, options.meta_rate)
            return
        for parameter, gradient in zip(self.generator.parameters(), gradients, strict=True):
            parameter.grad = gradient
        for group in self.adam.param_groups:
            group["lr"] = options.meta_lr * decay
        self.adam.step()
        self.adam.zero_grad()

    def renew(self) -> None:
        """Make the generator's first linear layer anew, so that later rounds do not repeat the images of earlier ones.

        Adam's averages of its gradients are those of another layer, and go with it.
        """
        first = next(layer for layer in self.generator.modules() if isinstance(layer, nn.Linear))
        with seeded(generator("renewal", self.options.seed).initial_seed(), self.device):
            first.reset_parameters()
        for parameter in first.parameters():
            self.adam.state.pop(parameter, None)

    def keep(self, images: Tensor, labels: Tensor) -> None:
        """Add images (N,C,H,W) in [0,1] and labels (N,) to the pool, as many as the set still lacks."""
        place = slice(self.filled, min(self.filled + len(labels), len(self.pool)))
        count = place.stop - place.start
        self.pool[place] = (images[:count] * 255).round().to("cpu", torch.uint8)
        self.labels[place] = labels[:count].cpu()
        self.filled = place.stop

    def state(self) -> dict[str, Any]:
        """Generator, its optimiser, moving average and pool."""
        own = {name: getattr(self, name)[: self.filled].clone() for name in ("pool", "labels")}
        return super().state() | own | {"moving": self.moving}

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        super().load(state)
        self.moving, self.filled = list(state["moving"]), len(state["labels"])
        for name in ("pool", "labels"):
            held = getattr(self, name).zero_()
            held[: self.filled] = state[name].cpu()

    def draw_set(self) -> tuple[np.ndarray, np.ndarray]:
        """The pool: images (N,H,W,C) float32, multiples of 1/255, and labels (N,)."""
        images = self.pool.permute(0, 2, 3, 1).contiguous().numpy()
        return images.astype(np.float32) / 255, self.labels.numpy()
