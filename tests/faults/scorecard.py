"""The scorecard of faults: what was tried, what came out right, and what was wrong without a word.

    python tests/faults/scorecard.py      # puts the figures of results/faults.json into docs/reliability.md

A row is appended to a file of lines by the process that tried it; the lines are joined at the end of the run.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]
JSON = ROOT / "results/faults.json"
PARTS = ROOT / "results/faults.parts"
DOC = ROOT / "docs/reliability.md"
COLUMNS = ("fault", "artefact", "tried", "survived", "silent")
BEGIN, END = "<!-- scorecard -->", "<!-- end of scorecard -->"


class Score:
    """What came of one fault on one artefact; `add` is called once a try."""

    def __init__(self, fault: str, artefact: str) -> None:
        self.fault, self.artefact = fault, artefact
        self.tried = self.survived = self.silent = 0
        self.wrong: list[str] = []

    def add(self, what: str, wrong: str = "", silent: bool = False) -> None:
        """Count a try, `what` it was, and what is `wrong` with its outcome; `silent` if nobody would have noticed."""
        self.tried += 1
        self.survived += not wrong
        self.silent += bool(wrong) and silent
        if wrong:
            self.wrong.append(f"{self.fault}, {self.artefact}, {what}: {wrong}")

    def close(self) -> None:
        """Write the row, and fail if anything came out wrong."""
        if os.environ.get("DFSHIELD_FAULTS") == "full":
            PARTS.parent.mkdir(exist_ok=True)
            with PARTS.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({name: getattr(self, name) for name in COLUMNS}) + "\n")
        self.check()

    def check(self) -> None:
        """Fail if nothing was tried or anything came out wrong."""
        assert self.tried, f"{self.fault}, {self.artefact}: nothing was tried"
        assert not self.wrong, f"{len(self.wrong)} of {self.tried}:\n" + "\n".join(self.wrong[:20])


def join() -> None:
    """Make the scorecard of the rows that were written."""
    if PARTS.exists():
        rows = [json.loads(line) for line in PARTS.read_text(encoding="utf-8").splitlines()]
        rows.sort(key=lambda row: (row["fault"], row["artefact"]))
        JSON.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        PARTS.unlink()


def rows() -> list[dict[str, object]]:
    """The rows of the scorecard."""
    return list(json.loads(JSON.read_text(encoding="utf-8")))


def table(found: Iterable[dict[str, object]]) -> str:
    """Rows as a table in Markdown."""
    lines = [f"| {' | '.join(COLUMNS)} |", "| --- | --- | ---: | ---: | ---: |"]
    return "\n".join([*lines, *(f"| {' | '.join(str(row[name]) for name in COLUMNS)} |" for row in found)])


def documented() -> list[dict[str, object]]:
    """The rows that the document has."""
    shown = DOC.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].strip().splitlines()[2:]
    cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in shown)
    return [dict(zip(COLUMNS, (*row[:2], *map(int, row[2:])), strict=True)) for row in cells]


def document() -> None:
    """Put the table into the document."""
    before, _, rest = DOC.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    DOC.write_text(f"{before}{BEGIN}\n{table(rows())}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    document()
