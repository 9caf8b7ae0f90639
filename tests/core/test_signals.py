"""Signals: a job ends after the piece in progress, and at once where there is none or it takes too long."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from support.snakemake import environment

from dfshield.core import signals
from dfshield.core.errors import InputError
from dfshield.core.hdf5 import Sink
from dfshield.core.signals import Stopped, handled, stop_if_asked

ASKED = [signal.SIGTERM, signal.SIGUSR1]


@pytest.fixture(autouse=True)
def interruptible():
    """SIGINT is as in a terminal, also where a shell runs the tests in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def wait(seconds: float) -> None:
    """Work in Python, where handlers run."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.005)


@pytest.mark.parametrize("number", ASKED)
def test_the_piece_in_progress_is_finished(number, capfd):
    finished = []
    with handled(), pytest.raises(Stopped) as stop:
        for piece in range(5):
            stop_if_asked("piece", piece, 5)
            if piece == 2:
                signal.raise_signal(number)
            finished.append(piece)
    assert finished == [0, 1, 2] and stop.value.status == 128 + number
    name = signal.Signals(number).name
    assert str(stop.value) == f"stopped by {name}; the same command goes on after piece 3 of 5"
    assert capfd.readouterr().err == f"{name}: ends after the piece in progress, within 20 s\n"


@pytest.mark.parametrize("kept", [None, False])
def test_without_pieces_a_job_ends_at_once(kept):
    with handled(), pytest.raises(Stopped, match="stopped by SIGTERM; the same command begins anew"):
        if kept is not None:
            stop_if_asked("piece", 2, 3, kept=kept)
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("went on")


def test_a_long_piece_is_left(monkeypatch):
    monkeypatch.setattr(signals, "GRACE", 0.05)
    with handled(), pytest.raises(Stopped, match="goes on after piece 1 of 3"):
        stop_if_asked("piece", 1, 3)
        signal.raise_signal(signal.SIGTERM)
        wait(5)
        pytest.fail("went on")


@pytest.mark.parametrize(("first", "second"), [(signal.SIGTERM, signal.SIGUSR1), (signal.SIGUSR1, signal.SIGTERM)])
def test_a_second_signal_ends_at_once(first, second):
    with handled(), pytest.raises(Stopped, match=f"stopped by {signal.Signals(first).name}"):
        stop_if_asked("piece", 0, 3)
        signal.raise_signal(first)
        signal.raise_signal(second)
        pytest.fail("went on")


def test_control_c_ends_at_once():
    with (
        handled(),
        pytest.raises(Stopped, match="stopped by SIGINT; the same command goes on after piece 1 of 3") as stop,
    ):
        stop_if_asked("piece", 1, 3)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("went on")
    assert stop.value.status == 130


def test_a_stop_that_is_lost_in_a_destructor_is_raised_again(monkeypatch, recwarn):
    monkeypatch.setattr(signals, "AGAIN", 0.05)
    monkeypatch.setattr(sys, "unraisablehook", lambda told: None)

    class Lossy:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    with handled(), pytest.raises(Stopped):
        Lossy()
        wait(5)
        pytest.fail("went on")


def test_a_stop_of_which_c_code_makes_an_error_is_a_stop():
    with pytest.raises(Stopped, match="stopped by SIGUSR1; the same command begins anew"), handled():
        try:
            signal.raise_signal(signal.SIGUSR1)
        except Stopped:
            raise InputError("teacher.safetensors: is not a whole safetensors file") from None


def test_an_error_while_a_stop_waits_is_an_error():
    with pytest.raises(InputError, match="no room"), handled():
        stop_if_asked("piece", 1, 3)
        signal.raise_signal(signal.SIGTERM)
        raise InputError("no room")


def test_no_exception_passes_through_the_hdf5_library(tmp_path, monkeypatch):
    wrote = []
    sink = Sink(tmp_path / "x")
    monkeypatch.setattr(signals, "NEVER_INSIDE", {wrote_through.__code__})
    with handled(), pytest.raises(Stopped):
        wrote_through(wrote)
        wait(5)
        pytest.fail("went on")
    sink.close()
    assert wrote == [1]


def wrote_through(wrote: list[int]) -> None:
    signal.raise_signal(signal.SIGTERM)
    wrote.append(1)


def test_afterwards_signals_mean_what_they_meant():
    numbers = (*ASKED, signal.SIGALRM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    with handled():
        assert all(signal.getsignal(number) not in before for number in numbers)
    assert [signal.getsignal(number) for number in numbers] == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    thread = threading.Thread(target=lambda: handled().__enter__())
    thread.start()
    thread.join()
    assert [signal.getsignal(number) for number in numbers] == before


def test_a_shell_that_runs_us_in_the_background_has_sigint_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with handled():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


PROGRAM = """
    import sys, time
    from dfshield import cli
    from dfshield.core.progress import log, progress
    from dfshield.core.signals import stop_if_asked
    import dfshield.tools.doctor as doctor

    def run(**values):
        for piece in range(100):
            stop_if_asked("piece", piece, 100)
            print(piece, flush=True)
            time.sleep(0.2)
            log("x" * 100)

    doctor.run = run
    cli.main(["doctor"])
"""


@pytest.mark.parametrize("number", [*ASKED, signal.SIGINT])
def test_a_pipeline_with_tee_is_signalled_as_a_whole(tmp_path, number):
    """As a queue does it: `tee` and the shell get the signal, too."""
    (tmp_path / "program.py").write_text(textwrap.dedent(PROGRAM))
    command = f"set -o pipefail; trap '' TERM USR1; {sys.executable} program.py 2>&1 1>pieces | tee log"
    started = subprocess.Popen(
        ["bash", "-c", command], cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, start_new_session=True
    )
    while not (tmp_path / "pieces").exists() or not (tmp_path / "pieces").read_text():
        time.sleep(0.02)
    os.killpg(started.pid, number)
    started.communicate(timeout=30)
    if number == signal.SIGINT:  # tee is gone, and so is the log
        return
    assert started.returncode == 128 + number
    last = (tmp_path / "log").read_text().splitlines()[-1]
    done = len((tmp_path / "pieces").read_text().split())
    assert last == f"dfshield doctor: stopped by {number.name}; the same command goes on after piece {done} of 100"


def test_a_reader_of_the_log_that_is_gone_stops_no_work(tmp_path):
    (tmp_path / "program.py").write_text(textwrap.dedent(PROGRAM).replace("range(100)", "range(4)"))
    command = f"{sys.executable} program.py 2>&1 1>pieces | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment(), check=False)
    assert done.returncode == 0 and (tmp_path / "pieces").read_text().split() == ["0", "1", "2", "3"]
