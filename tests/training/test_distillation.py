"""Defensive distillation: where it is least, and its slope."""

import pytest
import torch

from dfshield.options.training import Distillation
from dfshield.training import losses
from dfshield.training.losses import Outputs

TEACHER = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]], dtype=torch.float64)
OTHER = torch.tensor([[0.5, 0.25, 0.25], [0.2, 0.5, 0.3]], dtype=torch.float64)


@pytest.mark.parametrize("t", [1.0, 20.0, 100.0])
def test_it_is_least_where_logits_are_the_teachers_times_the_temperature(t):
    """There its slope in the student's logits is zero; in units of the temperature it is p - q."""
    for found, expected in ((t * TEACHER.log(), torch.zeros_like(TEACHER)), (t * OTHER.log(), OTHER - TEACHER)):
        out = Outputs(found.requires_grad_(), found, TEACHER.log(), torch.tensor([0, 2]))
        (slope,) = torch.autograd.grad(losses.distillation(out, Distillation(temperature=t)), found)
        torch.testing.assert_close(slope, expected / 2, rtol=1e-6, atol=1e-9)
