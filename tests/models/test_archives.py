"""Archives that could run code: refused before PyTorch reads them."""

import contextlib
import io
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from support.graphs import SMALL, small_net, write
from torch import nn

from dfshield.core.errors import InputError
from dfshield.models import archives
from dfshield.models.graphs import network


@pytest.fixture
def net():
    return small_net()


def rewritten(path, change):
    """The archive again, its files changed by `change(name, content)`, which may give None to leave one out."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, change(name, content))
    path.write_bytes(stream.getvalue())
    return path


class Touch:
    """A pickle of it writes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def pickled(path):
    stream = io.BytesIO()
    torch.save(Touch(path), stream)
    return stream.getvalue()


def changed(name, old, new):
    return lambda path, content: content.replace(old, new) if path.endswith(name) else content


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (changed("model.json", b"torch.ops.aten.relu.default", b"torch.hub.load"), "target 'torch.hub.load'"),
        (changed("model.json", b"Symbol(", b"__import__("), "expr_str"),
        (changed("model_weights_config.json", b'"use_pickle": false', b'"use_pickle": true'), "use_pickle"),
        (changed("model.json", b'"guards_code": []', b'"guards_code": ["exit()"]'), "guards_code"),
    ],
)
def test_a_program_that_may_run_code_is_never_read(net, tmp_path, monkeypatch, change, says):
    path = write(net, tmp_path / "net.pt2")
    before = path.read_bytes()
    rewritten(path, change)
    assert zipfile.ZipFile(path).namelist() == zipfile.ZipFile(io.BytesIO(before)).namelist()
    monkeypatch.setattr(torch.export, "load", lambda *given: pytest.fail("it was read"))
    with pytest.raises(InputError, match=rf"{says}.*never loaded"):
        network(str(path), SMALL)


def test_pickles_in_a_program_are_never_unpickled(net, tmp_path):
    path, mark = write(net, tmp_path / "net.pt2"), tmp_path / "mark"
    rewritten(path, lambda name, content: pickled(mark) if name.endswith("sample_inputs/model.pt") else content)
    with pytest.raises(InputError, match="sample inputs hold more than tensors"):
        network(str(path), SMALL)
    assert not mark.exists()
    with contextlib.suppress(Exception):
        torch.export.load(str(path))  # which is why
    assert mark.exists()


def test_libraries_and_second_files_of_a_name_are_refused(net, tmp_path):
    path = write(net, tmp_path / "net.pt2")
    folder = zipfile.ZipFile(path).namelist()[0].partition("/")[0]
    kept = path.read_bytes()
    for name, says in (("data/aotinductor/model/a.so", "holds"), ("models/model.json", "two files of one name")):
        path.write_bytes(kept)
        with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings(action="ignore"):
            archive.writestr(f"{folder}/{name}", b"{}")
        with pytest.raises(InputError, match=says):
            network(str(path), SMALL)


class Writes(nn.Module):
    def __init__(self, place: str):
        super().__init__()
        self.place = place

    def forward(self, x):
        torch.save(x, self.place)
        return x


class Restored(nn.Module):
    @torch.jit.export
    def __getstate__(self):
        return True

    @torch.jit.export
    def __setstate__(self, state: bool):
        self.training = state

    def forward(self, x):
        return x


@pytest.mark.parametrize(("kind", "says"), [(lambda p: Writes(str(p)), "save"), (lambda p: Restored(), "__setstate__")])
def test_torchscript_that_may_touch_files_is_never_loaded(tmp_path, monkeypatch, kind, says):
    path = tmp_path / "script.pt"
    torch.jit.script(kind(tmp_path / "mark")).save(str(path))
    monkeypatch.setattr(torch.jit, "load", lambda *given, **named: pytest.fail("it was loaded"))
    with pytest.raises(InputError, match=f"{says}.*never loaded"):
        network(str(path), SMALL)


def test_kinds_are_told_by_content(net, tmp_path):
    kinds = {name: archives.archive_kind(write(net, tmp_path / name)) for name in ("script.pt", "net.pt2")}
    assert kinds == {"script.pt": archives.SCRIPT, "net.pt2": archives.PROGRAM}
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    assert archives.archive_kind(tmp_path / "weights.pt") == ""
