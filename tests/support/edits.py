"""A small run for verification, and edits of its files that verification has to find."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from support.runs import save, save_data

from dfshield.core.hashing import canonical_json
from dfshield.models.checkpoints import read_card
from dfshield.report.rows import read_csv, write_csv
from dfshield.sources.trainset import header

SPECS = Path(__file__).parents[2] / "config" / "tables.yaml"
CONFIG = {
    "name": "demo",
    "tables": str(SPECS),
    "datasets": {"digits": {"models": ["cnn-s"], "threat": "linf:8/255"}},
}
HOME = "results/demo/digits/cnn-s"
STUDENT_FILE = f"{HOME}/dss/dfshield/linf-8-255/seed-0/student.safetensors"
DATA_FILE = f"{HOME}/dss/seed-0/data.h5"


def change(path: str, column: str, value: object, method: str = "Ours") -> Callable[[], None]:
    def apply() -> None:
        rows = read_csv(Path(path))
        first = next(i for i, row in enumerate(rows) if row.method == method)
        rows[first] = dataclasses.replace(rows[first], **{column: value})
        write_csv(Path(path), rows)

    return apply


def flip(path: str) -> Callable[[], None]:
    def apply() -> None:
        content = bytearray(Path(path).read_bytes())
        content[len(content) // 2] ^= 1
        Path(path).write_bytes(content)

    return apply


def other_weights(path: str) -> Callable[[], None]:
    """Another checkpoint in the place of one, which says the same of its making."""

    def apply() -> None:
        card = read_card(Path(path))
        save(Path(path), 99, card.kind, real_data=card.real_data, **card.provenance)

    return apply


def other_values(path: str) -> Callable[[], None]:
    """Another training set in the place of one, of another teacher, which says the same of its options."""
    return lambda: save_data(Path(path), "x" * 64, "none", 0, canonical_json(header(Path(path))["options"]))  # type: ignore[return-value]


def edited(path: str, old: str, new: str) -> Callable[[], None]:
    return lambda: Path(path).write_text(Path(path).read_text().replace(old, new))  # type: ignore[return-value]
