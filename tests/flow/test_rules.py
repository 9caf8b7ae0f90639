"""What Snakemake would do, and with which commands: dry runs, no job is started."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from support.commands import SHOWN, counted, kept, options, parsed, plan_of, printed
from support.snakemake import ROOT, cpu_seconds, jobs, python, snakemake, workspace
from support.workflow import PAPER

from dfshield.planning import frozen
from dfshield.planning.config import load_config
from dfshield.planning.jobs import Job, Jobs
from dfshield.planning.paths import DATA, HARDEN, IMAGES_DIVERSITY, Place, log_of
from dfshield.planning.plan import Plan
from dfshield.planning.stages import STAGES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = workspace(tmp_path_factory.mktemp("workflow"))
    snakefile = (folder / "Snakefile").read_text()
    (folder / "Snakefile.shown").write_text(snakefile + "\nfor r in workflow.rules:\n    r.message = None\n")
    return folder


def test_the_default_is_table_4_of_the_demo(folder):
    config = load_config(folder / "config/config.yaml")
    drawn = {"toy"}  # of figure 3 alone
    models = sum(len(own.models) for name, own in config.datasets.items() if name not in drawn)
    students = models * len(config.seeds)
    attacked = students + 4 * models + 2 * students + models
    expected = {
        "teacher": students,
        "synthesize": students * config.shards,
        "merge": students,
        "export": models,  # Original, a row of reference, at one seed
        "train": 2 * students + models,  # Ours, Plus and Original
        "cotrain": 4 * models,  # the rivals
        "attack": 2 * attacked,  # PGD and AutoAttack
        "checks": attacked,
        "table": 1,
        "all": 1,
    }
    assert jobs(snakemake(folder, "-n")) == expected
    assert counted(plan_of(folder), "table4") | {"all": 1} == expected


@pytest.mark.parametrize("table", PAPER)
def test_the_papers_grid(folder, table):
    run = snakemake(folder, f"results/{table}.csv", "-n", "--configfile", "config/paper.yaml")
    assert jobs(run) == PAPER[table] == counted(plan_of(folder, "config/paper.yaml"), table)
    assert "digits" not in run.stdout + run.stderr  # the default config is not in force beside it
    values = yaml.safe_load((folder / "results/paper/config.yaml").read_text())
    medical = {f"{name}mnist" for name in ("tissue", "blood", "path", "oct", "derma", "organa", "organc", "organs")}
    assert set(values["datasets"]) == {"svhn", "cifar10", "cifar100"} | medical


def test_tables_share_what_they_can(folder):
    found = jobs(snakemake(folder, "tables", "-n", "--configfile", "config/paper.yaml"))
    plan = plan_of(folder, "config/paper.yaml")
    assert found == counted(plan, *plan.own_tables) | {"tables": 1}
    # 9 teachers; dss for 9, fixed for 3 of SVHN and 3 of CIFAR-10, IntraQ for 1; two sources of table
    # coefficients for 3 of CIFAR-10; the base recipe is one student for all; and of the medical sets 16 teachers,
    # dss, public images and, but for OCT, real ones
    assert (found["teacher"], found["synthesize"]) == (9 + 16, (9 + 6 + 1 + 16 + 2 * 3) * 6)
    assert (found["export"], found["public"], found["table"]) == (9 + 14, 16 + 4 * 3, 41)
    diversified = 15 + (15 - 6) + 3  # of CIFAR-10, table 8 has the base and the DSS row
    losses = 2 * 3 * 5  # tables 7, 16 and 17 share all; their L_DFShield row is tables 19's and 20's DSS row
    sizes = 9 + 2 * 2 * 3 * 3  # table 5, and tables 14 and 15 but for the size of table 4
    medical = 16 + 16 + 14
    shares = 3 * 5
    former = 18 + (12 - 3) + (14 - 2) + (22 - 2) + 2 * (108 - 3) + diversified + losses
    further = 3 * 15  # of table losses, the other 6 of the 21 are rows of tables 7 and 8 too
    transfer = 2 * 3  # of two models at 8/255; AT is table 15's Original
    grid = 4 * 4  # figure1b: each set's own images and the three other sets'
    assert found["train"] == former + sizes + medical + shares + further + transfer + grid
    assert found["cotrain"] == 36 + 9 + 2 * 4 * 3 * 3 + 64
    assert (found["augment"], found["generate"], found["diversity"]) == (18, 2, 15 + 15 + 3 + 9)


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
    stages = ("teacher", "synthesize", "train")
    words = ("-n", "--config", *(f"{stage}={{threads: 6}}" for stage in stages))
    shown = printed(snakemake(folder, target, *words, *SHOWN, cores=cores))
    given = {command[0]: command for command, _ in shown.values()}
    assert given.keys() == {*stages, "merge"}  # merging takes one
    assert [options(given[stage]).threads for stage in stages] == [granted] * len(stages)


def test_several_config_files_are_merged(folder):
    (folder / "more.yaml").write_text("seeds: [4, 5]\n")
    run = snakemake(folder, "results/table24.csv", "-n", "--configfile", "config/paper.yaml", "more.yaml")
    assert jobs(run)["synthesize"] == 2 * PAPER["table24"]["synthesize"]


def test_lint_is_clean(folder):
    run = snakemake(folder, "--lint")
    assert "in a good condition" in run.stdout + run.stderr, run.stdout + run.stderr


FILES = ("teacher", "data", "model_path", "base", "paths", "student", "ledgers", "fitted")
"""Parameters of a command that take files of other jobs."""
NAMES = ("source", "recipe", "protocol", "shard", "dataset", "model")
"""Parameters of a command that are fields of its output's place."""
BESIDE = {"images": "images.h5", "metrics": "metrics.csv"}
"""Parameters of a command that take files beside its output, and their names."""
SUBJECT = ("dataset", "model", "source", "recipe", "train_threat", "seed")


def check_command(plan: Plan, job: Job, words: list[str], inputs: set[str]) -> None:
    """A printed command is that of `job`: its options, its files, its names."""
    a = parsed(words)
    assert a.command == job.stage
    assert inputs == set(job.inputs)
    assert a.out == (Path(job.output).parent if job.stage == "card" else Path(job.output))
    if STAGES[job.stage].options:
        assert options(words) == job.options
    if STAGES[job.stage].output:
        template = IMAGES_DIVERSITY if kept(job) else DATA if job.stage == "merge" else STAGES[job.stage].output
        place = Place.parse(template, job.output)
        assert STAGES[job.stage].options is None or options(words) == plan.options(job.stage, place)
        named = {name: getattr(a, name) for name in NAMES if name in vars(a)}
        if place.dataset == HARDEN and job.stage in ("attack", "checks"):
            assert (named.pop("dataset"), a.evaluation_npz) == (None, Path("data/mine.npz"))
        assert named == {name: getattr(place, name) for name in named}
    if job.stage not in ("table", "figure", "card"):
        values = [getattr(a, name) for name in FILES if getattr(a, name, None)]
        values += [pair.partition("=")[2] for pair in getattr(a, "others", None) or ()]
        files = [str(path) for value in values for path in (value if isinstance(value, list) else [value])]
        assert sorted(files) == sorted(job.inputs)
    for name in BESIDE.keys() & vars(a).keys():
        assert getattr(a, name) == a.out.with_name(BESIDE[name])
    if job.stage == "synthesize":
        assert a.shards == len(plan.shards(place))
    if job.stage == "defend":
        assert a.threat == plan.fitted_for(place)
    if job.stage == "attack":
        assert json.loads(a.subject) == {field: getattr(place, field) for field in SUBJECT}


MINE = {
    "factory": "mine.py:build",
    "weights": "mine.safetensors",
    "input_shape": [1, 8, 8],
    "classes": 10,
    "mean": [0.3],
    "std": [0.38],
    "threat": "linf:2/16",
    "evaluation": {"file": "mine.npz", "limit": 10},
    "keep_accuracy": True,
}


@pytest.fixture(scope="module")
def more(folder):
    """Configs of what the shipped ones lack: a user's own model, the diversity of images that co-training keeps."""
    values = yaml.safe_load((folder / "config/config.yaml").read_text())
    (folder / "own.yaml").write_text(yaml.safe_dump(values | {"datasets": {}, "harden": {"mine": MINE}}))
    (folder / "checked.yaml").write_text(yaml.safe_dump(values | {"checked": ["pgd10", "autoattack"]}))
    (folder / "data").mkdir(exist_ok=True)
    for file in ("data/mine.safetensors", "mine.py"):
        (folder / file).write_text("# a file that no dry run looks into\n")
    np.savez(folder / "data/mine.npz", x=np.zeros((12, 8, 8), np.uint8), y=np.zeros(12, int))
    tables = yaml.safe_load((folder / "config/tables.yaml").read_text())
    tables["table4"]["metrics"].append("recall")
    tables["table4"]["rows"] = [row for row in tables["table4"]["rows"] if row["method"] in ("DaST", "Ours")]
    (folder / "kept-tables.yaml").write_text(yaml.safe_dump({"table4": tables["table4"]}))
    (folder / "kept.yaml").write_text(yaml.safe_dump(values | {"tables": str(folder / "kept-tables.yaml")}))


TARGETS = {
    "default": ("table4", "config/config.yaml"),
    "diversity": ("table6", "config/config.yaml"),
    "sizes": ("table14", "config/config.yaml"),
    "paper": ("table8", "config/paper.yaml"),
    "medical": ("table1", "config/paper.yaml"),
    "own": (HARDEN, "own.yaml"),
    "kept": ("table4", "kept.yaml"),
    "others": ("table21", "config/config.yaml"),
    "checked": ("table9", "checked.yaml"),
    "certified": ("certified", "config/config.yaml"),
    "detection": ("detection", "config/config.yaml"),
    "surfaces": ("figures/figure4", "config/config.yaml"),
    "embedding": ("figures/figure8", "config/config.yaml"),
    "front": ("figures/front", "config/config.yaml"),
    "samples": ("figures/samples", "config/config.yaml"),
}


@pytest.mark.parametrize(("target", "config"), TARGETS.values(), ids=TARGETS)
def test_every_command_works_by_hand(folder, more, target, config):
    """What Snakemake prints is, job by job, what the plan lists: stages, options, inputs, names, logs."""
    plan = plan_of(folder, config)
    listed = Jobs(plan)
    listed.target(target)
    suffix = ".png" if target.startswith("figures/") else ".csv"
    path = target if target == HARDEN else f"results/{target}{suffix}"
    run = snakemake(folder, path, "-n", "--configfile", config, *SHOWN)
    shown = printed(run)
    assert shown.keys() == {str(log_of(output)) for output in listed.jobs}
    assert jobs(run) == counted(plan, target) | ({HARDEN: 1} if target == HARDEN else {})
    for output, job in listed.jobs.items():
        check_command(plan, job, *shown[str(log_of(output))])


def test_the_commands_of_every_stage_are_looked_at(folder, more):
    seen = set()
    for target, config in TARGETS.values():
        listed = Jobs(plan_of(folder, config))
        listed.target(target)
        seen |= {job.stage for job in listed.jobs.values()}
    assert seen == STAGES.keys() - {"cost", "checklist", "report"}  # which are no jobs of a table, see test_end_to_end


@pytest.mark.parametrize("config", ["own.yaml", "kept.yaml"])
def test_the_page_of_a_run_waits_for_its_tables_figures_and_cards(folder, more, config):
    plan = plan_of(folder, config)
    run = snakemake(folder, "results/report.html", "-n", "--configfile", config, *SHOWN)
    figures = [f"figures/{name}" for name in plan.own_figures]
    targets = [*plan.own_tables, *figures, *([HARDEN] if plan.config.harden else [])]
    assert targets and jobs(run) == counted(plan, *targets) | {"report_html": 1}
    words, inputs = printed(run)["logs/report.log"]
    assert parsed(words).out == Path("results/report.html")
    expected = {f"results/{name}.csv" for name in plan.own_tables} | {f"results/{name}.png" for name in figures}
    assert inputs == expected | {f"results/harden/{name}/MODEL_CARD.md" for name in plan.config.harden}


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("datasets={digits: {modls: [cnn-s], threat: 'linf:0.1'}}", "datasets.digits.modls: unknown key"),
        ("seeds=[-1]", "seeds.0"),
        ("train={epochs: many}", "train.epochs"),
        ("training={epochs: 3}", "train"),
        ("name=a/b", "name:"),
        ("tables=elsewhere.yaml", "elsewhere.yaml"),
        ("harden={mine: 3}", "harden.mine"),
        ("methods=[ours, dats]", "methods: no table has rows for all of ours, dats"),
        ("diversity={features: vgg16}", "features vgg16 need its weights"),
        ("seeds=[3, 3]", "seeds: 3 is given 2 times"),
        ("train={aggregate: 500}", "train options of digits/cnn-s: aggregate (B = 500) mini-batches of"),
    ],
)
def test_a_wrong_config_is_one_line_that_names_the_key(folder, override, key):
    assert key in refusal(snakemake(folder, "-n", "--config", override))


def refusal(run) -> str:
    """The one line of a run that is refused."""
    assert run.returncode != 0
    lines = [line for line in (run.stderr + run.stdout).splitlines() if not line.startswith(("Using ", "Config file "))]
    assert len(lines) == 1, lines
    return lines[0]


def test_a_key_that_a_config_file_gives_twice(folder):
    (folder / "twice.yaml").write_text((ROOT / "config/config.yaml").read_text() + "\ntrain: {epochs: 9}\n")
    for files in (("twice.yaml",), ("config/config.yaml", "twice.yaml")):
        line = refusal(snakemake(folder, "-n", "--configfile", *files))
        assert line.startswith(f"snakemake: {folder}/twice.yaml: train: is given twice, in lines ")


def test_what_only_other_targets_need_is_no_reason_to_refuse(folder):
    words = ("-n", "--config", "train={aggregate: 500}")
    assert jobs(snakemake(folder, "results/demo/digits/cnn-s/seed-0/teacher.safetensors", *words)) == {"teacher": 1}


def test_from_elsewhere(folder, tmp_path):
    """Default tables lie beside the Snakefile; a config's own beside the config; commands by hand find them again."""
    values = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    (tmp_path / "own").mkdir()
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values | {"tables": "theirs.yaml", "name": "mine"}))
    rows = yaml.safe_load((ROOT / "config/tables.yaml").read_text())
    (tmp_path / "theirs.yaml").write_text(yaml.safe_dump({"table4": rows["table4"]}))
    words = ("-n", "-s", str(folder / "Snakefile"))
    assert jobs(snakemake(tmp_path / "own", *words))["table"] == 1
    assert "table" in jobs(snakemake(tmp_path / "own", *words, "--configfile", str(tmp_path / "mine.yaml")))
    kept = tmp_path / "own/results/mine/config.yaml"
    assert Plan.of(frozen.load(kept.parent)).tables.keys() == {"table4"}
    (tmp_path / "theirs.yaml").unlink()
    line = refusal(snakemake(tmp_path / "own", *words, "--configfile", str(tmp_path / "mine.yaml")))
    places = f"({tmp_path}/theirs.yaml or {tmp_path}/own/"
    assert f"tables: theirs.yaml: cannot be read, there is no such file {places}" in line


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("results/demo/digits/resnet20/seed-0/teacher.safetensors", "a model of no data set"),
        ("results/demo/cifar10/cnn-s/seed-0/teacher.safetensors", "a data set that is not the config's"),
        ("results/other/digits/cnn-s/seed-0/teacher.safetensors", "another run"),
        ("results/demo/digits/cnn-s/dss/dfshield/linf-4-255/seed-0/student.safetensors", "another threat"),
        ("results/demo/digits/cnn-s/dss/none/none/seed-0/student.safetensors", "no recipe"),
        ("results/demo/digits/cnn-s/public/seed-0/shard-0.h5", "shards of what has none"),
        ("results/demo/digits/cnn-s/dss/dast/linf-2-16/seed-0/student.safetensors", "data for a method without"),
        ("results/demo/digits/cnn-s/none/dfshield/linf-2-16/seed-0/student.safetensors", "no data for a loss"),
        ("results/demo/digits/cnn-s/dss/seed-99/data.h5", "another seed"),
        ("results/table99.csv", "no such table"),
        ("results/figures/figure99.png", "no such figure"),
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
        assert run.returncode != 0 and "no threat model" in run.stdout + run.stderr
    right = path.replace("linf-3", "linf-4")
    assert jobs(snakemake(folder, right, "-n", "--configfile", "two.yaml"))["train"] == 1


def test_students_have_the_teachers_of_their_seeds_and_a_users_network_is_one_for_all(folder, more):
    for config, home, made in (("config/config.yaml", "digits/cnn-s", 2), ("own.yaml", "harden/mine", 1)):
        students = [f"results/demo/{home}/dss/dfshield/linf-2-16/seed-{seed}/student.safetensors" for seed in (1, 2)]
        run = snakemake(folder, *students, "-n", "--configfile", config, *SHOWN)
        assert jobs(run) == {"teacher": made, "synthesize": 2, "merge": 2, "train": 2}
        taken = {parsed(words).teacher for words, _ in printed(run).values() if words[0] in ("synthesize", "train")}
        seeds = (1, 2) if made == 2 else (0,)
        assert taken == {Path(f"results/demo/{home}/seed-{seed}/teacher.safetensors") for seed in seeds}


def test_sources_by_a_generator(folder):
    home = "results/demo/digits/cnn-s"
    run = snakemake(
        folder, *(f"{home}/{source}/seed-1/diversity@train.json" for source in ("qimera", "rdskd")), "-n", *SHOWN
    )
    assert jobs(run) == {"teacher": 1, "generate": 2, "diversity": 2}
    plan, shown = plan_of(folder), printed(run)
    for source in ("qimera", "rdskd"):
        place = plan.place("digits", "cnn-s", source=source, seed=1)
        words, _ = shown[str(log_of(place.path(DATA)))]
        assert (words[0], options(words)) == ("generate", plan.options("generate", place))


def test_weights_of_vgg16_lie_below_the_data_folder(folder):
    target = "results/demo/digits/cnn-s/fixed/seed-0/diversity@train.json"
    words = ("-n", "--config", "diversity={features: vgg16, vgg16: vgg16.pth}", "data_dir=weights", *SHOWN)
    run = snakemake(folder, target, *words)
    assert run.returncode != 0 and "weights/vgg16.pth" in run.stdout + run.stderr  # it is missing
    (folder / "weights").mkdir()
    (folder / "weights/vgg16.pth").touch()
    run = snakemake(folder, target, *words)
    assert jobs(run)["diversity"] == 1
    words, _ = printed(run)[str(log_of(target))]
    assert options(words).vgg16 == "weights/vgg16.pth"


def test_harden_without_entries_says_so(folder):
    run = snakemake(folder, "harden", "-n")
    assert run.returncode != 0 and "no models under harden:" in run.stdout + run.stderr


@pytest.mark.parametrize(("device", "expected"), [("cpu", "gpu=0"), ("cuda", "gpu=1")])
def test_gpus_are_asked_for_where_cuda_is_configured(folder, device, expected):
    target = "results/demo/digits/cnn-s/seed-0/teacher.safetensors"
    words = ("-n", "--config", f"device={device}", "--resources", "gpu=1", "--verbose")
    run = snakemake(folder, target, *words, *SHOWN)
    assert expected in run.stdout + run.stderr
