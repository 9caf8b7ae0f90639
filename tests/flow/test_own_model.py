"""A user's own model at the smallest scale: from weights to a hardened model with its card."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from support.own_model import MODEL, write_own_model
from support.snakemake import ROOT, jobs, snakemake, workspace

from dfshield.defences.fit_file import load_defended
from dfshield.evaluation.ledger import read_ledger
from dfshield.report.rows import read_csv
from dfshield.tools.verify import verify

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A user's model, hardened by the default target: a factory file, weights, an evaluation set."""
    folder = workspace(tmp_path_factory.mktemp("own"))
    shutil.copytree(ROOT / "dfshield", folder / "copy/dfshield")
    write_own_model(folder, ["pgd10"])
    return folder, snakemake(folder, "--configfile", "mine.yaml", package=folder / "copy")


class TestYourOwnModel:
    """Weights in, a hardened model and its card out."""

    def again(self, folder):
        return jobs(snakemake(folder, "harden", "-n", "--configfile", "mine.yaml", package=folder / "copy"))

    def test_hardened_model_and_card(self, own):
        folder, run = own
        expected = {"teacher": 1, "synthesize": 2, "merge": 1, "train": 1, "attack": 2, "harden_model": 1, "all": 1}
        assert jobs(run) == expected
        results = folder / "results/harden/mine"
        card = (results / "MODEL_CARD.md").read_text()
        assert "PGD" in card and "No real image was read before the evaluation" in card
        assert len((results / "report.csv").read_text().splitlines()) == 1 + 4
        student = folder / "results/own/harden/mine/dss/dfshield/linf-8-16/seed-0/student.safetensors"
        assert (results / "model.safetensors").read_bytes() == student.read_bytes()

    def test_it_can_keep_its_accuracy(self, own, monkeypatch, capsys):
        """One fit, one attack more; what is handed out can be loaded and is traced to its teacher."""
        folder = own[0].with_name("kept")
        shutil.copytree(own[0], folder)
        values = yaml.safe_load((folder / "mine.yaml").read_text())
        values["harden"]["mine"]["keep_accuracy"] = True
        (folder / "mine.yaml").write_text(yaml.safe_dump(values))
        run = snakemake(folder, "--configfile", "mine.yaml", package=folder / "copy")
        assert jobs(run) == {"defend": 1, "attack": 1, "harden_model": 1, "all": 1}
        assert self.again(folder) == {}
        monkeypatch.chdir(folder)
        results = Path("results/harden/mine")
        fit = Path("results/own/harden/mine/dss/dfshield/linf-8-16/seed-0/eval/mixture/defence.safetensors")
        assert (results / "defence.safetensors").read_bytes() == fit.read_bytes()
        rows = read_csv(results / "report.csv")
        assert [(row.method, row.defence) for row in rows[-2:]] == [("Mixed", "mixture")] * 2 and len(rows) == 6
        model = load_defended(results / "model.safetensors", results / "defence.safetensors", "mine.py:build")
        ledger = read_ledger(fit.with_name("pgd10@linf-8-16") / "ledger.h5")
        x = torch.from_numpy(np.load("data/mine.npz")["x"][:10]).float().permute(0, 3, 1, 2)
        assert np.array_equal(model(x).argmax(1), ledger.clean_prediction)
        assert verify(results / "report.csv") == 0
        fit.write_bytes(fit.read_bytes()[:-1] + b"?")
        assert verify(results / "report.csv") == 1
        assert "BROKEN  harden mine Mixed pgd10 seed 0: " in capsys.readouterr().out

    def test_shards_ran_at_the_same_time(self, own):
        spans = []
        for benchmark in (own[0] / "logs/own/harden/mine/dss/seed-0").glob("shard-*.benchmark.tsv"):
            seconds = float(benchmark.read_text().splitlines()[1].split()[0])
            spans.append((benchmark.stat().st_mtime - seconds, benchmark.stat().st_mtime))
        assert len(spans) == 2
        assert max(start for start, _ in spans) < min(end for _, end in spans)

    def moved(self, folder):
        """Where files lie, how that is spelled and when they were written is no reason to run again."""
        elsewhere = folder.with_name("else where")
        shutil.copytree(folder / "data", elsewhere)
        os.utime(elsewhere / "mine.npz", (4e9, 4e9))
        shutil.copy(folder / "mine.py", elsewhere)
        text = (folder / "mine.yaml").read_text()
        code = text.replace("mine.py:build", f"{elsewhere}/mine.py:build")
        for data, own in ((str(elsewhere), code), ("../else where/", text), (f"{folder}/data", text)):
            (folder / "again.yaml").write_text(f"{own}\ndata_dir: {data}\n")
            words = ("harden", "-n", "--configfile", "again.yaml")
            assert jobs(snakemake(folder, *words, package=folder / "copy")) == {}

    def test_what_repeats(self, own):
        folder, _ = own
        assert self.again(folder) == {}
        self.moved(folder)
        np.savez(folder / "data/mine.npz", x=np.linspace(1, 0, 768).reshape(12, 8, 8, 1), y=np.arange(12) % 10)
        assert self.again(folder) == {"attack": 2, "harden_model": 1, "harden": 1}
        torch.manual_seed(1)
        namespace: dict = {}
        exec(MODEL, namespace)
        save_file(namespace["build"](4).state_dict(), folder / "data/mine.safetensors")
        assert self.again(folder)["teacher"] == 1
