"""Small models whose robustness is known, or that prefer no class, and short ways to attack them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dfshield.attacks.base import Ensemble, frozen
from dfshield.evaluation import attack as evaluate
from dfshield.evaluation.ledger import Ledger
from dfshield.evaluation.session import Session
from dfshield.models.card import Card
from dfshield.models.checkpoints import save_checkpoint
from dfshield.models.classifier import Classifier
from dfshield.models.factory import build_network
from dfshield.options import AttackOptions

CPU = torch.device("cpu")
Rows = dict[str, np.ndarray]


def key(seed: int = 0) -> torch.Generator:
    """A fresh random generator."""
    return torch.Generator().manual_seed(seed)


def norms(delta: Tensor, norm: str) -> Tensor:
    """Norm of each perturbation of `delta` (N,C,H,W): (N,)."""
    return delta.flatten(1).abs().amax(1) if norm == "linf" else delta.flatten(1).norm(dim=1)


class Linear(nn.Module):
    """Two classes; class 1 where w·x + b > 0."""

    def __init__(self, size: int = 16, seed: int = 0) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(size, generator=key(seed)))
        self.b = nn.Parameter(-self.w.detach().sum() / 2)

    def score(self, x: Tensor) -> Tensor:
        """w·x + b, shape (N,)."""
        return x.flatten(1) @ self.w + self.b

    def distance(self, x: Tensor, y: Tensor, norm: str) -> Tensor:
        """Distance (N,) of images to the other side of the border; negative for those that lie there already."""
        dual = self.w.detach().abs().sum() if norm == "linf" else self.w.detach().norm()
        return torch.where(y == 1, self.score(x), -self.score(x)).detach() / dual

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits (N,2)."""
        return torch.stack((-self.score(x) / 2, self.score(x) / 2), dim=1)


def network(classes: int, shape: tuple[int, int, int] = (1, 8, 8), seed: int = 0) -> nn.Sequential:
    """A random network that prefers no class on uniform noise."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(shape[0], 8, 3, padding=1), nn.ReLU(), nn.Flatten())
    net.append(nn.Linear(8 * shape[1] * shape[2], classes))
    with torch.no_grad():
        net[-1].bias -= net(torch.rand(500, *shape)).mean(0)
    return net.eval()


def images(
    net: nn.Module, n: int = 24, shape: tuple[int, int, int] = (1, 8, 8), seed: int = 1
) -> tuple[Tensor, Tensor]:
    """Noise, labelled by the network itself."""
    x = torch.rand((n, *shape), generator=key(seed))
    with torch.no_grad():
        return x, net(x).argmax(1)


def attack(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: str = "linf:8/255",
    ensemble: Ensemble | None = None,
    folder: Path | None = None,
    victim: nn.Module | None = None,
    others: dict[str, Any] | None = None,
    **values: Any,
) -> tuple[Rows, tuple[str, ...]]:
    """The ledger's rows and flags of one attack on `net`."""
    options = AttackOptions.of(threat=threat, **values)
    classes = net(x[:1]).shape[1]
    ensemble = ensemble or evaluate.components(options, tuple(x.shape[1:]), classes)  # type: ignore[arg-type]
    with frozen(net):
        return Session(net, x, y, options, ensemble, CPU, folder, victim, others).run()


def robust(net: nn.Module, x: Tensor, y: Tensor, threat: str = "linf:8/255", **values: Any) -> float:
    """Share of images that stay rightly classified."""
    return 1 - float(attack(net, x, y, threat, **values)[0]["broken"].mean())


def save_victim(folder: Path) -> tuple[nn.Module, Tensor, Tensor]:
    """Write ``student.safetensors`` and 23 images ``set.npz``, the first of them labelled wrongly; returns them."""
    torch.manual_seed(0)
    model = Classifier(build_network("cnn-s", (1, 8, 8), 10), (0.3,), (0.38,)).eval()
    card = Card("student", "digits", "cnn-s", (1, 8, 8), 10, (0.3,), (0.38,), "none")
    x = torch.rand((23, 1, 8, 8), generator=key(1))
    with torch.no_grad():
        model.net[-1].bias -= model(x).mean(0)
        y = model(x).argmax(1)
    save_checkpoint(folder / "student.safetensors", model, card)
    y[0] = (y[0] + 1) % 10
    np.savez(folder / "set.npz", x=x.numpy()[:, 0], y=y.numpy())
    return model, x, y


def stage(
    folder: Path,
    out: str = "ledger.h5",
    state: Path | None = None,
    protocol: str = "p",
    evaluation: str | None = "set.npz",
    dataset: str | None = None,
    model: str = "student.safetensors",
    defence: Any = None,
    others: dict[str, Path] | None = None,
    **values: Any,
) -> Ledger:
    """Run the attack stage on what `save_victim` wrote."""
    return evaluate.run(
        folder / model,
        folder / out,
        AttackOptions.of(device="cpu", **values),
        dataset,
        None,
        folder / evaluation if evaluation else None,
        None,
        protocol,
        {"a": 1},
        state,
        defence=defence,
        others=others,
    )
