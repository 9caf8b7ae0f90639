"""`dfshield verify`: a table's rows are traced to ledger, student, data and teacher, and any break is named."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from support.ledgers import make_ledger, make_record
from support.runs import fake_run, save, save_data
from support.snakemake import environment

from dfshield.core.errors import InputError
from dfshield.models.checkpoints import load_checkpoint, save_checkpoint
from dfshield.planning.config import check_config
from dfshield.planning.paths import (
    HARDEN,
    STUDENT,
)
from dfshield.planning.plan import Plan
from dfshield.report import model_card
from dfshield.report.rows import read_csv, write_csv
from dfshield.report.table import run as make_table
from dfshield.tools.verify import verify

pytestmark = pytest.mark.slow

SPECS = Path(__file__).parents[2] / "config" / "tables.yaml"
CONFIG = {
    "name": "demo",
    "tables": str(SPECS),
    "datasets": {"digits": {"models": ["cnn-s"], "threat": "linf:8/255"}},
}


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Makes the files of one table and the table itself."""
    monkeypatch.chdir(tmp_path)

    def make(name: str, **changes: object) -> Path:
        plan = Plan.of(check_config(CONFIG | changes))
        fake_run(plan, plan.cells(name))
        (Path("results") / plan.config.name / "config.yaml").write_text(yaml.safe_dump(CONFIG | changes))
        out = Path("results") / f"{name}.csv"
        make_table(plan, name, out)
        assert out.with_suffix(".md").is_file() and out.with_suffix(".tex").is_file()
        return out

    return make


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
    for row in values["table24"]["rows"]:
        row["method"] = "Theirs"
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump({"table24": values["table24"]}, sort_keys=False))
    path = table("table24", tables=str(own))
    assert verify(path) == 0
    for row in values["table24"]["rows"]:
        row["recipe"] = "trades"
    own.write_text(yaml.safe_dump({"table24": values["table24"]}, sort_keys=False))
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
    assert f"{student}: it was trained against linf:1/255, not linf:8/255" in capsys.readouterr().out


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
    assert f"{student}: it was trained against linf:16/255, not linf-8-255" in capsys.readouterr().out
    config = Path("results/demo/config.yaml")
    config.write_text(config.read_text().replace("threat: linf:16/255", "steps: 10"))
    assert verify(path) == 1
    assert capsys.readouterr().out.count("the path is not that of this cell") == len(read_csv(path))


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
    save_data(images, "x" * 64, "none", seed=0, source="dast")
    assert verify(path) == 1
    out = capsys.readouterr().out
    assert out.count("BROKEN ") == 4 and "images.h5: its content is" in out
    images.unlink()
    assert verify(path) == 1
    assert capsys.readouterr().out.count("no such file") == 4


def light(*commands: list[str]) -> None:
    """Run commands in one process of their own, and see that none of them needs the libraries of the stages."""
    code = (
        "import sys\n"
        "from dfshield.cli import main\n"
        f"for words in {commands!r}:\n"
        "    try: main(words)\n"
        "    except SystemExit as done: assert not done.code, words\n"
        "heavy = {'torch', 'torchvision', 'scipy', 'sklearn', 'pandas', 'matplotlib', 'snakemake'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))\n"
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
        *(["inspect", file] for file in (str(home / "teacher.safetensors"), data, ledger)),
        ["merge", data, "--out", "merged.h5"],
    )
    assert Path("again.csv").read_bytes() == out.read_bytes()


def change(path: str, column: str, value: object, method: str = "Ours") -> Callable[[], None]:
    def apply() -> None:
        rows = read_csv(Path(path))
        first = next(i for i, row in enumerate(rows) if row.method == method)
        rows[first] = dataclasses.replace(rows[first], **{column: value})
        write_csv(Path(path), rows)

    return apply


TABLE4 = "results/table4.csv"
HOME = "results/demo/digits/cnn-s"
STUDENT_FILE = f"{HOME}/dss/dfshield/linf-8-255/seed-0/student.safetensors"
DATA_FILE = f"{HOME}/dss/seed-0/data.h5"
LEDGER_FILE = f"{HOME}/dss/dfshield/linf-8-255/seed-0/eval/none/pgd10@linf-8-255/ledger.h5"


def flip(path: str) -> Callable[[], None]:
    def apply() -> None:
        content = bytearray(Path(path).read_bytes())
        content[len(content) // 2] ^= 1
        Path(path).write_bytes(content)

    return apply


def other_student() -> None:
    save(Path(STUDENT_FILE), 99, "student", real_data="none", teacher_sha256="t", data_sha256="d")


def other_data() -> None:
    save_data(Path(DATA_FILE), "x" * 64, "none", seed=7)


def other_teacher() -> None:
    save(Path(f"{HOME}/teacher.safetensors"), 98, "teacher")


def swapped_method() -> None:
    rows = read_csv(Path(TABLE4))
    shown = {row.metric: row for row in rows if row.method == "Original"}
    moved = [dataclasses.replace(shown[r.metric], method="Ours") if r.method == "Ours" else r for r in rows]
    write_csv(Path(TABLE4), moved)


def assert_broken(
    path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[], None], broken: int, message: str
) -> None:
    damage()
    assert verify(path) == 1
    out = capsys.readouterr().out
    assert out.count("BROKEN ") == broken and message in out


@pytest.mark.parametrize(
    ("damage", "broken", "message"),
    [
        (change(TABLE4, "value", 99.0), 1, "value is '99.00' in the table but '75.00' by its ledger"),
        (change(TABLE4, "flags", ("diverged",)), 1, "flags is 'diverged'"),
        (change(TABLE4, "n", 10_000), 1, "n is '10000'"),
        (change(TABLE4, "paper", 50.0), 1, "the paper does not"),
        (change(TABLE4, "ledger_sha256", "0" * 64), 1, "no ledger with content 0000000000000000"),
        (change(TABLE4, "seed", 5), 1, "not that of this cell"),
        (swapped_method, 3, "not that of this cell"),
        (flip(LEDGER_FILE), 2, "ledger"),  # of clean and PGD-10
        (lambda: Path(LEDGER_FILE).unlink(), 2, "no ledger with content"),
        (flip(STUDENT_FILE), 3, "student.safetensors"),
        (lambda: Path(STUDENT_FILE).unlink(), 3, "no such file"),
        (other_student, 3, "student.safetensors: its tensors is"),
        (flip(DATA_FILE), 6, "data.h5"),  # of Ours and Plus
        (lambda: Path(DATA_FILE).unlink(), 6, "no such file"),
        (other_data, 6, "data.h5: its content is"),
        (other_teacher, 8 * 3, "teacher.safetensors: its tensors is"),
    ],
)
def test_broken_links_are_named(
    table: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[], None],
    broken: int,
    message: str,
) -> None:
    assert_broken(table("table4"), capsys, damage, broken, message)


MIXUP = f"{HOME}/mixup/seed-0"


def of_metric(path: str, metric: str, **changes: object) -> Callable[[], None]:
    def apply() -> None:
        rows = read_csv(Path(path))
        rows = [
            dataclasses.replace(row, **changes) if (row.method, row.metric) == ("+ Mixup", metric) else row
            for row in rows
        ]
        write_csv(Path(path), rows)

    return apply


def edited(path: str, old: str, new: str) -> Callable[[], None]:
    return lambda: Path(path).write_text(Path(path).read_text().replace(old, new))  # type: ignore[return-value]


def other_base() -> None:
    save_data(Path(f"{HOME}/fixed/seed-0/data.h5"), "x" * 64, "none", seed=7)


@pytest.mark.parametrize(
    ("damage", "broken", "message"),
    [
        (of_metric("results/table6.csv", "recall", value=0.6), 1, "value is '0.600' in the table but '0.500'"),
        (of_metric("results/table6.csv", "ndb", value=87), 1, "value is '87' in the table but '88' by its record"),
        (of_metric("results/table6.csv", "jsd", protocol="jsd"), 1, "protocol is 'jsd'"),
        (of_metric("results/table6.csv", "recall", ci_low=1.0), 1, "ci_low is '1.00' in the table but ''"),
        (of_metric("results/table6.csv", "recall", ledger_sha256="0" * 64), 1, "no record with content 00000000"),
        (of_metric("results/table6.csv", "recall", method="+ Cutout"), 1, "not that of this cell"),
        (edited(f"{MIXUP}/diversity@train.json", "0.5,", "0.6,"), 4, "diversity@train.json: content does not match"),
        (lambda: Path(f"{MIXUP}/diversity@train.json").unlink(), 4, "no record with content"),
        (lambda: make_record(Path(f"{MIXUP}/diversity@train.json"), 0.75), 4, "no record with content"),
        (flip(f"{MIXUP}/data.h5"), 7, "mixup/seed-0/data.h5"),
        (other_base, 4 * 7, "fixed/seed-0/data.h5: its content is"),  # the base and all that is made of it
        (other_teacher, 84, "teacher.safetensors: its tensors is"),
    ],
)  # fmt: skip
def test_broken_links_of_diversity_are_named(
    table: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[], None],
    broken: int,
    message: str,
) -> None:
    assert_broken(table("table6"), capsys, damage, broken, message)


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
    assert "tau is 0.0, not 0.9" in capsys.readouterr().out


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        verify(tmp_path / "none.csv")
    write_csv(tmp_path / "empty.csv", [])
    with pytest.raises(InputError, match="no rows"):
        verify(tmp_path / "empty.csv")


def test_hardened_model_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    values = {"name": "harden", "tables": str(SPECS), "harden": {"mine": entry}}
    plan = Plan.of(check_config(values))
    cells = plan.harden_cells("mine")
    fake_run(plan, cells)
    student = Path(plan.place(HARDEN, "mine", source="dss", recipe="dfshield").path(STUDENT))
    out = Path("results/harden/mine")
    model_card.run(plan, "mine", student, out)
    assert (out / "model.safetensors").read_bytes() == student.read_bytes()
    assert verify(out / "report.csv") == 0
    text = (out / "MODEL_CARD.md").read_text()
    Path("c.yaml").write_text(yaml.safe_dump(values))
    light(["harden", "mine", "--config", "c.yaml", "--student", str(student), "--out", "again"])
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
