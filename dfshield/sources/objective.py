"""The three terms of the synthesis objective, each computed per synthesis batch.

A *group* stacks `k` independent batches along the first axis so that one pass serves them all; every term returns
one value per batch, shape (k,), as if each had been computed alone.
"""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from dfshield.core.errors import InputError
from dfshield.core.rng import generator
from dfshield.models.classifier import Classifier
from dfshield.models.standins import alike, answers, trials
from dfshield.models.statistics import matched_layers

TERMS = ("class", "feature", "prior")


def class_loss(logits: torch.Tensor, labels: torch.Tensor, k: int) -> torch.Tensor:
    """Cross entropy of logits (k·B, C) with labels (k·B,), mean over each batch (Eq 3)."""
    return F.cross_entropy(logits.float(), labels, reduction="none").view(k, -1).mean(1)


def total_variation(x: torch.Tensor, k: int) -> torch.Tensor:
    """Sum of the L2 norms of the differences in four directions, each over the whole batch (Eq 5, released code).

    `x` is (k·B, C, H, W) in normalised space.
    """
    right = x[:, :, :, 1:] - x[:, :, :, :-1]
    down = x[:, :, 1:] - x[:, :, :-1]
    diagonal = x[:, :, 1:, 1:] - x[:, :, :-1, :-1]
    antidiagonal = x[:, :, 1:, :-1] - x[:, :, :-1, 1:]
    return sum(
        (d.unflatten(0, (k, -1)).square().sum((1, 2, 3, 4)).sqrt() for d in (right, down, diagonal, antidiagonal)),
        start=torch.zeros(k, device=x.device),
    )


class _WatchedNorm(torch.autograd.Function):
    """BatchNorm with running statistics that also returns the means and biased variances (k,C) of its input.

    One function, because the gradient of the statistics is affine in the input per channel: computed beside the
    gradient of the output it costs a fraction of what the separate operations do.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, layer: nn.BatchNorm2d, k: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        statistics = [torch.batch_norm_update_stats(part, None, None, 0.0) for part in x.chunk(k)]
        mean, variance = (torch.stack([s[i].float() for s in statistics]) for i in (0, 1))
        ctx.save_for_backward(x, mean)
        ctx.layer, ctx.k = layer, k
        output = F.batch_norm(
            x, layer.running_mean, layer.running_var, layer.weight, layer.bias, training=False, eps=layer.eps
        )
        return output, mean, variance

    @staticmethod
    def backward(
        ctx: Any, output: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor
    ) -> tuple[torch.Tensor, None, None]:
        x, means = ctx.saved_tensors
        layer, k = ctx.layer, ctx.k
        size = x.numel() // (k * x.shape[1])
        slope = 2 * variance / size
        shift = mean / size - slope * means
        scale = (layer.running_var + layer.eps).rsqrt()
        if layer.weight is not None:
            scale = scale * layer.weight
        zero, one = torch.zeros_like(scale), torch.ones_like(scale)
        # slope * x + shift per channel: the normalisation kernel is the fastest affine map there is
        parts = zip(x.chunk(k), slope, shift, strict=True)
        gradient = torch.cat([F.batch_norm(p, zero, one, a, b, training=False, eps=0.0) for p, a, b in parts])
        return gradient.add_(output * scale.to(output.dtype).view(1, -1, 1, 1)), None, None


def _watched_norm(x: torch.Tensor, layer: nn.BatchNorm2d, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`_WatchedNorm` in plain operations, which a compiler joins with their neighbours better than we can."""
    output = F.batch_norm(
        x, layer.running_mean, layer.running_var, layer.weight, layer.bias, training=False, eps=layer.eps
    )
    parts = x.float().unflatten(0, (k, -1))
    mean = parts.mean((1, 3, 4))
    return output, mean, parts.square().mean((1, 3, 4)) - mean.square()


class BatchStatistics:
    """Watches the inputs of all BatchNorm2d layers of a network in eval mode (Eq 4).

    After `network(x)` with x of k stacked batches, `feature_loss()` is, per batch, the sum over layers of the L2
    distances of the batch's means and biased variances from the layer's running statistics (not squared, all layers
    weighted alike). `remove` ends the watching.

    BatchNorm itself is computed together with its statistics. A subclass, or a layer with a forward of its own,
    computes what it computes, and a hook sees its input; with `hooks` it is so for all.
    """

    def __init__(self, network: nn.Module, k: int = 1, hooks: bool = False) -> None:
        self.k = k
        self.layers = matched_layers(network)
        self.seen: list[tuple[nn.BatchNorm2d, torch.Tensor, torch.Tensor]] = []
        self.plain = [] if hooks else list(filter(_plain, self.layers))
        for layer in self.plain:
            layer.forward = functools.partial(self._forward, layer)  # type: ignore[method-assign]
        others = [layer for layer in self.layers if layer not in self.plain]
        self.handles = [layer.register_forward_pre_hook(self._look, with_kwargs=True) for layer in others]

    def _forward(self, layer: nn.BatchNorm2d, input: torch.Tensor) -> torch.Tensor:
        compute = _watched_norm if torch.compiler.is_compiling() else _WatchedNorm.apply
        output, mean, variance = compute(input, layer, self.k)
        self.seen.append((layer, mean, variance))
        return output

    def _look(self, layer: nn.Module, inputs: tuple[torch.Tensor, ...], named: dict[str, torch.Tensor]) -> None:
        assert isinstance(layer, nn.BatchNorm2d)
        parts = (*inputs, *named.values())[0].float().unflatten(0, (self.k, -1))
        variance, mean = torch.var_mean(parts, (1, 3, 4), correction=0)  # exact for any mean, as the quick way is
        self.seen.append((layer, mean, variance))

    def feature_loss(self) -> torch.Tensor:
        """Shape (k,); forgets what was recorded."""
        layers, means, variances = zip(*self.seen, strict=True)
        self.seen.clear()
        sizes = [mean.shape[1] for mean in means]
        total = torch.zeros(self.k, device=means[0].device)
        for found, running in ((means, "running_mean"), (variances, "running_var")):
            difference = torch.cat(found, 1) - torch.cat([getattr(layer, running) for layer in layers])
            for part in difference.split(sizes, 1):
                total = total + part.norm(dim=1)
        return total

    def remove(self) -> None:
        """Undo the watching."""
        for layer in self.plain:
            del layer.forward
        for handle in self.handles:
            handle.remove()


def _plain(layer: nn.BatchNorm2d) -> bool:
    """Whether a layer computes BatchNorm with its running statistics and nothing else."""
    return type(layer) is nn.BatchNorm2d and not layer.training and "forward" not in vars(layer)


def watched(model: Classifier, shape: tuple[int, int, int]) -> BatchStatistics:
    """Watch a classifier of images (C,H,W) that is in eval mode, in the fastest way that leaves its answers alone.

    Raises InputError if there is none.
    """
    inputs = trials(torch.rand((3, *shape), generator=generator("watched")).to(model.mean.device))
    expected = answers(model, inputs)
    for hooks in (False, True):
        statistics = BatchStatistics(model.net, hooks=hooks)
        if alike(answers(model, inputs), expected):
            statistics.seen.clear()
            return statistics
        statistics.remove()
    raise InputError(
        "the network answers otherwise while its BatchNorm layers are watched; use plain BatchNorm2d layers"
    )


def statistics_loss(statistics: BatchStatistics) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean over the BatchNorm layers of the mean squared error of one batch's means, and of its variances.

    What IntraQ, Qimera and their kin have in place of Eq 4. Forgets what was recorded.
    """
    means, variances = [], []
    for layer, mean, variance in statistics.seen:
        means.append(F.mse_loss(mean[0], layer.get_buffer("running_mean")))
        variances.append(F.mse_loss(variance[0], layer.get_buffer("running_var")))
    statistics.seen.clear()
    return torch.stack(means).mean(), torch.stack(variances).mean()
