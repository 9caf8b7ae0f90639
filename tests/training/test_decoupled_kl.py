"""Decoupled KL (Cui et al. 2024): its gradients, and those that the Improved KL adds."""

import pytest
import torch

from dfshield.training.losses import decoupled_kl, kl


def pair(classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of five images in double precision: a target and a student far from it."""
    random = torch.Generator().manual_seed(classes)
    drawn = 3 * torch.randn((2, 5, classes), generator=random, dtype=torch.float64)
    return drawn[0].requires_grad_(), drawn[1].requires_grad_()


@pytest.mark.parametrize("classes", [2, 3, 100])
def test_decoupled_kl_has_the_gradients_of_kl(classes):
    """Theorem 1: with weights of 1 KL and DKL move the target and the student alike."""
    given = pair(classes)
    found = torch.autograd.grad(decoupled_kl(*given, both=False), given)
    expected = torch.autograd.grad(kl(*given), given)
    for slope, of_kl in zip(found, expected, strict=True):
        torch.testing.assert_close(slope, of_kl, rtol=0, atol=1e-6)
        assert float(slope.abs().max()) > 1e-3


def test_each_weight_is_that_of_one_side():
    """In DKL the squares move the target alone, and the cross entropy the student alone."""
    given = pair(4)
    target, student = torch.autograd.grad(decoupled_kl(*given, 3.0, 0.5, both=False), given)
    of_kl = torch.autograd.grad(kl(*given), given)
    torch.testing.assert_close(target, 3 * of_kl[0])
    torch.testing.assert_close(student, 0.5 * of_kl[1])


def test_improved_kl_moves_both_sides():
    """Its squares pull the student to the target as hard as the target to the student; the value is that of DKL."""
    given = pair(4)
    target, student = torch.autograd.grad(decoupled_kl(*given), given)
    of_kl = torch.autograd.grad(kl(*given), given)
    torch.testing.assert_close(target, of_kl[0])
    torch.testing.assert_close(student, of_kl[1] - of_kl[0])
    assert torch.equal(decoupled_kl(*given), decoupled_kl(*given, both=False))


def test_the_squares_move_the_student_even_where_the_target_is_fixed():
    target, student = pair(4)
    target = target.detach()
    (slope,) = torch.autograd.grad(decoupled_kl(target, student, 1.0, 0.0), student)
    assert float(slope.abs().max()) > 0.1
    assert bool(decoupled_kl(target, student - 0.01 * slope, 1.0, 0.0) < decoupled_kl(target, student, 1.0, 0.0))
    (none,) = torch.autograd.grad(decoupled_kl(target, student, 1.0, 0.0, both=False), student)
    assert float(none.abs().max()) == 0
