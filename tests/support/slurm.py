"""A private SLURM on this machine: two nodes with fake GPUs, on loopback, for tests of the workflow on a cluster.

Daemons run as the user of the tests, in a temporary folder, on free ports. Each is a child of this process and is ended
by its process id. Whatever else the cluster starts has the folder in its environment, and so is found and ended, too.
"""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from support.snakemake import environment

T = TypeVar("T")
COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "sinfo", "srun", "setpriv")
"""What the cluster needs; `.ci/run` has the names of Debian's packages."""
# Without a data base of accounts the queue itself is asked.
PROFILE = (
    *("--workflow-profile", "profiles/slurm", "--slurm-status-command", "squeue", "--slurm-no-account"),
    *("--slurm-init-seconds-before-status-checks", "1", "--latency-wait", "5", "--nocolor"),
)
# Jobs here take seconds; the executor waits ten seconds more after each look in vain.
SNAKEMAKE = """
import asyncio, sys
from snakemake.cli import main
from snakemake_executor_plugin_slurm import Executor

async def sleep(self):
    await asyncio.sleep(1)

Executor.sleep = sleep
main()
"""
CONF = """
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
MinJobAge=600
KillWait=25
ReturnToService=2
GresTypes=gpu
SlurmdParameters=config_overrides
NodeName=node[1-2] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[{node1},{node2}] {size}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
"""Memory is checked once a second by what processes hold, which works without control groups."""


def lacking() -> list[str]:
    """What this machine does not have of what the cluster needs."""
    missing = [name for name in COMMANDS if _found(name) is None]
    try:
        import snakemake_executor_plugin_slurm  # noqa: F401
    except ImportError:
        missing.append("snakemake-executor-plugin-slurm")
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:  # SLURM refuses a user without one
        missing.append("a name for this user")
    return missing


def needed() -> None:
    """Skip the test where SLURM is missing, or fail it where the variable DFSHIELD_NEEDS_SLURM is set."""
    if missing := lacking():
        told = f"SLURM: this machine lacks {', '.join(missing)}"
        pytest.fail(told) if os.environ.get("DFSHIELD_NEEDS_SLURM") else pytest.skip(told)


def _found(command: str) -> str | None:
    """Daemons lie where PATH of an ordinary user does not lead."""
    return shutil.which(command, path=f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin")


def wait_until(what: Callable[[], T], seconds: float = 60, why: Callable[[], str] = str) -> T:
    """The first true value of `what`; fails, with what `why` tells, if there is none within the time."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, f"waited for {seconds} s in vain\n{why()}"
        time.sleep(0.1)
    return found


class Cluster:
    """Two nodes of one CPU, one fake GPU and `memory` MB each."""

    def __init__(self, folder: Path, memory: int = 16000) -> None:
        self.folder, self.memory = folder, memory
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.runs: list[subprocess.Popen[bytes]] = []
        (folder / "tmp").mkdir()
        # The plugin's inner srun drops SLURM_CONF, which only a cluster without /etc/slurm/slurm.conf needs.
        (folder / "bin").mkdir()
        wrapper = folder / "bin/srun"
        wrapper.write_text(f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {_found("srun")} "$@"\n')
        wrapper.chmod(0o755)
        self.environment = environment() | {"SLURM_CONF": f"{folder}/slurm.conf", "TMPDIR": f"{folder}/tmp"}
        self.environment["PATH"] = f"{folder}/bin:{Path(sys.executable).parent}:{self.environment['PATH']}"
        for name in list(self.environment):  # of a queue that runs the tests themselves
            if name.startswith(("SLURM_", "SBATCH_", "SRUN_")) and name != "SLURM_CONF":
                del self.environment[name]

    def start(self) -> None:
        """Start all daemons and wait until both nodes are idle."""
        folder = self.folder
        with contextlib.ExitStack() as taken:
            sockets = [taken.enter_context(contextlib.closing(socket.socket())) for _ in range(3)]
            for each in sockets:
                each.bind(("127.0.0.1", 0))
            controller, node1, node2 = (each.getsockname()[1] for each in sockets)
        values = {
            "controller": controller,
            "node1": node1,
            "node2": node2,
            "size": f"CPUs=1 RealMemory={self.memory} Gres=gpu:1",
        }
        (folder / "slurm.conf").write_text(CONF.format(folder=folder, user=os.getuid(), **values))
        (folder / "nvidia0").symlink_to("/dev/null")
        (folder / "gres.conf").write_text(f"Name=gpu File={folder}/nvidia0\n")
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        for name in ("state", "spool/node1", "spool/node2"):
            (folder / name).mkdir(parents=True)
        own = [f"--{name}={folder}/munge.{name.partition('-')[0]}" for name in ("key-file", "pid-file", "seed-file")]
        own += [f"--socket={folder}/munge.sock", f"--log-file={folder}/munged.log", "--num-threads=2"]
        self._daemon("munged", "--foreground", "--force", *own)
        wait_until((folder / "munge.sock").exists, 10, self.told)
        self._daemon("slurmctld", "-D", "-c")
        for node in ("node1", "node2"):
            self.start_node(node)
        wait_until(lambda: self.idle() == ["node1", "node2"], 60, self.told)

    def idle(self) -> list[str]:
        """Names of idle nodes."""
        return self.slurm("sinfo", "-h", "-N", "-t", "idle", "-o", "%N").split()

    def start_node(self, node: str) -> None:
        """Start the daemon of a node."""
        self._daemon("slurmd", "-D", "-c", "-N", node, name=node)

    def _daemon(self, command: str, *words: str, name: str = "") -> None:
        """Start a daemon that ends with this process, be it by kill -9."""
        path = _found(command)
        assert path, command
        with (self.folder / f"{name or command}.out").open("ab") as told:
            self.daemons[name or command] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", path, *words],
                env=self.environment, stdout=told, stderr=told, stdin=subprocess.DEVNULL,
            )  # fmt: skip

    def told(self) -> str:
        """The last lines of every daemon and of Snakemake, for messages."""
        logs = sorted([*self.folder.glob("*.log"), *self.folder.glob("*.out")])
        return "\n".join(f"== {log.name}\n" + "\n".join(log.read_text().splitlines()[-15:]) for log in logs)

    def slurm(self, *words: str) -> str:
        """What a command of SLURM prints."""
        run = subprocess.run(words, env=self.environment, capture_output=True, text=True, check=False)
        return run.stdout.strip()

    def jobs(self, rule: str, form: str = "%i", *words: str) -> list[str]:
        """Facts of the jobs of a rule that are in the queue, in the words of ``squeue --format``."""
        lines = self.slurm("squeue", "-h", "-S", "i", "-o", f"%k {form}", *words).splitlines()
        return [line.split(maxsplit=1)[1] for line in lines if line.startswith((f"rule_{rule} ", f"rule_{rule}_"))]

    def running(self, rule: str, count: int = 1) -> list[str]:
        """Wait until jobs of a rule run, and return their numbers."""

        def enough() -> list[str]:
            found = self.jobs(rule, "%i", "-t", "RUNNING")
            return found if len(found) >= count else []

        return wait_until(enough, 120, self.said)

    def snakemake(self, folder: Path, *words: str) -> subprocess.Popen[bytes]:
        """Start Snakemake on the cluster; what it says is appended to snakemake.out in the cluster's folder."""
        with (self.folder / "snakemake.out").open("ab") as told:
            command = [sys.executable, "-c", SNAKEMAKE, *words, *PROFILE]
            run = subprocess.Popen(command, cwd=folder, env=self.environment, stdout=told, stderr=told)
        self.runs.append(run)
        return run

    def said(self) -> str:
        """All that Snakemake has said."""
        return (self.folder / "snakemake.out").read_text()

    def ends_well(self, run: subprocess.Popen[bytes], seconds: float = 400) -> None:
        """Wait for a run of Snakemake; fails unless all its jobs ended well."""
        try:
            status = run.wait(seconds)
        except subprocess.TimeoutExpired:
            status = -1
        assert status == 0, f"status {status}\n{self.said()[-6000:]}\n{self.told()}"

    def lose(self, node: str) -> None:
        """A node loses its power: its daemon and all its jobs are gone at once, and SLURM is told that it is down."""
        daemon = self.daemons.pop(node)
        numbers = self.slurm("squeue", "-h", "-w", node, "-o", "%i").split()
        daemon.kill()
        daemon.wait()
        for number in numbers:
            for mark in (f"slurmstepd: [{number}.", f"SLURM_JOB_ID={number}\0"):  # first who would report an end
                for process in self.processes():
                    if mark in _read(process, "cmdline") or mark in _read(process, "environ"):
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(process, signal.SIGKILL)
        self.slurm("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=power")

    def processes(self) -> list[int]:
        """Processes of this cluster: daemons, steps and jobs."""
        mark = f"SLURM_CONF={self.folder}/slurm.conf\0"
        numbers = (int(path.name) for path in Path("/proc").glob("[0-9]*"))
        return [number for number in numbers if mark in _read(number, "environ")]

    def stop(self) -> None:
        """End everything that the cluster has started."""
        for run in self.runs:
            run.kill()
            run.wait()
        deadline = time.monotonic() + 20
        while (left := self.processes()) and time.monotonic() < deadline:
            for process in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            for daemon in self.daemons.values():
                daemon.poll()
            time.sleep(0.1)
        assert not left, f"left behind: {left}"


def _read(process: int, name: str) -> str:
    try:
        return Path(f"/proc/{process}/{name}").read_text(errors="replace")
    except OSError:
        return ""


@contextlib.contextmanager
def cluster(memory: int = 16000) -> Iterator[Cluster]:
    """A cluster, gone afterwards with all its processes and files, whatever happens."""
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as name:  # short: a socket's path
        made = Cluster(Path(name), memory)
        try:
            made.start()
            yield made
        finally:
            made.stop()
