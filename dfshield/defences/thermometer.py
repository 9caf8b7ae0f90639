"""Thermometer encoding (Buckman et al., ICLR 2018)."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfshield.core.epochs import EpochLoop
from dfshield.core.errors import Diverged
from dfshield.core.rng import generator
from dfshield.defences.defence import Transformation
from dfshield.defences.fitted import FittedDefence, Fitting
from dfshield.models.classifier import predict
from dfshield.options.defences_fitted import Thermometer


def code(x: Tensor, levels: int) -> Tensor:
    """τ(x)_k = 1[x > k / levels] for k = 1 … levels - 1, one channel after the other.

    Images (N,C,H,W) to ones and zeros (N,C·(levels - 1),H,W). The entry k = levels, which no pixel in [0,1] sets, is
    left out.
    """
    bounds = torch.arange(1, levels, device=x.device, dtype=x.dtype).view(1, 1, -1, 1, 1) / levels
    return (x[:, :, None] > bounds).flatten(1, 2).to(x.dtype)


def read_out(channels: int, levels: int) -> Tensor:
    """Weight (C,C·(levels - 1),1,1) of a convolution that gives each channel the mean of its code.

    That is the image quantised to `levels` values from 0 to 1.
    """
    return torch.eye(channels).repeat_interleave(levels - 1, dim=1)[:, :, None, None] / (levels - 1)


class ThermometerEncoding(FittedDefence[Thermometer], Transformation[Thermometer]):
    """The network sees the thermometer code of the image (see `code`) through a fitted convolution of one pixel.

    The convolution starts as the mean of the code, so that the network computes what it does on the quantised image,
    and is fitted on the training set to the teacher's answers. The surrogate takes the derivative of both together for
    one (BPDA with the identity).

    Differs from the publication: the code is led back to as many channels as an image has, and the network behind it
    stays as it is, whatever its first layer; the publication's first layer takes the code itself, and the network is
    trained on codes from the start, on adversarial ones, too.
    """

    keeps = ("weight", "bias")

    def fit(self, given: Fitting) -> dict[str, Tensor]:
        """The convolution's ``weight`` (C,C·(levels - 1),1,1) and ``bias`` (C,)."""
        made = ReadOut(given, self.options)
        made.fit()
        return {"weight": made.weight.detach(), "bias": made.bias.detach()}

    def transform(self, x: Tensor, random: torch.Generator | None) -> Tensor:
        """Images (N,C,H,W) in [0,1] to the fitted reading of their code, (N,C,H,W), which may leave [0,1]."""
        weight, bias = (self.tensors[name].to(x) for name in self.keeps)
        return F.conv2d(code(x, self.options.levels), weight, bias)


class ReadOut(EpochLoop):
    """Fits the convolution behind the code by SGD on the cross entropy with the teacher's probabilities."""

    def __init__(self, given: Fitting, options: Thermometer) -> None:
        self.given, self.options = given, options
        seed = int(torch.randint(2**31, (), generator=given.random))
        batches = math.ceil(len(given.images) / options.batch)
        super().__init__("fit thermometer", options.epochs, batches, given.images.device, "batch", seed)
        self.answers = predict(given.teacher, given.images).softmax(1)
        channels = given.images.shape[1]
        self.weight = nn.Parameter(read_out(channels, options.levels).to(given.images))
        self.bias = nn.Parameter(torch.zeros(channels).to(given.images))
        self.optimiser = torch.optim.SGD([self.weight, self.bias], lr=options.lr, momentum=0.9)

    def epoch(self, epoch: int, bar: Any = None) -> dict[str, Any]:
        """One pass over the training set."""
        total = 0.0
        order = torch.randperm(len(self.given.images), generator=generator("thermometer", self.seed, epoch))
        for rows in order.to(self.device).split(self.options.batch):
            seen = F.conv2d(code(self.given.images[rows], self.options.levels), self.weight, self.bias)
            loss = F.cross_entropy(self.given.model(seen), self.answers[rows])
            self.optimiser.zero_grad()
            loss.backward(inputs=[self.weight, self.bias])
            self.optimiser.step()
            total += float(loss.detach()) * len(rows)
            if bar is not None:
                bar.update()
        if not bool(self.weight.isfinite().all() and self.bias.isfinite().all()):
            raise Diverged(f"a weight is not finite after epoch {epoch + 1}")
        return {"epoch": epoch + 1, "loss": total / len(self.given.images)}

    def describe(self, row: dict[str, Any]) -> str:
        """The loss of an epoch."""
        return f"epoch {row['epoch']}: loss {row['loss']:.4f}"

    def state(self) -> dict[str, Any]:
        """The convolution and its optimiser."""
        return {
            "weight": self.weight.detach(),
            "bias": self.bias.detach(),
            "optimiser": self.optimiser.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        with torch.no_grad():
            self.weight.copy_(state["weight"])
            self.bias.copy_(state["bias"])
        self.optimiser.load_state_dict(state["optimiser"])
