"""The graph of imports: it goes one way, and no file is too long or named like another."""

import ast
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from support.snakemake import ROOT

PACKAGE = ROOT / "dfshield"
FLOORS = (
    "core",
    "registry",
    "options",
    "models",
    "data",
    "sources",
    "attacks",
    "defences",
    "training",
    "baselines",
    "evaluation",
    "planning",
    "report",
    "tools",
    "api",
    "cli",
    "forkserver",
)
"""Folders from the ground up: a folder imports those before it."""
LONGEST = 400
LIGHT = ("registry", "options", "planning")
"""Folders that are read at every start of Snakemake: no PyTorch at import."""
SAME_SUBJECT = {
    *("__init__", "attack", "attacks", "defences", "losses", "baselines", "sources", "models", "teacher", "training"),
    *("diversity", "checks", "inversion", "generator", "tables", "metrics", "detectors", "quality", "privacy"),
    *("landscape", "toy"),
}
"""Names that several folders have because they are about one thing: its code, its options, its entries."""


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name below it."""
    return {
        path.relative_to(PACKAGE).with_suffix("").as_posix().removesuffix("/__init__"): path
        for path in PACKAGE.rglob("*.py")
        if path.parent != PACKAGE or path.name in ("cli.py", "forkserver.py")
    }


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, anywhere in it, as ``folder/module`` or ``folder``."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "dfshield":
            base = "/".join(node.module.split(".")[1:])
            for alias in node.names:
                whole = f"{base}/{alias.name}".strip("/")
                found.add(whole if whole in MODULES else base)
        elif isinstance(node, ast.Import):
            found |= {"/".join(a.name.split(".")[1:]) for a in node.names if a.name.startswith("dfshield.")}
    return {name for name in found if name}


MODULES = modules()
ARROWS = {name: imports(path) - {name} for name, path in MODULES.items()}


def floor(module: str) -> str:
    return module.partition("/")[0]


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Groups of nodes that reach one another (Tarjan), each of more than one."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in arrows.get(node, ()):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            group = []
            while not group or group[-1] != node:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for node in arrows:
        if node not in index:
            visit(node)
    return found


def test_every_folder_has_its_floor():
    assert {floor(name) for name in MODULES} == set(FLOORS)


def test_imports_go_one_way():
    upward = [
        f"{name} imports {other}"
        for name, others in sorted(ARROWS.items())
        for other in sorted(others)
        if FLOORS.index(floor(other)) > FLOORS.index(floor(name))
    ]
    assert not upward


def test_no_circle_of_files():
    assert circles(ARROWS) == []


def test_no_circle_of_folders():
    folders = defaultdict(set)
    for name, others in ARROWS.items():
        folders[floor(name)] |= {floor(other) for other in others} - {floor(name)}
    assert circles(dict(folders)) == []


def test_a_circle_would_be_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


@pytest.mark.parametrize("name", MODULES)
def test_no_module_is_too_long(name):
    lines = MODULES[name].read_text(encoding="utf-8").count("\n")
    assert lines <= LONGEST, f"{name} has {lines} lines"


def test_the_workflow_is_short():
    lines = {path.name: path.read_text().count("\n") for path in (ROOT / "workflow/rules").glob("*.smk")}
    assert lines["common.smk"] <= 120 and max(lines.values()) <= 260
    assert (ROOT / "Snakefile").read_text().count("\n") <= 80
    assert MODULES["cli"].read_text().count("\n") <= 220


def test_no_file_name_twice_for_different_things():
    names = Counter(name.rpartition("/")[2] for name in MODULES if not MODULES[name].name.startswith("__"))
    assert {name for name, count in names.items() if count > 1} <= SAME_SUBJECT


@pytest.mark.parametrize("folder", LIGHT)
def test_light_folders_import_no_pytorch(folder):
    for name, path in MODULES.items():
        if floor(name) != folder:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        at_start = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        for node in at_start:
            heads = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert not [head for head in heads if head.split(".")[0] in ("torch", "torchvision")], name
