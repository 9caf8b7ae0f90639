"""Snakemake itself killed, started twice, and given damaged files: the run ends in the same bytes."""

import os
import signal
import subprocess
import sys
import time

import program
import pytest
import yaml
from scorecard import Score
from support.snakemake import TINY, environment, snakemake, workspace

pytestmark = pytest.mark.skipif(not program.FULL, reason="by make faults")

TARGET = "results/tiny/digits/cnn-s/dss/dfshield/linf-8-16/seed-0/eval/none/pgd10@linf-8-16/ledger.h5"
KEPT = ("*.safetensors", "*.h5", "*.csv", "*.yaml", "*.sha256", "*.tmp*")
COMMAND = [sys.executable, "-m", "snakemake", TARGET, "--cores", "2", "--nocolor"]


def made(folder):
    """What a run has made, by path."""
    results = folder / "results"
    found = {str(p.relative_to(results)): p.read_bytes() for kind in KEPT for p in results.rglob(kind) if p.is_file()}
    left = [str(path) for path in results.rglob(".*.tmp*")]
    return found | dict.fromkeys(left, b"")


def fresh(folder):
    """A workspace with a config of a minute's work."""
    folder.mkdir(exist_ok=True)
    workspace(folder)
    (folder / "config/config.yaml").write_text(yaml.safe_dump(TINY))
    return folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The files of a run that nothing befell, and how long it took."""
    folder = fresh(tmp_path_factory.mktemp("undisturbed"))
    began = time.monotonic()
    run = snakemake(folder, TARGET)
    assert run.returncode == 0, run.stdout + run.stderr
    return made(folder), time.monotonic() - began


def begun(folder):
    """Snakemake, started as the leader of a group of processes."""
    with (folder / "said").open("ab") as said:
        own = {"cwd": folder, "env": environment(), "start_new_session": True}
        return subprocess.Popen(COMMAND, stdout=said, stderr=said, **own)


def finish(folder):
    """Run to the end, after Snakemake's lock of a process that is gone was taken away as it says."""
    subprocess.run([*COMMAND, "--unlock"], cwd=folder, env=environment(), capture_output=True, check=False)
    return snakemake(folder, TARGET)


def test_killed(undisturbed, tmp_path):
    """All its processes, as a queue or a crash of the machine does it; jobs go on where they were."""
    score, (expected, seconds) = Score("Snakemake killed (KILL, TERM, INT)", "run of six jobs"), undisturbed
    numbers = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
    for index in range(2):
        folder = fresh(tmp_path / str(index))
        kills = []
        for turn, number in enumerate(numbers):
            random = program.chance("snakemake", index, turn)
            process = begun(folder)
            share = 0.1 + 0.5 * random.random()
            time.sleep(share * seconds)
            if process.poll() is None:
                os.killpg(process.pid, number)
                kills.append(f"{number.name} after {share:.2f} of its time")
            process.wait(timeout=120)
            time.sleep(0.5)
            subprocess.run([*COMMAND, "--unlock"], cwd=folder, env=environment(), capture_output=True, check=False)
        run = finish(folder)
        wrong = "" if run.returncode == 0 else (run.stdout + run.stderr)[-2000:]
        wrong = wrong or program.differences(made(folder), expected)
        for what in kills:
            score.add(what, wrong, silent=run.returncode == 0)
    score.close()


def test_two_at_once(undisturbed, tmp_path):
    """The second one is refused by Snakemake's lock; the first ends as if it were alone."""
    score, folder = Score("two Snakemakes at once", "run of six jobs"), fresh(tmp_path / "two")
    first = begun(folder)
    while first.poll() is None and not list((folder / ".snakemake/locks").glob("*")):
        time.sleep(0.05)
    second = snakemake(folder, TARGET)
    said = second.stdout + second.stderr
    wrong = "" if second.returncode and "lock" in said.lower() else f"the second was not refused: {said[-500:]}"
    if first.wait(timeout=600):
        wrong = wrong or (folder / "said").read_text()[-1000:]
    score.add("at the start", wrong or program.differences(made(folder), undisturbed[0]), silent=True)
    score.close()


def test_a_file_in_the_middle_was_damaged(undisturbed, tmp_path):
    """With a new time of change its consumers run again and refuse it; it is made again once it was removed."""
    score, folder = Score("damage between two runs", "merged set of a run"), fresh(tmp_path / "damaged")
    assert snakemake(folder, TARGET).returncode == 0
    data = folder / "results/tiny/digits/cnn-s/dss/seed-0/data.h5"
    whole = data.read_bytes()
    data.write_bytes(whole[:-100] + bytes(100))
    run = snakemake(folder, TARGET)
    again = snakemake(folder, TARGET)
    wrong = "" if again.returncode == 0 else (run.stdout + again.stdout + again.stderr)[-2000:]
    score.add("its last bytes zero", wrong or program.differences(made(folder), undisturbed[0]), silent=True)
    score.close()
