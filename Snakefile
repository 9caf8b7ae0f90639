# Table of contents: the config in force, the rules by stage, what can be asked for.
#
#   snakemake --cores all results/table4.csv                        one table (default: the digits demo)
#   snakemake tables --cores all --configfile config/paper.yaml     every table that a config has cells in; or figures
#   snakemake harden --cores all --configfile mine.yaml             your own models
import sys
from pathlib import Path

from snakemake.utils import min_version

min_version("9.25")

from dfshield.core.errors import InputError
from dfshield.planning import frozen
from dfshield.planning.config import load_configs
from dfshield.planning.jobs import checked_plan

# Exactly one config is in force: Snakemake would merge --configfile onto this one, and its data sets would survive.
if not workflow.overwrite_configfiles:

    configfile: "config/config.yaml" if Path("config/config.yaml").exists() else f"{workflow.basedir}/config/config.yaml"


config_files = list(map(Path, workflow.overwrite_configfiles or workflow.configfiles))
home, main = Path(workflow.basedir), workflow.is_main_process
try:
    settings, texts = frozen.in_force(lambda: load_configs(config, config_files, home), main)
    plan = checked_plan(settings, config_files, home, sys.argv[1:] if main else None)  # Snakemake knows them later
except InputError as error:
    sys.exit(f"snakemake: {error}")


envvars:
    frozen.RUN,


include: "workflow/rules/common.smk"
include: "workflow/rules/run.smk"
include: "workflow/rules/signals.smk"
include: "workflow/rules/inputs.smk"


# Before the rules: Snakemake does not apply later ones to benchmark files.
wildcard_constraints:
    **{field: one_of(names) for field, names in plan.vocabulary.items()},


include: "workflow/rules/teacher.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/training.smk"
include: "workflow/rules/evaluation.smk"
include: "workflow/rules/report.smk"


localrules:
    all,
    tables,
    figures,
    harden,


rule all:
    default_target: True
    input:
        default_results(),


rule tables:
    input:
        expand(TABLE, table=plan.own_tables),


rule figures:
    input:
        expand(FIGURE, figure=plan.own_figures),


rule harden:
    input:
        hardened,
