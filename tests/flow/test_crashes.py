"""Jobs that are killed and started again."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.snakemake import dfshield, environment

pytestmark = pytest.mark.slow


def killed_after(command: list[str], folder: Path, pieces: str) -> bool:
    """Start a command, kill it (-9) as soon as a file that matches `pieces` is there; whether it was still running."""
    process = subprocess.Popen(command, cwd=folder, env=environment(), stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(folder.glob(pieces)):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


SYNTHESIS = "--images 800 --batch 100 --iterations 100 --roll 0 --seed 3 --device cpu"
BASELINES = "--epochs 4 --iterations 30 --batch 20 --generator-width 0.1 --device cpu --seed 3"
TRAINING = "--epochs 6 --batch 20 --aggregate 2 --lr 0.02 --holdout 20 --device cpu --seed 3"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A folder with a teacher t, a training set data.h5 and two students, made without a crash."""
    folder = tmp_path_factory.mktemp("crashes")
    for command in (
        "teacher --dataset digits --model cnn-s --epochs 2 --device cpu --out t",
        f"synthesize --teacher t --out data.h5 {SYNTHESIS}",
        f"train --teacher t --data data.h5 --out student {TRAINING}",
        f"cotrain --teacher t --out rival {BASELINES}",
    ):
        made = dfshield(folder, *command.split())
        assert made.returncode == 0, made.stderr
    return folder


class TestCrashes:
    """A job that is killed goes on where it was, to the same bytes."""

    @pytest.mark.parametrize(
        ("words", "pieces", "same"),
        [
            (
                f"synthesize --teacher t --out s.h5 --state state {SYNTHESIS}",
                "state/synthesis-*/group-*3.npz",
                "data.h5",
            ),
            (
                f"train --teacher t --data data.h5 --out s --state state {TRAINING}",
                "state/training-*/epoch.pt",
                "student",
            ),
            (f"cotrain --teacher t --out c --state state {BASELINES}", "state/cotraining-*/epoch.pt", "rival"),
        ],
        ids=["synthesis", "training", "cotraining"],
    )
    def test_killed_and_started_again(self, undisturbed, words, pieces, same):
        out = undisturbed / words.split("--out ")[1].split()[0]
        command = [sys.executable, "-m", "dfshield", *words.split()]
        assert killed_after(command, undisturbed, pieces), "it was over before it could be killed"
        assert not out.exists()
        kept = set((undisturbed / "state").glob("*/*"))
        assert kept
        subprocess.run(command, cwd=undisturbed, env=environment(), check=True, capture_output=True)
        assert out.read_bytes() == (undisturbed / same).read_bytes()
        assert not list((undisturbed / "state").iterdir())
