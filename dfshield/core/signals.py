"""How a job ends when it is asked to: after the piece in progress where that is short, else at once.

A queue that preempts or cancels a job sends SIGTERM or SIGUSR1 and kills the job some time later. Work comes in pieces
(an epoch, a group of batches, an attack on a chunk), and a finished piece is kept, so that the same command goes on
there. A piece that is soon over is waited for; nothing of it is lost then. SIGINT (Ctrl-C) and a second signal end a
job at once.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import CodeType, FrameType

GRACE = 20.0
"""Seconds that the piece in progress has: SLURM kills 30 s (KillWait) after it asks, and state is yet to be written."""
AGAIN = 5.0
"""Seconds until a stop is raised once more: Python drops what is raised while it destroys an object."""
ASKED = (signal.SIGTERM, signal.SIGUSR1)
NEVER_INSIDE: set[CodeType] = set()
"""Functions that C code calls and through which no exception may pass."""


class Stopped(BaseException):
    """The job ends because of a signal; the message is the line to print, `status` the exit status, 128 + signal."""

    def __init__(self, number: int, goes_on: str) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; the same command {goes_on}")
        self.status = 128 + number


class _Job:
    """What is known of the job of this process.

    The first signal, what is kept (empty: no piece is in progress), and whether a stop was raised.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self.kept = ""
        self.raised = False

    def stop(self, number: int) -> Stopped:
        return Stopped(number, self.kept or "begins anew")

    def handle(self, number: int, frame: FrameType | None) -> None:
        first, self.asked = self.asked is None, self.asked or number
        if frame and frame.f_code in NEVER_INSIDE:
            signal.setitimer(signal.ITIMER_REAL, 0.01)
        elif number in ASKED and first and self.kept:
            signal.setitimer(signal.ITIMER_REAL, GRACE, AGAIN)
            note = f"{signal.Signals(number).name}: ends after the piece in progress, within {GRACE:.0f} s\n"
            with contextlib.suppress(OSError):  # print could not be called while it is interrupted
                os.write(2, note.encode())
        else:
            signal.setitimer(signal.ITIMER_REAL, AGAIN, AGAIN)
            self.raised = True
            raise self.stop(self.asked)


_job = _Job()


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Within it, signals raise Stopped as told above; other threads than the main one have no handlers in Python.

    C code that a stop passes through may make another error of it, such as that of a damaged file: it is a stop still.
    """
    global _job
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _job = _Job()
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # by nohup, or a shell that runs us in the background
    numbers = (*ASKED, signal.SIGALRM) if ignored else (*ASKED, signal.SIGALRM, signal.SIGINT)
    before = {number: signal.signal(number, _job.handle) for number in numbers}
    try:
        yield
    except Exception as error:
        if _job.raised:
            raise _job.stop(_job.asked or signal.SIGTERM) from error
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        _job = _Job()
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_if_asked(unit: str, done: int, total: int, kept: bool = True) -> None:
    """The border between two pieces: `done` of `total` pieces, called `unit`, are finished and, if `kept`, on disk.

    Raises Stopped if a signal has asked for it. From here on a signal waits for the next border, if pieces are kept.
    """
    _job.kept = "" if not kept else f"goes on after {unit} {done} of {total}" if done else "begins anew"
    if _job.asked is not None:
        raise _job.stop(_job.asked)
