# What only Snakemake needs. Paths, options, cells and jobs come from dfshield.planning.
# Rerun trick: Snakemake ignores a param for `rerun-triggers: params` when its function takes `threads` or `input` (held
# by `test_a_second_run_has_nothing_to_do`). We use this for settings that do not change results: interpreter, data
# folder, thread count, device.
import re
import shlex
import sys
from pathlib import Path

from snakemake.settings.types import DeploymentMethod

from dfshield import forkserver
from dfshield.core.device import cuda_devices
from dfshield.core.hashing import canonical_json
from dfshield.options.flags import as_flags
from dfshield.planning import queue
from dfshield.planning.companions import checked_ledgers, checks_others, others
from dfshield.planning.inputs import below_data, own_model, sha256_of
from dfshield.planning.jobs import CARD, PAGE, TABLE, default_tables
from dfshield.planning.paths import CERTIFICATES, CHECKS, DATA, DEFENCE, DETECTION, DIVERSITY, HARDEN, IMAGES
from dfshield.planning.paths import IMAGES_DIVERSITY, LEDGER, METRICS, NONE, RESULTS, SHARD, STUDENT, TEACHER, Place
from dfshield.planning.paths import LANDSCAPE, benchmark_of, log_of
from dfshield.planning.provenance import job_digest
from dfshield.planning.stages import STAGES
from dfshield.report.content import all_checks, card_files, evidence, measurements, page_content, table_content, timings

STATE = f"{RESULTS}/.state"
CONFIG = frozen.folder_of(plan.config.name) / frozen.CONFIG
COST = f"{RESULTS}/cost.csv"
CHECKLIST = f"{RESULTS}/robustness-checks.csv"
PARTITION = workflow.resource_settings._parsed_default_resources.get("slurm_partition").raw
FEWEST_FORKS = 8  # jobs that save more than a server of forks takes to start
IN_CONDA = DeploymentMethod.CONDA in workflow.deployment_settings.deployment_method
PYTHON = "python" if IN_CONDA else shlex.quote(sys.executable)


def one_of(names):
    """Regular expression of a closed vocabulary; an empty one matches nothing."""
    return "|".join(map(re.escape, names)) or "(?!)"


def default_results():
    """Table 4, or what there is of it: the config's other tables, or its own models."""
    return expand(TABLE, table=default_tables(plan)) or expand(CARD, name=plan.config.harden)


def hardened(wildcards):
    """Model cards of all entries under harden:."""
    if not plan.config.harden:
        raise WorkflowError("this config has no models under harden:; give one that has: --configfile FILE")
    return expand(CARD, name=plan.config.harden)


def job_options(stage, wildcards):
    """The options of one job. Refuses names that are each known but do not belong together, as in another threat."""
    try:
        return plan.options(stage, Place.of(dict(wildcards.items())))
    except InputError as error:
        raise WorkflowError(f"{STAGES[stage].output.format(**wildcards)}: {error} ({CONFIG})")


def ask(stage):
    """Resources of a rule: one GPU where the job will use CUDA; memory and time, more where they were too little."""
    own = STAGES[stage]

    def gpu(wildcards):
        device = job_options(stage, wildcards).device if own.gpu else "cpu"
        if device == "auto" and workflow.local_exec:  # a cluster's machines are unknown: ask for a GPU
            return 1 if cuda_devices() else 0
        return 0 if device == "cpu" else 1

    def logs(rulename, wildcards):
        return queue.job_folder(getattr(workflow.executor_settings, "logdir", None), rulename, wildcards)

    def memory(wildcards, rulename):
        return queue.memory_mb(own.memory_mb, logs(rulename, wildcards), PARTITION)

    def minutes(wildcards, rulename):
        return queue.minutes(own.minutes, logs(rulename, wildcards))

    # A job that resumes goes on in as much time again.
    return {"gpu": gpu, "mem_mb": memory, "runtime": own.minutes if own.resumes else minutes}


def cores(stage):
    return lambda wildcards: job_options(stage, wildcards).threads


def common(stage):
    """Params of a rule: the program, its flags, and the reasons to run again: options by value, digest of the code."""

    def flags(wildcards, threads):
        return shlex.join(as_flags(job_options(stage, wildcards).model_copy(update={"threads": threads})))

    def options(wildcards):
        own = job_options(stage, wildcards)
        return canonical_json({"seed": own.seed} | own.described())

    def code(wildcards):
        return code_of(stage, wildcards)

    optional = {"flags": flags, "options": options} if STAGES[stage].options else {}
    return {"dfshield": lambda wildcards, threads: f"{PYTHON} -m dfshield", "data": data_flags, "code": code} | optional


def code_of(stage, wildcards):
    """Digest of the code of one job."""
    place = Place.of(dict(wildcards.items())) if STAGES[stage].output else None
    defence = plan.defence(place.defence) if stage in ("attack", "checks") else None
    return job_digest(stage, place, job_options(stage, wildcards) if STAGES[stage].options else None, defence)


def data_flags(wildcards, threads):
    return f"--data-dir {shlex.quote(str(plan.config.data_dir))}" if plan.config.data_dir else ""


def factory_flags(wildcards, threads):
    """A user's model is rebuilt by the user's code, which a checkpoint alone must never be able to run."""
    factory = plan.subject(wildcards.dataset, wildcards.model).factory
    return f"--factory {shlex.quote(factory)}" if factory else ""
