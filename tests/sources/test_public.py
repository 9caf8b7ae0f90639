"""Training sets of another data set's images, with the teacher's labels."""

from pathlib import Path

import pytest
import torch
from support import tiny

from dfshield.core.errors import InputError
from dfshield.data import sets
from dfshield.data.resizing import resize_to
from dfshield.models.checkpoints import load_checkpoint
from dfshield.options import PublicOptions
from dfshield.sources import public
from dfshield.sources.trainset import read


def test_public_images_with_the_teachers_labels(tmp_path):
    teacher = tiny.teacher(tmp_path / "t.safetensors")
    options = PublicOptions(dataset="photographs", images=40, device="cpu", seed=2)
    content = public.run(teacher, tmp_path / "data.h5", options, None, "other")
    made = read(tmp_path / "data.h5")
    model, card = load_checkpoint(teacher)
    images = torch.from_numpy(made.images).permute(0, 3, 1, 2)
    assert images.shape == (40, 1, 8, 8)
    assert torch.equal(model(images).argmax(1), torch.from_numpy(made.labels))
    whole = resize_to(sets.load("photographs", "train", Path("nowhere")).x, (1, 8, 8)).flatten(1)
    apart = torch.cdist(images.flatten(1), whole, compute_mode="donot_use_mm_for_euclid_dist")
    assert (apart.amin(1) < 1e-5).all()
    assert len(images.flatten(1).unique(dim=0)) > 30
    found = {key: made.attributes[key] for key in ("real_data", "source", "teacher_sha256", "content_sha256")}
    expected = {"real_data": "public", "source": "other", "teacher_sha256": card.tensors_sha256}
    assert found == expected | {"content_sha256": content}
    assert public.run(teacher, tmp_path / "again.h5", options, None, "other") == content
    other = options.model_copy(update={"seed": 3})
    assert public.run(teacher, tmp_path / "third.h5", other, None, "other") != content


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "digits"}, "was trained on digits, which is not another data set; name one, or use source real"),
        ({"images": 5001}, "photographs: has 5000 training images, not 5001; ask for fewer"),
        ({"dataset": "cifar10"}, "cifar10 train: neither"),
    ],
)
def test_public_images_that_cannot_be(tmp_path, changes, message):
    teacher = tiny.teacher(tmp_path / "t.safetensors")
    options = PublicOptions(**({"dataset": "photographs", "device": "cpu"} | changes))
    with pytest.raises(InputError, match=message):
        public.run(teacher, tmp_path / "data.h5", options, tmp_path)
    assert not (tmp_path / "data.h5").exists()
