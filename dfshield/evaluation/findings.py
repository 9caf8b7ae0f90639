"""The record of a model's robustness checks: a small JSON file, sealed by its hash."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, FiniteFloat, TypeAdapter

from dfshield.core import sealed
from dfshield.core.errors import InputError
from dfshield.registry import CHECKS

KIND = sealed.Kind("dfshield-checks", 1, "record of robustness checks", "dfshield checks")

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
    return sealed.write(path, KIND, sealed.body(findings))


def read_findings(path: Path) -> Findings:
    """Read and check a record; raises InputError for a file that is missing, foreign, newer, damaged or edited."""
    findings = sealed.read_as(path, KIND, _FINDINGS)
    made = [finding.check for finding in findings.findings]
    if made != list(CHECKS):
        raise InputError(f"{path}: has the checks {', '.join(made)}, expected {', '.join(CHECKS)}; {KIND.remedy}")
    return findings
