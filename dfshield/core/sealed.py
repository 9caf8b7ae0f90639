"""Small JSON files that are sealed by the hash of their content."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from dfshield.core.errors import InputError
from dfshield.core.files import existing_file, write_text
from dfshield.core.hashing import digest

SEAL = "content_sha256"


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
    seal = digest(body)
    text = json.dumps({"format": kind.format, "version": kind.version, **body, SEAL: seal}, indent=1)
    write_text(path, text + "\n")
    return seal


def read(path: Path, kind: Kind) -> dict[str, Any]:
    """The values of a file; raises InputError for one that is missing, foreign, newer, damaged or edited."""
    existing_file(path, kind.name, kind.remedy)
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path}: cannot be read as JSON ({reason}); {kind.remedy}") from None
    if not isinstance(body, dict) or body.pop("format", None) != kind.format:
        raise InputError(f"{path}: not a {kind.name} (no format {kind.format!r}); {kind.remedy}")
    if (version := body.pop("version", None)) != kind.version:
        raise InputError(
            f"{path}: format version {version}, this program reads {kind.version}; "
            "use the release of dfshield that wrote it"
        )
    try:
        same = body.pop(SEAL, None) == digest(body)
    except ValueError:  # a number that is none
        same = False
    if not same:
        raise InputError(f"{path}: content does not match its SHA-256 (edited or damaged); {kind.remedy}")
    return body
