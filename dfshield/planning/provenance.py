"""Digests of the code that a result depends on, so that an edit reruns what it changes and nothing else.

A digest covers the definitions reachable from a stage's entry points: their syntax trees without docstrings and
comments. Registries and option classes are left out (a chosen entry counts as an entry point, an option by its
value), so adding a loss or an option reruns nothing. Facts that the chosen entries state count by value. Of
`dfshield.core` everything counts but error messages, files, kept state, signals and progress bars, and of
`dfshield.models` everything but the probe of strange networks, which refuses and says.
"""

import ast
import dataclasses
import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

from dfshield import registry
from dfshield.options import StageOptions
from dfshield.planning.paths import Place
from dfshield.planning.stages import STAGES

PACKAGE = "dfshield"
ROOT = Path(__file__).parent.parent
LEFT_OUT = (
    *("registry", "options", "core.errors", "core.files", "core.progress", "core.signals", "core.state"),
    *("models.passes", "models.probe"),
    *("planning.config", "planning.choices", "planning.stages", "planning.provenance"),
)
"""Parts of the package that decide about no result, or whose part in it counts by value."""
COSTS = {"passes", "generator_passes", "student_inputs", "network"}
NAMES = {
    *("target", "title", "about", "options", "pretrained", "files", "package", "family"),
    *("generator_loss", "student_loss"),
}
NO_FACTS = NAMES | COSTS
"""Fields of registry entries that decide about no result: names, where code and files are found, what it costs."""

_digests: dict[tuple[str, ...], str] = {}


def job_digest(stage: str, place: Place | None = None, *options: StageOptions | None) -> str:
    """Digest of the code of one job: its stage's, with the network, data set, loss, attack… that it uses.

    `options` are the job's own and those of a defence, if there is one. Digests of equal choices are made once.
    """
    own = STAGES[stage]
    chosen = [entry for values in options for entry in own.chosen(values)]
    if place is not None:
        found = [registry.MODELS.get(place.model), registry.DATASETS.get(place.dataset) if own.dataset else None]
        chosen += [entry for entry in found if entry is not None]
    key = stage, *(f"{entry.target} {id(entry)}" for entry in chosen)
    if key not in _digests:
        _digests[key] = stage_digest(stage, *chosen)
    return _digests[key]


def stage_digest(stage: str, *chosen: registry.Entry) -> str:
    """SHA-256 (first 16 hex digits) of the code of a stage together with the registry entries chosen for it."""
    own, todo = STAGES[stage], []
    for root in (*(own.code or (own.run,)), *(entry.target for entry in chosen)):
        target = _resolve(root)
        if not target:
            raise LookupError(f"{root}: there is no such code")
        todo.append(target)
    seen: dict[str, str] = {}
    while todo:
        target = todo.pop()
        if target not in seen:
            seen[target], references = _code(target)
            todo += references
    lines = [f"{target} {seen[target]}" for target in sorted(seen)]
    text = "\n".join(lines + [f"{entry.target} {facts}" for entry in chosen if (facts := _facts(entry))])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _facts(entry: registry.Entry) -> dict[str, object]:
    """What an entry states besides its code, as far as it is not the default: so a new kind of fact changes nothing."""
    fields = [field for field in dataclasses.fields(entry) if field.name not in NO_FACTS]
    return {f.name: getattr(entry, f.name) for f in fields if getattr(entry, f.name) not in (f.default, {})}


def _resolve(target: str) -> str | None:
    """Where ``module:name`` is defined, followed through re-exports; None for modules and code that does not count."""
    followed: set[str] = set()
    while ":" in target and target not in followed:
        followed.add(target)
        module, _, name = target.partition(":")
        left_out = module == PACKAGE or any(f"{module}.".startswith(f"{PACKAGE}.{part}.") for part in LEFT_OUT)
        if left_out or _file(module) is None:
            return None
        if name in _definitions(module):
            return target
        target = _imports(module).get(name, "")
    return None


@functools.cache
def _file(module: str) -> Path | None:
    """The file of a module of this package, found without importing anything; None if there is no such module."""
    package, *parts = module.split(".")
    if package != PACKAGE:
        return None
    place = ROOT.joinpath(*parts)
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)


@functools.cache
def _code(target: str) -> tuple[str, set[str]]:
    """Text of a definition's syntax trees, and the definitions that they mention: stages have most of it in common."""
    module, _, name = target.partition(":")
    nodes = _definitions(module)[name]
    mentioned = {found for node in nodes for found in _references(module, node)}
    return " ".join(ast.dump(node) for node in nodes), {place for found in mentioned if (place := _resolve(found))}


@functools.cache
def _tree(module: str) -> ast.Module:
    """Syntax tree of a module, without docstrings."""
    file = _file(module)
    if file is None:
        raise ModuleNotFoundError(module)
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        for field in ("body", "orelse", "finalbody"):
            block = getattr(node, field, None)
            if isinstance(block, list):  # of statements; a lambda's body is an expression
                block[:] = [statement for statement in block if not _is_text(statement)]
    return tree


def _is_text(statement: ast.stmt) -> bool:
    if not isinstance(statement, ast.Expr) or not isinstance(statement.value, ast.Constant):
        return False
    return isinstance(statement.value.value, str)


@functools.cache
def _definitions(module: str) -> dict[str, list[ast.stmt]]:
    """Statements at module level, those within ``if``, ``try`` and ``with`` too, by the names that they bind."""
    found: dict[str, list[ast.stmt]] = {}
    todo: list[ast.AST] = list(reversed(_tree(module).body))
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.setdefault(node.name, []).append(node)
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                for child in ast.walk(target):
                    if isinstance(child, ast.Name):
                        found.setdefault(child.id, []).append(node)
        else:
            inner = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt | ast.ExceptHandler)]
            todo += reversed(inner)
    return found


@functools.cache
def _imports(module: str) -> dict[str, str]:
    """Local name to ``module`` or ``module:name`` for what a module imports from this package, anywhere in it."""
    return _imports_in(module, ast.walk(_tree(module)))


def _imports_in(module: str, nodes: Iterable[ast.AST]) -> dict[str, str]:
    found: dict[str, str] = {}
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            base = _absolute(module, node)
            for alias in node.names if base.split(".")[0] == PACKAGE else ():
                whole = f"{base}.{alias.name}"
                found[alias.asname or alias.name] = whole if _file(whole) else f"{base}:{alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == PACKAGE:
                    found[alias.asname or PACKAGE] = alias.name if alias.asname else PACKAGE
    return found


def _absolute(module: str, node: ast.ImportFrom) -> str:
    """The module that an import names, relative ones resolved."""
    if not node.level:
        return node.module or ""
    file = _file(module)
    package = module.split(".") if file and file.name == "__init__.py" else module.split(".")[:-1]
    return ".".join([*package[: len(package) - node.level + 1], *([node.module] if node.module else [])])


def _references(module: str, node: ast.AST) -> list[str]:
    """What a definition mentions of this package: names, and attributes of its modules (``a.b.name``)."""
    children = list(ast.walk(node))
    imported, local = _imports(module) | _imports_in(module, children), _definitions(module)
    found = []
    for child in children:
        if isinstance(child, ast.Name):
            found.append(f"{module}:{child.id}" if child.id in local else imported.get(child.id, ""))
        elif isinstance(child, ast.Attribute):
            base = _module_of(child.value, imported)
            found.append(f"{base}:{child.attr}" if base else "")
    return [target for target in found if ":" in target]


def _module_of(node: ast.expr, imported: dict[str, str]) -> str:
    """The module of this package that an expression such as ``dfshield.sources`` stands for; empty for others."""
    if isinstance(node, ast.Name):
        found = imported.get(node.id, "")
    elif isinstance(node, ast.Attribute):
        base = _module_of(node.value, imported)
        found = f"{base}.{node.attr}" if base else ""
    else:
        return ""
    return found if ":" not in found and _file(found) else ""
