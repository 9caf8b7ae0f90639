"""Harden a trained image classifier against adversarial attack without its training data."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "harden": "dfshield.api.harden",
    "Hardened": "dfshield.api.harden",
    "attack": "dfshield.api.attack",
    "load": "dfshield.api.load",
    "InputError": "dfshield.core.errors",
}
"""What ``import dfshield`` offers, and where it is: imported when it is asked for, since every command imports this."""

__all__ = ["Hardened", "InputError", "__version__", "attack", "harden", "load"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
