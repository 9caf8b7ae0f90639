"""Checks of option classes with messages of one line: what is wrong, where, what is allowed."""

import ast
import difflib
import functools
import inspect
import sys
from itertools import pairwise
from typing import Any

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, ValidationError

from dfshield.core.errors import InputError


class Options(BaseModel):
    """Base of all option classes: unknown keys, NaN and infinities are refused, instances do not change."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        defer_build=True,  # validators at their first use: a command needs few of the classes
    )

    @classmethod
    def help_texts(cls) -> dict[str, str]:
        """The docstrings of the fields by name.

        They are read when help or the schema asks for them: pydantic's `use_attribute_docstrings` reads them at import,
        which takes a fifth of every command's start.
        """
        lines = [_docstrings(base.__module__).get(base.__name__, {}) for base in reversed(cls.__mro__)]
        found = {name: text for texts in lines for name, text in texts.items()}
        return {name: found.get(name, "") for name in cls.model_fields}

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema).get("properties", {})
        for name, text in cls.help_texts().items():
            properties[name]["description"] = text
        return schema


@functools.cache
def _docstrings(module: str) -> dict[str, dict[str, str]]:
    """The docstrings of fields by class and field, for the classes of a module."""
    source = sys.modules[module]
    if not getattr(source, "__file__", None):
        return {}
    classes = [node for node in ast.parse(inspect.getsource(source)).body if isinstance(node, ast.ClassDef)]
    return {
        node.name: {
            field.target.id: inspect.cleandoc(text.value.value)
            for field, text in pairwise(node.body)
            if isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
            and isinstance(text.value.value, str)
        }
        for node in classes
    }


def check_keys(overrides: dict[str, Any], options: type[Options], where: str) -> None:
    """Refuse keys that the stage does not have and values out of range, naming the nearest valid key."""
    for key in overrides:
        if key not in options.model_fields:
            near = difflib.get_close_matches(str(key), options.model_fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; allowed: {', '.join(options.model_fields)}"
            raise ValueError(f"{where}: unknown option {key!r}{hint}")
    try:
        options.model_validate(overrides)
    except ValidationError as error:
        first = error.errors()[0]
        if first["loc"]:  # a rule over several options may only hold once all layers are merged
            raise ValueError(f"{where}.{_explain(error)}") from None


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if not str(part).startswith("function-"))
    message = first["msg"].removeprefix("Value error, ")
    given = "" if first["type"] in ("missing", "value_error") else f" (given: {first['input']!r})"
    return f"{where}: {message}{given}" if where else message


def build(options: type[Options], values: dict[str, Any], where: str) -> Any:
    """`options(**values)`, with a one-line InputError that starts with `where` if they do not fit."""
    try:
        return options.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        message = _explain(error)
        if first["type"] == "extra_forbidden":
            parent = _field_names(options, first["loc"][:-1])
            near = difflib.get_close_matches(str(first["loc"][-1]), parent, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(parent)}"
            message = f"{'.'.join(str(p) for p in first['loc'])}: unknown key; {hint}"
        raise InputError(f"{where}: {message}") from None


def _field_names(options: type[Options], path: tuple[Any, ...]) -> list[str]:
    classes: list[type[Options]] = [options]
    for part in path:
        annotation = classes[-1].model_fields[part].annotation if part in classes[-1].model_fields else None
        nested = [a for a in getattr(annotation, "__args__", (annotation,)) if isinstance(a, type)]
        classes += [a for a in nested if issubclass(a, Options)]
    return list(classes[-1].model_fields)
