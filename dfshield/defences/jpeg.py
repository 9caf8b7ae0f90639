"""JPEG compression (Dziugaite et al. 2016; Guo et al., ICLR 2018)."""

import io
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dfshield.defences.defence import Transformation
from dfshield.options.defences_pixels import Jpeg


class JpegCompression(Transformation[Jpeg]):
    """Images are rounded to eight bits, encoded as JPEG and decoded, by Pillow.

    Three channels are taken for RGB, whose chroma Pillow halves in both directions (4:2:0). Of any other number of
    channels each is encoded by itself as a grey image.
    """

    def transform(self, x: Tensor, random: torch.Generator | None) -> Tensor:
        """Images (N,C,H,W) in [0,1] to images of the same shape and range, all values multiples of 1/255."""
        colour = x.shape[1] == 3
        levels = (x.detach() * 255).round().to(torch.uint8).cpu()
        pictures = (levels.permute(0, 2, 3, 1) if colour else levels.flatten(0, 1)).contiguous().numpy()
        decoded = np.empty_like(pictures)
        for place, picture in enumerate(pictures):
            decoded[place] = self._decoded(picture)
        found = torch.from_numpy(decoded)
        found = found.permute(0, 3, 1, 2).contiguous() if colour else found.view(levels.shape)
        return found.to(x) / 255

    def _decoded(self, picture: NDArray[Any]) -> NDArray[Any]:
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=self.options.quality)
        return np.asarray(Image.open(file))
