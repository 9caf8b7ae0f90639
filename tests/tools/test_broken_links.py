"""`dfshield verify`: every break between table, ledger, student, data and teacher is named."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from support.edits import DATA_FILE, HOME, STUDENT_FILE, change, edited, flip, other_values, other_weights
from support.ledgers import make_record

from dfshield.evaluation.findings import read_findings, write_findings
from dfshield.report.rows import read_csv, write_csv
from dfshield.tools.verify import verify

pytestmark = pytest.mark.slow

TABLE4 = "results/table4.csv"
CHECKS_FILE = f"{HOME}/dss/dfshield/linf-8-255/seed-0/eval/none/checks@linf-8-255/checks.json"
LEDGER_FILE = f"{HOME}/dss/dfshield/linf-8-255/seed-0/eval/none/pgd10@linf-8-255/ledger.h5"


other_student = other_weights(STUDENT_FILE)
other_data = other_values(DATA_FILE)
other_teacher = other_weights(f"{HOME}/seed-0/teacher.safetensors")


def other_checks() -> None:
    """The record of robustness checks of other options in the place of one."""
    found = read_findings(Path(CHECKS_FILE))
    write_findings(Path(CHECKS_FILE), dataclasses.replace(found, options=found.options | {"steps": 7}))


def swapped_method() -> None:
    rows = read_csv(Path(TABLE4))
    shown = {row.metric: row for row in rows if row.method == "Original"}
    moved = [dataclasses.replace(shown[r.metric], method="Ours") if r.method == "Ours" else r for r in rows]
    write_csv(Path(TABLE4), moved)


def assert_broken(
    path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[], None], broken: int, message: str
) -> None:
    damage()
    assert verify(path) == 1
    out = capsys.readouterr().out
    assert out.count("BROKEN ") == broken and message in out


@pytest.mark.parametrize(
    ("damage", "broken", "message"),
    [
        (change(TABLE4, "value", 99.0), 1, "value is '99.00' in the table but '75.00' by its ledger"),
        (change(TABLE4, "flags", ("diverged",)), 1, "flags is 'diverged'"),
        (change(TABLE4, "n", 10_000), 1, "n is '10000'"),
        (change(TABLE4, "paper", 50.0), 1, "the paper column says '50.00', the paper says ''"),
        (change(TABLE4, "ledger_sha256", "0" * 64), 1, f"ledger_sha256 is '{'0' * 64}' in the table but"),
        (change(TABLE4, "seed", 5), 2, "no row of the run's table has seed 5"),
        (swapped_method, 3, "in the table but"),
        (flip(LEDGER_FILE), 3, "ledger"),  # of clean and PGD-10, and of AutoAttack by the checks
        (lambda: Path(LEDGER_FILE).unlink(), 3, "ledger.h5: no such file"),
        (flip(CHECKS_FILE), 2, "checks.json"),  # of both attacks
        (lambda: Path(CHECKS_FILE).unlink(), 2, "checks.json: no such file"),
        (other_checks, 2, "checks.json: steps is 7, the config says 20"),
        (flip(STUDENT_FILE), 3, "student.safetensors"),
        (lambda: Path(STUDENT_FILE).unlink(), 3, "no such file"),
        (other_student, 3, "eval/none/pgd10@linf-8-255/ledger.h5: it was not made from"),
        (flip(DATA_FILE), 6, "data.h5"),  # of Ours and Plus
        (lambda: Path(DATA_FILE).unlink(), 6, "no such file"),
        (other_data, 6, "seed-0/data.h5: it was not made from"),
        (
            other_teacher,
            8 * 3,
            "it was not made from results/demo/digits/cnn-s/seed-0/teacher.safetensors as it is now",
        ),
    ],
)
def test_broken_links_are_named(
    table: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[], None],
    broken: int,
    message: str,
) -> None:
    assert_broken(table("table4"), capsys, damage, broken, message)


MIXUP = f"{HOME}/mixup/seed-0"


def of_metric(path: str, metric: str, **changes: object) -> Callable[[], None]:
    def apply() -> None:
        rows = read_csv(Path(path))
        rows = [
            dataclasses.replace(row, **changes) if (row.method, row.metric) == ("+ Mixup", metric) else row
            for row in rows
        ]
        write_csv(Path(path), rows)

    return apply


other_base = other_values(f"{HOME}/fixed/seed-0/data.h5")


@pytest.mark.parametrize(
    ("damage", "broken", "message"),
    [
        (of_metric("results/table6.csv", "recall", value=0.6), 1, "value is '0.600' in the table but '0.500'"),
        (of_metric("results/table6.csv", "ndb", value=87), 1, "value is '87' in the table but '88' by its record"),
        (of_metric("results/table6.csv", "jsd", protocol="jsd"), 1, "protocol is 'jsd'"),
        (of_metric("results/table6.csv", "recall", ci_low=1.0), 1, "ci_low is '1.000' in the table but ''"),
        (of_metric("results/table6.csv", "recall", ledger_sha256="0" * 64), 1, "in the table but"),
        (of_metric("results/table6.csv", "recall", method="+ Cutout"), 2, "in the table but"),
        (edited(f"{MIXUP}/diversity@train.json", "0.5,", "0.6,"), 4, "diversity@train.json: content does not match"),
        (lambda: Path(f"{MIXUP}/diversity@train.json").unlink(), 4, "diversity@train.json: no such file"),
        (lambda: make_record(Path(f"{MIXUP}/diversity@train.json"), 0.75), 4, "in the table but"),
        (flip(f"{MIXUP}/data.h5"), 7, "mixup/seed-0/data.h5"),
        (other_base, 4 * 7, "fixed/seed-0/data.h5: it was not made from"),  # the base and all that is made of it
        (other_teacher, 84, "teacher.safetensors as it is now"),
    ],
)  # fmt: skip
def test_broken_links_of_diversity_are_named(
    table: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[], None],
    broken: int,
    message: str,
) -> None:
    assert_broken(table("table6"), capsys, damage, broken, message)
