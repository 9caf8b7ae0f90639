"""Random generators that depend on a key alone."""

import contextlib
import random
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
    """Seed the global generators inside the block; put them back afterwards.

    These are PyTorch's, of the CPU and of `device`, Python's and NumPy's. Layers draw their first weights from them,
    and so do libraries and users' models.
    """
    import numpy as np
    import torch

    python, numbers = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device is not None and device.type == "cuda" else []):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)
