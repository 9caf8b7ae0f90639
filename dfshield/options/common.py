"""What the options of all stages have in common: types, the registries' choices, where a stage runs."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import Field, model_validator

from dfshield import registry
from dfshield.validation import Options

Device = Literal["auto", "cpu", "cuda"]
Schedule = Literal["constant", "cosine"]
Precision = Literal["auto", "fp32", "bf16"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
Features = Literal["teacher", "pixels", "vgg16"]

if TYPE_CHECKING:
    LossName: TypeAlias = str
    CotrainingName: TypeAlias = str
    CoefficientsName: TypeAlias = str
    ObjectiveName: TypeAlias = str
    GeneratedName: TypeAlias = str
    AugmentationName: TypeAlias = str
    AttackName: TypeAlias = str
    ModelName: TypeAlias = str
    DatasetName: TypeAlias = str
else:  # the choices are the registries' own
    LossName = Literal[tuple(registry.LOSSES)]
    CotrainingName = Literal[tuple(registry.COTRAINING)]
    CoefficientsName = Literal[tuple(registry.COEFFICIENTS)]
    ObjectiveName = Literal[tuple(registry.OBJECTIVES)]
    GeneratedName = Literal[tuple(registry.GENERATED)]
    AugmentationName = Literal[tuple(registry.AUGMENTATIONS)]
    AttackName = Literal[tuple(registry.ATTACKS)]
    ModelName = Literal[tuple(registry.MODELS)]
    DatasetName = Literal[tuple(registry.DATASETS)]


class Compute(Options):
    """Where a stage runs."""

    device: Device = "auto"
    """cpu, cuda, or auto: CUDA where there is a device"""
    threads: Positive = 1
    """CPU threads of one job"""
    seed: Annotated[int, Field(ge=0)] = 0
    """random seed; everything random follows from it"""

    def defaults(self) -> dict[str, Any]:
        """What every option is where it is not given."""
        return {name: field.default for name, field in type(self).model_fields.items()}


class OfMethod(Compute):
    """Options whose defaults depend on their `method`."""

    by_method: ClassVar[dict[str, dict[str, Any]]] = {}
    """What a method has in place of the defaults of the class: its publication's numbers."""

    @model_validator(mode="before")
    @classmethod
    def _of_method(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        method = values.get("method", cls.model_fields["method"].default)
        return cls.by_method.get(str(method), {}) | values

    def defaults(self) -> dict[str, Any]:
        """What every option is where it is not given with this method."""
        return super().defaults() | self.by_method.get(vars(self)["method"], {})
