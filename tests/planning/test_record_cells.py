"""Cells that are read from certificates and from evaluations of detectors, and their jobs."""

import pytest
from support.configs import ROOT, job, plan

from dfshield.core.errors import InputError
from dfshield.planning.jobs import Jobs
from dfshield.planning.plan import Plan


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_a_certified_accuracy_is_compared_with_the_attacks_at_its_radius():
    cells = plan().cells("certified")
    gaussian = next(c for c in cells if (c.method, c.metric, c.threat) == ("Gaussian noise", "certified", "l2:0.25"))
    home = "results/run/digits/cnn-s/none/none/none/seed-0/eval/smoothing"
    assert gaussian.ledger == f"{home}/certificates.json"
    assert gaussian.attacks == tuple(f"{home}/{name}@l2-0.25/ledger.h5" for name in ("pgd-smoothed", "aa-smoothed"))
    assert {c.threat for c in cells if c.method == "Laplace noise"} == {"l1:0.25", "l1:0.5", "l1:1"}
    assert all(not c.attacks for c in cells if c.metric != "certified")


def test_options_of_certificates_are_those_of_the_defence():
    made = plan(defences={"smoothing": {"defend": "smoothing", "sigma": 0.4}}, certify={"n": 300})
    options = job(made, "certify", "digits", "cnn-s", defence="smoothing")
    assert (options.distribution, options.sigma, options.n, options.split) == ("gaussian", 0.4, 300, "test")
    with pytest.raises(InputError, match="nothing certifies defence 'tte'"):
        job(made, "certify", "digits", "cnn-s", defence="tte")
    with pytest.raises(InputError, match=r"certify\.sigma: cannot be set here; use defences:"):
        plan(certify={"sigma": 0.1})


@pytest.mark.parametrize(
    ("table", "row", "metric", "why"),
    [
        ("table4", {"defence": "detect-lid"}, "pgd10", "is no metric of a detector, which its defence is"),
        ("detection", {"defence": "tte"}, "evaded", "is of a detector: its defence is one that is"),
        ("certified", {"defence": "tte"}, "certified", "which nothing certifies"),
    ],
)
def test_metrics_and_defences_that_do_not_go_together(table, row, metric, why):
    made = plan()
    spec = made.tables[table]
    rows = (spec.rows[0].model_copy(update=row),)
    tables = made.tables | {table: spec.model_copy(update={"rows": rows, "metrics": (metric,)})}
    with pytest.raises(InputError, match=why):
        Plan(made.config, tables).cells(table)


def test_a_detector_waits_for_its_training_set():

    jobs = Jobs(made := plan(defences={"detect-lid": {"detect": "lid", "base": "fixed", "neighbours": 7}}))
    cell = next(c for c in made.cells("detection") if c.method == "LID")
    detect = jobs.jobs[jobs.evidence(cell)]
    assert detect.stage == "detect" and detect.inputs[1].endswith("/fixed/seed-0/data.h5")
    assert (detect.options.neighbours, detect.options.threat) == (7, "linf:8/255")
    with pytest.raises(InputError, match="is a detector, which nothing is attacked behind"):
        made.defence("detect-lid")
