"""Options of the defence by adversarial transformation."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from dfshield.options.common import DefenceName, Positive, Weight
from dfshield.options.defences import DefendOptions

Fraction = Annotated[float, Field(gt=0, le=1)]


class AdversarialTransformation(DefendOptions):
    """Move every image towards the class that another network finds least likely, before a network trained on such."""

    neutral: ClassVar[dict[str, Any]] = {"structure": "vgg", "external_epochs": 0, "fcn_epochs": 0, "draws": 20}
    for_crafting = ("backward", "smooth", "draws", "delta", "steps", "step")

    defence: DefenceName = "adversarial-transformation"
    """defence"""
    delta: Fraction = 0.2
    """largest change of a pixel (Δ)"""
    steps: Positive = 13
    """steps towards the least likely class"""
    step: Fraction = 0.033
    """length of a step; the publication does not state it"""
    structure: Literal["vgg", "shallow", "linear"] = "vgg"
    """layers of the other network: six convolutions and three linear layers (published), two and one, or one alone"""
    width: Annotated[float, Field(gt=0)] = 1.0
    """channels of the other network's layers, as a multiple of the published ones"""
    external: Literal["attacked", "plain", "untrained"] = "attacked"
    """training of the other network: on attacked images (published choice), on images as they are, or none"""
    epochs: Positive = 20
    """passes over the training set, for each of the two networks"""
    external_epochs: Annotated[int, Field(ge=0)] = 0
    """passes for the other network, where they are not `epochs`; 0: as many"""
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
    fcn_epochs: Annotated[int, Field(ge=0)] = 0
    """passes for a network that imitates the transformation, for the attack by reparameterisation; 0: without"""
    backward: Literal["identity", "softsign", "tanh", "unrolled", "reparameterised", "average", "transfer"] = "identity"
    """what an adaptive attack derives in place of the transformation (see docs/defences.md)"""
    smooth: Annotated[float, Field(gt=0)] = 1000.0
    """factor of the gradient inside a smooth sign"""
    draws: Positive = 20
    """transformed versions that `average` is the mean of"""

    @model_validator(mode="after")
    def _imitated(self) -> Self:
        if self.backward == "reparameterised" and not self.fcn_epochs:
            raise ValueError(
                "backward reparameterised needs a network that imitates the transformation; fcn_epochs is 0"
            )
        return self

    def fitting_passes(self, images: int) -> float:
        """Updates of the classifier."""
        return 3 * self.epochs * images

    def network_passes(self, images: int) -> float:
        """The other network: its updates, with the attacks on it, and its slopes in every step of a transformation.

        The network that imitates the transformation is small and left out.
        """
        training = {"attacked": 2 * self.attack_steps + 3, "plain": 3, "untrained": 0}[self.external]
        moved = self.epochs + self.fcn_epochs
        return images * ((self.external_epochs or self.epochs) * training + moved * 2 * self.steps)
