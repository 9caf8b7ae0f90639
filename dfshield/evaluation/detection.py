"""Detectors of attacked images before attacks that do not know of them and attacks that do."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dfshield import __version__, registry
from dfshield.attacks.base import Problem, frozen
from dfshield.attacks.pgd import pgd
from dfshield.core.datafree import data_free
from dfshield.core.device import select_device
from dfshield.core.errors import InputError
from dfshield.core.progress import log, progress
from dfshield.core.rng import generator, seeded
from dfshield.core.signals import stop_if_asked
from dfshield.core.threat import parse_threat
from dfshield.defences.detectors import Watched, outputs
from dfshield.evaluation.detections import DetectionRecord, Outcome, write_detection
from dfshield.evaluation.evasion import Fitted, evade
from dfshield.models.folding import fold
from dfshield.options import AttackOptions, DetectOptions
from dfshield.options.attacks import Pgd
from dfshield.options.detectors import HELD_OUT

CHUNK = 250
"""Images attacked together."""


@data_free("detect")
def fit(model: nn.Module, images: Tensor, labels: Tensor, options: DetectOptions) -> Fitted:
    """A detector for `model`, in eval mode, fitted on images (N,C,H,W) in [0,1] of classes (N,).

    A fifth of the images, drawn by the seed, are held out; the threshold is their quantile of 1 - `false_alarms`.
    Raises InputError for a network without penultimate features and for a training set that is too small.
    """
    random = generator("detect", options.seed)
    order = torch.randperm(len(images), generator=random)
    held = max(1, int(HELD_OUT * len(images)))
    x, y = images[order[held:]], labels[order[held:]]
    detector = registry.DETECTORS[options.detector].load()(model, x, y, options, random)
    watched = Watched(model, detector.eval().requires_grad_(False)).eval()
    scores = outputs(watched, images[order[:held]])[:, -1]
    return Fitted(watched, float(scores.quantile(1 - options.false_alarms)), float(scores.std(correction=0)))


def outcome(fitted: Fitted, clean: Tensor, attacked: Tensor, y: Tensor) -> Outcome:
    """What becomes of images by their outputs (N,classes + 1) as they are and as attacked, and their labels (N,)."""
    from sklearn.metrics import roc_auc_score

    fooled = attacked[:, :-1].argmax(1) != y
    scores = attacked[:, -1]
    flagged = scores > fitted.threshold
    evaded = float((fooled & ~flagged).double().mean())
    if not fooled.any():
        return Outcome(0.0, None, None, evaded)
    known = np.concatenate([np.zeros(len(clean)), np.ones(int(fooled.sum()))])
    auroc = roc_auc_score(known, torch.cat([clean[:, -1], scores[fooled]]).numpy())
    return Outcome(float(fooled.double().mean()), float(flagged[fooled].double().mean()), float(auroc), evaded)


def evaluate(fitted: Fitted, x: Tensor, y: Tensor, options: DetectOptions) -> dict[str, Any]:
    """Figures of a detector on images (N,C,H,W) in [0,1] of classes (N,), as plain values.

    Static PGD is crafted on the network alone; the adaptive attack counts an image that either of the two breaks.
    Raises InputError where the network classifies no image rightly.
    """
    model, threat = fitted.watched.model, parse_threat(options.threat)
    with frozen(model):
        clean = outputs(fitted.watched, x)
        right = clean[:, :-1].argmax(1) == y.cpu()
        if not right.any():
            raise InputError("the network classifies no image rightly, so there is none to attack; see to the labels")
        x, y, kept = x[right], y[right], clean[right]
        crafted, static, adaptive = fold(model), [], []
        with progress(len(x), "detection", "image") as bar:
            for place, (some, labels) in enumerate(zip(x.split(CHUNK), y.split(CHUNK), strict=True)):
                random = generator("detect", options.seed, place)
                given = Problem(crafted, some, labels, threat, random)
                static.append(pgd(given, Pgd(threat=options.threat, steps=options.steps)))
                adaptive.append(evade(fitted, some, labels, threat, options, random))
                bar.update(len(some))
                stop_if_asked("detect", int(bar.n), len(x), kept=False)
        by_static, by_adaptive = (outputs(fitted.watched, torch.cat(found)) for found in (static, adaptive))
        passed = (by_static[:, :-1].argmax(1) != y.cpu()) & (by_static[:, -1] <= fitted.threshold)
        by_adaptive[passed] = by_static[passed]
    return {
        "n": len(clean),
        "right": len(x),
        "false_alarms": float((clean[:, -1] > fitted.threshold).double().mean()),
        "false_alarms_wanted": options.false_alarms,
        "threshold": fitted.threshold,
        "static": outcome(fitted, kept, by_static, y.cpu()),
        "adaptive": outcome(fitted, kept, by_adaptive, y.cpu()),
    }


def run(
    model_path: Path,
    data: Path,
    out: Path,
    options: DetectOptions,
    dataset: str | None = None,
    data_dir: Path | None = None,
    evaluation_npz: Path | None = None,
    factory: str | None = None,
    code: str = "",
) -> None:
    """Fit a detector for the checkpoint `model_path` on the training set `data` and write its evaluation to `out`.

    Images of the evaluation are as in the attack stage; none of them has a part in the fit or in the threshold. `code`
    goes into the record. Raises InputError for files that cannot be used.
    """
    from dfshield.evaluation.attack import evaluation_images
    from dfshield.models.checkpoints import load_checkpoint
    from dfshield.sources.trainset import read

    device = select_device(options.device, options.threads)
    model, card = load_checkpoint(model_path, device, factory)
    training = read(data)
    given = torch.from_numpy(np.ascontiguousarray(np.moveaxis(training.images, 3, 1)))
    if tuple(given.shape[1:]) != tuple(card.input_shape) or training.attributes["classes"] != card.classes:
        raise InputError(f"{data}: is a training set of other images or classes than the model's; give its own")
    asked = AttackOptions(limit=options.limit, split=options.split)
    images = evaluation_images(card, asked, dataset, data_dir, evaluation_npz)
    with seeded(options.seed, device):
        fitted = fit(model, given.to(device), torch.from_numpy(training.labels).to(device), options)
        figures = evaluate(fitted, images.x.to(device).contiguous(), images.y.to(device), options)
    record = DetectionRecord(
        dataset=dataset or card.dataset,
        model=card.model,
        **figures,
        options=options.described(device),
        seed=options.seed,
        model_sha256=card.tensors_sha256,
        data_sha256=images.sha256(),
        training_sha256=training.attributes["content_sha256"],
        real_data=seen_by_both(card.real_data, training.attributes["real_data"]),
        package_version=__version__,
        code=code,
    )
    seal = write_detection(out, record)
    evaded = f"{100 * record.static.evaded:.2f} % (static) and {100 * record.adaptive.evaded:.2f} % (adaptive)"
    alarms = f"{100 * record.false_alarms:.2f} % where {100 * record.false_alarms_wanted:.2f} % were wanted"
    log(f"{out}: false alarms {alarms}, evaded by {evaded}, record {seal[:16]}")


def seen_by_both(network: str, detector: str) -> str:
    """What real data a network and its detector have seen: what cost either its claim to be data-free, if any did."""
    return network if detector in ("none", "teacher") else detector
