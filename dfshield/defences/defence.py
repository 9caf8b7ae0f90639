"""What a defence at test time is: something that stands before a network, and what gradients go through."""

import hashlib
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from dfshield.core.rng import generator
from dfshield.options.defences import DefendOptions

Options = TypeVar("Options", bound=DefendOptions)


class Defence(Generic[Options]):
    """Base of all defences. A subclass writes `protect`, and `surrogate` where gradients cannot go through it."""

    def __init__(self, options: Options) -> None:
        self.options = options

    def protect(self, model: nn.Module) -> nn.Module:
        """The defended model: images (N,C,H,W) in [0,1] to logits (N,classes). It is what is judged."""
        raise NotImplementedError

    def surrogate(self, model: nn.Module) -> nn.Module:
        """What an attack that knows the defence crafts on, a substitute model with useful gradients.

        By default the defended model itself; a defence without gradients gives its approximation (BPDA).
        """
        return self.protect(model)


class Identity(Defence[DefendOptions]):
    """No defence: the model itself."""

    def protect(self, model: nn.Module) -> nn.Module:
        return model


class Transformation(Defence[Options]):
    """Base of defences that transform images before the network sees them. A subclass writes `transform`.

    Where `transform` draws, the defended model draws by the content of each image and the seed, so that a verdict can
    be repeated, and an attacker, who has other draws, cannot know them beforehand. The surrogate transforms in the
    forward pass, with new draws each time, and takes the derivative of the transformation for one (BPDA with the
    identity, Athalye et al. 2018) unless `differentiable`.
    """

    differentiable = False
    """Whether useful gradients go through `transform` itself."""
    draws = False
    """Whether `transform` draws."""

    def transform(self, x: Tensor, random: torch.Generator | None) -> Tensor:
        """Images (N,C,H,W) in [0,1] as the network shall see them; the draws are those of `random`, if there are any.

        `random` is a generator of the CPU; None where nothing is drawn.
        """
        raise NotImplementedError

    def protect(self, model: nn.Module) -> nn.Module:
        return Transformed(model, self)

    def surrogate(self, model: nn.Module) -> nn.Module:
        return Approximated(model, self)


class Transformed(nn.Module):
    """A network behind a transformation; images (N,C,H,W) in [0,1] to logits (N,classes).

    The logits are the mean over as many versions of an image as the options have `passes`.
    """

    def __init__(self, model: nn.Module, defence: Transformation[Any]) -> None:
        super().__init__()
        self.model, self.defence = model, defence

    def forward(self, x: Tensor) -> Tensor:
        copies = self.defence.options.passes
        total = self.model(self.seen(x, 0))
        for copy in range(1, copies):
            total = total + self.model(self.seen(x, copy))
        return total / copies

    def seen(self, x: Tensor, copy: int = 0) -> Tensor:
        """What the network sees of images, in their version number `copy`."""
        if not self.defence.draws:
            return self.defence.transform(x, None)
        return torch.cat(
            [self.defence.transform(image, drawn_for(image, self.defence.options, copy)) for image in x.split(1)]
        )


def drawn_for(image: Tensor, options: DefendOptions, *key: int) -> torch.Generator:
    """A generator of the CPU by the content of an image (1,C,H,W), the seed and a `key`."""
    content = hashlib.sha256(image.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest()
    return generator(options.defence, options.seed, *key, content)


def drawn_anew(options: DefendOptions) -> torch.Generator:
    """A generator of the CPU by the next number of the global generator, which an attack's seed governs."""
    return generator(options.defence, int(torch.randint(2**31, ())))


class Approximated(nn.Module):
    """The same, for gradients: new draws at each call, and the identity's derivative where there is none of use.

    The versions of all images go through the network as one batch, and a quick copy of it leaves the draws alone.
    """

    def __init__(self, model: nn.Module, defence: Transformation[Any]) -> None:
        super().__init__()
        self.model, self.seen, self.copies = model, Anew(defence), defence.options.passes

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(self.seen(x.repeat(self.copies, 1, 1, 1)))
        return logits.unflatten(0, (self.copies, -1)).mean(0)


class Anew(nn.Module):
    """A transformation with new draws at each call; images (N,C,H,W) in [0,1] to what the network sees of them."""

    def __init__(self, defence: Transformation[Any]) -> None:
        super().__init__()
        self.defence = defence
        self.opaque = defence.draws  # a trace would have one draw for all calls

    def forward(self, x: Tensor) -> Tensor:
        random = drawn_anew(self.defence.options) if self.defence.draws else None
        if self.defence.differentiable:
            return self.defence.transform(x, random)
        return straight_through(self.defence.transform(x.detach(), random), x)


def straight_through(found: Tensor, given: Tensor) -> Tensor:
    """`found`, made of `given`, with the identity's derivative (BPDA, Athalye et al. 2018); both of one shape.

    By operations, not by an autograd function of its own: a trace, which quick copies are made by, keeps them.
    """
    return found.detach() + (given - given.detach())
