"""`dfshield verify`: a table's rows are traced to ledger, student, data and teacher, and any break is named."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import yaml
from support.edits import CONFIG, HOME, SPECS, STUDENT_FILE, change, other_values
from support.ledgers import make_ledger
from support.runs import fake_run
from support.snakemake import environment

from dfshield.core.errors import InputError
from dfshield.models.checkpoints import load_checkpoint, read_card, save_checkpoint
from dfshield.planning import frozen
from dfshield.planning.config import check_config
from dfshield.planning.paths import (
    HARDEN,
    STUDENT,
)
from dfshield.planning.plan import Plan
from dfshield.registry import CHECKS
from dfshield.report import cost, model_card
from dfshield.report.content import measurements
from dfshield.report.rows import read_csv, write_csv
from dfshield.report.table import run as make_table
from dfshield.tools.verify import verify

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("name", "count"), [("table4", 8 * 3), ("table24", 18), ("table6", 84), ("table19", 35)])
def test_whole_chain(table: Callable[[str], Path], capsys: pytest.CaptureFixture[str], name: str, count: int) -> None:
    assert verify(table(name)) == 0
    out = capsys.readouterr().out
    assert out.count("OK ") == count and f"{count} of {count} rows" in out


def test_a_row_that_the_papers_data_have_otherwise(table: Callable[..., Path]) -> None:
    """Two rows of table 24 are Ours, each with a recipe of its own: one for stand-ins, one for the paper's data."""
    papers = {"svhn": {"models": ["wrn28_10"], "threat": "linf:8/255"}}
    assert verify(table("table24", datasets=papers, grid="full")) == 0


def test_the_rows_are_those_of_the_configs_own_tables(table: Callable[..., Path], tmp_path: Path) -> None:
    values = yaml.safe_load(SPECS.read_text())
    for number, row in enumerate(values["table24"]["rows"]):
        row["method"] = f"Theirs {number}"
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump({"table24": values["table24"]}, sort_keys=False))
    path = table("table24", tables=str(own))
    assert verify(path) == 0
    for row in values["table24"]["rows"]:
        row["recipe"] = "trades"
    own.write_text(yaml.safe_dump({"table24": values["table24"]}, sort_keys=False))
    assert verify(path) == 0  # the run goes by the tables that it was started with
    frozen.keep(Path("results/demo"), {"tables.yaml": own.read_text()})
    assert verify(path) == 1


def test_a_student_trained_against_another_threat(
    table: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = table("table24")
    student = next(Path("results").rglob("dfshield-8.tau-0/**/student.safetensors"))
    model, card = load_checkpoint(student, "cpu")
    card.provenance["options"]["threat"] = "linf:1/255"
    save_checkpoint(student, model, card)
    assert verify(path) == 1
    assert "student.safetensors: threat is linf:1/255, the config says linf:8/255" in capsys.readouterr().out


def test_a_protocol_with_a_threat_of_its_own(
    table: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Its students are trained for the data set's threat, and only the run's config says that this is as it should."""
    specs = yaml.safe_load(SPECS.read_text())
    specs["table8"] |= {"metrics": ["clean", "wide"], "gain_of": "wide"}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"table8": specs["table8"]}, sort_keys=False))
    wide = {"attack": "pgd", "steps": 10, "threat": "linf:16/255"}
    path = table("table8", tables=str(tmp_path / "own.yaml"), protocols={"wide": wide})
    assert {row.threat for row in read_csv(path) if row.metric == "wide"} == {"linf:16/255"}
    assert verify(path) == 0
    student = next(Path("results").rglob("linf-8-255/**/student.safetensors"))
    model, card = load_checkpoint(student, "cpu")
    card.provenance["options"]["threat"] = "linf:16/255"
    save_checkpoint(student, model, card)
    assert verify(path) == 1
    assert "student.safetensors: threat is linf:16/255, the config says linf:8/255" in capsys.readouterr().out


def test_a_teacher_of_another_seed(table: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    """Every figure is traced to the teacher of its seed; a student or a ledger of another one's is no link."""
    path = table("table4", seeds=[0, 1])
    assert verify(path) == 0
    first, second = (Path(HOME) / f"seed-{seed}/teacher.safetensors" for seed in (0, 1))
    whole = first.read_bytes()
    first.write_bytes(second.read_bytes())
    assert verify(path) == 1
    assert f"{first}: seed is 1, the config says 0" in capsys.readouterr().out
    first.write_bytes(whole)
    student = Path(STUDENT_FILE)
    model, card = load_checkpoint(student, "cpu")
    card.provenance["teacher_sha256"] = read_card(second).tensors_sha256
    save_checkpoint(student, model, card)
    assert verify(path) == 1
    assert f"student.safetensors: it was not made from {first} as it is now" in capsys.readouterr().out


def test_images_of_a_co_trained_baseline(
    table: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Its diversity is traced to the images that lie beside its student, and to their teacher."""
    specs = yaml.safe_load(SPECS.read_text())
    specs["table6"]["rows"] = [{"method": "DaST", "source": "none", "recipe": "dast"}]
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"table6": specs["table6"]}, sort_keys=False))
    path = table("table6", tables=str(tmp_path / "own.yaml"))
    assert verify(path) == 0
    assert "7 of 7 rows" in capsys.readouterr().out
    images = Path(HOME) / "none/dast/linf-8-255/seed-0/images.h5"
    other_values(str(images))()
    assert verify(path) == 1
    out = capsys.readouterr().out
    assert out.count("BROKEN ") == 4 and "images.h5: it was not made from" in out
    images.unlink()
    assert verify(path) == 1
    assert capsys.readouterr().out.count("no such file") == 4


def few(folder: Path, name: str, *methods: str) -> str:
    """A file with one table of few rows."""
    spec = yaml.safe_load(SPECS.read_text())[name]
    spec["rows"] = [row for row in spec["rows"] if row["method"] in methods]
    (folder / "few.yaml").write_text(yaml.safe_dump({name: spec}, sort_keys=False))
    return str(folder / "few.yaml")


def light(*commands: list[str], but: str = "") -> None:
    """Run commands in one process of their own, and see that none needs the libraries of the stages, `but` one."""
    code = (
        "import sys\n"
        "from dfshield.cli import main\n"
        f"for words in {commands!r}:\n"
        "    try: main(words)\n"
        "    except SystemExit as done: assert not done.code, words\n"
        "heavy = {'torch', 'torchvision', 'scipy', 'sklearn', 'pandas', 'matplotlib', 'snakemake'}\n"
        f"print('HEAVY', sorted(heavy & set(sys.modules) - {{{but!r}}}))\n"
    )
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False)
    assert done.stdout.endswith("HEAVY []\n"), done.stdout + done.stderr


def test_reports_need_no_pytorch(table: Callable[[str], Path], tmp_path: Path) -> None:
    """They start hundreds of times in a large run, and importing it takes longer than what they do."""
    out = table("table8")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(CONFIG))
    home = Path("results/demo/digits/cnn-s")
    data, ledger = str(home / "dss/seed-0/data.h5"), str(sorted(home.rglob("ledger.h5"))[0])
    light(
        ["table", "table8", "--config", "c.yaml", "--out", "again.csv"],
        ["verify", str(out)],
        *(["inspect", file] for file in (str(home / "seed-0/teacher.safetensors"), data, ledger)),
        ["merge", data, "--out", "merged.h5"],
    )
    assert Path("again.csv").read_bytes() == out.read_bytes()


def test_methods_of_one_recipe_are_told_apart_by_source(table: Callable[[str], Path]) -> None:
    path = table("table8")
    assert verify(path) == 0
    rows = read_csv(path)
    fixed = [row for row in rows if row.method == "+ L_DFShield"]
    write_csv(path, [dataclasses.replace(row, method="+ DSS") for row in fixed])
    assert verify(path) == 1


def test_variant_is_checked_against_the_student(
    table: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = table("table24")
    change(str(path), "variant", "tau=0.9")()
    assert verify(path) == 1
    assert "no row of the run's table has variant 'tau=0.9'" in capsys.readouterr().out


def test_no_bit_of_a_table_or_its_layouts_counts_for_nothing(
    table: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Flips all over the files; 300 of them were tried once."""
    path = table("table24", tables=few(tmp_path, "table24", "Ours"))
    random = Random(0)
    for suffix, flips in ((".csv", 30), (".md", 5), (".tex", 5)):
        file = path.with_suffix(suffix)
        whole = file.read_bytes()
        for part in range(flips):
            damaged = bytearray(whole)
            place = random.randrange(len(whole) * part // flips, len(whole) * (part + 1) // flips)
            damaged[place] ^= 1 << random.randrange(8)
            file.write_bytes(damaged)
            try:
                assert verify(path) == 1, (suffix, place)
            except InputError:
                assert suffix == ".csv"
        file.write_bytes(whole)
    assert verify(path) == 0
    assert "BROKEN  results/table24.md: line " in capsys.readouterr().out


def test_rows_that_are_lacking_twice_there_or_elsewhere(
    table: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = table("table4")
    rows = read_csv(path)
    for wrong, message in (
        (rows[1:], "the run's table has this row, results/table4.csv lacks it"),
        ([*rows, rows[0]], "results/table4.csv: line 26 is not as"),
        ([*rows[1:], rows[0]], "results/table4.csv: line 2 is not as"),
    ):
        write_csv(path, wrong)
        assert verify(path) == 1
        assert message in capsys.readouterr().out


def test_methods_metrics_and_variants_that_no_table_has(
    table: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = table("table4")
    rows = read_csv(path)
    for column, value in (("method", "Ours (best)"), ("metric", "pgd20"), ("variant", "tau=0.5"), ("defence", "tte")):
        write_csv(path, [dataclasses.replace(rows[0], **{column: value}), *rows[1:]])
        assert verify(path) == 1
        assert f"no row of the run's table has {column} {value!r}" in capsys.readouterr().out


def test_options_of_another_config(
    table: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Files as they were, and a run's config that was edited since: whatever stage it is of."""
    tables = few(tmp_path, "table6", "Qimera", "Base", "+ Mixup")
    path = table("table6", tables=tables)
    config = CONFIG | {"tables": tables}
    stages = {
        "teacher": ({"epochs": 3}, "teacher.safetensors: epochs is"),
        "synthesize": ({"iterations": 7}, "seed-0/data.h5: iterations is"),
        "generate": ({"width": 0.5}, "seed-0/data.h5: width is"),
        "augment": ({"probability": 0.25}, "seed-0/data.h5: probability is"),
        "train": ({"epochs": 7}, "student.safetensors: epochs is"),
        "attack": ({"limit": 5}, "ledger.h5: limit is 0, the config says 5"),
        "diversity": ({"bins": 7}, "diversity@train.json: bins is 100, the config says 7"),
    }
    for stage, (options, message) in stages.items():
        other = Plan.of(check_config(config | {stage: options}))
        frozen.keep(Path("results/demo"), frozen.texts_of(other.config))
        assert verify(path) == 1
        assert f"{message}" in capsys.readouterr().out, stage
        with pytest.raises(InputError, match=message.replace(".", r"\.")):
            make_table(other, "table6", Path("again.csv"))
    for changes in ({"device": "cpu"}, {"data_dir": "elsewhere"}, {"train": {"threads": 2}}):
        frozen.keep(Path("results/demo"), frozen.texts_of(check_config(config | changes)))
        assert verify(path) == 0
    assert not Path("again.csv").exists()


def test_a_table_whose_run_kept_no_config(table: Callable[[str], Path]) -> None:
    path = table("table8")
    Path("results/demo/config.yaml").unlink()
    with pytest.raises(InputError, match="no run has kept a config of this table"):
        verify(path)


def test_a_run_that_was_moved_and_renamed(table: Callable[[str], Path], tmp_path: Path) -> None:
    path = table("table8")
    Path("results/demo").rename("results/other")
    (tmp_path / "there").mkdir()
    moved = Path("results").rename(tmp_path / "there/results")
    assert verify(moved / path.name) == 0


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        verify(tmp_path / "none.csv")
    write_csv(tmp_path / "empty.csv", [])
    with pytest.raises(InputError, match="no rows"):
        verify(tmp_path / "empty.csv")


def test_metrics_that_were_edited(table: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = table("table8")
    metrics = next(Path("results").rglob("metrics.csv"))
    metrics.write_text(metrics.read_text().replace("0.5", "0.4"))
    assert verify(path) == 1
    assert f"{metrics}: is not as the training of " in capsys.readouterr().out
    metrics.unlink()  # nothing is read from it
    assert verify(path) == 0


@pytest.mark.parametrize("name", ["table2", "cost"])
@pytest.mark.parametrize("suffix", [".csv", ".md", ".tex"])
def test_tables_without_cells(
    table: Callable[[str], Path], capsys: pytest.CaptureFixture[str], name: str, suffix: str
) -> None:
    """Formulas, and the cost of methods: made again and compared."""
    table("table4")
    plan = Plan.of(frozen.load(Path("results/demo")))
    for benchmark in map(Path, measurements(plan)):
        benchmark.parent.mkdir(parents=True, exist_ok=True)
        benchmark.write_text("s\n2.5\n")
    out = Path(f"results/{name}.csv")
    if name == "cost":
        cost.run(plan, out)
    else:
        make_table(plan, name, out)
    assert verify(out) == 0
    file = out.with_suffix(suffix)
    file.write_bytes(file.read_bytes().replace(b"e", b"f", 1))
    assert verify(out) == 1
    assert f"BROKEN  {file.absolute()}: line " in capsys.readouterr().out.replace(f" {file}", f" {file.absolute()}")


def test_hardened_model_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The card stage writes model, report and card; the report verifies; a foreign ledger is refused."""
    monkeypatch.chdir(tmp_path)
    entry = {
        "factory": "my_model:build",
        "weights": "w.pt",
        "input_shape": [1, 8, 8],
        "classes": 10,
        "mean": [0.3],
        "std": [0.38],
        "threat": "linf:8/255",
        "evaluation": {"file": "eval.npz"},
    }
    values = {"name": "ours", "tables": str(SPECS), "harden": {"mine": entry}}
    plan = Plan.of(check_config(values))
    frozen.keep(frozen.folder_of(plan.config.name), frozen.texts_of(plan.config))
    cells = plan.harden_cells("mine")
    fake_run(plan, cells)
    student = Path(plan.place(HARDEN, "mine", source="dss", recipe="dfshield").path(STUDENT))
    out = Path("results/harden/mine")
    model_card.run(plan, "mine", student, out)
    card = (out / "MODEL_CARD.md").read_text()
    assert card.count("| Undefended |") == card.count("| Hardened |") == 3 + len(CHECKS), "figures and checks"
    assert (out / "model.safetensors").read_bytes() == student.read_bytes()
    assert verify(out / "report.csv") == 0
    stating = {"accuracy.png": "report.json", "broken.svg": "report.json"}  # has the hashes of the pictures
    for name in ("MODEL_CARD.md", "report.json", "model.safetensors", *stating):
        whole = (out / name).read_bytes()
        (out / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert verify(out / "report.csv") == 1
        assert f"BROKEN  results/harden/mine/{stating.get(name, name)}: " in capsys.readouterr().out
        (out / name).write_bytes(whole)
    assert verify(out / "report.csv") == 0
    text = (out / "MODEL_CARD.md").read_text()
    Path("c.yaml").write_text(yaml.safe_dump(values))
    light(["card", "mine", "--config", "c.yaml", "--student", str(student), "--out", "again"], but="matplotlib")
    assert Path("again/MODEL_CARD.md").read_text() == text
    assert "| Hardened | AA |" in text and "No real image was read" in text
    make_ledger(Path(cells[0].ledger), 150, 150, protocol="autoattack", model_sha256="x" * 64)
    with pytest.raises(InputError, match="another model"):
        model_card.run(plan, "mine", student, out)
    model, card = load_checkpoint(student, "cpu")
    card.provenance["diverged"] = "the loss is nan in epoch 3"
    save_checkpoint(student, model, card)
    with pytest.raises(InputError, match=r"diverged \(the loss is nan in epoch 3\); lower lr in the training options"):
        model_card.run(plan, "mine", student, out)
