"""Exponential moving average of a model's weights and BatchNorm statistics."""

import contextlib
from collections.abc import Iterator

import torch


class WeightEMA:
    """a ← d a + (1-d) w after every update, from a = w on; whole numbers (BatchNorm's counters) are copied.

    The decay d of update n (from 0) is at most (1+n)/(10+n), so that a short training is not averaged with its start.
    `state` is a state dict.
    """

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}

    def update(self, model: torch.nn.Module, number: int) -> None:
        """Take in the weights after update `number` (from 0)."""
        decay = min(self.decay, (1 + number) / (10 + number))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.state[name].lerp_(value, 1 - decay)
            else:
                self.state[name].copy_(value)

    @contextlib.contextmanager
    def inside(self, model: torch.nn.Module) -> Iterator[None]:
        """Inside the block `model` holds the average; afterwards its own weights again."""
        own = {name: value.detach().clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self.state)
        try:
            yield
        finally:
            model.load_state_dict(own)
