"""Mixup, Cutout and CutMix: each against a plain version pixel by pixel; the file that they are written to."""

import json

import h5py
import numpy as np
import pytest
import torch
from scipy.stats import beta, kstest
from support import tiny

from dfshield.core.errors import InputError
from dfshield.core.rng import generator
from dfshield.options import AugmentOptions
from dfshield.options.sources import Cutmix, Cutout, Mixup
from dfshield.sources import augmentation
from dfshield.sources import trainset as shards
from dfshield.sources.augmentation import cutmix, cutout, mixup, run

MIXUP = Mixup(device="cpu")


class Scripted:
    """Gives the draws of a test in place of a random generator's."""

    def __init__(self, monkeypatch, permutation=(), shares=(), places=()):
        places = iter(places)
        monkeypatch.setattr(torch, "randperm", lambda n, generator: torch.tensor(permutation))
        monkeypatch.setattr(augmentation, "_beta", lambda n, random, alpha: torch.tensor(shares))
        monkeypatch.setattr(torch, "randint", lambda high, size, generator: torch.tensor(next(places)))


BATCH = torch.arange(32.0).view(2, 1, 4, 4) / 32
"""Two grey images of 4x4 pixels, of which no two are alike."""


def test_mixup_by_hand(monkeypatch):
    Scripted(monkeypatch, permutation=[1, 0], shares=[0.25, 0.5])
    made, carried = mixup(BATCH, generator("t"), MIXUP)
    assert torch.allclose(made[0], 0.25 * BATCH[0] + 0.75 * BATCH[1])
    assert torch.allclose(made[1], 0.5 * BATCH[1] + 0.5 * BATCH[0])
    assert carried.tolist() == [1, 1]  # the first is three quarters of its partner; the second keeps its own at a half


def test_cutout_by_hand(monkeypatch):
    """A square of 2 around pixel (row, column) begins one pixel before it; at the border it is cut off."""
    Scripted(monkeypatch, places=[[2, 0], [1, 3]])
    made, carried = cutout(BATCH, generator("t"), Cutout())
    expected = BATCH.clone()
    expected[0, 0, 1:3, 0:2] = 0
    expected[1, 0, 0:1, 2:4] = 0
    assert torch.equal(made, expected)
    assert carried.tolist() == [0, 1]


def test_cutmix_by_hand(monkeypatch):
    """λ = 7/16 pastes a box of 3 by 3, which begins one pixel before its centre; λ = 3/4 one of 2 by 2."""
    Scripted(monkeypatch, permutation=[1, 0], shares=[7 / 16, 3 / 4], places=[[1, 3], [1, 0]])
    made, carried = cutmix(BATCH, generator("t"), Cutmix())
    expected = BATCH.clone()
    expected[0, 0, 0:3, 0:3] = BATCH[1, 0, 0:3, 0:3]  # nine of 16 pixels: mostly the partner
    expected[1, 0, 2:4, 0:1] = BATCH[0, 0, 2:4, 0:1]
    assert torch.equal(made, expected)
    assert carried.tolist() == [1, 1]


@pytest.mark.parametrize(("length", "side"), [(32, 16), (28, 14), (8, 4)])
def test_the_square_of_cutout_is_half_of_the_image(length, side):
    made, _ = cutout(torch.ones(800, 3, length, length), generator("t"), Cutout())
    holes = (made == 0).all(1)
    rows, columns = holes.any(2).sum(1), holes.any(1).sum(1)
    assert ((made == 0).sum((1, 2, 3)) == 3 * rows * columns).all()  # one rectangle in all channels
    assert rows.max() == columns.max() == side and rows.min() >= side // 2
    assert holes.any(0).all()  # every pixel may be hit


def test_cutmix_pastes_one_box_of_the_share_drawn():
    n, length = 2000, 32
    images = torch.arange(float(n)).view(n, 1, 1, 1).expand(n, 3, length, length) / n
    made, carried = cutmix(images, generator("t"), Cutmix())
    foreign = made != images
    boxes = foreign.all(1)
    assert (foreign.any(1) == boxes).all()
    area = boxes.sum((1, 2))
    assert (area == boxes.any(2).sum(1) * boxes.any(1).sum(1)).all()
    assert ((carried != torch.arange(n)) == (area > length**2 / 2)).all()
    inner = area[(~boxes[:, 0]).all(1) & (~boxes[:, -1]).all(1) & (~boxes[:, :, 0]).all(1) & (~boxes[:, :, -1]).all(1)]
    assert len(inner) > 100 and (inner.float().sqrt() == inner.float().sqrt().round()).all()  # squares if not cut off


@pytest.mark.parametrize("alpha", [0.3, 1.0, 4.0])
def test_shares_are_beta(alpha):
    drawn = augmentation._beta(2000, generator("t"), alpha)
    assert kstest(drawn.double().numpy(), beta(alpha, alpha).cdf).pvalue > 0.01


# --- the file --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mixup", "cutout", "cutmix"])
def test_the_set_inherits_what_its_base_is(tmp_path, name):
    base = tiny.trainset(tmp_path / "base.h5", source="fixed", real_data="train")
    run(base, tmp_path / "out.h5", AugmentOptions.of(augmentation=name, seed=3), "mine", "code")
    given, made = shards.read(base), shards.read(tmp_path / "out.h5")
    for key in ("teacher_sha256", "dataset", "model", "real_data", "classes"):
        assert made.attributes[key] == given.attributes[key]
    assert (made.attributes["source"], made.attributes["seed"], made.attributes["code"]) == ("mine", 3, "code")
    options = made.attributes["options"]
    own = {"side": 0.5} if name == "cutout" else {"alpha": 1.0}
    expected = {"augmentation": name, "probability": 1.0, "base": "fixed"} | own
    assert {key: options[key] for key in options if not key.startswith("base_")} == expected
    assert options["base_sha256"] == given.attributes["content_sha256"]
    assert options["base_options"] == given.attributes["options"]
    images = torch.from_numpy(given.images).permute(0, 3, 1, 2)
    random = generator("augmentation", name, 3)
    expected, carried = getattr(augmentation, name)(images, random, AugmentOptions.of(augmentation=name))
    assert (made.images == expected.permute(0, 2, 3, 1).numpy()).all()
    assert (made.labels == given.labels[carried.numpy()]).all()
    assert (made.images != given.images).any() and made.images.shape == given.images.shape


@pytest.mark.parametrize("probability", [0.0, 0.3])
def test_only_a_share_of_the_images_is_augmented(tmp_path, probability):
    base = tiny.trainset(tmp_path / "base.h5", n=400)
    run(base, tmp_path / "out.h5", Mixup(probability=probability))
    given, made = shards.read(base), shards.read(tmp_path / "out.h5")
    kept = (made.images == given.images).all((1, 2, 3))
    assert (made.labels[kept] == given.labels[kept]).all()
    assert 1 - kept.mean() == pytest.approx(probability, abs=0.07)


def test_number_type_is_kept(tmp_path):
    grey = np.random.RandomState(0).randint(0, 256, (20, 1, 8, 8)).astype(np.uint8)
    options = json.dumps({"group": 1, "batch": 20, "storage": "uint8"})
    base = tiny.trainset(tmp_path / "base.h5", values=grey, options=options)
    run(base, tmp_path / "mixed.h5", MIXUP)
    run(base, tmp_path / "cut.h5", Cutout())
    with h5py.File(tmp_path / "mixed.h5") as mixed, h5py.File(tmp_path / "cut.h5") as cut:
        assert mixed["images"].dtype == cut["images"].dtype == np.uint8
        whole, values = np.moveaxis(grey, 1, 3), cut["images"][()]
        assert ((values == whole) | (values == 0)).all() and (values != whole).any()


def test_one_shard_is_refused(tmp_path):
    base = tiny.trainset(tmp_path / "base.h5", groups=2)
    with pytest.raises(InputError, match=r"base\.h5: holds groups 0\.\.0 of 2; give the merged file"):
        run(base, tmp_path / "out.h5", MIXUP)
    assert not (tmp_path / "out.h5").exists()
