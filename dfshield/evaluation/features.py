"""Spaces in which images are compared: their pixels, what the teacher makes of them, what VGG16 makes of them."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfshield.core.errors import InputError
from dfshield.core.files import KINDS, existing_file
from dfshield.models.penultimate import Penultimate
from dfshield.models.weights import load_weights
from dfshield.options.common import Features

BATCH = 250
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def extractor(space: Features, teacher: nn.Module, vgg16: Path | None) -> Callable[[Tensor], Tensor]:
    """The function from images (N,C,H,W) in [0,1] to features (N,D) of a space, both on the CPU.

    ``pixels`` are the images themselves; ``teacher`` is the input of the teacher's last linear layer; ``vgg16`` is
    that of a VGG16 with torchvision's weights in the file `vgg16` (its layer fc2, 4096 values, as Naeem et al. have
    it), for images scaled to 224x224. Raises InputError for a teacher without linear layer and for wrong weights.
    """
    if space == "pixels":
        return lambda images: images.flatten(1)
    if space == "teacher":
        return lambda images: _penultimate(teacher, images)
    assert vgg16 is not None, "the options demand a file"
    network = _vgg16(vgg16).to(next(teacher.buffers()).device)
    return lambda images: _penultimate(network, images)


def _penultimate(network: nn.Module, images: Tensor) -> Tensor:
    device = next(network.buffers()).device
    watched = Penultimate(network)
    found = []
    try:
        with torch.no_grad():
            for batch in images.split(BATCH):
                network(batch.to(device))
                found.append(watched.features.float().cpu())
    finally:
        watched.remove()
    return torch.cat(found)


class _Scaled(nn.Module):
    """A network for ImageNet images behind what brings any image to its input."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        colour = x.expand(-1, 3, -1, -1)
        large = F.interpolate(colour, (224, 224), mode="bilinear", align_corners=False)
        logits: Tensor = self.network((large - self.mean) / self.std)
        return logits


def _vgg16(weights: Path) -> nn.Module:
    existing_file(weights, "weights file", f"give the path of {KINDS}")
    try:
        from torchvision.models import vgg16
    except (ImportError, RuntimeError) as error:
        raise InputError(
            f"features vgg16: torchvision does not import ({' '.join(str(error).split())[:100]}); install the "
            "torchvision that belongs to your PyTorch, or use other features"
        ) from None

    with torch.device("meta"):  # 138 million parameters that are replaced at once
        network = vgg16()
    load_weights(network, weights, assign=True)
    return _Scaled(network).eval()
