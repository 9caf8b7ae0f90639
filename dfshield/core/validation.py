"""Checks of option classes with messages of one line: what is wrong, where, what is allowed."""

import difflib
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from dfshield.core.errors import InputError


class Options(BaseModel):
    """Base of all option classes: unknown keys, NaN and infinities are refused, instances do not change."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        defer_build=True,  # validators at their first use: a command needs few of the classes
    )


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
