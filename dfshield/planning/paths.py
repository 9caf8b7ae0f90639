"""The path grammar: where every file of a run lies, and what its path says."""

import re
from pathlib import Path

RESULTS = "results"
HARDEN = "harden"
NONE = "none"

TEACHER = RESULTS + "/{run}/{dataset}/{model}/teacher.safetensors"
SOURCE = RESULTS + "/{run}/{dataset}/{model}/{source}/seed-{seed}"
SHARD = SOURCE + "/shard-{shard}.h5"
DATA = SOURCE + "/data.h5"
DIVERSITY = SOURCE + "/diversity@{split}.json"
TRAINED = RESULTS + "/{run}/{dataset}/{model}/{source}/{recipe}/{train_threat}/seed-{seed}"
STUDENT = TRAINED + "/student.safetensors"
METRICS = TRAINED + "/metrics.csv"
LEDGER = TRAINED + "/eval/{defence}/{protocol}@{threat}/ledger.h5"
"""The path grammar; Snakemake's wildcards and these fields are the same names."""


def log_of(output: str) -> Path:
    """Log of the job that makes `output`."""
    return Path("logs", *Path(output).with_suffix(".log").parts[1:])


def benchmark_of(output: str) -> Path:
    """Time and memory of the job that makes `output`, as Snakemake measures them, beside its log."""
    return log_of(output).with_suffix(".benchmark.tsv")


def place_of(template: str, path: str) -> dict[str, str]:
    """The fields of a path of the grammar, by its template; empty if it is no such path."""
    pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/@]+)", re.escape(template))
    match = re.fullmatch(pattern, path)
    return match.groupdict() if match else {}


def recipe_name(base: str, overrides: dict[str, float]) -> str:
    """Canonical name of a swept recipe: ``recipe_name("dfshield", {"tau": 0.3})`` is ``dfshield.tau-0.3``."""
    return ".".join([base, *(f"{key}-{value:g}" for key, value in overrides.items())])
