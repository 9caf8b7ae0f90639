"""What every registry entry has."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

T = TypeVar("T")

RealData = Literal["none", "teacher", "train", "test", "public"]
"""What real data an artefact has seen since the teacher: nothing, the named split, or another data set (``public``);
``teacher`` marks the teacher itself, whose training is outside of the data-free claim."""


@dataclass(frozen=True)
class Entry:
    """A registered choice; ``target`` is ``package.module:function``."""

    target: str
    title: str = ""
    """The name that tables print."""
    about: str = field(default="", kw_only=True)
    """What it is, in one line, for help texts and docs."""
    options: str = field(default="", kw_only=True)
    """``package.module:Class`` of its options, a subclass of the stage's; empty: the stage's own class."""

    def load(self) -> Callable[..., Any]:
        """Import and return the function."""
        function: Callable[..., Any] = named(self.target)
        return function

    def options_class(self, default: type[T]) -> type[T]:
        """The class of its options; `default` is the stage's own."""
        found: type[T] = named(self.options) if self.options else default
        return found


def named(target: str) -> Any:
    """Import and return ``module:name``."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)
