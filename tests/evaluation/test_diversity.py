"""Diversity metrics against numbers by hand and a plain second version; features, records, the stage."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chi2_contingency
from support import tiny
from support.ledgers import make_record
from torch import nn

from dfshield.core.errors import InputError
from dfshield.data import sets
from dfshield.evaluation import features
from dfshield.evaluation.coverage import ROWS, bin_counts, different_bins, jensen_shannon, neighbourhood_metrics
from dfshield.evaluation.diversity import run
from dfshield.evaluation.features import extractor
from dfshield.evaluation.record import Record, protocol, read_record, write_record
from dfshield.models.checkpoints import load_checkpoint, read_card
from dfshield.models.classifier import Classifier
from dfshield.models.penultimate import Penultimate
from dfshield.options import DiversityOptions
from dfshield.registry import DIVERSITY_METRICS
from dfshield.tools import inspect

# --- neighbourhoods --------------------------------------------------------------------------------------------------


def points(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None]


def test_neighbourhood_metrics_by_hand():
    """Points on a line, k = 1: the real balls have radius 1, those of 0.5, 10 and 11 have 9.5, 1 and 1."""
    found = neighbourhood_metrics(points(0, 1, 2, 3), points(0.5, 10, 11), 1)
    assert found == {
        "precision": 1 / 3,  # 0.5 alone lies in a real ball
        "recall": 1.0,  # all real points lie in the ball of 0.5
        "density": pytest.approx(2 / 3),  # it lies in two of them
        "coverage": 2 / 4,
    }


def test_balls_are_open():
    """2 is as far from 1 as 1 is from 0: it lies in no real ball, and 1 not in the ball of 2."""
    found = neighbourhood_metrics(points(0, 1), points(2, 3), 1)
    assert found == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}


def brute_force(real: np.ndarray, synthetic: np.ndarray, k: int) -> dict[str, float]:
    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return math.sqrt(sum((float(x) - float(y)) ** 2 for x, y in zip(a, b, strict=True)))

    def radius(own: np.ndarray, i: int) -> float:
        return sorted(distance(own[i], other) for j, other in enumerate(own) if j != i)[k - 1]

    between = [[distance(a, b) for b in synthetic] for a in real]
    real_radii = [radius(real, i) for i in range(len(real))]
    radii = [radius(synthetic, j) for j in range(len(synthetic))]
    inside = [[between[i][j] < real_radii[i] for j in range(len(synthetic))] for i in range(len(real))]
    return {
        "precision": sum(any(row[j] for row in inside) for j in range(len(synthetic))) / len(synthetic),
        "recall": sum(any(d < r for d, r in zip(row, radii, strict=True)) for row in between) / len(real),
        "density": sum(map(sum, inside)) / (k * len(synthetic)),
        "coverage": sum(map(any, inside)) / len(real),
    }


@pytest.mark.parametrize("kind", ["normal", "far from zero", "lattice"])
@pytest.mark.parametrize("k", [1, 5])
def test_neighbourhood_metrics_are_those_of_a_plain_version(kind, k):
    random = np.random.RandomState(k)
    real, synthetic = random.normal(size=(60, 3)), random.normal(0.7, 0.6, (45, 3))
    if kind == "far from zero":  # where a product in float32 has no digits left for the distances
        real, synthetic = 1000 + real, 1000 + synthetic
    if kind == "lattice":  # full of ties, which an open ball leaves outside
        real, synthetic = np.round(2 * real) / 16, np.round(2 * synthetic) / 16
    real, synthetic = real.astype(np.float32), synthetic.astype(np.float32)
    found = neighbourhood_metrics(torch.from_numpy(real), torch.from_numpy(synthetic), k)
    assert found == pytest.approx(brute_force(real, synthetic, k))


def test_blocks_change_nothing(monkeypatch):
    random = torch.Generator().manual_seed(0)
    real, synthetic = torch.randn((ROWS + 40, 4), generator=random), torch.randn((2 * ROWS + 7, 4), generator=random)
    expected = neighbourhood_metrics(real, synthetic, 5)
    monkeypatch.setattr("dfshield.evaluation.coverage.ROWS", 10_000)
    assert neighbourhood_metrics(real, synthetic, 5) == expected
    assert 0 < expected["recall"] < 1


def test_neighbourhood_metrics_of_extreme_sets():
    real = torch.randn((40, 5), generator=torch.Generator().manual_seed(1))
    same = neighbourhood_metrics(real, real, 3)
    assert same["precision"] == same["recall"] == same["coverage"] == 1
    far = neighbourhood_metrics(real, real + 100, 3)
    assert set(far.values()) == {0.0}
    collapsed = neighbourhood_metrics(real, real[:1].expand(20, -1), 3)  # precise and of no diversity at all
    assert (collapsed["precision"], collapsed["recall"]) == (1, 0)


@pytest.mark.parametrize(("sizes", "which"), [((5, 9), "5 real"), ((9, 4), "4 synthetic")])
def test_more_neighbours_than_points_are_refused(sizes, which):
    real, synthetic = (torch.zeros(n, 2) for n in sizes)
    with pytest.raises(InputError, match=f"neighbours 5: there are {which} images; use neighbours < "):
        neighbourhood_metrics(real, synthetic, 5)


# --- bins ------------------------------------------------------------------------------------------------------------


def test_bins_are_clusters_of_the_real_points():
    corners = np.array([[0, 0], [0, 9], [9, 0], [9, 9]], dtype=np.float32)
    random = np.random.RandomState(0)
    real = np.concatenate([c + 0.1 * random.randn(n, 2) for c, n in zip(corners, (10, 20, 30, 40), strict=True)])
    synthetic = corners[[0, 0, 3, 3, 3]] + 2
    counts, own = bin_counts(real.astype(np.float32), synthetic, 4, 0)
    assert sorted(zip(counts.tolist(), own.tolist(), strict=True)) == [(10, 2), (20, 0), (30, 0), (40, 3)]


def test_bins_depend_on_real_points_and_seed_alone():
    real = np.random.RandomState(0).randn(200, 3).astype(np.float32)
    counts, again, other = (bin_counts(real, real[:n], 20, seed)[0] for n, seed in ((10, 0), (90, 0), (10, 1)))
    assert (counts == again).all() and (counts != other).any()
    assert counts.sum() == 200
    with pytest.raises(InputError, match="bins 201: there are only 200 real images; use bins <= 200"):
        bin_counts(real, real, 201, 0)


def test_different_bins_by_hand():
    """Of 100 and 100: 50 against 36 has z = 0.14 / 0.0700 = 2.0, 50 against 37 has 0.13 / 0.0701 = 1.85."""
    half = np.array([50, 50])
    assert different_bins(half, np.array([36, 64]), 0.05) == 2
    assert different_bins(half, np.array([37, 63]), 0.05) == 0
    assert different_bins(half, np.array([37, 63]), 0.07) == 2
    assert different_bins(np.array([50, 0, 50]), np.array([0, 0, 9]), 0.05) == 2  # nothing and nothing is no difference


def test_different_bins_are_those_of_the_chi_square_test():
    """A two-sided two-proportion z-test is the chi-square test of the two-by-two table without correction."""
    random = np.random.RandomState(3)
    for _ in range(20):
        real, synthetic = (
            random.multinomial(400, np.full(8, 1 / 8)),
            random.multinomial(150, random.dirichlet(np.ones(8) * 9)),
        )
        tables = [[[a, 400 - a], [b, 150 - b]] for a, b in zip(real, synthetic, strict=True)]
        expected = sum(chi2_contingency(table, correction=False).pvalue < 0.05 for table in tables)
        assert different_bins(real, synthetic, 0.05) == expected


def test_divergence_by_hand():
    counts = np.array([10, 10, 10, 10])
    p, q, m = [0.25] * 4, [1, 0, 0, 0], [0.625, 0.125, 0.125, 0.125]
    expected = sum(0.5 * a * math.log(a / b) for a, b in [*zip(p, m, strict=True), (q[0], m[0])])
    assert jensen_shannon(counts, np.array([7, 0, 0, 0])) == pytest.approx(expected)
    assert jensen_shannon(counts, 3 * counts) == pytest.approx(0)
    assert jensen_shannon(np.array([5, 0]), np.array([0, 8])) == pytest.approx(math.log(2))


# --- features --------------------------------------------------------------------------------------------------------


def test_teacher_features_are_the_input_of_the_last_linear_layer():
    model = tiny.classifier()
    images = torch.rand((600, *tiny.SHAPE), generator=torch.Generator().manual_seed(0))  # three batches
    found = extractor("teacher", model, None)(images)
    with torch.no_grad():
        expected = model.net[:-1]((images - model.mean) / model.std)
        assert torch.allclose(found @ model.net[-1].weight.T + model.net[-1].bias, model(images), atol=1e-5)
    assert found.shape == (600, 32) and torch.allclose(found, expected, atol=1e-5)
    assert not model.net[-1]._forward_pre_hooks
    assert torch.equal(extractor("pixels", model, None)(images), images.reshape(600, 64))


def test_the_last_layer_is_the_one_that_runs_last():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.body = nn.Linear(3, 2), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(x))

    network, x = Odd(), torch.rand(5, 4)
    watched = Penultimate(network)
    network(x)
    assert torch.equal(watched.features, network.body(x))
    watched.remove()
    with pytest.raises(InputError, match="no Linear layer, so it has no penultimate features; use pixels"):
        Penultimate(nn.Conv2d(1, 1, 1))


class Small(nn.Module):
    """VGG16's shape at a size for tests."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2))
        layers = (nn.Linear(8, 6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 4))
        self.classifier = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).flatten(1))


@pytest.mark.parametrize("channels", [1, 3])
def test_vgg16_features_are_those_of_its_second_linear_layer(torchvision, monkeypatch, tmp_path, channels):
    monkeypatch.setattr("torchvision.models.vgg16", Small)
    network = Small().eval()
    torch.save(network.state_dict(), tmp_path / "vgg16.pth")
    images = torch.rand(3, channels, 8, 8)
    found = extractor("vgg16", tiny.classifier(), tmp_path / "vgg16.pth")(images)
    large = nn.functional.interpolate(images.repeat(1, 3 // channels, 1, 1), (224, 224), mode="bilinear")
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (features.IMAGENET_MEAN, features.IMAGENET_STD))
    with torch.no_grad():
        expected = network.classifier[:5](network.features((large - mean) / std).flatten(1))
    assert found.shape == (3, 6) and torch.allclose(found, expected, atol=1e-6)
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"other\.pth: the weights do not fit the model"):
        extractor("vgg16", tiny.classifier(), tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"none\.pth: no such file \(weights file\)"):
        extractor("vgg16", tiny.classifier(), tmp_path / "none.pth")


# --- the record ------------------------------------------------------------------------------------------------------


def test_record_comes_back(tmp_path, capsys):
    content = make_record(tmp_path / "r.json")
    record = read_record(tmp_path / "r.json")
    assert (record.content_sha256, record.seed, record.values["recall"]) == (content, 0, 0.5)
    assert write_record(tmp_path / "again.json", record) == content
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "r.json").read_bytes()
    assert make_record(tmp_path / "other.json", seed=1) != content
    assert protocol(record, "recall") == "recall[teacher k=5 train]"
    assert protocol(record, "ndb") == "ndb[pixels K=100 alpha=0.05 train]"
    assert protocol(record, "jsd") == "jsd[pixels K=100 train]"
    inspect.run(tmp_path / "r.json", None)
    out = capsys.readouterr().out
    for wanted in ("record of diversity metrics", "60 of the source, 997 of the real train split", "0.500\n", "88 bins",
                   "0.250 nat", content):  # fmt: skip
        assert wanted in out


def edited(**changes: object):
    return lambda body: json.dumps(body | changes)


def valued(recall: object):
    return lambda body: json.dumps(body | {"values": body["values"] | {"recall": recall}})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda body: json.dumps(body)[:-40], "cannot be read as JSON"),
        (lambda body: "", "cannot be read as JSON"),
        (lambda body: "[" * 100_000, "cannot be read as JSON"),
        (lambda body: "[1]", "not a record of diversity metrics"),
        (edited(format="other"), "not a record of diversity metrics"),
        (edited(version=9), "format version 9, this program reads 1"),
        (edited(n_real=998), "content does not match its SHA-256"),
        (valued(0.9), "content does not match its SHA-256"),
        (valued(math.nan), "is not whole"),
        (valued("0.5"), "content does not match its SHA-256"),
        (valued("half"), "is not whole"),
        (edited(n_real=0), "is not whole"),
        (edited(real_data="some"), "is not whole"),
        (edited(more=1), "is not whole"),
        (lambda body: json.dumps({k: v for k, v in body.items() if k != "split"}), "is not whole"),
    ],
)
def test_damaged_records_are_refused(tmp_path, spoil, message):
    make_record(tmp_path / "r.json")
    (tmp_path / "r.json").write_text(spoil(json.loads((tmp_path / "r.json").read_text())))
    with pytest.raises(InputError, match=message) as error:
        read_record(tmp_path / "r.json")
    assert "\n" not in str(error.value) and "r.json: " in str(error.value)


def test_a_record_needs_every_metric(tmp_path):
    make_record(tmp_path / "r.json", values={"recall": 0.5})
    with pytest.raises(InputError, match="has recall, expected precision, recall"):
        read_record(tmp_path / "r.json")


# --- the stage -------------------------------------------------------------------------------------------------------

QUICK = DiversityOptions(device="cpu", bins=20)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    teacher = tiny.teacher(folder / "teacher.safetensors")
    tiny.trainset(folder / "data.h5", teacher_sha256=read_card(teacher).tensors_sha256)
    return folder


def compare(made: Path, out: Path, **changes: object) -> Record:
    run(made / "teacher.safetensors", made / "data.h5", out, QUICK.model_copy(update=changes))
    return read_record(out)


def test_the_record_is_of_these_images(made, tmp_path):
    found = compare(made, tmp_path / "r.json", split="dev")
    model, card = load_checkpoint(made / "teacher.safetensors")
    real = sets.load("digits", "dev", Path())
    synthetic = torch.from_numpy(tiny.images(60)).permute(0, 3, 1, 2)
    seen = extractor("teacher", model, None)
    expected = neighbourhood_metrics(seen(real.x), seen(synthetic), 5)
    counts = bin_counts(real.x.flatten(1).numpy(), synthetic.flatten(1).numpy(), 20, 0)
    expected |= {"ndb": different_bins(*counts, 0.05), "jsd": jensen_shannon(*counts)}
    assert found.values == pytest.approx(expected) and found.values.keys() == set(DIVERSITY_METRICS)
    assert (found.n_real, found.n_synthetic, found.split, found.source) == (300, 60, "dev", "dss")
    assert (found.teacher_sha256, found.real_sha256) == (card.tensors_sha256, real.sha256())
    assert found.options["neighbours"] == 5 and "threads" not in found.options
    compare(made, tmp_path / "again.json", split="dev")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "r.json").read_bytes()


def test_options_of_the_stage(made, tmp_path):
    whole = compare(made, tmp_path / "r.json", split="dev", neighbours=3, features="pixels", bin_features="teacher")
    part = compare(made, tmp_path / "p.json", split="dev", sample=50)
    assert (part.n_real, part.n_synthetic) == (50, 50)
    assert part.values != whole.values and part.real_sha256 == whole.real_sha256
    assert protocol(whole, "coverage") == "coverage[pixels k=3 dev]"
    assert whole.values["coverage"] == 0 < whole.values["jsd"]  # noise is no digit


def test_a_set_of_real_images_is_marked(made, tmp_path):
    teacher = made / "teacher.safetensors"
    tiny.trainset(tmp_path / "d.h5", teacher_sha256=read_card(teacher).tensors_sha256, real_data="train", source="real")
    run(teacher, tmp_path / "d.h5", tmp_path / "r.json", QUICK.model_copy(update={"split": "dev"}))
    found = read_record(tmp_path / "r.json")
    assert (found.real_data, found.source) == ("train", "real")


def test_real_digits_are_diverse_and_noise_is_not(tmp_path):
    """The metrics point the right way: other real digits cover more of the set than copies of one or noise do."""
    teacher = tiny.teacher(tmp_path / "t.safetensors")
    _, card = load_checkpoint(teacher)
    real = sets.load("digits", "train", Path()).x[:300]
    noise = torch.from_numpy(tiny.images(300)).permute(0, 3, 1, 2)
    found = {}
    for name, images in {"digits": real, "one": real[:1].repeat(300, 1, 1, 1), "noise": noise}.items():
        tiny.trainset(tmp_path / f"{name}.h5", teacher_sha256=card.tensors_sha256, values=images)
        options = QUICK.model_copy(update={"features": "pixels", "split": "dev"})
        run(teacher, tmp_path / f"{name}.h5", tmp_path / "r.json", options)
        found[name] = read_record(tmp_path / "r.json").values
    for other in ("one", "noise"):
        assert found["digits"]["recall"] > 0.8 > 0.2 > found[other]["recall"]
        assert found["digits"]["coverage"] > 0.6 > 0.1 > found[other]["coverage"]
        assert found["digits"]["ndb"] < found[other]["ndb"]
        assert found["digits"]["jsd"] < 0.05 < found[other]["jsd"]


def test_images_of_another_shape_are_refused(tmp_path, monkeypatch):
    teacher = tiny.teacher(tmp_path / "t.safetensors", shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.5,) * 3)
    tiny.trainset(tmp_path / "d.h5", shape=(3, 8, 8), teacher_sha256=read_card(teacher).tensors_sha256)
    with pytest.raises(InputError, match=r"of shape \(C,H,W\) \(3, 8, 8\), data set digits has \(1, 8, 8\)"):
        run(teacher, tmp_path / "d.h5", tmp_path / "r.json", QUICK)
    assert not (tmp_path / "r.json").exists()


def test_a_classifier_without_linear_layer_has_pixels(monkeypatch):
    network = nn.Sequential(nn.Conv2d(1, 10, 8), nn.BatchNorm2d(10), nn.Flatten())
    model = Classifier(network, (0.5,), (0.5,)).eval()
    images = torch.rand(2, 1, 8, 8)
    assert extractor("pixels", model, None)(images).shape == (2, 64)
    with pytest.raises(InputError, match="no Linear layer"):
        extractor("teacher", model, None)(images)
