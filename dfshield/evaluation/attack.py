"""The attack stage: attack a checkpoint on a real evaluation set and write the ledger.

Images are worked on in chunks of fixed indices. Attacks work on a quick copy of the model. What they return is reduced
to float16 perturbations, projected, and judged by the model itself in eager fp32 on the whole chunk: only that verdict
counts. Finished pieces of work, one attack on one chunk, are kept until the ledger is written, so a stopped run goes on
where it was and ends in the same bytes.
"""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from dfshield import __version__, registry
from dfshield.attacks.base import Component, Ensemble, frozen
from dfshield.core.device import resolve_precision, select_device
from dfshield.core.errors import InputError
from dfshield.core.progress import log
from dfshield.core.rng import seeded
from dfshield.core.state import forget, run_folder
from dfshield.defences.defence import Defence
from dfshield.defences.fit_file import Fit, fit_for
from dfshield.evaluation.doubts import DOUBTS, at_majority, doubts, image_flags
from dfshield.evaluation.ledger import Ledger, write_ledger
from dfshield.evaluation.needs import load_other
from dfshield.evaluation.session import Session
from dfshield.options import AttackOptions, DefendOptions

NO_DEFENCE = "none"
FIT = "defence"
"""The name of a defence's fit among the other models that a record states."""

if TYPE_CHECKING:
    from dfshield.data.sets import Images
    from dfshield.models.checkpoints import Card


def run(
    model_path: Path,
    out: Path,
    options: AttackOptions,
    dataset: str | None,
    data_dir: Path | None,
    evaluation_npz: Path | None,
    factory: str | None,
    protocol: str,
    subject: dict[str, Any],
    state: Path | None = None,
    code: str = "",
    defence: DefendOptions | None = None,
    others: Mapping[str, Path] | None = None,
    fitted: Path | None = None,
) -> Ledger:
    """Attack the checkpoint `model_path` and write the ledger `out`.

    The images are those of `evaluation_npz` if given, else of `dataset` (the checkpoint's own if None) in
    `options.split` below `data_dir`. `protocol` is the attack's name in tables; what departs from it is added in
    brackets: the split, too, unless it is the test split. `state` is a folder for finished pieces. `factory`, `subject`
    and `code` go to the checkpoint's loader and into the ledger. With `defence` the defended model is judged and, if
    `options.adaptive`, attacked through the defence, whose seed is the attack's. `others` are checkpoints of further
    models that the attack needs, by name; `fitted` is the file of a defence that is fitted first. Raises InputError for
    a checkpoint, data or state folder that cannot be used, and for an attack that lacks what it needs.
    """
    from dfshield.models.checkpoints import load_checkpoint
    from dfshield.models.probe import refuse_bf16
    from dfshield.models.standins import arranged

    options.check_needs(others or {})
    options.crafted_through(defence)
    device = select_device(options.device, options.threads)
    options = resolve_precision(options, device)
    model, card = load_checkpoint(model_path, device, factory)
    refuse_bf16(options, model, card, model_path)
    arranged(model)
    further = {name: load_other(path, card, device, factory) for name, path in (others or {}).items()}
    images = evaluation_images(card, options, dataset, data_dir, evaluation_npz)
    ensemble = components(options, card.input_shape, card.classes)
    defence = defence.model_copy(update={"seed": options.seed}) if defence else None
    fit = fit_for(defence, fitted, card.tensors_sha256)
    notes = [note for note in (ensemble.protocol, ensemble.note) if note and note != protocol]
    if options.split != "test" and evaluation_npz is None:
        notes.append(options.split)
    header: dict[str, Any] = stated(card, images, options, device) | {
        "dataset": dataset or card.dataset,
        "real_data": seen_data(card.real_data, defence, fit),
        "subject": subject,
        "protocol": f"{protocol}[{', '.join(notes)}]" if notes else protocol,
        "defence": defence.defence if defence else NO_DEFENCE,
        "defence_options": defence.described() if defence else {},
        "others": {name: sha256 for name, (_, sha256) in further.items()} | fit_hash(fit),
        "code": code,
    }
    kept = run_folder(state, "attack", header)
    models = {name: other for name, (other, _) in further.items()}
    judged, victim = defended(model, defence, options, fit)
    alike = image_flags(images.x.numpy())
    _say_doubts(model if card.kind == "teacher" else None, images, card.classes, alike, out, device)
    known = [*alike, *(["diverged"] if card.provenance.get("diverged") else [])]
    if missing := card.provenance.get("classes_without_images"):
        known.append(f"classes-untrained:{missing} of {card.classes}")
    with contextlib.ExitStack() as stack:
        for network in (model, *models.values()):
            stack.enter_context(frozen(network))
        session = Session(judged, images.x, images.y, options, ensemble, device, kept, victim, models)
        ledger = filled(session, header, known)
    write_ledger(out, ledger)
    if "unbroken" in doubts(ledger):
        log(f"{out}: {DOUBTS['unbroken']}")
    forget(kept)
    return ledger


def stated(card: "Card", images: "Images", options: AttackOptions, device: torch.device) -> dict[str, Any]:
    """What every ledger says of the attacked model, the images and the attack."""
    return {
        "classes": card.classes,
        "dataset": card.dataset,
        "model": card.model,
        "model_sha256": card.tensors_sha256,
        "data_sha256": images.sha256(),
        "real_data": card.real_data,
        "threat": options.threat,
        "options": options.described(device),
        "seed": options.seed,
        "version": __version__,
    }


def filled(session: Session, header: Mapping[str, Any], known: Sequence[str]) -> Ledger:
    """Attack; returns the ledger with `header` and with what is `known` against its figures besides what is found."""
    rows, flags = session.run()
    names = ("robust", "clean", *(component.name for component in session.ensemble.components))
    values: dict[str, Any] = {**header, **rows}
    return Ledger(**values, components=names, flags=(*flags, *known))


def _say_doubts(
    original: nn.Module | None, images: "Images", classes: int, flags: list[str], out: Path, device: torch.device
) -> None:
    """Say what makes every verdict on these images doubtful, before hours of attack.

    `original` is the model where it is the one that was given to be hardened, and not one of our making.
    """
    label = images.y.numpy()
    for flag in flags:
        log(f"{out}: {DOUBTS[flag]}")
    missing = np.flatnonzero(np.bincount(label, minlength=classes) == 0)
    if len(missing):
        named = ", ".join(map(str, missing[:3])) + (" and others" if len(missing) > 3 else "")
        log(f"{out}: no image of {len(missing)} of {classes} classes ({named})")
    if original is None:
        return
    with torch.no_grad(), seeded(0, device):
        prediction = torch.cat([original(x.to(device)).argmax(1).cpu() for x in images.x.split(250)]).numpy()
    if at_majority(prediction, label):
        right = 100 * float(np.mean(prediction == label))
        share = 100 * float(np.bincount(label).max()) / len(label)
        kinds = len(np.unique(prediction))
        one = f", and answers {prediction[0]} to all" if kinds == 1 else ""
        log(f"{out}: {DOUBTS['at-majority']} (accuracy {right:.2f} %, commonest class {share:.2f} %{one})")


def seen_data(own: registry.RealData, defence: DefendOptions | None, fit: Fit | None = None) -> registry.RealData:
    """Real data that a defended model has seen: the defence's or its fit's, if it has any, else the model's `own`."""
    of_entry = registry.DEFENCES[defence.defence].real_data if defence else "none"
    seen = (of_entry, fit.card.real_data if fit else "none")
    return next((real for real in seen if real != "none"), own)


def fit_hash(fit: Fit | None) -> dict[str, str]:
    """What records name the fit of a defence by, among the other models; nothing without one."""
    return {FIT: fit.card.tensors_sha256} if fit else {}


def defended(
    model: nn.Module, defence: DefendOptions | None, options: AttackOptions, fit: Fit | None = None
) -> tuple[nn.Module, nn.Module | None]:
    """The model that is judged, and what attacks are crafted on (None: the same)."""
    if defence is None:
        return model, None
    entry, device = registry.DEFENCES[defence.defence], next(model.parameters()).device
    kept = ({name: value.to(device) for name, value in fit.tensors.items()},) if fit else ()
    made: Defence[Any] = entry.load()(defence, *kept)
    if not options.adaptive:
        return made.protect(model), model
    crafted: Defence[Any] = entry.load()(options.crafted_through(defence), *kept)
    return made.protect(model), crafted.surrogate(model)


def components(options: AttackOptions, input_shape: tuple[int, int, int], classes: int) -> Ensemble:
    """The attacks that `options` stand for, in order."""
    entry = registry.ATTACKS[options.attack]
    if entry.ensemble:
        ensemble: Ensemble = entry.load()(options, input_shape, classes)
        return ensemble
    return Ensemble((Component(options.attack, entry.load(), bf16_safe=entry.bf16_safe),))


def evaluation_images(
    card: "Card", options: AttackOptions, dataset: str | None, data_dir: Path | None, evaluation_npz: Path | None
) -> "Images":
    from dfshield.data import sets

    if evaluation_npz:
        return sets.load_npz(evaluation_npz, card.input_shape, card.classes, options.limit)
    name = dataset or card.dataset
    if name not in registry.DATASETS:
        raise InputError(
            f"data set {name!r} is not one of {', '.join(registry.DATASETS)}; for your own images give an .npz file"
        )
    entry = registry.DATASETS[name]
    for what, own, other in (
        ("images of shape (C,H,W)", card.input_shape, entry.input_shape),
        ("classes:", card.classes, entry.classes),
    ):
        if tuple(np.atleast_1d(own)) != tuple(np.atleast_1d(other)):
            raise InputError(
                f"the model takes {what} {own}, data set {name} has {other}; "
                f"give the data set it was made for ({card.dataset}) or an .npz file"
            )
    return sets.load(name, options.split, sets.data_dir(data_dir), options.limit)
