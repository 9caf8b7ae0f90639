"""Adversarial weight perturbation (Wu et al. 2020): gradients taken where the loss is higher in weight space."""

import contextlib
from collections.abc import Iterator, Sequence

import torch


@contextlib.contextmanager
def perturbed(parameters: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor], gamma: float) -> Iterator[None]:
    """Inside the block each weight of more than one dimension is moved by γ ‖w‖ g/‖g‖; afterwards it is as it was.

    `gradients` g are those of the loss, one for each parameter. A weight without a gradient stays.
    """
    moved = [(w, g, w.detach().clone()) for w, g in zip(parameters, gradients, strict=True) if w.ndim > 1]
    try:
        with torch.no_grad():
            for weight, gradient, before in moved:
                weight.add_(gradient * (gamma * before.norm() / gradient.norm().clamp_min(1e-20)))
        yield
    finally:
        with torch.no_grad():
            for weight, _, before in moved:
                weight.copy_(before)


@contextlib.contextmanager
def frozen_buffers(model: torch.nn.Module) -> Iterator[None]:
    """Inside the block forwards may update buffers (BatchNorm's statistics); afterwards they are as they were."""
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffer, before in kept:
            buffer.copy_(before)
