"""The yardstick of training sets: its measures by hand, and the whole of it on a tiny teacher."""

import csv
import json
import math

import h5py
import numpy as np
import pytest
import torch
import yaml
from support import tiny

from benchmarks import sources
from dfshield.models.checkpoints import load_checkpoint, read_card


@pytest.mark.parametrize("power", [0, -1, -2, -3])
def test_the_slope_of_a_spectrum_is_that_it_was_made_with(power):
    side, random = 32, torch.Generator().manual_seed(0)
    frequency = torch.fft.fftfreq(side) * side
    radius = (frequency[:, None].square() + frequency[None].square()).sqrt().clamp_min(1)
    white = torch.fft.fft2(torch.randn((400, 1, side, side), generator=random))
    images = torch.fft.ifft2(white * radius ** (power / 2)).real
    assert sources.slope(images) == pytest.approx(power, abs=0.15)


def test_the_distance_of_statistics_by_hand(tmp_path):
    model, _ = load_checkpoint(tiny.teacher(tmp_path / "teacher.safetensors"))
    layers = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    x = torch.from_numpy(tiny.images(150)).permute(0, 3, 1, 2).contiguous()
    seen = {}
    for layer in layers:
        layer.register_forward_pre_hook(lambda m, inputs: seen.update({m: inputs[0]}))
    expected = []
    for batch in x.split(sources.STATISTICS):
        with torch.no_grad():
            model(batch)
        expected.append(0.0)
        for layer in layers:
            variance, mean = torch.var_mean(seen[layer], (0, 2, 3), correction=0)
            expected[-1] += float((mean - layer.running_mean).norm() + (variance - layer.running_var).norm())
    assert sources.statistics_distance(model, x) == pytest.approx(np.mean(expected), rel=1e-4)


@pytest.fixture
def words(tmp_path):
    tiny.teacher(tmp_path / "teacher.safetensors")
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "real.npz", x=tiny.images(80), y=rng.integers(0, 10, 80))
    made = {"stage": "synthesize", "iterations": 2, "batch": 20, "labels": "random"}
    train = {"loss": "dfshield", "epochs": 1, "batch": 20, "aggregate": 1, "attack_steps": 1, "holdout": 20}
    config = {"sources": {"dss": made, "other": made | {"coefficients": "fixed"}}, "train": train}
    (tmp_path / "sources.yaml").write_text(yaml.safe_dump(config))
    files = {"teacher": "teacher.safetensors", "evaluation": "real.npz", "real": "real.npz", "config": "sources.yaml"}
    files |= {"folder": "kept", "out": "out/sources.csv"}
    given = [word for name, file in files.items() for word in (f"--{name}", str(tmp_path / file))]
    return [*given, "--threat", "linf:0.05", "--images", "80", "--skip", "20"]


@pytest.mark.slow
def test_one_row_a_source_and_seed(words, tmp_path, capsys):
    assert sources.main([*words, "--seeds", "0", "1"]) == 0
    with (tmp_path / "out/sources.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["source"], row["seed"]) for row in rows] == [
        (name, seed) for seed in "01" for name in ("real", "dss", "other")
    ]
    assert [row["real_data"] for row in rows[:3]] == ["train", "none", "none"]
    assert {row["images"] for row in rows} == {"80"}
    for row in rows:
        assert 0 <= float(row["robust"]) <= float(row["clean"]) <= 100
        making = float(row["seconds_making"])
        rate = 60 * float(row["robust"]) / making if making else math.nan
        assert float(row["robust_per_minute"]) == pytest.approx(rate, nan_ok=True)
    assert rows[1]["statistics_distance"] != rows[4]["statistics_distance"], "another seed, other images"
    table = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in table[2:]] == ["| real", "| dss", "| other"] and " to " in table[3]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--only", "nothing"], "--only: no source nothing; there are real, dss, other"),
        (["--skip", "80"], "has no images after the first 80"),
        (["--evaluation", "missing.npz"], "missing.npz"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_any_work(words, tmp_path, capsys, more, message):
    assert sources.main([*words, *more]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not (tmp_path / "kept").exists()


def test_guides_are_students_of_earlier_sources(words, tmp_path, capsys):
    config = yaml.safe_load((tmp_path / "sources.yaml").read_text())
    config["sources"]["guided"] = config["sources"]["dss"] | {"guides": ["other"]}
    (tmp_path / "sources.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    assert sources.main([*words, "--only", "guided"]) == 0
    with (tmp_path / "out/sources.csv").open() as file:
        other, guided = csv.DictReader(file)
    assert (other["source"], guided["source"]) == ("other", "guided"), "what it needs, and nothing else"
    with h5py.File(tmp_path / "kept/guided-0/data.h5") as file:
        assert json.loads(file.attrs["guides"]) == [
            read_card(tmp_path / "kept/other-0/student.safetensors").tensors_sha256
        ]
    whole = float(other["seconds_making"]) + float(other["seconds_training"])
    assert float(guided["seconds_making"]) > whole, "a guide takes its time"
    config["sources"]["dss"]["guides"] = ["guided"]
    (tmp_path / "sources.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    capsys.readouterr()
    assert sources.main(words) == 2
    assert "dss: no earlier source guided for a guide" in capsys.readouterr().err
