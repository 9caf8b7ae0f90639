"""Jobs of one machine as forks of one process that has the libraries in memory: to import them takes seconds.

Snakemake starts `serve` when a run begins on this machine, and names the server's socket in `SOCKET`. Each
``python -m dfshield`` then lets a fork of the server do its work (`ask`), with its own working folder, environment,
standard streams and signals, and ends with the fork's exit status. Without a server it works itself. The server ends
with the process that started it. An empty `SOCKET` keeps Snakemake from starting one.

This module imports the standard library alone: it is what every job pays for.
"""

import atexit
import contextlib
import importlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

SOCKET = "DFSHIELD_FORKSERVER"
LIBRARIES = (
    "sklearn.datasets",
    "threadpoolctl",
    "dfshield.cli",
    "dfshield.attacks.autoattack",
    "dfshield.baselines.cotrain",
    "dfshield.evaluation.check",
    "dfshield.sources.inversion",
    "dfshield.training.train",
)
"""What the server imports; nothing of `dfshield.data`, which data-free stages refuse to have in memory."""
PASSED_ON = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
LONGEST_PATH = 107
"""Bytes of the longest path that a socket may have on Linux."""
KILLED = 128 + signal.SIGKILL
"""Exit status of a job whose fork ended without one."""


# --- a job ------------------------------------------------------------------------------------------------------------


def ask(words: list[str]) -> int | None:
    """Let the server of this run do the command `words`; its exit status, None where there is no server to ask."""
    path = os.environ.pop(SOCKET, "")
    if not path:
        return None
    before = {number: signal.getsignal(number) for number in PASSED_ON}
    ignored = [number for number, handler in before.items() if handler is signal.SIG_IGN]
    told = {"words": words, "folder": str(Path.cwd()), "environment": dict(os.environ), "ignored": ignored}
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.connect(path)
            socket.send_fds(server, [json.dumps(told).encode() + b"\n"], [0, 1, 2])
            return _follow(server, signal.SIGINT in ignored)
    except OSError:  # it has gone, or the job runs on another machine
        return None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _follow(server: socket.socket, background: bool) -> int | None:
    """Pass signals on to the fork until it has ended; None where the server makes none.

    In the `background`, of nohup or a shell, Ctrl-C is not meant for the job.
    """
    early: list[int] = []
    job = 0

    def pass_on(number: int, frame: Any) -> None:
        if job:
            with contextlib.suppress(ProcessLookupError):
                os.kill(job, number)
        else:
            early.append(number)

    for number in PASSED_ON:
        if not (background and number == signal.SIGINT):
            signal.signal(number, pass_on)
    with server.makefile() as answers:
        job = int(answers.readline() or 0)
        if not job:
            return None
        for signalled in early:
            pass_on(signalled, None)
        try:
            return int(answers.readline() or KILLED)
        except OSError:
            return KILLED


# --- the server -------------------------------------------------------------------------------------------------------


def start() -> subprocess.Popen[bytes] | None:
    """Start a server for the jobs of this process, and name it in the environment; it ends when this process does.

    None where one is named already, where there is no place for a socket, and on systems other than Linux, where to
    fork such a process is not safe.
    """
    if SOCKET in os.environ or sys.platform != "linux":
        return None
    try:
        path = Path(tempfile.mkdtemp(prefix="dfshield-"), "socket")
    except OSError:
        return None
    if len(os.fsencode(path)) > LONGEST_PATH:
        path.parent.rmdir()
        return None
    alone = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")  # a fork has one thread
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))  # here, or a job that is quicker than the server's start would find none
        listener.listen(64)
        number = listener.fileno()
        command = [sys.executable, "-m", "dfshield.forkserver", str(path), str(number)]
        made = subprocess.Popen(command, stdin=subprocess.PIPE, env=alone, pass_fds=(number,), start_new_session=True)
    os.environ[SOCKET] = str(path)
    return made


def serve(path: Path, number: int) -> None:
    """Answer at the socket `path`, which is open as descriptor `number`, until standard input ends.

    Jobs that come before the libraries are there wait.
    """
    try:
        with socket.socket(fileno=number) as listener, selectors.DefaultSelector() as ready:
            for name in LIBRARIES:
                importlib.import_module(name)
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
            ready.register(listener, selectors.EVENT_READ)
            ready.register(0, selectors.EVENT_READ)
            while all(key.fileobj is listener for key, _ in ready.select()):
                job, _ = listener.accept()
                if not os.fork():
                    listener.close()
                    _work(job)
                job.close()
    finally:
        path.unlink(missing_ok=True)
        path.parent.rmdir()


def _work(job: socket.socket) -> None:
    """In the fork: be the process that asked, and end. Before it says its number the job takes the work back."""
    status, begun = 1, False
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        line, streams = _read(job)
        told = json.loads(line)
        for own, given in enumerate(streams):
            os.dup2(given, own)
            os.close(given)
        # of the server's own the interpreter knows what kind of file they were
        sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
        os.chdir(told["folder"])
        sys.path[0], sys.argv = told["folder"], ["dfshield", *told["words"]]
        os.environ.clear()
        os.environ.update(told["environment"])
        for number in PASSED_ON:
            usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, signal.SIG_IGN if number in told["ignored"] else usual)
        job.sendall(f"{os.getpid()}\n".encode())
        begun = True
        threading.Thread(target=_end_with, args=(job,), daemon=True).start()
        status = _run(told["words"])
    except BaseException:
        sys.excepthook(*sys.exc_info())  # as an interpreter that ends
    finally:
        atexit._run_exitfuncs()  # os._exit, which is quick and leaves the server's files alone, runs none
        with contextlib.suppress(OSError):
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
        with contextlib.suppress(OSError):
            if begun:
                job.sendall(f"{status}\n".encode())
        os._exit(status)


def _read(job: socket.socket) -> tuple[bytes, list[int]]:
    """A line, and the descriptors that came with its beginning."""
    line, streams, _, _ = socket.recv_fds(job, 1 << 16, 3)
    while not line.endswith(b"\n"):
        more = job.recv(1 << 16)
        if not more:
            raise EOFError("a job ended before it had said what to do")
        line += more
    return line, streams


def _end_with(job: socket.socket) -> None:
    """End at once, as by SIGKILL, when the process that asked has gone."""
    with contextlib.suppress(OSError):
        job.recv(1)
    os.kill(os.getpid(), signal.SIGKILL)


def _run(words: list[str]) -> int:
    """The command `words`, with as many threads as the environment says; returns its exit status."""
    from threadpoolctl import threadpool_limits

    from dfshield.cli import main

    threads = os.environ.get("OMP_NUM_THREADS", "")
    limits = threadpool_limits(int(threads)) if threads.isdecimal() and int(threads) else contextlib.nullcontext()
    with limits:
        try:
            main(words)
        except SystemExit as end:
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
            return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))
