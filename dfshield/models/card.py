"""What a checkpoint says of itself, read without PyTorch: for reports, which start often and compute nothing.

The file is safetensors; its only metadata key ``dfshield`` holds the card, canonical JSON with a SHA-256 of the tensors
and one of itself.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError
from safetensors import SafetensorError, deserialize, safe_open

import dfshield
from dfshield.core.errors import InputError
from dfshield.core.files import existing_file
from dfshield.core.hashing import canonical_json, digest
from dfshield.registry import RealData

T = TypeVar("T")
Values = bytes | bytearray | memoryview
KEY = "dfshield"
"""The metadata key of a checkpoint's card."""
GIVEN = "dfshield.models.given:network"
"""The factory of networks that a caller handed over as objects; its argument is the `name` that they are held under."""
FORMAT = 1
"""Version of the file format; a file with a higher one is refused."""
DTYPES = {
    **{"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"},
    **{"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "C64": "complex64", "BOOL": "bool"},
    **{"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8"},
    **{"U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8"},
}
"""Number types of safetensors by PyTorch's names."""
EXPONENTS: dict[str, tuple[Any, int]] = {
    **{"F64": (np.uint64, 0x7FF0 << 48), "F32": (np.uint32, 0x7F80 << 16)},
    **{"F16": (np.uint16, 0x7C00), "BF16": (np.uint16, 0x7F80)},
}
"""Bits of the exponent, by type; all are set in infinities and NaN."""
NOT_FINITE = "holds NaN or infinite values; such a model is of no use"


@dataclass(frozen=True)
class Card:
    """What a checkpoint is: its network, its input, and what it was made from."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    kind: Literal["teacher", "student"]
    dataset: str
    model: str
    """Name in ``registry.MODELS``, or the user's own name for it."""
    input_shape: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
    """(C,H,W)."""
    classes: Annotated[int, Field(ge=2)]
    mean: tuple[FiniteFloat, ...]
    """Per channel, for pixels in [0,1]."""
    std: tuple[Annotated[FiniteFloat, Field(gt=0)], ...]
    real_data: RealData
    """Real data seen since the teacher: ``teacher`` for a teacher, inherited from the training data for a student."""
    factory: str | None = None
    """None for a registered model, else the user's ``package.module:function`` or ``file.py:function``."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the factory."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Options, seed, hashes of what went in, code digest, package version."""
    tensors_sha256: str = ""
    """Hash of names, types, shapes and values of all tensors; set by `save_checkpoint`."""

    def __post_init__(self) -> None:
        if not len(self.mean) == len(self.std) == self.input_shape[0]:
            raise ValueError(
                f"mean and std need one value per channel: {len(self.mean)} and {len(self.std)} "
                f"for {self.input_shape[0]} channels"
            )


_CARD = TypeAdapter(Card)


def student_card(
    teacher: Card,
    *,
    real_data: RealData,
    inputs: dict[str, str],
    recipe: str,
    source: str,
    options: dict[str, Any],
    seed: int,
    updates: int,
    diverged: str,
    metrics: str,
    code: str,
    missing: int = 0,
    statistics: bool = True,
) -> Card:
    """The card of a student: the teacher's network and input, and where the student comes from.

    `inputs` are the hashes of what went in, `source` the kind of training set, `options` those that decide about the
    result, `updates` the optimiser steps that were taken, `diverged` says why training ended early, if it did,
    `missing` is the number of classes without a training image, and `statistics` says whether the network has running
    statistics, which synthetic images are matched to. The card holds the hash of `metrics`, the text of the CSV beside
    the student.
    """
    provenance = {
        **inputs,
        "recipe": recipe,
        "source": source,
        "options": options,
        "seed": seed,
        "updates": updates,
        "diverged": diverged,
        "metrics_sha256": hashlib.sha256(metrics.encode()).hexdigest(),
        "code": code,
        "package_version": dfshield.__version__,
        **({"classes_without_images": missing} if missing else {}),
        **({} if statistics else {"without_statistics": True}),
    }
    return replace(teacher, kind="student", real_data=real_data, provenance=provenance, tensors_sha256="")


def hash_values(tensors: Iterable[tuple[str, str, list[int], Values]]) -> str:
    """SHA-256 in hex over (name, PyTorch's type, shape, little-endian values) of tensors in the order of the names."""
    total = hashlib.sha256()
    for name, dtype, shape, values in tensors:
        total.update(canonical_json([name, f"torch.{dtype}", shape]).encode() + b"\0")
        total.update(values)
    return total.hexdigest()


def stated_card(path: Path) -> Card:
    """The card that a checkpoint states, which has a hash of its own; its tensors are not read.

    Raises InputError for anything but a checkpoint of ours.
    """
    foreign = f"bring weights in with `dfshield teacher --weights {path}` first"
    return stated(path, KEY, _CARD, "checkpoint", foreign)


def stated(path: Path, key: str, kind: TypeAdapter[T], noun: str, foreign: str) -> T:
    """The card that a safetensors file has under `key`, its only metadata; its tensors are not read.

    Raises InputError for a file that is no `noun` of ours, with the remedy `foreign`, and for a card that was altered.
    """
    existing_file(path, noun, "run the stage that makes it, or correct the path")
    refuse_foreign(path)
    with _readable(path), safe_open(path, framework="numpy") as stream:
        metadata = stream.metadata() or {}
    if set(metadata) != {key}:
        raise InputError(f"{path}: is not a {noun} of dfshield; {foreign}")
    return _parse(metadata[key], path, kind)


def sealed(card: Any) -> str:
    """The text of a card, a dataclass, as files keep it: with the version of the format and a SHA-256 of itself."""
    body = {"format": FORMAT} | asdict(card)
    return canonical_json(body | {"sha256": digest(body)})


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:150]
        raise InputError(f"{path}: is not a whole safetensors file ({reason}); fetch or write it again") from None


def read_card(path: Path) -> Card:
    """The card of a checkpoint, checked against its tensors, without building the network.

    Raises InputError for anything but a whole, unchanged checkpoint with finite weights.
    """
    path = Path(path)
    card = stated_card(path)
    check_tensors(path, card.tensors_sha256)
    return card


def check_tensors(path: Path, sha256: str) -> None:
    """Raise InputError for tensors of a safetensors file that are not finite or differ from their hash `sha256`."""
    with _readable(path):
        tensors = sorted(deserialize(path.read_bytes()), key=lambda entry: entry[0])
    values = ((name, DTYPES.get(t["dtype"], t["dtype"]), t["shape"], t["data"]) for name, t in tensors)
    if hash_values(values) != sha256:
        raise InputError(f"{path}: its tensors differ from their SHA-256, so it is damaged; make or fetch it again")
    for name, tensor in tensors:
        if not _finite(tensor["dtype"], tensor["data"]):
            raise InputError(f"{path}: tensor {name!r} {NOT_FINITE}")


def _finite(dtype: str, values: Values) -> bool:
    if dtype not in EXPONENTS:
        return True
    kind, exponent = EXPONENTS[dtype]
    bits = np.frombuffer(values, dtype=kind)
    return not bool(((bits & kind(exponent)) == kind(exponent)).any())


def refuse_foreign(path: Path) -> None:
    """Raise InputError for what is often found in place of weights: an empty file, a web page, a git-lfs pointer."""
    try:
        with path.open("rb") as stream:
            start = stream.read(512)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if not start.strip():
        raise InputError(f"{path}: is empty; fetch or write the weights again")
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        raise InputError(f"{path}: is an HTML or XML page, not weights (a failed download?); fetch the file again")
    if start.startswith(b"version https://git-lfs"):
        raise InputError(f"{path}: is a git-lfs pointer, not the weights themselves; run git lfs pull")


def _parse(text: str, path: Path, kind: TypeAdapter[T]) -> T:
    try:
        body = json.loads(text)
        version = body["format"]
        if isinstance(version, int) and version > FORMAT:
            raise InputError(f"{path}: format {version} is from a newer dfshield (this one reads {FORMAT}); upgrade")
        own = body.pop("sha256")
        if own != digest(body) or body.pop("format") != FORMAT:
            raise InputError(f"{path}: its card differs from its SHA-256, so it is damaged; make or fetch it again")
        return kind.validate_python(body)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: its card is not valid ({place}: {first['msg']}); make it again") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError(f"{path}: its card cannot be read; make or fetch it again") from None
