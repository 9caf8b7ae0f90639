"""A network whose layers draw from the global generators: dropout, stochastic depth, the user's own ways."""

import random

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

EVAL_NOISE = [0.0]
"""Standard deviation of what the network adds to its features in eval mode."""
drawn: list[str] = []
"""The mode of every pass."""


class Draws(nn.Module):
    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.dropout = nn.Dropout(0.3)
        self.last = nn.Linear(8, classes)

    def forward(self, x):
        x = self.first(x)
        y = self.block(x)
        drawn.append("train" if self.training else "eval")
        if self.training:  # stochastic depth, one draw an image; then by the other two libraries' generators
            y = y * torch.empty(len(y), 1, 1, 1, device=y.device).bernoulli_(0.7)
            y = y * float(np.random.uniform(0.8, 1.2)) * random.uniform(0.8, 1.2)
        elif EVAL_NOISE[0]:
            y = y + EVAL_NOISE[0] * (torch.randn_like(y) + float(np.random.randn()) + random.gauss(0, 1))
        x = F.dropout((x + y).mean((2, 3)), 0.2, training=self.training)
        return self.last(self.dropout(x))


def build(input_shape, classes) -> nn.Module:
    return Draws(input_shape[0], classes)
