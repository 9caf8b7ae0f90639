"""Numbers as configs write them."""

import math
from fractions import Fraction


def fraction(text: str | float) -> float:
    """``"8/255"`` or a decimal as a float; raises ValueError for anything else, infinities and NaN included."""
    written = "".join(str(text).split())
    try:
        value = float(Fraction(written) if "/" in written else written)
    except OverflowError:
        raise ValueError(f"{written[:40]} is too large") from None
    if not math.isfinite(value):
        raise ValueError(f"{written[:40]} is not finite")
    return value
