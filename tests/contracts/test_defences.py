"""What every registered defence keeps to: an entry is tested by being registered."""

from typing import get_args

import numpy as np
import pytest
import torch
from support.victims import images, network, save_victim, stage

from dfshield import registry
from dfshield.attacks.base import input_gradient
from dfshield.evaluation.ledger import ROWS
from dfshield.options import DefendOptions

pytestmark = pytest.mark.parametrize("name", registry.DEFENCES)


def make(name):
    return registry.DEFENCES[name].load()(DefendOptions.of(defence=name))


@pytest.mark.parametrize("classes, shape", [(2, (1, 8, 8)), (10, (3, 6, 9))])
@pytest.mark.parametrize("n", [1, 5])
def test_defended_models_give_the_same_finite_logits_each_time(name, classes, shape, n):
    net = network(classes, shape)
    x, _ = images(net, 5, shape)
    with torch.no_grad():
        one, again, other = (model(x[:n]) for model in [make(name).protect(net)] * 2 + [make(name).protect(net)])
        assert one.shape == (n, classes) and one.isfinite().all()
        assert torch.equal(one, again) and torch.equal(one, other)
        assert torch.allclose(one, make(name).protect(net)(x)[:n], atol=1e-5)  # whatever comes with it


def test_gradients_reach_the_pixels_through_the_surrogate(name):
    net = network(4)
    x, y = images(net)
    logits, gradient = input_gradient(make(name).surrogate(net), x, y)
    assert logits.shape == (24, 4) and gradient.shape == x.shape
    assert gradient.isfinite().all() and (gradient.flatten(1) != 0).any(dim=1).all()


def test_the_network_behind_a_defence_is_left_as_it_is(name):
    net = network(4)
    x, _ = images(net)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    defence = make(name)
    with torch.no_grad():
        plain = net(x)
        defence.protect(net)(x), defence.surrogate(net)(x)
        assert torch.equal(net(x), plain)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert before.keys() == net.state_dict().keys()


def test_entries_name_and_describe_themselves(name):
    entry = registry.DEFENCES[name]
    assert entry.title and entry.about and not entry.about.endswith(".")
    assert entry.real_data in get_args(registry.RealData)
    options = DefendOptions.of(defence=name)
    assert options.defence == name and options.described()["defence"] == name


def test_ledgers_say_which_defence_there_was(name, tmp_path):
    save_victim(tmp_path)
    options = DefendOptions.of(defence=name)
    bare = stage(tmp_path, "bare.h5", attack="pgd", threat="linf:2/255")
    ledger = stage(tmp_path, attack="pgd", threat="linf:2/255", defence=options)
    assert (bare.defence, bare.defence_options) == ("none", {})
    assert (ledger.defence, ledger.defence_options) == (name, options.described())
    if name == "identity":
        assert 1 < bare.broken.sum() < 23
        for row in (*ROWS, "perturbed_index", "perturbation"):
            assert getattr(ledger, row).tobytes() == getattr(bare, row).tobytes()
    else:
        assert not np.array_equal(ledger.margin, bare.margin)
