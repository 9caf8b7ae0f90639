"""A folder of good files for every case to spoil."""

import shutil

import pytest
from support.bad_input import make_whole


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """A folder with good files of every kind."""
    folder = tmp_path_factory.mktemp("whole")
    make_whole(folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path, monkeypatch):
    """A fresh copy of the good files, as the current folder."""
    copy = tmp_path / "work"
    shutil.copytree(whole, copy)
    monkeypatch.chdir(copy)
    monkeypatch.delenv("DFSHIELD_DATA", raising=False)
    return copy
