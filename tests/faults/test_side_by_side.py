"""Processes beside one another: equal stages in one folder, state that vanishes, jobs that share devices."""

import os
import shutil
import signal
import tempfile
import time
from functools import partial
from pathlib import Path

import program
import pytest
import stages
from scorecard import Score

from dfshield.core import device

FEW = ("synthesize", "train")
"""Stages that the normal suite starts twice."""


@pytest.mark.parametrize("vanishing", [False, True], ids=["", "state vanishes"])
@pytest.mark.parametrize("case", stages.CASES, ids=lambda case: case.name)
def test_two_of_one_stage(world, tmp_path, case, vanishing):
    if not program.FULL and case.name not in FEW:
        pytest.skip("by make faults")
    if vanishing and not case.resumes:
        pytest.skip("it keeps no state")
    score = Score("state removed while in use" if vanishing else "two at once in one folder", case.name)
    for index in range(program.tries(4, 1)):
        random = program.chance("two", vanishing, case.name, index)
        folder = case.prepare(world.folder, tmp_path / str(index))
        before = program.files(folder)
        remover = program.Fork(folder, partial(remove_again_and_again, folder / "state")) if vanishing else None
        forks = [program.start(folder, case.command(world.folder))]
        time.sleep(random.random() * 0.2)
        forks.append(program.start(folder, case.command(world.folder)))
        ended = [fork.wait() for fork in forks]
        if remover:
            remover.send(signal.SIGKILL)
            remover.wait()
        wrong = "".join(f"ended with {end.status}: {end.said[-3:]} " for end in ended if end.status)
        found = {name: value for name, value in program.files(folder).items() if not name.endswith("/.run")}
        wrong = wrong or program.differences(found, before | world.expected[case.name])
        score.add(f"try {index}", wrong, silent=not any(end.status for end in ended))
        shutil.rmtree(folder)
    score.close()


def remove_again_and_again(folder: Path) -> None:
    """Remove a folder as often as it is there."""
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.01)


def job(folder: Path, seconds: float) -> None:
    """Lease a device of four as a job does, work a while, and fail if another job that lives has it, too."""
    tempfile.tempdir = str(folder)
    os.environ["CUDA_VISIBLE_DEVICES"] = "0,1,2,3"
    device._lease = None
    device.time = Impatient  # type: ignore[assignment]
    device._lease_cuda_device()
    own = folder / f"device-{os.environ['CUDA_VISIBLE_DEVICES']}"
    own.mkdir(exist_ok=True)
    mark = own / str(os.getpid())
    mark.touch()
    others = {int(path.name) for path in own.iterdir()} - {os.getpid()}
    until = time.monotonic() + 1  # a process that was killed takes a moment to go
    while others and time.monotonic() < until:
        others = {pid for pid in others if alive(pid)}
        time.sleep(0.01)
    if others:
        raise AssertionError(f"{own.name} is shared with {others}")
    time.sleep(seconds)
    mark.unlink()


class Impatient:
    """The module `time` with shorter waits."""

    @staticmethod
    def sleep(seconds: float) -> None:
        """Wait a hundredth of what is asked for."""
        time.sleep(seconds / 100)


def alive(pid: int) -> bool:
    """Whether a process is more than a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_jobs_lease_devices_of_their_own(world, tmp_path):
    score = Score("holders of a device killed", "12 jobs on 4 devices")
    for index in range(program.tries(8, 1)):
        random = program.chance("devices", index)
        folder = tmp_path / str(index)
        folder.mkdir()
        forks = [program.Fork(folder, partial(job, folder, 0.3 * random.random())) for _ in range(12)]
        for fork in random.sample(forks, 4):
            time.sleep(0.1 * random.random())
            fork.send(random.choice((signal.SIGKILL, signal.SIGTERM)))
        ended = [fork.wait() for fork in forks]
        for number, end in enumerate(ended):
            score.add(f"round {index}, job {number}", f"{end}" if end.status > 0 else "", silent=True)
    score.close()
