"""BatchNorm statistics that are estimated anew: by hand, what is left alone, and at the end of training."""

import copy

import pytest
import torch
from support import drawing, tiny
from support.training import QUICK, make, quick
from torch import nn

from dfshield.core.rng import generator, seed_globals
from dfshield.core.threat import Threat
from dfshield.models.classifier import Classifier
from dfshield.options import TrainOptions
from dfshield.planning import arithmetic
from dfshield.training import trainer
from dfshield.training.inner import OBJECTIVES, pgd_ascent
from dfshield.training.reestimation import followers, reestimate
from dfshield.training.train import run
from dfshield.training.trainer import Trainer


def batches(count=3, size=10, channels=1, seed=0):
    """Mini-batches of random images."""
    images = torch.from_numpy(tiny.images(count * size, (channels, 8, 8), seed))
    return images.permute(0, 3, 1, 2).split(size)


def by_hand(student, given):
    """Mean and variance of the inputs of each BatchNorm layer by name: averages of the mini-batches' own."""
    network, found = copy.deepcopy(student).train(), {}

    def look(name):
        def see(layer, inputs):
            x = inputs[0].double()
            found.setdefault(name, []).append((x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=True)))

        return see

    for name, layer in network.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_pre_hook(look(name))
    with torch.no_grad():
        for x in given:
            network(x)
    return {name: [torch.stack(part).mean(0) for part in zip(*seen, strict=True)] for name, seen in found.items()}


def check(student, expected, count):
    assert expected
    for name, (mean, variance) in expected.items():
        layer = student.get_submodule(name)
        torch.testing.assert_close(layer.running_mean.double(), mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer.running_var.double(), variance, rtol=1e-4, atol=1e-5)
        assert int(layer.num_batches_tracked) == count


def state(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(found, expected):
    assert found.keys() == expected.keys()
    return [name for name, value in expected.items() if torch.equal(found[name], value)]


# --- the function ----------------------------------------------------------------------------------------------------


def test_statistics_are_the_means_over_mini_batches():
    student, given = tiny.classifier(), batches()
    student.net[1].train()
    student.get_submodule("net.1").momentum = 0.7
    before, expected = state(student), by_hand(student, given)
    modes, momenta = [[(m.training, getattr(m, "momentum", None)) for m in student.modules()] for _ in "ab"]
    reestimate(student, given)
    check(student, expected, 3)
    kept = same(state(student), before)
    assert set(before) - set(kept) == {name for name in before if "running" in name or "tracked" in name}
    assert [(m.training, getattr(m, "momentum", None)) for m in student.modules()] == modes == momenta
    assert all(p.grad is None for p in student.parameters())


def test_what_the_statistics_were_does_not_matter():
    one, other = tiny.classifier(), tiny.classifier()
    for layer in followers(other):
        layer.running_mean.fill_(5.0)
        layer.running_var.fill_(7.0)
    for student in (one, other):
        reestimate(student, batches())
    assert len(same(state(one), state(other))) == len(state(one))


def test_while_images_are_made_the_student_is_as_it_was():
    student = tiny.classifier()
    before, modes, momenta = state(student), [m.training for m in student.modules()], []

    def making():
        for x in batches():
            assert len(same(state(student), before)) == len(before)
            assert [m.training for m in student.modules()] == modes
            assert torch.is_grad_enabled()
            momenta.append([layer.momentum for layer in followers(student)])
            yield x

    reestimate(student, making())
    assert momenta == [[0.1] * len(followers(student))] * 3
    check(student, by_hand(student, batches()), 3)


def test_an_error_leaves_the_student_as_it_was():
    student = tiny.classifier()
    before, calls = state(student), []

    def fails(*_):
        calls.append(0)
        if len(calls) == 2:
            raise ZeroDivisionError

    student.net[-1].register_forward_hook(fails)
    with pytest.raises(ZeroDivisionError):
        reestimate(student, batches())
    assert len(same(state(student), before)) == len(before)
    assert not any(m.training for m in student.modules())
    assert {layer.momentum for layer in followers(student)} == {0.1}


class Own(nn.BatchNorm2d):
    """Its statistics follow by a rule of its own."""

    def forward(self, x):
        if self.training:
            self.running_mean.mul_(2)
        return super().forward(x)


class Kept(nn.Sequential):
    """Keeps its layers in eval mode."""

    def train(self, mode=True):
        super().train(mode)
        for layer in self.children():
            layer.training = False
        return self


def test_layers_that_do_not_follow_mini_batches_are_left_alone(capsys):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.plain, self.cumulative = nn.BatchNorm2d(1), nn.BatchNorm2d(1, momentum=None)
            self.untracked = nn.BatchNorm2d(1, track_running_stats=False)
            self.off, self.still = nn.BatchNorm2d(1), nn.BatchNorm2d(1, momentum=0.0)
            self.off.track_running_stats = False
            self.own, self.kept, self.unused = Own(1), Kept(nn.BatchNorm2d(1)), nn.BatchNorm2d(1)

        def forward(self, x):
            for layer in (self.plain, self.cumulative, self.untracked, self.off, self.still, self.own, self.kept):
                x = layer(x)
            return x

    net = Net().eval()
    for value in net.buffers():
        value.add_(1)
    before = state(net)
    reestimate(net, batches())
    changed = set(before) - set(same(state(net), before))
    assert {name.partition(".")[0] for name in changed} == {"plain", "cumulative"}
    assert net.cumulative.momentum is None and net.plain.momentum == 0.1 and net.still.momentum == 0.0
    alone = nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False))
    reestimate(alone, iter(lambda: 1 / 0, None))  # no image is asked for
    assert "has no BatchNorm layer" in capsys.readouterr().err


def test_a_layer_that_is_called_twice_counts_both_times():
    norm, given = nn.BatchNorm2d(1), batches()
    net = nn.Sequential(norm, nn.ReLU(), norm)
    expected = by_hand(net, given)["0"]
    reestimate(net, given)
    torch.testing.assert_close(norm.running_mean.double(), expected[0], rtol=1e-4, atol=1e-5)
    assert int(norm.num_batches_tracked) == 6


def test_nothing_is_dropped():
    norm, given = nn.BatchNorm2d(1), batches()
    net = nn.Sequential(nn.Dropout(0.5), norm).train()
    reestimate(net, given)
    torch.testing.assert_close(norm.running_mean, torch.cat(given).mean().view(1))
    assert net[0].training


# --- in training -----------------------------------------------------------------------------------------------------


def once(made):
    """The mini-batches of the pass, by hand."""
    order = torch.randperm(len(made.images), generator=generator("re-estimation", 0))
    return [made.images[order[10 * i : 10 * i + 10]] for i in range(made.batches)]


@pytest.mark.parametrize(
    "changes", [{}, {"average": 0.9}, {"awp": 0.01, "noise": 0.1}, {"loss": "gradient-penalty"}], ids=str
)
def test_clean_statistics_are_those_of_the_set(changes):
    given = {"lr": 0.05} | changes
    made, plain = (make(quick(reestimate=kind, **given), n=65) for kind in ("clean", "none"))
    for student in (made, plain):
        student.fit()
    assert made.history == plain.history
    assert [len(x) for x in once(made)] == [10] * 5  # of 55 images
    check(made.student, by_hand(plain.student, once(made)), 5)
    kept = same(state(made.student), state(plain.student))
    assert set(kept) == {name for name in state(plain.student) if "running" not in name and "tracked" not in name}
    assert not any(m.training for m in made.student.modules())


@pytest.mark.parametrize("changes", [{}, {"average": 0.9}, {"awp": 0.01}], ids=str)
def test_both_sees_perturbed_images_of_the_final_student(monkeypatch, changes):
    """Crafted with the statistics of training, whatever was re-estimated, by the last epoch's inner maximisation."""
    options = quick(reestimate="both", lr=0.05, eps_warmup=1.0, **changes)
    made, watched, plain = make(options), make(options), make(quick(lr=0.05, eps_warmup=1.0, **changes))
    plain.fit()
    made.fit()
    seen = []
    monkeypatch.setattr(trainer, "reestimate", lambda student, given: seen.extend(given))
    watched.fit()
    clean, adversarial = seen[::2], seen[1::2]
    assert len(clean) == len(adversarial) == 5
    network = copy.deepcopy(plain.student).eval().requires_grad_(False)
    attack = (OBJECTIVES["kl"], "normal", Threat("linf", 8 / 255), 2, 2 / 255)
    for index, (x, expected, moved) in enumerate(zip(clean, once(made), adversarial, strict=True)):
        assert torch.equal(x, expected)
        found = pgd_ascent(network, x, torch.zeros(10).long(), *attack, generator("re-estimation", 0, index))
        assert float(((moved - found).abs() < 1e-5).float().mean()) > 0.98
        assert float((moved - x).abs().max()) > 3 / 255
    check(made.student, by_hand(plain.student, seen), 10)


@pytest.mark.parametrize("kind", ["clean", "both"])
@pytest.mark.parametrize("stop", ["epoch", "end"])
def test_a_stopped_run_goes_on_to_the_same_bytes(files, tmp_path, monkeypatch, kind, stop):
    changes = {"average": 0.8, "eps_warmup": 1.0, "mix": "cutmix", "schedule": "cosine"}
    options, state = quick(reestimate=kind, lr=0.01, **changes), tmp_path / "state"
    run(*files, tmp_path / "whole.safetensors", options)
    out, genuine = tmp_path / "resumed.safetensors", Trainer.epoch

    def interrupt(self, number, bar=None):
        if number == 1:
            raise KeyboardInterrupt
        return genuine(self, number, bar)

    def interrupt_the_pass(student, given):
        next(iter(given))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if stop == "epoch":
            patch.setattr(Trainer, "epoch", interrupt)
        else:
            patch.setattr(trainer, "reestimate", interrupt_the_pass)
        run(*files, out, options, state=state)
    assert not out.exists() and list(state.rglob("epoch.pt"))
    with monkeypatch.context() as patch:
        epochs = []
        patch.setattr(
            Trainer, "epoch", lambda self, number, bar=None: epochs.append(number) or genuine(self, number, bar)
        )
        run(*files, out, options, state=state)
    assert epochs == ([1] if stop == "epoch" else [])
    assert out.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_what_a_network_draws_depends_on_the_options_alone(monkeypatch):
    monkeypatch.setattr(drawing, "EVAL_NOISE", [0.3])
    teacher, students = Classifier(drawing.build((1, 8, 8), 10), (0.3,), (0.38,)).eval(), []
    for seed in (1, 2):
        seed_globals(0)
        made = make(quick(reestimate="both", epochs=1), teacher=teacher)
        seed_globals(seed)  # the state in which another run, or one that goes on, comes to the pass
        made.fit()
        students.append(state(made.student))
    assert len(same(*students)) == len(students[0])


def test_a_student_that_diverged_is_left_as_it_is():
    made = make(quick(lr=1e20, aggregate=1, reestimate="clean"))
    made.fit()
    assert made.diverged
    assert len(same(state(made.student), state(tiny.classifier()))) == len(state(made.student))


def test_none_changes_nothing(files, tmp_path):
    assert "reestimate" not in QUICK.described()  # students of before the option stay as they are
    assert quick(reestimate="none").described() == QUICK.described()
    assert quick(reestimate="clean").described() == QUICK.described() | {"reestimate": "clean"}
    for name, options in (("plain", QUICK), ("none", quick(reestimate="none")), ("clean", quick(reestimate="clean"))):
        run(*files, tmp_path / name, options)
    plain, none, clean = ((tmp_path / name).read_bytes() for name in ("plain", "none", "clean"))
    assert plain == none != clean


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"reestimate": "mean"}, "reestimate"),
        (
            {"reestimate": "clean", "batchnorm": "eval"},
            "reestimate clean: batchnorm eval keeps the teacher's statistics; use batchnorm train or reestimate none",
        ),
        ({"reestimate": "both", "batchnorm": "eval"}, "reestimate both: batchnorm eval keeps"),
        (
            {"reestimate": "both", "loss": "gradient-penalty"},
            "reestimate both: loss gradient-penalty perturbs no images; use reestimate clean",
        ),
    ],
)
def test_options_that_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        TrainOptions.of(**values)


@pytest.mark.parametrize(
    ("loss", "kind", "each"),
    [
        ("dfshield", "clean", 1),
        ("dfshield", "both", 2 + 1 + 2 * 6),
        ("curriculum", "both", 2 + 1 + 2 * 6),  # the last epoch has all steps
        ("fgsm", "both", 2 + 1 + 2),
        ("gradient-penalty", "clean", 1),
    ],
)
def test_the_pass_is_counted(loss, kind, each):
    """Of 31 images 4 are held out, and 20 of the others are whole mini-batches."""
    given = {"loss": loss, "epochs": 3, "batch": 10, "holdout": 4, "attack_steps": 6}
    plain, counted = (arithmetic.training_passes(TrainOptions.of(**given, reestimate=r), 31) for r in ("none", kind))
    assert counted - plain == 20 * each
