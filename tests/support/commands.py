"""What a plan lists and what Snakemake prints, in the same form."""

import argparse
import re
import shlex
from collections import Counter
from pathlib import Path

from dfshield.cli import parser
from dfshield.options.flags import given_options
from dfshield.planning.config import load_config
from dfshield.planning.jobs import Job, Jobs
from dfshield.planning.paths import IMAGES_DIVERSITY, Place
from dfshield.planning.plan import Plan
from dfshield.planning.stages import options_of

SHOWN = ("--snakefile", "Snakefile.shown")
"""Without the rules' messages, which Snakemake shows in place of inputs."""
RULES = {"card": "harden_model"}
"""Rules that have another name than their stage."""


def plan_of(folder: Path, config: str = "config/config.yaml") -> Plan:
    """The plan of a config of the workspace."""
    return Plan.of(load_config(folder / config))


def counted(plan: Plan, *targets: str) -> dict[str, int]:
    """Jobs by rule that targets need, as the plan lists them."""
    listed = Jobs(plan)
    for target in targets:
        listed.target(target)
    found = Counter(RULES.get(job.stage, job.stage) for job in listed.jobs.values())
    images = sum(job.stage == "diversity" and kept(job) for job in listed.jobs.values())
    return dict(found - Counter(diversity=images) + Counter(diversity_of_images=images))


def kept(job: Job) -> bool:
    """Whether a job looks at the images that co-training keeps."""
    return Place.parse(IMAGES_DIVERSITY, job.output) is not None


def printed(run) -> dict[str, tuple[list[str], set[str]]]:
    """By the log that it writes, every command that Snakemake shows: its words, and the inputs of its job."""
    found = {}
    for block in re.split(r"^(?:local)?rule ", run.stdout + run.stderr, flags=re.MULTILINE):
        command = re.search(r"^Shell command: (.+) 2>&1 \| tee (\S+)$", block, re.MULTILINE)
        if command:
            inputs = re.search(r"^    input: (.+)$", block, re.MULTILINE)
            found[command[2]] = shlex.split(command[1])[3:], set(inputs[1].split(", ")) if inputs else set()
    return found


def parsed(words: list[str]) -> argparse.Namespace:
    """The arguments of a command."""
    return parser(words).parse_args(words)


def options(words: list[str]):
    """The options of a command."""
    return options_of(words[0], given_options(parsed(words)), "options")
