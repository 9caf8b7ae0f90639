"""Options of the defence by adversarial transformation."""

from typing import Annotated, Literal

from pydantic import Field

from dfshield.options.common import DefenceName, Positive, Weight
from dfshield.options.defences import DefendOptions


class AdversarialTransformation(DefendOptions):
    """Move every image towards the class that another network finds least likely, before a network trained on such."""

    defence: DefenceName = "adversarial-transformation"
    """defence"""
    delta: Annotated[float, Field(gt=0, le=1)] = 0.2
    """largest change of a pixel (Δ)"""
    steps: Positive = 13
    """steps towards the least likely class"""
    step: Annotated[float, Field(gt=0, le=1)] = 0.033
    """length of a step; the publication does not state it"""
    width: Annotated[float, Field(gt=0)] = 1.0
    """channels of the other network's layers, as a multiple of the published ones"""
    external: Literal["attacked", "plain", "untrained"] = "attacked"
    """training of the other network: on attacked images (published choice), on images as they are, or none"""
    epochs: Positive = 20
    """passes over the training set, for each of the two networks"""
    batch: Annotated[int, Field(ge=2)] = 50
    """images per mini-batch"""
    lr: Annotated[float, Field(gt=0)] = 0.1
    """SGD learning rate of the other network"""
    tuning_lr: Annotated[float, Field(gt=0)] = 0.01
    """SGD learning rate of the classifier, which is tuned on transformed images"""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """SGD momentum of both"""
    weight_decay: Weight = 5e-4
    """SGD weight decay of both"""
    attack_steps: Positive = 5
    """steps of the attack that the other network is trained on; the publication does not state them"""
    backward: Literal["identity", "softsign", "tanh", "transfer"] = "identity"
    """what an adaptive attack derives: the identity (BPDA-I), steps with a smooth sign, or the classifier alone"""
    smooth: Annotated[float, Field(gt=0)] = 1000.0
    """factor of the gradient inside a smooth sign"""

    def fitting_passes(self, images: int) -> float:
        """Updates of the classifier."""
        return 3 * self.epochs * images

    def network_passes(self, images: int) -> float:
        """The other network: its updates, with the attacks on it, and its slopes in every step of a transformation."""
        training = {"attacked": 2 * self.attack_steps + 3, "plain": 3, "untrained": 0}[self.external]
        return self.epochs * images * (training + 2 * self.steps)
