"""The diversity stage: compare a training set with real images and write the record.

Like an attack it reads real images, after everything that they could influence is made.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import dfshield
from dfshield.core.device import select_device
from dfshield.core.errors import InputError
from dfshield.core.hashing import sha256_file
from dfshield.core.progress import log, progress
from dfshield.core.rng import generator
from dfshield.evaluation.coverage import bin_counts, different_bins, jensen_shannon, neighbourhood_metrics
from dfshield.evaluation.features import extractor
from dfshield.evaluation.record import Record, write_record
from dfshield.models.checkpoints import Card, load_checkpoint
from dfshield.options import DiversityOptions
from dfshield.sources.trainset import check_fit, read

if TYPE_CHECKING:
    from dfshield.data.sets import Images


def run(
    teacher: Path,
    data: Path,
    out: Path,
    options: DiversityOptions,
    dataset: str | None = None,
    data_dir: Path | None = None,
    factory: str | None = None,
    code: str = "",
) -> None:
    """Compare the training set `data` with the real images of `dataset` (the teacher's own if None); write `out`.

    `teacher` is the checkpoint that the set was made from. Raises InputError for files that do not belong together, for
    a data set of other images, and for sets that are too small for the options.
    """
    device = select_device(options.device, options.threads)
    model, card = load_checkpoint(teacher, str(device), factory=factory)
    trainset = read(data)
    check_fit(trainset, card, teacher, data)
    described = options.described(device) | {"seed": options.seed}
    weights = Path(options.vgg16) if options.vgg16 else None
    images = _real(card, options, dataset, data_dir)
    real = _drawn(images.x, "real", options)
    synthetic = _drawn(torch.from_numpy(trainset.images).permute(0, 3, 1, 2), "surrogate", options)
    seen = extractor(options.features, model, weights)
    with progress(2 * len(real) + len(synthetic), "diversity", "image") as bar:
        values = neighbourhood_metrics(seen(real).to(device), seen(synthetic).to(device), options.neighbours, bar)
    binned = extractor(options.bin_features, model, weights)
    counts = bin_counts(binned(real).numpy(), binned(synthetic).numpy(), options.bins, options.seed)
    values |= {"ndb": float(different_bins(*counts, alpha=options.alpha)), "jsd": jensen_shannon(*counts)}
    content = write_record(
        out,
        Record(
            dataset=dataset or card.dataset,
            model=card.model,
            source=trainset.attributes["source"],
            seed=trainset.attributes["seed"],
            split=options.split,
            n_real=len(real),
            n_synthetic=len(synthetic),
            values=values,
            options=described,
            real_data=trainset.attributes["real_data"],
            teacher_sha256=card.tensors_sha256,
            data_sha256=trainset.attributes["content_sha256"],
            real_sha256=images.sha256(),
            weights_sha256=sha256_file(weights) if weights else "",
            package_version=dfshield.__version__,
            code=code,
        ),
    )
    figures = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    log(f"{out}: {figures}, content {content[:16]}")


def _real(card: Card, options: DiversityOptions, dataset: str | None, data_dir: Path | None) -> "Images":
    from dfshield.data import sets

    name = dataset or card.dataset
    images = sets.load(name, options.split, sets.data_dir(data_dir))
    if card.input_shape != tuple(images.x.shape[1:]):
        raise InputError(
            f"the teacher takes images of shape (C,H,W) {card.input_shape}, data set {name} has "
            f"{tuple(images.x.shape[1:])}; give the data set that it was trained on ({card.dataset})"
        )
    return images


def _drawn(images: Tensor, which: str, options: DiversityOptions) -> Tensor:
    """`options.sample` of the images, drawn without replacement; all if it is 0 or there are no more."""
    if not 0 < options.sample < len(images):
        return images
    random = generator("diversity", which, options.seed)
    return images[torch.randperm(len(images), generator=random)[: options.sample]]
