"""What the options of all stages have in common: types, the registries' choices, where a stage runs."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import Field

from dfshield import registry
from dfshield.core.validation import Options

Device = Literal["auto", "cpu", "cuda"]
Schedule = Literal["constant", "cosine"]
Precision = Literal["auto", "fp32", "bf16"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)]
Positive = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
Features = Literal["teacher", "pixels", "vgg16"]

if TYPE_CHECKING:
    import torch

    LossName: TypeAlias = str
    BaselineName: TypeAlias = str
    CoefficientsName: TypeAlias = str
    ObjectiveName: TypeAlias = str
    GeneratedName: TypeAlias = str
    AugmentationName: TypeAlias = str
    AttackName: TypeAlias = str
    ModelName: TypeAlias = str
    DatasetName: TypeAlias = str
    DefenceName: TypeAlias = str
    DetectorName: TypeAlias = str
else:  # the choices are the registries' own
    LossName = Literal[tuple(registry.LOSSES)]
    BaselineName = Literal[tuple(registry.BASELINES)]
    CoefficientsName = Literal[tuple(registry.COEFFICIENTS)]
    ObjectiveName = Literal[tuple(registry.OBJECTIVES)]
    GeneratedName = Literal[tuple(registry.GENERATED)]
    AugmentationName = Literal[tuple(registry.AUGMENTATIONS)]
    AttackName = Literal[tuple(registry.ATTACKS)]
    ModelName = Literal[tuple(registry.MODELS)]
    DatasetName = Literal[tuple(registry.DATASETS)]
    DefenceName = Literal[tuple(registry.DEFENCES)]
    DetectorName = Literal[tuple(registry.DETECTORS)]


class StageOptions(Options):
    """Base of the options of every stage: where it runs, and its seed.

    A stage whose registry entries have options of their own names the field and the registry in `entries`; an entry's
    class is a subclass of the stage's, so that the options of one entry are no concern of another.
    """

    entries: ClassVar[tuple[str, Mapping[str, registry.Entry]] | None] = None
    """The field that names an entry, and the registry."""
    neutral: ClassVar[dict[str, Any]] = {}
    """Values at which an option that was added later changes nothing; `described` leaves them out."""

    device: Device = "auto"
    """cpu, cuda, or auto: CUDA where there is a device"""
    threads: Positive = 1
    """CPU threads of one job"""
    seed: Seed = 0
    """random seed; everything random follows from it"""

    @classmethod
    def class_for(cls, name: str | None) -> type[Self]:
        """Class of the options of entry `name`, the default entry for None; an unknown one has the stage's own."""
        if cls.entries is None:
            return cls
        field, known = cls.entries
        entry = known.get(cls.model_fields[field].default if name is None else str(name))
        return entry.options_class(cls) if entry else cls

    @classmethod
    def of(cls, **values: Any) -> Self:
        """Options from values, of the class of the entry that they name; raises pydantic's ValidationError."""
        name = values.get(cls.entries[0]) if cls.entries else None
        return cls.class_for(name)(**values)

    def described(self, device: "torch.device | None" = None) -> dict[str, Any]:
        """What decides about the result, as plain values: hashed, stored and given to Snakemake.

        All options but the seed, which artefacts state by itself, and where the stage runs; with the type of `device`,
        if given, which decides about the last bits.
        """
        values = self.model_dump(mode="json", exclude={"device", "threads", "seed"})
        kept = {name: value for name, value in values.items() if (name, value) not in self.neutral.items()}
        return kept | ({"device": device.type} if device is not None else {})
