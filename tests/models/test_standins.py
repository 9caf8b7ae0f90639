"""A stand-in is used only if it computes what the network computes, and the network is as before afterwards."""

import copy

import pytest
import torch
from support import tiny
from support.cotraining import quick
from support.kept import (
    Fuses,
    GradientByMemory,
    Hooked,
    KeptWeight,
    Number,
    TiedConvolutions,
    TiedWeight,
    WhileTraining,
)
from support.strange import InPlainList, Plain, always_drops, by_memory, by_view, changed, drops
from support.zoo import ZOO
from torch import nn

from dfshield.baselines.cotrain import Cotrainer
from dfshield.core.errors import InputError
from dfshield.core.rng import seeded
from dfshield.models import standins
from dfshield.models.checkpoints import Card, load_checkpoint, save_checkpoint
from dfshield.models.classifier import Classifier
from dfshield.models.folding import fold
from dfshield.models.penultimate import Penultimate
from dfshield.models.rehearsal import rehearse
from dfshield.models.standins import generated, settle, stands_for, trials
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


def test_trials_have_extremes_and_batches_of_several_sizes():
    inputs = trials(X)
    assert {len(part) for part in inputs} == {1, 2, 3}
    low, high = X.min(), X.max()
    black, white, either = inputs[2]
    assert (black == low).all() and (white == high).all()
    assert set(either.unique().tolist()) == {float(low), float(high)}


def test_comparison_in_training_mode():
    live = classifier(WhileTraining())
    made = copy.deepcopy(live)
    assert stands_for(made, live, X) and not stands_for(made, live, X, training=True)
    before = {key: value.clone() for key, value in live.state_dict().items()}
    plain = classifier(changed(drops)())
    assert stands_for(copy.deepcopy(plain), plain, X, training=True)
    stands_for(made, live, X, training=True)
    assert all(torch.equal(value, before[key]) for key, value in live.state_dict().items())
    assert not any(module.training for module in live.modules())


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


def test_a_copy_that_looks_into_the_original_in_training_mode_alone_is_built_anew():
    live = classifier(WhileTraining(), WhileTraining)
    settle(live, SHAPE)
    assert live.anew
    made = copy.deepcopy(live)
    made.train()(X).sum().backward()
    assert made.net.fc.weight.grad is not None and live.net.fc.weight.grad is None


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


@pytest.mark.parametrize("forward", [drops, always_drops])
def test_networks_that_draw_keep_the_fastest_layout(forward, capsys):
    live = classifier(changed(forward)())
    settle(live, SHAPE)
    assert live.layout == torch.channels_last and not capsys.readouterr().err


def test_layout_by_the_gradient_alone(capsys):
    live = classifier(GradientByMemory())
    settle(live, SHAPE)
    assert live.layout == torch.contiguous_format
    assert "it computes something else there" in capsys.readouterr().err


def test_a_student_with_first_weights_of_its_own_keeps_the_layout_too():
    teacher = classifier(ZOO["view of a map"].network(), ZOO["view of a map"].build)
    settle(teacher, SHAPE)
    facts = {"factory": "support.zoo:build", "arguments": {"name": "view of a map"}}
    card = Card("teacher", "mine", "mine", SHAPE, 4, (0.5,) * 3, (0.25,) * 3, "teacher", **facts)
    student = Cotrainer(teacher, card, quick("dast", student_start="random")).student
    assert student.layout == torch.contiguous_format and student.build is teacher.build
    student(X.contiguous(memory_format=torch.channels_last)).sum().backward()


def test_a_second_network_of_the_same_kind_keeps_its_layout():
    live = classifier(Plain(), Plain)
    live.layout, live.anew = torch.contiguous_format, True
    made = copy.deepcopy(live)
    assert made.layout == torch.contiguous_format and made.anew and made.build is Plain


def test_generated_code_is_compared_once(monkeypatch, capsys):
    calls = []
    for wrong in (0.0, 0.1):
        monkeypatch.setattr(standins, "compiled", lambda f, wrong=wrong: lambda x: calls.append(wrong) or f(x) + wrong)
        live = classifier(Plain())
        call = generated(live)
        assert all(torch.equal(call(X), live(X)) for _ in range(3))
    assert calls == [0.0, 0.0, 0.0, 0.0, 0.1]
    assert "generated code of the network answers otherwise" in capsys.readouterr().err


@pytest.mark.parametrize(("factor", "said"), [(1.01, False), (1.3, True)])
def test_generated_code_in_bf16_may_round_at_other_places(monkeypatch, capsys, factor, said):
    live = tiny.classifier(scale=3.0)
    monkeypatch.setattr(standins, "compiled", lambda f: lambda x: f(x) * factor)
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        generated(live)(x)
    assert ("answers otherwise" in capsys.readouterr().err) == said
    generated(live)(x)
    assert "answers otherwise" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [0.0, 0.1])
def test_the_comparison_of_generated_code_leaves_buffers_alone(monkeypatch, wrong):
    monkeypatch.setattr(standins, "compiled", lambda f: lambda x: f(x) + wrong)
    live, plain = (classifier(Plain()).train() for _ in range(2))
    plain.load_state_dict(live.state_dict())
    call = generated(live)
    for _ in range(2):
        call(X)
        plain(X)
        assert all(torch.equal(a, b) for a, b in zip(live.buffers(), plain.buffers(), strict=True))


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


def test_a_network_that_computes_of_its_weights_in_eval_mode_is_copied_at_every_update(capsys):
    live = classifier(Fuses())
    crafting = fold(live)
    for update in range(6):
        live.train()
        live.net.conv1.weight.data.mul_(1.2)
        live.eval()
        crafting.refresh()
        if update != 1:  # found at the second comparison
            torch.testing.assert_close(crafting(X), live(X), rtol=1e-4, atol=1e-5)
        else:
            crafting(X)
    assert capsys.readouterr().err.count("a new one is made at every update") == 1


def test_a_plain_copy_in_place_of_the_folded_one_is_said(capsys):
    factor = [1.0]
    live = classifier(changed(lambda self, x: factor[0] * Plain.forward(self, x))())
    crafting = fold(live)
    factor[0] = 1.5  # which tracing has taken for a constant
    crafting.refresh()
    torch.testing.assert_close(crafting(X), live(X), rtol=1e-4, atol=1e-5)
    assert crafting.folded_layers == 0
    assert "folded into its convolutions answers otherwise; a plain copy" in capsys.readouterr().err


def test_layers_that_share_a_weight_are_folded():
    live = classifier(TiedWeight())
    for norm in (live.net.bn3, live.net.bn4):
        norm.running_var.uniform_(0.5, 2)
        norm.running_mean.normal_()
    crafting = fold(live)
    torch.testing.assert_close(crafting(X), live(X), rtol=1e-4, atol=1e-5)
    assert crafting.folded_layers == 4
    live.net.left.weight.data.mul_(1.3)
    crafting.refresh()
    torch.testing.assert_close(crafting(X), live(X), rtol=1e-4, atol=1e-5)
    live = classifier(TiedConvolutions())  # where folding would change what a third one uses
    torch.testing.assert_close(fold(live)(X), live(X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [InPlainList, KeptWeight, Number])
def test_a_second_network_that_computes_something_else_is_refused_before_any_work(kind):
    def build(seed=0):
        with seeded(seed), torch.no_grad():
            net = kind().eval()
            net(X)
            return net

    live = classifier(build(), build)
    live.net.load_state_dict(classifier(build(5)).net.state_dict())
    before = {key: value.clone() for key, value in live.state_dict().items()}
    with pytest.raises(InputError, match=r"a second network with the same weights .*; register all layers"):
        rehearse(live, SHAPE)
    assert all(torch.equal(value, before[key]) for key, value in live.state_dict().items())
    plain = classifier(Plain(), lambda seed=0: Plain())
    rehearse(plain, SHAPE)


def test_what_would_be_loaded_otherwise_is_not_written(tmp_path):
    card = Card("student", "mine", "mine", SHAPE, 4, (0.5,) * 3, (0.25,) * 3, "none", factory="mine.py:build")
    live = classifier(Number(), lambda seed=0: Number())
    save_checkpoint(tmp_path / "s.safetensors", live, card)
    live.train()(X)
    live.eval()
    with pytest.raises(InputError, match=r"t.safetensors: not written: a second network"):
        save_checkpoint(tmp_path / "t.safetensors", live, card)
    assert not (tmp_path / "t.safetensors").exists()


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


@pytest.mark.parametrize("hooks", [False, True])
def test_statistics_are_exact_where_the_mean_is_large(hooks):
    net = nn.Sequential(nn.BatchNorm2d(4)).eval()
    x = 0.3 * torch.randn(40, 4, 8, 8, generator=torch.Generator().manual_seed(0)) + 300
    statistics = BatchStatistics(net, k=2, hooks=hooks)
    net(x)
    _, mean, variance = statistics.seen[0]
    parts = x.double().unflatten(0, (2, -1))
    torch.testing.assert_close(mean.double(), parts.mean((1, 3, 4)), rtol=1e-6, atol=0)
    torch.testing.assert_close(variance.double(), parts.var((1, 3, 4), correction=0), rtol=1e-5, atol=0)


def test_penultimate_features_however_the_layer_is_called():
    net = changed(lambda self, x: self.fc(input=self.features(x).mean((2, 3))))().eval()
    watch = Penultimate(net)
    net(X)
    assert torch.equal(watch.features, net.features(X).mean((2, 3))) and watch.layer is net.fc
    net = changed(lambda self, x: self.features(x).mean((2, 3)) @ self.fc.weight.T)()
    watch = Penultimate(net)
    net(X)
    with pytest.raises(InputError, match=r"calls none of its Linear layers.*use pixels"):
        _ = watch.features


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
