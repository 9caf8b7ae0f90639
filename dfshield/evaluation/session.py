"""Attack a set of images, chunk by chunk, and keep what is done."""

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from dfshield.attacks.base import Component, Ensemble, seeded
from dfshield.core.files import atomic
from dfshield.core.progress import progress
from dfshield.core.rng import generator
from dfshield.core.threat import Threat
from dfshield.evaluation.crafting import FastModels
from dfshield.options import AttackOptions

if TYPE_CHECKING:
    pass
from dfshield.evaluation.checks import SQUARE_POINTS, gradient_masking_checks
from dfshield.evaluation.verdict import Outcome, evaluate_perturbation

CLEAN = 1
"""Index of ``clean`` among a ledger's components."""


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
    crafting = FastModels(model, options)
    pieces = []
    flags: list[str] = []
    broken = done = 0
    with progress(len(chunks) * (len(ensemble.components) + 1), options.attack, "piece") as bar:
        for number, start in enumerate(chunks):
            stop = start + options.chunk
            # the components of AutoAttack look at gradients through views, which other layouts do not have
            chunk, labels = x[start:stop].to(device).contiguous(), y[start:stop].to(device)
            if number == 0 and options.attack != "clean":
                flags = gradient_masking_checks(model, chunk, labels)
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
    crafting: FastModels,
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
    clean = evaluate_perturbation(model, x, y, x, threat)
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
    crafting: FastModels,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    options: AttackOptions,
    number: int,
    alive: np.ndarray,
) -> Outcome:
    randomness = chunk_generator(options.seed, part.name, number)
    select = torch.from_numpy(alive).to(x.device)
    # a randomised model draws from the global generators: seeded too, so that its ledger can be made again
    with seeded(randomness.initial_seed(), x.device):
        x_adv = x.clone()
        victim = crafting.bf16 if part.bf16_safe else crafting.fp32
        x_adv[select] = part.attack(victim, x[select], y[select], threat, options, randomness).to(x.dtype)
        return evaluate_perturbation(model, x, y, x_adv, threat)


def chunk_generator(seed: int, attack: str, number: int) -> torch.Generator:
    """Randomness of one attack on chunk `number`; the first chunk has plain `seed`, as reference libraries use it."""
    return generator(seed, attack, number) if number else torch.Generator().manual_seed(seed)


def _save(file: Path | None, alive: np.ndarray, verdict: Outcome) -> None:
    if file:
        with atomic(file) as temporary:
            np.savez(temporary, alive=alive, **vars(verdict))


def _load(file: Path | None, alive: np.ndarray) -> Outcome | None:
    """The verdict that an earlier run left in `file`; None if there is none that is whole."""
    if file is None or not file.is_file():
        return None
    try:
        with np.load(file, allow_pickle=False) as kept:
            arrays = {name: kept[name] for name in kept.files}
        same = np.array_equal(arrays.pop("alive"), alive)
        return Outcome(**arrays) if same else None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
