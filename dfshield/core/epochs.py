"""The one epoch loop: progress, history, resuming after the last whole epoch, divergence."""

import copy
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfshield.core.errors import Diverged
from dfshield.core.progress import log, progress
from dfshield.core.rng import generator, seeded
from dfshield.core.signals import stop_if_asked
from dfshield.core.state import keep, kept, made_again

if TYPE_CHECKING:
    import torch


class EpochLoop:
    """Base of everything that trains in epochs. A subclass writes `epoch`, `state`, `load` and perhaps `describe`.

    `fit` saves the whole state after every epoch, atomically, and the same call after a crash resumes there. Results
    are to the byte those of a run that was never stopped if `epoch` draws its randomness from its number alone and
    `state` holds everything else that it changes.
    """

    def __init__(
        self, label: str, epochs: int, steps: int, device: "torch.device", unit: str = "step", seed: int = 0
    ) -> None:
        """`label` names the run to the person who watches; an epoch advances the progress bar by `steps` of `unit`.

        A network's own randomness (dropout) is drawn from `seed` and the epoch's number.
        """
        self.label, self.unit = label, unit
        self.epochs, self.steps, self.device, self.seed = epochs, steps, device, seed
        self.history: list[dict[str, Any]] = []
        """Metrics of every whole epoch."""
        self.diverged = ""
        """Why and where training ended early; empty if it did not."""

    def epoch(self, epoch: int, bar: Any = None) -> dict[str, Any]:
        """Train epoch `epoch` (from 0) and return its metrics, plain numbers.

        Raises Diverged if training cannot go on.
        """
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """Everything that an epoch changes, as tensors and plain values."""
        raise NotImplementedError

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        raise NotImplementedError

    def describe(self, row: dict[str, Any]) -> str:
        """An epoch's metrics as a line for the person who watches; empty for none."""
        return ""

    def fit(self, checkpoint: Path | None = None) -> None:
        """Train all epochs, or those that are left after `checkpoint`.

        On divergence the state of the last whole epoch is restored and `diverged` says why; that state is the result.
        A checkpoint that is damaged, or of another run, is not used.
        """
        done = self._resume(checkpoint)
        with progress(self.epochs * self.steps, self.label, self.unit) as bar:
            bar.update(done * self.steps)
            for epoch in range(done, self.epochs):
                stop_if_asked("epoch", epoch, self.epochs, kept=checkpoint is not None)
                before = copy.deepcopy(self._whole(epoch))
                draws = generator("network", self.seed, epoch).initial_seed()
                try:
                    with seeded(draws, self.device):
                        row = self.epoch(epoch, bar)
                except Diverged as reason:
                    self._restore(before)
                    self.diverged = f"{reason}; these are the weights after epoch {epoch}"
                    log(f"{self.label} diverged: {self.diverged}; a lower learning rate may help")
                    break
                self.history.append(row)
                if line := self.describe(row):
                    log(line)
                if checkpoint:
                    self._save(checkpoint, epoch + 1)
        stop_if_asked("epoch", len(self.history), self.epochs, kept=checkpoint is not None)

    def _whole(self, done: int) -> dict[str, Any]:
        return {"done": done, "history": self.history, "state": self.state()}

    def _restore(self, saved: dict[str, Any]) -> None:
        self.load(saved["state"])
        self.history = saved["history"]

    def _save(self, path: Path, done: int) -> None:
        import torch

        stream = io.BytesIO()
        torch.save(self._whole(done), stream)
        keep(path, stream.getvalue())

    def _resume(self, path: Path | None) -> int:
        import torch

        payload = kept(path)
        if path is None or payload is None:
            return 0
        before = copy.deepcopy(self._whole(0))
        try:
            saved = torch.load(io.BytesIO(payload), map_location=self.device, weights_only=True)
            self._restore(saved)
            done = int(saved["done"])
        except Exception:  # whole, but of a program whose runs hold other things: it may fail anywhere
            self._restore(before)
            made_again(path)
            return 0
        log(f"resuming after epoch {done} of {self.epochs}")
        return done
