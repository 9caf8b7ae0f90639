"""What options cannot do is said with the config, in the words of the stage that would fail."""

import pytest
from support.configs import GRID, MINE, ROOT, job, plan

from dfshield.core.errors import InputError
from dfshield.options import TrainOptions
from dfshield.planning.config import check_config
from dfshield.planning.jobs import Jobs, checked_plan

DIGITS = {"synthesize": {"images": 100, "batch": 50}, "train": {"batch": 25, "holdout": 0, "aggregate": 4}}


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def student(made, recipe="dfshield", source="dss"):
    return job(made, "train", "digits", "cnn-s", source=source, recipe=recipe)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, ""),
        ({"aggregate": 5}, r"aggregate \(B = 5\) mini-batches of 25 do not fit in an epoch of 100 images \(4 mini"),
        ({"holdout": 1}, r"aggregate \(B = 4\) mini-batches of 25 do not fit in an epoch of 99 images"),
        ({"holdout": 100}, "holdout 100 leaves 0 of 100 images to train on, less than one mini-batch of 25"),
        ({"batch": 101}, "holdout 0 leaves 100 of 100 images to train on, less than one mini-batch of 101"),
        ({"data_share": 0.2}, "holdout 0 leaves 20 of 20 images"),
        ({"batch": 1}, "batch 1: a single image has no batch statistics; use batch >= 2 or batchnorm eval"),
        ({"batch": 1, "batchnorm": "eval"}, ""),
    ],
)
@pytest.mark.parametrize("source", ["dss", "mixup", "qimera"])
def test_mini_batches_and_images(changes, message, source):
    """A set that is synthesised, one derived from such a set, and one by a generator have as many images."""
    made = plan(**DIGITS | {"train": DIGITS["train"] | changes})
    if not message:
        assert student(made, source=source)
        return
    with pytest.raises(InputError, match=f"^train options of digits/cnn-s: {message}"):
        student(made, source=source)


@pytest.mark.parametrize(("source", "images"), [("real", 997), ("public", 5000), ("few", 30)])
def test_images_of_real_sets_are_known_from_the_registry(source, images):
    sources = {"public": {"public": "photographs"}, "few": {"public": "photographs", "images": 30}}
    fits = plan(sources=sources, train={"batch": images, "holdout": 0, "aggregate": 1})
    assert student(fits, source=source)
    with pytest.raises(InputError, match=f"leaves {images} of {images} images to train on"):
        student(plan(sources=sources, train={"batch": images + 1, "holdout": 0, "aggregate": 1}), source=source)


def test_numbers_that_only_files_tell_are_left_to_the_stage():
    made = plan(GRID | {"datasets": {"bloodmnist": {"models": ["resnet18"], "threat": "linf:8/255"}}})
    assert job(made, "train", "bloodmnist", "resnet18", source="real", recipe="dfshield")


@pytest.mark.parametrize(
    ("changes", "stage", "fields", "message"),
    [
        ({"cotrain": {"batch": 25}}, "cotrain", {"recipe": "dast"}, "dast shares a mini-batch equally among its 10 br"),
        (
            {"sources": {"p": {"public": "digits"}}},
            "public",
            {"source": "p"},
            "trained on digits, which is not a",
        ),
        (
            {"sources": {"p": {"public": "photographs", "images": 5001}}},
            *("public", {"source": "p"}, "photographs: has 5000 training images, not 5001; ask for fewer"),
        ),
        ({"diversity": {"bins": 998}}, "diversity", {"source": "dss"}, "bins 998: there are only 997 real images"),
        (
            {"diversity": {"neighbours": 50}, "synthesize": {"images": 50, "batch": 50}},
            *("diversity", {"source": "dss"}, "neighbours 50: there are 50 synthetic images; use neighbours < 50"),
        ),
        (
            {"diversity": {"neighbours": 50, "bins": 20, "sample": 30}},
            *("diversity", {"source": "dss"}, "neighbours 50: there are 30 real images"),
        ),
        (
            {"cotrain": {"kept_images": 5}},
            *("diversity", {"recipe": "dast"}, "neighbours 5: there are 5 synthetic images"),
        ),
        (
            {"datasets__photographs": {"models": ["cnn-s"], "threat": "linf:8/255"}},
            *("attack", {"dataset": "photographs", "protocol": "pgd10"}, "photographs: has no split 'test'; it has tr"),
        ),
    ],
)
def test_other_stages(changes, stage, fields, message):
    made = plan(**changes)
    dataset = fields.pop("dataset", "digits")
    with pytest.raises(InputError, match=f"^{stage} options of {dataset}/cnn-s: .*{message}"):
        job(made, stage, dataset, "cnn-s", **fields)


def test_the_stage_has_the_same_rule():
    options = TrainOptions.of(batch=25, holdout=0, aggregate=20)
    with pytest.raises(InputError, match=r"use aggregate <= 4, batch <= 5 or more images"):
        options.mini_batches(100)
    assert options.model_copy(update={"aggregate": 4}).mini_batches(110) == 4


def test_a_base_recipe_that_no_job_is_of_is_not_asked():
    """Table 23 sweeps B; that the config's own B does not fit concerns the tables that have it."""
    made = plan(train={"batch": 100, "holdout": 0}, synthesize={"images": 1000, "batch": 100}, grid="demo")
    values = made.tables["table23"].sweep["aggregate"].demo
    assert max(values) <= 10 < 20 and made.cells("table23")


def test_a_swept_recipe_and_one_of_its_name():
    value = plan().tables["table24"].sweep["tau"].demo[0]
    made = plan(recipes={f"dfshield.tau-{value:g}": {"train": "std"}})
    with pytest.raises(InputError, match=rf"table24: 'dfshield\.tau-{value:g}' is the name of two recipes"):
        _ = made.recipes


def test_a_cell_twice():
    made = plan()
    spec = made.tables["table4"]
    made.tables["table4"] = spec.model_copy(update={"metrics": (*spec.metrics, "clean")})
    with pytest.raises(InputError, match=r"table4: has one cell twice \(digits, cnn-s, .*clean, 0\)"):
        made.cells("table4")


WRONG = GRID | {"train": {"aggregate": 2000}}


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        ([], True),
        (["--cores", "2"], True),
        (["results/table4.csv", "-n"], True),
        (["results/table4.md"], True),
        (["tables"], True),
        (["all"], True),
        (["results/table2.csv"], False),
        (["results/run/digits/cnn-s/seed-0/teacher.safetensors"], False),
        (["harden"], False),
        (None, False),
    ],
)
def test_jobs_of_the_targets_are_checked(words, refused):
    """Before Snakemake's DAG, where the same message would come with a traceback; a job looks at itself alone."""
    if not refused:
        assert checked_plan(check_config(WRONG), [], ROOT, words)
        return
    with pytest.raises(InputError, match=r"^config: train options of digits/cnn-s: aggregate \(B = 2000\)"):
        checked_plan(check_config(WRONG), [], ROOT, words)


def test_braces_in_the_workflows_own_path(tmp_path):
    with pytest.raises(InputError, match="Snakemake takes braces in the workflow's own path for wildcards"):
        checked_plan(check_config(GRID), [], tmp_path / "a{b}", [])


def test_models_to_harden_are_checked_whatever_the_target():
    made = plan(MINE, synthesize={"images": 1000, "batch": 100})
    with pytest.raises(InputError, match=r"train options of harden/net: aggregate \(B = 20\)"):
        made.check()
    jobs = Jobs(plan(MINE))
    jobs.target("harden")
    assert len(jobs.jobs) > 5
