"""Files that the tests of the train stage start from."""

import pytest
from support import tiny

from dfshield.models.checkpoints import read_card


@pytest.fixture
def files(tmp_path):
    teacher = tiny.teacher(tmp_path / "teacher.safetensors")
    trainset = tiny.trainset(tmp_path / "data.h5", teacher_sha256=read_card(teacher).tensors_sha256)
    return teacher, trainset
