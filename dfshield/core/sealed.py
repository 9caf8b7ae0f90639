"""Small JSON files that are sealed by the hash of their content."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import TypeAdapter, ValidationError

from dfshield.core.errors import InputError
from dfshield.core.files import existing_file, write_text
from dfshield.core.hashing import digest

SEAL = "content_sha256"

T = TypeVar("T")


class Kind(NamedTuple):
    """A kind of such files."""

    format: str
    """What the file calls itself."""
    version: int
    name: str
    """For a person."""
    command: str
    """What makes it."""

    @property
    def remedy(self) -> str:
        """What to do about a file that cannot be used."""
        return f"make it again with `{self.command}`"


def write(path: Path, kind: Kind, body: dict[str, Any]) -> str:
    """Write the plain values `body` atomically; returns the SHA-256 of their content."""
    write_text(path, text(kind, body))
    return digest(body)


def text(kind: Kind, body: dict[str, Any]) -> str:
    """The text of a file with the plain values `body`."""
    return json.dumps({"format": kind.format, "version": kind.version, **body, SEAL: digest(body)}, indent=1) + "\n"


def read(path: Path, kind: Kind) -> dict[str, Any]:
    """The values of a file; raises InputError for one that is missing, foreign, newer, damaged or edited."""
    values = _opened(path, kind)
    _check_seal(path, kind, values)
    return {name: value for name, value in values.items() if name != SEAL}


def read_as(path: Path, kind: Kind, made: TypeAdapter[T]) -> T:
    """The values of a file as `made` has them, a dataclass with its seal; raises InputError as `read` does."""
    values = _opened(path, kind)
    try:
        record = made.validate_python(values)
    except ValidationError as error:
        raise InputError(f"{path}: is not whole ({' '.join(str(error).split())[:120]}); {kind.remedy}") from None
    _check_seal(path, kind, values)
    return record


def _opened(path: Path, kind: Kind) -> dict[str, Any]:
    """What is in a file of this kind and version, its seal unchecked."""
    existing_file(path, kind.name, kind.remedy)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path}: cannot be read as JSON ({reason}); {kind.remedy}") from None
    if not isinstance(values, dict) or values.pop("format", None) != kind.format:
        raise InputError(f"{path}: not a {kind.name} (no format {kind.format!r}); {kind.remedy}")
    if (version := values.pop("version", None)) != kind.version:
        raise InputError(
            f"{path}: format version {version}, this program reads {kind.version}; "
            "use the release of dfshield that wrote it"
        )
    return values


def _check_seal(path: Path, kind: Kind, values: dict[str, Any]) -> None:
    try:
        same = values.get(SEAL) == digest({name: value for name, value in values.items() if name != SEAL})
    except ValueError:  # a number that is none
        same = False
    if not same:
        raise InputError(f"{path}: content does not match its SHA-256 (edited or damaged); {kind.remedy}")


def body(record: Any) -> dict[str, Any]:
    """The values of a dataclass as JSON has them, without its seal."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(record)))
    return {name: value for name, value in values.items() if name != SEAL}
