"""Figures from small files of a run: files, drawn data, what is refused."""

import csv
import shutil
import statistics
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import h5py
import numpy as np
import pytest
import yaml
from PIL import Image
from support import tiny
from support.cells import cell
from support.figures import CONFIG, FIGURES, OWN, Made, accuracies, read
from support.ledgers import make_ledger
from support.runs import described
from support.snakemake import ROOT

from dfshield import cli
from dfshield.core.errors import InputError
from dfshield.evaluation.landscapes import LandscapeRecord, read_landscape
from dfshield.evaluation.ledger import read_ledger
from dfshield.planning.config import check_config
from dfshield.planning.paths import LEDGER, Place
from dfshield.planning.plan import Plan
from dfshield.report import broken, figure_sheet, figure_surface, plots, points
from dfshield.report.figure import run
from dfshield.report.table import build

pytestmark = pytest.mark.slow
LAYOUTS = {"lines": "epsilons", "scatter": "front", "sheet": "samples", "heatmap": "medical-sources"}
LAYOUTS |= {"surface": "figure4", "embedding": "figure8", "bars": "survivors"}
"""One figure of each layout."""


@pytest.mark.parametrize("name", OWN)
def test_a_figure_is_a_picture_in_two_forms_and_its_data_the_same_each_time(made: Made, name: str) -> None:
    plan, out = made(name)
    pixels = np.asarray(Image.open(out).convert("L"))
    assert pixels.shape[0] > 200 and pixels.shape[1] > 400
    assert 0.005 < (pixels < 200).mean() < 0.9  # neither blank nor black
    assert pixels[:3].min() == pixels[-2:].min() == pixels[:, :3].min() == pixels[:, -3:].min() == 255  # nothing is cut
    tree = ElementTree.parse(out.with_suffix(".svg"))
    assert tree.getroot().tag == "{http://www.w3.org/2000/svg}svg" and len(list(tree.iter())) > 50
    assert len(read(out)) >= 2
    if name not in LAYOUTS.values():
        return
    again = Path("again") / out.name
    run(plan, name, again)
    for suffix in (".png", ".svg", ".csv"):
        assert again.with_suffix(suffix).read_bytes() == out.with_suffix(suffix).read_bytes(), suffix


def test_every_layout_is_drawn() -> None:
    assert {FIGURES[name].layout: name for name in LAYOUTS.values()} == LAYOUTS


FRONT = {"Undefended": (198, 2), "DaST": (150, 50), "DFME": (150, 40), "AIT": (120, 60), "Ours": (160, 80)}
FRONT |= {"DFARD": (160, 80), "Plus": (140, 90), "Original": (190, 120)}
"""Images of 200 that are right without and with an attack."""


def test_the_front_is_of_data_free_methods_that_none_exceeds_in_both(made: Made) -> None:
    plan, _ = made("front")
    for one in plan.figure_cells("front"):
        place = Place.parse(LEDGER, one.ledger)
        assert place
        clean, robust = FRONT[one.method]
        own = read_ledger(Path(one.ledger))
        make_ledger(
            Path(one.ledger), clean, robust, protocol=place.protocol, threat=one.threat, seed=place.seed,
            model_sha256=own.model_sha256, real_data=own.real_data, options=described(plan, "attack", place),
        )  # fmt: skip
    unchecked = Plan.of(check_config(CONFIG | {"name": "front", "checked": []}))  # the checks are of other ledgers
    run(unchecked, "front", Path("front.png"))
    rows = {row["method"]: row for row in read(Path("front.png"))}
    assert {method for method, row in rows.items() if row["front"] == "yes"} == {"Undefended", "Ours", "DFARD", "Plus"}
    assert {method for method, row in rows.items() if "not-data-free" in row["flags"]} == {"Original"}
    for method, (clean, robust) in FRONT.items():
        assert (rows[method]["clean"], rows[method]["autoattack"]) == (f"{clean / 2:.2f}", f"{robust / 2:.2f}")
    assert (rows["DaST"]["interval"], rows["Ours"]["interval"]) == ("95 %", "seeds")


def test_a_sheet_shows_the_first_image_of_every_class(made: Made) -> None:
    """The pixels of the picture are those of the file at the stated index."""
    _, out = made("samples")
    rows = read(out)
    assert list(dict.fromkeys(row["method"] for row in rows)) == ["DaST", "DFME", "AIT", "DFARD", "Ours", "Original"]
    assert {row["method"] for row in rows if row["real_data"] == "train"} == {"Original"}
    assert [row["label"] for row in rows] == [str(label) for label in range(10)] * 6
    for row in rows:
        with h5py.File(row["file"]) as file:
            assert file.attrs["content_sha256"] == row["data_sha256"]
            assert file["labels"][int(row["index"])] == int(row["label"])
            assert np.flatnonzero(file["labels"][()] == int(row["label"]))[0] == int(row["index"])
    shades = {round(255 * index / 20) for index in range(10)}
    assert shades - {0} <= set(np.unique(np.asarray(Image.open(out).convert("L"))).tolist())


def test_a_class_without_an_image_stays_white(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    place = Place("drawn", "digits", "cnn-s", source="dss")
    Path(place.training_images).parent.mkdir(parents=True)
    tiny.trainset(Path(place.training_images), n=6, shape=(1, 8, 8), labels=[2, 0, 2, 0, 2, 0])
    tiles = figure_sheet.tiles([("Ours", place)])
    assert [(tile.label, tile.index) for tile in tiles] == [(0, 1), (2, 0)]
    picture, (rows, columns) = figure_sheet.composed(tiles, ["Ours"])
    assert (len(rows), len(columns)) == (1, 3)
    size = 48  # of a tile: six times eight pixels
    assert picture.shape == (size, 3 * size + 2 * 4, 3)
    assert (picture[:, size : 2 * size + 8] == 255).all()
    expected = (tiny.images(6, (1, 8, 8))[1, :, :, 0] * 255).round()
    assert (picture[:size:6, :size:6, 0] == expected).all()
    other = place.at(dataset="mnist")
    Path(other.training_images).parent.mkdir(parents=True)
    shutil.copy(place.training_images, other.training_images)
    with pytest.raises(InputError, match=r"is of digits/cnn-s, not of mnist/cnn-s; make it again"):
        figure_sheet.tiles([("Ours", other)])


def test_a_heat_map_has_a_row_of_each_data_set_and_a_column_of_each_method(made: Made) -> None:
    plan, out = made("medical-sources")
    expected = {
        method: statistics.fmean(values)
        for (method, _, _), values in accuracies(plan, "medical-sources", "pgd10").items()
    }
    assert {row["method"]: row["pgd10"] for row in read(out)} == {m: f"{v:.2f}" for m, v in expected.items()}
    assert {row["dataset"] for row in read(out)} == {"digits"} and len(expected) == 6


def test_surfaces_are_those_of_the_first_seed_with_the_sharpness_of_all(made: Made) -> None:
    plan, out = made("figure4")
    found: dict[str, list[LandscapeRecord]] = {}
    for one in plan.figure_cells("figure4"):
        found.setdefault(one.method, []).append(read_landscape(Path(one.ledger)))
    assert [len(own) for own in found.values()] == [2] * 4
    rows = read(out)
    assert len(rows) == 4 * 9 and list(dict.fromkeys(row["method"] for row in rows)) == list(found)
    for row in rows:
        records = found[row["method"]]
        along = [records[0].coordinates.index(float(row[name])) for name in ("first", "second")]
        assert float(row["loss"]) == pytest.approx(records[0].surface[along[0]][along[1]], rel=1e-5)
        values = [record.sharpness for record in records]
        assert (row["seed"], row["seeds"], row["record_sha256"]) == ("0", "2", records[0].content_sha256)
        assert row["accuracy"] == "75.00"
        expected = (statistics.fmean(values), min(values), max(values))
        for name, value in zip(("sharpness", "sharpness_low", "sharpness_high"), expected, strict=True):
            assert float(row[name]) == pytest.approx(value, abs=6e-4)


def test_all_surfaces_of_a_picture_have_one_range_of_losses(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, _ = made("figure4")
    ranges = []
    monkeypatch.setattr(figure_surface, "_panel", lambda axes, one, limits: ranges.append(limits))
    run(plan, "figure4", Path("ranges/figure4.png"))
    heights = [max(map(max, read_landscape(Path(cell.ledger)).surface)) for cell in plan.figure_cells("figure4")]
    first = heights[::2]  # of the two seeds
    assert ranges == [(0.0, max(first))] * 4 and len(set(first)) == 4


def test_bars_are_of_what_broke_the_images_first(made: Made) -> None:
    """Counted in the ledgers: survivors first, then components in their order; every bar is whole."""
    plan, out = made("survivors")
    counted: dict[str, list[list[float]]] = {}
    for one in plan.figure_cells("survivors"):
        own = read_ledger(Path(one.ledger))
        counted.setdefault(one.method, []).append([100 * float((own.component == k).mean()) for k in range(3)])
    rows = read(out)
    assert [row["method"] for row in rows[::3]] == list(counted)
    for method, seeds in counted.items():
        own_rows = [row for row in rows if row["method"] == method]
        assert [row["component"] for row in own_rows] == ["robust", "clean", "pgd"]
        means = [statistics.fmean(values) for values in zip(*seeds, strict=True)]
        assert [row["share"] for row in own_rows] == [f"{mean:.2f}" for mean in means]
        assert sum(means) == pytest.approx(100)
        assert {row["seeds"] for row in own_rows} == {str(len(seeds))} and {row["n"] for row in own_rows} == {"200"}
    assert {row["method"] for row in rows if "not-data-free" in row["flags"]} == {"Original"}


def test_components_that_only_some_seeds_have_are_nothing_of_the_others(tmp_path: Path) -> None:
    """A mean over seeds counts a component that did not run as no image."""
    cells = [cell(tmp_path / f"{seed}.h5", method="Ours", metric="autoattack", seed=seed) for seed in (0, 1)]
    named = {"protocol": "autoattack[aa-standard]"}
    make_ledger(Path(cells[0].ledger), 150, 50, seed=0, components=("robust", "clean", "apgd-ce"), **named)
    make_ledger(Path(cells[1].ledger), 150, 100, seed=1, components=("robust", "clean", "square"), **named)
    made = broken.shares(cells, build(cells))
    assert {one.component: one.share for one in made} == {"robust": 37.5, "clean": 25, "apgd-ce": 25, "square": 12.5}


def test_own_images_stand_in_the_column_of_their_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A grid of sets by sets, whose diagonal is the row of own images; a set is no public one of itself."""
    monkeypatch.chdir(tmp_path)
    sets = CONFIG["datasets"] | {"mnist5k": {"models": ["cnn-s"], "threat": "linf:0.1"}}
    plan = Plan.of(check_config(CONFIG | {"name": "own", "datasets": sets}))
    cells = plan.figure_cells("figure1b")
    values: dict[tuple[str, str], str] = {}
    for one in cells:
        make_ledger(Path(one.ledger), 150, 40 + len(values), threat=one.threat, dataset=one.dataset)
        values[one.dataset, one.method] = f"{(40 + len(values)) / 2:.2f}"
    made_points = points.heatmap(FIGURES["figure1b"], build([replace(one, checks="") for one in cells]))
    rows = list(csv.DictReader(points.csv_of(FIGURES["figure1b"], made_points).splitlines()))
    grid = {(row["dataset"], row["method"], row["own"]): row["pgd10"] for row in rows}
    assert grid == {
        ("digits", "Digits", "yes"): values["digits", "Own"],
        ("digits", "MNIST-5k", "no"): values["digits", "MNIST-5k"],
        ("digits", "Photographs", "no"): values["digits", "Photographs"],
        ("mnist5k", "MNIST-5k", "yes"): values["mnist5k", "Own"],
        ("mnist5k", "Digits", "no"): values["mnist5k", "Digits"],
        ("mnist5k", "Photographs", "no"): values["mnist5k", "Photographs"],
    }
    plots.draw_heatmap(FIGURES["figure1b"], made_points, tmp_path / "own.png")
    assert (tmp_path / "own.svg").stat().st_size


# What is refused


def refused(folder: Path, capsys: pytest.CaptureFixture[str], *words: str, **changes: object) -> str:
    """The one line of a refused `dfshield figure`; nothing is written."""
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG | changes))
    before = sorted(folder.rglob("*"))
    with pytest.raises(SystemExit) as ended:
        cli.main(["figure", *words, "--config", "config.yaml"])
    assert ended.value.code == 2
    assert sorted(folder.rglob("*")) == before
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("dfshield figure: ")
    return lines[0]


def test_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    line = refused(tmp_path, capsys, "frnt", "--out", "a.png")
    assert line.endswith(f"no 'frnt'; figures are {', '.join(FIGURES)}")
    assert "front.pdf: the picture is a PNG image" in refused(tmp_path, capsys, "front", "--out", "front.pdf")
    assert "ledger.h5" in refused(tmp_path, capsys, "front", "--out", "a.png")  # it is missing
    assert "data.h5" in refused(tmp_path, capsys, "samples", "--out", "a.png", methods=["ours"])
    tables = yaml.safe_load((ROOT / "config/tables.yaml").read_text())
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"table1": tables["table1"]}))
    line = refused(tmp_path, capsys, "front", "--out", "a.png", tables="own.yaml")
    assert "front: its table 'table4' is none of own.yaml" in line
    tables["table4"]["metrics"] = ["clean", "pgd10"]
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"table4": tables["table4"]}))
    line = refused(tmp_path, capsys, "front", "--out", "a.png", tables="own.yaml")
    assert "figures: front: metric 'autoattack' is none of table4's: clean, pgd10" in line


def test_a_figure_that_the_config_has_no_cells_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    medical = {"datasets": {"pathmnist": {"models": ["resnet18"], "threat": "linf:8/255"}}, "grid": "full"}
    tables = yaml.safe_load((ROOT / "config/tables.yaml").read_text())
    tables["table4"]["stands_in"] = False
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"table4": tables["table4"]}))
    line = refused(tmp_path, capsys, "front", "--out", "a.png", tables="own.yaml", **medical)
    assert "table4: the config's data sets and models have no cell in it" in line
    figures = yaml.safe_load((ROOT / "config/figures.yaml").read_text())
    figures["front"]["methods"] = ["DaST"]
    (tmp_path / "figures.yaml").write_text(yaml.safe_dump({"front": figures["front"]}))
    line = refused(tmp_path, capsys, "front", "--out", "a.png", figures="figures.yaml", methods=["ours"])
    assert "figures.yaml: front: the config has no cell of it in table4" in line


def test_files_of_another_config_are_refused(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    _, out = made("samples")
    drawn = out.read_bytes()
    other = Plan.of(check_config(CONFIG | {"name": "samples", "synthesize": {"iterations": 7}}))
    with pytest.raises(InputError, match=r"dss/seed-0/data.h5: iterations is \d+, the config says 7; make it again"):
        run(other, "samples", out)
    other = Plan.of(check_config(CONFIG | {"name": "samples", "cotrain": {"kept_images": 77}}))
    with pytest.raises(InputError, match=r"kept_images is \d+, the config says 77; make it again"):
        run(other, "samples", out)
    assert out.read_bytes() == drawn
