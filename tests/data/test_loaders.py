"""Real data: official file layouts made up by the tests, users' files, the digits' split, and what is refused."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from dfshield import registry
from dfshield.core.errors import InputError
from dfshield.data import sets
from dfshield.models.checkpoints import Card, save_checkpoint
from dfshield.models.classifier import Classifier
from dfshield.models.factory import build_network
from dfshield.sources.real import export
from dfshield.sources.trainset import read

RANDOM = np.random.RandomState(0)


def pixels(*shape):
    return RANDOM.randint(0, 256, shape).astype(np.uint8)


def test_digits_splits():
    parts = {split: sets.load("digits", split, Path("nowhere")) for split in ("train", "dev", "test")}
    assert [len(parts[split]) for split in parts] == [997, 300, 500]
    images = torch.cat([part.x for part in parts.values()])
    assert images.shape == (1797, 1, 8, 8)
    assert images.dtype == torch.float32
    assert (images.min(), images.max()) == (0, 1)
    from sklearn.datasets import load_digits

    pairs = {(image.tobytes(), int(label)) for image, label in zip(*load_digits(return_X_y=True), strict=True)}
    found = {
        ((image.flatten().double() * 16).numpy().tobytes(), int(label))
        for part in parts.values()
        for image, label in zip(part.x, part.y, strict=True)
    }
    assert found == pairs  # all images, each in one split, labels unmixed
    assert parts["test"].sha256() == "81eee83181757dd20aa545e28b704c4de8ce4fe7edb68640a2b2aed9e82086f6"
    assert min(parts["test"].y.bincount(minlength=10)) >= 40


@pytest.mark.parametrize("name", registry.DATASETS)
def test_a_set_that_comes_with_a_package_names_it(name):
    entry = registry.DATASETS[name]
    assert bool(entry.package) != bool(entry.files)
    assert bool(entry.package) <= bool(entry.images)


def test_identity_covers_pixels_and_labels():
    images = sets.load("digits", "dev", Path("nowhere"))
    other = sets.Images(images.x.clone(), images.y.clone())
    assert other.sha256() == images.sha256()
    other.y[3] += 1
    assert other.sha256() != images.sha256()
    assert images.first(7).sha256() != images.sha256()
    assert images.first(0) is images


def test_data_dir(monkeypatch):
    monkeypatch.delenv("DFSHIELD_DATA", raising=False)
    assert sets.data_dir(None) == Path("data")
    assert sets.data_dir(Path("elsewhere")) == Path("elsewhere")
    monkeypatch.setenv("DFSHIELD_DATA", "/mnt/images")
    assert sets.data_dir(Path("elsewhere")) == Path("/mnt/images")


@pytest.mark.parametrize("name", registry.DATASETS)
def test_registry_facts(name):
    entry = registry.DATASETS[name]
    assert len(entry.mean) == len(entry.std) == entry.input_shape[0]
    assert ("dev" in sets.splits(name)) == (name not in ("cifar10", "cifar100", "svhn", "photographs"))
    if name.endswith("mnist"):
        from medmnist import INFO

        assert entry.classes == len(INFO[name]["label"])


def test_every_single_label_2d_set_of_medmnist_is_registered():
    from medmnist import INFO

    flags = {flag for flag, info in INFO.items() if "3d" not in flag and "multi-label" not in info["task"]}
    assert flags == {name for name in registry.DATASETS if name.endswith("mnist")}


def write_cifar(folder, labels_key, files, classes):
    """Batch files of four images each, in the official layout; returns all images (N,32,32,3) and labels."""
    folder.mkdir(parents=True)
    images, labels = [], []
    for name in files:
        x, y = pixels(4, 32, 32, 3), RANDOM.randint(0, classes, 4)
        entry = {"data": x.transpose(0, 3, 1, 2).reshape(4, -1), labels_key: y.tolist()}
        (folder / name).write_bytes(pickle.dumps(entry))
        images.append(x)
        labels.append(y)
    return np.concatenate(images), np.concatenate(labels)


def approve(monkeypatch, dataset, folder):
    """Make the MD5 of the test's files the official ones."""

    def md5(name):
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    for attribute in ("train_list", "test_list"):
        monkeypatch.setattr(dataset, attribute, [[name, md5(name)] for name, _ in getattr(dataset, attribute)])
    monkeypatch.setattr(dataset, "meta", dataset.meta | {"md5": md5(dataset.meta["filename"])})


@pytest.mark.parametrize(("name", "labels_key"), [("cifar10", "labels"), ("cifar100", "fine_labels")])
def test_cifar_batch_files(torchvision, monkeypatch, tmp_path, name, labels_key):
    dataset = getattr(torchvision.datasets, name.upper())
    folder = tmp_path / dataset.base_folder
    classes = registry.DATASETS[name].classes
    train = [file for file, _ in dataset.train_list]
    x, y = write_cifar(folder, labels_key, [*train, *(file for file, _ in dataset.test_list)], classes)
    (folder / dataset.meta["filename"]).write_bytes(pickle.dumps({dataset.meta["key"]: []}))
    with pytest.raises(InputError, match="differ from the official MD5"):
        sets.load(name, "test", tmp_path)
    approve(monkeypatch, dataset, folder)
    for split, part in (("train", slice(0, 4 * len(train))), ("test", slice(4 * len(train), None))):
        images = sets.load(name, split, tmp_path)
        assert torch.equal((images.x * 255).round().byte(), torch.from_numpy(x[part].transpose(0, 3, 1, 2).copy()))
        assert images.y.tolist() == y[part].tolist()
    with pytest.raises(InputError, match=f"{name} has no split 'dev'; it has train, test"):
        sets.load(name, "dev", tmp_path)


class Hostile:
    def __reduce__(self):
        return (eval, ("open('was_run', 'w')",))


def test_a_foreign_cifar_pickle_is_not_loaded(torchvision, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    dataset = torchvision.datasets.CIFAR10
    folder = tmp_path / dataset.base_folder
    folder.mkdir()
    for name, _ in [*dataset.train_list, *dataset.test_list, [dataset.meta["filename"], ""]]:
        (folder / name).write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(InputError, match="official MD5"):
        sets.load("cifar10", "test", tmp_path)
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize("split", ["train", "test"])
def test_svhn_mat_files(torchvision, monkeypatch, tmp_path, split):
    from scipy.io import savemat

    x, y = pixels(6, 32, 32, 3), np.array([1, 10, 9, 2, 10, 5])  # SVHN writes the digit 0 as 10
    path = tmp_path / f"{split}_32x32.mat"
    savemat(path, {"X": x.transpose(1, 2, 3, 0), "y": y[:, None].astype(np.uint8)})
    with pytest.raises(InputError, match="official MD5"):
        sets.load("svhn", split, tmp_path)
    dataset = torchvision.datasets.SVHN
    url, name, _ = dataset.split_list[split]
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setattr(dataset, "split_list", dataset.split_list | {split: [url, name, md5]})
    images = sets.load("svhn", split, tmp_path)
    assert torch.equal((images.x * 255).round().byte(), torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))
    assert images.y.tolist() == [1, 0, 9, 2, 0, 5]


def test_general_sets_from_npz(tmp_path, capsys):
    x, y = pixels(5, 32, 32, 3), np.arange(5)
    np.savez(tmp_path / "cifar10_train_part.npz", x=x, y=y)
    assert len(sets.load("cifar10", "train", tmp_path)) == 5
    assert "cifar10_train_part.npz, which may be a part" in capsys.readouterr().err
    np.savez(tmp_path / "cifar10_train_other.npz", x=x, y=y)
    with pytest.raises(InputError, match=r"any of cifar10_train_other.npz, cifar10_train_part.npz; rename"):
        sets.load("cifar10", "train", tmp_path)
    np.savez(tmp_path / "cifar10_train.npz", x=x[:3], y=y[:3])
    assert len(sets.load("cifar10", "train", tmp_path)) == 3
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("colour", [True, False])
def test_medmnist_files(tmp_path, colour):
    name = "bloodmnist" if colour else "octmnist"
    classes = registry.DATASETS[name].classes
    arrays = {}
    for part, count in (("train", 6), ("val", 3), ("test", 4)):
        arrays[f"{part}_images"] = pixels(count, 28, 28, 3) if colour else pixels(count, 28, 28)
        arrays[f"{part}_labels"] = RANDOM.randint(0, classes, (count, 1)).astype(np.uint8)
    np.savez(tmp_path / f"{name}.npz", **arrays)
    for split, part in (("train", "train"), ("dev", "val"), ("test", "test")):
        images = sets.load(name, split, tmp_path)
        expected = arrays[f"{part}_images"]
        expected = expected if colour else np.repeat(expected[..., None], 3, axis=3)
        assert torch.equal((images.x * 255).round().byte(), torch.from_numpy(expected.transpose(0, 3, 1, 2).copy()))
        assert images.y.tolist() == arrays[f"{part}_labels"][:, 0].tolist()
        assert images.y.dtype == torch.int64


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("cifar10", "neither cifar-10-batches-py nor cifar10_test.npz found in .*cs.toronto.edu"),
        ("svhn", "neither test_32x32.mat nor svhn_test.npz found in .*ufldl"),
        ("pathmnist", "no pathmnist.npz in .*zenodo"),
    ],
)
def test_missing_files(tmp_path, name, says):
    with pytest.raises(InputError, match=says) as caught:
        sets.load(name, "test", tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "DFSHIELD_DATA" in str(caught.value)


def test_unknown_names():
    with pytest.raises(InputError, match="'cifar11' is not one of digits, mnist5k, toy, photographs, cifar10"):
        sets.load("cifar11", "test", Path("data"))
    with pytest.raises(InputError, match="digits has no split 'val'; it has train, dev, test"):
        sets.load("digits", "val", Path("data"))


@pytest.mark.parametrize(
    ("x", "shape"),
    [
        (pixels(5, 8, 8, 3), (3, 8, 8)),
        (pixels(5, 8, 8), (1, 8, 8)),
        (pixels(5, 8, 8, 1), (1, 8, 8)),
        (pixels(5, 8, 8), (3, 8, 8)),
        (pixels(5, 8, 8, 3).astype(np.float64) / 255, (3, 8, 8)),
        (pixels(5, 8, 8, 3).astype(np.float32) / 255, (3, 8, 8)),
    ],
)
@pytest.mark.parametrize("label_type", [np.int64, np.uint8, np.int32])
def test_users_npz(tmp_path, x, shape, label_type):
    path = tmp_path / "mine.npz"
    np.savez(path, x=x, y=np.arange(5, dtype=label_type))
    images = sets.load_npz(path, shape, 5)
    assert images.x.shape == (5, *shape)
    assert images.x.dtype == torch.float32
    assert images.x.is_contiguous()
    scale = 255 if x.dtype == np.uint8 else 1
    planes = x.reshape(5, 8, 8, -1).transpose(0, 3, 1, 2) / scale
    torch.testing.assert_close(images.x, torch.from_numpy(planes.astype(np.float32)).expand(5, *shape))
    assert images.y.tolist() == [0, 1, 2, 3, 4]
    assert len(sets.load_npz(path, shape, 5, limit=2)) == 2


GOOD = {"x": pixels(4, 8, 8, 3), "y": np.arange(4)}
NAN = np.full((4, 8, 8, 3), np.nan, dtype=np.float32)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        (GOOD | {"x": GOOD["x"][:0], "y": GOOD["y"][:0]}, "the set is empty"),
        (GOOD | {"x": GOOD["x"].astype(np.int64)}, "images are int64; expected uint8 or float"),
        (GOOD | {"x": GOOD["x"].astype(np.float32)}, r"float images lie in \[.*; expected \[0,1\]"),
        (GOOD | {"x": NAN}, r"lie in \[nan, nan\]"),
        (GOOD | {"x": pixels(4, 9, 8, 3)}, "images are 9x8 with 3 channels, the model takes 8x8 with 3"),
        (GOOD | {"x": pixels(4, 8, 8, 2)}, "8x8 with 2 channels"),
        (GOOD | {"x": pixels(4, 3, 8, 8)}, "images are 3x8 with 8 channels"),
        (GOOD | {"x": pixels(4, 192)}, "images have shape"),
        (GOOD | {"y": np.arange(3)}, r"labels have shape \(3,\); expected \(4,\)"),
        (GOOD | {"y": np.zeros((4, 2), int)}, r"labels have shape \(4, 2\)"),
        (GOOD | {"y": np.arange(4.0)}, "labels are float64"),
        (GOOD | {"y": np.arange(1, 5)}, r"labels lie in 1..4; allowed are 0 to 3"),
        (GOOD | {"y": np.arange(-1, 3)}, r"labels lie in -1..2"),
        (GOOD | {"y": np.array([0, 1, 2, None])}, "pickled Python objects"),
        ({"images": GOOD["x"], "y": GOOD["y"]}, r"has no key x .it has: images, y"),
    ],
)
def test_what_users_files_get_wrong(tmp_path, arrays, says):
    path = tmp_path / "mine.npz"
    np.savez(path, **arrays)
    with pytest.raises(InputError, match=says) as caught:
        sets.load_npz(path, (3, 8, 8), 4)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def truncate(path):
    np.savez(path, **GOOD)
    path.write_bytes(path.read_bytes()[:-200])


def flip(path):
    np.savez(path, **GOOD)
    content = bytearray(path.read_bytes())
    content[300] ^= 1
    path.write_bytes(content)


def single(path):
    with path.open("wb") as stream:
        np.save(stream, GOOD["x"])


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (lambda p: None, "no such file"),
        (lambda p: p.write_text("<html>"), "is no .npz"),
        (lambda p: p.write_bytes(b""), "cannot be read"),
        (lambda p: p.write_bytes(pickle.dumps(GOOD)), "pickled Python objects"),
        (truncate, "cannot be read as .npz"),
        (flip, "cannot be read as .npz"),
        (single, "holds one array"),
    ],
)
def test_what_is_no_npz(tmp_path, write, says):
    path = tmp_path / "mine.npz"
    write(path)
    with pytest.raises(InputError, match=says):
        sets.load_npz(path, (3, 8, 8), 4)


def test_export_of_the_real_training_set(tmp_path):
    entry = registry.DATASETS["digits"]
    facts = {"dataset": "digits", "model": "cnn-s", "mean": entry.mean, "std": entry.std}
    card = Card(kind="teacher", input_shape=(1, 8, 8), classes=10, real_data="teacher", **facts)
    net = build_network("cnn-s", (1, 8, 8), 10)
    sha = save_checkpoint(tmp_path / "teacher.safetensors", Classifier(net, entry.mean, entry.std), card)
    content = export("digits", None, tmp_path / "data.h5", tmp_path / "teacher.safetensors")
    made = read(tmp_path / "data.h5")
    images = sets.load("digits", "train", Path("nowhere"))
    assert np.array_equal(made.images.transpose(0, 3, 1, 2), images.x.numpy())
    assert made.labels.tolist() == images.y.tolist()
    found = {key: made.attributes[key] for key in ("real_data", "source", "teacher_sha256", "content_sha256")}
    assert found == {"real_data": "train", "source": "real", "teacher_sha256": sha, "content_sha256": content}
    assert export("digits", None, tmp_path / "again.h5", tmp_path / "teacher.safetensors") == content
    assert (tmp_path / "again.h5").read_bytes() == (tmp_path / "data.h5").read_bytes()


def test_export_for_a_teacher_of_other_images(tmp_path):
    np.savez(tmp_path / "cifar10_train.npz", x=pixels(5, 32, 32, 3), y=np.arange(5))
    net = build_network("cnn-s", (1, 8, 8), 10)
    facts = {"dataset": "digits", "model": "cnn-s", "mean": (0.3,), "std": (0.4,)}
    card = Card(kind="teacher", input_shape=(1, 8, 8), classes=10, real_data="teacher", **facts)
    save_checkpoint(tmp_path / "teacher.safetensors", Classifier(net, (0.3,), (0.4,)), card)
    with pytest.raises(InputError, match="give a teacher of cifar10"):
        export("cifar10", tmp_path, tmp_path / "data.h5", tmp_path / "teacher.safetensors")
    assert not (tmp_path / "data.h5").exists()


def test_photographs_are_crops_of_the_two():
    """Those of the largest scale are found in the photographs, pixel by pixel."""
    from sklearn.datasets import load_sample_images

    images = sets.load("photographs", "train", Path("nowhere"))
    assert images.x.shape == (5000, 3, 32, 32) and images.y.bincount().tolist() == [2500, 2500]
    assert images.x.flatten(1).std(1).median() > 0.05  # not mostly sky
    found = 0
    for label, photograph in enumerate(load_sample_images().images):
        whole = photograph.astype(np.int64) @ (1, 256, 65536)
        crops = (images.x[images.y == label][:40] * 255).round().long().permute(0, 2, 3, 1).numpy() @ (1, 256, 65536)
        for crop in crops:
            places = np.argwhere((whole[:-31, :-31] == crop[0, 0]) & (whole[31:, 31:] == crop[-1, -1]))
            found += any(np.array_equal(whole[i : i + 32, j : j + 32], crop) for i, j in places)
    assert 10 <= found <= 30  # a quarter of the eighty
    with pytest.raises(InputError, match="data set photographs has no split 'test'; it has train"):
        sets.load("photographs", "test", Path("nowhere"))


def test_images_of_one_channel_have_one_layout():
    """Theirs fit either layout, and PyTorch takes the convolution by the strides: other strides, other roundings."""
    pixels, labels = np.zeros((3, 4, 5), np.uint8), np.arange(3)
    assert sets.to_images(pixels, labels, (1, 4, 5), 3, "here").x.stride() == (20, 1, 5, 1)
    assert sets.to_images(pixels[..., None].repeat(3, -1), labels, (3, 4, 5), 3, "here").x.is_contiguous()
