"""A stand-in is used only if it computes what the network computes, and the network is as before afterwards."""

import copy

import pytest
import torch
from support import tiny
from support.kept import Hooked, TiedWeight
from support.strange import Plain, by_memory, by_view, changed
from torch import nn

from dfshield.core.errors import InputError
from dfshield.models import standins
from dfshield.models.checkpoints import Card, load_checkpoint, save_checkpoint
from dfshield.models.classifier import Classifier
from dfshield.models.folding import fold
from dfshield.models.standins import generated, settle, stands_for
from dfshield.sources.objective import BatchStatistics, watched

SHAPE = (3, 16, 16)
X = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(0))


def classifier(net, build=None):
    return Classifier(net, (0.5,) * 3, (0.25,) * 3, build).eval()


class Biased(nn.Module):
    """Answers as another network, but for images that are all dark."""

    def __init__(self, other):
        super().__init__()
        self.other = other

    def forward(self, x):
        return self.other(x) + (x.amax((1, 2, 3)) <= x.amin((1, 2, 3)))[:, None]


def test_comparison():
    live = tiny.classifier()
    x = torch.rand(5, *tiny.SHAPE)
    before = {key: value.clone() for key, value in live.state_dict().items()}
    assert stands_for(copy.deepcopy(live), live, x)
    assert not stands_for(live, live, x), "it looks into the original: into itself"
    assert not stands_for(tiny.classifier(seed=1), live, x)
    assert not stands_for(Biased(copy.deepcopy(live)), live, x), "another answer on an extreme image"
    assert not stands_for(nn.Linear(3, 3), live, x), "raises"
    assert all(torch.equal(value, before[key]) for key, value in live.state_dict().items())


def test_modes_and_buffers_are_put_back():
    live = tiny.classifier().train()
    live.net[0].training = False
    modes = [module.training for module in live.modules()]
    means = [buffer.clone() for buffer in live.buffers()]
    assert stands_for(copy.deepcopy(live), live, torch.rand(5, *tiny.SHAPE))
    assert [module.training for module in live.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(live.buffers(), means, strict=True))


def test_a_graph_through_the_network_stays_valid():
    live = tiny.classifier().requires_grad_(True)
    x = torch.rand(5, *tiny.SHAPE)
    loss = live(x).square().sum()
    stands_for(copy.deepcopy(live), live, x)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in live.parameters())


def test_a_copy_that_answers_from_the_original_is_built_anew(capsys):
    live = classifier(Hooked(), Hooked)
    settle(live, SHAPE)
    assert live.anew and "a copy of the network answers from the original" in capsys.readouterr().err
    other = copy.deepcopy(live)
    expected = live(X)
    assert torch.equal(other(X), expected)
    for parameter in live.parameters():
        parameter.data.zero_()
    assert torch.equal(other(X), expected)
    assert torch.equal(copy.deepcopy(other)(X), expected)


def test_the_folded_copy_of_such_a_network_is_the_network():
    live = classifier(Hooked(), Hooked)
    settle(live, SHAPE)
    folded = fold(live)
    torch.testing.assert_close(folded(X), live(X), rtol=1e-4, atol=1e-5)
    live.net.fc.weight.data.mul_(-2)
    folded.refresh()
    torch.testing.assert_close(folded(X), live(X), rtol=1e-4, atol=1e-5)


def test_without_a_factory_it_is_refused():
    with pytest.raises(
        InputError, match=r"no copy of the network computes what the network computes; return every"
    ) as e:
        settle(classifier(Hooked()), SHAPE)
    assert "\n" not in str(e.value)
    with pytest.raises(InputError, match="no copy of the network computes"):
        fold(classifier(Hooked()))(X)


@pytest.mark.parametrize("forward", [by_view, by_memory])
def test_layout(forward, capsys):
    layers = {"fc": lambda: nn.Linear(768, 4)} if forward is by_view else {}
    live = classifier(changed(forward, **layers)())
    expected = live(X)
    settle(live, SHAPE)
    assert live.layout == torch.contiguous_format
    assert "does not work in channels_last memory, which is faster (" in capsys.readouterr().err
    assert torch.equal(live(X.contiguous(memory_format=torch.channels_last)), expected)
    assert standins.layout_of(nn.Sequential(live)) == torch.contiguous_format
    plain = classifier(Plain())
    settle(plain, SHAPE)
    assert plain.layout == torch.channels_last and not capsys.readouterr().err


def test_generated_code_is_compared_once(monkeypatch, capsys):
    calls = []
    for wrong in (0.0, 0.1):
        monkeypatch.setattr(standins, "compiled", lambda f, wrong=wrong: lambda x: calls.append(wrong) or f(x) + wrong)
        live = classifier(Plain())
        call = generated(live)
        assert all(torch.equal(call(X), live(X)) for _ in range(3))
    assert calls == [0.0, 0.0, 0.0, 0.0, 0.1]
    assert "generated code of the network answers otherwise" in capsys.readouterr().err


def test_generated_code_moves_statistics_as_often_as_it_is_called(monkeypatch):
    for wrong in (0.0, 0.1):
        monkeypatch.setattr(standins, "compiled", lambda f, wrong=wrong: lambda x: f(x) + wrong)
        live = classifier(Plain()).train()
        generated(live)(X)
        assert live.net.bn1.num_batches_tracked == 1


def test_a_copy_that_does_not_follow_is_found():
    class Remembers(Plain):
        """Uses its head's weight as it was at the first call."""

        def forward(self, x):
            if not hasattr(self, "first"):
                self.first = self.fc.weight.detach().clone()
            return self.features(x).mean((2, 3)) @ (self.fc.weight if self.training else self.first).T

    live = classifier(Remembers())
    folded = fold(live)
    live(X)
    folded(X)
    live.net.fc.weight.data.neg_()
    del live.net.first
    folded.refresh()
    torch.testing.assert_close(folded(X), live(X), rtol=1e-4, atol=1e-5)


def test_layers_that_share_a_weight_go_on_sharing_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tied.py").write_text(
        "from support.kept import TiedWeight\n\n\ndef build():\n    return TiedWeight()\n"
    )
    card = Card("teacher", "mine", "mine", SHAPE, 4, (0.5,) * 3, (0.25,) * 3, "teacher", factory="tied.py:build")
    net = TiedWeight().eval()
    save_checkpoint(tmp_path / "t.safetensors", classifier(net), card)
    loaded, _ = load_checkpoint(tmp_path / "t.safetensors", factory="tied.py:build")
    assert torch.equal(loaded(X), classifier(net)(X))
    for made in (loaded, copy.deepcopy(loaded)):
        assert made.net.left.weight is made.net.right.weight
    folded = fold(loaded)
    torch.testing.assert_close(folded(X), loaded(X), rtol=1e-4, atol=1e-5)


class Doubling(nn.BatchNorm2d):
    def forward(self, input):
        return 2 * super().forward(input)


def test_variance_far_from_zero():
    net = changed(Plain.forward, bn1=lambda: Doubling(8))().eval()
    statistics = BatchStatistics(net)
    net.bn1(1000 + torch.randn(64, 8, 16, 16))
    torch.testing.assert_close(statistics.seen[0][2], torch.ones(1, 8), rtol=0.05, atol=0)


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, Doubling])
@pytest.mark.parametrize("hooks", [False, True])
def test_watched_layers_compute_what_they_computed(kind, hooks):
    net = changed(Plain.forward, bn1=lambda: kind(8), bn2=lambda: kind(12))().eval()
    net.bn1.running_mean.normal_()
    x, expected = torch.randn(6, *SHAPE), []
    net.bn1.register_forward_pre_hook(lambda _, inputs: expected.append(inputs[0].detach()))
    plain = net(x)
    statistics = BatchStatistics(net, k=2, hooks=hooks)
    assert torch.allclose(net(x), plain, atol=1e-6)
    layer, mean, variance = statistics.seen[0]
    assert layer is net.bn1
    parts = expected[0].unflatten(0, (2, -1))
    torch.testing.assert_close(mean, parts.mean((1, 3, 4)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(variance, parts.transpose(1, 2).flatten(2).var(2, correction=0), rtol=1e-4, atol=1e-5)
    statistics.remove()
    statistics.seen.clear()
    assert torch.equal(net(x), plain) and not statistics.seen


def test_layers_that_the_quick_way_would_change_are_watched_by_hooks():
    net = changed(Plain.forward)().eval()
    net.bn1.__class__.forward, before = nn.BatchNorm2d.forward, nn.BatchNorm2d.forward
    try:
        nn.BatchNorm2d.forward = lambda self, x: 2 * before(self, x)  # as a library may patch all layers
        model = classifier(net)
        expected = model(X)
        statistics = watched(model, SHAPE)
        assert torch.equal(model(X), expected) and not statistics.plain
    finally:
        nn.BatchNorm2d.forward = before
