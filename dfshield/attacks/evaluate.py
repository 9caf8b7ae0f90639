"""The attack stage: attack a checkpoint on a real evaluation set and write the ledger.

Images are worked on in chunks of fixed indices. Attacks work on a quick copy of the model. What they return is reduced
to float16 perturbations, projected, and judged by the model itself in eager fp32 on the whole chunk: only that verdict
counts. Finished pieces of work, one attack on one chunk, are kept until the ledger is written, so a stopped run goes on
where it was and ends in the same bytes.
"""

import shutil
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from dfshield import __version__, registry
from dfshield.attacks.crafting import Crafting
from dfshield.attacks.gradient import Component, Ensemble, frozen, input_gradient, margin, seeded
from dfshield.attacks.ledger import Ledger, write_ledger
from dfshield.attacks.threat import from_half, to_half
from dfshield.options import AttackOptions
from dfshield.runtime import InputError, atomic, digest, generator, progress, select_device, settled
from dfshield.threat import Threat, parse_threat

if TYPE_CHECKING:
    from dfshield.data.sets import Images
    from dfshield.models.checkpoints import Card

CLEAN = 1
"""Index of ``clean`` among a ledger's components."""
SQUARE_POINTS = 0.002
"""Share of images that Square may break after the white-box attacks without suspicion (Croce and Hein 2020)."""


@dataclass
class Verdict:
    """The model's own judgement of a chunk of n images."""

    prediction: np.ndarray
    """(n,) int64."""
    margin: np.ndarray
    """(n,) float32: z_y - max other."""
    perturbation: np.ndarray
    """(n,C,H,W) float16; zero for images that were not attacked."""


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
) -> Ledger:
    """Attack the checkpoint `model_path` and write the ledger `out`.

    The images are those of `evaluation_npz` if given, else of `dataset` (the checkpoint's own if None) in
    `options.split` below `data_dir`. `protocol` is the attack's name in tables; what departs from it is added in
    brackets: the split, too, unless it is the test split. `state` is a folder for finished pieces. `factory`, `subject`
    and `code` go to the checkpoint's loader and into the ledger. Raises InputError for a checkpoint, data or state
    folder that cannot be used.
    """
    from dfshield.models.checkpoints import load_checkpoint

    device = select_device(options.device, options.threads)
    options = settled(options, device)
    model, card = load_checkpoint(model_path, device, factory)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # the faster layout for convolutions
    images = _images(card, options, dataset, data_dir, evaluation_npz)
    threat = parse_threat(options.threat)
    ensemble = plan(options, card.input_shape, card.classes)
    notes = [ensemble.note] if ensemble.note else []
    if options.split != "test" and evaluation_npz is None:
        notes.append(options.split)
    header: dict[str, Any] = {
        "classes": card.classes,
        "dataset": dataset or card.dataset,
        "model": card.model,
        "model_sha256": card.tensors_sha256,
        "data_sha256": images.sha256(),
        "real_data": card.real_data,
        "subject": subject,
        "protocol": f"{protocol}[{', '.join(notes)}]" if notes else protocol,
        "threat": options.threat,
        "options": options.model_dump(mode="json"),
        "seed": options.seed,
        "version": __version__,
        "code": code,
    }
    folder = state / digest(header, device.type)[:32] if state else None
    with frozen(model):
        rows, flags = attack_all(model, images.x, images.y, threat, options, ensemble, device, folder)
    if card.provenance.get("diverged"):
        flags = (*flags, "diverged")
    names = ("robust", "clean", *(component.name for component in ensemble.components))
    values: dict[str, Any] = header | rows
    ledger = Ledger(**values, components=names, flags=flags)
    write_ledger(out, ledger)
    if folder:
        shutil.rmtree(folder, ignore_errors=True)
    return ledger


def plan(options: AttackOptions, input_shape: tuple[int, int, int], classes: int) -> Ensemble:
    """The attacks that `options` stand for, in order."""
    entry = registry.ATTACKS[options.attack]
    if entry.ensemble:
        ensemble: Ensemble = entry.load()(options, input_shape, classes)
        return ensemble
    return Ensemble((Component(options.attack, entry.load(), rounds=True),))


def attack_all(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    options: AttackOptions,
    ensemble: Ensemble,
    device: torch.device,
    folder: Path | None,
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Run `ensemble` on images `x` (N,C,H,W) with labels `y` (N,); returns the ledger's arrays and the flags."""
    chunks = range(0, len(x), options.chunk)
    crafting = Crafting(model, options)
    pieces = []
    flags: list[str] = []
    broken = done = 0
    with progress(len(chunks) * (len(ensemble.components) + 1), options.attack, "piece") as bar:
        for number, start in enumerate(chunks):
            stop = start + options.chunk
            # the components of AutoAttack look at gradients through views, which other layouts do not have
            chunk, labels = x[start:stop].to(device).contiguous(), y[start:stop].to(device)
            if number == 0 and options.attack != "clean":
                flags = suspicions(model, chunk, labels)
            done += len(chunk)
            for rows in attack_chunk(model, crafting, chunk, labels, threat, options, ensemble, number, folder):
                bar.set_postfix(
                    {"robust": f"{100 * (1 - (broken + rows['broken'].sum()) / done):.2f} %"}, refresh=False
                )
                bar.update()
            broken += int(rows["broken"].sum())
            rows["perturbed_index"] += start
            pieces.append(rows)
    table = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    table["label"] = y.cpu().numpy().astype(np.int64)
    names = [component.name for component in ensemble.components]
    if len(names) > 1 and "square" in names:
        by_square = int(np.sum(table["component"] == CLEAN + 1 + names.index("square")))
        if by_square > max(1, SQUARE_POINTS * len(x)):  # one image alone is no sign, however few there are
            flags.append("square-broke-after-white-box")
    return table, tuple(flags)


def attack_chunk(
    model: nn.Module,
    crafting: Crafting,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    options: AttackOptions,
    ensemble: Ensemble,
    number: int,
    folder: Path | None,
) -> Iterator[dict[str, np.ndarray]]:
    """Attack one chunk; yields the ledger's rows after the clean pass and after every attack.

    The result depends on the chunk's images and `number`, not on other chunks.
    """
    labels = y.cpu().numpy()
    clean = judge(model, x, y, x, threat)
    prediction, margin = clean.prediction.copy(), clean.margin.copy()
    perturbation = clean.perturbation
    component = np.where(prediction != labels, CLEAN, 0).astype(np.uint8)

    def rows() -> dict[str, np.ndarray]:
        attacked = np.flatnonzero(component > CLEAN)
        return {
            "clean_prediction": clean.prediction,
            "prediction": prediction,
            "broken": component > 0,
            "component": component,
            "margin": margin,
            "perturbed_index": attacked,
            "perturbation": perturbation[attacked],
        }

    yield rows()
    for index, part in enumerate(ensemble.components, start=CLEAN + 1):
        alive = np.flatnonzero(component == 0)
        if len(alive):
            file = folder / f"{number:06d}-{part.name}.npz" if folder else None
            verdict = _load(file, alive)
            if verdict is None:
                verdict = _attack(part, model, crafting, x, y, threat, options, number, alive)
                _save(file, alive, verdict)
            won = alive[verdict.prediction[alive] != labels[alive]]
            component[won] = index
            prediction[won] = verdict.prediction[won]
            perturbation[won] = verdict.perturbation[won]
            margin[alive] = np.minimum(margin[alive], verdict.margin[alive])
        yield rows()


def _attack(
    part: Component,
    model: nn.Module,
    crafting: Crafting,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    options: AttackOptions,
    number: int,
    alive: np.ndarray,
) -> Verdict:
    randomness = chunk_generator(options.seed, part.name, number)
    select = torch.from_numpy(alive).to(x.device)
    # a randomised model draws from the global generators: seeded too, so that its ledger can be made again
    with seeded(randomness.initial_seed(), x.device):
        x_adv = x.clone()
        victim = crafting.rounded if part.rounds else crafting.exact
        x_adv[select] = part.attack(victim, x[select], y[select], threat, options, randomness).to(x.dtype)
        return judge(model, x, y, x_adv, threat)


def chunk_generator(seed: int, attack: str, number: int) -> torch.Generator:
    """Randomness of one attack on chunk `number`; the first chunk has plain `seed`, as reference libraries use it."""
    return generator(seed, attack, number) if number else torch.Generator().manual_seed(seed)


@torch.no_grad()
def judge(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor, threat: Threat) -> Verdict:
    """What the model makes of the perturbation from `x` to `x_adv` in its stored form.

    Always given whole chunks, so that the arithmetic (which may depend on the batch size) is the same whenever a
    verdict is repeated.
    """
    half = to_half(x, x_adv, threat)
    prediction, margin = predict(model, from_half(x, half, threat), y)
    return Verdict(prediction, margin, half.cpu().numpy())


@torch.no_grad()
def predict(model: nn.Module, x: Tensor, y: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Predicted classes (n,) and margins z_y - max other (n,); InputError if logits are not finite."""
    logits = model(x).float()
    if not logits.isfinite().all():
        raise InputError("the model gives logits that are not finite (NaN or infinite); check its weights")
    return logits.argmax(dim=1).cpu().numpy(), margin(logits, y).cpu().numpy()


def replay(model: nn.Module, x: Tensor, y: Tensor, ledger: Ledger) -> np.ndarray:
    """Judge a ledger's stored perturbations again: (N,) bool, which images are misclassified.

    `x` (N,C,H,W) and `y` (N,) are the images that the ledger was made from.
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


def suspicions(model: nn.Module, x: Tensor, y: Tensor) -> list[str]:
    """Flags that a model's outputs and gradients on some images raise against any attack's verdict on it.

    ``randomised``: two forward passes differ. ``softmax-outputs``: probabilities instead of logits, which flattens
    the losses. ``zero-gradients``: the cross entropy has no input gradient for some image (Croce and Hein 2020).
    """
    flags = []
    few = x[:32]  # a random layer shows in any images
    with torch.no_grad(), seeded(0, x.device):
        first, second = model(few).float(), model(few).float()
    if not torch.allclose(first, second, rtol=1e-4, atol=1e-4):
        flags.append("randomised")
    unit = first.min() >= -1e-5 and first.max() <= 1 + 1e-5
    if unit and torch.allclose(first.sum(dim=1), torch.ones_like(first[:, 0]), atol=1e-4):
        flags.append("softmax-outputs")
    _, gradient = input_gradient(model, x, y)
    if (gradient.flatten(1) == 0).all(dim=1).any():
        flags.append("zero-gradients")
    return flags


def _images(
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
    images = sets.load(name, options.split, sets.data_dir(data_dir))
    return images.first(options.limit)


def _save(file: Path | None, alive: np.ndarray, verdict: Verdict) -> None:
    if file:
        with atomic(file) as temporary:
            np.savez(temporary, alive=alive, **vars(verdict))


def _load(file: Path | None, alive: np.ndarray) -> Verdict | None:
    """The verdict that an earlier run left in `file`; None if there is none that is whole."""
    if file is None or not file.is_file():
        return None
    try:
        with np.load(file, allow_pickle=False) as kept:
            arrays = {name: kept[name] for name in kept.files}
        same = np.array_equal(arrays.pop("alive"), alive)
        return Verdict(**arrays) if same else None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
