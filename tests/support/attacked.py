"""Models whose robustness is known or easily judged, images for them, and attacks on them."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dfshield.attacks import autoattack, budget
from dfshield.attacks.base import Ensemble, Problem, frozen
from dfshield.core.threat import Threat, parse_threat
from dfshield.evaluation.attack import components
from dfshield.evaluation.session import Session
from dfshield.options import AttackOptions

CPU = torch.device("cpu")
THREATS = (Threat("linf", 8 / 255), Threat("linf", 0.25), Threat("l2", 128 / 255))
SHAPE = (1, 8, 8)


def small_budget(monkeypatch, iterations: int = 6, queries: int = 25) -> None:
    """AutoAttack with less effort, as it runs and as the cost model counts it."""
    made = budget.Budget(iterations, queries)
    for module in (autoattack, budget):  # never `Budget`: a module first imported meanwhile would keep it
        monkeypatch.setattr(module, "BUDGET", made)


def norms(delta: Tensor, norm: str) -> Tensor:
    """Norm of each perturbation (N,)."""
    return delta.flatten(1).abs().amax(1) if norm == "linf" else delta.flatten(1).norm(dim=1)


def key(seed: int = 0) -> torch.Generator:
    """A random generator."""
    return torch.Generator().manual_seed(seed)


class Linear(nn.Module):
    """A linear model: class 1 where w·x + b > 0, else class 0; all further classes are out of reach."""

    def __init__(self, size: int = 16, seed: int = 0, classes: int = 2) -> None:
        super().__init__()
        self.layer = nn.Linear(size, 1)
        with torch.no_grad():
            self.layer.weight[0] = torch.randn(size, generator=key(seed))
            self.layer.bias[0] = -self.w.sum() / 2
        self.classes = classes

    @property
    def w(self) -> Tensor:
        """Weights (D,)."""
        return self.layer.weight[0]

    def score(self, x: Tensor) -> Tensor:
        """w·x + b (N,)."""
        return self.layer(x.flatten(1))[:, 0]

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N,classes)."""
        logits = torch.stack((-self.score(x) / 2, self.score(x) / 2), dim=1)
        low = logits.detach().amin(dim=1, keepdim=True) - 1
        return torch.cat((logits, low - torch.arange(self.classes - 2)), dim=1)


def network(classes: int, shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> nn.Sequential:
    """A random network that prefers no class on uniform noise."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(shape[0], 8, 3, padding=1), nn.ReLU(), nn.Flatten())
    net.append(nn.Linear(8 * shape[1] * shape[2], classes))
    with torch.no_grad():
        net[-1].bias -= net(torch.rand(500, *shape)).mean(0)
    return net.eval()


def images(net: nn.Module, n: int = 24, shape: tuple[int, int, int] = SHAPE, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Noise, labelled by the network itself."""
    x = torch.rand((n, *shape), generator=key(seed))
    with torch.no_grad():
        return x, net(x).argmax(1)


def problem(net: nn.Module, x: Tensor, y: Tensor, threat: str, seed: int = 0) -> Problem:
    """What an attack is given."""
    return Problem(net, x, y, parse_threat(threat), key(seed))


def session(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: str = "linf:8/255",
    ensemble: Ensemble | None = None,
    victim: nn.Module | None = None,
    others: dict[str, Any] | None = None,
    **values: Any,
) -> Session:
    """An evaluation of the attack that the options `values` name."""
    options = AttackOptions.of(threat=threat, **values)
    chosen = ensemble or components(options, tuple(x.shape[1:]), net(x[:1]).shape[1])
    return Session(net, x, y, options, chosen, CPU, victim=victim, others=others)


def attack(net: nn.Module, *given: Any, **values: Any) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """The ledger's arrays and the flags of `session`."""
    with frozen(net):
        return session(net, *given, **values).run()


def robust(net: nn.Module, x: Tensor, y: Tensor, threat: str = "linf:8/255", **values: Any) -> float:
    """Share of images that are classified correctly whatever the attack tried."""
    return float(1 - attack(net, x, y, threat, **values)[0]["broken"].mean())


class Noisy(nn.Module):
    """A network that adds noise to its input."""

    def __init__(self, net: nn.Module, size: float = 0.05) -> None:
        super().__init__()
        self.net, self.size = net, size

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N,classes)."""
        return self.net(x + self.size * torch.randn_like(x))


class Quantised(Noisy):
    """A network that rounds its input, which has no gradient."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N,classes)."""
        return self.net((x * 8).round() / 8)


class Constant(Noisy):
    """A network that gives no gradient."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N,classes)."""
        with torch.no_grad():
            return self.net(x)
