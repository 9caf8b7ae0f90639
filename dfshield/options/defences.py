"""Options of defences."""

from dfshield import registry
from dfshield.options.common import StageOptions


class DefendOptions(StageOptions):
    """Stand before a network at test time."""

    entries = ("defence", registry.DEFENCES)
    defence: str = "tte"
    """defence"""


class Tte(DefendOptions):
    """TTE."""
