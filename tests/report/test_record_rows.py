"""Rows of certificates, of detectors and of loss landscapes, by hand, and what is flagged."""

import dataclasses
import math

import numpy as np
import pytest
from support.cells import SPECS
from support.ledgers import make_ledger
from support.records import certificates, detection, landscape

from dfshield.core.errors import InputError
from dfshield.evaluation.certificates import read_certificates, write_certificates
from dfshield.evaluation.detections import Outcome, read_detection, write_detection
from dfshield.evaluation.landscapes import read_landscape, write_landscape
from dfshield.evaluation.ledger import read_ledger
from dfshield.planning.cells import Cell
from dfshield.report.facts import facts
from dfshield.report.layout import measured
from dfshield.report.record_rows import ABOVE, DETECTION, certified_row, detection_row, landscape_row
from dfshield.report.rows import csv_of, read_csv
from dfshield.tools import inspect

CELL = Cell("certified", "digits", "cnn-s", "Gaussian noise", "", "smoothing", "l2:0.25", "certified", 0, "c.json")


def test_certified_accuracy_at_a_radius():
    row = certified_row(CELL, certificates([0.3, 0.1, 0.25, 0.9]), None)
    assert (row.value, row.unit, row.n, row.flags) == (50.0, "%", 4, ())  # a radius of 0.25 itself is not enough
    assert row.ci_low < 50 < row.ci_high and row.protocol == "certified[gaussian sigma=0.25 n=10+90 alpha=0.01]"
    assert certified_row(CELL, certificates([0.9] * 4, right=False), None).value == 0


def ledger_of(path, robust, n=8, **changes):
    make_ledger(path, n, robust, n, protocol="pgd-smoothed", threat="l2:0.25", model_sha256="m", **changes)
    return read_ledger(path)


def test_what_is_certified_above_an_attack_is_flagged(tmp_path):
    ledger = ledger_of(tmp_path / "ledger.h5", 4)
    labels = tuple(map(int, ledger.label))
    cell = dataclasses.replace(CELL, attacks=(str(tmp_path / "ledger.h5"),))
    for certain, flags in ((4, ()), (5, (f"{ABOVE}:pgd-smoothed",))):
        radii = [0.5] * certain + [0.1] * (8 - certain)
        assert certified_row(cell, certificates(radii, labels=labels), None).flags == flags
    # on the images that both have: the certificates' first four are all certified, half of the ledger's are broken
    first = certificates([0.5] * 4, labels=labels[:4])
    kept = bool((~ledger.broken[:4]).all())
    assert certified_row(cell, first, None).flags == (() if kept else (f"{ABOVE}:pgd-smoothed",))
    with pytest.raises(InputError, match="is of another model or of other images"):
        certified_row(cell, certificates([0.5] * 8, labels=labels, model_sha256="x"), None)
    with pytest.raises(InputError, match="is of another model or of other images"):
        certified_row(cell, certificates([0.5] * 8, labels=tuple((k + 1) % 10 for k in labels)), None)


def test_a_radius_in_another_norm_is_refused():
    with pytest.raises(InputError, match=r"c\.json: its radii are in l2, not in l1; correct the norm of the row"):
        certified_row(dataclasses.replace(CELL, threat="l1:0.25"), certificates([0.3]), None)


def test_figures_of_a_detector():
    found = {}
    for metric in DETECTION:
        cell = dataclasses.replace(CELL, metric=metric, threat="linf:2/16", defence="detect-lid")
        row = detection_row(cell, detection(), None)
        found[metric] = row.value, row.n, math.isnan(row.ci_low)
    assert found == {
        "false-alarms-wanted": (5.0, 50, True),
        "false-alarms": (pytest.approx(28.0), 50, False),
        "threshold": (0.123, 50, True),
        "detected": (90.0, 20, False),
        "evaded": (5.0, 40, False),
        "evaded-adaptive": (90.0, 40, False),
    }


def test_a_rate_of_no_image_has_no_value(tmp_path):
    cell = dataclasses.replace(CELL, metric="detected", threat="linf:2/16")
    row = detection_row(cell, detection(static=Outcome(0.0, None, None, 0.0)), None)
    (tmp_path / "t.csv").write_text(csv_of([row]))
    assert math.isnan(read_csv(tmp_path / "t.csv")[0].value) and measured([row]) == {}


@pytest.mark.parametrize("changes", [{"model": "cnn-m"}, {"seed": 3}])
def test_a_record_of_another_cell_is_refused(changes):
    with pytest.raises(InputError, match="make it again"):
        certified_row(CELL, certificates([0.3], **changes), None)


def test_records_are_sealed_and_inspected(tmp_path, capsys):
    write_certificates(tmp_path / "c.json", certificates([0.3, 0.1]))
    write_detection(tmp_path / "d.json", detection())
    assert np.array_equal(read_certificates(tmp_path / "c.json").radii, [0.3, 0.1])
    assert read_detection(tmp_path / "d.json").adaptive == Outcome(1.0, 0.1, 0.4, 0.9)
    for name in ("c.json", "d.json"):
        inspect.run(tmp_path / name, None)
    said = capsys.readouterr().out
    assert "record of certificates" in said and "within 0.5" in said
    assert "28.00 % of the images, 5.00 % wanted" in said and "evades with 90.00 %" in said
    (tmp_path / "d.json").write_text((tmp_path / "d.json").read_text().replace("0.28", "0.02"))
    with pytest.raises(InputError, match="does not match its SHA-256"):
        read_detection(tmp_path / "d.json")


SHARP = Cell("landscape", "digits", "cnn-s", "TRADES", "", "none", "linf:2/16", "sharpness", 0, "l.json")


def test_a_row_of_sharpness():
    row = landscape_row(SHARP, landscape((0.5, 0.25, 0.0)), None)
    assert (row.value, row.unit, row.n, row.protocol) == (0.25, "nat", 40, "sharpness[PGD-10 r=0.5 3x8]")
    assert row.text("value") == "0.250" and row.flags == ()
    assert landscape_row(SHARP, landscape(real_data="train"), None).flags == ("not-data-free",)
    assert landscape_row(SHARP, landscape((0.0,), predicted=1), None).flags == ("diverged",)
    for changes in ({"seed": 3}, {"model": "cnn-m"}, {"threat": "linf:1/16"}):
        with pytest.raises(InputError, match=r"l\.json: .*make it again"):
            landscape_row(SHARP, landscape(**changes), None)
    (line,) = (line for line in facts([row], SPECS["landscape"], False) if line.startswith("Sharpness"))
    assert "images (40 of Digits)" in line and line.endswith("The smaller, the flatter.")


def test_a_landscape_that_is_not_whole_is_refused(tmp_path):
    write_landscape(tmp_path / "l.json", landscape(surface=((1.0, 2.0), (1.0, 2.0))))
    with pytest.raises(InputError, match="its surface is no square"):
        read_landscape(tmp_path / "l.json")
    write_landscape(tmp_path / "l.json", landscape())
    text = (tmp_path / "l.json").read_text()
    (tmp_path / "l.json").write_text(text.replace("0.25", "0.05"))
    with pytest.raises(InputError, match="does not match its SHA-256"):
        read_landscape(tmp_path / "l.json")
