"""The command line: one subcommand per stage and tool; options are generated from the stages' option classes.

Importing this module is cheap; a stage's own code is imported when it runs.
"""

import argparse
import importlib
import io
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dfshield import __version__
from dfshield.core.errors import InputError
from dfshield.core.files import refuse
from dfshield.core.progress import log
from dfshield.core.signals import Stopped, handled
from dfshield.core.validation import build
from dfshield.options import PROFILES
from dfshield.options.flags import Parser, add_options, chosen_entry, given_options
from dfshield.planning.choices import layer
from dfshield.planning.commands import ARGUMENTS, PROFILED, TOOL_OPTIONS, TOOLS
from dfshield.planning.stages import STAGES, options_of


def parser(words: Sequence[str] = ()) -> Parser:
    """The command line; the options of the command that `words` begin with are those of the entry that they choose."""
    top = Parser(prog="dfshield", description="Harden an image classifier against attack without its training data.")
    top.add_argument("--version", action="version", version=f"dfshield {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    summaries = {name: stage.about for name, stage in STAGES.items() if name in ARGUMENTS}
    summaries |= {name: about for name, (about, _) in TOOLS.items()}
    for name, summary in summaries.items():
        sub = commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for argument in ARGUMENTS[name]:
            argument.add(sub)
        if name in PROFILED:
            sub.add_argument(
                "--profile",
                help="defaults of the paper's text or of its released code (default: paper)",
                default="paper",
                choices=list(PROFILES),
            )
        options = STAGES[name].options if name in STAGES else TOOL_OPTIONS.get(name)
        if options and words and words[0] == name:
            add_options(sub, options.class_for(chosen_entry(list(words), options)))
    return top


def meant(arguments: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """The function that a command runs, ``package.module:function``, and what it is called with."""
    name = arguments.command
    values = {argument.parameter: getattr(arguments, argument.parameter) for argument in ARGUMENTS[name]}
    for argument in ARGUMENTS[name]:
        if argument.convert:
            values[argument.parameter] = argument.convert(values[argument.parameter])
    target = STAGES[name].run if name in STAGES else TOOLS[name][1]
    if name in STAGES and (options := STAGES[name].options):
        given = given_options(arguments)
        entry = str(given.get(options.entries[0], "")) if options.entries else ""
        entry = entry or (str(options.model_fields[options.entries[0]].default) if options.entries else "")
        profile = layer(PROFILES[getattr(arguments, "profile", "paper")].get(name, {}), name, entry)
        values["options"] = options_of(name, profile | given, "options")
    elif name in TOOL_OPTIONS:
        values["options"] = build(TOOL_OPTIONS[name], given_options(arguments), "options")
    return target, values


def _run(arguments: argparse.Namespace) -> Any:
    target, values = meant(arguments)
    module, _, function = target.partition(":")
    return getattr(importlib.import_module(module), function)(**values)


def _check_outputs(arguments: argparse.Namespace) -> None:
    """Refuse places that cannot be written to before hours of work, not after."""
    folders = {"state", "out"} if arguments.command in ("card", "harden") else {"state"}
    for name in ("out", "metrics", "images", "sheet", "state"):
        path: Path | None = getattr(arguments, name, None)
        if path is None:
            continue
        folder = path if name in folders else path.parent
        try:
            if name not in folders and path.is_dir():
                raise InputError(f"{path}: is a folder; give the path of a file to write")
            while not folder.exists() and folder != folder.parent:
                folder = folder.parent
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise InputError(f"{path}: cannot write there ({error.strerror}); choose another place") from None


def _guarded(arguments: argparse.Namespace) -> Any:
    """Run a command; what a disk refuses is the user's to mend wherever it happens."""
    try:
        _check_outputs(arguments)
        status = _run(arguments)
        sys.stdout.flush()
    except OSError as error:
        refuse(error, str(error.filename or "output"), "cannot be read or written")
        raise
    return status


def main(words: Sequence[str] | None = None) -> None:
    """Entry point; exits with status 2 and one line on standard error where the input is wrong."""
    for stream in (sys.stdout, sys.stderr):  # a locale without Greek letters has ε as \u03b5
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    given = list(sys.argv[1:] if words is None else words)
    arguments = parser(given).parse_args(given)
    try:
        with handled():
            status = _guarded(arguments)
    except InputError as error:
        log(f"dfshield {arguments.command}: {error}")
        sys.exit(2)
    except Stopped as stop:
        log(f"dfshield {arguments.command}: {stop}")
        sys.exit(stop.status)
    except KeyboardInterrupt:  # before there were handlers
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has gone, as in `dfshield inspect FILE | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    if arguments.command in TOOLS and isinstance(status, int):
        sys.exit(status)
