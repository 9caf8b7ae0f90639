"""The model's own judgement of a perturbation in its stored form."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from dfshield.attacks.base import frozen, margin
from dfshield.core.errors import InputError
from dfshield.core.lp import from_half, to_half
from dfshield.core.threat import Threat, parse_threat
from dfshield.evaluation.ledger import Ledger


@dataclass
class Outcome:
    """The model's own judgement of a chunk of n images."""

    prediction: np.ndarray
    """(n,) int64."""
    margin: np.ndarray
    """(n,) float32: z_y - max other."""
    perturbation: np.ndarray
    """(n,C,H,W) float16; zero for images that were not attacked."""


@torch.no_grad()
def evaluate_perturbation(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor, threat: Threat) -> Outcome:
    """What the model makes of the perturbation from `x` to `x_adv` in its stored form.

    Always given whole chunks, so that the arithmetic (which may depend on the batch size) is the same whenever a
    verdict is repeated.
    """
    half = to_half(x, x_adv, threat)
    prediction, margin = predict(model, from_half(x, half, threat), y)
    return Outcome(prediction, margin, half.cpu().numpy())


@torch.no_grad()
def predict(model: nn.Module, x: Tensor, y: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Predicted classes (n,) and margins z_y - max other (n,); InputError if logits are not finite."""
    logits = model(x).float()
    if not logits.isfinite().all():
        raise InputError("the model gives logits that are not finite (NaN or infinite); check its weights")
    return logits.argmax(dim=1).cpu().numpy(), margin(logits, y).cpu().numpy()


def replay(model: nn.Module, x: Tensor, y: Tensor, ledger: Ledger) -> np.ndarray:
    """Judge a ledger's stored perturbations again: (N,) bool, which images are misclassified.

    `x` (N,C,H,W) and `y` (N,) are the images that the ledger was made from. `model` is what was judged: the
    defended model where there was a defence.
    """
    threat = parse_threat(ledger.threat)
    perturbation = np.zeros(tuple(x.shape), dtype=np.float16)
    perturbation[ledger.perturbed_index] = ledger.perturbation
    misclassified = []
    with frozen(model):
        for start in range(0, len(x), int(ledger.options["chunk"])):
            rows = slice(start, start + int(ledger.options["chunk"]))
            half = torch.from_numpy(perturbation[rows]).to(x.device)
            prediction, _ = predict(model, from_half(x[rows], half, threat), y[rows])
            misclassified.append(prediction != y[rows].cpu().numpy())
    return np.concatenate(misclassified)
