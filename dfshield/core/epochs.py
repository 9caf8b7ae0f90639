"""The one epoch loop: progress, history, resuming after the last whole epoch, divergence."""

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfshield.core.errors import Diverged
from dfshield.core.files import atomic, read_resume_state
from dfshield.core.progress import log, progress

if TYPE_CHECKING:
    import torch


class EpochLoop:
    """Base of everything that trains in epochs. A subclass writes `epoch`, `state`, `load` and perhaps `describe`.

    `fit` saves the whole state after every epoch, atomically, and the same call after a crash resumes there. Results
    are to the byte those of a run that was never stopped if `epoch` draws its randomness from its number alone and
    `state` holds everything else that it changes.
    """

    def __init__(self, label: str, epochs: int, steps: int, device: "torch.device", unit: str = "step") -> None:
        """`label` names the run to the person who watches; an epoch advances the progress bar by `steps` of `unit`."""
        self.label, self.unit = label, unit
        self.epochs, self.steps, self.device = epochs, steps, device
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
        Raises InputError for a checkpoint that cannot be read.
        """
        done = self._resume(checkpoint)
        with progress(self.epochs * self.steps, self.label, self.unit) as bar:
            bar.update(done * self.steps)
            for epoch in range(done, self.epochs):
                before = copy.deepcopy(self._whole(epoch))
                try:
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

    def _whole(self, done: int) -> dict[str, Any]:
        return {"done": done, "history": self.history, "state": self.state()}

    def _restore(self, saved: dict[str, Any]) -> None:
        self.load(saved["state"])
        self.history = saved["history"]

    def _save(self, path: Path, done: int) -> None:
        import torch

        with atomic(path) as temporary:
            torch.save(self._whole(done), temporary)

    def _resume(self, path: Path | None) -> int:
        saved = read_resume_state(path, self.device)
        if saved is None:
            return 0
        self._restore(saved)
        log(f"resuming after epoch {saved['done']} of {self.epochs}")
        return int(saved["done"])
