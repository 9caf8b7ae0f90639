"""Image quilting (Guo et al., ICLR 2018, Countering adversarial images using input transformations)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dfshield.defences.defence import Transformation, straight_through
from dfshield.defences.fitted import FittedDefence, Fitting
from dfshield.options.defences_fitted import Quilting

AT_ONCE = 4096
"""Windows whose distances from all patches are held at a time."""
SOFT, TEMPERATURE = 20, 0.003
"""Patches in a soft choice, and its temperature, in mean squared differences of pixels."""


class ImageQuilting(FittedDefence[Quilting], Transformation[Quilting]):
    """The image is laid out anew with patches of other images, each near to what it covers.

    Windows overlap by half of their side, rounded down. In place of each comes one of the `neighbours` patches of the
    bank that are nearest in l2, all of them equally likely. The bank is a random choice of all windows of the training
    set, each once.

    Gradients are those of a soft choice: the mean of the 20 nearest patches with the weights softmax(-d²/0.003), d² the
    mean squared difference. They break it with one neighbour, where those of the identity do not.

    Differs from the publication:

    - patches are averaged where they overlap; the publication cuts them along the seam of least error;
    - patches are smaller on images of less than 14 pixels, and the bank is some hundred times smaller;
    - the network is not trained on quilted images.
    """

    keeps = ("patches",)
    draws = True
    differentiable = True

    def fit(self, given: Fitting) -> dict[str, Tensor]:
        """The bank, ``patches`` (n,C,side,side) in [0,1], n at most as many as the option says."""
        n, _, *sides = given.images.shape
        size = min(self.options.patch, max(1, 3 * min(sides) // 8))
        of, top, left = (
            torch.randint(places, (self.options.patches, 1, 1), generator=given.random).to(given.images.device)
            for places in (n, *(side - size + 1 for side in sides))
        )
        index = torch.arange(size, device=given.images.device)
        patches = given.images.permute(0, 2, 3, 1)[of, top + index[:, None], left + index]
        return {"patches": patches.permute(0, 3, 1, 2).unique(dim=0)}

    def transform(self, x: Tensor, random: torch.Generator | None) -> Tensor:
        """Images (N,C,H,W) in [0,1] to quilts of the same shape and range; `random` is a generator of the CPU."""
        patches = self.tensors["patches"].to(x)
        size = patches.shape[-1]
        step = size - size // 2
        height, width = x.shape[2:]
        margins = (0, (size - width) % step, 0, (size - height) % step)  # so that windows cover all of it
        windows = F.unfold(F.pad(x, margins, mode="replicate"), size, stride=step).mT  # (N,windows,C·size²)
        neighbours = min(self.options.neighbours, len(patches))
        drawn = torch.randint(neighbours, (len(x), windows.shape[1]), generator=random).to(x.device)
        pairs = zip(windows.flatten(0, 1).split(AT_ONCE), drawn.flatten().split(AT_ONCE), strict=True)
        found = torch.cat([chosen(some, patches.flatten(1), number, neighbours) for some, number in pairs])
        whole = (height + margins[3], width + margins[1])
        total, covers = (
            F.fold(columns.mT, whole, size, stride=step)
            for columns in (found.view_as(windows), torch.ones_like(windows))
        )
        return (total / covers)[:, :, :height, :width]


def chosen(windows: Tensor, patches: Tensor, number: Tensor, neighbours: int) -> Tensor:
    """For each of the windows (M,D) that of the patches (K,D) with `number` (M,) among its nearest `neighbours`.

    The derivative is that of the soft choice.
    """
    distances = torch.cdist(windows.detach(), patches)
    near = distances.topk(min(max(neighbours, SOFT), len(patches)), largest=False).indices
    found = patches[near.gather(1, number[:, None])[:, 0]]
    if not windows.requires_grad:
        return found
    some = patches[near]
    weights = (-(windows[:, None] - some).square().mean(2) / TEMPERATURE).softmax(1)
    soft = (weights[:, :, None] * some).sum(1)
    return straight_through(found, soft)
