"""DAD (Nayak et al., DAD: Data-free Adversarial Defense at Test Time, WACV 2022)."""

import torch
from torch import Tensor, nn

from dfshield.core.ssim import ssim
from dfshield.defences.defence import straight_through
from dfshield.defences.detectors import outputs, pairs, perceptron, trained
from dfshield.defences.fitted import FittedDefence, Fitting, device_of
from dfshield.options.defences_detection import RADII, Dad

SIDE = 32
"""Pixels of the side that `RADII` are for."""
SMALLEST = 4
"""The smallest radius that is chosen."""


def low_pass(x: Tensor, radii: tuple[int, ...]) -> Tensor:
    """Versions (R,N,C,H,W) of images (N,C,H,W) in which only frequencies nearer to zero than each radius remain.

    A radius counts in pixels of a centred spectrum of 32 x 32. Images of other sizes lose the same frequencies per
    side of the image: a radius of 16 is the highest frequency along an axis for all of them.
    """
    rows, columns = (torch.fft.fftfreq(length, device=x.device) * SIDE for length in x.shape[2:])
    distance = (rows[:, None] ** 2 + columns[None] ** 2).sqrt()
    kept = torch.stack([distance < radius for radius in radii])
    spectrum = torch.fft.fft2(x.float()) * kept[:, None, None]
    return torch.fft.ifft2(spectrum).real.to(x.dtype)


def chosen(similarity: Tensor, contamination: Tensor, radii: tuple[int, ...] = RADII) -> Tensor:
    """Which radius is taken for each image: places (N,) in `radii`, by what is known at each of them (R,N).

    The largest radius before the similarity to the image first falls to the contamination or below; the largest of all
    where it never does, and `SMALLEST` at least.
    """
    stop = (similarity <= contamination).int()
    first = torch.where(stop.any(0), stop.argmax(0), len(radii))
    return (first - 1).clamp_min(radii.index(SMALLEST))


class Corrected(nn.Module):
    """A network behind detector and correction; images (N,C,H,W) in [0,1] to logits (N,classes).

    An image that the detector flags has the logits of its low-pass version. The radius weighs how similar that version
    is to the image (SSIM) against the probability that the network still gives the class of the flagged image there.
    """

    def __init__(self, model: nn.Module, detector: nn.Module) -> None:
        super().__init__()
        self.model, self.detector = model, detector

    def forward(self, x: Tensor) -> Tensor:
        own, corrected, attacked = self.parts(x)
        return torch.where(attacked[:, None] > 0.5, corrected, own)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (N,classes) of images and of their corrected versions, and the probability of an attack (N,)."""
        own = self.model(x)
        attacked = self.detector(own.float()).softmax(dim=1)[:, 1]
        versions = low_pass(x, RADII)
        logits = torch.stack([self.model(version) for version in versions])
        with torch.no_grad():
            similarity = torch.stack([ssim(x, version) for version in versions])
            label = own.argmax(dim=1).expand(len(RADII), -1)[..., None]
            contamination = logits.softmax(dim=2).gather(2, label)[..., 0]
            place = chosen(similarity, contamination)
        corrected = logits.gather(0, place[None, :, None].expand_as(logits[:1]))[0]
        return own, corrected, attacked


class SoftCorrected(Corrected):
    """The same logits, with the gradients of a blend of both by the probability of an attack.

    So an attack learns how to leave the detector unmoved, and how to fool the network behind the low-pass filter. The
    radius counts as given in the backward pass; the filter itself is linear.
    """

    def forward(self, x: Tensor) -> Tensor:
        own, corrected, attacked = self.parts(x)
        soft = torch.lerp(own, corrected, attacked[:, None].to(own))
        hard = torch.where(attacked[:, None] > 0.5, corrected, own)
        return straight_through(hard, soft)


class DataFreeDefence(FittedDefence[Dad]):
    """A detector on logits, and low-pass filtering of the images that it flags (Nayak et al. 2022, sections 4.1, 4.2).

    The detector learns from clean images and PGD's of a training set. Adaptive attacks go through detector and
    correction.
    Differs from the publication: the detector is fitted for this network on a synthetic training set; the published one
    came from CIFAR-10, or another set, and adapted itself to the unlabelled images of each test set with their attacked
    versions, which would let the evaluation set in. Contamination is the network's probability of the flagged class;
    the published one is the share of ten passes with dropout that answer it, which networks without dropout lack.
    """

    keeps = ("detector.",)

    def fit(self, given: Fitting) -> dict[str, Tensor]:
        """Tensors of the detector; raises InputError where there are too few images or attacks on them fail."""
        options = self.options
        both = pairs(given.model, given.images, given.threat, options.steps, given.random)
        clean, attacked = (outputs(given.model, images) for images in both)
        detector = trained(clean, attacked, options.epochs, options.batch, options.lr, given.random)
        return {f"detector.{name}": value.clone() for name, value in detector.state_dict().items()}

    def protect(self, model: nn.Module) -> nn.Module:
        return Corrected(model, self._detector(model))

    def surrogate(self, model: nn.Module) -> nn.Module:
        return SoftCorrected(model, self._detector(model))

    def _detector(self, model: nn.Module) -> nn.Module:
        kept = self.state("detector.")
        detector = perceptron(kept["0.weight"].shape[1])
        detector.load_state_dict(kept)
        return detector.eval().requires_grad_(False).to(device_of(model))
