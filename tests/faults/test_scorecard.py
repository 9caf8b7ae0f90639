"""The scorecard that the documentation shows: complete, without a fault that nobody would notice, and up to date."""

import program
import pytest
import scorecard

shown = pytest.mark.skipif(program.FULL, reason="by the normal suite: this run makes the figures")
BIT_FLIPS, CUTS, KILLS = 1000, 100, 200


def tried(start: str) -> int:
    """How often faults whose name begins so were tried."""
    return sum(row["tried"] for row in scorecard.documented() if row["fault"].startswith(start))


@shown
def test_nothing_is_silent_or_lost():
    rows = scorecard.documented()
    assert rows
    for row in rows:
        assert row["silent"] == 0 and row["survived"] == row["tried"] > 0, row


@shown
def test_as_much_was_tried_as_is_asked_for():
    assert tried("bit flip") >= BIT_FLIPS and tried("cut") >= CUTS
    assert tried("killed") + tried("Snakemake killed") >= KILLS


@shown
def test_the_document_has_the_figures_of_the_last_run():
    if not scorecard.JSON.exists():
        pytest.skip("by make faults, which writes them")
    assert scorecard.documented() == scorecard.rows()


def test_a_fault_that_came_out_wrong_fails():
    score = scorecard.Score("fault", "artefact")
    score.add("first")
    score.add("second", "other bytes", silent=True)
    assert (score.tried, score.survived, score.silent) == (2, 1, 1)
    with pytest.raises(AssertionError, match="fault, artefact, second: other bytes"):
        score.check()


def test_a_table_comes_back(tmp_path, monkeypatch):
    rows = [dict(zip(scorecard.COLUMNS, ("cut", "table csv", 6, 6, 0), strict=True))]
    monkeypatch.setattr(scorecard, "DOC", tmp_path / "doc.md")
    monkeypatch.setattr(scorecard, "rows", lambda: rows)
    scorecard.DOC.write_text(f"before\n{scorecard.BEGIN}\n{scorecard.END}\nafter\n")
    scorecard.document()
    assert scorecard.documented() == rows
    assert scorecard.DOC.read_text().startswith("before\n") and scorecard.DOC.read_text().endswith("\nafter\n")
