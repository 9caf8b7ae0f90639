"""What a defence at test time is: something that stands before a network, and what gradients go through."""

from typing import Generic, TypeVar

from torch import nn

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
