"""Good files of every kind, commands that take them, and what makes one of them wrong."""

import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from support import tiny
from support.configs import GRID, MINE, ROOT, changed
from support.ledgers import make_ledger, make_record

from dfshield import cli
from dfshield.core import hdf5
from dfshield.core.hashing import canonical_json
from dfshield.models.checkpoints import read_card
from dfshield.sources import trainset

NETWORKS = """
import torch
from torch import nn

def net(classes=10, norm=True):
    layers = [nn.Conv2d(1, 4, 3), *([nn.BatchNorm2d(4)] if norm else []), nn.Flatten(), nn.Linear(144, classes)]
    return nn.Sequential(*layers)

def fails():
    raise RuntimeError("first line\\nsecond line")

def text():
    return "no network"
"""
TABLES = ROOT / "config" / "tables.yaml"
SYNTHESIS = ("--images", "20", "--batch", "10", "--iterations", "1", "--device", "cpu")
TRAINING = ("--epochs", "1", "--batch", "10", "--aggregate", "1", "--holdout", "0", "--attack-steps", "1")
MINE_FLAGS = [
    *("teacher", "--out", "out.safetensors", "--model", "mine", "--factory", "net.py:net", "--weights", "net.pt"),
    *("--input-shape", "1", "8", "8", "--classes", "10", "--mean", "0.5", "--std", "0.5", "--device", "cpu"),
]
TRAIN = ["train", "--teacher", "teacher.safetensors", "--data", "data.h5", "--out", "out.safetensors", *TRAINING]
COTRAIN = [
    *("cotrain", "--teacher", "teacher.safetensors", "--out", "out.safetensors", "--epochs", "1", "--iterations", "1"),
    *("--batch", "20", "--generator-width", "0.05", "--attack-steps", "1", "--device", "cpu"),
]
SYNTHESIZE = ["synthesize", "--teacher", "teacher.safetensors", "--out", "out.h5", *SYNTHESIS]
GENERATE = [
    *("generate", "--teacher", "teacher.safetensors", "--out", "out.h5", "--device", "cpu"),
    *("--images", "4", "--batch", "4", "--width", "0.1"),
]
AUGMENT = ["augment", "--data", "data.h5", "--out", "out.h5"]
DIVERSITY = [
    *("diversity", "--teacher", "teacher.safetensors", "--data", "data.h5", "--out", "out.json", "--split", "dev"),
    *("--bins", "20", "--device", "cpu"),
]
ATTACK = [
    *("attack", "--model", "teacher.safetensors", "--out", "out.h5", "--attack", "clean", "--device", "cpu"),
    *("--evaluation", "test.npz"),
]


class Code:
    """What a hostile pickle would run."""

    def __reduce__(self):
        return (os.system, ("touch hacked",))


def make_whole(folder: Path) -> None:
    """A folder with good files of every kind."""
    teacher = tiny.teacher(folder / "teacher.safetensors")
    tiny.teacher(folder / "other.safetensors", seed=1)
    sha = read_card(teacher).tensors_sha256
    tiny.trainset(folder / "data.h5", teacher_sha256=sha)
    for first in (0, 2, 4):
        groups = {"groups": 6, "first_group": first, "last_group": first + 1, "classes": 4}
        header = tiny.header(teacher_sha256=sha, options=canonical_json({"group": 2, "batch": 5}), **groups)
        writer = trainset.Writer(folder / f"shard-{first // 2}.h5", header, ())
        writer.append(tiny.images(20), np.arange(20) % 4, np.arange(2 * first, 2 * first + 4).repeat(5), {}, {})
        writer.finish()
    make_ledger(folder / "ledger.h5", 180, 90)
    make_record(folder / "record.json")
    (folder / "net.py").write_text(NETWORKS)
    scope: dict = {}
    exec(NETWORKS, scope)
    torch.save(scope["net"]().state_dict(), folder / "net.pt")
    np.savez(folder / "test.npz", x=tiny.images(20), y=np.arange(20) % 10)
    (folder / "grid.yaml").write_text(yaml.safe_dump(GRID | {"tables": str(TABLES)}))
    (folder / "mine.yaml").write_text(yaml.safe_dump(MINE | {"tables": str(TABLES)}))


# --- spoilers: each makes one thing in the folder wrong --------------------------------------------------------------


def text(name, content):
    return lambda: Path(name).write_text(content)


def cut(name, share=0.5):
    def spoil():
        whole = Path(name).read_bytes()
        Path(name).write_bytes(whole[: int(share * len(whole))])

    return spoil


def flip(name, place):
    def spoil():
        content = bytearray(Path(name).read_bytes())
        content[int(place * len(content))] ^= 16
        Path(name).write_bytes(content)

    return spoil


def attribute(name, key, value):
    def spoil():
        with h5py.File(name, "r+") as file:
            file.attrs[key] = value

    return spoil


def rehash(name):
    """Make a forged file's stated hash right again, as a forger would."""
    with h5py.File(name, "r+") as file:
        hashes = {key: hdf5.sha256([file[key][()]]) for key in trainset._names(file)}
        file.attrs["content_sha256"] = trainset._content_hash(file, hashes)


def values(name, key, place, value):
    def spoil():
        with h5py.File(name, "r+") as file:
            file[key][place] = value
        rehash(name)

    return spoil


def config(name, base, path, value):
    return lambda: Path(name).write_text(yaml.safe_dump(changed(base, path, value) | {"tables": str(TABLES)}))


def weights(change):
    def spoil():
        state = torch.load("net.pt", weights_only=True)
        change(state)
        torch.save(state, "net.pt")

    return spoil


def npz(**arrays):
    good = {"x": tiny.images(20), "y": np.arange(20) % 10}
    return lambda: np.savez("test.npz", **{k: v for k, v in (good | arrays).items() if v is not None})


def damaged_ledger():
    with h5py.File("ledger.h5", "r+") as file:
        file["label"][0] = 3


def foreign_hdf5():
    with h5py.File("data.h5", "w") as file:
        file["images"] = np.zeros(3)


def foreign_safetensors():
    save_file(load_file("teacher.safetensors"), "teacher.safetensors")


def own_factory():
    """A checkpoint that names a user's code."""
    cli.main(mine("--out", "teacher.safetensors"))


def nothing():
    pass


def without(words, *flags):
    """The command without some flags and their values."""
    kept, dropping = [], False
    for word in words:
        dropping = word in flags or (dropping and not word.startswith("--"))
        kept += [] if dropping else [word]
    return kept


def mine(*words):
    """The import of a user's model with other values of some flags."""
    return [*without(MINE_FLAGS, *(word for word in words if word.startswith("--") and word in MINE_FLAGS)), *words]


# --- what is asked of every case -------------------------------------------------------------------------------------


def files(folder):
    """Every file below a folder with its content, but for what Python compiles."""
    found = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {path: content for path, content in found.items() if "__pycache__" not in path.parts}


def check(folder, before, status, out, err, message):
    assert status == 2, err
    assert err.count("\n") == 1, err
    assert message in err
    assert "Traceback" not in err + out
    assert err.startswith("dfshield")
    if not out.startswith(("ledger.h5", "data.h5", "teacher")):
        assert out == ""
    assert files(folder) == before


def run_case(folder, capsys, case):
    """Spoil the folder, run the command, and see that it is refused."""
    words, spoil, message = case
    spoil()
    capsys.readouterr()
    before = files(folder)
    with pytest.raises(SystemExit) as done:
        cli.main(list(words))
    captured = capsys.readouterr()
    check(folder, before, done.value.code, captured.out, captured.err, message)


def run_program(folder, case):
    """The same as a program of its own, where nothing of the tests can catch what it prints."""
    words, spoil, message = case
    spoil()
    before = files(folder)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "dfshield", *words], capture_output=True, text=True, env=environment, check=False
    )
    check(folder, before, done.returncode, done.stdout, done.stderr, message)
