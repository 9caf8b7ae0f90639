# Helpers of the rules. Paths, options and cells come from dfshield.plan; here is what only Snakemake needs.
#
# Snakemake leaves a param out of its rerun decision if its function takes `threads` or `input`. That is used for what
# says where and by what a job runs (interpreter, data folder, threads, device); everything else is an ordinary param.
import functools
import re
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import yaml
from snakemake.settings.types import DeploymentMethod

from dfshield.planning import provenance
from dfshield import registry
from dfshield.options import StageOptions
from dfshield.core.threat import threat_name
from dfshield.options.flags import as_flags
from dfshield.planning.paths import DATA, DIVERSITY, HARDEN, LEDGER, METRICS, NONE, RESULTS, SHARD, STUDENT, TEACHER
from dfshield.planning.paths import benchmark_of, log_of
from dfshield.planning.tables import formulas
from dfshield.report.published import published
from dfshield.core.hashing import canonical_json, digest
from dfshield.core.device import cuda_devices
from dfshield.core.files import data_dir, data_file, write_text

STATE = f"{RESULTS}/.state"
CONFIG = f"{RESULTS}/{plan.config.name}/config.yaml"
TABLE = f"{RESULTS}/{{table}}.csv"
COST = f"{RESULTS}/cost.csv"
CARD = f"{RESULTS}/{HARDEN}/{{name}}/MODEL_CARD.md"
IN_CONDA = DeploymentMethod.CONDA in workflow.deployment_settings.deployment_method
PYTHON = "python" if IN_CONDA else shlex.quote(sys.executable)
RESUMING_MINUTES = {"synthesis": 480, "generation": 480, "training": 1440, "cotraining": 1440, "attack": 1440}
"""Time to ask a cluster for, by the paper's largest model on one GPU. A job that runs out goes on in as much again:
asking for more would have it refused where a day is the longest."""
STARTING_OVER_MINUTES = {"teacher": 1440, "augmentation": 60, "public": 60, "diversity": 240}
"""The same for jobs that start over when they run out, each time with more."""
MEMORY_MB = {
    **{"teacher": 4000, "synthesis": 4000, "generation": 4000, "augmentation": 8000, "public": 8000},
    **{"diversity": 12000},
    **{"training": 8000, "cotraining": 8000, "attack": 6000},
}
"""Memory to ask for: PyTorch with CUDA takes 2 to 3 GB, 60,000 CIFAR images 740 MB."""


# --- targets and the config in force ---------------------------------------------------------------------------------


def one_of(names):
    """Regular expression of a closed vocabulary; an empty one matches nothing."""
    return "|".join(map(re.escape, names)) or "(?!)"


def default_results():
    """Table 4, or what there is of it: the config's other tables, or its own models."""
    if "table4" in plan.own_tables:
        return expand(TABLE, table="table4")
    return expand(TABLE, table=plan.own_tables) or expand(CARD, name=plan.config.harden)


def hardened(wildcards):
    """Model cards of all entries under harden:."""
    if not plan.config.harden:
        raise WorkflowError("this config has no models under harden:; give one that has: --configfile FILE")
    return expand(CARD, name=plan.config.harden)


def write_config(path):
    """Keep the config in force, --config overrides and all, for commands that take a config and for the record."""
    values = plan.config.model_dump(mode="json", exclude_unset=True)
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    if not Path(path).is_file() or Path(path).read_text(encoding="utf-8") != text:
        write_text(Path(path), text)


# --- files -----------------------------------------------------------------------------------------------------------


def below_data(path):
    """A file that the config names, below the data folder if it is not absolute."""
    return str(data_file(path, data_dir(plan.config.data_dir)))


def own_files(wildcards):
    """What a user's own model is made of: weights and, where it is a file, the factory's code."""
    if wildcards.dataset != HARDEN:
        return {}
    entry = plan.hardened(wildcards.model)
    place = entry.factory.rpartition(":")[0]
    return {"weights": below_data(entry.weights)} | ({"factory": place} if place.endswith(".py") else {})


def shards(wildcards):
    """Shards of a surrogate set."""
    return plan.shards(wildcards.dataset, wildcards.model, wildcards.source, int(wildcards.seed))


def base_data(wildcards):
    """The surrogate set that an augmented one is made of."""
    base = plan.config.sources[wildcards.source].base
    return DATA.format(**(dict(wildcards.items()) | {"source": base}))


def vgg16_file(wildcards):
    """Weights of VGG16, where features of it are compared."""
    options = plan.diversity(wildcards.dataset, wildcards.model)
    return below_data(Path(options.vgg16)) if "vgg16" in (options.features, options.bin_features) else []


def attacked(wildcards):
    """The checkpoint to attack: the teacher itself where nothing was trained."""
    return (TEACHER if wildcards.recipe == NONE else STUDENT).format(**wildcards)


def evaluation_file(wildcards):
    """A user's own evaluation set."""
    return below_data(plan.hardened(wildcards.model).evaluation.file) if wildcards.dataset == HARDEN else []


cells_of = functools.cache(plan.cells)  # a table's input and its content ask


def ledgers(cells):
    """The ledgers that cells are read from, each once."""
    return sorted({cell.ledger for cell in cells})


# --- options of a job: where it runs, what it does -------------------------------------------------------------------

OUTPUT = {
    **{"teacher": TEACHER, "synthesis": SHARD, "generation": DATA, "augmentation": DATA, "public": DATA},
    **{"diversity": DIVERSITY},
    **{"training": STUDENT, "cotraining": STUDENT, "attack": LEDGER},
}


def job_options(stage, wildcards):
    """The options of one job. Refuses names that are each known but do not belong together, as in another threat."""
    return options_of(stage, *wildcards.items())


@functools.cache  # five params and resources of a job ask
def options_of(stage, *named):
    fields = dict(named)
    w = SimpleNamespace(**fields)
    names = {name: value for name, value in fields.items() if name != "run"}
    path = OUTPUT[stage].format(**fields)
    threats = {NONE: ""} | plan.threats.get((w.dataset, w.model), {})
    trained = fields.get("train_threat", NONE)
    known = {trained, fields.get("threat", NONE)} <= set(threats)
    known &= (trained == NONE) == (fields.get("recipe", NONE) == NONE)
    if w.model not in plan.models(w.dataset) or not known or path != plan.path(OUTPUT[stage], **names):
        raise WorkflowError(f"{path}: {w.dataset} has no such model or threat in {CONFIG}")
    if stage == "teacher":
        return plan.options(stage, w.dataset, w.model)
    if stage == "synthesis":
        return plan.synthesis(w.dataset, w.model, w.source, int(w.seed))
    if stage == "generation":
        return plan.generation(w.dataset, w.model, w.source, int(w.seed))
    if stage == "augmentation":
        return plan.augmentation(w.dataset, w.model, w.source, int(w.seed))
    if stage == "public":
        return plan.public(w.dataset, w.model, w.source, int(w.seed))
    if stage == "diversity":
        return plan.diversity(w.dataset, w.model)
    if stage in ("training", "cotraining"):
        return plan.training(w.dataset, w.model, w.recipe, int(w.seed), threats[w.train_threat])
    return plan.attack(w.dataset, w.model, w.protocol, int(w.seed), threats[w.threat])


def cores(stage):
    return lambda wildcards: job_options(stage, wildcards).threads


def gpus(stage):
    """One GPU where the job will use CUDA: otherwise a limit on GPUs would run CPU jobs one by one."""

    def of(wildcards):
        device = job_options(stage, wildcards).device
        if device == "auto" and workflow.local_exec:  # a cluster's machines are unknown: ask for a GPU
            return 1 if cuda_devices() else 0
        return 0 if device == "cpu" else 1

    return of


def minutes(stage):
    if stage in RESUMING_MINUTES:
        return RESUMING_MINUTES[stage]
    return lambda wildcards, attempt: STARTING_OVER_MINUTES[stage] * attempt


def memory(stage):
    return lambda wildcards, attempt: MEMORY_MB[stage] * min(attempt, 4)


# --- params: words of the command and reasons to run again -----------------------------------------------------------


def program(wildcards, threads):
    return f"{PYTHON} -m dfshield"


def data_words(wildcards, threads):
    return f"--data-dir {shlex.quote(str(plan.config.data_dir))}" if plan.config.data_dir else ""


def flags(stage):
    """Every option that is not the default, as flags, with the threads that Snakemake granted."""
    return lambda wildcards, threads: shlex.join(
        as_flags(job_options(stage, wildcards).model_copy(update={"threads": threads}))
    )


def options(stage):
    """Every option by value: a job is repeated when one changes, be it by its default. Where it runs is no reason."""
    apart = set(StageOptions.model_fields) - {"seed"}
    return lambda wildcards: canonical_json(job_options(stage, wildcards).model_dump(mode="json", exclude=apart))


@functools.cache
def code_digest(stage, *chosen):
    entries = [getattr(registry, table).get(name) for table, name in chosen]
    return provenance.stage_digest(stage, *filter(None, entries))


def code(stage):
    """Digest of the stage's code with the network, data set, loss… that the job uses."""

    def of(wildcards):
        chosen = [("MODELS", wildcards.model)]
        if stage in ("teacher", "export", "diversity", "attack"):
            chosen.append(("DATASETS", wildcards.dataset))
        if stage == "synthesis":
            chosen.append(("OBJECTIVES", job_options(stage, wildcards).objective))
            chosen.append(("COEFFICIENTS", job_options(stage, wildcards).coefficients))
        if stage == "public":
            chosen.append(("DATASETS", job_options(stage, wildcards).dataset))
        if stage == "generation":
            chosen.append(("GENERATED", job_options(stage, wildcards).method))
        if stage == "augmentation":
            chosen.append(("AUGMENTATIONS", job_options(stage, wildcards).augmentation))
        if stage == "training":
            chosen.append(("LOSSES", job_options(stage, wildcards).loss))
        if stage == "cotraining":
            chosen.append(("BASELINES", job_options(stage, wildcards).method))
        if stage == "attack":
            chosen.append(("ATTACKS", job_options(stage, wildcards).attack))
        return code_digest(stage, *chosen)

    return of


def model_words(wildcards):
    """What the teacher stage is to make: a registered model, or the user's own."""
    words = ["--dataset", wildcards.dataset, "--model", wildcards.model]
    if wildcards.dataset == HARDEN:
        entry = plan.hardened(wildcards.model)
        words += ["--factory", entry.factory, "--arguments", canonical_json(entry.arguments)]
        words += ["--input-shape", *entry.input_shape, "--classes", entry.classes]
        words += ["--mean", *entry.mean, "--std", *entry.std]
    return shlex.join(map(str, words))


def weights_words(wildcards, input):
    return f"--weights {shlex.quote(input.weights)}" if wildcards.dataset == HARDEN else ""


def factory_words(wildcards):
    """A user's model is rebuilt by the user's code, which a checkpoint alone must never be able to run."""
    return f"--factory {shlex.quote(plan.hardened(wildcards.model).factory)}" if wildcards.dataset == HARDEN else ""


def vgg16_words(wildcards, input):
    return f"--vgg16 {shlex.quote(input.vgg16)}" if input.vgg16 else ""


def images_words(wildcards, input):
    if wildcards.dataset == HARDEN:
        return f"--evaluation {shlex.quote(input.images)}"
    return f"--dataset {wildcards.dataset}"


def subject(wildcards):
    """What is attacked, for the ledger."""
    fields = ("dataset", "model", "source", "recipe", "train_threat")
    return canonical_json({field: wildcards[field] for field in fields} | {"seed": int(wildcards.seed)})


# --- reports ---------------------------------------------------------------------------------------------------------


def table_content(table):
    """Digest of what a table shows, for the rerun decision: its cells, its layout and the paper's figures."""
    cells = [asdict(cell) for cell in cells_of(table)]
    spec = plan.tables[table]
    printed = [asdict(entry) for entry in published(spec.papers_number)]
    return digest(cells, spec.model_dump(mode="json"), printed, [] if spec.metrics else formulas(spec))


def measurements(wildcards):
    """Benchmark files of all that the methods of table 4 make."""
    return sorted({str(benchmark_of(path)) for work in plan.work for path in (*work.data, *work.student)})


def card_files(wildcards):
    """What a model card tells of: the student, its training data, and the ledgers of its evaluation."""
    entry, seed = plan.hardened(wildcards.name), plan.config.seeds[0]
    path = functools.partial(plan.path, dataset=HARDEN, model=wildcards.name, source=entry.source, seed=seed)
    cells = plan.harden_cells(wildcards.name)
    return {"student": path(STUDENT, recipe=entry.recipe), "data": path(DATA), "ledgers": ledgers(cells)}
