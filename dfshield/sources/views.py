"""Views of images at random, which sources and trainings share."""

import torch
import torch.nn.functional as F


def translate(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Shift each image (N,C,H,W) by up to one eighth of its size in both directions, filling with zeros."""
    n, _, height, width = images.shape
    reach_y, reach_x = height // 8, width // 8
    padded = F.pad(images, (reach_x, reach_x, reach_y, reach_y))
    offsets = [
        torch.randint(0, 2 * reach + 1, (n, 1, 1), generator=generator, device=generator.device).to(images.device)
        for reach in (reach_y, reach_x)
    ]
    rows = offsets[0] + torch.arange(height, device=images.device).view(1, -1, 1)
    columns = offsets[1] + torch.arange(width, device=images.device).view(1, 1, -1)
    image = torch.arange(n, device=images.device).view(-1, 1, 1)
    return padded.permute(0, 2, 3, 1)[image, rows, columns].permute(0, 3, 1, 2).contiguous()
