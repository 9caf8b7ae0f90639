"""What every registered defence promises; an entry meets these tests by being registered."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from support import tiny
from support.attacked import Linear, images, key, network
from torch import nn

from dfshield import registry
from dfshield.attacks.base import frozen
from dfshield.defences.defence import Defence
from dfshield.defences.fitted import FittedDefence, Fitting
from dfshield.models.folding import fold
from dfshield.options import DefendOptions

NAMES = list(registry.DEFENCES)
FITTED = [name for name, entry in registry.DEFENCES.items() if entry.fitted]

SMALL = {"steps": 2, "batch": 4, "width": 8, "sampling_steps": 3}
QUICK = {
    "diffpure": SMALL,
    "distribution-transfer": SMALL,
    "adversarial-transformation": {"width": 0.0625, "epochs": 1, "batch": 20, "lr": 0.01},
}
"""Options of those that take minutes with the default ones."""
THREATS = {"dad": "linf:0.3"}
"""Threat models of those that need images which an attack breaks; for the others one that breaks hardly any."""


def quick(name: str, **values: Any) -> DefendOptions:
    """Options of the defence `name`, the default ones but for `QUICK`."""
    return DefendOptions.of(defence=name, **QUICK.get(name, {}), **values)


def defence(name: str, net: nn.Module, shape: tuple[int, int, int] = (1, 8, 8), seed: int = 0) -> Defence:
    """The defence `name` with `quick` options, fitted to `net` on a few random images where it is fitted."""
    entry, options = registry.DEFENCES[name], quick(name, seed=seed)
    made = entry.load()(options)
    return entry.load()(options, fit(made, net, shape)) if entry.fitted else made


def fit(made: FittedDefence, net: nn.Module, shape: tuple[int, int, int]) -> dict[str, torch.Tensor]:
    """What a fitted defence keeps for `net`, which is its own teacher."""
    x = torch.rand((40, *shape), generator=key(5))
    with torch.no_grad():
        logits = net(x)
    given = Fitting(
        net, net, x, logits.argmax(1), logits.shape[1], THREATS.get(made.options.defence, "linf:0.001"), key(6)
    )
    with frozen(net):
        return made.fit(given)


@pytest.mark.parametrize("name", NAMES)
def test_an_entry_says_what_it_is(name):
    entry = registry.DEFENCES[name]
    assert entry.title and entry.about and "\n" not in entry.about and not entry.about.endswith(".")
    options = DefendOptions.of(defence=name)
    assert options.defence == name and type(options) is entry.options_class(DefendOptions)
    with pytest.raises(ValidationError, match="nonsense"):
        DefendOptions.of(defence=name, nonsense=1)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 28, 28), (3, 9, 6)])
@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("name", NAMES)
def test_a_defended_model_gives_finite_logits_of_the_same_classes(name, n, shape):
    net = network(10, shape)
    x, _ = images(net, n, shape)
    made = defence(name, net, shape)
    for model in (made.protect(net), made.surrogate(net)):
        logits = model(x)
        assert isinstance(model, nn.Module) and logits.shape == (n, 10) and logits.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_a_verdict_can_be_repeated_by_a_defence_that_is_built_again(name):
    net = network(10)
    x, _ = images(net)
    first, second = (defence(name, net, seed=3).protect(net) for _ in range(2))
    torch.manual_seed(1)
    with torch.random.fork_rng():
        found = first(x)
    with torch.random.fork_rng():
        assert torch.equal(second(x), found)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_come_through_the_surrogate(name):
    x = torch.rand((6, 1, 8, 8), generator=key(1)).requires_grad_()
    net = Linear(64)
    logits = defence(name, net).surrogate(net)(x)
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), x)
    assert gradient.isfinite().all() and (gradient.flatten(1) != 0).any(dim=1).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_quick_copy_of_the_surrogate_has_its_gradients(name):
    """Attacks are crafted on such copies. One by a trace would go through what has no derivative of use."""
    net = tiny.classifier(scale=3.0)
    made = defence(name, net).surrogate(net)
    copied = fold(made)
    x = torch.rand((5, 1, 8, 8), generator=key(2))

    def slope(network: nn.Module) -> torch.Tensor:
        torch.manual_seed(0)
        images = x.clone().requires_grad_()
        return torch.autograd.grad(network(images)[:, 1].sum(), images)[0]

    slope(copied)  # the first call compares
    assert bool(slope(made).flatten(1).any(1).all())
    torch.testing.assert_close(slope(copied), slope(made), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_the_model_itself_is_left_as_it_was(name):
    net = network(10).train()
    state = {key: value.clone() for key, value in net.state_dict().items()}
    x, _ = images(net)
    made = defence(name, net)
    made.protect(net)(x)
    made.surrogate(net)(x)
    assert net.training and all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert all(parameter.requires_grad for parameter in net.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_images_are_independent_of_those_beside_them(name):
    net = network(10)
    x, _ = images(net, 4)
    model = defence(name, net).protect(net)
    torch.testing.assert_close(torch.cat([model(image) for image in x.split(1)]), model(x), rtol=1e-4, atol=1e-5)


def test_identity_is_the_very_model():
    net = network(4)
    made = defence("identity", net)
    assert made.protect(net) is net and made.surrogate(net) is net


@pytest.mark.parametrize("name", FITTED)
def test_a_fit_keeps_what_it_says_and_can_be_repeated(name):
    net, made = network(10), registry.DEFENCES[name].load()
    first, second = (fit(made(quick(name)), net, (1, 8, 8)) for _ in range(2))
    assert issubclass(made, FittedDefence) and made.keeps
    assert all(any(own == kept or (kept[-1] == "." and own.startswith(kept)) for kept in made.keeps) for own in first)
    assert all(any(own == kept or (kept[-1] == "." and own.startswith(kept)) for own in first) for kept in made.keeps)
    assert first.keys() == second.keys() and all(torch.equal(first[own], second[own]) for own in first)
    assert all(value.isfinite().all() for value in first.values() if value.is_floating_point())


@pytest.mark.parametrize("name", NAMES)
def test_the_cost_model_knows_its_passes(name):
    """Images that go through the network, counted, over those that are asked about."""
    net = network(10)
    x, _ = images(net, 5)
    made, seen = defence(name, net), []
    net.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    made.protect(net)(x)
    assert sum(seen) == 5 * made.options.verdict_passes
