"""Random generators that depend on a key alone."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
from dfshield.core.hashing import digest


def generator(*key: Any) -> "torch.Generator":
    """A CPU random generator that depends on `key` alone (strings, numbers), not on process or order."""
    import torch

    return torch.Generator().manual_seed(int(digest(*key)[:15], 16))
