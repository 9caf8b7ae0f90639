"""Stages that are killed at any moment and started again: the same bytes, and nothing left over."""

import shutil
import signal
import time

import program
import pytest
import stages
from scorecard import Score

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1)
FEW = ("train", "attack")
"""Stages that the normal suite kills."""


def killed(world, case, folder, random, number):
    """Kill a stage at a random moment; returns the fork's end and the moment, as a share of its usual time."""
    began = time.monotonic()
    fork = program.start(folder, case.command(world.folder))
    share = random.random()
    time.sleep(share * seconds(world, case))
    fork.send(number)
    return fork.wait(), share, time.monotonic() - began


_SECONDS: dict[str, float] = {}


def seconds(world, case):
    """How long a stage takes, undisturbed, on this machine."""
    if case.name not in _SECONDS:
        folder = case.prepare(world.folder, world.folder / "timing" / case.name)
        began = time.monotonic()
        assert program.run(folder, case.command(world.folder)).status == 0
        _SECONDS[case.name] = time.monotonic() - began
    return _SECONDS[case.name]


@pytest.mark.parametrize("case", stages.CASES, ids=lambda case: case.name)
def test_killed_and_started_again(world, tmp_path, case):
    if not program.FULL and case.name not in FEW:
        pytest.skip("by make faults")
    score = Score("killed at a random moment (KILL, TERM, USR1)", case.name)
    for index in range(program.tries(16, 3)):
        random = program.chance("kill", case.name, index)
        number = SIGNALS[index % len(SIGNALS)]
        folder = case.prepare(world.folder, tmp_path / str(index))
        before = program.files(folder)
        ended, share, _ = killed(world, case, folder, random, number)
        for _ in range(5):
            if ended.status != 0:  # it was over already
                break
            shutil.rmtree(folder)
            case.prepare(world.folder, folder)
            ended, share, _ = killed(world, case, folder, random, number)
        what = f"try {index}, {number.name} at {share:.2f} of its time"
        if ended.status != 0 and not ended.stopped:
            score.add(what, f"ended with {ended.status}: {ended.said[-3:]}")
            continue
        expected = before | world.expected[case.name]
        found = program.files(folder)
        half = {n: found[n] for n in case.outputs if n in found and found[n] != expected[n]}
        again = program.run(folder, case.command(world.folder))
        wrong = f"half a file after the kill: {sorted(half)}" if half else ""
        if again.status:
            wrong = f"started again, it ended with {again.status}: {again.said[-3:]}"
        found = {name: value for name, value in program.files(folder).items() if not name.endswith("/.run")}
        wrong = wrong or program.differences(found, expected)
        score.add(what, wrong, silent=not half and again.status == 0)
        shutil.rmtree(folder)
    score.close()
