"""Kept state: only what is whole, of this program and of this run is used; nothing that befalls it is an error."""

import os
import random
import shutil

import numpy as np
import pytest

from dfshield.core import files, state
from dfshield.core.state import forget, keep, keep_arrays, kept, kept_arrays, run_folder

PAYLOAD = bytes(range(256)) * 4


@pytest.fixture
def path(tmp_path):
    made = tmp_path / "stage-key" / "000003-pgd.npz"
    keep(made, PAYLOAD)
    return made


def refused(path, capsys) -> bool:
    """Whether a piece is not used, which is said in one line."""
    capsys.readouterr()
    found = kept(path)
    told = capsys.readouterr().err
    assert (found is None) == (told == f"{path}: damaged, or of another program or run; what it held is made again\n")
    return found is None


def test_what_was_kept_comes_back(path, capsys):
    assert kept(path) == PAYLOAD
    assert kept(path.with_name("other")) is None and kept(None) is None
    keep(None, PAYLOAD)
    forget(path.parent)
    forget(path.parent)
    forget(None)
    assert not path.parent.exists() and capsys.readouterr().err == ""


def test_a_flip_of_any_bit_is_noticed(path, capsys):
    whole = path.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        assert refused(path, capsys), place


DAMAGE = {
    "nothing in it": lambda whole: b"",
    "cut in the header": lambda whole: whole[:30],
    "cut in the digest": lambda whole: whole[:60],
    "cut": lambda whole: whole[:-1],
    "too long": lambda whole: whole + b"\0",
    "a page of zeros": lambda whole: whole[:512] + bytes(512) + whole[1024:],
    "all zeros": lambda whole: bytes(len(whole)),
    "without its digest": lambda whole: PAYLOAD,
    "of an older program": lambda whole: whole.replace(b" state 2", b" state 1"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_noticed(path, capsys, damage):
    path.write_bytes(damage(path.read_bytes()))
    assert refused(path, capsys)
    keep(path, PAYLOAD)
    assert kept(path) == PAYLOAD


@pytest.mark.parametrize("place", ["stage-key/000004-pgd.npz", "stage-other/000003-pgd.npz"])
def test_a_piece_that_belongs_elsewhere_is_not_used(path, capsys, place):
    elsewhere = path.parents[1] / place
    elsewhere.parent.mkdir(exist_ok=True)
    shutil.copy(path, elsewhere)
    assert refused(elsewhere, capsys)
    shutil.move(path.parents[1], path.parents[2] / "moved")  # the whole folder of results may move
    assert kept(path.parents[2] / "moved" / path.parent.name / path.name) == PAYLOAD


WRONG = {
    "a folder": lambda path: (path.mkdir(), (path / "x").touch()),
    "a loop of links": lambda path: path.symlink_to(path.name),
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a pipe": os.mkfifo,
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_what_is_no_file_is_replaced(path, capsys, wrong):
    path.unlink()
    wrong(path)
    assert refused(path, capsys)
    keep(path, PAYLOAD)
    assert kept(path) == PAYLOAD


def test_a_file_in_place_of_the_folder_is_replaced(path):
    shutil.rmtree(path.parent)
    path.parent.write_text("x")
    assert kept(path) is None
    keep(path, PAYLOAD)
    assert kept(path) == PAYLOAD


@pytest.mark.parametrize("times", [1, state.TRIES])
def test_a_folder_that_vanishes_is_made_again(path, monkeypatch, times):
    """The first of two equal jobs to finish removes the folder while the other writes into it."""
    genuine, removed = files.os.fsync, []

    def fsync(number):
        genuine(number)
        if len(removed) < times:
            removed.append(shutil.rmtree(path.parent))

    monkeypatch.setattr(files.os, "fsync", fsync)
    keep(path, PAYLOAD)
    assert kept(path) == (PAYLOAD if times < state.TRIES else None)
    assert len(removed) == times


def test_arrays_come_back(tmp_path):
    given = {"a": np.arange(6).reshape(2, 3).astype(np.float16), "empty": np.zeros((0, 4), bool)}
    keep_arrays(tmp_path / "x.npz", given)
    found = kept_arrays(tmp_path / "x.npz")
    assert found is not None and list(found) == list(given)
    assert all(np.array_equal(found[name], given[name]) and found[name].dtype == given[name].dtype for name in given)
    assert kept_arrays(tmp_path / "y.npz") is None
    keep_arrays(None, given)


def test_every_run_has_a_folder_of_its_own(tmp_path):
    assert run_folder(None, "train", 1) is None
    folders = [run_folder(tmp_path, stage, key) for stage in ("train", "cotrain") for key in (1, 2, "1")]
    assert len(set(folders)) == 6 and folders[0] == run_folder(tmp_path, "train", 1)


def test_random_damage_is_noticed(path, capsys):
    whole, dice = path.read_bytes(), random.Random(0)
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(dice.randint(1, 4)):
            damaged[dice.randrange(len(whole))] = dice.randrange(256)
        path.write_bytes(damaged)
        assert refused(path, capsys) or bytes(damaged) == whole
