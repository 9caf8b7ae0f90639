"""The server of forks: a job that a fork does is as one that its own process does, but sooner."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.snakemake import environment, python

from dfshield import forkserver

LIBRARY = """
    import json, os, sys, time
    import dfshield.tools.doctor as doctor
    from dfshield.core.signals import stop_if_asked

    def run(data_dir=None):  # what the command `doctor` does here
        work = data_dir.name if data_dir else "pieces"
        if work == "tell":
            print(json.dumps([os.getcwd(), sys.path[0], os.environ.get("OWN"), sys.stdin.read()]))
            print("aside", file=sys.stderr)
        elif work == "threads":
            import numpy, threadpoolctl
            print({pool["num_threads"] for pool in threadpoolctl.threadpool_info()})
        elif work == "fail":
            raise ValueError("of the work")
        else:
            for piece in range(200):
                stop_if_asked("piece", piece, 200)
                print(piece, os.getpid(), os.getppid(), flush=True)
                time.sleep(0.05)

    doctor.run = run
"""
"""A library that a server imports in place of its own: quickly there, and with work of known pieces."""


SERVER = """
import pathlib, socket, sys
from dfshield import forkserver
forkserver.LIBRARIES = (sys.argv[2],)
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen(64)
forkserver.serve(pathlib.Path(sys.argv[1]), listener.detach())
"""
ALONE = """
import sys
import library
from dfshield.cli import main
main()
"""
"""A process of its own with the same library."""
STARTER = """
import os, socket
from dfshield import forkserver
made = forkserver.start()
socket.socket(socket.AF_UNIX).connect(os.environ[forkserver.SOCKET])  # the first job may be quicker than the server
assert forkserver.start() is None  # there is one
print(made.pid, os.environ[forkserver.SOCKET], flush=True)
input()
"""


class Server:
    """A server of this test, and jobs that may ask it."""

    def __init__(self, folder: Path) -> None:
        (folder / "library.py").write_text(textwrap.dedent(LIBRARY))
        self.own = environment() | {"PYTHONPATH": f"{folder}{os.pathsep}{environment()['PYTHONPATH']}"}
        self.socket = folder / "server" / "socket"
        self.process = self.start("library")

    def start(self, library: str) -> subprocess.Popen[bytes]:
        """A server that imports `library`, once jobs can ask it."""
        self.socket.parent.mkdir()
        command = [sys.executable, "-c", SERVER, str(self.socket), library]
        made = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=self.own)
        while not self.socket.exists():
            time.sleep(0.01)
        return made

    def job(self, *words: str, asks: bool = True, before: str = "", **settings) -> subprocess.Popen[str]:
        """A job that asks the server, or one that imports the same library itself."""
        own = {forkserver.SOCKET: str(self.socket)} if asks else {}
        command = [sys.executable, *(["-m", "dfshield"] if asks else ["-c", ALONE]), *words]
        if before:
            command = ["bash", "-c", f'{before}; exec "$@"', "job", *command]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, env=self.own | own | settings.pop("more", {}), **(pipes | settings))

    def stop(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(10)


@pytest.fixture
def server(tmp_path) -> Iterator[Server]:
    made = Server(tmp_path)
    yield made
    made.stop()


def finished(job: subprocess.Popen[str], given: str = "") -> tuple[int, str, str]:
    out, err = job.communicate(given, timeout=60)
    return job.returncode, out, err


def begun(job: subprocess.Popen[str]) -> int:
    """The process that does the work of a job, once it has done a piece."""
    assert job.stdout
    job.stdout.readline()
    return int(job.stdout.readline().split()[1])


def gone(process: int) -> bool:
    """Whether a process ends within half a minute."""
    for _ in range(3000):  # a server first imports its libraries
        with contextlib.suppress(FileNotFoundError):
            if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                time.sleep(0.01)
                continue
        return True
    return False


@pytest.mark.parametrize("words", ["--version", "merge", "merge none.h5 --out x.h5", "nothing", "schema", "train -h"])
def test_a_fork_says_and_returns_what_a_process_of_its_own_does(server, words, tmp_path):
    found, expected = (finished(server.job(*words.split(), asks=asks, cwd=tmp_path)) for asks in (True, False))
    assert found == expected
    assert found[0] == (0 if words in ("--version", "schema", "train -h") else 2)


def test_the_work_is_done_in_the_folder_with_the_variables_and_streams_of_the_job(server, tmp_path):
    folder = tmp_path / "other folder"
    folder.mkdir()
    job = server.job("doctor", "--data-dir", "tell", cwd=folder, more={"OWN": "ε"})
    assert finished(job, "given") == (0, f'["{folder}", "{folder}", "\\u03b5", "given"]\n', "aside\n")


def test_the_libraries_have_as_many_threads_as_the_job(server):
    for threads in ("1", "2"):
        job = server.job("doctor", "--data-dir", "threads", more={"OMP_NUM_THREADS": threads})
        assert finished(job)[1] == f"{{{threads}}}\n"


def test_an_error_of_the_program_is_one_and_the_next_job_is_served(server):
    status, _, err = finished(server.job("doctor", "--data-dir", "fail"))
    assert status == 1 and err.splitlines()[-1] == "ValueError: of the work"
    assert finished(server.job("--version"))[0] == 0


def test_jobs_run_side_by_side_in_forks_of_the_server(server):
    jobs = [server.job("doctor") for _ in range(3)]
    lines = [job.stdout.readline().split() for job in jobs]
    assert {int(parent) for _, _, parent in lines} == {server.process.pid}
    assert len({own for _, own, _ in lines} | {str(job.pid) for job in jobs}) == 6
    for job in jobs:
        job.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
@pytest.mark.parametrize("before", ["", "trap '' TERM USR1"])
def test_signals_reach_the_work(server, number, before):
    """As a queue and a terminal send them, also where the workflow's shell has told the job to ignore them."""
    job = server.job("doctor", before=before)
    worker = begun(job)
    job.send_signal(number)
    status, _, err = finished(job)
    assert status == 128 + number and gone(worker)
    assert f"dfshield doctor: stopped by {number.name}; the same command goes on after piece" in err


def test_ctrl_c_is_not_for_a_job_in_the_background(server):
    job = server.job("doctor", before="trap '' INT")
    worker = begun(job)
    job.send_signal(signal.SIGINT)
    os.kill(worker, signal.SIGINT)
    assert int(job.stdout.readline().split()[1]) == worker
    job.send_signal(signal.SIGTERM)
    assert finished(job)[0] == 128 + signal.SIGTERM


def test_work_ends_with_the_job_and_the_job_with_the_work(server):
    job = server.job("doctor")
    worker = begun(job)
    job.kill()
    assert gone(worker)
    job = server.job("doctor")
    os.kill(begun(job), signal.SIGKILL)
    assert finished(job)[0] == 128 + signal.SIGKILL


def test_without_a_server_a_job_works_itself(server):
    server.stop()
    assert not server.socket.parent.exists()
    assert finished(server.job("--version"))[:2] == (0, "dfshield 0.1.0\n")
    assert finished(server.job("--version", more={forkserver.SOCKET: ""}))[0] == 0


def test_a_fork_that_cannot_begin_gives_the_work_back(server, tmp_path):
    """It has said no number then, which a status must not be taken for."""
    told = {"words": ["--version"], "folder": str(tmp_path / "missing"), "environment": {}, "ignored": []}
    with socket.socket(socket.AF_UNIX) as job:
        job.connect(str(server.socket))
        socket.send_fds(job, [json.dumps(told).encode() + b"\n"], [0, 1, 2])
        assert job.recv(100) == b""
    assert finished(server.job("--version"))[0] == 0


def test_a_server_that_cannot_import_leaves_the_jobs_their_work(tmp_path):
    """Jobs that wait for the libraries are not lost."""
    (tmp_path / "slow.py").write_text("import time; time.sleep(2); raise ImportError('broken')")
    server = Server(tmp_path)
    server.stop()
    broken = server.start("slow")
    assert finished(server.job("--version"))[:2] == (0, "dfshield 0.1.0\n")
    assert b"broken" in broken.communicate()[1]


def test_a_server_ends_with_the_process_that_starts_it():
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
    )
    process, path = starter.stdout.readline().split()
    assert Path(f"/proc/{process}").exists()
    starter.kill()
    starter.wait()
    assert gone(int(process)) and not Path(path).parent.exists()


@pytest.mark.parametrize("folder", ["missing", "long" * 50])
def test_without_a_place_for_a_socket_there_is_no_server(folder, tmp_path, monkeypatch):
    monkeypatch.delenv(forkserver.SOCKET, raising=False)
    place = tmp_path / folder
    if folder != "missing":
        place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    assert forkserver.start() is None and forkserver.SOCKET not in os.environ
    assert not place.exists() or not list(place.iterdir())


def test_the_server_has_nothing_in_memory_that_opens_real_data(tmp_path):
    imports = "\n".join(f"import {name}" for name in forkserver.LIBRARIES)
    made = python(tmp_path, f"import sys\n{imports}\nprint('dfshield.data' in sys.modules)")
    assert made.stdout == "False\n", made.stderr


def test_to_ask_takes_the_standard_library_alone(tmp_path):
    made = python(
        tmp_path, "import sys; before = set(sys.modules); import dfshield.forkserver; print(*{*sys.modules} - before)"
    )
    assert {name.partition(".")[0] for name in made.stdout.split()} - set(sys.stdlib_module_names) == {"dfshield"}
