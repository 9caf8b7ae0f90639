"""Random generators that depend on a key alone."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
from dfshield.core.hashing import digest


def generator(*key: Any) -> "torch.Generator":
    """A CPU random generator that depends on `key` alone (strings, numbers), not on process or order."""
    import torch

    return torch.Generator().manual_seed(int(digest(*key)[:15], 16))


@contextlib.contextmanager
def seeded(seed: int, device: "torch.device | None" = None) -> Iterator[None]:
    """Seed PyTorch's global generators, of the CPU and of `device`, inside the block; put them back afterwards.

    Layers draw their first weights from them, and so do libraries and users' models.
    """
    import torch

    with torch.random.fork_rng([device] if device is not None and device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
