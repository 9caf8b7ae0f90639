"""The two exceptions of the program, and other people's exceptions in one line."""

import traceback
from pathlib import Path


class InputError(Exception):
    """Something the user gave is wrong. The message is one line: what, where, what is allowed, how to mend it.

    The command line prints it and exits with status 2.
    """


class Diverged(Exception):
    """A training cannot go on; the message says why and where. What was whole before is its result, marked so."""


def describe(error: Exception) -> str:
    """What the user's code raised, in one line: type, text, and the last place that is neither PyTorch's nor ours."""
    frames = traceback.extract_tb(error.__traceback__)
    package = str(Path(__file__).parents[1])
    others = [f for f in frames if not f.filename.startswith(package) and "torch" not in Path(f.filename).parts]
    own = others or frames
    place = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}{place}"
