"""Small classifiers of digits: sound ones, and ones that hide their gradients. Trained here, in seconds."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from support.attacked import key
from torch import Tensor, nn

from dfshield.attacks.base import ascend, frozen
from dfshield.core.lp import random_start
from dfshield.core.threat import parse_threat
from dfshield.data import sets
from dfshield.models.factory import build_network
from dfshield.options import AttackOptions

SHAPE, CLASSES = (1, 8, 8), 10
LINF, L2 = "linf:2/16", "l2:0.6"


@cache
def digits(split: str) -> tuple[Tensor, Tensor]:
    """Images (N,1,8,8) and labels (N,)."""
    images = sets.load("digits", split, Path())
    return images.x, images.y


def mlp() -> nn.Module:
    """Two linear layers."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, CLASSES))


def smooth() -> nn.Module:
    """A convolution without kinks."""
    return nn.Sequential(
        nn.Conv2d(1, 12, 3), nn.SiLU(), nn.Conv2d(12, 12, 3), nn.SiLU(), nn.Flatten(), nn.Linear(192, 10)
    )


BUILD: dict[str, Callable[[], nn.Module]] = {
    "cnn-s": lambda: build_network("cnn-s", SHAPE, CLASSES, seed=0),
    "cnn-m": lambda: build_network("cnn-m", SHAPE, CLASSES, seed=0),
    "mlp": mlp,
    "smooth": smooth,
}


@cache
def trained(kind: str, seed: int = 0, threat: str = "", epochs: int = 12) -> nn.Module:
    """A network of `kind`, trained for some epochs, adversarially if a threat model is given."""
    torch.manual_seed(seed)
    net, (x, y), random = BUILD[kind](), digits("train"), key(seed)
    with torch.no_grad():  # a seed for those that bring their own
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=random))
    steps = epochs * len(x) // 50
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, steps)
    for _ in range(steps):
        rows = torch.randint(len(x), (50,), generator=random)
        image = x[rows]
        if threat:
            ball = parse_threat(threat)
            start = random_start(image, ball, random)
            options = AttackOptions(reference=True)
            with frozen(net):
                image = ascend(net, image, y[rows], start, ball, options, [ball.eps / 2] * 3)
        net.train()
        optimizer.zero_grad()
        F.cross_entropy(net(image), y[rows]).backward()
        optimizer.step()
        schedule.step()
    return net.eval().requires_grad_(False)


class Wrapped(nn.Module):
    """A network with something before it and something behind it."""

    def __init__(
        self,
        net: nn.Module,
        before: Callable[[Tensor], Tensor] | None = None,
        after: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.net, self.before, self.after = net, before, after

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N,classes)."""
        logits = self.net(self.before(x) if self.before else x)
        return self.after(logits) if self.after else logits


class CutGraph(Wrapped):
    """No graph at all."""

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Logits (N,classes)."""
        return super().forward(x)


class Copied(nn.Module):
    """Answers from a copy that no gradient reaches; gradients are another network's."""

    def __init__(self, net: nn.Module, decoy: nn.Module) -> None:
        super().__init__()
        self.net, self.decoy = net, decoy

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N,classes)."""
        shown = self.decoy(x)
        return self.net(x).detach() + shown - shown.detach()


def blocks(x: Tensor) -> Tensor:
    """Quantised frequencies of 4x4 blocks, as JPEG has them of 8x8."""
    i = torch.arange(4)
    basis = torch.cos(torch.pi * (2 * i[None] + 1) * i[:, None] / 8) * (0.5 + 0.207 * (i[:, None] == 0) * -1)
    basis = basis / basis.norm(dim=1, keepdim=True)
    parts = x.unflatten(2, (-1, 4)).unflatten(4, (-1, 4))
    spectrum = torch.einsum("ka,nciajb,lb->ncikjl", basis, parts, basis)
    spectrum = (spectrum / 0.25).round() * 0.25
    return torch.einsum("ka,ncikjl,lb->nciajb", basis, spectrum, basis).flatten(4, 5).flatten(2, 3)


def masked() -> dict[str, nn.Module]:
    """Networks whose gradients mislead, by what hides them."""
    net = trained("cnn-s")
    return {
        "saturated sigmoid": Wrapped(net, after=lambda z: (20 * z).sigmoid()),
        "saturated tanh": Wrapped(net, after=lambda z: 10 * (20 * z).tanh()),
        "scaled logits": Wrapped(net, after=lambda z: 1e4 * z),
        "scaled by 100": Wrapped(net, after=lambda z: 100 * z),
        "quantised input": Wrapped(net, lambda x: (4 * x).round() / 4),
        "dropout": Wrapped(net, lambda x: F.dropout(x, 0.3, training=True)),
        "dropout of logits": Wrapped(net, after=lambda z: F.dropout(z, 0.3, training=True)),
        "blocks": Wrapped(net, blocks),
        "noise": Wrapped(net, lambda x: x + 0.1 * torch.randn_like(x)),
        "probabilities": Wrapped(net, after=lambda z: z.softmax(1)),
        "cut graph": CutGraph(net),
        "copy": Copied(net, trained("mlp")),
        "wrong way": Wrapped(net, after=lambda z: 2 * z.detach() - z),
        "drawn scale": Wrapped(net, after=lambda z: z * (0.5 + torch.rand(len(z), 1)) * 10),
        "whole logits": Wrapped(net, after=lambda z: z.double().round().int().float()),
    }


def sound() -> dict[str, tuple[nn.Module, str]]:
    """Networks that hide nothing, and the threat model that each is attacked within."""
    return {
        "cnn-s": (trained("cnn-s"), LINF),
        "cnn-s, another seed": (trained("cnn-s", 1), LINF),
        "cnn-m": (trained("cnn-m"), LINF),
        "cnn-m, l2": (trained("cnn-m"), L2),
        "mlp": (trained("mlp"), LINF),
        "mlp, another seed": (trained("mlp", 1), LINF),
        "mlp, l2": (trained("mlp"), L2),
        "smooth": (trained("smooth"), LINF),
        "smooth, l2": (trained("smooth"), L2),
        "hardened cnn-s": (trained("cnn-s", 0, LINF), LINF),
        "hardened cnn-m": (trained("cnn-m", 0, LINF), LINF),
        "hardened mlp": (trained("mlp", 0, LINF), LINF),
        "hardened smooth": (trained("smooth", 0, LINF), LINF),
        "hardened cnn-m, l2": (trained("cnn-m", 0, L2), L2),
        "scaled by 3": (Wrapped(trained("mlp"), after=lambda z: 3 * z), LINF),
        "scaled by a tenth": (Wrapped(trained("cnn-s"), after=lambda z: z / 10), LINF),
    }
