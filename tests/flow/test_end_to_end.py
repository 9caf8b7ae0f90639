"""The whole road at the smallest scale: every table, and what reruns after an edit."""

import csv
import re
import shutil
import subprocess

import h5py
import numpy as np
import pytest
import yaml
from scipy.spatial.distance import cdist
from sklearn.datasets import load_digits
from support.reruns import EDITS, HOME, NEW
from support.snakemake import ROOT, TINY, dfshield, environment, jobs, snakemake, workspace

from dfshield.models.checkpoints import read_card
from dfshield.registry import CHECKS

pytestmark = pytest.mark.slow
NUMBERS = (1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 15, 16, 17, 18, 19, 21, 22, 23, 24, 25, 26)
TABLES = tuple(f"table{number}" for number in NUMBERS)
# Tables of attacks, an attack or two of each.
ATTACKS = {
    "table9": ["clean", "spsa"],
    "table10": ["clean", "pgd2"],
    "table21": ["clean", "latent", "modified-c"],
    "table22": ["clean", "modified-a"],
    "attacks": ["clean", "deepfool"],
    "static-adaptive": ["clean", "pgd-static"],
    "transformation-table2": ["clean", "transfer"],
    "transformation-table3": ["clean", "pgd-adaptive"],
    "transformation-table5": ["clean", "few-steps-1"],
    "transformation-steps": ["clean", "white-box-transfer"],
    "transformation-delta": ["clean", "white-box-transfer"],
    "transformation-draws": ["clean", "pgd-eot-1"],
    "transformation-attacks": ["clean", "reparameterised"],
    "transfer-table1": ["clean", "pgd40-static-l2"],
    "transfer-table2": ["clean", "pgd40"],
    "transfer-table3": ["gaussian-noise"],
    "transfer-epsilons": ["clean", "pgd40-static"],
    "transfer-times": ["clean", "pgd40"],
}
TRANSFER = tuple(key for key in ATTACKS if key.startswith("transfer-"))
# Rows of adversarial transformation: two fits, small ones.
TRANSFORMED = {
    "transformation-table1": "Untrained",
    "transformation-table2": "Transformed",
    "transformation-table3": "Transformed",
    "transformation-table4": "VGG",
    "transformation-table5": "13 steps",
    "transformation-steps": "13 steps",
    "transformation-delta": "Δ = 0.2",
    "transformation-draws": "Δ = 0.2",
    "transformation-attacks": "Transformed",
}
SMALL = {"defend": "adversarial-transformation", "width": 0.0625, "steps": 2, "epochs": 1, "attack_steps": 1}
DEFENCES = {
    "adversarial-transformation": SMALL | {"fcn_epochs": 1},
    "transformation-untrained": SMALL | {"external": "untrained"},
}
SHORTENED = ("pgd-adaptive", "pgd-eot-1", "few-steps-1", "white-box-transfer", "reparameterised")
BRIEF = {protocol: {"steps": 2, "eot": 2} for protocol in SHORTENED}
DIGITS = TINY["datasets"]["digits"] | {"by_protocol": BRIEF}
CONFIG = TINY | {"datasets": {"digits": DIGITS}, "defences": DEFENCES}
# One value per sweep, one metric besides AutoAttack where table 4 has shown all three.
SWEEPS = {"aggregate": [1], "tau": [0], "lambda1": [0.1], "lambda2": [10], "data_share": [0.5]}
# Table 5 and tables 14 and 15, the latter with the data set's own threat besides.
THREATS = {5: ["l2:8"], 14: ["linf:7/16", "linf:8/16"], 15: ["linf:7/16", "linf:8/16"]}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A workspace with all tables of the tiny config built, and what Snakemake said."""
    folder = workspace(tmp_path_factory.mktemp("tables"))
    (folder / "config/config.yaml").write_text(yaml.safe_dump(CONFIG))
    tables = yaml.safe_load((folder / "config/tables.yaml").read_text())
    for key, table in tables.items():
        table["sweep"] = {name: {"demo": SWEEPS[name], "full": SWEEPS[name]} for name in table.get("sweep", {})}
        if table.get("number") in THREATS and "threats" in table:
            table["threats"] = dict.fromkeys(("demo", "full"), THREATS[table["number"]])
        if table.get("number") in (14, 15):
            table["rows"] = [row for row in table["rows"] if row["method"] in ("Original", "DaST")]
        if key == "losses":  # one loss that no other table has
            table["rows"] = [row for row in table["rows"] if row["method"] in ("STD", "+ AWP")]
        if key in ("table3", "table13"):  # what is fitted has tests of its own
            table["rows"] = [row for row in table["rows"] if row["method"] not in ("DAD", "DiffPure")]
        if key == "static-adaptive":
            kept = ("Undefended", "Bit depth", "Ours", "Mixed")
            table["rows"] = [row for row in table["rows"] if row["method"] in kept]
        if key == "certified":
            table["rows"] = [row for row in table["rows"] if row["method"] == "Gaussian noise"]
            table["threats"] = {scale: ["l2:0.1", "l2:0.25"] for scale in ("demo", "full")}
            table["metrics"] = ["certified", "pgd-smoothed"]
        if key == "detection":
            table["rows"] = [row for row in table["rows"] if row["method"] == "Feature squeezing"]
        if key in TRANSFORMED:
            table["rows"] = [row for row in table["rows"] if row["method"] == TRANSFORMED[key]]
        if key == "transfer-epsilons":
            table["evaluations"] = {scale: ["linf:1/16"] for scale in ("demo", "full")}
        if key in TRANSFER:  # the undefended network; in table 2 behind a defence that has nothing to fit
            table["rows"] = [row | ({"defence": "bit-depth"} if "defence" in row else {}) for row in table["rows"][:1]]
        if key == "table2":
            continue
        if key in ATTACKS:
            table["metrics"] = ATTACKS[key]
            table["by_metric"] = {m: own for m, own in table.get("by_metric", {}).items() if m in ATTACKS[key]}
            table.pop("groups", None)
            table.pop("clean_of", None)
        if key in ("coefficients", "toy"):
            table["rows"] = [row for row in table["rows"] if row["method"] == "Fixed"]
            continue
        if key == "landscape":  # whatever PGD-10 leaves is in other tables
            table["rows"] = [row for row in table["rows"] if row["method"] == "TRADES"]
            table["metrics"] = ["sharpness"]
        if "recall" in table["metrics"]:  # one augmented source and what it is made of
            table["rows"] = [row for row in table["rows"] if row["method"] in ("Base", "+ Mixup")]
        if key == "epsilons":  # the data set's own size and another
            table["evaluations"] = {scale: ["linf:7/16", "linf:8/16"] for scale in ("demo", "full")}
            continue
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
        # student on half of the images. Table 24 without the filter of signs and table losses: a student
        # each. An attack for each. Tables 3 and 13: the teacher behind TTE. Tables 9, 10 and 22: an attack, 21: two;
        # table attacks: one on four models. Table static-adaptive: one on four models, one of them
        # behind a defence and one behind another, which is fitted. Table certified: one attack at each of two radii.
        # Tables of adversarial transformation: the teacher behind two fits, one attack on one and six on the other.
        # Tables of distribution transfer: four attacks, one of them a corruption. Table epsilons: PGD-10
        # at another size on three models. Table landscape: one of table 7's students. Table figure1b: students of real
        # images and of another set as the public one. Checks of the eight of table 4.
        expected = {"teacher": 1, "synthesize": 4, "merge": 2, "export": 1, "augment": 1, "diversity": 2, "public": 2}
        expected |= {"train": 3 + 3 + 1 + 3 + 5 + 1 + 1 + 1 + 1 + 1 + 1 + 2, "cotrain": 4 + 1 + 1}
        expected |= {
            "attack": 16 + 3 + 1 + 3 + 5 + 1 + 2 + 1 + 2 + 1 + 1 + 1 + 1 + 9 + 4 + 2 + 1 + 6 + 4 + 3 + 2,
            "defend": 1 + 2,
        }
        expected |= {"checks": 8, "certify": 1, "detect": 1, "landscape": 1, "table": 50, "tables": 1}
        assert jobs(built[1]) == expected

    def test_work_was_done_by_forks_of_one_process(self, built):
        """What Snakemake measured are the jobs that asked for it, which hold no PyTorch."""
        files = (built[0] / "logs").rglob("*.benchmark.tsv")
        rows = [row for file in files for row in csv.DictReader(file.open(), delimiter="\t")]
        memory = [float(row["max_rss"]) for row in rows if row["max_rss"] not in ("-", "NA")]
        assert memory and max(memory) < 100  # MB

    def test_recall_and_coverage_are_those_of_the_training_sets(self, built):
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

    def test_robustness_checks_of_every_model(self, built):
        folder = built[0]
        assert jobs(snakemake(folder, "results/robustness-checks.csv", package=folder / "copy")) == {"checklist": 1}
        with (folder / "results/robustness-checks.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 8 * len(CHECKS) and {row["verdict"] for row in rows} > {"passed"}
        failed = {(row["recipe"], row["check"]) for row in rows if row["verdict"] == "failed"}
        with (folder / "results/table4.csv").open() as file:
            marked = [row for row in csv.DictReader(file) if row["metric"] != "clean"]
        for row in marked:
            recipe = {"Undefended": "none", "Ours": "dfshield", "Original": "std"}.get(
                row["method"], row["method"].lower()
            )
            named = {flag.partition(":")[2] for flag in row["flags"].split(";") if flag.startswith("failed-check:")}
            assert named == {check for own, check in failed if own == recipe}

    def test_formulas(self, built):
        assert len((built[0] / "results/table2.csv").read_text().splitlines()) == 5

    def test_figures_are_drawn_from_the_files_of_the_tables(self, built):
        folder = built[0]
        run = snakemake(folder, "figures", package=folder / "copy")
        assert jobs(run) == {"figure": 8, "figures": 1}
        assert "medical-sources: metric 'pgd10' is none of table1's" in run.stderr  # which this config leaves out
        for name in ("figure4", "figure5", "figure8", "epsilons", "front", "samples", "samples-medical", "survivors"):
            for suffix in (".png", ".svg", ".csv"):
                assert (folder / f"results/figures/{name}{suffix}").stat().st_size
        assert jobs(snakemake(folder, "figures", "-n", package=folder / "copy")) == {}

    @pytest.mark.parametrize("table", (*TABLES, *TRANSFER, "figure5", "losses"))
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
        assert kept == CONFIG | {key: f"results/tiny/{key}.yaml" for key in ("tables", "figures", "defaults")}

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

    @pytest.mark.parametrize(("edits", "config", "expected"), EDITS.values(), ids=EDITS)
    def test_what_an_edit_repeats(self, built, tmp_path, edits, config, expected):
        shutil.copytree(built[0] / "copy/dfshield", tmp_path / "dfshield")
        for name, (before, after) in edits.items():
            path = tmp_path / "dfshield" / name
            text = path.read_text()
            assert text.count(before) == 1
            path.write_text(text.replace(before, after))
        words = ("--config", config) if config else ()
        assert jobs(snakemake(built[0], "tables", "-n", *words, package=tmp_path)) == expected
        if config:  # what the config adds is known: its jobs are those that the edit brings
            (target,) = NEW[config]
            run = snakemake(built[0], f"{HOME}/{target}", "-n", *words, package=tmp_path)
            assert sum(jobs(run).values()) == 1
