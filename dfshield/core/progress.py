"""Progress bars and log lines on standard error. That nobody can read them any more stops no work."""

import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm


class _Lines:
    """A stream that gives every state of a progress bar its own line, for logs."""

    def write(self, text: str) -> int:
        if text.strip():
            log(text.strip("\r\n"))
        return len(text)

    def flush(self) -> None:
        """Nothing to do: every line is written at once."""


def progress(total: int, label: str, unit: str = "it") -> "tqdm[Any]":
    """A progress bar with rate and time left on standard error; in a log file one line every half minute.

    What is over (or refused) within a second shows none.
    """
    from tqdm import tqdm

    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        desc=label,
        unit=unit,
        file=None if terminal else _Lines(),
        dynamic_ncols=terminal,
        ncols=None if terminal else 100,
        mininterval=0.5 if terminal else 30,
        delay=1,
        ascii=not terminal,
    )


def log(message: str) -> None:
    """One line for the person who watches (standard error, so that standard output stays for results)."""
    try:
        print(message, file=sys.stderr, flush=True)
    except OSError:  # `tee` was stopped, or its disk is full
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
