"""Users' factory files: run as their authors run them, or refused in one line."""

import logging
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from dfshield import cli
from dfshield.core.errors import InputError
from dfshield.models import user_code
from dfshield.models.factory import build_network
from dfshield.models.user_code import call_factory

NET = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.Linear(width, 5)
    def forward(self, x):
        return self.fc(self.bn(self.conv(x)).mean((2, 3)))
"""
BUILD = NET + "def build():\n    return Net()\n"


def write(folder, files):
    for name, code in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(code))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of user code that is not the current one."""
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    return tmp_path


EAGER = "from own_blocks import Net\ndef build():\n    return Net()"
ARGUMENTS = "import argparse\nparser = argparse.ArgumentParser()\nparser.add_argument('--lr')\n"
WORKS = {
    "imports its folder": {"f.py": EAGER, "own_blocks.py": NET},
    "imports it when called": {
        "f.py": "def build():\n    from own_blocks import Net\n    return Net()",
        "own_blocks.py": NET,
    },
    "imports it when it runs": {
        "f.py": BUILD.replace("        return self", "        import own_scale\n        return own_scale.K * self"),
        "own_scale.py": "K = 2.0",
    },
    "imports the current folder": {"f.py": EAGER, "run/own_blocks.py": NET},
    "a script's arguments": {"f.py": BUILD + ARGUMENTS + "assert parser.parse_args().lr is None"},
    "arguments when called": {"f.py": NET + ARGUMENTS + "def build():\n    parser.parse_args()\n    return Net()"},
    "a guarded script": {"f.py": BUILD + "if __name__ == '__main__':\n    raise SystemExit(1)"},
    "another default type": {"f.py": "import torch\ntorch.set_default_dtype(torch.float64)\n" + BUILD},
}


@pytest.mark.parametrize("name", WORKS)
def test_what_works(folder, name):
    write(folder, WORKS[name])
    net = build_network("mine", (1, 8, 8), 5, "../f.py:build")
    assert net(torch.zeros(2, 1, 8, 8)).shape == (2, 5)
    assert next(net.parameters()).dtype == torch.float32


PACKAGES = {
    "package": ("pack/f.py", {"pack/__init__.py": "", "pack/blocks.py": NET}),
    "folder": ("pack/f.py", {"pack/blocks.py": NET}),
    "package in a package": (
        "pack/deep/f.py",
        {
            "pack/__init__.py": "",
            "pack/deep/__init__.py": "from ..blocks import Net",
            "pack/deep/blocks.py": "from . import Net",
            "pack/blocks.py": NET,
        },
    ),
}


@pytest.mark.parametrize(("file", "files"), PACKAGES.values(), ids=PACKAGES)
@pytest.mark.parametrize("lazy", [False, True])
def test_relative_imports(folder, file, files, lazy):
    code = "def build():\n    from .blocks import Net\n    return Net()"
    write(folder, files | {file: code if lazy else "from .blocks import Net\ndef build():\n    return Net()"})
    assert build_network("mine", (1, 8, 8), 5, f"../{file}:build").conv.out_channels == 4


FAILS = {
    "a script that needs arguments": (
        BUILD + "import argparse\np = argparse.ArgumentParser()\np.add_argument('data')\np.parse_args()",
        r"importing ../f.py failed: it ended the program \(SystemExit: 2\), saying 'f.py: error: the following "
        "arguments are required: data'",
    ),
    "an exit": (BUILD + "import sys\nsys.exit('no\\ndata')", r"it ended the program \(SystemExit: no data\); move"),
    "an exit when called": (NET + "def build():\n    exit(3)", r"build: it ended the program \(SystemExit: 3\)"),
    "prints before it fails": ("print('a')\nraise KeyError('b')", r"importing ../f.py failed: KeyError: 'b' \(f.py"),
    "a dependency": ("import nobody_has_this.part", "pip install nobody_has_this"),
    "a folder above": ("import own_above.net", r"own_above lies in .*: start dfshield there"),
    "a file of its folder": ("open('f.py')", r"relative paths are looked up from .*run: write Path\(__file__\).parent"),
    "arguments": (NET + "def build(depth):\n    return Net()", "missing 1 required positional argument: 'depth'"),
    "a class": (
        NET + "def build():\n    return Net",
        "returned the class Net, not an instance of it; it must",
    ),
    "weights": (
        NET + "def build():\n    return Net().state_dict()",
        r"a OrderedDict \(weights\? give them as a f",
    ),
    "a pair": (
        NET + "def build():\n    return Net(), str",
        r"returned a tuple \(Net, type\); it must return a",
    ),
    "nothing": (NET + "def build():\n    Net()", "returned a NoneType"),
    "a network": (NET + "build = Net()", "is a network, not a function"),
    "one network": (NET + "net = Net()\ndef build():\n    return net", "one and the same network at every call"),
    "a cached network": (
        "import functools\n" + BUILD.replace("def build", "@functools.cache\ndef build"),
        "one and the",
    ),
    "the meta device": (
        NET + "def build():\n    with torch.device('meta'):\n        return Net()",
        "on the meta device",
    ),
    "inference mode": (NET + "@torch.inference_mode()\ndef build():\n    return Net()", "inside torch.inference_mode"),
    "elements in one place": (
        NET + "def build():\n    net = Net()\n    net.register_buffer('ones', torch.ones(1).expand(3))\n    return net",
        r"ones has elements that share one place.*add .clone\(\)",
    ),
    "a GPU": (
        "def build():\n    raise AssertionError('Torch not compiled with CUDA enabled')",
        r"build the network on the CPU, without .cuda\(\)",
    ),
    "no Python": ("def (:", "SyntaxError"),
}


@pytest.mark.parametrize("name", FAILS)
def test_what_is_refused_in_one_line(folder, capsys, name):
    code, says = FAILS[name]
    write(folder, {"f.py": code, "own_above/__init__.py": ""})
    if name == "a folder above":
        write(folder, {"deep/f.py": code})
    factory = "../deep/f.py:build" if name == "a folder above" else "../f.py:build"
    with pytest.raises(InputError, match=says) as caught:
        call_factory(factory, {})
    assert "\n" not in str(caught.value) and str(caught.value).startswith(f"factory {factory}: ")
    assert capsys.readouterr() == ("", "")


def test_a_relative_import_in_a_folder_that_is_no_package(folder):
    code = "from .blocks import Net\ndef build():\n    return Net()"
    write(folder, {"my-net/f.py": code, "my-net/blocks.py": NET, "torch/f.py": code, "torch/blocks.py": NET})
    with pytest.raises(InputError, match=r"'my-net.f' is no name of a module; rename its folders"):
        call_factory("../my-net/f.py:build", {})
    with pytest.raises(InputError, match="torch is already another package; rename the folder"):
        call_factory("../torch/f.py:build", {})


def test_one_network_again_from_another_place(folder):
    """Where it is kept does not show."""
    write(folder, {"f.py": NET + "kept = [Net()]\ndef build():\n    return kept[0]\n"})
    kept = call_factory("../f.py:build", {})
    module = sys.modules[type(kept).__module__]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(user_code, "find_factory", lambda factory: module.build)
        with pytest.raises(InputError, match="one and the same network at every call"):
            call_factory("../f.py:build", {})


def test_two_folders_with_modules_of_one_name(folder):
    code = "from own_common import Net\ndef build():\n    return Net()"
    for name, width in (("a", 4), ("b", 6)):
        write(folder, {f"{name}/f.py": code, f"{name}/own_common.py": NET.replace("width=4", f"width={width}")})
    assert call_factory("../a/f.py:build", {}).conv.out_channels == 4
    with pytest.raises(InputError, match=r"module 'own_common' was already imported from .*; use the two factories"):
        call_factory("../b/f.py:build", {})
    assert call_factory("../a/f.py:build", {}).conv.out_channels == 4


CHANGES = """
torch.set_default_dtype(torch.float64)
torch.set_grad_enabled(False)
torch.set_num_threads(2)
torch.set_default_device("cpu")
torch.set_deterministic_debug_mode("warn")
torch.set_float32_matmul_precision("medium")
torch.backends.cudnn.benchmark = True
import os, sys
os.chdir("/")
sys.argv = ["theirs"]
"""


@pytest.mark.parametrize("called", [False, True])
def test_what_code_sets_for_the_process_is_put_back(folder, called):
    body = textwrap.indent(CHANGES, "    ") if called else ""
    write(folder, {"f.py": NET + ("" if called else CHANGES) + f"def build():\n{body}\n    return Net()\n"})
    before = [get() for get, _ in user_code.SETTINGS], Path.cwd()
    call_factory("../f.py:build", {})
    assert before == ([get() for get, _ in user_code.SETTINGS], Path.cwd())
    assert torch.get_default_dtype() == torch.float32 and torch.is_grad_enabled()


def test_what_code_prints_goes_to_standard_error(folder, capsys):
    write(folder, {"f.py": "import logging, sys\nprint('first')\nhandler = logging.StreamHandler()\n" + BUILD})
    net = call_factory("../f.py:build", {})
    assert capsys.readouterr() == ("", "first\n")
    record = logging.LogRecord("n", 30, "f.py", 1, "later", None, None)
    sys.modules[type(net).__module__].handler.emit(record)
    assert capsys.readouterr() == ("", "later\n")


def test_a_script_sees_no_arguments_of_the_program(folder, monkeypatch, capsys):
    write(folder, {"main.py": BUILD + "import argparse\nargparse.ArgumentParser().parse_args()\n"})
    words = [
        "teacher",
        "--out",
        "t.safetensors",
        "--factory",
        "../main.py:build",
        "--weights",
        "w.pt",
        "--device",
        "cpu",
    ]
    words += ["--input-shape", "1", "8", "8", "--classes", "5", "--mean", "0", "--std", "1"]
    torch.save(call_factory("../main.py:build", {}).state_dict(), "w.pt")
    monkeypatch.setattr(sys, "argv", ["dfshield", *words])
    cli.main()
    assert (folder / "run" / "t.safetensors").is_file()
    assert "usage" not in capsys.readouterr().err
