"""Cells that are read from certificates, evaluations of detectors and loss landscapes, and their jobs."""

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
        ("landscape", {"defence": "tte"}, "sharpness", "is of a network alone; take the defence out"),
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


def test_a_landscape_is_of_a_student_at_the_threat_of_its_training():
    jobs = Jobs(made := plan(landscape={"points": 5}, seeds=[0, 7], split="dev"))
    cells = [c for c in made.cells("landscape") if c.metric == "sharpness"]
    assert {(c.method, c.seed) for c in cells} == {
        (f"{loss}{refined}", seed)
        for loss in ("TRADES", "L_DFShield") for refined in ("", " with GradRefine") for seed in (0, 7)
    }  # fmt: skip
    measured = jobs.jobs[jobs.evidence(cells[-1])]
    home = "results/run/digits/cnn-s/dss/dfshield/linf-8-255/seed-7"
    assert (measured.stage, measured.output) == ("landscape", f"{home}/landscape@linf-8-255.json")
    assert measured.inputs == (f"{home}/student.safetensors",)
    options = measured.options
    assert (options.points, options.threat, options.split, options.seed) == (5, "linf:8/255", "dev", 7)
    recipes = {c.method: c.ledger.split("/")[5] for c in cells}
    assert [made.options("train", made.place("digits", "cnn-s", source="dss", recipe=name)).aggregate
            for name in recipes.values()] == [1, 20, 1, 20]  # fmt: skip
    for key, value in {"threat": "linf:0.1", "split": "dev", "seed": 3}.items():
        with pytest.raises(InputError, match=rf"landscape\.{key}: cannot be set here"):
            plan(landscape={key: value})
