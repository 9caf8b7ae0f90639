"""Threat models as configs and paths write them: ``linf:8/255``, ``l2:0.5``, ``l1:2``."""

from collections.abc import Collection
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field

from dfshield.core.fractions import fraction

Norm = Literal["linf", "l2", "l1"]


class Threat(NamedTuple):
    """A threat model: perturbations of norm at most `eps`, in units where pixels lie in [0,1]."""

    norm: Norm
    eps: float


NORMS: dict[str, Norm] = {"linf": "linf", "l2": "l2", "l1": "l1"}
TRAINED = ("linf", "l2")
"""Norms of training, fits and checks; l1 is for attacks, beside certificates in it."""
MAX_EPS = {"linf": 1.0, "l2": 16.0, "l1": 256.0}


def parse_threat(text: str, norms: Collection[str] = tuple(NORMS)) -> Threat:
    """Parse ``linf:8/255`` or ``l2:0.5``, in one of `norms`; raises ValueError with the fix for anything else."""
    norm, colon, size = str(text).partition(":")
    if not colon or norm not in norms:
        names = ", ".join(norms)
        raise ValueError(f"threat {text!r} is not NORM:EPS with NORM one of {names}; write for example linf:8/255")
    try:
        eps = fraction(size)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"ε {size!r} in threat {text!r} is not a number or fraction such as 8/255") from None
    if not 0 <= eps <= MAX_EPS[norm]:
        hint = f"; for {size} pixel units write {norm}:{size}/255" if eps > MAX_EPS[norm] else ""
        raise ValueError(f"ε {size} in threat {text!r} must be between 0 and {MAX_EPS[norm]:g}{hint}")
    return Threat(NORMS[norm], eps)


def threat_name(text: str) -> str:
    """A threat as a file name: ``linf:8/255`` gives ``linf-8-255``."""
    return text.replace(":", "-").replace("/", "-")


def check_threat(text: str) -> str:
    """A threat of training without spaces; raises ValueError with the fix for what is none."""
    parse_threat(text, TRAINED)
    return "".join(text.split())


def check_ball(text: str) -> str:
    """A threat of an attack, in any norm, without spaces; raises ValueError with the fix for what is none."""
    parse_threat(text)
    return "".join(text.split())


def _fraction(text: str) -> str:
    try:
        value = fraction(text)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{text!r} is not a number or fraction such as 2/255") from None
    if not 0 < value <= 1:
        raise ValueError(f"{text!r} must lie in (0, 1]; pixel units are written n/255")
    return text


ThreatText = Annotated[str, AfterValidator(check_threat), Field(pattern=r"^(linf|l2):.+$")]
BallText = Annotated[str, AfterValidator(check_ball), Field(pattern=r"^(linf|l2|l1):.+$")]
FractionText = Annotated[str, BeforeValidator(str), AfterValidator(_fraction)]
