"""Purification by a diffusion model: how the model is fitted, and what stands before the classifier."""

import math
from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from dfshield.core.errors import InputError
from dfshield.core.progress import progress
from dfshield.core.rng import seeded
from dfshield.defences.defence import drawn_anew, drawn_for, straight_through
from dfshield.defences.diffusion import Draw, Process
from dfshield.defences.fitted import FittedDefence, Fitting, device_of
from dfshield.models.ema import WeightEMA
from dfshield.models.size import forward_flops
from dfshield.models.unet import UNet
from dfshield.options.defences_diffusion import Purification

DENOISER = "denoiser."
"""Prefix of the kept tensors of the U-Net."""

Options = TypeVar("Options", bound=Purification)


class Purified(nn.Module, Generic[Options]):
    """A classifier behind a purifier; images (N,C,H,W) in [0,1] to logits (N,classes). A subclass writes `purify`.

    With `crafting` it is what gradients go through: new draws at each call, and ``gradient: bpda`` takes the identity
    for the derivative. Without, draws are by the content of each image and the seed.
    """

    def __init__(self, model: nn.Module, denoiser: UNet, options: Options, crafting: bool) -> None:
        super().__init__()
        self.model, self.denoiser, self.options, self.crafting = model, denoiser, options, crafting
        self.process = Process(options.timesteps)

    def purify(self, x: Tensor, draw: Draw) -> Tensor:
        """Images (N,C,H,W) in [-1,1] to clean ones, which may leave [-1,1] a little; `draw` gives noise."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(self.seen(x))
        return logits

    def seen(self, x: Tensor) -> Tensor:
        """What the classifier sees of images (N,C,H,W) in [0,1], of the same form and range."""
        draw = self._new_draws() if self.crafting else _repeatable(x, self.options)
        if self.crafting and self.options.gradient == "bpda":
            return straight_through(self._pixels(x.detach(), draw), x)
        return self._pixels(x, draw)

    def _pixels(self, x: Tensor, draw: Draw) -> Tensor:
        return to_pixels(self.purify(2 * x - 1, draw))

    def _new_draws(self) -> Draw:
        random = drawn_anew(self.options)
        return lambda like: torch.randn(like.shape, generator=random).to(like)


def to_pixels(x: Tensor) -> Tensor:
    """Images in [-1,1] (N,C,H,W) to [0,1], values beyond clamped; the derivative is 1/2 everywhere.

    The derivative of a clamp is zero outside of the range, where black pixels end by half: gradients that vanish would
    make a defence look stronger than it is.
    """
    pixels = (x + 1) / 2
    return straight_through(pixels.clamp(0, 1), pixels)


def _repeatable(x: Tensor, options: Purification) -> Draw:
    """Draws of each image by itself, by its content and the seed."""
    random = [drawn_for(image, options) for image in x.split(1)]

    def draw(like: Tensor) -> Tensor:
        drawn = [torch.randn(like.shape[1:], generator=source) for source in random]
        return torch.stack(drawn).to(like) if drawn else torch.zeros_like(like)

    return draw


class Purifier(FittedDefence[Options]):
    """Base of defences by a diffusion model that `fit` trains on the images of the training set."""

    keeps = (DENOISER,)
    purified: type[Purified[Options]]
    """What stands before the classifier."""

    def fit(self, given: Fitting) -> dict[str, Tensor]:
        """Train a U-Net from nothing; gives the moving average of its weights, on the CPU."""
        return {DENOISER + name: value for name, value in trained(given, self.options).items()}

    def protect(self, model: nn.Module) -> nn.Module:
        return self.purified(model, self._denoiser(model), self.options, crafting=False)

    def surrogate(self, model: nn.Module) -> nn.Module:
        return self.purified(model, self._denoiser(model), self.options, crafting=True)

    def _denoiser(self, model: nn.Module) -> UNet:
        """The fitted U-Net, frozen, in the place of the classifier."""
        state = self.state(DENOISER)
        if "first.weight" not in state:
            raise InputError(f"{self.options.defence}: no fitted denoiser was given; run `dfshield defend` first")
        denoiser = UNet(state["first.weight"].shape[1], self.options.width)
        try:
            denoiser.load_state_dict(state)
        except RuntimeError:
            width = state["first.weight"].shape[0]
            raise InputError(
                f"{self.options.defence}: the fitted denoiser has width {width}, the options have "
                f"{self.options.width}; fit it again with `dfshield defend`"
            ) from None
        return denoiser.to(device_of(model)).eval().requires_grad_(False)


def denoiser_flops(options: Purification, input_shape: tuple[int, int, int]) -> float:
    """Operations of the U-Net's forward pass of one image (C,H,W)."""
    return forward_flops(lambda: UNet(input_shape[0], options.width), (1, *input_shape), (1,))


def trained(given: Fitting, options: Purification) -> dict[str, Tensor]:
    """State of a U-Net that minimises E‖e - e_θ(x_t, t)‖² (Ho et al., Eq 14) on images in [-1,1]; t is uniform.

    Every step draws `batch` images with replacement. Raises InputError without images and for a loss that is not
    finite.
    """
    label = f"{options.defence}: denoiser"
    if not len(given.images):
        raise InputError(f"{options.defence}: the training set has no images; give one that has")
    device = device_of(given.model)
    process = Process(options.timesteps)
    with seeded(int(torch.randint(2**31, (), generator=given.random))):
        denoiser = UNet(given.images.shape[1], options.width).to(device)
    adam = torch.optim.Adam(denoiser.parameters(), lr=options.lr)
    average = WeightEMA(denoiser, options.ema)
    images = 2 * given.images.to(device) - 1
    with progress(options.steps, label, "step") as bar, torch.enable_grad():
        for step in range(options.steps):
            chosen = torch.randint(len(images), (options.batch,), generator=given.random).to(device)
            loss = denoising_loss(denoiser, images[chosen], process, options.trained_time, given.random)
            adam.zero_grad()
            loss.backward()
            adam.step()
            average.update(denoiser, step)
            if step % 100 == 0 or step + 1 == options.steps:
                if not math.isfinite(value := float(loss.detach())):
                    raise InputError(f"{label}: the loss is {value} in step {step + 1}; lower lr ({options.lr})")
                bar.set_postfix({"loss": f"{value:.4f}"}, refresh=False)
            bar.update()
    return {name: value.cpu() for name, value in average.state.items()}


def denoising_loss(
    denoise: Callable[[Tensor, Tensor], Tensor], x: Tensor, process: Process, share: float, random: torch.Generator
) -> Tensor:
    """Mean squared error of the predicted noise, per pixel, on images (N,C,H,W) in [-1,1].

    Levels are uniform among those up to `share` of the process, from 1 on; levels and noise are drawn from `random`.
    """
    levels = torch.randint(1, round(share * process.timesteps) + 1, (len(x),), generator=random)
    noise = torch.randn(x.shape, generator=random).to(x)
    found = denoise(process.noised(x, levels, noise), process.time(levels.to(x)))
    return (found - noise).square().mean()
