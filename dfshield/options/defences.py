"""Options of defences at test time. What one defence alone reads is in the class of that defence."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Self

from pydantic import Field

from dfshield import registry
from dfshield.core.errors import InputError
from dfshield.core.validation import build
from dfshield.options.common import DefenceName, StageOptions


class DefendOptions(StageOptions):
    """Stand before a network at test time."""

    entries = ("defence", registry.DEFENCES)
    for_crafting: ClassVar[tuple[str, ...]] = ()
    """Options that an attack may have otherwise than the defence: no fit and no verdict follows from them."""

    defence: DefenceName = "identity"
    """defence"""

    @property
    def passes(self) -> int:
        """Passes of the network for one pass of what stands before it, for the cost model."""
        return 1

    @property
    def verdict_passes(self) -> int:
        """The same where the defence judges: some ask the network more often than attacks are crafted on."""
        return self.passes

    def crafted(self, through: Mapping[str, str]) -> Self:
        """The same but for options that an attack takes otherwise, by name; raises InputError for any other option."""
        for name in through:
            if name not in self.for_crafting:
                allowed = f"leaves {', '.join(self.for_crafting)}" if self.for_crafting else "leaves none"
                raise InputError(f"through {name}={through[name]}: defence {self.defence} {allowed} to an attack")
        made: Self = build(type(self), self.model_dump() | dict(through), "through")
        return made

    def fitting_passes(self, images: int) -> float | None:
        """Forward passes of one image that a fit on a training set of so many takes; None where it is not known."""
        return None

    def network_passes(self, images: int) -> float:
        """Forward passes of the network that the fit trains, as the entry's ``network`` counts its operations."""
        return 0


class Tte(DefendOptions):
    """Test-time transformation ensembling (Pérez et al. 2021): mean logits over crops and mirror images."""

    defence: DefenceName = "tte"
    """defence"""
    flip: bool = True
    """mirror every version left to right, too"""
    crops: Annotated[int, Field(ge=0)] = 4
    """crops of the padded image, at offsets that the seed draws once"""
    pad: Annotated[int, Field(ge=0)] = 0
    """pixels of zero padding before cropping; 0 for a seventh of the height: 4 for 28 and 32 pixels, as published"""

    @property
    def passes(self) -> int:
        """Versions of an image."""
        return (1 + self.crops) * (2 if self.flip else 1)
