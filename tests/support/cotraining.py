"""Small co-training runs for tests of the baselines."""

import torch

from dfshield import registry
from dfshield.baselines.cotrain import Cotrainer
from dfshield.models.checkpoints import Card
from dfshield.options import CotrainOptions

from . import tiny

METHODS = tuple(registry.BASELINES)
SHAPE = (1, 8, 8)
QUICK = {
    "threat": "linf:0.1",
    "epochs": 3,
    "iterations": 2,
    "batch": 20,
    "generator_width": 0.05,
    "generator_epochs": 0,
    "attack_steps": 2,
    "kept_images": 50,
    "device": "cpu",
}


def quick(method: str, **changes: object) -> CotrainOptions:
    """Options of a short run."""
    return CotrainOptions.of(method=method, **(QUICK | changes))


def cotrainer(method: str, **changes: object) -> Cotrainer:
    """A short run against a small teacher."""
    card = Card("teacher", "digits", "cnn-s", SHAPE, 10, (0.3,), (0.38,), "teacher")
    return Cotrainer(tiny.classifier(scale=3.0), card, quick(method, **changes))


def shift_head(made: Cotrainer) -> None:
    """Make the student wrong everywhere: its last layer answers with the next class."""
    state = made.teacher.net[-1].state_dict()
    with torch.no_grad():
        made.student.net[-1].load_state_dict({name: value.roll(1, 0) for name, value in state.items()})
