"""Numbers as configs write them."""

from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


def fraction(text: str | float) -> float:
    """``"8/255"`` or a decimal as a float; raises ValueError for anything else."""
    return float(Fraction(str(text).replace(" ", "")))
