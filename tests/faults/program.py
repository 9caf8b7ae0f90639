"""The program under test: stages run in forks of this process, which has imported everything, and what became of them.

Importing PyTorch takes seconds, a fork takes milliseconds. What is done to a stage (a signal, a full disk, another
process beside it) is done to a process of its own.
"""

import contextlib
import importlib
import io
import os
import random
import shlex
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from dfshield import cli
from dfshield.core.errors import InputError
from dfshield.planning.commands import TOOLS
from dfshield.planning.stages import STAGES

FULL = os.environ.get("DFSHIELD_FAULTS") == "full"
"""Whether all faults are tried, or a few of each kind."""
SEED = int(os.environ.get("DFSHIELD_FAULTS_SEED", "0"))
LONGEST = 300.0
"""Seconds after which a stage hangs."""
ERROR = 70
"""Exit status of a fork that ended with a traceback."""


def tries(full: int, few: int) -> int:
    """How often a fault is tried."""
    return full if FULL else few


def chance(*key: object) -> random.Random:
    """Random numbers of one fault, the same at every run."""
    return random.Random(repr((SEED, *key)))


def warm() -> None:
    """Import all that stages import, so that forks need not; real data stay to be imported by each stage."""
    for target in (*(stage.run for stage in STAGES.values()), *(target for _, target in TOOLS.values())):
        importlib.import_module(target.partition(":")[0])
    for name in ("sklearn.datasets", "dfshield.data.digits", "dfshield.data.photographs", "torch._dynamo"):
        importlib.import_module(name)
    sys.modules.pop("dfshield.data", None)


class Ended(NamedTuple):
    """How a fork ended: exit status (negative: the signal that killed it) and what it said on standard error."""

    status: int
    said: list[str]

    @property
    def refused(self) -> bool:
        """Whether it ended with one line that says what is wrong, after progress at most."""
        return self.status == 2 and self.said[-1:] != [] and self.said[-1].startswith("dfshield ")

    @property
    def stopped(self) -> bool:
        """Whether a signal ended it: at once, or after a line."""
        return self.status < 0 or (self.status > 128 and "stopped by" in self.said[-1])


class Fork:
    """A function that runs in a process of its own, in `folder`; what it says goes to a temporary file."""

    def __init__(self, folder: Path, work: Callable[[], object]) -> None:
        handle, name = tempfile.mkstemp(prefix="fault-", suffix=".err")
        os.close(handle)
        self.error = Path(name)
        self.pid = os.fork()
        if self.pid == 0:
            status = ERROR
            try:
                status = self._child(folder, work)
            finally:
                os._exit(status)

    def _child(self, folder: Path, work: Callable[[], object]) -> int:
        os.chdir(folder)
        with self.error.open("wb") as stream:
            os.dup2(stream.fileno(), 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.stdout, sys.stderr = (io.TextIOWrapper(os.fdopen(n, "wb", 0), write_through=True) for n in (1, 2))
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        try:
            work()
        except SystemExit as end:
            return int(end.code or 0)
        except BaseException:
            traceback.print_exc()
            return ERROR
        return 0

    def send(self, number: int) -> None:
        """Send a signal, if it still runs."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self) -> Ended:
        """Wait for its end; one that hangs is killed."""
        end = time.monotonic() + LONGEST
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > end:
                self.send(signal.SIGKILL)
            time.sleep(0.002)
        said = [line for line in self.error.read_text(errors="replace").splitlines() if line.strip()]
        self.error.unlink()
        return Ended(os.waitstatus_to_exitcode(status), said)


def start(folder: Path, words: str, before: Callable[[], object] | None = None) -> Fork:
    """Start a command of the program in `folder`, after `before`."""

    def work() -> None:
        if before:
            before()
        cli.main(shlex.split(words))

    return Fork(folder, work)


def run(folder: Path, words: str, before: Callable[[], object] | None = None) -> Ended:
    """Run a command of the program in `folder` to its end."""
    return start(folder, words, before).wait()


def value_of(folder: Path, read: Callable[[], Any]) -> str:
    """What `read` gives in a fork, as text; ``refused: …`` for an InputError, else ``lost: …`` and what ended it."""
    answer, end = os.pipe()

    def work() -> None:
        try:
            text = f"value: {read()}"
        except InputError as error:
            text = f"refused: {error}" if len(str(error).splitlines()) == 1 else f"lost: several lines: {error}"
        with os.fdopen(end, "w", encoding="utf-8", errors="replace") as stream:
            stream.write(text)

    fork = Fork(folder, work)
    os.close(end)
    with os.fdopen(answer, encoding="utf-8") as stream:
        text = stream.read()
    ended = fork.wait()
    return text if ended.status == 0 else f"lost: status {ended.status}: {' | '.join(ended.said[-3:])}"


def kept_state() -> None:
    """For use before a stage: let it leave its state behind, as if it were killed just before the end."""
    from dfshield.core import state

    class Kept:
        rmtree = staticmethod(lambda *given, **named: None)

    state.shutil = Kept  # type: ignore[assignment]


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by its relative path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def differences(found: dict[str, bytes], expected: dict[str, bytes]) -> str:
    """What is missing, additional or other; empty if nothing is."""
    names = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    kinds = {True: "is missing", False: "differs"}
    return ", ".join(f"{n} {kinds[n not in found] if n in expected else 'is left over'}" for n in names)
