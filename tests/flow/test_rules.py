"""What Snakemake would do, and with which commands: dry runs, no job is started."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from support.snakemake import ROOT, cpu_seconds, jobs, python, snakemake, workspace
from support.workflow import PAPER

from dfshield.cli import parser
from dfshield.options.flags import given_options
from dfshield.planning.config import load_config
from dfshield.planning.plan import Plan


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return workspace(tmp_path_factory.mktemp("workflow"))


def test_the_default_is_table_4_of_the_demo(folder):
    config = load_config(folder / "config/config.yaml")
    models, seeds = sum(len(d.models) for d in config.datasets.values()), len(config.seeds)
    students = models * seeds
    expected = {
        "teacher": models,
        "synthesize": students * config.shards,
        "merge": students,
        "export": models,  # Undefended and Original, rows of reference, at one seed
        "train": 2 * students + models,  # Ours, Plus and Original
        "cotrain": 4 * models,  # the rivals
        "attack": 2 * (models + 4 * models + 2 * students + models),  # PGD and AutoAttack
        "table": 1,
        "all": 1,
    }
    assert jobs(snakemake(folder, "-n")) == expected


@pytest.mark.parametrize("table", PAPER)
def test_the_papers_grid(folder, table):
    run = snakemake(folder, f"results/{table}.csv", "-n", "--configfile", "config/paper.yaml")
    assert jobs(run) == PAPER[table]
    assert "digits" not in run.stdout + run.stderr  # the default config is not in force beside it
    values = yaml.safe_load((folder / "results/paper/config.yaml").read_text())
    medical = {f"{name}mnist" for name in ("tissue", "blood", "path", "oct", "derma", "organa", "organc", "organs")}
    assert set(values["datasets"]) == {"svhn", "cifar10", "cifar100"} | medical


def test_tables_share_what_they_can(folder):
    found = jobs(snakemake(folder, "tables", "-n", "--configfile", "config/paper.yaml"))
    # 9 teachers; dss for 9, fixed for 3 of SVHN and 3 of CIFAR-10, IntraQ for 1; the base recipe is one student for all
    # and of the medical sets 16 teachers, dss, public images and, but for OCT, real ones
    assert (found["teacher"], found["synthesize"]) == (9 + 16, (9 + 6 + 1 + 16) * 6)
    assert (found["export"], found["public"], found["table"]) == (9 + 14, 16, 21)
    diversified = 15 + (15 - 6) + 3  # of CIFAR-10, table 8 has the base and the DSS row
    losses = 2 * 3 * 5  # tables 7, 16 and 17 share all; their L_DFShield row is tables 19's and 20's DSS row
    sizes = 9 + 2 * 2 * 3 * 3  # table 5, and tables 14 and 15 but for the size of table 4
    medical = 16 + 16 + 14
    shares = 3 * 5
    former = 18 + (12 - 3) + (14 - 2) + (22 - 2) + 2 * (108 - 3) + diversified + losses
    assert found["train"] == former + sizes + medical + shares
    assert found["cotrain"] == 36 + 9 + 2 * 4 * 3 * 3 + 64
    assert (found["augment"], found["generate"], found["diversity"]) == (18, 2, 15 + 15 + 3)


def test_benchmark_files_are_no_tables(folder):
    """Those that the cost table reads end as a table's own does, after a slash."""
    run = snakemake(folder, "results/cost.csv", "-n")
    assert jobs(run)["cost"] == 1
    assert "Exception" not in run.stdout + run.stderr


def test_a_dry_run_of_the_whole_paper_is_quick(folder):
    """Two thousand jobs in some twelve times what Snakemake takes to start; reading the code anew for each took
    seventeen times for half as many."""
    start = min(cpu_seconds(lambda: python(folder, "import snakemake.cli")) for _ in range(2))
    words = ("tables", "-n", "--configfile", "config/paper.yaml")
    assert cpu_seconds(lambda: snakemake(folder, *words)) < 20 * start


@pytest.mark.parametrize(("cores", "granted"), [(2, 2), (4, 4), (16, 6)])
def test_a_job_has_the_threads_that_its_stage_asks_for_and_no_more_than_there_are_cores(folder, cores, granted):
    target = "results/demo/digits/cnn-s/dss/dfshield/linf-2-16/seed-0/student.safetensors"
    stages = ("teacher", "synthesis", "training")
    words = ("-n", "--config", *(f"{stage}={{threads: 6}}" for stage in stages))
    run = snakemake(folder, target, *words, cores=cores)
    commands = re.findall(r"^Shell command: (.+) 2>&1", run.stdout + run.stderr, re.MULTILINE)
    given = {a.command: a for a in (parser().parse_args(shlex.split(command)[3:]) for command in commands)}
    asked = {"teacher": "teacher", "synthesize": "synthesis", "train": "training"}
    assert given.keys() == {*asked, "merge"}  # merging takes one
    assert {command: given_options(stage, given[command]).threads for command, stage in asked.items()} == dict.fromkeys(
        asked, granted
    )


def test_several_config_files_are_merged(folder):
    (folder / "more.yaml").write_text("seeds: [4, 5]\n")
    run = snakemake(folder, "results/table24.csv", "-n", "--configfile", "config/paper.yaml", "more.yaml")
    assert jobs(run)["synthesize"] == 2 * PAPER["table24"]["synthesize"]


def test_lint_is_clean(folder):
    run = snakemake(folder, "--lint")
    assert "in a good condition" in run.stdout + run.stderr, run.stdout + run.stderr


def trained_at(a):
    """The threat that a model was trained at, by the path of its ledger."""
    norm, _, size = a.out.parts[6].partition("-")
    return f"{norm}:{size.replace('-', '/')}"


@pytest.mark.parametrize(
    "words",
    [
        ("results/table8.csv", "--configfile", "config/paper.yaml"),
        ("all",),
        ("results/table6.csv",),
        ("results/table14.csv",),
        ("results/table1.csv", "--configfile", "config/paper.yaml"),
    ],
)
def test_every_command_works_by_hand(folder, words):
    run = snakemake(folder, words[0], "-n", *words[1:])
    commands = re.findall(r"^Shell command: (.+)$", run.stdout + run.stderr, re.MULTILINE)
    commands = [command for command in commands if command != "None"]
    assert len(commands) == sum(jobs(run).values()) - ("all" in words)
    config = load_config(folder / (words[-1] if len(words) > 1 else "config/config.yaml"))
    plan, seen = Plan.of(config), set()
    for command in commands:
        program, _, log = command.rpartition(" 2>&1 | tee ")
        assert log.startswith("logs/") and log.endswith(".log")
        a = parser().parse_args(shlex.split(program)[3:])
        seen.add(a.command)
        if a.command == "train":
            dataset, model, source, recipe, threat, seed = a.out.parts[2:8]
            trained = plan.threats[dataset, model][threat]
            assert given_options("training", a) == plan.training(dataset, model, recipe, int(seed[5:]), trained)
            assert str(a.data) == f"results/{config.name}/{dataset}/{model}/{source}/{seed}/data.h5"
            assert (a.recipe, given_options("training", a).threat) == (recipe, trained)
        if a.command == "cotrain":
            dataset, model, source, recipe, threat, seed = a.out.parts[2:8]
            trained = plan.threats[dataset, model][threat]
            assert given_options("cotraining", a) == plan.training(dataset, model, recipe, int(seed[5:]), trained)
            assert (source, a.recipe, a.metrics) == ("none", recipe, a.out.with_name("metrics.csv"))
        if a.command == "synthesize":
            dataset, model, source, seed, shard = a.out.parts[2:7]
            assert given_options("synthesis", a) == plan.synthesis(dataset, model, source, int(seed[5:]))
            assert (a.source, f"shard-{a.shard}.h5", a.shards) == (source, shard, config.shards)
        if a.command == "attack":
            dataset, model, source, recipe, threat, seed = a.out.parts[2:8]
            within = plan.threats[dataset, model][a.out.parent.name.partition("@")[2]]
            assert given_options("attack", a) == plan.attack(dataset, model, a.protocol, int(seed[5:]), within)
            assert given_options("attack", a).threat == within and (recipe == "none" or within == trained_at(a))
            assert json.loads(a.subject) == {
                "dataset": dataset,
                "model": model,
                "source": source,
                "recipe": recipe,
                "train_threat": threat,
                "seed": int(seed[5:]),
            }
            undefended = f"results/{config.name}/{dataset}/{model}/teacher.safetensors"
            student = Path(*a.out.parts[:8], "student.safetensors")
            assert str(a.model) == (undefended if recipe == "none" else str(student))
        if a.command == "augment":
            dataset, model, source, seed = a.out.parts[2:6]
            assert given_options("augmentation", a) == plan.augmentation(dataset, model, source, int(seed[5:]))
            assert (a.source, str(a.data)) == (source, f"results/{config.name}/{dataset}/{model}/fixed/{seed}/data.h5")
        if a.command == "diversity":
            dataset, model, source, seed, name = a.out.parts[2:7]
            assert given_options("diversity", a) == plan.diversity(dataset, model)
            assert (a.dataset, name) == (dataset, "diversity@train.json")
            assert a.data == a.out.with_name("data.h5")
            assert a.teacher == Path(*a.out.parts[:4], "teacher.safetensors")
        if a.command == "public":
            dataset, model, source, seed = a.out.parts[2:6]
            assert given_options("public", a) == plan.public(dataset, model, source, int(seed[5:]))
            assert (a.source, a.teacher) == (source, Path(*a.out.parts[:4], "teacher.safetensors"))
        if a.command == "teacher":
            assert given_options("teacher", a) == plan.options("teacher", a.dataset, a.model)
    more = {"all": {"cotrain"}, "results/table14.csv": {"cotrain"}, "results/table1.csv": {"cotrain", "public"}}
    assert {"teacher", "synthesize", "merge", "train", "attack", "table"} | more.get(words[0], set()) <= seen


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("datasets={digits: {modls: [cnn-s], threat: 'linf:0.1'}}", "datasets.digits.modls: unknown key"),
        ("seeds=[-1]", "seeds.0"),
        ("training={epochs: many}", "training.epochs"),
        ("name=a/b", "name:"),
        ("tables=elsewhere.yaml", "elsewhere.yaml"),
        ("harden={mine: 3}", "harden.mine"),
        ("methods=[ours, dats]", "methods: no table has rows for all of ours, dats"),
        ("diversity={features: vgg16}", "features vgg16 need its weights"),
    ],
)
def test_a_wrong_config_is_one_line_that_names_the_key(folder, override, key):
    run = snakemake(folder, "-n", "--config", override)
    assert run.returncode != 0
    lines = [line for line in (run.stderr + run.stdout).splitlines() if not line.startswith(("Using ", "Config file "))]
    assert len(lines) == 1 and key in lines[0], lines


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("results/demo/digits/resnet20/teacher.safetensors", "a model of no data set"),
        ("results/demo/cifar10/cnn-s/teacher.safetensors", "a data set that is not the config's"),
        ("results/other/digits/cnn-s/teacher.safetensors", "another run"),
        ("results/demo/digits/cnn-s/dss/dfshield/linf-4-255/seed-0/student.safetensors", "another threat"),
        ("results/demo/digits/cnn-s/dss/none/none/seed-0/student.safetensors", "no recipe"),
        ("results/demo/digits/cnn-s/public/seed-0/shard-0.h5", "shards of what has none"),
        ("results/demo/digits/cnn-s/dss/dast/linf-2-16/seed-0/student.safetensors", "data for a method without"),
        ("results/demo/digits/cnn-s/none/dfshield/linf-2-16/seed-0/student.safetensors", "no data for a loss"),
        ("results/demo/digits/cnn-s/dss/seed-99/data.h5", "another seed"),
        ("results/table99.csv", "no such table"),
        ("results/demo/digits/cnn-s/dss/seed-0/diversity@test.json", "another split than the config's"),
    ],
)
def test_names_outside_of_the_config_are_no_targets(folder, path, why):
    run = snakemake(folder, path, "-n")
    assert run.returncode != 0, why
    assert re.search("Missing(Rule|Input)Exception", run.stdout + run.stderr), why


def test_threats_of_other_data_sets_are_not_taken(folder):
    """Each name is known, but the path as a whole is not one that the config asks for."""
    config = yaml.safe_load((ROOT / "config/paper.yaml").read_text())
    config["datasets"]["svhn"] = config["datasets"]["svhn"] | {"threat": "linf:3/255"}
    (folder / "two.yaml").write_text(yaml.safe_dump(config))
    path = "results/paper/cifar10/resnet20/dss/dfshield/linf-3-255/seed-0/student.safetensors"
    for wrong in (path, path.replace("linf-3-255", "none")):
        run = snakemake(folder, wrong, "-n", "--configfile", "two.yaml")
        assert run.returncode != 0 and "no such model or threat" in run.stdout + run.stderr
    right = path.replace("linf-3", "linf-4")
    assert jobs(snakemake(folder, right, "-n", "--configfile", "two.yaml"))["train"] == 1


def test_sources_by_a_generator(folder):
    home = "results/demo/digits/cnn-s"
    run = snakemake(folder, *(f"{home}/{source}/seed-1/diversity@train.json" for source in ("qimera", "rdskd")), "-n")
    assert jobs(run) == {"teacher": 1, "generate": 2, "diversity": 2}
    plan = Plan.of(load_config(folder / "config/config.yaml"))
    commands = re.findall(r"^Shell command: (.* generate .*) 2>&1", run.stdout + run.stderr, re.MULTILINE)
    given = [parser().parse_args(shlex.split(command)[3:]) for command in commands]
    assert {a.source for a in given} == {"qimera", "rdskd"}
    for a in given:
        assert given_options("generation", a) == plan.generation("digits", "cnn-s", a.source, 1)
        assert str(a.out) == f"{home}/{a.source}/seed-1/data.h5"


def test_weights_of_vgg16_are_an_input_and_lie_below_the_data_folder(folder):
    target = "results/demo/digits/cnn-s/fixed/seed-0/diversity@train.json"
    words = ("-n", "--config", "diversity={features: vgg16, vgg16: vgg16.pth}", "data_dir=weights")
    run = snakemake(folder, target, *words)
    assert run.returncode != 0 and "weights/vgg16.pth" in run.stdout + run.stderr  # it is missing
    (folder / "weights").mkdir()
    (folder / "weights/vgg16.pth").touch()
    run = snakemake(folder, target, *words)
    assert jobs(run)["diversity"] == 1
    (command,) = re.findall(r"^Shell command: (.* diversity .*) 2>&1", run.stdout + run.stderr, re.MULTILINE)
    assert given_options("diversity", parser().parse_args(shlex.split(command)[3:])).vgg16 == "weights/vgg16.pth"


def test_harden_without_entries_says_so(folder):
    run = snakemake(folder, "harden", "-n")
    assert run.returncode != 0 and "no models under harden:" in run.stdout + run.stderr


@pytest.mark.parametrize(("device", "expected"), [("cpu", "gpu=0"), ("cuda", "gpu=1")])
def test_gpus_are_asked_for_where_cuda_is_configured(folder, device, expected):
    target = "results/demo/digits/cnn-s/teacher.safetensors"
    words = ("-n", "--config", f"device={device}", "--resources", "gpu=1", "--verbose")
    snakefile = (folder / "Snakefile").read_text()
    (folder / "Snakefile.shown").write_text(snakefile + "\nfor r in workflow.rules:\n    r.message = None\n")
    run = snakemake(folder, target, *words, "--snakefile", "Snakefile.shown")
    assert expected in run.stdout + run.stderr
