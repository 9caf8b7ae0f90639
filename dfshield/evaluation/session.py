"""Attack a set of images, chunk by chunk, and keep what is done."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dfshield import registry
from dfshield.attacks.base import Component, Ensemble, Eot, Problem
from dfshield.attacks.differences import Differences
from dfshield.core.progress import progress
from dfshield.core.rng import generator, seeded
from dfshield.core.signals import stop_if_asked
from dfshield.core.state import keep_arrays, kept_arrays
from dfshield.core.threat import parse_threat
from dfshield.evaluation.crafting import FastModels
from dfshield.evaluation.masking import SQUARE_POINTS, gradient_masking_checks
from dfshield.evaluation.needs import GUIDE, guide_images
from dfshield.evaluation.verdict import Outcome, evaluate_distance, evaluate_perturbation, predict
from dfshield.options import AttackOptions

CLEAN = 1
"""Index of ``clean`` among a ledger's components."""


class Session:
    """One evaluation: `ensemble` against `model` on images `x` (N,C,H,W) with labels `y` (N,), in fixed chunks.

    Attacks are crafted on `victim`, by default the model itself: the surrogate of a defence, or the bare network of an
    attack that does not know of the defence. Verdicts are the model's. `others` are the models, by name, that the
    attack's entry needs; guides are chosen here. Finished pieces, one attack on one chunk, are kept in `folder`.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        options: AttackOptions,
        ensemble: Ensemble,
        device: torch.device,
        folder: Path | None = None,
        victim: nn.Module | None = None,
        others: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.x, self.y, self.options, self.ensemble = model, x, y, options, ensemble
        self.device, self.folder, self.others = device, folder, dict(others or {})
        self.threat = parse_threat(options.threat)
        self.victim = model if victim is None else victim
        self.fast = FastModels(self.victim, options)
        entry = registry.ATTACKS[options.attack]
        self.minimal, self.replaces = entry.minimal, entry.replaces
        if GUIDE in entry.needs:
            self.others[GUIDE] = self._guides()

    def run(self) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
        """Attack all images; returns the ledger's arrays and the flags."""
        chunks = range(0, len(self.x), self.options.chunk)
        pieces = []
        flags: list[str] = []
        broken = done = 0
        total = len(chunks) * (len(self.ensemble.components) + 1)
        with progress(total, self.options.attack, "piece") as bar:
            for number, start in enumerate(chunks):
                stop = start + self.options.chunk
                # the components of AutoAttack look at gradients through views, which other layouts do not have
                x, y = self.x[start:stop].to(self.device).contiguous(), self.y[start:stop].to(self.device)
                if number == 0 and self.options.attack != "clean" and not self.replaces:
                    flags = gradient_masking_checks(self.model, self.victim, x, y)
                done += len(x)
                for rows in self.chunk(x, y, number):
                    robust = 100 * (1 - (broken + rows["broken"].sum()) / done)
                    bar.set_postfix({"robust": f"{robust:.2f} %"}, refresh=False)
                    bar.update()
                    stop_if_asked("piece", int(bar.n), total, kept=self.folder is not None)
                broken += int(rows["broken"].sum())
                rows["perturbed_index"] += start
                pieces.append(rows)
        table = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
        table["label"] = self.y.cpu().numpy().astype(np.int64)
        names = [component.name for component in self.ensemble.components]
        if len(names) > 1 and "square" in names:
            by_square = int(np.sum(table["component"] == CLEAN + 1 + names.index("square")))
            if by_square > max(1, SQUARE_POINTS * len(self.x)):  # one image alone is no sign, however few there are
                flags.append("square-broke-after-white-box")
        return table, tuple(flags)

    def chunk(self, x: Tensor, y: Tensor, number: int) -> Iterator[dict[str, np.ndarray]]:
        """Attack chunk `number`; yields the ledger's rows after the clean pass and after every attack.

        The result depends on the chunk's images and `number`, not on other chunks, but for an attack's guides.
        """
        labels = y.cpu().numpy()
        with seeded(chunk_generator(self.options.seed, "clean", number).initial_seed(), x.device):
            clean = evaluate_perturbation(self.model, x, y, x, self.threat)
        prediction, margin = clean.prediction.copy(), clean.margin.copy()
        perturbation = clean.perturbation
        component = np.where(prediction != labels, CLEAN, 0).astype(np.uint8)
        distances = np.where(component == CLEAN, 0, np.inf).astype(np.float32)

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
                **({"distances": distances} if self.minimal else {}),
            }

        yield rows()
        for index, part in enumerate(self.ensemble.components, start=CLEAN + 1):
            if self.replaces:  # the image in its new form is judged, whatever the verdict on it as it was
                component[:], margin[:], prediction[:] = 0, np.inf, labels
            alive = np.flatnonzero(component == 0)
            if len(alive):
                file = self.folder / f"{number:06d}-{part.name}.npz" if self.folder else None
                outcome = load_piece(file, alive)
                if outcome is None:
                    outcome = self.attack(part, x, y, number, alive)
                    save_piece(file, alive, outcome)
                won = alive[outcome.prediction[alive] != labels[alive]]
                component[won] = index
                prediction[won] = outcome.prediction[won]
                perturbation[won] = outcome.perturbation[won]
                margin[alive] = np.minimum(margin[alive], outcome.margin[alive])
                if self.minimal:
                    distances[alive] = np.minimum(distances[alive], outcome.distance[alive])
            yield rows()

    def attack(self, part: Component, x: Tensor, y: Tensor, number: int, alive: np.ndarray) -> Outcome:
        """One attack on the images `alive` (indices) of chunk `number`, and the model's verdict on the whole chunk."""
        random = chunk_generator(self.options.seed, part.name, number)
        select = torch.from_numpy(alive).to(x.device)
        # a randomised model draws from the global generators: seeded too, so that its ledger can be made again
        with seeded(random.initial_seed(), x.device):
            x_adv = x.clone()
            rounded = part.bf16_safe and not self.options.differences
            victim = self.fast.bf16 if rounded else self.fast.fp32
            if self.options.eot > 1:
                victim = Eot(victim, self.options.eot)
            if self.options.differences:
                victim = Differences(victim, self.options.differences, self.options.difference_step)
            problem = Problem(victim, x[select], y[select], self.threat, random, self._others(number, select))
            x_adv[select] = part.attack(problem, self.options).to(x.dtype)
            judge = evaluate_distance if self.minimal else evaluate_perturbation
            return judge(self.model, x, y, x_adv, self.threat)

    def _others(self, number: int, select: Tensor) -> dict[str, Any]:
        """What the attack needs besides, for the images of a chunk that it has."""
        found = dict(self.others)
        if GUIDE in found:
            start = number * self.options.chunk
            found[GUIDE] = found[GUIDE][start : start + self.options.chunk].to(self.device)[select]
        return found

    def _guides(self) -> Tensor:
        parts = zip(self.x.split(self.options.chunk), self.y.split(self.options.chunk), strict=True)
        found = [predict(self.model, x.to(self.device).contiguous(), y.to(self.device))[0] for x, y in parts]
        return guide_images(self.x, self.y, np.concatenate(found), self.options.seed)


def chunk_generator(seed: int, attack: str, number: int) -> torch.Generator:
    """Randomness of one attack on chunk `number`; the first chunk has plain `seed`, as reference libraries use it."""
    return generator(seed, attack, number) if number else torch.Generator().manual_seed(seed)


def save_piece(file: Path | None, alive: np.ndarray, outcome: Outcome) -> None:
    """Keep the outcome of one attack on one chunk, with the images `alive` (indices) that it was of."""
    keep_arrays(file, {"alive": alive, **vars(outcome)})


def load_piece(file: Path | None, alive: np.ndarray) -> Outcome | None:
    """The outcome that an earlier run left in `file`; None if there is none that is whole and of the same images."""
    arrays = kept_arrays(file)
    same = arrays is not None and np.array_equal(arrays.pop("alive"), alive)
    return Outcome(**arrays) if arrays and same else None
