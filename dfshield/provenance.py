"""Digests of the code that a result depends on, so that an edit reruns what it changes and nothing else.

A digest covers the definitions reachable from a stage's entry points: their syntax trees without docstrings and
comments. Registries and option classes are left out (a chosen entry counts as an entry point, an option by its
value), so adding a loss or an option reruns nothing.
"""

import ast
import functools
import hashlib
from pathlib import Path

from dfshield import registry

PACKAGE = "dfshield"
LEFT_OUT = {"dfshield.registry", "dfshield.config", "dfshield.runtime", "dfshield.provenance"}

ENTRY_POINTS = {
    "teacher": ("dfshield.models.teacher:run",),
    "synthesis": ("dfshield.synthesis.inversion:run",),
    "export": ("dfshield.data.export:export",),
    "merge": ("dfshield.shards:merge",),
    "training": ("dfshield.training.trainer:run",),
    "attack": ("dfshield.attacks.evaluate:run",),
    "table": ("dfshield.report.tables:build", "dfshield.report.render:markdown", "dfshield.report.render:latex"),
    "card": ("dfshield.report.card:run",),
}
"""Where each stage's code starts."""


def stage_digest(stage: str, *chosen: registry.Entry) -> str:
    """SHA-256 (first 16 hex digits) of the code of a stage together with the registry entries chosen for it."""
    roots = [*ENTRY_POINTS[stage], *(entry.target for entry in chosen)]
    seen: dict[str, str] = {}
    todo = list(roots)
    while todo:
        target = todo.pop()
        if target in seen:
            continue
        module, _, name = target.partition(":")
        node = _definitions(module).get(name)
        if node is None:
            continue
        seen[target] = ast.dump(_without_docstrings(node))
        todo += _references(module, node)
    text = "\n".join(f"{target} {seen[target]}" for target in sorted(seen))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _file(module: str) -> Path | None:
    """The file of a module of this package, found without importing anything; None if there is no such module."""
    place = Path(__file__).parent.joinpath(*module.split(".")[1:])
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)


@functools.cache
def _tree(module: str) -> ast.Module:
    file = _file(module)
    if file is None:
        raise ModuleNotFoundError(module)
    return ast.parse(file.read_text(encoding="utf-8"))


@functools.cache
def _definitions(module: str) -> dict[str, ast.stmt]:
    found: dict[str, ast.stmt] = {}
    for node in _tree(module).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found.update({target.id: node for target in targets if isinstance(target, ast.Name)})
    return found


def _imports(tree: ast.AST) -> dict[str, str]:
    """Local name to ``module`` or ``module:name`` for what is imported from this package."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == PACKAGE:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found[alias.asname or alias.name] = whole if _file(whole) else f"{node.module}:{alias.name}"
    return found


@functools.cache
def _module_imports(module: str) -> dict[str, str]:
    return _imports(_tree(module))


def _references(module: str, node: ast.AST) -> list[str]:
    imported = _module_imports(module)
    local = _definitions(module)
    found = []
    for child in ast.walk(node):
        if isinstance(child, ast.Name):
            target = f"{module}:{child.id}" if child.id in local else imported.get(child.id, "")
        elif isinstance(child, ast.Attribute) and isinstance(child.value, ast.Name):
            base = imported.get(child.value.id, "")
            target = f"{base}:{child.attr}" if base and ":" not in base else ""
        else:
            continue
        if ":" in target and target.partition(":")[0] not in LEFT_OUT:
            found.append(target)
    return found


class _Strip(ast.NodeTransformer):
    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str) else node


def _without_docstrings(node: ast.AST) -> ast.AST:
    import copy

    return _Strip().visit(copy.deepcopy(node))
