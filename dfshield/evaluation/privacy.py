"""Whether synthetic images give away images that the classifier was trained on.

An audit for owners who have the training images, and as many that the classifier has not seen. Images that carry only
what all of their kind share lie as often nearest to one set as to the other. Images that repeat training images do not.
The audit can show a leak. It cannot show that there is none.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfshield import __version__
from dfshield.core import sealed
from dfshield.core.device import select_device
from dfshield.core.errors import InputError
from dfshield.core.files import csv_text, write_text
from dfshield.core.hashing import sha256_file
from dfshield.core.progress import log, progress
from dfshield.evaluation.features import extractor
from dfshield.evaluation.ledger import confidence_interval
from dfshield.options.privacy import PrivacyOptions

RECORD = sealed.Kind("dfshield-privacy", 1, "record of a privacy audit", "dfshield privacy")
BLOCK = 256
"""Images whose distances to all others are held at once."""
COLUMNS = ("image", "class", "training_image", "distance", "other_image", "other_distance", "close")


@dataclass(frozen=True)
class Nearest:
    """Each of N images' nearest of a set: its index and the Euclidean distance, both (N,)."""

    index: Tensor
    distance: Tensor


def nearest(features: Tensor, others: Tensor, what: str = "distances") -> Nearest:
    """The nearest of `others` (M,D) for each of `features` (N,D)."""
    indices, distances = [], []
    with progress(len(features), what, "image") as bar:
        for block in features.split(BLOCK):
            found = torch.cdist(block, others, compute_mode="donot_use_mm_for_euclid_dist").min(1)
            indices.append(found.indices)
            distances.append(found.values)
            bar.update(len(block))
    return Nearest(torch.cat(indices), torch.cat(distances))


@dataclass(frozen=True)
class Audit:
    """Synthetic images beside training images and as many others."""

    training: Nearest
    """of each synthetic image among the training images"""
    others: Nearest
    """the same among real images that were not trained on"""
    threshold: float
    """a distance to the nearest training image that the others fall short of by chance in the chosen share of cases"""

    @property
    def nearer(self) -> int:
        """Synthetic images that lie nearer to a training image than to any other; half of them without a leak."""
        return int((self.training.distance < self.others.distance).sum())

    @property
    def close(self) -> Tensor:
        """Which synthetic images (N,) lie closer to a training image than the threshold."""
        return self.training.distance < self.threshold

    def summary(self) -> dict[str, Any]:
        """Counts, the share of `nearer` in percent with its 95 % interval, and medians of the distances."""
        count = len(self.training.distance)
        low, high = confidence_interval(self.nearer, count)
        return {
            "images": count,
            "nearer_to_training": self.nearer,
            "nearer_percent": 100 * self.nearer / count,
            "nearer_low": low,
            "nearer_high": high,
            "close": int(self.close.sum()),
            "threshold": self.threshold,
            "median_distance": float(self.training.distance.median()),
            "median_other_distance": float(self.others.distance.median()),
        }


def audit(synthetic: Tensor, training: Tensor, others: Tensor, quantile: float) -> Audit:
    """Compare features (N,D) of synthetic images with those of as many training images as others (M,D)."""
    chance = nearest(others, training, "others").distance
    return Audit(
        nearest(synthetic, training, "to training images"),
        nearest(synthetic, others, "to other images"),
        float(torch.quantile(chance, quantile)),
    )


def run(
    model_path: Path,
    data: Path,
    training_npz: Path,
    others_npz: Path,
    out: Path,
    options: PrivacyOptions,
    factory: str | None = None,
) -> None:
    """Audit the training set `data` of the checkpoint `model_path`: a CSV row an image, and a sealed record beside it.

    `training_npz` has images that the classifier was trained on, `others_npz` images of their kind that it was not,
    both .npz with x and y; of the larger set the first images are taken. Raises InputError for files that cannot be
    used or do not fit.
    """
    from dfshield.data.sets import load_npz
    from dfshield.models.checkpoints import load_checkpoint
    from dfshield.sources import trainset

    if out.suffix == ".json":
        raise InputError(f"{out}: is the name of the record; give the path of a CSV, beside which it goes")
    device = select_device(options.device, options.threads)
    model, card = load_checkpoint(model_path, device, factory)
    made = trainset.read(data)
    images = torch.from_numpy(made.images).permute(0, 3, 1, 2)
    if (shape := tuple(images.shape[1:])) != tuple(card.input_shape):
        raise InputError(f"{data}: its images are {shape}, the model's {tuple(card.input_shape)}")
    sets = [load_npz(path, card.input_shape, card.classes, options.limit) for path in (training_npz, others_npz)]
    count = min(map(len, sets))
    training, others = (images.first(count) for images in sets)
    shared = _same(training.x, others.x)
    if shared:
        raise InputError(f"{others_npz}: {shared} of its images are in {training_npz}, too; give others")
    features = extractor(options.features, model, Path(options.vgg16) if options.vgg16 else None)
    found = audit(features(images), features(training.x), features(others.x), options.quantile)
    write_text(out, _csv(found, made.labels))
    body = found.summary() | {
        "training_images": count,
        "options": options.described(device),
        "data_sha256": made.attributes["content_sha256"],
        "training_sha256": training.sha256(),
        "others_sha256": others.sha256(),
        "model_sha256": card.tensors_sha256,
        "weights": {"vgg16": sha256_file(Path(options.vgg16))} if options.vgg16 else {},
        "package_version": __version__,
    }
    seal = sealed.write(out.with_suffix(".json"), RECORD, body)
    log(
        f"{out}: {found.nearer} of {len(made.labels)} synthetic images ({body['nearer_percent']:.1f} %, 95 % interval "
        f"{body['nearer_low']:.1f} to {body['nearer_high']:.1f}) lie nearer to one of {count} training images than to "
        f"{count} others, where 50 % tell nothing apart; {body['close']} are close to one; record {seal[:16]}"
    )


def _same(one: Tensor, other: Tensor) -> int:
    """How many images of `other` are in `one`."""
    known = {image.numpy().tobytes() for image in one}
    return sum(image.numpy().tobytes() in known for image in other)


def _csv(found: Audit, labels: Any) -> str:
    columns = (t.tolist() for near in (found.training, found.others) for t in (near.index, near.distance))
    values = zip(labels, *columns, found.close, strict=True)
    rows = (
        (row, label, index, f"{distance:.5g}", other, f"{further:.5g}", "yes" if close else "no")
        for row, (label, index, distance, other, further, close) in enumerate(values)
    )
    return csv_text(COLUMNS, rows)
