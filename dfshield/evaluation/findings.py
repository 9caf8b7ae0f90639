"""The record of a model's robustness checks: a small JSON file, sealed by its hash."""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError

from dfshield.core.errors import InputError
from dfshield.core.files import existing_file, write_text
from dfshield.core.hashing import digest
from dfshield.registry import CHECKS

FORMAT = "dfshield-checks"
VERSION = 1
REMEDY = "make it again with `dfshield checks`"

Verdict = Literal["passed", "failed", "not-applicable"]


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    check: str
    """Name in `registry.CHECKS`."""
    verdict: Verdict
    figure: FiniteFloat | None
    """What was measured; None where nothing was."""
    limit: FiniteFloat | None
    """What `figure` is compared with."""
    text: str
    """What the figure says."""


@dataclass(frozen=True)
class Findings:
    """All checks of one model behind one defence at one threat model."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    dataset: str
    model: str
    subject: dict[str, Any]
    """What was checked, in the caller's own terms."""
    defence: str
    defence_options: dict[str, Any]
    threat: str
    n: Annotated[int, Field(ge=1)]
    """Images."""
    findings: tuple[Finding, ...]
    """One of each of `registry.CHECKS`, in its order."""
    options: dict[str, Any]
    seed: int
    model_sha256: str
    """Of the checkpoint's tensors."""
    data_sha256: str
    """Of the images and labels."""
    ledgers: dict[str, str]
    """Content SHA-256 of the ledgers that were read, by protocol."""
    others: dict[str, str]
    """Further models that were used, and the fit of the ``defence``, by name: SHA-256 of their tensors."""
    real_data: str
    """What real data the model has seen."""
    package_version: str
    code: str
    content_sha256: str = field(default="")
    """Of all of the above; set when written and read."""

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the checks that failed."""
        return tuple(finding.check for finding in self.findings if finding.verdict == "failed")

    @property
    def flags(self) -> tuple[str, ...]:
        """Flags of the figures that the failed checks are about: ``failed-check:NAME``."""
        return tuple(f"failed-check:{name}" for name in self.failed)


_FINDINGS = TypeAdapter(Findings)


def write_findings(path: Path, findings: Findings) -> str:
    """Write `findings` atomically; returns their content SHA-256."""
    sealed = replace(findings, content_sha256=_content(_plain(findings)))
    write_text(path, json.dumps({"format": FORMAT, "version": VERSION} | _plain(sealed), indent=1) + "\n")
    return sealed.content_sha256


def read_findings(path: Path) -> Findings:
    """Read and check a record; raises InputError for a file that is missing, foreign, newer, damaged or edited."""
    existing_file(path, "record of robustness checks", REMEDY)
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({' '.join(str(error).split())[:120]}); {REMEDY}") from None
    if not isinstance(body, dict) or body.pop("format", None) != FORMAT:
        raise InputError(f"{path}: not a record of robustness checks (no format {FORMAT!r}); {REMEDY}")
    if (version := body.pop("version", None)) != VERSION:
        raise InputError(
            f"{path}: format version {version}, this program reads {VERSION}; use the release of dfshield that wrote it"
        )
    try:
        findings = _FINDINGS.validate_python(body)
        same = findings.content_sha256 == _content(body)
    except (ValidationError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path}: is not whole ({reason}); {REMEDY}") from None
    if not same:
        raise InputError(f"{path}: content does not match its SHA-256 (edited or damaged); {REMEDY}")
    made = [finding.check for finding in findings.findings]
    if made != list(CHECKS):
        raise InputError(f"{path}: has the checks {', '.join(made)}, expected {', '.join(CHECKS)}; {REMEDY}")
    return findings


def _plain(findings: Findings) -> dict[str, Any]:
    """The values as JSON has them."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(findings)))
    return values


def _content(body: dict[str, Any]) -> str:
    return digest({name: value for name, value in body.items() if name != "content_sha256"})
