"""The plane of a teacher's features: against scikit-learn's PCA, and what cannot be drawn."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from support import tiny

from dfshield.core.errors import InputError
from dfshield.models.checkpoints import read_card
from dfshield.planning.paths import DATA, Place
from dfshield.report import figure_embedding
from dfshield.report.figure_embedding import panels, plane


def test_the_plane_is_that_of_a_pca_of_all_sets_together() -> None:
    random = np.random.RandomState(0)
    features = [random.randn(40, 5) @ random.randn(5, 5) + shift for shift in (0.0, 4.0)]
    points, shares = plane(features)
    expected = PCA(2, svd_solver="full").fit(np.concatenate(features))
    assert shares == pytest.approx(expected.explained_variance_ratio_.tolist())
    for own, given in zip(points, features, strict=True):
        assert np.allclose(np.abs(own), np.abs(expected.transform(given)))
    mirrored, _ = plane([-own for own in features])
    assert np.allclose(np.abs(mirrored[0]), np.abs(points[0]))
    alone, _ = plane(features[:1])
    assert not np.allclose(np.abs(alone[0]), np.abs(points[0]))  # one plane for all


def test_features_without_a_plane_are_refused() -> None:
    with pytest.raises(InputError, match="one input alone, so its features have no plane"):
        plane([np.zeros((4, 1))])


@pytest.fixture
def sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[tuple[str, Place]]]:
    """A teacher and two training sets of it."""
    monkeypatch.chdir(tmp_path)
    teacher = tiny.teacher(tmp_path / "teacher.safetensors")
    found = []
    for number, source in enumerate(("fixed", "dss")):
        place = Place("run", "digits", "cnn-s", source=source)
        Path(place.path(DATA)).parent.mkdir(parents=True)
        sha256 = read_card(teacher).tensors_sha256
        tiny.trainset(Path(place.path(DATA)), n=30, teacher_sha256=sha256, seed=number)
        found.append((source, place))
    return teacher, found


def test_points_are_of_the_input_of_the_last_layer(
    sets: tuple[Path, list[tuple[str, Place]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, own = sets
    monkeypatch.setattr(figure_embedding, "IMAGES", 25)
    made = panels(own, [teacher, teacher])
    net = tiny.classifier()
    body = torch.nn.Sequential(*list(net.net.children())[:-1])
    features = []
    for number, one in enumerate(made):
        x = torch.from_numpy(tiny.images(30, seed=number)[:25]).permute(0, 3, 1, 2)
        with torch.no_grad():
            features.append(body((x - net.mean) / net.std).numpy())
        assert len(one.points) == len(one.labels) == 25
    points, shares = plane(features)
    for one, expected in zip(made, points, strict=True):
        assert np.allclose(one.points, expected, atol=1e-4)
        assert one.explained == pytest.approx(shares, rel=1e-4)
    lines = figure_embedding.csv_of(made).splitlines()
    assert len(lines) == 1 + 2 * 25
    assert lines[1].split(",")[7:9] == ["0", "0"] and lines[26].split(",")[2] == "dss"


def test_a_set_of_another_teacher_is_refused(sets: tuple[Path, list[tuple[str, Place]]], tmp_path: Path) -> None:
    _, own = sets
    other = tiny.teacher(tmp_path / "other.safetensors", seed=3)
    with pytest.raises(InputError, match=r"data\.h5"):
        panels(own, [other, other])
