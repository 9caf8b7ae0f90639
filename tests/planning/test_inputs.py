"""Files that a config names: refused before any work if they cannot be used, identified by content."""

import os
from pathlib import Path

import numpy as np
import pytest
from support.configs import MINE, changed

from dfshield.core.errors import InputError
from dfshield.data.headers import check_npz
from dfshield.planning.config import check_config
from dfshield.planning.inputs import own_model
from dfshield.planning.plan import Plan


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The files of `MINE`; weights and evaluation set below the data folder."""
    monkeypatch.delenv("DFSHIELD_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("net.py").write_text("def build(): ...\n")
    Path("data/net.pt").write_bytes(b"weights")
    save()
    return tmp_path


X, Y = np.zeros((4, 32, 32, 3), np.uint8), np.arange(4)


def save(x=X, y=Y):
    np.savez("data/test.npz", x=x, y=y)


def made(**changes) -> Plan:
    base = MINE
    for path, value in changes.items():
        base = changed(base, path.replace("__", "/"), value)
    return Plan.of(check_config(base, "my.yaml"))


def remove(path):
    return lambda: Path(path).unlink()


def replaced(path, content):
    return lambda: Path(path).write_bytes(content)


def as_folder(path):
    return lambda: (Path(path).unlink(), Path(path).mkdir())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            remove("data/net.pt"),
            r"^harden\.net\.weights: data/net\.pt: No such file or directory; give an abs",
        ),
        (
            as_folder("data/net.pt"),
            r"^harden\.net\.weights: data/net\.pt: is a folder with several or no weights files",
        ),
        (replaced("data/net.pt", b""), r"^harden\.net\.weights: data/net\.pt: is empty"),
        (remove("net.py"), r"^harden\.net\.factory: net\.py: No such file or directory; it is sought from the working"),
        (remove("data/test.npz"), r"^harden\.net\.evaluation\.file: data/test\.npz: No such file"),
        (as_folder("data/test.npz"), r"^harden\.net\.evaluation\.file: data/test\.npz: Is a directory"),
        (
            replaced("data/test.npz", b"text"),
            r"^harden\.net\.evaluation\.file: data/test\.npz: it holds pickled Python objects \(or is no \.npz\)",
        ),
        (lambda: np.savez("data/test.npz", x=np.zeros(3)), r"has no key y \(it has: x\)"),
        (lambda: save(np.zeros((4, 32, 31, 3))), "images are 32x31 with 3 channels, the model takes 32x32 with 3"),
        (lambda: save(np.zeros((4, 3, 32, 32))), "images are 3x32 with 32 channels"),
        (lambda: save(np.zeros((4, 32, 32, 3), int)), "images are int64; expected uint8 or float"),
        (lambda: save(np.zeros((4, 32, 32, 3), object)), "holds pickled Python objects"),
        (lambda: save(y=np.arange(5)), r"labels have shape \(5,\); expected \(4,\), one per image"),
        (lambda: save(y=np.zeros((4, 10), int)), r"labels have shape \(4, 10\)"),
        (lambda: save(y=np.zeros(4)), "labels are float64; expected integers 0 to 9"),
        (lambda: save(np.zeros((0, 32, 32, 3)), np.zeros(0, int)), "the set is empty"),
    ],
)
def test_files_that_cannot_be_used(folder, damage, message):
    made().check_files()
    damage()
    with pytest.raises(InputError, match=message) as error:
        made().check_files()
    assert "\n" not in str(error.value)


def test_a_name_that_no_file_system_takes(folder):
    with pytest.raises(InputError, match=r"^harden\.net\.weights: .*xxx: File name too long; give") as error:
        made(harden__net__weights="x" * 400).check_files()
    assert len(str(error.value)) < 500


def test_only_headers_of_an_evaluation_set_are_read(folder):
    """Values come later, after all that they could influence: bytes behind the headers may be anything."""
    text = Path("data/test.npz").read_bytes()
    start = text.index(b"NUMPY") + 128
    Path("data/test.npz").write_bytes(text[:start] + bytes(reversed(range(256))) + text[start + 256 :])
    check_npz(Path("data/test.npz"), (3, 32, 32), 10)
    for x, y in ((np.zeros((4, 32, 32)), np.arange(4)), (np.zeros((4, 32, 32, 1)), np.arange(4)[:, None])):
        save(x.astype(np.float32), y)
        check_npz(Path("data/test.npz"), (3, 32, 32), 10)  # grey images and MedMNIST's labels, as the loader takes them


def identity(**changes):
    plan = made(**changes)
    return own_model(plan.config, plan.subject("harden", "net"))


def test_where_files_lie_is_no_part_of_what_they_are(folder, monkeypatch):
    first = identity()
    os.utime("data/net.pt", (4e9, 4e9))
    assert identity() == identity(data_dir="./data") == identity(data_dir=str(folder / "data")) == first
    assert identity(harden__net__weights=str(folder / "data/net.pt")) == first
    Path("else where").mkdir()
    for name in ("net.py", "data/net.pt"):
        Path("else where", Path(name).name).write_bytes(Path(name).read_bytes())
    Path("link").symlink_to("else where")
    monkeypatch.setenv("DFSHIELD_DATA", "link")
    assert identity() == identity(harden__net__factory=f"{folder}/else where/net.py:build") == first


def test_what_a_model_is_made_of(folder):
    first = identity()
    assert identity(harden__net__arguments={"width": 3}) != first
    assert identity(harden__net__mean=[0.5, 0.5, 0.4]) != first
    assert identity(harden__net__factory="net.py:other") != first
    Path("data/net.pt").write_bytes(b"weight2")
    second = identity()
    assert second != first
    Path("net.py").write_text("def build(): pass\n")
    assert identity() not in (first, second)
