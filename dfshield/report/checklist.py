"""Stage checklist: the robustness checks of many models as one table, and of one model as a section of its card."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from dfshield.core.files import csv_text, write_text
from dfshield.evaluation.findings import Finding, Findings, Verdict, read_findings
from dfshield.registry import CHECKS

COLUMNS = (
    *("dataset", "model", "source", "recipe", "train_threat", "seed", "defence", "threat"),
    *("n", "check", "verdict", "figure", "limit", "text", "checks_sha256"),
)
VERDICTS: tuple[Verdict, ...] = ("passed", "failed", "not-applicable")


def run(records: Sequence[Path], out: Path) -> None:
    """Write the checks of all `records` to the CSV `out`, one row per model and check, and Markdown beside it.

    Raises InputError for a record that cannot be used; nothing is written then.
    """
    read = [read_findings(path) for path in dict.fromkeys(records)]
    write_text(out.with_suffix(".md"), markdown_of(read))
    write_text(out, csv_of(read))


def csv_of(records: Iterable[Findings]) -> str:
    """One row per record and check."""
    rows = []
    for record in records:
        for finding in record.findings:
            said = (finding.check, finding.verdict, _number(finding.figure), _number(finding.limit), finding.text)
            rows.append((*_named(record), record.n, *said, record.content_sha256))
    return csv_text(COLUMNS, rows)


def markdown_of(records: Sequence[Findings]) -> str:
    """Counts of verdicts by check, and every check that failed."""
    lines = ["# Robustness checks", "", f"{len(records)} models, each behind its defence at its threat model.", ""]
    lines += ["| Check | Passed | Failed | Not applicable | What passes |", "| --- | ---: | ---: | ---: | --- |"]
    for name, entry in CHECKS.items():
        found = [f.verdict for record in records for f in record.findings if f.check == name]
        counts = " | ".join(str(found.count(verdict)) for verdict in VERDICTS)
        lines.append(f"| {entry.title} | {counts} | {entry.about} |")
    failed = [(record, f) for record in records for f in record.findings if f.verdict == "failed"]
    lines += ["", "## Failed", ""]
    lines += [f"- {' '.join(_named(record))}: {CHECKS[f.check].title}: {f.text}" for record, f in failed] or ["None."]
    return "\n".join(lines) + "\n"


def card_section(records: Sequence[tuple[str, Findings]]) -> list[str]:
    """The section "Checks" of a model card, in Markdown: `records` with the name of the model that each is of."""
    if not records:
        return ["## Checks", "", "Not checked.", ""]
    lines = ["## Checks", "", "| Model | Check | Verdict | Figure | Limit | What was found |"]
    lines += ["| --- | --- | --- | ---: | ---: | --- |"]
    for name, record in records:
        lines += [_line(name, finding) for finding in record.findings]
    failed = sum(len(record.failed) for _, record in records)
    said = f"{failed} failed, so the figures above may overstate the robustness." if failed else "None failed."
    return [*lines, "", f"The checks ask whether the figures above can be believed. {said}", ""]


def _line(name: str, finding: Finding) -> str:
    verdict = f"**{finding.verdict}**" if finding.verdict == "failed" else finding.verdict.replace("-", " ")
    text = finding.text.replace("|", "\\|")
    figures = f"{_number(finding.figure)} | {_number(finding.limit)}"
    return f"| {name} | {CHECKS[finding.check].title} | {verdict} | {figures} | {text} |"


def _named(record: Findings) -> tuple[str, ...]:
    subject = [str(record.subject.get(key, "")) for key in ("source", "recipe", "train_threat", "seed")]
    return (record.dataset, record.model, *subject, record.defence, record.threat)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
