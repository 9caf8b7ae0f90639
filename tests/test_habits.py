"""Files for those who join: CONTRIBUTING, make targets, hooks, the workflow of tests, issue forms, the changelog."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
FORMS = sorted(path for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
PINNED = [
    line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")
]


def parse(path: Path):
    """Content of a YAML file."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def make(*words: str) -> str:
    """Output of make, also inside of another make."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(["make", *words], cwd=ROOT, env=variables, capture_output=True, text=True, check=True).stdout


def commands(target: str) -> list[str]:
    """Commands of a make target, without the installation before them."""
    _, _, recipe = make("--dry-run", "--always-make", target).partition("touch .venv/.ok\n")
    return recipe.splitlines()


def hooks() -> dict[str, dict]:
    """Hooks of pre-commit by their id."""
    return {hook["id"]: hook for repo in parse(ROOT / ".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]}


def development() -> set[str]:
    """Names of the packages of the extra `dev`."""
    return {canonicalize_name(Requirement(line).name) for line in PYPROJECT["project"]["optional-dependencies"]["dev"]}


# Makefile


def test_help_lists_every_target():
    declared = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[1].split()
    listed = re.findall(r"^  make (\S+) +\S", make("help"), re.MULTILINE)
    defined = re.findall(r"^([a-z][\w-]*):(?! export)", MAKEFILE, re.MULTILINE)
    assert listed == defined
    assert sorted(listed) == sorted(declared)


@pytest.mark.parametrize(
    "check", ["ruff check", "ruff format --check", "snakefmt --check", "codespell", "mypy", "pytest"]
)
def test_make_test_has_every_check(check):
    found = [line for line in commands("test") if f"{line} ".startswith(f"{check} ")]
    assert len(found) == 1


def test_make_test_leaves_no_test_out():
    (tests,) = (line for line in commands("test") if line.startswith("pytest"))
    assert not re.search(r" -[mk]\b| --deselect| --ignore", tests)


def test_make_test_fast_leaves_slow_tests_out():
    (tests,) = (line for line in commands("test-fast") if line.startswith("pytest"))
    assert tests.endswith('-m "not slow"')
    assert any(marker.startswith("slow:") for marker in PYPROJECT["tool"]["pytest"]["ini_options"]["markers"])


def test_make_fix_mends_what_make_test_checks():
    checks = {line.replace(" --check", "") for line in commands("test") if line.startswith(("ruff", "snakefmt"))}
    assert {line.replace(" --fix", "") for line in commands("fix")} == checks


def test_make_schema_writes_the_tested_file():
    assert commands("schema") == ["dfshield schema > workflow/schemas/config.schema.json"]
    assert (ROOT / "workflow/schemas/config.schema.json").is_file()


# Hooks


def test_hooks_are_the_quick_checks():
    assert {" ".join(word for word in hook["entry"].split() if word[0] != "-") for hook in hooks().values()} == {
        "ruff check",
        "ruff format",
        "snakefmt",
        "codespell",
    }


def test_tools_of_hooks_are_pinned_development_tools():
    tools = {canonicalize_name(hook["entry"].split()[0]) for hook in hooks().values()} | {"pre-commit"}
    assert tools <= development()
    assert tools <= {canonicalize_name(name) for name in PINNED}


def test_hooks_fetch_nothing():
    config = parse(ROOT / ".pre-commit-config.yaml")
    assert [repo["repo"] for repo in config["repos"]] == ["local"]
    assert {hook["language"] for hook in hooks().values()} == {"system"}


def test_the_rules_hook_sees_all_rules_and_nothing_else():
    pattern = re.compile(hooks()["snakefmt"]["files"])
    rules = ["Snakefile", *(str(path.relative_to(ROOT)) for path in ROOT.glob("workflow/**/*.smk"))]
    assert len(rules) > 3
    assert all(pattern.search(name) for name in rules)
    assert not any(pattern.search(name) for name in ("tests/Snakefile", "Snakefile.md", "workflow/rules/common.py"))


def test_formatters_have_one_line_length():
    assert PYPROJECT["tool"]["snakefmt"]["line_length"] == PYPROJECT["tool"]["ruff"]["line-length"]


def test_pins_are_in_alphabetical_order():
    assert sorted(PINNED, key=str.lower) == PINNED


# Workflow of tests


def test_the_workflow_runs_make_test_on_pythons_of_the_project():
    job = parse(ROOT / ".github/workflows/test.yml")["jobs"]["test"]
    pythons, supported = job["strategy"]["matrix"]["python"], SpecifierSet(PYPROJECT["project"]["requires-python"])
    assert {"3.11", "3.12"} <= set(pythons)
    assert all(python in supported for python in pythons)
    setup = next(step["with"] for step in job["steps"] if step.get("uses", "").startswith("actions/setup-python@"))
    assert setup["python-version"] == "${{ matrix.python }}"
    assert setup["cache"] == "pip"
    assert all((ROOT / name).is_file() for name in setup["cache-dependency-path"].split())
    assert [step["run"] for step in job["steps"] if "run" in step] == ["make test PYTHON=python"]


def test_the_workflow_has_the_index_that_documents_name():
    index = parse(ROOT / ".github/workflows/test.yml")["jobs"]["test"]["env"]["PIP_EXTRA_INDEX_URL"]
    for document in ("README.md", "CONTRIBUTING.md"):
        assert f"PIP_EXTRA_INDEX_URL={index}" in (ROOT / document).read_text(encoding="utf-8")


# Issue forms


def fields(form: Path) -> dict[str, dict]:
    """Fields of a form by their id."""
    return {field["id"]: field for field in parse(form)["body"] if field["type"] != "markdown"}


def test_there_are_three_forms():
    assert [form.stem for form in FORMS] == ["bug", "feature", "robustness-claim"]
    assert isinstance(parse(ROOT / ".github/ISSUE_TEMPLATE/config.yml")["blank_issues_enabled"], bool)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.stem)
def test_a_form_is_one_that_github_takes(form):
    content = parse(form)
    assert content.keys() <= {"name", "description", "title", "labels", "body"}
    assert content["name"] and content["description"]
    assert {field["type"] for field in content["body"]} <= {"markdown", "input", "textarea", "dropdown", "checkboxes"}
    asked = [field for field in content["body"] if field["type"] != "markdown"]
    assert all(re.fullmatch(r"[\w-]+", field["id"]) for field in asked)
    assert len({field["id"] for field in asked}) == len(asked)
    assert len({field["attributes"]["label"] for field in asked}) == len(asked)
    assert all(isinstance(field["validations"]["required"], bool) for field in asked if "validations" in field)
    assert all(
        isinstance(text, str) for field in asked for key, text in field["attributes"].items() if key != "options"
    )


@pytest.mark.parametrize(
    ("field", "words"),
    {
        "model": "method",
        "weights": "SHA-256",
        "data": "split",
        "images": "n",
        "threat": "Norm and ε as a fraction",
        "protocol": "steps",
        "clean": "percent",
        "robust": "percent",
        "defence": "test time",
        "real-data": "training",
        "obstacles": "Random or non-differentiable",
        "adaptive": "Adaptive attack",
        "evidence": "ledger.h5",
        "verify": "dfshield verify",
    }.items(),
)
def test_a_robustness_figure_has_to_state(field, words):
    found = fields(ROOT / ".github/ISSUE_TEMPLATE/robustness-claim.yml")[field]
    assert found["validations"]["required"]
    assert re.search(rf"\b{re.escape(words)}\b", " ".join(found["attributes"].values()))


def test_commands_that_are_named_exist():
    texts = [CONTRIBUTING, *(form.read_text(encoding="utf-8") for form in FORMS)]
    named = {command for text in texts for command in re.findall(r"`dfshield (\w+)", text)}
    assert {"verify", "inspect", "doctor"} <= named
    usage = subprocess.run(
        [sys.executable, "-m", "dfshield", "--help"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert named <= set(re.findall(r"^    (\w+) ", usage, re.MULTILINE))


# CONTRIBUTING and the changelog


def test_contributing_explains_every_make_target():
    explained = re.findall(r"^\| `make ([\w-]+)` \|", CONTRIBUTING, re.MULTILINE)
    assert sorted([*explained, "help"]) == sorted(re.findall(r"^  make (\S+)", make("help"), re.MULTILINE))


def test_make_targets_that_are_named_exist():
    documents = [CONTRIBUTING, (ROOT / ".github/PULL_REQUEST_TEMPLATE.md").read_text(encoding="utf-8"), CHANGELOG]
    named = {target for text in documents for target in re.findall(r"(?:^|`)make ([\w-]+)", text, re.MULTILINE)}
    assert "test" in named
    assert named <= set(re.findall(r"^  make (\S+)", make("help"), re.MULTILINE))


@pytest.mark.parametrize("document", ["CONTRIBUTING.md", "CHANGELOG.md", ".github/PULL_REQUEST_TEMPLATE.md"])
def test_files_that_are_named_are_there(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    named = re.findall(r"`([\w./-]+\.(?:md|ya?ml|toml|txt|json|py))`", text)
    linked = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target]
    assert named
    missing = [name for name in [*named, *linked] if not (ROOT / name).exists()]
    assert not missing


@pytest.mark.parametrize(
    "section", ["Set-up", "Tests", "A new method", "Default values", "Names and prose", "Commits", "Licence"]
)
def test_contributing_has_the_section(section):
    _, found, rest = CONTRIBUTING.partition(f"\n## {section}\n")
    assert found and rest.partition("\n## ")[0].strip()


def test_the_changelog_keeps_its_form():
    releases = re.findall(r"^## (.+)$", CHANGELOG, re.MULTILINE)
    assert releases[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\]( - \d{4}-\d\d-\d\d)?", release) for release in releases[1:])
    order = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
    for release in re.split(r"^## .+$", CHANGELOG, flags=re.MULTILINE)[1:]:
        _, *parts = re.split(r"^### (.+)$", release, flags=re.MULTILINE)
        groups, contents = parts[::2], parts[1::2]
        assert groups == [group for group in order if group in groups]
        assert all(re.search(r"^- ", content, re.MULTILINE) for content in contents)


def test_the_changelog_has_the_version_of_the_project():
    version = PYPROJECT["project"]["version"]
    assert re.findall(r"^## \[(\d[\d.]*)\]", CHANGELOG, re.MULTILINE)[0] == version
    assert parse(ROOT / "CITATION.cff")["version"] == version
