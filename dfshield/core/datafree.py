"""The guard of data-free stages: they cannot import the code that opens real data."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


_data_free_stage: str | None = None


def forbid_real_data(stage: str) -> None:
    """Declare this process data-free: importing `dfshield.data`, the only code that opens real sets, now fails."""
    global _data_free_stage
    if "dfshield.data" in sys.modules:
        raise RuntimeError(f"{stage} is data-free but dfshield.data is already imported")
    _data_free_stage = stage


def check_real_data_allowed() -> None:
    """Called by `dfshield.data` when it is imported; raises RuntimeError inside a data-free stage."""
    if _data_free_stage:
        raise RuntimeError(f"{_data_free_stage} is data-free: it must not import dfshield.data")
