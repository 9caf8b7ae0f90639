"""MI-FGSM (Dong et al. 2018)."""

from torch import Tensor

from dfshield.attacks.base import Problem, ascend, frozen
from dfshield.options.attacks_gradients import MiFgsm


def mi_fgsm(problem: Problem, options: MiFgsm) -> Tensor:
    """Ascent of the cross entropy with momentum from the image itself (Dong et al. 2018, Algorithm 1).

    Differs from the publication:

    - an image takes no further step once it is clearly misclassified;
    - the gradient is divided by the mean of its magnitudes, not by their sum, which changes no step.
    """
    model, x, y, threat = problem[:4]
    sizes = [threat.eps / options.steps] * options.steps
    with frozen(model):
        return ascend(model, x, y, x, threat, options, sizes, momentum=options.momentum)
