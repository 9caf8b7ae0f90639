"""The guard of data-free stages: while one runs, the code that opens real data can neither be imported nor called."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

Given = ParamSpec("Given")
Result = TypeVar("Result")

_running: list[str] = []
"""Data-free stages that run in this process, the outermost first."""


def data_free(stage: str) -> Callable[[Callable[Given, Result]], Callable[Given, Result]]:
    """Mark the function that runs a stage as data-free: whatever opens real data raises RuntimeError until it ends."""

    def guarded(run: Callable[Given, Result]) -> Callable[Given, Result]:
        @functools.wraps(run)
        def running(*given: Given.args, **named: Given.kwargs) -> Result:
            _running.append(stage)
            try:
                return run(*given, **named)
            finally:
                _running.pop()

        return running

    return guarded


def check_real_data_allowed() -> None:
    """Raise RuntimeError in a data-free stage; called where `dfshield.data` is imported and where it opens a set."""
    if _running:
        raise RuntimeError(f"{_running[-1]} is data-free: it must not open real data (dfshield.data)")
