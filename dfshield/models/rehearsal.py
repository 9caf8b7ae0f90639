"""What training and storing will do to a user's network, tried before any work: a student in small.

A copy gets other weights, as training gives it; its folded copy has to follow. What is stored of it are its tensors:
the network that the factory builds around them, elsewhere and from other first weights, has to compute the same.
"""

import copy

import torch
from torch import Tensor

from dfshield.core.errors import InputError
from dfshield.core.rng import generator, seeded
from dfshield.models.classifier import Classifier
from dfshield.models.folding import fold
from dfshield.models.standins import arranged, stands_for

OTHER_SEED = 1
"""Seed of the second network's first weights; any that the first one's is not."""
STEP = 0.05
"""How far the weights move: each by up to this part of itself."""
REMEDY = (
    "register all layers, and keep all that it needs in parameters and buffers: no layers in plain lists, no random "
    "numbers drawn by the factory, nothing that a pass computes and keeps"
)


def rehearse(classifier: Classifier, input_shape: tuple[int, int, int]) -> None:
    """Raise InputError for a network whose student could not be crafted on, or not be stored; `settle` comes before.

    The classifier, for images of shape (C,H,W), is as before afterwards.
    """
    device = classifier.mean.device
    x = torch.rand((4, *input_shape), generator=generator("rehearsal")).to(device)
    student = arranged(copy.deepcopy(classifier))
    crafting = fold(student)
    with seeded(0, device), torch.no_grad():
        student.train()
        student(x)
        for parameter in student.parameters():
            parameter.mul_(1 + STEP * (2 * torch.rand_like(parameter) - 1))
        student.eval()
        crafting.refresh()
        crafting(x)
    check_second(student, x)


def check_second(student: Classifier, x: Tensor, where: str = "") -> None:
    """Raise InputError unless a second network of the same tensors answers as `student` does to images `x` (N,C,H,W).

    Both are in eval mode. `student.build` makes the second. The error begins with `where`.
    """
    net = student.second(seed=OTHER_SEED)
    mean, std = (values.flatten().tolist() for values in (student.mean, student.std))
    second = Classifier(net, mean, std).to(x.device).eval()
    second.layout = student.layout
    if not stands_for(second, student, x):
        raise InputError(f"{where}a second network with the same weights computes something else; {REMEDY}")
