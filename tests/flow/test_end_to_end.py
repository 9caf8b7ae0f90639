"""The whole road at the smallest scale: every table, the user's own model, reruns, crashes."""

import csv
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from scipy.spatial.distance import cdist
from sklearn.datasets import load_digits
from support.snakemake import ROOT, dfshield, environment, jobs, snakemake, workspace

from dfshield.models.checkpoints import read_card

pytestmark = pytest.mark.slow
TABLES = tuple(f"table{number}" for number in (1, 4, 5, 6, 7, 8, 11, 12, 14, 15, 16, 17, 18, 19, 23, 24, 25, 26))
# ε is half of the pixel range, so that AutoAttack is over after its first attack.
TINY = {
    "name": "tiny",
    "device": "cpu",
    "shards": 2,
    "datasets": {"digits": {"models": ["cnn-s"], "threat": "linf:8/16"}},
    "teacher": {"epochs": 4, "batch": 64},
    "synthesis": {"images": 200, "batch": 50, "iterations": 5, "roll": 0, "labels": "random"},
    "training": {"epochs": 1, "batch": 20, "aggregate": 2, "lr": 0.02, "holdout": 20, "attack_steps": 2},
    "cotraining": {
        "epochs": 1,
        "iterations": 2,
        "batch": 20,
        "generator_width": 0.05,
        "generator_epochs": 0,
        "attack_steps": 2,
    },
    "attack": {"limit": 20},
    "diversity": {"features": "pixels"},
    "public": {"dataset": "photographs", "images": 100},
}
# One value per sweep, one metric besides AutoAttack where table 4 has shown all three.
SWEEPS = {"aggregate": [1], "tau": [0], "lambda1": [0.1], "lambda2": [10], "data_share": [0.5]}
# Table 5 and tables 14 and 15, the latter with the data set's own threat besides.
THREATS = {5: ["l2:8"], 14: ["linf:7/16", "linf:8/16"], 15: ["linf:7/16", "linf:8/16"]}
MODEL = """
from torch import nn


def build(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(36 * width, 10)
    )
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A workspace with all tables of the tiny config built, and what Snakemake said."""
    folder = workspace(tmp_path_factory.mktemp("tables"))
    (folder / "config/config.yaml").write_text(yaml.safe_dump(TINY))
    tables = yaml.safe_load((folder / "config/tables.yaml").read_text())
    for key, table in tables.items():
        table["sweep"] = {name: {"demo": SWEEPS[name], "full": SWEEPS[name]} for name in table.get("sweep", {})}
        if table["number"] in THREATS and "threats" in table:
            table["threats"] = dict.fromkeys(("demo", "full"), THREATS[table["number"]])
        if table["number"] in (14, 15):
            table["rows"] = [row for row in table["rows"] if row["method"] in ("Original", "DaST")]
        if key == "table2":
            continue
        if "recall" in table["metrics"]:  # one augmented source and what it is made of
            table["rows"] = [row for row in table["rows"] if row["method"] in ("Base", "+ Mixup")]
        if key != "table4":
            table["metrics"] = [metric for metric in table["metrics"] if metric != "pgd10"]
    (folder / "config/tables.yaml").write_text(yaml.safe_dump(tables))
    shutil.copytree(ROOT / "dfshield", folder / "copy/dfshield")
    return folder, snakemake(folder, "tables", package=folder / "copy")


class TestTables:
    """Every table built once; what happens to it afterwards."""

    def test_jobs(self, built):
        # Table 4: 2 attacks on 4 models and 4 rivals. Table 8: fixed data, 3 more students, 1 attack. Table 6 (on
        # digits 19 and 20 are the same): data by Mixup, 1 more student, 1 attack, 2 records. Tables 23, 24 and 25 (26
        # is the same on digits): a student each, 1 attack. Tables 7, 16 and 17 (the same on digits): 5 losses more.
        # Tables 1, 12 and 18 (the same on digits): public data and their student. Table 5: Ours and AIT in another
        # norm. Table 11: clean images. Tables 14 and 15 (the same): Original and DaST at another size. Figure 5: a
        # student on half of the images. An attack for each.
        expected = {"teacher": 1, "synthesize": 4, "merge": 2, "export": 1, "augment": 1, "diversity": 2, "public": 1}
        expected |= {"train": 3 + 3 + 1 + 3 + 5 + 1 + 1 + 1 + 1, "cotrain": 4 + 1 + 1}
        expected |= {"attack": 16 + 3 + 1 + 3 + 5 + 1 + 2 + 1 + 2 + 1, "table": 21, "tables": 1}
        assert jobs(built[1]) == expected

    def test_recall_and_coverage_are_those_of_the_surrogate_sets(self, built):
        """The cells of table 6 by a computation of their own, out of the files of the run."""
        folder = built[0] / "results"
        with (folder / "table6.csv").open() as file:
            cells = {(row["method"], row["metric"]): row["value"] for row in csv.DictReader(file)}
        pixels = load_digits().images.reshape(1797, 64) / 16
        real = pixels[np.random.RandomState(1797).permutation(1797)[:997]]
        for method, source in (("Base", "fixed"), ("+ Mixup", "mixup")):
            with h5py.File(folder / f"tiny/digits/cnn-s/{source}/seed-0/data.h5") as file:
                made = file["images"][()].reshape(-1, 64)
            between = cdist(real, made)
            radii, own = (np.sort(cdist(points, points), axis=1)[:, 5] for points in (real, made))
            assert cells[method, "coverage"] == f"{(between < radii[:, None]).any(1).mean():.3f}"
            assert cells[method, "recall"] == f"{(between < own).any(1).mean():.3f}"
        assert cells["Base", "jsd"] != cells["+ Mixup", "jsd"]

    def test_rows_on_public_images_are_marked_and_are_of_them(self, built):
        folder = built[0] / "results"
        with (folder / "table18.csv").open() as file:
            flags = {row["method"]: row["flags"] for row in csv.DictReader(file)}
        assert {method for method, found in flags.items() if "not-data-free" in found} == {"Original", "Public"}
        with h5py.File(folder / "tiny/digits/cnn-s/public/seed-0/data.h5") as file:
            assert (file.attrs["real_data"], file["images"].shape) == ("public", (100, 8, 8, 1))

    def test_sizes_of_perturbations_are_those_of_training_and_evaluation(self, built):
        folder = built[0] / "results"
        with (folder / "table14.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row["metric"] == "autoattack"]
        assert [(row["method"], row["threat"]) for row in rows] == [
            (method, f"linf:{eps}/16") for eps in (7, 8) for method in ("Original", "DaST")
        ]
        home = folder / "tiny/digits/cnn-s/real/std"
        cards = [read_card(home / f"linf-{eps}-16/seed-0/student.safetensors") for eps in (7, 8)]
        assert [card.provenance["options"]["threat"] for card in cards] == ["linf:7/16", "linf:8/16"]
        assert len({card.tensors_sha256 for card in cards}) == 2

    def test_cost_is_what_snakemake_measured(self, built):
        folder = built[0]
        assert jobs(snakemake(folder, "results/cost.csv", package=folder / "copy")) == {"cost": 1}
        with (folder / "results/cost.csv").open() as file:
            rows = {row["method"]: row for row in csv.DictReader(file)}
        assert list(rows) == ["Undefended", "DaST", "DFME", "AIT", "DFARD", "Ours", "Plus", "Original"]

        def measured(path):
            lines = (folder / "logs/tiny/digits/cnn-s" / f"{path}.benchmark.tsv").read_text().splitlines()
            return float(lines[1].split()[0])

        made = [f"dss/seed-0/{name}" for name in ("shard-0", "shard-1", "data")]
        assert float(rows["Ours"]["data_seconds"]) == pytest.approx(sum(map(measured, made)), rel=1e-4)
        trained = measured("dss/dfshield/linf-8-16/seed-0/student")
        assert float(rows["Ours"]["training_seconds"]) == pytest.approx(trained, rel=1e-4)
        assert float(rows["DaST"]["training_seconds"]) > 0 == float(rows["DaST"]["data_seconds"])
        assert jobs(snakemake(folder, "results/cost.csv", "-n", package=folder / "copy")) == {}

    def test_formulas(self, built):
        assert len((built[0] / "results/table2.csv").read_text().splitlines()) == 5

    @pytest.mark.parametrize("table", (*TABLES, "figure5"))
    def test_every_cell_is_traced_to_its_teacher(self, built, table):
        folder, _ = built
        for suffix in (".csv", ".md", ".tex"):
            assert (folder / f"results/{table}{suffix}").stat().st_size
        verified = dfshield(folder, "verify", f"results/{table}.csv")
        assert verified.returncode == 0, verified.stdout + verified.stderr

    def test_state_is_gone(self, built):
        assert not list((built[0] / "results/.state").iterdir())

    def test_config_in_force_is_kept(self, built):
        kept = yaml.safe_load((built[0] / "results/tiny/config.yaml").read_text())
        assert kept == TINY

    def test_a_printed_command_works_by_hand(self, built):
        folder, run = built
        target = "results/tiny/digits/cnn-s/dss/seed-0/data.h5"
        (command,) = re.findall(rf"^Shell command: (.* merge .*{target} .*)$", run.stdout + run.stderr, re.MULTILINE)
        aside = folder / "aside.h5"
        shutil.copy2(folder / target, aside)
        (folder / target).unlink()
        subprocess.run(["bash", "-c", command], cwd=folder, env=environment(), check=True, capture_output=True)
        assert (folder / target).read_bytes() == aside.read_bytes()
        shutil.copy2(aside, folder / target)  # with its time of change

    def test_report(self, built):
        folder, _ = built
        run = snakemake(folder, "tables", "--report", "report.html", package=folder / "copy")
        assert run.returncode == 0, run.stdout + run.stderr
        assert "results/table26.csv" in (folder / "report.html").read_text()

    @pytest.mark.parametrize("override", [None, "device=auto", "attack={threads: 2}", "data_dir=elsewhere"])
    def test_a_second_run_has_nothing_to_do(self, built, override):
        words = ("--config", override) if override else ()
        assert jobs(snakemake(built[0], "tables", "-n", *words, package=built[0] / "copy")) == {}

    @pytest.mark.parametrize(
        ("edits", "expected"),
        [
            # another loss, written and registered
            (
                {
                    "training/losses.py": (
                        "def trades(",
                        "def other(clean, *more):\n    return clean.sum()\n\n\ndef trades(",
                    )
                }
                | {
                    "registry.py": (
                        '    "std": Loss(',
                        '    "other": Loss("dfshield.training.losses:other"),\n    "std": Loss(',
                    )
                },
                {},
            ),
            # words about the loss
            (
                {"training/losses.py": ("    t = options.temperature", "    # warm\n    t = options.temperature")},
                {},
            ),
            # the loss itself: the students that it trains, and what follows
            (
                {"training/losses.py": ("lambda2 * smooth", "lambda2 * smooth * 1.0")},
                {"train": 10, "attack": 4 + 1 + 1 + 1 + 3 + 1 + 1, "table": 17, "tables": 1},
            ),
            # one rival's own way: its students at two sizes, their attacks and the tables that have them
            (
                {"cotraining/losses.py": ("beta * difference", "beta * difference * 1.0")},
                {"cotrain": 2, "attack": 2 + 1, "table": 5, "tables": 1},
            ),
            # a default that the config leaves alone
            (
                {"options/training.py": ('= 0.9\n    """SGD momentum"""', '= 0.8\n    """SGD momentum"""')},
                {"train": 19, "attack": 6 + 3 + 1 + 3 + 5 + 4, "table": 19, "tables": 1},
            ),
            # an augmentation: the set that it makes, what is trained on it and compared
            (
                {"synthesis/augmentation.py": ("share >= 0.5", "share > 0.5")},
                {"augment": 1, "train": 1, "attack": 1, "diversity": 1, "table": 3, "tables": 1},
            ),
            # a diversity metric
            (
                {"metrics/diversity.py": ("topk(k + 1,", "topk(k + 2,")},
                {"diversity": 2, "table": 3, "tables": 1},
            ),
        ],
        ids=["new-loss", "comment", "loss", "rival", "default", "augmentation", "metric"],
    )
    def test_what_an_edit_repeats(self, built, tmp_path, edits, expected):
        shutil.copytree(built[0] / "copy/dfshield", tmp_path / "dfshield")
        for name, (before, after) in edits.items():
            path = tmp_path / "dfshield" / name
            text = path.read_text()
            assert text.count(before) == 1
            path.write_text(text.replace(before, after))
        assert jobs(snakemake(built[0], "tables", "-n", package=tmp_path)) == expected


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A user's model, hardened by the default target: a factory file, weights, an evaluation set."""
    folder = workspace(tmp_path_factory.mktemp("own"))
    shutil.copytree(ROOT / "dfshield", folder / "copy/dfshield")
    namespace: dict = {}
    exec(MODEL, namespace)
    (folder / "mine.py").write_text(MODEL)
    (folder / "data").mkdir()
    torch.manual_seed(0)
    save_file(namespace["build"](4).state_dict(), folder / "data/mine.safetensors")
    np.savez(folder / "data/mine.npz", x=np.linspace(0, 1, 768).reshape(12, 8, 8, 1), y=np.arange(12) % 10)
    mine = {
        "factory": "mine.py:build",
        "arguments": {"width": 4},
        "weights": "mine.safetensors",
        "input_shape": [1, 8, 8],
        "classes": 10,
        "mean": [0.3],
        "std": [0.38],
        "threat": "linf:8/16",
        "evaluation": {"file": "mine.npz", "limit": 10, "protocols": ["pgd10"]},
    }
    values = {key: value for key, value in TINY.items() if key != "datasets"}
    (folder / "mine.yaml").write_text(yaml.safe_dump(values | {"name": "own", "harden": {"mine": mine}}))
    return folder, snakemake(folder, "--configfile", "mine.yaml", package=folder / "copy")


class TestYourOwnModel:
    """Weights in, a hardened model and its card out."""

    def again(self, folder):
        return jobs(snakemake(folder, "harden", "-n", "--configfile", "mine.yaml", package=folder / "copy"))

    def test_hardened_model_and_card(self, own):
        folder, run = own
        expected = {"teacher": 1, "synthesize": 2, "merge": 1, "train": 1, "attack": 2, "model_card": 1, "all": 1}
        assert jobs(run) == expected
        results = folder / "results/harden/mine"
        card = (results / "MODEL_CARD.md").read_text()
        assert "PGD" in card and "No real image was read before the evaluation" in card
        assert len((results / "report.csv").read_text().splitlines()) == 1 + 4
        student = folder / "results/own/harden/mine/dss/dfshield/linf-8-16/seed-0/student.safetensors"
        assert (results / "model.safetensors").read_bytes() == student.read_bytes()

    def test_shards_ran_at_the_same_time(self, own):
        spans = []
        for benchmark in (own[0] / "logs/own/harden/mine/dss/seed-0").glob("shard-*.benchmark.tsv"):
            seconds = float(benchmark.read_text().splitlines()[1].split()[0])
            spans.append((benchmark.stat().st_mtime - seconds, benchmark.stat().st_mtime))
        assert len(spans) == 2
        assert max(start for start, _ in spans) < min(end for _, end in spans)

    def test_what_repeats(self, own):
        folder, _ = own
        assert self.again(folder) == {}
        np.savez(folder / "data/mine.npz", x=np.linspace(1, 0, 768).reshape(12, 8, 8, 1), y=np.arange(12) % 10)
        assert self.again(folder) == {"attack": 2, "model_card": 1, "harden": 1}
        torch.manual_seed(1)
        namespace: dict = {}
        exec(MODEL, namespace)
        save_file(namespace["build"](4).state_dict(), folder / "data/mine.safetensors")
        assert self.again(folder)["teacher"] == 1


def killed_after(command: list[str], folder: Path, pieces: str) -> bool:
    """Start a command, kill it (-9) as soon as a file that matches `pieces` is there; whether it was still running."""
    process = subprocess.Popen(command, cwd=folder, env=environment(), stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(folder.glob(pieces)):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


SYNTHESIS = "--images 800 --batch 100 --iterations 100 --roll 0 --seed 3 --device cpu"
BASELINES = "--epochs 4 --iterations 30 --batch 20 --generator-width 0.1 --device cpu --seed 3"
TRAINING = "--epochs 6 --batch 20 --aggregate 2 --lr 0.02 --holdout 20 --device cpu --seed 3"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A folder with a teacher t, surrogate data data.h5 and two students, made without a crash."""
    folder = tmp_path_factory.mktemp("crashes")
    for command in (
        "teacher --dataset digits --model cnn-s --epochs 2 --device cpu --out t",
        f"synthesize --teacher t --out data.h5 {SYNTHESIS}",
        f"train --teacher t --data data.h5 --out student {TRAINING}",
        f"cotrain --teacher t --out rival {BASELINES}",
    ):
        made = dfshield(folder, *command.split())
        assert made.returncode == 0, made.stderr
    return folder


class TestCrashes:
    """A job that is killed goes on where it was, to the same bytes."""

    @pytest.mark.parametrize(
        ("words", "pieces", "same"),
        [
            (
                f"synthesize --teacher t --out s.h5 --state state {SYNTHESIS}",
                "state/synthesis-*/group-*3.npz",
                "data.h5",
            ),
            (
                f"train --teacher t --data data.h5 --out s --state state {TRAINING}",
                "state/training-*/epoch.pt",
                "student",
            ),
            (f"cotrain --teacher t --out c --state state {BASELINES}", "state/cotraining-*/epoch.pt", "rival"),
        ],
        ids=["synthesis", "training", "cotraining"],
    )
    def test_killed_and_started_again(self, undisturbed, words, pieces, same):
        out = undisturbed / words.split("--out ")[1].split()[0]
        command = [sys.executable, "-m", "dfshield", *words.split()]
        assert killed_after(command, undisturbed, pieces), "it was over before it could be killed"
        assert not out.exists()
        kept = set((undisturbed / "state").glob("*/*"))
        assert kept
        subprocess.run(command, cwd=undisturbed, env=environment(), check=True, capture_output=True)
        assert out.read_bytes() == (undisturbed / same).read_bytes()
        assert not list((undisturbed / "state").iterdir())
