"""Certificates of randomised smoothing: radii within which the vote of noisy copies cannot change.

Cohen et al. 2019 (Algorithm 1, CERTIFY): a few noisy copies choose the class, many others bound its probability p_A
from below (Clopper and Pearson, one-sided at level α), and the radius follows from the bound. Where the bound is at
most one half, nothing is certified: the smoothed classifier abstains.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dfshield import __version__
from dfshield.attacks.base import frozen
from dfshield.core.device import select_device
from dfshield.core.errors import InputError
from dfshield.core.files import metrics_csv, write_text
from dfshield.core.progress import log, progress
from dfshield.core.rng import generator, seeded
from dfshield.core.signals import stop_if_asked
from dfshield.defences.diffusion import Process, purification_distance
from dfshield.defences.fit_file import fit_for
from dfshield.defences.smoothing import NOISES, noisy, vote
from dfshield.evaluation.certificates import ABSTAINED, CertificateRecord, write_certificates
from dfshield.options import AttackOptions, CertifyOptions, DefendOptions
from dfshield.options.defences_diffusion import Purification


class Certificates(NamedTuple):
    """What is certified of N images."""

    prediction: np.ndarray
    """Class of the smoothed classifier (N,) int64; `ABSTAINED` where it abstains."""
    radius: np.ndarray
    """Radius (N,) float64, in the norm of the noise, within which that class cannot change; 0 where it abstains."""

    def accuracy(self, labels: np.ndarray, radius: float) -> float:
        """Share of images of the right class whose certified radius is greater than `radius`: certified accuracy."""
        return float(np.mean((self.prediction == labels) & (self.radius > radius)))


def lower_bound(successes: int, trials: int, alpha: float) -> float:
    """The lower end of the one-sided confidence interval 1 - `alpha` of a probability (Clopper and Pearson 1934)."""
    from scipy.stats import beta  # not at the top: it takes long to import

    return float(beta.ppf(alpha, successes, trials - successes + 1)) if successes else 0.0


def certify(model: nn.Module, x: Tensor, options: CertifyOptions) -> Certificates:
    """Certificates of images (N,C,H,W) in [0,1] for the smoothed classifier of `model` (images to logits).

    Each image's radius is wrong with a probability of at most `options.alpha`. The draws depend on the seed and the
    place of an image among the others.
    """
    noise = NOISES[options.distribution]
    predictions, radii = [], []
    with frozen(model), torch.no_grad(), progress(len(x), "certificates", "image") as bar:
        for place, image in enumerate(x.split(1)):
            random = generator("certify", options.seed, place)

            def votes(copies: int, image: Tensor = image, random: torch.Generator = random) -> Tensor:
                return vote(model, noisy(image, copies, options.distribution, options.sigma, random, options.batch))

            chosen = int(votes(options.n0).argmax())
            bound = lower_bound(int(votes(options.n)[chosen]), options.n, options.alpha)
            certain = bound > 0.5
            predictions.append(chosen if certain else ABSTAINED)
            radii.append(options.sigma * noise.radius(bound) if certain else 0.0)
            bar.update()
            stop_if_asked("certify", int(bar.n), len(x), kept=False)
    return Certificates(np.array(predictions, dtype=np.int64), np.array(radii, dtype=np.float64))


def less(found: Certificates, distance: float) -> Certificates:
    """Certificates of a classifier behind a purifier that leads an image up to `distance` away, besides what an attack
    does (Adversarial defense based on distribution transfer, 2023, Eq 14 and 15).

    An attacked image comes out within its perturbation and `distance` of the clean one. So the radius is that of the
    classifier less `distance`; nothing is certified where it is not positive.
    """
    radius = found.radius - distance
    return Certificates(np.where(radius > 0, found.prediction, ABSTAINED), np.maximum(radius, 0.0))


def run(
    model_path: Path,
    out: Path,
    options: CertifyOptions,
    dataset: str | None = None,
    data_dir: Path | None = None,
    evaluation_npz: Path | None = None,
    factory: str | None = None,
    defence: DefendOptions | None = None,
    fitted: Path | None = None,
    code: str = "",
) -> None:
    """Certify the checkpoint `model_path` on images as in the attack stage; write the record `out` and its curve.

    With a `defence` and the file `fitted` of its fit, the defended model is what votes or, with ``purified: distance``,
    the radii of the bare model are those that purification leaves. The record, a JSON file, holds the class and the
    radius of every image and is sealed by its hash. The curve, a CSV of this name, has certified accuracy by radius.
    `code` goes into the record. Raises InputError for files that cannot be used.
    """
    from dfshield.evaluation.attack import NO_DEFENCE, defended, evaluation_images, fit_hash, seen_data
    from dfshield.models.checkpoints import load_checkpoint

    if out.suffix == ".csv":
        raise InputError(
            f"{out}: is the name of the curve; give the path of a record, such as {out.with_suffix('.json')}"
        )
    if not options.radii:
        raise InputError("--radii: none given; give at least one, such as 0.5")
    by_distance = options.purified == "distance"
    if by_distance and not isinstance(defence, Purification):
        raise InputError("--purified distance: needs --defence by a diffusion model: diffpure, distribution-transfer")
    if by_distance and NOISES[options.distribution].norm != "l2":
        raise InputError(f"--purified distance: is in l2, which {options.distribution} noise does not certify")
    device = select_device(options.device, options.threads)
    model, card = load_checkpoint(model_path, device, factory)
    defence = defence.model_copy(update={"seed": options.seed}) if defence else None
    fit = fit_for(defence, fitted, card.tensors_sha256)
    judged = model if by_distance else defended(model, defence, AttackOptions(), fit)[0]
    asked = AttackOptions(limit=options.limit, split=options.split)
    images = evaluation_images(card, asked, dataset, data_dir, evaluation_npz)
    labels = images.y.numpy()
    with seeded(options.seed, device):
        found = certify(judged, images.x.to(device).contiguous(), options)
    distance = 0.0
    if by_distance and isinstance(defence, Purification):
        process, values = Process(defence.timesteps), images.x[0].numel()
        distance = purification_distance(process, defence.time, values, options.delta, options.score)
        found = less(found, distance)
    curve = [{"radius": radius, "certified_accuracy": found.accuracy(labels, radius)} for radius in options.radii]
    record = CertificateRecord(
        dataset=dataset or card.dataset,
        model=card.model,
        norm=NOISES[options.distribution].norm,
        classes=card.classes,
        n=len(labels),
        abstained=float(np.mean(found.prediction == ABSTAINED)),
        curve=tuple(curve),
        labels=tuple(labels.tolist()),
        predictions=tuple(found.prediction.tolist()),
        radii=tuple(found.radius.tolist()),
        options=options.described(device),
        seed=options.seed,
        model_sha256=card.tensors_sha256,
        data_sha256=images.sha256(),
        real_data=seen_data(card.real_data, defence, fit),
        defence=defence.defence if defence else NO_DEFENCE,
        defence_options=defence.described() if defence else {},
        others=fit_hash(fit),
        distance=distance,
        package_version=__version__,
        code=code,
    )
    write_text(out.with_suffix(".csv"), metrics_csv(("radius", "certified_accuracy"), curve))
    seal = write_certificates(out, record)
    log(f"{out}: certified accuracy in {record.norm} of {len(labels)} images, record {seal[:16]}")
