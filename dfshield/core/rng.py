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


def seed_globals(seed: int) -> None:
    """Seed the global generators of PyTorch (all devices), NumPy and Python.

    Nothing of ours draws from them: layers do for their first weights and to drop features, libraries, users' code.
    """
    import numpy as np
    import torch

    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextlib.contextmanager
def seeded(seed: int, device: "torch.device | None" = None) -> Iterator[None]:
    """Seed the global generators inside the block; those of the CPU and of `device` are put back afterwards.

    So what a block draws depends on `seed` alone, and what comes after it does not depend on the block: a stopped run
    that goes on behind it draws the same.
    """
    import numpy as np
    import torch

    before = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([device] if device is not None and device.type == "cuda" else []):
            seed_globals(seed)
            yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
