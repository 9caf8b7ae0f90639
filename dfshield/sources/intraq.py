"""IntraQ's synthesis by direct optimisation of pixels, for heterogeneous images of a class (Zhong et al., CVPR 2022).

Batches are made one after another, because images keep their distance from the mean feature of their class in the
batches before. That memory is the group's own, which keeps groups independent of one another; with groups of twenty
batches it spans as much as IntraQ's whole set does.
"""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from dfshield.core.progress import log
from dfshield.core.rng import generator
from dfshield.models.classifier import Classifier
from dfshield.models.penultimate import Penultimate
from dfshield.options.sources import Intraq as IntraqOptions
from dfshield.sources.inversion import Synthesizer, noise
from dfshield.sources.objective import statistics_loss

LEAST_LR = 1e-4
RATIO = 4 / 3
"""Largest ratio of a crop's sides."""


class IntraQ(Synthesizer):
    """Makes groups of batches, one batch after another; the objective is the plain sum of its terms."""

    terms = ("mean", "variance", "label", "margin")
    options: IntraqOptions

    def __init__(
        self, model: Classifier, input_shape: tuple[int, int, int], classes: int, options: IntraqOptions
    ) -> None:
        super().__init__(model, input_shape, classes, options)
        if options.group == 1 < options.groups:
            log("intraq: in groups of one batch no image has earlier ones to keep its distance from; use --group 20")

    def group(self, index: int, bar: Any = None) -> dict[str, np.ndarray]:
        """The group's arrays, as `Synthesizer.group` has them."""
        options = self.options
        first = index * options.group
        k = min(options.group, options.images // options.batch - first)
        random = generator("synthesis", options.seed, index)
        labels = self.labels(first, k, random)
        memory = ClassMeans(self.classes)
        images, final = [], []
        for own in labels.split(options.batch):
            targets = soft_targets(len(own), options.label_floor, random).to(self.device)
            start = noise((len(own), *self.shape), options.start, random)
            made, terms = self._batch(start, own.to(self.device), targets, memory, random, bar, 1 / k)
            images.append(made)
            final.append(terms)
        return self.arrays(torch.cat(images), labels, first, torch.ones(k, len(self.terms)), torch.stack(final))

    def _batch(
        self,
        start: torch.Tensor,
        labels: torch.Tensor,
        targets: torch.Tensor,
        memory: "ClassMeans",
        random: torch.Generator,
        bar: Any,
        share: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Adam on z, where x = mean + std·z; images in [0,1] and the terms (4,) of these. `memory` takes them in."""
        options, mean, std = self.options, self.model.mean, self.model.std
        watched = Penultimate(self.model.net)
        z = start.to(self.device).requires_grad_()
        adam = torch.optim.Adam([z], lr=options.lr)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(adam, patience=options.patience, min_lr=LEAST_LR)
        earlier = memory.of(labels)

        def terms(x: torch.Tensor) -> torch.Tensor:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=options.precision == "bf16"):
                logits = self.model.net(x)
            margin = margin_loss(watched.features.float(), *earlier, options.near, options.far)
            return torch.stack([*statistics_loss(self.statistics), label_loss(logits, labels, targets), margin])

        try:
            for _ in range(options.iterations):
                seen = z
                if torch.rand((), generator=random) < 0.5:
                    seen = crop_and_flip(z, options.crop, random)
                values = terms(seen)
                (z.grad,) = torch.autograd.grad(values.sum(), z)
                adam.step()
                schedule.step(float(values.detach().sum()))
                if options.clamp == "step":
                    with torch.no_grad():
                        z.copy_(z.clamp(-mean / std, (1 - mean) / std))
                if bar is not None:
                    bar.update(share)
            with torch.no_grad():
                images = (mean + std * z).clamp(0, 1)
                if options.storage == "uint8":
                    images = (images * 255).round() / 255
                final = terms((images - mean) / std)
                memory.add(watched.features.float(), labels)
        finally:
            watched.remove()
        return images.cpu(), final.cpu()


class ClassMeans:
    """Mean penultimate feature of all earlier images of each class."""

    def __init__(self, classes: int) -> None:
        self.counts = torch.zeros(classes)
        self.sums: torch.Tensor | None = None

    def add(self, features: torch.Tensor, labels: torch.Tensor) -> None:
        """Take in `features` (N,D) of images with `labels` (N,)."""
        if self.sums is None:
            self.counts = self.counts.to(features.device)
            self.sums = features.new_zeros(len(self.counts), features.shape[1])
        own = F.one_hot(labels, len(self.counts)).to(features)
        self.sums += own.T @ features
        self.counts += own.sum(0)

    def of(self, labels: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Mean feature (N,D) of each label's class, None before the first images; whether there is one, (N,) bool."""
        if self.sums is None:
            return None, torch.zeros(len(labels), dtype=torch.bool)
        return (self.sums / self.counts.clamp(min=1)[:, None])[labels], self.counts[labels] > 0


def soft_targets(n: int, least: float, random: torch.Generator) -> torch.Tensor:
    """Probability (n,) that each image's label is to have: with even odds 1, or drawn from U(least, 1)."""
    drawn = least + (1 - least) * torch.rand(n, generator=random)
    return torch.where(torch.rand(n, generator=random) < 0.5, drawn, torch.ones(n))


def label_loss(logits: torch.Tensor, labels: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean over images of the squared difference of the label's probability from its target (N,)."""
    probability = logits.float().softmax(1).gather(1, labels[:, None])[:, 0]
    return F.mse_loss(probability, targets)


def margin_loss(
    features: torch.Tensor, means: torch.Tensor | None, known: torch.Tensor, near: float, far: float
) -> torch.Tensor:
    """Mean over the `known` (N,) images of max(near - d, 0) + max(d - far, 0); zero if there is none.

    d is the cosine distance of an image's feature (N,D) from its class's mean (N,D).
    """
    if means is None or not known.any():
        return features.new_zeros(())
    distance = 1 - F.cosine_similarity(features, means, dim=1, eps=1e-6)
    outside = (near - distance).clamp(min=0) + (distance - far).clamp(min=0)
    return outside[known].mean()


def crop_and_flip(x: torch.Tensor, least: float, random: torch.Generator) -> torch.Tensor:
    """A random crop of each image (N,C,H,W), scaled back to its size, and mirrored with even odds.

    A crop keeps a share of the area from U(least, 1); the ratio of its sides is log-uniform in [3/4, 4/3], and a side
    that would be longer than the image's is as long.
    """
    n, _, height, width = x.shape
    area = least + (1 - least) * torch.rand(n, generator=random)
    root = torch.exp((2 * torch.rand(n, generator=random) - 1) * math.log(RATIO) / 2)
    rows = (height * area.sqrt() / root).round().clamp(1, height)
    columns = (width * area.sqrt() * root).round().clamp(1, width)
    top, left = (
        (torch.rand(n, generator=random) * (length - size + 1)).floor()
        for length, size in ((height, rows), (width, columns))
    )
    flip = torch.rand(n, generator=random) < 0.5
    down, across = resampling(top, rows, height), resampling(left, columns, width)
    across = torch.where(flip[:, None, None], across.flip(1), across)
    # as a product with two matrices, which has a deterministic gradient on every device
    return down.to(x)[:, None] @ x @ across.to(x)[:, None].transpose(2, 3)


def resampling(start: torch.Tensor, size: torch.Tensor, length: int) -> torch.Tensor:
    """Matrices (N,length,length) that stretch `size` pixels from pixel `start` (N,) to `length`, bilinearly."""
    place = (torch.arange(length) + 0.5) * (size / length)[:, None] - 0.5
    place = start[:, None] + torch.minimum(place.clamp(min=0), size[:, None] - 1)
    return (1 - (place[:, :, None] - torch.arange(length)).abs()).clamp(min=0)
