# One run, one config: what holds a run's folder, and what is made again because it is of another config.
import functools

from snakemake.io import IOFile

AS_MODULE = not workflow.modifier.is_main_snakefile()

if workflow.modifier.path_modifier.replace_prefix(TEACHER) != TEACHER:
    sys.exit("snakemake: as a module this workflow takes no prefix: and no replace_prefix:; its config names the run")


if workflow.is_main_process and not CONFIG.exists():
    frozen.keep(CONFIG.parent, texts)  # so that commands printed by a first dry run work by hand


@functools.cache
def begin():
    """Hold the run's folder and keep the config in force there: for jobs, commands by hand, and the record."""
    try:
        return frozen.claim(CONFIG.parent, texts)
    except InputError as error:
        sys.exit(f"snakemake: {error}")


def current(stage, template):
    """Input function of a rule that adds no file. It has the output made again if that is of another config.

    Snakemake knows by its own records, in .snakemake. Where it has none, or one of another file, what the output says
    of itself decides.
    """

    def find(wildcards):
        path = template.format(**wildcards)
        if AS_MODULE and workflow.is_main_process and workflow.executor_plugin and not workflow.dryrun:
            begin()  # Snakemake calls onstart of the main Snakefile only
        if workflow.is_main_process and Path(path).is_file():
            record = workflow.persistence.metadata(IOFile(path))
            if record is None or record.endtime != Path(path).stat().st_mtime:
                why = remade(stage, wildcards, path)
                if why:
                    print(f"{path}: {why}; it is made again", file=sys.stderr)
                    workflow.dag.forcefiles.add(path)
        return []

    return find


def remade(stage, wildcards, path):
    """Why an output that Snakemake knows nothing about is made again; None where it is as this config has it."""
    if not STAGES[stage].output:  # tables and cards take no time
        return "Snakemake has no record of it"
    from dfshield.report.origin import outdated  # takes a while, and is hardly ever needed

    return outdated(plan, stage, Place.of(dict(wildcards.items())), Path(path), code_of(stage, wildcards))


def hardened_files(wildcards):
    """What a model card tells of. Its folder is taken by the first run that makes it, since no path names the run."""
    try:
        frozen.own(Path(CARD.format(**wildcards)).parent, plan.config.name, write=not workflow.dryrun)
    except InputError as error:
        sys.exit(f"snakemake: {error}")
    return card_files(plan, wildcards.name)


onstart:
    begin()  # not by a dry run, which may be of another config than the run in progress
    if workflow.local_exec:
        # In conda jobs have another interpreter.
        if not IN_CONDA and len(list(workflow.dag.needrun_jobs())) >= FEWEST_FORKS:
            forkserver.start()
        # The limit on starts per second is for queues. While jobs wait, Snakemake looks for ready ones again after each
        # look and after each job, so that its own looking takes a whole core once some hundred jobs have ended.
        workflow.scheduler.job_rate_limiter = None
