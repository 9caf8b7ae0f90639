"""The model's own judgement of a perturbation in its stored form."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from dfshield.attacks.base import frozen, margin
from dfshield.attacks.nearest import lengths
from dfshield.core.errors import InputError
from dfshield.core.lp import from_half, to_half
from dfshield.core.threat import Threat, parse_threat
from dfshield.evaluation.ledger import Ledger
from dfshield.registry import ATTACKS


@dataclass
class Outcome:
    """The model's own judgement of a chunk of n images."""

    prediction: np.ndarray
    """(n,) int64."""
    margin: np.ndarray
    """(n,) float32: z_y - max other."""
    perturbation: np.ndarray
    """(n,C,H,W) float16; zero for images that were not attacked."""
    distance: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    """(n,) float32: of an attack that looks for the smallest perturbation, the norm of the nearest point judged to be
    misclassified, infinite where there is none; of other attacks empty."""


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
def evaluate_distance(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor, threat: Threat) -> Outcome:
    """`evaluate_perturbation`, and how far the nearest misclassified point is: `x_adv` itself may lie beyond ε.

    It is judged cut to [0,1] in full float32, beside its stored form within ε. A distance is at most ε exactly where
    the stored form is misclassified. Where only `x_adv` is, and within ε, rounding decides: the distance is then said
    to be the smallest float32 above ε, so it is never understated.
    """
    outcome = evaluate_perturbation(model, x, y, x_adv, threat)
    labels, eps = y.cpu().numpy(), np.float32(threat.eps)
    whole = torch.where(x_adv.isfinite(), x_adv, x).clamp(0, 1)
    stored = from_half(x, torch.from_numpy(outcome.perturbation).to(x.device), threat)
    inside = outcome.prediction != labels
    outside = predict(model, whole, y)[0] != labels
    far, near = (lengths(points - x, threat.norm).float().cpu().numpy() for points in (whole, stored))
    far = np.where(outside, far, np.inf)
    beyond = np.maximum(far, np.nextafter(eps, np.float32(np.inf)))
    outcome.distance = np.where(inside, np.minimum(np.minimum(far, near), eps), beyond).astype(np.float32)
    return outcome


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
    defended model where there was a defence. Raises InputError for a ledger of corruptions, which holds only those
    images that were misclassified.
    """
    attack = ATTACKS.get(str(ledger.options.get("attack")))
    if attack and attack.replaces:
        raise InputError(f"{ledger.protocol}: its images are replaced, not perturbed; evaluate the model on them again")
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
