"""Tables as Markdown and LaTeX: figures, facts and footnotes."""

import re
from pathlib import Path

import numpy as np
import pytest
from support.cells import SPECS, cell, grid
from support.ledgers import make_ledger

from dfshield.report import latex, markdown
from dfshield.report.rows import write_csv
from dfshield.report.table import build, run


def test_a_baseline_that_diverged_is_marked(tmp_path: Path) -> None:
    """The paper's dagger, from the clean predictions of any of its ledgers."""
    spec = SPECS["table4"]
    cells = grid(tmp_path, spec, "digits", ["cnn-s"], seeds=1)
    constant = np.full(200, 3)
    wrong = np.arange(200) % 10 != 3
    for found in cells:
        if found.method == "DaST":
            changes = {"clean_prediction": constant, "prediction": constant, "broken": wrong}
            changes |= {"component": wrong.astype(np.uint8), "perturbed_index": np.zeros(0, dtype=np.int64)}
            make_ledger(
                Path(found.ledger),
                0,
                0,
                perturbation=np.zeros((0, 1, 4, 4), np.float16),
                protocol=found.metric,
                **changes,
            )
    rows = build(cells, spec)
    assert {row.method for row in rows if "diverged" in row.flags} == {"DaST"}
    text, tex = markdown.render(rows, spec), latex.render(rows, spec)
    assert re.search(r"\| DaST \| (10\.00<sup>†</sup> \[[^|]* \| ?){3}", text)
    assert "† did not converge: " in text
    assert tex.count(r"10.00\textsuperscript{$\dagger$}") == 3


def test_each_number_of_test_images_names_its_columns(tmp_path: Path) -> None:
    make_ledger(tmp_path / "p.h5", clean=150, robust=60)
    make_ledger(tmp_path / "a.h5", clean=40, robust=10, n=55, protocol="autoattack")
    made = [("clean", "p"), ("pgd10", "p"), ("autoattack", "a")]
    rows = build([cell(tmp_path / f"{name}.h5", metric=metric) for metric, name in made])
    both = (
        "n = 200 images (Clean, PGD-10), always answering the majority class scores 10.00 %; "
        "n = 55 images (AA), always answering the majority class scores 10.91 %."
    )
    assert f"Digits: l∞ ε = 8/255, {both}\n" in markdown.render(rows, SPECS["table4"])
    one = "Digits: l∞ ε = 8/255, n = 200 images, always answering the majority class scores 10.00 %.\n"
    assert one in markdown.render(rows[:2], SPECS["table4"])


def test_table_6_in_markdown(tmp_path: Path) -> None:
    spec = SPECS["table6"]
    text = markdown.render(build(grid(tmp_path, spec, "digits", ["cnn-s"], 3), spec), spec)
    head = "| Method | CNN-S Clean | CNN-S PGD-10 | CNN-S AA | CNN-S Recall | CNN-S Coverage | CNN-S NDB | CNN-S JSD |"
    assert head in text
    # the base has 8, 9 and 10 sixteenths: mean 0.5625, sample standard deviation 0.0625
    assert re.search(r"\| Base \| .* \| 0\.562 ± 0\.062 \| 0\.141 ± 0\.016 \| 88 ± 0 \| 0\.250 ± 0\.000 \|", text)
    assert "Diversity metrics compare the training images with real ones (997 of Digits)" in text
    assert "Digits: l∞ ε = 8/255, n = 200 images" in text  # of the accuracies
    assert "| Qimera | 76.88 | 18.90 | 10.68 | 0.000 | 0.002 | 99 | 0.514 |" in text  # the paper's own
    own = build(grid(tmp_path, spec, "cifar10", ["wrn28_10"], 1), spec)
    assert {row.metric: row.paper for row in own if row.method == "+ DSS"}["coverage"] == 0.163
    write_csv(tmp_path / "t.csv", own)
    assert (
        "+ DSS,,none,linf:4/255,coverage,0.188,1,,,997,0,coverage[teacher k=5 train],,,,,0.163,"
        in (tmp_path / "t.csv").read_text()
    )


def test_a_table_of_diversity_alone_speaks_of_no_accuracy(tmp_path: Path) -> None:
    spec = SPECS["table6"].model_copy(update={"metrics": ("recall", "ndb")})
    text = markdown.render(build(grid(tmp_path, spec, "digits", ["cnn-s"], 1), spec), spec)
    own, _, _ = text.partition("The paper's")
    assert "Diversity metrics compare" in own
    assert "Accuracies" not in own and "Wilson" not in own and "majority" not in own


def test_seeds_are_averaged(tmp_path: Path) -> None:
    cells = grid(tmp_path, SPECS["table4"], "digits", ["cnn-s"], seeds=3)
    text = markdown.render(build(cells, SPECS["table4"]), SPECS["table4"])
    # the sixth row: robust 110, 111, 112 of 200: mean 55.5, sample standard deviation 0.5
    assert "| Ours | 78.00 ± 0.50 [71.8, 83.2] | 55.50 ± 0.50 [48.6, 62.2] | 55.50 ± 0.50 [48.6, 62.2] |" in text
    assert "| Undefended | 75.00 [68.6, 80.5] | 30.00 [" in text
    assert "over 3 seeds of teacher (unless it came trained), synthesis and training;" in text
    assert "n = 200 images" in text
    assert "majority class scores 10.00 %" in text
    assert "<sup>‡</sup>" in text and "‡ trained on real images" in text


def test_stand_in_prints_the_papers_table_as_other_data(tmp_path: Path) -> None:
    spec = SPECS["table4"]
    digits = markdown.render(build(grid(tmp_path, spec, "digits", ["cnn-s", "cnn-m"], 1), spec), spec)
    assert "Stand-in data: Digits in place of SVHN, CIFAR-10, CIFAR-100." in digits
    assert "not comparable" in digits and digits.count("**Digits**") == 1
    assert "| DaST | 20.66 |" in digits and "10.00<sup>†</sup>" in digits
    own = markdown.render(build(grid(tmp_path, spec, "cifar10", ["resnet20"], 1), spec), spec)
    assert "Stand-in" not in own and "not comparable" not in own and "62.66" in own


def test_balanced_accuracy_tells_threats_apart(tmp_path: Path) -> None:
    """Where one class dominates, it is printed for every row; rows of other threats are other rows."""
    spec = SPECS["table14"]
    label = np.where(np.arange(200) < 80, 0, np.arange(200) % 10)
    cells = [c for c in grid(tmp_path, spec, "digits", ["cnn-s"], 1) if c.method == "Ours" and c.metric == "pgd10"]
    for found, right in zip(cells, (100, 60, 20), strict=True):
        prediction = np.where(np.arange(200) < right, label, (label + 1) % 10)
        wrong = prediction != label
        changes = {"label": label, "clean_prediction": prediction, "prediction": prediction, "broken": wrong}
        changes |= {"component": wrong.astype(np.uint8), "perturbed_index": np.zeros(0, dtype=np.int64)}
        changes |= {"perturbation": np.zeros((0, 1, 4, 4), np.float16), "threat": found.threat}
        make_ledger(Path(found.ledger), 0, 0, **changes)
    text = markdown.render(build(cells, spec), spec)
    assert len(re.findall(r"Ours l∞ ε = \d/16 \d+\.\d\d", text)) == 3


def test_formulas_in_every_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dfshield.planning.config import check_config
    from dfshield.planning.plan import Plan

    monkeypatch.chdir(Path(__file__).parents[2])
    config = {"name": "run", "datasets": {"digits": {"models": ["cnn-s"], "threat": "linf:8/255"}}}
    run(Plan.of(check_config(config)), "table2", tmp_path / "table2.csv")
    text, tex = (tmp_path / "table2.csv").read_text(), (tmp_path / "table2.tex").read_text()
    assert text.splitlines()[0] == "method,generator,student" and len(text.splitlines()) == 5
    assert '\nAIT,"CE(T(x), y) + w·BN(x)","CE(S(x), y) + β·KL(S(x), S(x\'))"\n' in text
    assert "| AIT | CE(T(x), y) + w·BN(x) | CE(S(x), y) + β·KL(S(x), S(x')) |" in (tmp_path / "table2.md").read_text()
    assert r"w$\cdot$BN(x) & CE(S(x), y) + $\beta$$\cdot$KL(S(x), S(x')) \\" in tex


@pytest.mark.parametrize("key", SPECS)
def test_latex_is_well_formed(tmp_path: Path, key: str) -> None:
    spec = SPECS[key]
    text = latex.render(build(grid(tmp_path, spec, "digits", ["cnn-s", "cnn-m"], 2), spec), spec)
    bare = re.sub(r"\\[\\{}%&$#_]", "", text)
    depth = 0
    for character in bare:
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0 and bare.count("$") % 2 == 0
    assert text.isascii(), [c for c in text if not c.isascii()]
    stack: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    assert not stack
    width = len(re.search(r"\\begin\{tabular\}\{([lrc]+)\}", text)[1])  # type: ignore[index]
    for line in text.splitlines():
        if line.endswith(r" \\"):
            spans = [int(n) - 1 for n in re.findall(r"\\multicolumn\{(\d+)\}", line)]
            assert line.count(" & ") + line.startswith("& ") + 1 + sum(spans) == width, line


def test_latex_escapes() -> None:
    assert latex.tex("a_b 5 % & L_DFShield, λ1 ε τ") == (
        r"a\_b 5 \% \& $\mathcal{L}_{\mathrm{DFShield}}$, $\lambda_1$ $\varepsilon$ $\tau$"
    )


def extent(text: str) -> list[str]:
    """The rules in the line on a table's extent."""
    (line,) = re.findall(r"^Extent of this table: (.*)\.$", text, re.MULTILINE)
    return str(line).split("; ")


def test_the_rules_that_cut_a_table_are_named(tmp_path: Path) -> None:
    def rules(key: str, dataset: str, models: list[str], seeds: int, scale: str) -> list[str]:
        cells = grid(tmp_path, SPECS[key], dataset, models, seeds, scale)
        return extent(markdown.render(build(cells, SPECS[key]), SPECS[key], scale))  # type: ignore[arg-type]

    baselines = "DaST, DFME, AIT, DFARD, Original: the first seed alone (seeds: first)"
    assert rules("table4", "cifar10", ["resnet20"], 1, "full") == [
        "without SVHN, CIFAR-100, ResNet-56, WRN-28-10, which the config lacks"
    ]
    assert rules("table24", "digits", ["cnn-s"], 1, "demo") == [
        "the first model alone and the first seed alone (grid: demo)",
        "fewer values of tau (sweep: demo)",
        "Ours, Without sign filter: not a row of the paper (only: stand-in)",
    ]
    assert rules("table14", "digits", ["cnn-s"], 1, "demo") == [
        "the first seed alone (grid: demo)",
        "threat models for stand-ins (threats: demo)",
        "DaST, DFME, AIT, DFARD: the first model alone (models: first)",
    ]
    spec = SPECS["table4"]
    cells = grid(tmp_path, spec, "digits", ["cnn-s"], 2)
    few = [cell for cell in cells if cell.method in ("Undefended", "Ours", "Plus") or cell.seed == 0]
    assert extent(markdown.render(build(few, spec), spec)) == [
        "all models and seeds of the config (grid: demo)",
        baselines,
        "Plus: not a row of the paper (only: stand-in)",
    ]
    some = [cell for cell in few if cell.method in ("Ours", "Original")]
    assert "Undefended, DaST, DFME, AIT, DFARD, Plus: left out by the config's methods" in extent(
        markdown.render(build(some, spec), spec)
    )


def test_a_whole_table_has_no_extent(tmp_path: Path) -> None:
    spec = SPECS["table7"]
    cells = [cell for name in ("svhn", "cifar10") for cell in grid(tmp_path, spec, name, ["wrn28_10"], 1)]
    assert "Extent" not in markdown.render(build(cells, spec), spec)


def test_macro_f1_stands_beside_balanced_accuracy(tmp_path: Path) -> None:
    """Eight classes: the largest has 1.6 times an even share; always answering it has an eighth of the recall."""
    label = np.where(np.arange(200) < 40, 0, np.arange(200) % 8)
    constant, wrong = np.zeros(200, dtype=np.int64), label != 0
    changes = {"label": label, "classes": 8, "clean_prediction": constant, "prediction": constant, "broken": wrong}
    changes |= {"component": wrong.astype(np.uint8), "perturbed_index": np.zeros(0, dtype=np.int64)}
    make_ledger(tmp_path / "l.h5", 0, 0, perturbation=np.zeros((0, 1, 4, 4), np.float16), **changes)
    (row,) = rows = build([cell(tmp_path / "l.h5", dataset="bloodmnist", model="resnet18")])
    text = markdown.render(rows, SPECS["table1"])
    share = 100 * np.mean(label == 0)
    expected = f"Ours 12.50 ({2 * share / (100 + share) * 100 / 8:.2f})."
    assert f"ResNet-18, balanced accuracy, the mean over the classes (macro-F1), PGD-10: {expected}" in text
    assert row.majority == pytest.approx(share)


def test_a_protocol_without_an_entry_is_a_metric_by_its_name(tmp_path: Path) -> None:
    make_ledger(tmp_path / "l.h5", 150, 50, protocol="own-attack[C=10]")
    rows = build([cell(tmp_path / "l.h5", metric="own-attack")])
    spec = SPECS["table4"].model_copy(update={"metrics": ("own-attack",)})
    assert (rows[0].value, rows[0].unit, rows[0].text("value")) == (25.0, "%", "25.00")
    assert "| Method | CNN-S own-attack |" in markdown.render(rows, spec)
