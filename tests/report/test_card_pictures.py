"""Pictures, report and metadata of a model card: what they show, and what they leave out."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from support import tiny
from support.cells import cell
from support.checkpoints import save_card
from support.ledgers import make_findings, make_ledger

from dfshield.core import sealed
from dfshield.core.errors import InputError
from dfshield.models.card import read_card
from dfshield.report import card_json, card_pictures, metadata
from dfshield.report.broken import tallies
from dfshield.report.card_pictures import draw, shown
from dfshield.report.model_card import CARD, JSON, Evidence, texts
from dfshield.report.sheet import first_of_classes, sheet_of_trainset
from dfshield.report.table import build
from dfshield.sources.trainset import header


@pytest.fixture
def cells(tmp_path: Path):
    """Undefended and Hardened, clean, under PGD and under AutoAttack, which breaks 100 of 150 in two steps."""
    found = []
    for method, clean, robust in (("Undefended", 190, 3), ("Hardened", 150, 50)):
        pgd, aa = (tmp_path / f"{method}-{name}.h5" for name in ("pgd", "aa"))
        make_ledger(pgd, clean, robust)
        component = np.zeros(200, np.uint8)
        component[robust:], component[robust + 40 :], component[clean:] = 2, 3, 1
        broke = np.flatnonzero(component > 1)
        make_ledger(
            aa,
            clean,
            robust,
            protocol="autoattack[aa-standard]",
            components=("robust", "clean", "apgd-ce", "fab"),
            component=component,
            perturbed_index=broke,
            perturbation=np.zeros((len(broke), 1, 4, 4), np.float16),
        )
        for name, path in (("clean", aa), ("pgd10", pgd), ("autoattack", aa)):
            found.append(cell(path, method=method, metric=name))
    return found


@pytest.fixture
def card(tmp_path: Path):
    save_card(tmp_path / "model.safetensors", "student", "none", 1, teacher_sha256="t" * 64, data_sha256="d" * 64)
    return read_card(tmp_path / "model.safetensors")


def made(folder: Path, card, cells, data: Path = Path("none.h5")) -> tuple[Evidence, dict[str, str]]:
    evidence = Evidence.of(card, build(cells), data, cells)
    draw(folder, evidence.rows, evidence.broken, data, evidence.synthesis)
    return evidence, texts("mine", evidence, folder)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix in (".png", ".svg"))


def test_survivors_by_component(cells):
    found = {(tally.method, tally.metric): tally for tally in tallies(cells)}
    assert len(found) == 4
    hardened = found["Hardened", "autoattack"]
    assert hardened.components == (("clean", 50), ("apgd-ce", 40), ("fab", 60))
    assert hardened.survivors == [150, 110, 50]
    assert found["Undefended", "pgd10"].survivors == [190, 3]


def test_pictures_are_shown_and_the_same_twice(tmp_path, card, cells):
    data = tiny.trainset(tmp_path / "data.h5")
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
        _, text = made(folder, card, cells, data)
    names = ["accuracy.png", "accuracy.svg", "broken.png", "broken.svg", "synthetic.png"]
    assert files(one) == names
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in names)
    assert all(f"]({name})\n" in text[CARD] for name in names if name.endswith(".png"))
    assert "no picture" not in text[CARD]
    for name in ("accuracy.png", "broken.png"):
        pixels = np.asarray(Image.open(one / name).convert("L"))
        assert pixels.shape[1] == 960 and pixels.std() > 5


def test_what_is_not_there_is_left_out_and_said(tmp_path, card, cells):
    data = tiny.trainset(tmp_path / "data.h5")
    made(tmp_path, card, cells, data)
    _, text = made(tmp_path, card, [])
    assert files(tmp_path) == []  # those of the earlier card are gone
    assert "no pictures of accuracy: the config names no evaluation set" in text[CARD]
    assert "the training set is no longer there" in text[CARD] and "![" not in text[CARD]


def test_real_images_are_never_shown(tmp_path, card, cells):
    data = tiny.trainset(tmp_path / "data.h5", real_data="public")
    _, text = made(tmp_path, card, cells, data)
    assert "synthetic.png" not in files(tmp_path) and "synthetic.png" not in text[CARD]
    assert "the training set has real ones" in text[CARD]


def test_distances_are_no_accuracies(cells):
    rows = [dataclasses.replace(row, unit="l∞") for row in build(cells)]
    assert card_pictures.accuracies(rows) == [] and shown(rows, None) == []


def test_the_report_has_all_rows_and_is_sealed(tmp_path, card, cells):
    make_findings(tmp_path / "checks.json", "failed", model_sha256="m" * 64)
    marked = [
        cell(Path(c.ledger), method=c.method, metric=c.metric, checks=str(tmp_path / "checks.json")) for c in cells
    ]
    evidence, text = made(tmp_path, card, marked, tiny.trainset(tmp_path / "data.h5"))
    path = tmp_path / JSON
    path.write_text(text[JSON])
    report = sealed.read(path, card_json.KIND)
    assert [(row["method"], row["metric"], row["value"]) for row in report["figures"]] == [
        (row.method, row.metric, row.value) for row in evidence.rows
    ]
    assert report["figures"][0]["paper"] is None
    assert report["training"]["data_free"] and report["training"]["teacher_sha256"] == "t" * 64
    assert report["broken"][3]["survivors"] == [150, 110, 50]
    assert list(report["pictures"]) == files(tmp_path)
    assert report["checks"][0]["findings"][-1]["verdict"] == "failed"
    assert any(flag.startswith("failed-check:") for flag in report["notes"])
    values = json.loads(text[JSON])
    values["training"]["data_free"] = False
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match="edited or damaged"):
        sealed.read(path, card_json.KIND)


def test_metadata_for_the_hub(tmp_path, card, cells):
    _, text = made(tmp_path, card, cells)
    _, front, rest = text[CARD].split("---\n", 2)
    assert rest.startswith("# mine, hardened against adversarial attack\n")
    values = yaml.safe_load(front)
    assert values["pipeline_tag"] == "image-classification" and "data-free" in values["tags"]
    (model,) = values["model-index"]
    (result,) = model["results"]
    assert model["name"] == "mine" and result["task"]["type"] == "image-classification"
    assert result["dataset"]["type"] and "200 images" in result["dataset"]["name"]
    assert [(m["type"], m["value"], m["name"]) for m in result["metrics"]] == [
        ("accuracy", 0.75, "Clean accuracy"),
        ("accuracy", 0.25, "Accuracy under PGD-10"),
        ("accuracy", 0.25, "Accuracy under AA"),
    ]
    assert result["metrics"][2]["args"]["protocol"] == "autoattack[aa-standard]"


def test_metadata_without_figures(card):
    values = yaml.safe_load(metadata.front_matter("mine", card, [], []).strip("-\n"))
    assert values.keys() == {"pipeline_tag", "tags"}


def test_evidence_for_others_claims_no_conformity(tmp_path, card, cells):
    _, text = made(tmp_path, card, cells)
    section = text[CARD].partition("## For those who ask for evidence")[2]
    assert "claims conformity with none of them" in section
    for name in ("Article 15(4)", "Article 15(5)", "AISVS 1.0, C11.1", "FDA"):
        assert name in section
    assert "accuracy under pgd10, autoattack[aa-standard] of up to 200 images" in section
    _, text = made(tmp_path, card, [])
    section = text[CARD].partition("## For those who ask for evidence")[2]
    assert "accuracy under" not in section and section.count("any evaluation; ") == 3
    assert "may reveal information about its training data" in text[CARD]


def test_a_sheet_of_many_or_large_images_stays_small(tmp_path):
    labels = np.repeat(np.arange(1000), 2)
    chosen = first_of_classes(labels, 10, classes=10)
    assert labels[chosen].tolist() == np.repeat([0, 111, 222, 333, 444, 555, 666, 777, 888, 999], 2).tolist()
    large = np.random.RandomState(0).rand(60, 3, 80, 80).astype(np.float32)
    data = tiny.trainset(tmp_path / "data.h5", values=large)
    sheet_of_trainset(data, tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").size == (28 + 4 * 82, 4 * 82 + 2)
    assert header(data)["real_data"] == "none"
