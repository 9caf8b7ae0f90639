"""What a model card has for those who must show robustness to others: law, verification standard, device guidance.

Sources: Regulation (EU) 2024/1689, Article 15(4) and (5); OWASP AI Security Verification Standard (AISVS) 1.0, section
C11.1; FDA, "Artificial Intelligence-Enabled Device Software Functions: Lifecycle Management and Marketing Submission
Recommendations", draft guidance of January 2025, section on cybersecurity, which names model evasion among the threats
to state and test in a premarket submission.
"""

import math
from collections.abc import Sequence

from dfshield.evaluation.findings import Findings
from dfshield.report.rows import Row

NOT_THE_SYSTEM = "the system around the model, its faults and its fallback; learning after deployment"


def section(rows: Sequence[Row], checks: Sequence[tuple[str, Findings]]) -> list[str]:
    """The section of the card in Markdown; what it has follows from its figures and checks."""
    attacked = [row for row in rows if row.metric != "clean" and not math.isnan(row.value)]
    names = ", ".join(dict.fromkeys(row.protocol for row in attacked))
    n = max((row.n for row in attacked), default=0)
    figures = f"accuracy under {names} of up to {n} images, with intervals, before and after" if attacked else ""
    believed = f"{sum(len(found.findings) for _, found in checks)} checks of whether the figures can be believed"
    evidence = "; ".join(filter(None, (figures, believed if checks else "")))
    lines = [
        ("EU AI Act, Article 15(4): robust against errors, faults and inconsistencies", _clean(rows), NOT_THE_SYSTEM),
        (
            "EU AI Act, Article 15(5): measures against adversarial examples (model evasion), data and model "
            "poisoning, attacks on confidentiality",
            "; ".join(filter(None, ("adversarial fine-tuning for the threat model above", evidence))),
            _without("poisoning, confidentiality, detection of and response to attacks", attacked),
        ),
        (
            "OWASP AISVS 1.0, C11.1: evaluated against known attacks of its modality (11.1.3), hardened against "
            "adversarial inputs (11.1.4)",
            "; ".join(filter(None, ("its hardening, with options and hashes to repeat it", evidence))),
            _without("other threat models than the one stated; the rest of C11", attacked),
        ),
        (
            "FDA, premarket submissions of AI-enabled devices (draft guidance, January 2025), cybersecurity: model "
            "evasion as a threat that is assessed, mitigated and tested",
            "; ".join(filter(None, ("a mitigation", evidence))),
            _without(
                "the device's threat model and risk assessment, clinical performance, the other threats", attacked
            ),
        ),
    ]
    return [
        "## For those who ask for evidence",
        "",
        "Which parts of three texts this card has evidence for. It is no assessment and claims conformity with none of "
        "them: whether the evidence is enough depends on the system and its use, which this card does not know.",
        "",
        "| What is asked | What this card has | What it has not |",
        "| --- | --- | --- |",
        *(f"| {asked} | {has} | {lacks} |" for asked, has, lacks in lines),
        "",
    ]


def _clean(rows: Sequence[Row]) -> str:
    found = any(row.metric == "clean" for row in rows)
    return "accuracy on unperturbed images before and after" if found else "nothing: not evaluated"


def _without(lacks: str, attacked: Sequence[Row]) -> str:
    return lacks if attacked else f"any evaluation; {lacks}"
