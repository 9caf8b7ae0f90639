"""A disk that is full in the middle of a stage: one line, nothing lost, and the same bytes once there is room."""

import resource
import shutil
import subprocess

import program
import pytest
import stages
from scorecard import Score

ROOM = 64 * 2**20
"""Bytes of the disk once there is room."""


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """A small file system of its own; None where none can be mounted."""
    folder = tmp_path_factory.mktemp("disk")
    words = ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "dfshield-faults", str(folder)]
    if not shutil.which("mount") or subprocess.run(words, capture_output=True, check=False).returncode:
        yield None
        return
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def filled(disk, room):
    """Leave no more than `room` bytes, in whole pages."""
    left = shutil.disk_usage(disk).free - room
    with (disk / "ballast").open("wb") as stream:
        stream.write(bytes(max(0, left)))


def limited(size):
    """For use before a stage: no file of it may grow beyond `size` bytes."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@pytest.mark.parametrize("kind", ["disk", "largest file"])
@pytest.mark.parametrize("case", stages.CASES, ids=lambda case: case.name)
def test_full(world, disk, tmp_path, case, kind):
    if not program.FULL and case.name not in ("synthesize", "train"):
        pytest.skip("by make faults")
    if kind == "disk" and disk is None:
        pytest.skip("no file system can be mounted here: that takes root")
    score = Score(f"full: {kind}", case.name)
    made = world.expected[case.name]
    state = world.folder / "made" / case.name.replace(" ", "-") / "state"
    sizes = [len(value) for value in (*made.values(), *program.files(state).values())]
    for index in range(program.tries(4, 1)):
        random = program.chance("full", kind, case.name, index)
        folder = case.prepare(world.folder, (disk if kind == "disk" else tmp_path) / str(index))
        old = dict.fromkeys(case.outputs, b"what an earlier run has written\n")
        for name, value in old.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(value)
        before = program.files(folder)
        room = random.randrange(sum(sizes) if kind == "disk" else max(sizes))
        if kind == "disk":
            filled(disk, room)
        ended = program.run(folder, case.command(world.folder), limited(room) if kind != "disk" else None)
        found = {
            n: v for n, v in program.files(folder).items() if not n.startswith("state/") and not n.endswith(".run")
        }
        wrong = "" if ended.status == 0 or ended.refused else f"ended with {ended.status}: {ended.said[-3:]}"
        for name in sorted(found.keys() | before.keys()):
            if found.get(name) not in (before.get(name), made.get(name)) or name not in before:
                wrong = wrong or f"{name} is half written, lost or left over"
        if ended.status == 0 and any(found[name] != made[name] for name in made):
            wrong = wrong or "ended well and has not written its files"
        if kind == "disk":
            (disk / "ballast").unlink()
        again = program.run(folder, case.command(world.folder))
        if again.status:
            wrong = wrong or f"with room again, it ended with {again.status}: {again.said[-3:]}"
        found = {name: value for name, value in program.files(folder).items() if not name.endswith("/.run")}
        wrong = wrong or program.differences(found, before | made)
        score.add(f"room for {room} of {sum(sizes)} bytes", wrong, silent=ended.status == 0)
        shutil.rmtree(folder)
    score.close()
