"""Files that are no weights of a PyTorch network: refused in one line, and nothing in them is run."""

import gzip
import io
import os
import pickle
import tarfile
import warnings
import zipfile

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from dfshield.core.errors import InputError
from dfshield.models.formats import read_weights
from dfshield.models.weights import load_weights

STATE = nn.Linear(2, 2).state_dict()


class Hostile:
    def __reduce__(self):
        return (eval, ("open('was_run', 'w')",))


def halve(path):
    torch.save({"a": torch.ones(5000)}, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def script(path):
    with warnings.catch_warnings(action="ignore"):  # TorchScript is deprecated
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)


def packed(path, name="w.bin"):
    inner = path.with_name(name)
    inner.write_bytes(b"weights")
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(inner, name)


def taped(path):
    path.with_name("w.bin").write_bytes(b"weights")
    with tarfile.open(path, "w") as archive:
        archive.add(path.with_name("w.bin"), "w.bin")


def keras(path):
    with h5py.File(path, "w") as file:
        file["weights"] = np.ones(3)


def arrays(path):
    with path.open("wb") as stream:
        np.savez(stream, a=np.ones(3))


FOREIGN = {
    "html": (lambda p: p.write_text("\n<html>Please log in</html>"), "HTML or XML page"),
    "code": (
        lambda p: torch.save({"state_dict": STATE, "extra": Hostile()}, p),
        "Python objects besides tensors",
    ),
    "code, legacy": (
        lambda p: torch.save({"extra": Hostile()}, p, _use_new_zipfile_serialization=False),
        "Python objects besides tensors",
    ),
    "code, plain": (lambda p: p.write_bytes(pickle.dumps(Hostile())), "other pickles are never loaded"),
    "whole model": (lambda p: torch.save(nn.Linear(2, 2), p), "Python objects besides tensors"),
    "script": (
        script,
        r"TorchScript .*a factory, or .*torch.save\(torch.jit.load\('weights.pth'\).state_dict\(\), ",
    ),
    "truncated": (halve, "damaged or not a PyTorch file"),
    "text": (lambda p: p.write_text("hello"), "damaged or not a PyTorch file"),
    "absent": (lambda p: None, "no such file"),
    "zip": (packed, "is a zip archive, .*unpack it"),
    "tar": (taped, "is a tar archive, .*unpack it"),
    "gzip": (lambda p: p.write_bytes(gzip.compress(b"weights")), "compressed by gzip"),
    "Keras": (keras, "an HDF5 file .*bring its weights into a PyTorch network"),
    "npz": (arrays, "is NumPy's format"),
    "npy": (lambda p: p.write_bytes(b"\x93NUMPY" + bytes(90)), "one NumPy array"),
}


@pytest.mark.parametrize(("write", "says"), FOREIGN.values(), ids=FOREIGN)
def test_what_is_no_weights_file_is_refused_in_one_line(tmp_path, monkeypatch, write, says):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "weights.pth")
    with pytest.raises(InputError, match=says) as caught:
        read_weights(tmp_path / "weights.pth")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("net.onnx", "ONNX graph"),
        ("net.tflite", "TensorFlow Lite"),
        ("net.pb", "TensorFlow checkpoint"),
        ("model.ckpt.index", "TensorFlow checkpoint"),
        ("model.ckpt.data-00001-of-00003", "TensorFlow checkpoint"),
        ("flax_model.msgpack", "JAX's msgpack"),
        ("net.pdparams", "Paddle's format"),
        ("net.pt2", "an exported program"),
    ],
)
def test_files_of_other_programs(tmp_path, name, says):
    (tmp_path / name).write_bytes(b"\x08\x03" + bytes(600))
    with pytest.raises(InputError, match=f"is .*{says}.*, not a PyTorch state dict; .*state_dict") as caught:
        read_weights(tmp_path / name)
    assert os.fspath(tmp_path / name) in str(caught.value)


def test_the_state_of_a_script_can_be_taken_over(tmp_path, monkeypatch):
    """The remedy that the message names."""
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings(action="ignore"):
        torch.jit.save(torch.jit.trace(nn.BatchNorm2d(3).eval(), torch.zeros(1, 3, 2, 2)), "a.pt")
        torch.save(torch.jit.load("a.pt").state_dict(), "weights.pt")
    net = nn.BatchNorm2d(3)
    nn.init.zeros_(net.weight)
    load_weights(net, tmp_path / "weights.pt")
    assert net.weight.sum() == 3


def test_every_truncation_is_refused(tmp_path):
    buffer = io.BytesIO()
    torch.save({"conv.weight": torch.arange(6.0).view(2, 3)}, buffer)
    whole = buffer.getvalue()
    for length in range(0, len(whole), 97):
        (tmp_path / "weights.pt").write_bytes(whole[:length])
        with pytest.raises(InputError):
            read_weights(tmp_path / "weights.pt")
