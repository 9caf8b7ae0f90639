"""Options of a stage as command-line flags, and back: generated from the option classes, never written twice."""

import argparse
from types import UnionType
from typing import Annotated, Any, Literal, NoReturn, get_args, get_origin

from dfshield.core.validation import build
from dfshield.options import PROFILES, STAGES, OfMethod, StageOptions


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and that never abbreviates options."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **settings})

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _choices(annotation: Any) -> list[str] | None:
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    return None


def _base(annotation: Any) -> Any:
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return annotation


def add_options(parser: argparse.ArgumentParser, options: type[StageOptions]) -> None:
    """Add one flag per option; a value that was not given stays out of the namespace."""
    group = parser.add_argument_group("options")
    for name, field in options.model_fields.items():
        flag, annotation = f"--{name.replace('_', '-')}", _base(field.annotation)
        default = "" if field.default is None else f" (default: {_text(field.default)}{_other_defaults(options, name)})"
        settings: dict[str, Any] = {"help": f"{field.description}{default}".replace("%", "%%")}
        settings["default"] = argparse.SUPPRESS
        if annotation is bool:
            settings["action"] = argparse.BooleanOptionalAction
        elif get_origin(annotation) is tuple:
            settings |= {"nargs": "*", "metavar": name.upper()}
        else:
            choices = _choices(annotation) if get_origin(annotation) is not UnionType else None
            settings |= {"choices": choices} if choices else {"metavar": name.upper()}
        group.add_argument(flag, dest=f"option_{name}", **settings)


def _text(value: Any) -> str:
    return (" ".join(map(str, value)) if isinstance(value, tuple) else str(value)) or "none"


def _other_defaults(options: type[StageOptions], name: str) -> str:
    """Defaults that depend on the method."""
    if not issubclass(options, OfMethod):
        return ""
    others = [f"{method} {_text(own[name])}" for method, own in options.by_method.items() if name in own]
    return f"; {', '.join(others)}" if others else ""


def as_flags(options: StageOptions) -> list[str]:
    """The command-line words that give `options`; values that are the defaults are left out."""
    words, defaults = [], options.defaults()
    for name in type(options).model_fields:
        value = getattr(options, name)
        if value == defaults[name]:
            continue
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, tuple):
            words += [flag, *map(str, value)]
        else:
            words += [flag, str(value)]
    return words


def given_options(stage: str, arguments: argparse.Namespace) -> Any:
    """The stage's options from parsed arguments, defaults from the chosen profile."""
    profile = PROFILES[getattr(arguments, "profile", "paper")].get(stage, {})
    given = {k.removeprefix("option_"): v for k, v in vars(arguments).items() if k.startswith("option_")}
    return build(STAGES[stage], profile | given, "options")
