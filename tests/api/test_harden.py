"""`dfshield.harden`, from a network to the hardened one with its card, in one process and without a checkout."""

import copy
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support import tiny
from torch import nn

import dfshield
from dfshield import cli
from dfshield.api import harden, minutes, run
from dfshield.models import given
from dfshield.planning.arithmetic import Throughput

SETTINGS = {
    "synthesize": {"images": 40, "batch": 20, "iterations": 3, "threads": 1},
    "train": {"epochs": 1, "batch": 10, "holdout": 10, "attack_steps": 1, "threads": 1},
    "attack": {"limit": 10, "threads": 1},
    "checks": {"limit": 5, "draws": 2, "gradients": 2, "binarised": 1, "threads": 1},
}
THREAT = "linf:2/16"


@pytest.fixture
def network():
    return tiny.classifier(scale=3.0).net


@pytest.fixture
def fast(monkeypatch):
    """No time is spent on measuring."""
    rates = {stage: {"model": 1e12} for stage in ("synthesis", "training")}
    monkeypatch.setattr(harden, "measured", lambda plan: Throughput("assumed", "cpu", rates))


def hardened(network, folder, **given):
    values = {"minutes": 1, "device": "cpu", "settings": SETTINGS, "folder": folder} | given
    shape, threat = values.pop("input_shape", tiny.SHAPE), values.pop("threat", THREAT)
    return dfshield.harden(network, shape, threat, **values)


def test_from_a_network_to_a_hardened_one(network, fast, tmp_path):
    before = copy.deepcopy(network.state_dict())
    x, y = tiny.images(20), np.arange(20) % tiny.CLASSES
    here = Path.cwd()
    result = hardened(network, tmp_path / "out", evaluation=(x, y))
    assert Path.cwd() == here
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert type(result.model) is type(network) and not result.model.training
    names = dict(network.named_parameters())
    assert any(not torch.equal(value, names[name]) for name, value in result.model.named_parameters())
    rows = {(row["method"], row["metric"]) for row in result.report}
    assert rows == {(m, k) for m in ("Undefended", "Hardened") for k in ("clean", "pgd10", "autoattack")}
    assert "\n# model, hardened against adversarial attack\n" in result.card.read_text()
    page = result.page.read_text()
    assert page.count('src="data:image/png;base64,') == 3 and "hardened against adversarial attack" not in page
    again = dfshield.load(result.results, network)
    assert all(torch.equal(value, result.model.state_dict()[name]) for name, value in again.state_dict().items())


def test_the_same_call_again_makes_nothing(network, fast, tmp_path, monkeypatch):
    first = hardened(network, tmp_path)
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.suffix in (".safetensors", ".h5")}
    monkeypatch.setattr(harden, "measured", lambda plan: pytest.fail("it is measured again"))
    second = hardened(network, tmp_path)
    assert all(path.stat().st_mtime_ns == then for path, then in made.items() if "harden/model" not in str(path.parent))
    states = [result.model.state_dict() for result in (first, second)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_another_network_in_the_same_folder_is_hardened_anew(network, fast, tmp_path):
    first = hardened(network, tmp_path).model
    other = tiny.classifier(seed=5, scale=3.0).net
    second = hardened(other, tmp_path).model
    assert not torch.equal(next(first.parameters()), next(second.parameters()))


def test_other_images_are_attacked_anew(network, fast, tmp_path):
    x, y = tiny.images(20), np.arange(20) % tiny.CLASSES
    first = hardened(network, tmp_path, evaluation=(x, y)).report
    second = hardened(network, tmp_path, evaluation=(1 - x, y)).report
    assert [row["ledger_sha256"] for row in first] != [row["ledger_sha256"] for row in second]


def test_real_images_come_last(network, fast, tmp_path, capsys):
    hardened(network, tmp_path, evaluation=(tiny.images(20), np.arange(20) % tiny.CLASSES))
    stages = re.findall(r"^\d+ of \d+: (\w+) ", capsys.readouterr().err, re.MULTILINE)
    assert stages[:4] == ["teacher", "synthesize", "merge", "train"]
    assert sorted(stages[4:]) == ["attack"] * 4 + ["card"] + ["checks"] * 2


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"input_shape": (8, 8)}, "input_shape: .* channels, height, width"),
        ({"minutes": 0}, "minutes: 0"),
        ({"threat": "linf:0"}, "ε is 0"),
        ({"evaluation": "missing.npz"}, "missing.npz: no such file"),
        ({"evaluation": (np.zeros((4, 9, 8, 1)), np.arange(4))}, "evaluation: "),
        ({"settings": {"train": {"epoch": 1}}}, "did you mean 'epochs'"),
        ({"name": "none"}, "none"),
        ({"mean": [0.1, 0.2]}, "mean has 2 values"),
    ],
)
def test_bad_input_is_refused_before_any_work(network, tmp_path, monkeypatch, changed, says):
    monkeypatch.setattr(run, "run", lambda *given: pytest.fail("work has begun"))
    monkeypatch.setattr(harden, "run", lambda *given: pytest.fail("work has begun"))
    with pytest.raises(dfshield.InputError, match=says) as refused:
        hardened(network, tmp_path, **changed)
    assert "\n" not in str(refused.value)


class TinyViT(nn.Module):
    """Four patches, one encoder layer with attention: LayerNorm alone."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(1, 16, 4, 4)
        self.place = nn.Parameter(torch.randn(1, 4, 16))
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        return self.head(self.layer(self.patches(x).flatten(2).transpose(1, 2) + self.place).mean(1))


def with_groups():
    """A CNN with GroupNorm."""
    convolutions = [nn.Conv2d(1, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1)]
    return nn.Sequential(*convolutions, nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10))


@pytest.mark.parametrize("build", [with_groups, TinyViT])
def test_a_network_without_statistics_is_hardened_and_the_card_says_so(build, fast, tmp_path):
    torch.manual_seed(0)
    x, y = tiny.images(20), np.arange(20) % tiny.CLASSES
    network = build()
    result = hardened(network, tmp_path, evaluation=(x, y))
    changed = [not torch.equal(a, b) for a, b in zip(network.parameters(), result.model.parameters(), strict=True)]
    assert any(changed)
    card = result.card.read_text()
    assert "no batch-normalisation statistics" in card and "less robustness is to be expected" in card
    assert "vary `True`" in card and "start `smooth`" in card
    assert {row["metric"] for row in result.report} >= {"clean"}
    (data,) = tmp_path.rglob("data.h5")
    with h5py.File(data) as file:
        assert not file["final_loss/feature"][()].any() and file["final_loss/class"][()].all()
        assert len(set(file["coefficients/class"][()])) == 2  # DSS draws for each batch


def test_settings_win_over_what_a_network_without_statistics_gets(fast, tmp_path):
    settings = SETTINGS | {"synthesize": SETTINGS["synthesize"] | {"inversion": {"vary": False}}}
    card = hardened(with_groups(), tmp_path, settings=settings).card.read_text()
    assert "vary `False`" in card and "start `smooth`" in card


def test_the_card_of_a_network_with_statistics_names_them(network, fast, tmp_path):
    card = hardened(network, tmp_path).card.read_text()
    assert "batch-normalisation statistics. No real image" in card and "less robustness" not in card


def test_a_network_without_parameters_is_refused(tmp_path):
    with pytest.raises(dfshield.InputError, match="has no parameters; there is nothing to train"):
        hardened(nn.Sequential(nn.AvgPool2d(2), nn.Flatten()), tmp_path)


class TestBudget:
    def test_sizes_keep_the_proportions(self):
        assert minutes.sized(6000)["synthesize"] == {"images": 6000, "iterations": 250}
        assert minutes.sized(60_000) == {
            "synthesize": {"images": 60_000, "iterations": 2000},
            "train": {"epochs": 200, "holdout": 200},
        }
        grown = [minutes.sized(100 * n) for n in range(1, 601)]
        steps = [size["synthesize"]["iterations"] for size in grown]
        assert steps == sorted(steps) and steps[0] == minutes.FEWEST_STEPS

    def test_more_time_buys_more(self, network, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        found = []
        monkeypatch.setattr(harden, "measured", lambda plan: Throughput("assumed", "cpu", rates))
        for speed in (1e9, 1e10):
            rates = {stage: {"model": speed} for stage in ("synthesis", "training")}
            for time in (2, 8):
                folder = tmp_path / f"{speed}-{time}"
                monkeypatch.setattr(harden, "run", lambda *given: None)
                with pytest.raises(FileNotFoundError):
                    _ = hardened(network, folder, minutes=time, settings={}).report
                found.append(chosen(folder)["synthesize"]["images"])
        assert found[0] < found[1] < found[3] and found[0] < found[2] < found[3]

    def test_too_little_time(self, network, tmp_path, monkeypatch):
        rates = {stage: {"model": 1e6} for stage in ("synthesis", "training")}
        monkeypatch.setattr(harden, "measured", lambda plan: Throughput("assumed", "cpu", rates))
        with pytest.raises(dfshield.InputError, match=r"minutes: 1 are too few .* give \d+ or more"):
            hardened(network, tmp_path, settings={})

    @pytest.mark.parametrize(("start", "step", "calls"), [(3.0, 0.1, [1, 1, 2, 8, 32]), (1.0, 40.0, [1, 1])])
    def test_a_rate_is_of_the_steps_alone(self, monkeypatch, start, step, calls):
        """A quick step is timed apart from what it takes to start; a slow one is not taken a second time."""
        now, sizes = [0.0], []
        monkeypatch.setattr(minutes.time, "perf_counter", lambda: now[0])

        def work(size):
            sizes.append(size)
            now[0] += start + size * step
            return 10.0 * size

        assert minutes._rate(work) == pytest.approx(10 / step, rel=0.03)
        assert sizes == calls

    def test_what_has_gone_already_is_not_planned_for(self, network, tmp_path, monkeypatch):
        rates = {stage: {"model": 1e9} for stage in ("synthesis", "training")}
        monkeypatch.setattr(harden, "measured", lambda plan: Throughput("assumed", "cpu", rates))
        monkeypatch.setattr(harden, "run", lambda *given: None)
        images = []
        for spent in (0, 120):
            monkeypatch.setattr(harden, "time", SimpleNamespace(perf_counter=iter([0.0, spent]).__next__))
            with pytest.raises(FileNotFoundError):
                _ = hardened(network, tmp_path / str(spent), minutes=4, settings={}).report
            images.append(chosen(tmp_path / str(spent))["synthesize"]["images"])
        assert images[1] < 0.75 * images[0]

    @pytest.mark.slow
    def test_what_is_measured_is_near_what_a_run_takes(self, network, tmp_path):
        """Within a factor of three, on a machine that may be busy: an error of units would be far off."""
        import time

        start = time.perf_counter()
        hardened(network, tmp_path, minutes=0.5, settings={})
        assert 0.15 < (time.perf_counter() - start) / 30 < 3


def chosen(folder: Path):
    from dfshield.core import sealed

    return sealed.read(folder / "results/model-run/budget.json", harden.CHOICE)["chosen"]


def test_the_mixture_is_handed_out(network, fast, tmp_path, monkeypatch):
    result = hardened(network, tmp_path, keep_accuracy=True)
    monkeypatch.setattr(given, "_held", {})  # as in another process
    mixed = dfshield.load(result.results, network, mixed=True)
    assert mixed(torch.rand(2, *tiny.SHAPE)).shape == (2, tiny.CLASSES)
    assert 'load(".", network, mixed=True)' in result.card.read_text()
    with pytest.raises(dfshield.InputError, match="is no folder"):
        dfshield.load(result.results / "model.safetensors", network, mixed=True)


def test_by_the_command_line(network, fast, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = "from support import tiny\n\n\ndef build():\n    return tiny.classifier(seed=7).net\n"
    (tmp_path / "mine.py").write_text(code)
    save_file(network.state_dict(), tmp_path / "mine.safetensors")
    words = f"harden --model mine.safetensors --factory mine.py:build --input-shape 1 8 8 --threat {THREAT}"
    make = harden._make
    monkeypatch.setattr(harden, "_make", lambda *values: make(*values[:-1], SETTINGS))
    cli.main([*words.split(), "--device", "cpu", "--out", "out", "--minutes", "1"])
    card = Path(capsys.readouterr().out.strip().splitlines()[-1])
    assert card == tmp_path / "out/results/harden/model/MODEL_CARD.md" and card.is_file()
    assert dfshield.load(card.parent, factory=f"{tmp_path}/mine.py:build")(torch.rand(1, *tiny.SHAPE)).shape == (1, 10)
    with pytest.raises(SystemExit):
        cli.main([*words.split(), "--minutes", "-1"])
    assert "minutes: -1.0 is no time" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["net.onnx", "net.pt2"])
def test_a_file_that_brings_its_network(torchvision, network, fast, tmp_path, monkeypatch, capsys, name):
    """By the command line, without a factory; what comes out is loaded without one, and answers as it is."""
    x = torch.rand(3, *tiny.SHAPE)
    with warnings.catch_warnings(action="ignore"):
        if name == "net.onnx":
            sizes, keep = {"images": {0: "n"}}, torch.onnx.TrainingMode.PRESERVE
            given_as = {"dynamic_axes": sizes, "input_names": ["images"], "do_constant_folding": False}
            torch.onnx.export(network, (x,), str(tmp_path / name), dynamo=False, training=keep, **given_as)
        else:
            free = ({0: torch.export.Dim("n")},)
            torch.export.save(torch.export.export(network.eval(), (x,), dynamic_shapes=free), tmp_path / name)
    monkeypatch.chdir(tmp_path)
    make = harden._make
    monkeypatch.setattr(harden, "_make", lambda *values: make(*values[:-1], SETTINGS))
    words = f"harden --model {name} --input-shape 1 8 8 --threat {THREAT} --device cpu --out out --minutes 1"
    cli.main(words.split())
    card = Path(capsys.readouterr().out.strip().splitlines()[-1])
    made = dfshield.load(card.parent)
    with torch.no_grad():
        assert made(x).shape == (3, 10) and not torch.allclose(made(x), network(x))
    assert ((card.parent / "model.onnx").is_file()) == (name == "net.onnx") == ("`model.onnx`" in card.read_text())


def test_weights_alone_where_a_graph_cannot_be_written(torchvision, network, fast, tmp_path, monkeypatch, capsys):
    from support.graphs import write

    from dfshield.models import onnx_file

    def refuse(*given, **named):
        raise RuntimeError("no such operator")

    file = write(network.eval(), tmp_path / "net.onnx", tiny.SHAPE)
    monkeypatch.setattr(onnx_file.torch.onnx, "export", refuse)
    result = hardened(str(file), tmp_path / "out")
    assert "model.onnx: not written: RuntimeError: no such operator" in capsys.readouterr().err
    assert "could not be written as one" in result.card.read_text()
    assert {path.name for path in result.results.iterdir()} >= {"model.safetensors", "MODEL_CARD.md"}
    assert not (result.results / "model.onnx").exists()


def test_what_cannot_be_loaded(network, tmp_path):
    path = tiny.teacher(tmp_path / "t.safetensors")
    assert dfshield.load(path)(torch.rand(1, *tiny.SHAPE)).shape == (1, 10)
    with pytest.raises(dfshield.InputError, match="two ways"):
        dfshield.load(path, network, "mine.py:build")
    with pytest.raises(dfshield.InputError, match=r"t\.safetensors: .*"):
        dfshield.load(path, nn.Linear(2, 3))


def test_to_import_the_package_is_quick():
    code = "import sys, dfshield; print('torch' in sys.modules, sorted(dfshield.__all__)[:3])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.startswith("False")


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="no attribute 'hardn'"):
        _ = dfshield.hardn


@pytest.mark.parametrize(("side", "expected"), [(8, 500), (32, 500), (64, 500), (128, 125), (224, 40), (4096, 1)])
def test_large_images_are_attacked_by_fewer(side, expected):
    assert harden._usual((3, side, side))["attack"]["chunk"] == expected
