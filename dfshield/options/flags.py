"""Options as command-line flags, and back: generated from the option classes, never written twice."""

import argparse
from types import UnionType
from typing import Annotated, Any, Literal, NoReturn, get_args, get_origin

from dfshield.options.common import StageOptions


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


def chosen_entry(words: list[str], options: type[StageOptions]) -> str | None:
    """The registry entry that the words of a command choose, None without one: its options are the ones to parse."""
    if options.entries is None:
        return None
    flag, found = flag_of(options.entries[0]), None
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == flag:
            found = following
        elif word.startswith(f"{flag}="):
            found = word.partition("=")[2]
    return found


def flag_of(name: str) -> str:
    """The flag of an option: ``attack_steps`` is ``--attack-steps``."""
    return f"--{name.replace('_', '-')}"


def add_options(parser: argparse.ArgumentParser, options: type[StageOptions]) -> None:
    """Add one flag per option; a value that was not given stays out of the namespace."""
    field = options.entries[0] if options.entries else ""
    group = parser.add_argument_group("settings, as a config has them")
    texts = options.help_texts()
    for name, entry in options.model_fields.items():
        annotation = _base(entry.annotation)
        default = "" if entry.default is None else f" (default: {_text(entry.default)})"
        settings: dict[str, Any] = {"help": f"{texts[name]}{default}".replace("%", "%%")}
        settings["default"] = argparse.SUPPRESS
        if annotation is bool:
            settings["action"] = argparse.BooleanOptionalAction
        elif get_origin(annotation) is tuple:
            settings |= {"nargs": "*", "metavar": name.upper()}
        else:
            choices = _choices(annotation) if get_origin(annotation) is not UnionType else None
            settings |= {"choices": choices} if choices else {"metavar": name.upper()}
            if name == field:  # the entries are listed below, each with what it is
                settings["metavar"] = name.upper()
        group.add_argument(flag_of(name), dest=f"option_{name}", **settings)
    if options.entries:
        parser.epilog = entries_text(options)


def entries_text(options: type[StageOptions]) -> str:
    """What may be chosen, one line an entry, and how to see an entry's own options."""
    assert options.entries is not None
    field, known = options.entries
    width = max(map(len, known)) + 2
    lines = [f"  {name:{width}}{entry.about or entry.title or ''}".rstrip() for name, entry in known.items()]
    own = [name for name, entry in known.items() if entry.options]
    more = [f"{flag_of(field)} NAME --help shows the options of NAME."] if own else []
    return "\n".join([f"{flag_of(field)} is one of:", *lines, *more])


def _text(value: Any) -> str:
    return (" ".join(map(str, value)) if isinstance(value, tuple) else str(value)) or "none"


def as_flags(options: StageOptions) -> list[str]:
    """The command-line words that give `options`; values that are the defaults are left out."""
    words = []
    chosen = options.entries[0] if options.entries else ""
    for name, field in type(options).model_fields.items():
        value = getattr(options, name)
        if value == field.default and name != chosen:  # the entry is always told: its class has it as the default
            continue
        flag = flag_of(name)
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, tuple):
            words += [flag, *map(str, value)]
        else:
            words += [flag, str(value)]
    return words


def given_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that the parsed arguments of a command give, by name."""
    return {k.removeprefix("option_"): v for k, v in vars(arguments).items() if k.startswith("option_")}
