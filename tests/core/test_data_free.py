"""The whole road by the command line alone: no real image is there while a robust model is made from a teacher."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dfshield import cli
from dfshield.core import datafree
from dfshield.evaluation.ledger import read_ledger
from dfshield.models.checkpoints import load_checkpoint, read_card
from dfshield.models.factory import build_network
from dfshield.planning.stages import STAGES
from dfshield.sources.trainset import header

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TEACHER = "teacher --out t.safetensors --dataset digits --model cnn-s --batch 64 --lr 3e-3 --device cpu --epochs"
SYNTHESIS = "--images 100 --batch 25 --iterations 8 --group 2 --device cpu"
TRAINING = "--batch 10 --aggregate 2 --holdout 20 --attack-steps 2 --lr 0.01 --device cpu --epochs"
BASELINES = "--epochs 2 --iterations 2 --batch 20 --generator-width 0.05 --attack-steps 2 --device cpu"
PATHS = {"rival.safetensors", "t.safetensors", "s0.h5", "s1.h5", "data.h5", "student.safetensors", "m.csv", "l.h5"}


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Run the command line as a program of its own; with ``data=False`` no real data can be found."""
    empty = tmp_path / "moved-away"
    (empty / "sklearn").mkdir(parents=True)
    (empty / "sklearn" / "__init__.py").write_text("raise ImportError('the real data have been moved away')\n")
    monkeypatch.chdir(tmp_path)

    def run(words: str, data: bool = False) -> subprocess.CompletedProcess[str]:
        path = [str(ROOT)] if data else [str(empty), str(ROOT)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path), "DFSHIELD_DATA": str(tmp_path / "none")}
        command = [sys.executable, "-m", "dfshield", *words.split()]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    return run


def good(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_from_teacher_to_ledger_with_the_data_moved_away(program):
    good(program(f"{TEACHER} 4", data=True))
    for shard in range(2):
        good(program(f"synthesize --teacher t.safetensors --out s{shard}.h5 --shard {shard} --shards 2 {SYNTHESIS}"))
    good(program("merge s1.h5 s0.h5 --out data.h5"))
    good(
        program(f"train --teacher t.safetensors --data data.h5 --out student.safetensors --metrics m.csv {TRAINING} 2")
    )
    good(program(f"cotrain --teacher t.safetensors --out rival.safetensors {BASELINES}"))
    attack = "attack --model student.safetensors --out l.h5 --attack pgd --protocol pgd10 --limit 100 --device cpu"
    refused = program(attack)
    assert refused.returncode != 0
    assert "moved away" in refused.stderr
    good(program(attack, data=True))

    card, teacher = (read_card(Path(f"{name}.safetensors")) for name in ("student", "t"))
    data, ledger = header(Path("data.h5")), read_ledger(Path("l.h5"))
    assert (card.kind, card.real_data, data["real_data"]) == ("student", "none", "none")
    assert teacher.real_data == "teacher"
    assert read_card(Path("rival.safetensors")).real_data == "none"
    assert card.provenance["data_sha256"] == data["content_sha256"]
    assert card.provenance["teacher_sha256"] == data["teacher_sha256"] == teacher.tensors_sha256
    assert (ledger.n, ledger.model_sha256, ledger.real_data) == (100, card.tensors_sha256, "none")
    assert ledger.clean_accuracy > 30  # the student is still the classifier that its teacher was
    assert len(Path("m.csv").read_text().splitlines()) == 3
    assert {path.name for path in Path().iterdir() if path.is_file()} == PATHS


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """Run the command line in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DFSHIELD_DATA", str(tmp_path))

    return lambda words: cli.main(words.split())


def test_what_real_data_touch_is_marked(stage):
    stage(f"{TEACHER} 1")
    stage("export --out real.h5 --dataset digits --teacher t.safetensors")
    stage(f"train --teacher t.safetensors --data real.h5 --out student.safetensors --loss std {TRAINING} 1")
    card = read_card(Path("student.safetensors"))
    assert (card.real_data, card.provenance["source"]) == ("train", "real")


def test_public_images_are_marked(stage):
    stage(f"{TEACHER} 1")
    stage("public --out public.h5 --dataset photographs --images 60 --teacher t.safetensors --device cpu")
    stage(f"train --teacher t.safetensors --data public.h5 --out student.safetensors --loss std-soft {TRAINING} 1")
    card = read_card(Path("student.safetensors"))
    assert (card.real_data, card.provenance["source"]) == ("public", "public")


@pytest.mark.parametrize("stage", ["synthesize", "generate", "augment", "train", "cotrain", "defend"])
def test_a_data_free_stage_says_so_before_anything_else(monkeypatch, stage):
    class Begun(list):
        def append(self, name):
            raise Ended(name)

    class Ended(Exception):
        pass

    module, _, function = STAGES[stage].run.partition(":")
    run = getattr(importlib.import_module(module), function)
    monkeypatch.setattr(datafree, "_running", Begun())
    with pytest.raises(Ended, match=f"^{stage}$"):
        run()


@pytest.mark.parametrize(
    ("dataset", "model", "parameters"),
    [
        ("bloodmnist", "resnet18", 11_172_936),
        ("bloodmnist", "resnet50", 23_516_744),
        ("cifar10", "resnet20", 272_474),
        ("cifar10", "mobilenetv2", 2_236_682),
        ("cifar10", "shufflenetv2", 1_263_854),
    ],
)
def test_every_stage_with_the_papers_networks(stage, tmp_path, dataset, model, parameters):
    random = np.random.RandomState(0)
    if dataset == "bloodmnist":
        arrays = {}
        for split, count in (("train", 8), ("val", 4), ("test", 3)):
            arrays[f"{split}_images"] = random.randint(0, 256, (count, 28, 28, 3)).astype(np.uint8)
            arrays[f"{split}_labels"] = np.arange(count)[:, None] % 8
        np.savez(tmp_path / f"{dataset}.npz", **arrays)
        stage(f"teacher --out t.safetensors --dataset {dataset} --model {model} --epochs 1 --batch 4 --device cpu")
        evaluation = ""
    else:
        state = build_network(model, (3, 32, 32), 10).state_dict()
        save_file(state, tmp_path / "published.safetensors")
        words = f"teacher --out t.safetensors --dataset {dataset} --model {model} --weights published.safetensors"
        stage(f"{words} --device cpu")
        np.savez(tmp_path / "test.npz", x=random.randint(0, 256, (3, 32, 32, 3)).astype(np.uint8), y=np.arange(3))
        evaluation = "--evaluation test.npz"
    stage("synthesize --teacher t.safetensors --out s.h5 --images 4 --batch 2 --iterations 1 --device cpu")
    stage("merge s.h5 --out data.h5")
    stage(
        "train --teacher t.safetensors --data data.h5 --out student.safetensors --epochs 1 --batch 2 --aggregate 2 "
        "--tau 0 --holdout 0 --attack-steps 1 --threat linf:8/255 --device cpu"
    )
    stage(f"attack --model student.safetensors --out l.h5 --attack pgd --steps 1 --device cpu {evaluation}")
    student, card = load_checkpoint(tmp_path / "student.safetensors")
    teacher, _ = load_checkpoint(tmp_path / "t.safetensors")
    assert sum(parameter.numel() for parameter in student.parameters()) == parameters
    assert (card.real_data, card.provenance["updates"]) == ("none", 1)
    pairs = zip(student.parameters(), teacher.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)
    assert read_ledger(tmp_path / "l.h5").n == 3
