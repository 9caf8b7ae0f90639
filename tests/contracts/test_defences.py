"""What every registered defence promises; an entry meets these tests by being registered."""

import pytest
import torch
from pydantic import ValidationError
from support import tiny
from support.attacked import SHAPE, Linear, images, key, network
from torch import nn

from dfshield import registry
from dfshield.defences.defence import Defence
from dfshield.defences.fitted import FittedDefence, Fitting
from dfshield.models.folding import fold
from dfshield.options import DefendOptions

NAMES = list(registry.DEFENCES)


def defence(name: str, seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> Defence:
    """The defence `name` with its default options; one with something to fit, fitted for images (C,H,W) of `shape`."""
    kind, options = registry.DEFENCES[name].load(), DefendOptions.of(defence=name, seed=seed)
    if not registry.DEFENCES[name].fitted:
        return kind(options)
    net = network(10, shape)
    x, y = images(net, 60, shape)
    return kind(options, kind(options).fit(Fitting(net, net, x, y, 10, "linf:8/255", key())))


@pytest.mark.parametrize("name", NAMES)
def test_an_entry_says_what_it_is(name):
    entry = registry.DEFENCES[name]
    assert entry.title and entry.about and "\n" not in entry.about and not entry.about.endswith(".")
    options = DefendOptions.of(defence=name)
    assert options.defence == name and type(options) is entry.options_class(DefendOptions)
    with pytest.raises(ValidationError, match="nonsense"):
        DefendOptions.of(defence=name, nonsense=1)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_fitted_is_said_and_named(name):
    kind, made = registry.DEFENCES[name].load(), defence(name)
    assert registry.DEFENCES[name].fitted == issubclass(kind, FittedDefence)
    if registry.DEFENCES[name].fitted:
        assert made.tensors and all(
            any(key == kept or (kept[-1] == "." and key.startswith(kept)) for kept in kind.keeps)
            and not value.requires_grad
            for key, value in made.tensors.items()
        )
        again = defence(name)
        assert all(torch.equal(value, again.tensors[key]) for key, value in made.tensors.items())


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 28, 28), (3, 9, 6)])
@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("name", NAMES)
def test_a_defended_model_gives_finite_logits_of_the_same_classes(name, n, shape):
    net = network(10, shape)
    x, _ = images(net, n, shape)
    made = defence(name, shape=shape)
    for model in (made.protect(net), made.surrogate(net)):
        logits = model(x)
        assert isinstance(model, nn.Module) and logits.shape == (n, 10) and logits.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_a_verdict_can_be_repeated_by_a_defence_that_is_built_again(name):
    net = network(10)
    x, _ = images(net)
    first, second = (defence(name, seed=3).protect(net) for _ in range(2))
    torch.manual_seed(1)
    with torch.random.fork_rng():
        found = first(x)
    with torch.random.fork_rng():
        assert torch.equal(second(x), found)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_come_through_the_surrogate(name):
    x = torch.rand((6, 1, 8, 8), generator=key(1)).requires_grad_()
    logits = defence(name).surrogate(Linear(64))(x)
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), x)
    assert gradient.isfinite().all() and (gradient.flatten(1) != 0).any(dim=1).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_quick_copy_of_the_surrogate_has_its_gradients(name):
    """Attacks are crafted on such copies. One by a trace would go through what has no derivative of use."""
    made = defence(name).surrogate(tiny.classifier(scale=3.0))
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
    defence(name).protect(net)(x)
    defence(name).surrogate(net)(x)
    assert net.training and all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert all(parameter.requires_grad for parameter in net.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_images_are_independent_of_those_beside_them(name):
    net = network(10)
    x, _ = images(net, 4)
    model = defence(name).protect(net)
    torch.testing.assert_close(torch.cat([model(image) for image in x.split(1)]), model(x), rtol=1e-4, atol=1e-5)


def test_identity_is_the_very_model():
    net = network(4)
    assert defence("identity").protect(net) is net and defence("identity").surrogate(net) is net


@pytest.mark.parametrize("name", NAMES)
def test_the_cost_model_knows_its_passes(name):
    """Images that go through the network, counted, over those that are asked about."""
    net = network(10)
    x, _ = images(net, 5)
    seen = []
    net.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    defence(name).protect(net)(x)
    assert sum(seen) == 5 * DefendOptions.of(defence=name).passes
