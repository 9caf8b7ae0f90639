"""The mixture of teacher and student: its formula, its fit, and attacks through its surrogate."""

import math

import pytest
import torch
import torch.nn.functional as F
from support import tiny
from support.attacked import key, network
from torch import Tensor, nn

from dfshield.attacks.base import Problem, frozen
from dfshield.attacks.pgd import pgd
from dfshield.core.errors import InputError
from dfshield.core.threat import parse_threat
from dfshield.defences.fitted import Fitting
from dfshield.defences.mixture import Mixed, Mixture, Softened, choose, sharpened
from dfshield.models.folding import fold
from dfshield.options import DefendOptions
from dfshield.options.attacks import Pgd

THREAT = "linf:0.05"
CLASSES = 10


def options(**changed):
    return DefendOptions.of(defence="mixture", **changed)


# --- a problem whose answers are known -------------------------------------------------------------------------------


def problem(n: int = 400) -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    """A robust student that misses every sixth image, a teacher that gets all and falls to any attack; images, labels.

    The student's pixels tell the class by 0.4, or not at all; the teacher's by 0.06, less than twice ε.
    """
    robust, accurate = network_of(0), network_of(1)
    random = key(3)
    y = torch.arange(n) % CLASSES
    x = 0.4 + 0.01 * torch.randn((n, 64), generator=random)
    unclear = torch.rand(n, generator=random) < 1 / 6
    rows = torch.arange(n)
    for j in range(3):
        x[rows, 3 * y + j] += torch.where(unclear, 0.03 * torch.randn(n, generator=random), torch.tensor(0.4))
        x[rows, 32 + 3 * y + j] += 0.06
    return robust, accurate, x.view(n, 1, 8, 8), y


def network_of(kind: int) -> nn.Module:
    net = Simple()
    with torch.no_grad():
        net.layer.weight.zero_()
        for label in range(CLASSES):
            net.layer.weight[label, 32 * kind + 3 * label : 32 * kind + 3 * label + 3] = (3.0, 20.0)[kind]
    return net.eval()


class Simple(nn.Module):
    """A linear network; student and teacher are of this one architecture."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, CLASSES, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1))


def fitted(**changed) -> tuple[dict[str, Tensor], nn.Module, nn.Module, Tensor, Tensor]:
    robust, accurate, x, y = problem()
    with frozen(robust), frozen(accurate):
        given = Fitting(robust, accurate, x, y, CLASSES, THREAT, key(4))
        return Mixture(options(**changed)).fit(given), robust, accurate, x, y


def right(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


def attacked(model: nn.Module, x: Tensor, y: Tensor, steps: int = 20) -> Tensor:
    return pgd(Problem(fold(model), x, y, parse_threat(THREAT), key(7)), Pgd(steps=steps, reference=True))


# --- the formula -----------------------------------------------------------------------------------------------------


def test_logits_are_sharpened_by_the_published_formula():
    logits = torch.randn((5, 7), generator=key(), dtype=torch.float64)
    normal = (logits - logits.mean(1, keepdim=True)) / (logits.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    phi = 0.5 * (1 + torch.erf((normal - 1.1) / math.sqrt(2)))
    expected = 5 * ((normal - 1.1) * phi).abs() ** 4
    torch.testing.assert_close(sharpened(logits, 5, -1.1, 4), expected)
    torch.testing.assert_close(sharpened(logits, 5, -1.1, 4), 5 * F.gelu(F.layer_norm(logits, (7,)) - 1.1).abs() ** 4)
    torch.testing.assert_close(sharpened(100 * logits + 3, 5, -1.1, 4), sharpened(100 * logits, 5, -1.1, 4))


def test_the_mixture_is_of_probabilities():
    robust, accurate = (torch.randn((6, CLASSES), generator=key(i), dtype=torch.float64) for i in (1, 2))
    mixed = Mixed(nn.Identity(), nn.Identity(), 2.0, -0.8, 3.0, 0.9).mixed(robust, accurate)
    expected = 0.1 * accurate.softmax(1) + 0.9 * sharpened(robust, 2.0, -0.8, 3.0).softmax(1)
    torch.testing.assert_close(mixed, expected.log())


@pytest.mark.parametrize(("weight", "which"), [(0.0, 1), (1.0, 0)])
def test_at_its_ends_it_is_one_of_the_two(weight, which):
    robust, accurate, x, y = problem(60)
    x = attacked(accurate, x, y)
    answers = Mixed(robust, accurate, 5.0, 0.0, 1.0, weight)(x).argmax(1)
    assert torch.equal(answers, (robust, accurate)[which](x).argmax(1))
    assert not torch.equal(answers, (accurate, robust)[which](x).argmax(1))


def test_what_is_kept_gives_the_mixture_back():
    tensors, robust, accurate, x, _ = fitted()
    made = Mixture(options(), tensors)
    numbers = [float(tensors[name]) for name in ("scale", "shift", "power", "weight")]
    torch.testing.assert_close(made.protect(robust)(x), Mixed(robust, accurate, *numbers)(x), rtol=0, atol=0)
    assert isinstance(made.surrogate(robust), Softened)


# --- the fit ---------------------------------------------------------------------------------------------------------


def test_clean_accuracy_rises_to_the_teachers_and_robust_accuracy_stays():
    tensors, robust, accurate, x, y = fitted()
    model = Mixture(options(), tensors).protect(robust)
    assert 0.75 < right(robust, x, y) < 0.9 and right(accurate, x, y) == 1
    assert right(model, x, y) > 0.98
    falls = right(accurate, attacked(accurate, x, y), y)
    stays = right(robust, attacked(robust, x, y), y)
    assert falls < 0.02 and stays > 0.75
    mixed = Mixture(options(), tensors).surrogate(robust)
    assert right(model, attacked(mixed, x, y), y) >= 0.97 * stays


@pytest.mark.parametrize("keep", [0.5, 0.9, 0.985, 1.0])
def test_alpha_is_the_smallest_that_keeps_the_share_whatever_the_teacher_says(keep):
    random = key(5)
    y = torch.arange(300) % CLASSES
    clean = 3 * F.one_hot(y, CLASSES) + torch.randn((300, CLASSES), generator=random)
    found = 2 * F.one_hot(y, CLASSES) + torch.randn((300, CLASSES), generator=random)
    accurate = 9.0 * F.one_hot(y, CLASSES)
    made = choose(clean.double(), accurate.double(), found.double(), y, options(keep=keep))
    stays = int((found.argmax(1) == y).sum())
    needed = math.ceil(keep * stays)

    def kept(weight: float) -> int:
        """Images that stay right although the teacher is sure of the class that the student thinks next likely."""
        own = sharpened(found.double(), made.scale, made.shift, made.power).softmax(1)
        rest = own.scatter(1, y[:, None], -1)
        lies = F.one_hot(rest.argmax(1), CLASSES)
        return int((((1 - weight) * lies + weight * own).argmax(1) == y).sum())

    assert 100 < stays < 300 and kept(made.weight) == needed == round(made.kept * 300)
    assert kept(0.999 * made.weight) < needed or (keep < 1 and kept(0.97 * made.weight) < needed)


def test_of_equal_clean_accuracy_the_fewest_wrong_answers_outvote_the_teacher():
    """With one more shift to choose from, the criterion is no worse."""
    tensors, robust, _, x, y = fitted(shifts=(0.0,), powers=(1.0,), scales=(0.1,))
    better, *_ = fitted()
    plain, chosen = (Mixture(options(), kept).protect(robust) for kept in (tensors, better))
    assert right(chosen, x, y) >= right(plain, x, y)
    assert {float(tensors[name]) for name in ("scale", "shift", "power")} == {0.1, 0.0, 1.0}


def test_a_student_without_any_robust_accuracy_leaves_all_to_the_teacher(capsys):
    robust, accurate, x, y = problem(100)
    with frozen(robust), frozen(accurate):
        given = Fitting(accurate, robust, x, y, CLASSES, "linf:0.5", key(4))
        tensors = Mixture(options()).fit(given)
    assert float(tensors["weight"]) == 0 and "the teacher alone answers" in capsys.readouterr().err
    model = Mixture(options(), tensors).protect(accurate)
    assert torch.equal(model(x).argmax(1), robust(x).argmax(1))


def test_a_grid_that_alters_the_answers_is_refused():
    y = torch.arange(50) % CLASSES
    close = sum(F.one_hot((y + next) % CLASSES, CLASSES) for next in range(5))
    logits = (close + 0.1 * F.one_hot(y, CLASSES)).double()  # normalised 1.16, and 0.96 of four others: GELU is 0 at 0
    with pytest.raises(InputError, match="no numbers of the grid leave enough of the student's answers") as refused:
        choose(logits, logits, logits, y, options(shifts=(-1.155,)))
    assert "\n" not in str(refused.value)


def test_the_last_images_are_the_ones_that_count():
    robust, accurate, x, y = problem(100)
    more, none = torch.rand((300, 1, 8, 8), generator=key()), torch.zeros(300, dtype=torch.int64)
    sets = (x, y), (torch.cat([more, x]), torch.cat([none, y]))
    with frozen(robust), frozen(accurate):
        first, second = (
            Mixture(options(images=100)).fit(Fitting(robust, accurate, *given, CLASSES, THREAT, key(4)))
            for given in sets
        )
    assert all(torch.equal(first[name], second[name]) for name in first)


# --- attacks ---------------------------------------------------------------------------------------------------------


def test_the_surrogate_is_the_mixture_with_other_gradients():
    tensors, robust, _, x, _ = fitted()
    made = Mixture(options(), tensors)
    found = [model(x[:20]) for model in (made.protect(robust), made.surrogate(robust))]
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weight", [0.6, 0.99])
def test_pgd_through_the_surrogate_breaks_what_pgd_through_the_mixture_does_not(weight):
    """Where the student is sure its sharpened logits have no gradient, so an attack on the mixture itself is blind."""
    robust, accurate, x, y = problem(200)
    threat = parse_threat("linf:0.25")
    numbers = (10.0, -0.4, 5.0, weight)
    model, softened = Mixed(robust, accurate, *numbers), Softened(robust, accurate, *numbers)
    stays = [
        right(model, pgd(Problem(fold(crafted), x, y, threat, key(7)), Pgd(steps=10)), y)
        for crafted in (model, softened)
    ]
    assert stays[1] < 0.05 and stays[0] > stays[1] + 0.2


@pytest.mark.parametrize("numbers", [(5.0, -1.1, 4.0, 0.9988), (10.0, -0.4, 5.0, 0.9)])
def test_on_random_networks_the_surrogate_breaks_at_least_as_many(numbers):
    robust, accurate = (tiny.classifier(seed=seed, scale=3.0) for seed in (0, 10))
    x = torch.rand((100, 1, 8, 8), generator=key(0))
    model, softened = Mixed(robust, accurate, *numbers), Softened(robust, accurate, *numbers)
    y = model(x).argmax(1)
    stays = [
        right(model, pgd(Problem(fold(crafted), x, y, parse_threat("linf:0.02"), key(7)), Pgd(steps=10)), y)
        for crafted in (model, softened)
    ]
    assert stays[1] <= stays[0] < 1


# --- handing it out --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["trace", "export"])
def test_it_is_one_module_that_can_be_exported(how):
    net, other = network(CLASSES), network(CLASSES)
    model = Mixed(net.eval(), other.eval(), 5.0, -1.1, 4.0, 0.9).eval()
    x = torch.rand((3, 1, 8, 8), generator=key(1))
    with torch.no_grad():
        made = torch.jit.trace(model, x) if how == "trace" else torch.export.export(model, (x,)).module()
        torch.testing.assert_close(made(x), model(x))
