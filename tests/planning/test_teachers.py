"""Whose teacher a job has: that of its own seed, or the one of a network that comes trained."""

import re

import pytest
from support.configs import GRID, MINE, ROOT, plan

from dfshield.planning.companions import others
from dfshield.planning.jobs import Jobs
from dfshield.planning.paths import STUDENT, TEACHER
from dfshield.planning.plan import Plan

SEEDS = [0, 5, 7]
PUBLISHED = {"name": "x", "datasets": {"cifar10": {"models": ["resnet20"], "threat": "linf:4/255"}}}


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def jobs_of(made: Plan, *targets: str) -> Jobs:
    jobs = Jobs(made)
    for target in targets:
        jobs.target(target)
    return jobs


def seeds_in(paths) -> set[int]:
    return {int(seed) for path in paths for seed in re.findall(r"/seed-(\d+)/", path)}


def test_every_seed_has_a_teacher_of_its_own():
    made = plan(seeds=SEEDS)
    jobs = jobs_of(made, *made.own_tables)
    teachers = {job.output: job.options.seed for job in jobs.jobs.values() if job.stage == "teacher"}
    assert teachers == {f"results/run/digits/cnn-s/seed-{seed}/teacher.safetensors": seed for seed in SEEDS}


def test_all_that_a_job_reads_is_of_its_seed():
    """Teacher, training set, student, ledgers and surrogates, in whatever table; the bins alone have one seed."""
    made = plan(seeds=SEEDS, protocols={"transfer": {"attack": "transfer", "surrogate": "dss/std"}}, grid="full")
    jobs = jobs_of(made, *made.own_tables)
    stages = set()
    for job in jobs.jobs.values():
        if job.place is None:
            continue
        stages.add(job.stage)
        assert seeds_in([job.output, *job.inputs]) == {job.place.seed}, job
        assert job.options is None or job.stage == "diversity" or job.options.seed == job.place.seed
    assert stages >= {"synthesize", "generate", "public", "export", "train", "cotrain", "attack", "checks", "diversity"}


def test_undefended_has_the_seeds_of_the_others():
    cells = plan(seeds=SEEDS).cells("table4")
    found = {method: sorted({c.seed for c in cells if c.method == method}) for method in ("Undefended", "Ours", "DaST")}
    assert found == {"Undefended": SEEDS, "Ours": SEEDS, "DaST": SEEDS[:1]}
    assert {cell.seed for cell in plan(seeds=SEEDS).cells("table11")} == set(SEEDS)


@pytest.mark.parametrize("seeds", [[0], [5, 0]])
def test_a_published_network_is_there_once(seeds):
    made = plan(PUBLISHED, seeds=seeds)
    jobs = jobs_of(made, "table4")
    (teacher,) = (job.output for job in jobs.jobs.values() if job.stage == "teacher")
    assert teacher == f"results/x/cifar10/resnet20/seed-{seeds[0]}/teacher.safetensors"
    cells = made.cells("table4")
    assert {cell.seed for cell in cells if cell.method == "Undefended"} == {seeds[0]}
    assert {cell.seed for cell in cells if cell.method == "Ours"} == set(seeds)
    students = [job for job in jobs.jobs.values() if job.stage == "train" and "/dss/" in job.output]
    assert len(students) == len(seeds) and all(teacher in job.inputs for job in students)


def test_a_users_network_is_converted_once():
    made = plan(MINE, seeds=[5, 0])
    places = [made.place("harden", "net", source="dss", recipe="dfshield", seed=seed) for seed in (5, 0)]
    jobs = Jobs(made)
    for place in places:
        jobs.student(place)
    (teacher,) = (job.output for job in jobs.jobs.values() if job.stage == "teacher")
    assert teacher == "results/mine/harden/net/seed-5/teacher.safetensors"
    assert {made.checkpoint(place.at(source="none", recipe="none")) for place in places} == {teacher}


def test_an_attack_that_needs_the_teacher_has_that_of_the_attacked_seed():
    made = plan(seeds=SEEDS, protocols={"theirs": {"attack": "transfer", "surrogate": "dss/std"}})
    place = made.place("digits", "cnn-s", source="dss", recipe="dfshield", seed=7, threat="linf-8-255")
    for protocol in ("transfer", "modified-b"):
        (other,) = others(made, place.at(protocol=protocol)).values()
        assert made.checkpoint(other) == place.path(TEACHER)
    (other,) = others(made, place.at(protocol="theirs")).values()
    assert made.checkpoint(other) == place.at(recipe="std").path(STUDENT)
    assert made.checkpoint(place) == place.path(STUDENT) != made.checkpoint(place.at(seed=5))


def test_rows_without_a_student_but_with_data_have_all_seeds():
    row = plan().tables["table4"].rows[0].model_copy(update={"source": "dss"})
    made = plan(PUBLISHED, seeds=SEEDS)
    assert made.seeds(made.tables["table4"], row, "cifar10", "resnet20") == tuple(SEEDS)
    assert plan(GRID, seeds=SEEDS).seeds(made.tables["table4"], row, "digits", "cnn-s") == tuple(SEEDS)
