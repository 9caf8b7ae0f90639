"""The example `examples/text_direction/`: exact labels, the network as its owner has it, and the run of the script."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from api.test_harden import SETTINGS

from dfshield.api import from_files, harden

EXAMPLE = Path(__file__).parents[2] / "examples/text_direction"


@pytest.fixture
def module(monkeypatch):
    """A module of the example by its name."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    yield importlib.import_module
    for name in ("lines", "harden"):
        sys.modules.pop(name, None)


def test_lines_are_as_often_upright_as_turned(module):
    lines = module("lines")
    x, y = lines.lines(40)
    assert x.shape == (40, lines.HEIGHT, lines.WIDTH, 3) and x.dtype == np.uint8
    assert np.bincount(y).tolist() == [20, 20]
    upright = [image if turned == 0 else image[::-1, ::-1] for image, turned in zip(x, y, strict=True)]
    ink = [np.abs(image.astype(int) - image[0, -1]).sum(2) > 60 for image in upright]
    assert all(found.mean() > 0.02 for found in ink)  # no typeface lacks the letters
    assert all(found[:, :20].any() for found in ink)  # a line begins at the left
    assert not np.array_equal(x, lines.lines(40, seed=1)[0]) and np.array_equal(x, lines.lines(40)[0])


def test_the_network_tells_them_apart(module):
    pytest.importorskip("rapidocr_onnxruntime")
    x, y = module("lines").lines(40)
    shape, half = (3, 48, 192), [0.5] * 3
    found = from_files.read(Path(str(module("harden").MODEL)), None, {}, shape, half, half)
    with torch.no_grad():
        logits = found.network.eval()((torch.from_numpy(x).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5)
    assert (logits.argmax(1).numpy() == y).mean() >= 0.9


@pytest.mark.slow
def test_the_script(module, tmp_path, monkeypatch, capsys):
    pytest.importorskip("rapidocr_onnxruntime")
    make = harden._make
    monkeypatch.setattr(harden, "_make", lambda *values: make(*values[:-1], SETTINGS))
    monkeypatch.setattr(harden, "chosen", lambda *given: {})
    monkeypatch.setattr(harden, "measured", lambda plan: None)
    monkeypatch.setattr(sys, "argv", ["harden.py", "--images", "10", "--out", str(tmp_path / "out")])
    module("harden").main()
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in said[:-1]] == [
        [method, metric] for method in ("Undefended", "Hardened") for metric in ("clean", "pgd10", "autoattack")
    ]
    assert Path(said[-1].removeprefix("model card: ")).is_file()
