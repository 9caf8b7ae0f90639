"""N-FGSM (de Jorge et al. 2022): a step from noise, where an option asks for it."""

import pytest
import torch
from pydantic import ValidationError

from dfshield.core.rng import generator
from dfshield.options import TrainOptions
from dfshield.training.inner import InnerAttack, NoisyStep, Task

W = torch.tensor([[1.0, -2.0, 0.5], [-1.5, 0.5, 2.0]])  # two pixels, three classes


def linear(x: torch.Tensor) -> torch.Tensor:
    """Logits of the mean pixels of two columns."""
    return x.mean((1, 2)) @ W


def attacks(**changes) -> list[InnerAttack]:
    options = TrainOptions.of(**({"search": "n-fgsm", "threat": "linf:0.05", "epochs": 1, "attack_steps": 9} | changes))
    return [InnerAttack.of(options, epoch) for epoch in range(options.epochs)]


def test_a_step_by_hand():
    """With RSLAD's objective the gradient at x + η is W (S(x + η) - T(x)); nothing is projected."""
    (attack,) = attacks(loss="rslad")
    assert (type(attack), attack.steps, attack.size) == (NoisyStep, 1, 0.05)
    x, teacher = torch.tensor([[0.4, 0.6], [0.7, 0.2]]), torch.tensor([[0.3, 0.1, 0.6], [0.2, 0.7, 0.1]])
    noise = 0.1 * (2 * torch.rand((2, 1, 1, 2), generator=generator(0)) - 1).view(2, 2)
    slope = (((x + noise) @ W).softmax(1) - teacher) @ W.T
    found = attack.solve(Task(linear, x.view(2, 1, 1, 2), torch.zeros(2), teacher.log(), generator(0)))
    torch.testing.assert_close(found.view(2, 2), x + noise + 0.05 * slope.sign())
    assert float((noise + 0.05 * slope.sign()).abs().max()) > 0.05


def test_one_gradient_beyond_epsilon_and_within_the_range_of_pixels():
    taken = []

    def model(x):
        assert bool(((x >= 0) & (x <= 1)).all())
        taken.append(torch.is_grad_enabled())
        return linear(x)

    (attack,) = attacks(loss="std")
    x = torch.rand((100, 3, 8, 2), generator=generator(1))
    found = attack.solve(Task(model, x, torch.arange(100) % 3, None, generator(0)))
    assert taken == [False, True]  # the clean logits, and those that are differentiated
    distance = (found - x)[(x > 0.15) & (x < 0.85)].abs()
    assert 0.147 < float(distance.max()) <= 0.15 + 1e-6
    assert float((distance > 0.05).float().mean()) == pytest.approx(0.5, abs=0.03)  # |η ± ε| > ε for half of the η
    assert float(found.min()) == 0 and float(found.max()) == 1 and not found.requires_grad


def test_without_an_objective_it_is_the_noise():
    (attack,) = attacks(loss="std", inner="none")
    x = torch.full((50, 1, 4, 2), 0.5)
    found = attack.solve(Task(linear, x, torch.zeros(50), None, generator(0)))
    assert 0.099 < float((found - x).abs().max()) <= 0.1 + 1e-6


def test_noise_and_step_grow_with_epsilon():
    first, last = attacks(epochs=2, eps_warmup=1, eps_factor=1.5, threat="linf:4/255")
    assert [255 * value for value in (first.threat.eps, first.size, last.size)] == pytest.approx([3, 3, 6])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "mma"}, "search n-fgsm: loss mma has a search of its own, nearest; use auto"),
        ({"loss": "mma", "search": "pgd"}, "search pgd: loss mma has a search of its own, nearest; use auto"),
        ({"loss": "gradient-penalty"}, "search n-fgsm: loss gradient-penalty has no inner maximisation to solve"),
        ({"threat": "l2:0.5"}, "search n-fgsm searches an linf ball, threat is l2:0.5; give linf:EPS"),
    ],
)
def test_it_is_for_losses_of_plain_ascent_in_the_linf_ball(changes, message):
    with pytest.raises(ValidationError, match=message):
        attacks(**changes)


def test_a_search_that_nobody_chose_leaves_no_trace():
    plain, chosen, dart = (TrainOptions.of(**v) for v in ({}, {"search": "n-fgsm"}, {"loss": "dart"}))
    assert "search" not in plain.described() and chosen.described()["search"] == "n-fgsm"
    assert (plain.searched, chosen.searched, dart.searched) == ("pgd", "n-fgsm", "fosc")


def test_held_out_images_are_attacked_by_plain_ascent():
    chosen, plain = (InnerAttack.full(TrainOptions.of(search=name)) for name in ("n-fgsm", "auto"))
    assert (type(chosen), chosen.steps, chosen.threat, chosen.size) == (InnerAttack, 10, ("linf", 8 / 255), 2 / 255)
    assert chosen == plain
