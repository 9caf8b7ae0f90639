"""Points in the plane: their teacher's answers and regions by hand, and what cannot be drawn."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import tiny
from support.snakemake import ROOT

from dfshield import registry
from dfshield.core.errors import InputError
from dfshield.data import sets
from dfshield.models.checkpoints import load_checkpoint, read_card
from dfshield.planning.figures import load_figures
from dfshield.planning.paths import DATA, Place
from dfshield.report import figure_plane


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[tuple[str, Place]]]:
    """A teacher of points, which answers either class, and a training set of 60 of them."""
    monkeypatch.chdir(tmp_path)
    own = {"shape": (2, 1, 1), "classes": 2, "mean": (0.5, 0.5), "std": (0.25, 0.25), "seed": 10}
    teacher = tiny.teacher(tmp_path / "teacher.safetensors", dataset="toy", model="toy", **own)
    place = Place("run", "toy", "toy", source="dss")
    Path(place.path(DATA)).parent.mkdir(parents=True)
    stated = {"dataset": "toy", "model": "toy", "classes": 2, "teacher_sha256": read_card(teacher).tensors_sha256}
    tiny.trainset(Path(place.path(DATA)), shape=(2, 1, 1), labels=[0, 0, 1] * 20, **stated)
    return teacher, [("DSS", place)]


def test_points_regions_and_the_wrong_side(made: tuple[Path, list[tuple[str, Place]]]) -> None:
    teacher, own = made
    (panel,) = figure_plane.panels(own, [teacher])
    net, _ = load_checkpoint(teacher, "cpu")
    assert np.array_equal(panel.points, tiny.images(60, (2, 1, 1)).reshape(60, 2))
    with torch.no_grad():
        answers = net(torch.from_numpy(panel.points).view(60, 2, 1, 1)).argmax(1).numpy()
        corner = net(torch.tensor([[0.25, 1.0]]).view(1, 2, 1, 1)).argmax().item()
    assert np.array_equal(panel.answered, answers) and len(np.unique(answers)) == 2
    assert panel.regions[200, 50] == corner  # rows are y
    wrong = [sum(1 for a, b in zip(panel.asked, answers, strict=True) if a == k != b) for k in (0, 1)]
    assert panel.title == f"DSS\nwrong side: {wrong[0]} of 40, {wrong[1]} of 20"
    rows = [line.split(",") for line in figure_plane.csv_of([panel]).splitlines()[1:]]
    assert len(rows) == 60
    assert [sum(row[-2] == str(k) != row[-1] for row in rows) for k in (0, 1)] == wrong


def test_a_plane_is_drawn(made: tuple[Path, list[tuple[str, Place]]], tmp_path: Path) -> None:
    teacher, own = made
    drawn = figure_plane.panels(own * 2, [teacher] * 2)
    spec = load_figures(ROOT / "config/figures.yaml")["figure3"]
    figure_plane.draw(spec, drawn, tmp_path / "figure3.png")
    pixels = np.asarray(Image.open(tmp_path / "figure3.png").convert("L"))
    assert pixels[:3].min() == pixels[-2:].min() == pixels[:, :3].min() == pixels[:, -3:].min() == 255  # nothing is cut
    assert (pixels == 0xDD).mean() > 0.01 and (pixels < 160).mean() > 0.005  # a region, and points
    assert (tmp_path / "figure3.svg").is_file()


def test_images_are_no_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    teacher = tiny.teacher(tmp_path / "teacher.safetensors")
    place = Place("run", "digits", "cnn-s", source="dss")
    Path(place.path(DATA)).parent.mkdir(parents=True)
    tiny.trainset(Path(place.path(DATA)), teacher_sha256=read_card(teacher).tensors_sha256)
    with pytest.raises(InputError, match=r"images of \(H,W,C\) \(8, 8, 1\); a plane is of \(1,1,2\)"):
        figure_plane.panels([("DSS", place)], [teacher])


def test_the_toy_is_two_classes_of_points_that_no_split_shares() -> None:
    parts = {split: sets.load("toy", split, Path("nowhere")) for split in ("train", "dev", "test")}
    assert {split: len(part) for split, part in parts.items()} == registry.DATASETS["toy"].images
    for part in parts.values():
        assert part.x.shape[1:] == (2, 1, 1) and part.y.bincount().tolist() == [len(part) // 2] * 2
        assert (part.x == part.x.clamp(1e-6, 1 - 1e-6)).float().mean() > 0.99  # hardly any is clipped
    values = {tuple(x.flatten().tolist()) for part in parts.values() for x in part.x}
    assert len(values) > 3500
