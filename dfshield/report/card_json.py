"""``report.json``: all that a model card states, for programs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from dfshield.core import sealed
from dfshield.defences.fit_file import FitCard
from dfshield.evaluation.findings import Findings
from dfshield.models.card import Card
from dfshield.report.broken import Tally
from dfshield.report.notes import notes
from dfshield.report.rows import Row

KIND = sealed.Kind("dfshield-report", 1, "report of a hardened model", "dfshield card")


def text(
    name: str,
    card: Card,
    rows: Sequence[Row],
    broken: Sequence[Tally],
    synthesis: Mapping[str, Any] | None,
    checks: Sequence[tuple[str, Findings]],
    mixture: FitCard | None,
    pictures: Mapping[str, str],
) -> str:
    """The text of ``report.json``.

    Its rows are those of ``report.csv``, unrounded; accuracies and shares are in percent, what a row lacks is null.
    `pictures` has the SHA-256 of the picture files by name. Any change of a key but an addition changes the version.
    """
    made = card.provenance
    marks = notes(flag for row in rows for flag in row.flags)
    return sealed.text(
        KIND,
        {
            "name": name,
            "model": {
                "tensors_sha256": card.tensors_sha256,
                "network": card.factory or card.model,
                "arguments": card.arguments,
                "input_shape": list(card.input_shape),
                "classes": card.classes,
                "mean": list(card.mean),
                "std": list(card.std),
            },
            "training": {
                "data_free": card.real_data == "none",
                "real_data": card.real_data,
                "threat": made.get("options", {}).get("threat"),
                "classes_without_images": made.get("classes_without_images", 0),
                **{key: made.get(key) for key in ("teacher_sha256", "data_sha256", "source", "recipe", "seed")},
                **{key: made.get(key) for key in ("updates", "package_version")},
                "options": made.get("options", {}),
            },
            "synthesis": dict((synthesis or {}).get("options", {})),
            "figures": [_plain(row) for row in rows],
            "notes": {flag: note for flag, (_, note) in marks.items()},
            "broken": [asdict(tally) | {"survivors": tally.survivors} for tally in broken],
            "checks": [{"method": method, **sealed.body(findings)} for method, findings in checks],
            "mixture": asdict(mixture) if mixture else None,
            "pictures": dict(sorted(pictures.items())),
        },
    )


def _plain(row: Row) -> dict[str, Any]:
    return {field.name: _value(getattr(row, field.name)) for field in fields(Row)}


def _value(value: Any) -> Any:
    """A value as JSON has it: infinity as text, no number as null."""
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
