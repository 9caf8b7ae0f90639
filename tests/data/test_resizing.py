"""Images at the size and in the colours that a model takes."""

import numpy as np
import pytest
import torch
from PIL import Image

from dfshield.data.resizing import LUMA, resize_to

RANDOM = np.random.RandomState(0)


@pytest.mark.parametrize(("size", "wanted"), [(32, 28), (32, 8), (8, 28)])
def test_resizing_is_pillows(size, wanted):
    x = torch.from_numpy(RANDOM.rand(2, 3, size, size).astype(np.float32))
    found = resize_to(x, (3, wanted, wanted))
    assert found.shape == (2, 3, wanted, wanted)
    for image, expected in zip(found.flatten(0, 1), x.flatten(0, 1), strict=True):
        by_pillow = Image.fromarray(expected.numpy()).resize((wanted, wanted), Image.Resampling.BILINEAR)
        assert np.allclose(image.numpy(), np.asarray(by_pillow), atol=1e-5)


def test_colours_as_the_model_takes_them():
    x = torch.eye(3).view(3, 3, 1, 1).expand(3, 3, 4, 4)  # red, green, blue
    assert torch.allclose(resize_to(x, (1, 4, 4))[:, 0, 0, 0], torch.tensor(LUMA))
    grey = torch.rand(2, 1, 4, 4)
    assert torch.equal(resize_to(grey, (3, 4, 4)), grey.repeat(1, 3, 1, 1))
    assert torch.equal(resize_to(grey, (1, 4, 4)), grey)
