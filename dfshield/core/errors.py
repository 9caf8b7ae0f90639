"""The two exceptions of the program."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


class InputError(Exception):
    """Something the user gave is wrong. The message is one line: what, where, what is allowed, how to mend it.

    The command line prints it and exits with status 2.
    """


class Diverged(Exception):
    """A training cannot go on; the message says why and where. What was whole before is its result, marked so."""
