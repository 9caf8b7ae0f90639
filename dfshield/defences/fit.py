"""The defend stage: fit a defence to a model on a training set, and keep what it fits."""

import contextlib
from pathlib import Path

import torch

from dfshield import __version__, registry
from dfshield.attacks.base import frozen
from dfshield.core.datafree import data_free
from dfshield.core.device import select_device
from dfshield.core.errors import InputError
from dfshield.core.progress import log
from dfshield.core.rng import generator, seeded
from dfshield.core.threat import check_threat
from dfshield.defences.fit_file import FitCard, fitted_names, write_fit
from dfshield.defences.fitted import FittedDefence, Fitting
from dfshield.models.card import Card
from dfshield.models.checkpoints import load_checkpoint
from dfshield.models.standins import arranged
from dfshield.options import DefendOptions
from dfshield.sources.trainset import TrainSet, check_fit, read

SAME = ("model", "input_shape", "classes", "mean", "std", "factory", "arguments")
"""What the cards of a student and of its teacher have in common."""


@data_free("defend")
def run(
    model_path: Path,
    teacher: Path,
    data: Path,
    out: Path,
    options: DefendOptions,
    threat: str,
    factory: str | None = None,
    code: str = "",
) -> str:
    """Fit `options.defence` to the checkpoint `model_path` and write what it keeps to `out`; returns the tensors' hash.

    `teacher` is the checkpoint that the model was hardened from, or the model itself where nothing was hardened. The
    fit sees the images of the training set `data`, made for that teacher, and attacks of its own within `threat`.
    Raises InputError for a defence without anything to fit and for files that do not belong together.
    """
    entry = registry.DEFENCES[options.defence]
    if not entry.fitted:
        raise InputError(
            f"defence {options.defence} has nothing to fit; those that have are {', '.join(fitted_names()) or 'none'}"
        )
    try:
        threat = check_threat(threat)
    except ValueError as error:
        raise InputError(f"--threat: {error}") from None
    device = select_device(options.device, options.threads)
    model, card = load_checkpoint(model_path, device, factory)
    original, origin = load_checkpoint(teacher, device, factory)
    _check_pair(model_path, card, teacher, origin)
    if card.tensors_sha256 == origin.tensors_sha256:
        original = model
    trainset = read(data)
    check_fit(trainset, origin, teacher, data)
    for network in (model, original):
        arranged(network)
    order = _held_out_last(trainset, card)
    images = torch.from_numpy(trainset.images).permute(0, 3, 1, 2)[order].contiguous().to(device)
    labels = torch.from_numpy(trainset.labels)[order].to(device)
    made: FittedDefence[DefendOptions] = entry.load()(options)
    random = generator("defend", options.defence, options.seed)
    given = Fitting(model, original, images, labels, card.classes, threat, random)
    with contextlib.ExitStack() as stack:
        for network in (model, original):
            stack.enter_context(frozen(network))
        stack.enter_context(seeded(options.seed, device))
        tensors = made.fit(given)
    attributes = trainset.attributes
    sha256 = write_fit(
        out,
        FitCard(
            defence=options.defence,
            options=options.described(),
            threat=threat,
            seed=options.seed,
            device=device.type,
            model_sha256=card.tensors_sha256,
            teacher_sha256=origin.tensors_sha256,
            data_sha256=attributes["content_sha256"],
            source=attributes["source"],
            real_data=attributes["real_data"],
            package_version=__version__,
            code=code,
        ),
        tensors,
    )
    log(f"{out}: {options.defence} fitted on {len(images)} images, tensors {sha256[:16]}")
    return sha256


def _check_pair(model_path: Path, card: Card, teacher: Path, origin: Card) -> None:
    """Raise InputError for a model that was not hardened from this teacher."""
    hardened_from = card.provenance.get("teacher_sha256") if card.kind == "student" else card.tensors_sha256
    if hardened_from != origin.tensors_sha256:
        raise InputError(
            f"{model_path}: was hardened from {str(hardened_from)[:16]}, but {teacher} is "
            f"{origin.tensors_sha256[:16]}; give its own teacher, or a model that was not hardened as both"
        )
    for name in SAME:
        if getattr(card, name) != getattr(origin, name):
            raise InputError(f"{model_path}: its {name} is not that of {teacher}; give its own teacher")


def _held_out_last(trainset: TrainSet, card: Card) -> torch.Tensor:
    """An order of the images (N,) in which those come last that the training of a student on this set held out."""
    n, made = len(trainset.images), card.provenance
    chosen = made.get("options", {})
    if made.get("data_sha256") != trainset.attributes["content_sha256"] or not chosen.get("holdout"):
        return torch.arange(n)
    used = max(1, round(chosen.get("data_share", 1.0) * n))
    held = torch.randperm(used, generator=generator("holdout", made["seed"]))[: chosen["holdout"]]
    kept = torch.ones(n, dtype=torch.bool)
    kept[held] = False
    return torch.cat([kept.nonzero()[:, 0], held])
