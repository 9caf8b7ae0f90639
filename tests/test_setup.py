"""Files beside the program that must agree with it: versions, environments, the schema; and how fast it starts."""

import json
import re
import resource
import subprocess
import sys
import tomllib

import jsonschema
import pytest
import yaml
from support.snakemake import ROOT, environment

from dfshield.planning.schema import schema_text

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SCHEMA = ROOT / "workflow/schemas/config.schema.json"


def pins(lines) -> dict[str, str]:
    """Versions by name from lines ``name==version``."""
    pairs = (line.split("==") for line in lines if not line.startswith("#"))
    return {name.strip().lower().replace("_", "-"): version.strip() for name, version in pairs}


def names(requirements) -> set[str]:
    """Names of requirements such as ``torch>=2.11``."""
    return {re.split(r"[<>=]", requirement)[0].lower() for requirement in requirements}


CONSTRAINTS = pins((ROOT / "constraints.txt").read_text().splitlines())


def test_everything_needed_is_pinned():
    needed = names(
        [*PROJECT["dependencies"], *(r for extra in PROJECT["optional-dependencies"].values() for r in extra)]
    )
    assert needed <= set(CONSTRAINTS)
    assert not [version for version in CONSTRAINTS.values() if not re.fullmatch(r"[\w.]+", version)]


def test_the_conda_environment_is_the_pinned_set():
    dependencies = yaml.safe_load((ROOT / "envs/dfshield.yaml").read_text())["dependencies"]
    packages = pins(dependencies[-1]["pip"])
    assert set(packages) == names(PROJECT["dependencies"]) - {"snakemake", "pygments"}
    assert packages.items() <= CONSTRAINTS.items()


def test_schema_is_in_step():
    assert SCHEMA.read_text() == schema_text(), f"write it again: dfshield schema > {SCHEMA.relative_to(ROOT)}"


@pytest.mark.parametrize("name", ["config", "paper"])
def test_configs_fit_the_schema(name):
    jsonschema.validate(yaml.safe_load((ROOT / f"config/{name}.yaml").read_text()), json.loads(SCHEMA.read_text()))


@pytest.mark.parametrize(
    "wrong",
    [
        {"train": {"epoch": 1}},
        {"sources": {"dss": {"synthesize": "inversion", "image": 100}}},
        {"recipes": {"mine": {"train": "none-such"}}},
        {"datasets": {"digits": {"models": ["cnn-s"], "threat": "linf:0.1", "by_source": {"dss": {"rol": 1}}}}},
        {"datasets": {"digits": {"models": ["cnn-s"], "threat": "linf:0.1", "by_recipe": {"std": {"tua": 1}}}}},
        {"datasets": {"digits": {"models": ["cnn-s"], "threat": "linf:0.1", "by_protocol": {"pgd10": {"limt": 1}}}}},
        {"datasets": {"digits": {"models": ["cnn-s"], "threat": "linf:0.1", "by_model": {"cnn-s": {"training": {}}}}}},
    ],
    ids=["stage", "source", "recipe", "by_source", "by_recipe", "by_protocol", "by_model"],
)
def test_schema_knows_the_options_of_every_stage(wrong):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"name": "x", **wrong}, json.loads(SCHEMA.read_text()))


def test_the_command_line_starts_fast():
    def seconds() -> float:  # of processor time, which other work on the machine hardly changes
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "dfshield", "--help"], env=environment(), check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(12)) < 0.5


def test_every_profile_entry_has_its_reason():
    for profile in (ROOT / "profiles").glob("*/profile.yaml"):
        for block in profile.read_text().split("\n\n"):
            assert block.startswith("#"), f"{profile}: no comment above {block!r}"
