"""GradRefine: keep the gradient entries on which the mini-batches of a group agree (Eq 9 and 10)."""

from collections.abc import Sequence
from typing import Literal

import torch


class GradRefine:
    """Accumulates the gradients of up to B mini-batches and refines them into one.

    Per entry: s is the sum of signs, the value is the sum of the gradients whose sign is that of s, and it passes where
    ``|s| >= tau * B`` (inclusive). B = 1 is the plain gradient. Without `sign_filter` the value is the sum of all
    gradients, so that τ = 0 adds up B mini-batches and masks nothing, as the text has it.
    """

    def __init__(
        self,
        parameters: Sequence[torch.Tensor],
        b: int,
        tau: float,
        reduction: Literal["sum", "mean"] = "sum",
        tie: Literal["zero", "all"] = "zero",
        sign_filter: bool = True,
    ) -> None:
        self.b, self.tau, self.reduction, self.tie, self.sign_filter = b, tau, reduction, tie, sign_filter
        self.signs = [torch.zeros_like(p) for p in parameters]
        self.positive = [torch.zeros_like(p) for p in parameters]
        self.negative = [torch.zeros_like(p) for p in parameters]
        self.count = 0

    def add(self, gradients: Sequence[torch.Tensor]) -> None:
        """Add the gradients of one mini-batch."""
        given = list(gradients)
        for total, part in (
            (self.signs, torch._foreach_sign(given)),
            (self.positive, torch._foreach_clamp_min(given, 0.0)),
            (self.negative, torch._foreach_clamp_max(given, 0.0)),
        ):
            torch._foreach_add_(total, list(part))
        self.count += 1

    def refine(self, size: int | None = None) -> tuple[list[torch.Tensor], float]:
        """The refined gradients and the share of entries that passed; starts a new group.

        `size` replaces B in the threshold and the mean (for a short last group).
        """
        b = size or self.b
        refined, passed, entries = [], 0.0, 0
        for s, positive, negative in zip(self.signs, self.positive, self.negative, strict=True):
            value = torch.where(s > 0, positive, torch.where(s < 0, negative, torch.zeros_like(s)))
            if self.tie == "all":
                value = torch.where(s == 0, positive + negative, value)
            mask = s.abs() >= self.tau * b
            if not self.sign_filter:
                value = positive + negative
            elif self.tie == "zero":
                mask &= s != 0
            refined.append(value * mask / (b if self.reduction == "mean" else 1))
            passed += float(mask.sum())
            entries += mask.numel()
        for sums in (self.signs, self.positive, self.negative):
            torch._foreach_zero_(sums)
        self.count = 0
        return refined, passed / entries
