"""What is done to weights besides gradient steps: adversarial perturbation and averaging."""

import copy
import math

import pytest
import torch
from support import tiny
from support.training import QUICK, make, quick

from dfshield.core.rng import generator
from dfshield.models.ema import WeightEMA
from dfshield.training import losses
from dfshield.training.awp import frozen_buffers, perturbed

# --- adversarial weight perturbation ---------------------------------------------------------------------------------


def test_weights_are_moved_along_their_gradient_by_a_share_of_their_norm():
    matrix, vector = torch.tensor([[3.0, 4.0]]), torch.tensor([7.0])
    filters, still = torch.full((2, 1, 2, 2), 0.5), torch.ones(2, 2)
    parameters = [matrix, vector, filters, still]
    before = [p.clone() for p in parameters]
    up = torch.zeros(2, 1, 2, 2)
    up[0, 0, 0, 1] = -9.0
    gradients = [torch.tensor([[0.0, 0.002]]), torch.ones(1), up, torch.zeros(2, 2)]
    with perturbed(parameters, gradients, 0.1):
        torch.testing.assert_close(matrix, torch.tensor([[3.0, 4.5]]))  # norm 5, a tenth of it
        assert vector.item() == 7  # one dimension: biases and BatchNorm stay
        assert filters[0, 0, 0, 1].item() == pytest.approx(0.5 - 0.1 * math.sqrt(2))
        assert int((filters != 0.5).sum()) == 1
        assert torch.equal(still, before[3])
    assert all(torch.equal(a, b) for a, b in zip(parameters, before, strict=True))


def test_weights_and_buffers_are_put_back_exactly_even_after_an_error():
    made = make()

    def state():
        return {name: value.clone() for name, value in made.student.state_dict().items()}

    before, slopes = state(), [torch.randn_like(p) for p in made.parameters]
    with pytest.raises(ZeroDivisionError), frozen_buffers(made.student), perturbed(made.parameters, slopes, 0.3):
        made.student.train()(made.images[:10])
        changed = {name for name, value in state().items() if not torch.equal(value, before[name])}
        raise ZeroDivisionError
    statistics = {name for name in before if "running" in name or "tracked" in name}
    assert changed == statistics | {name for name, p in made.student.named_parameters() if p.ndim > 1}
    assert statistics and all(torch.equal(value, before[name]) for name, value in state().items())


def test_gradients_are_those_at_the_perturbed_weights_and_batchnorm_moves_once():
    gamma, rows = 0.1, torch.arange(10)
    made = make(quick(awp=gamma))
    before = [p.detach().clone() for p in made.parameters]
    x, targets, labels = made.images[rows], made.targets[rows], made.labels[rows]
    adversarial = made._craft(x, labels, generator("a"), targets)
    reference = copy.deepcopy(made.student).train()

    def slopes(network):
        value = losses.dfshield(losses.Outputs(network(x), network(adversarial), targets, labels), QUICK)
        return value, torch.autograd.grad(value, list(network.parameters()))

    plain, upwards = slopes(copy.deepcopy(reference))
    with torch.no_grad():
        for weight, slope in zip(reference.parameters(), upwards, strict=True):
            if weight.ndim > 1:
                weight += gamma * weight.norm() * slope / slope.norm()
    expected, there = slopes(reference)
    found, gradients = made.gradients(rows, generator("a"))
    assert float(found) == pytest.approx(expected.item(), rel=1e-4)
    assert float(found) > 1.05 * plain.item()
    for a, b in zip(gradients, there, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(made.parameters, before, strict=True))
    for (name, a), (_, b) in zip(made.student.named_buffers(), reference.named_buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


def test_weight_perturbation_works_inside_a_group_and_sets_in_after_its_warm_up():
    made = make(quick(aggregate=5, awp=0.1, awp_warmup=1))
    without = make(quick(aggregate=5))
    rows = [m.epoch(0) for m in (made, without)]
    assert rows[0] == rows[1]
    for a, b in zip(made.parameters, without.parameters, strict=True):
        assert torch.equal(a, b)
    weights, genuine = [], made.gradients
    made.gradients = lambda rows, random: weights.append(made.parameters[0].clone()) or genuine(rows, random)
    rows = [m.epoch(1) for m in (made, without)]
    assert rows[0]["loss"] > rows[1]["loss"]
    assert all(torch.equal(weights[0], w) for w in weights)
    assert not torch.equal(weights[0], made.parameters[0])


# --- averaging -------------------------------------------------------------------------------------------------------


def test_the_average_by_hand():
    """Decay 0.5 from the fifth update on; before, (1+n)/(10+n): 0.1, 2/11, 1/4, 4/13, 5/14, 6/15."""
    net = torch.nn.BatchNorm1d(1)
    average = WeightEMA(net, 0.3)
    weight, mean = 1.0, 0.0
    for number, decay in enumerate([0.1, 2 / 11, 0.25, 0.3, 0.3]):
        with torch.no_grad():
            net.weight.fill_(10.0 * number)
            net.running_mean.fill_(-number)
            net.num_batches_tracked.fill_(number)
        average.update(net, number)
        weight = decay * weight + (1 - decay) * 10 * number
        mean = decay * mean - (1 - decay) * number
        assert average.state["weight"].item() == pytest.approx(weight, rel=1e-5)
        assert average.state["running_mean"].item() == pytest.approx(mean, rel=1e-5)
        assert average.state["num_batches_tracked"].item() == number
    with average.inside(net):
        assert net.weight.item() == pytest.approx(weight, rel=1e-5)
    assert (net.weight.item(), net.running_mean.item()) == (40, -4)


def test_the_average_is_the_result_and_what_is_measured():
    options = quick(epochs=3, lr=0.05, average=0.9, holdout=20)
    made, plain = make(options), make(quick(epochs=3, lr=0.05, holdout=20))
    states, genuine = [], made._update

    def update():
        share = genuine()
        states.append({k: v.clone() for k, v in made.student.state_dict().items()})
        return share

    made._update = update
    plain.fit(None)
    expected = {k: v.clone() for k, v in tiny.classifier().state_dict().items()}
    measured, agreement = [], made.holdout_agreement
    made.holdout_agreement = lambda epoch: measured.append(made.parameters[0].detach().clone()) or agreement(epoch)
    made.fit(None)
    for number, state in enumerate(states):
        decay = min(0.9, (1 + number) / (10 + number))
        for name, value in state.items():
            kept = expected[name]
            expected[name] = decay * kept + (1 - decay) * value if value.is_floating_point() else value
    for name, value in made.student.state_dict().items():
        torch.testing.assert_close(value, expected[name], msg=name)
    for name, value in plain.student.state_dict().items():  # training itself goes on as if nothing was averaged
        assert torch.equal(states[-1][name], value)
    torch.testing.assert_close(measured[-1], made.parameters[0].detach())
