"""FastDFKD as a source: the loss and both meta updates by hand, the pool, renewal, resuming, options."""

import copy
import math

import pytest
import torch
from pydantic import ValidationError
from support import tiny
from torch import nn
from torch.nn import functional as F

from dfshield.core.errors import InputError
from dfshield.core.rng import generator
from dfshield.models.checkpoints import load_checkpoint
from dfshield.options import GenerateOptions
from dfshield.planning import arithmetic
from dfshield.sources import fast as module
from dfshield.sources.fast import Fast, average, recorded, statistics_distance
from dfshield.sources.generator import run
from dfshield.sources.objective import BatchStatistics
from dfshield.sources.views import translate

QUICK = {"device": "cpu", "images": 25, "batch": 10, "iterations": 2, "width": 0.1, "latent": 6, "warmup": 1}


def options_of(**changes) -> GenerateOptions:
    return GenerateOptions.of(method="fast", **(QUICK | changes))


def source(scale: float = 1.0, **changes) -> Fast:
    return Fast(tiny.classifier(scale=scale), tiny.SHAPE, 10, options_of(**changes))


def weights(made: Fast) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in made.generator.parameters()]


# --- the loss --------------------------------------------------------------------------------------------------------


def test_statistics_by_hand():
    net = nn.Sequential(nn.BatchNorm2d(1), nn.BatchNorm2d(1)).eval()
    net[0].running_mean.fill_(1.0)
    net[0].running_var.fill_(4.0)
    net[1].running_mean.fill_(-0.5)
    x = torch.tensor([2.0, 6.0]).view(2, 1, 1, 1)  # mean 4 and variance 4, then (x - 1) / 2: 1.5 and 1
    watching = BatchStatistics(net)
    net(x)
    own, running = recorded(watching)
    assert [float(value) for value in own] == pytest.approx([4, 4, 1.5, 1], rel=1e-4)
    assert [float(value) for value in running] == [1, 4, -0.5, 1]
    assert not watching.seen
    assert float(statistics_distance(own, running)) == pytest.approx(3 + 0 + 2 + 0, abs=1e-3)
    first = average(own, [], 0.9)
    assert [float(value) for value in first] == pytest.approx([4, 4, 1.5, 1], rel=1e-4)
    later = average(own, [torch.tensor([value]) for value in (2.0, 5.0, 0.5, 3.0)], 0.9)
    assert [float(value) for value in later] == pytest.approx([2.2, 4.9, 0.6, 2.8], rel=1e-4)
    # norms over the channels of a layer, not squared
    norm = statistics_distance([torch.tensor([3.0, 4.0]), torch.ones(2)], [torch.zeros(2), torch.zeros(2)])
    assert float(norm) == pytest.approx(5 + math.sqrt(2))


def test_the_weights_of_a_round():
    made = source(feature_weight=2.0, class_weight=0.5, least_factor=0.2)
    drawn = torch.tensor([made.weights(generator("t", index)) for index in range(300)])
    for term, weight in enumerate((2.0, 0.5)):
        assert 0.2 * weight <= drawn[:, term].min() < 0.23 * weight
        assert 0.97 * weight < drawn[:, term].max() <= weight
    assert abs(torch.corrcoef(drawn.T)[0, 1]) < 0.2  # each has its own draw
    assert source(least_factor=1.0).weights(generator("t")) == [10.0, 0.5]


@pytest.mark.parametrize("flip", [False, True])
def test_what_the_teacher_sees(flip):
    made = source(flip=flip)
    images = torch.rand((40, 1, 5, 5), generator=generator("images"))  # too small to be shifted
    seen = made.view(images, generator("t"))
    mirrored = (seen == images.flip(3)).all((1, 2, 3))
    assert ((seen == images).all((1, 2, 3)) | mirrored).all()
    assert 8 < mirrored.sum() < 32 if flip else not mirrored.any()
    large = torch.rand((40, 1, 16, 16), generator=generator("images"))
    shifted = made.view(large, generator("t"))
    places = [(r, c) for r in range(-2, 3) for c in range(-2, 3)]
    padded = F.pad(large, (2, 2, 2, 2))
    found = set()
    for index, image in enumerate(shifted):
        same = {
            (side, *place)
            for side, given in enumerate((padded[index], padded[index].flip(2)))
            for place in places
            if torch.equal(image, given[:, 2 + place[0] : 18 + place[0], 2 + place[1] : 18 + place[1]])
        }
        assert len(same) == 1
        found |= same
    assert {side for side, *_ in found} == ({0, 1} if flip else {0}) and len({place[1:] for place in found}) > 10


# --- one round by hand -----------------------------------------------------------------------------------------------


def plain_statistics(teacher, images):
    """Logits and, layer by layer, means and biased variances, by hooks."""
    inputs = []
    layers = [layer for layer in teacher.net.modules() if isinstance(layer, nn.BatchNorm2d)]
    handles = [layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0])) for layer in layers]
    logits = teacher(images)
    for handle in handles:
        handle.remove()
    own = [value for x in inputs for value in (x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False))]
    running = [value for layer in layers for value in (layer.running_mean, layer.running_var)]
    return logits, own, running


def plain_round(made: Fast, epoch: int, moving: list[torch.Tensor]):
    """A round in plain loops: the clone, the sum of its gradients, all losses and images, labels, the last batch's
    statistics."""
    options, random = made.options, generator("generation", made.options.seed, epoch)
    u = options.least_factor + (1 - options.least_factor) * torch.rand(2, generator=random)
    z = nn.Parameter(torch.randn((options.batch, options.latent), generator=random))
    y = torch.randint(10, (options.batch,), generator=random)
    clone = copy.deepcopy(made.generator)
    both = torch.optim.Adam(clone.parameters(), options.lr, (0.5, 0.999))
    noise = torch.optim.Adam([z], options.latent_lr, (0.5, 0.999))
    sums = [torch.zeros_like(parameter) for parameter in clone.parameters()]
    losses, images = [], []
    for step in range(options.iterations):
        x = clone(z, y)
        logits, own, running = plain_statistics(
            made.teacher, translate(x, generator("generation", options.seed, epoch, step))
        )
        blend = [0.9 * m + 0.1 * o for m, o in zip(moving, own, strict=True)] if moving else own
        distance = sum((b - r).square().sum().sqrt() for b, r in zip(blend, running, strict=True))
        loss = options.feature_weight * u[0] * distance + options.class_weight * u[1] * F.cross_entropy(logits, y)
        losses.append(float(loss.detach()))
        images.append(x.detach())
        both.zero_grad()
        noise.zero_grad()
        loss.backward()
        for total, parameter in zip(sums, clone.parameters(), strict=True):
            total += parameter.grad
        both.step()
        noise.step()
    return clone, sums, losses, images, y, [value.detach() for value in own]


@pytest.mark.parametrize("meta", ["fomaml", "reptile"])
@pytest.mark.parametrize("lr", [3e-3, 0.3])  # with the second the last images are not the best
def test_two_rounds_by_hand(meta, lr):
    made = source(meta=meta, lr=lr, iterations=3, warmup=0, meta_lr=0.02, meta_rate=0.3, images=30)
    before = weights(made)
    clone, sums, losses, images, y, statistics = plain_round(made, 0, [])
    row = made.epoch(0)
    best = losses.index(min(losses))
    assert (best < 2) == (lr == 0.3)
    assert row == {"epoch": 1, "loss": pytest.approx(losses[best], rel=1e-4)}
    assert (made.pool[:10].float() / 255 - images[best]).abs().max() < 0.51 / 255
    assert torch.equal(made.labels[:10], y)
    compared = 0
    for start, after, goal, total in zip(before, weights(made), clone.parameters(), sums, strict=True):
        if meta == "reptile":
            expected = start + 0.3 * (goal.detach() - start)
        else:  # Adam's first step is the gradient by its own size
            expected = start - 0.02 * total / (total.abs() + 1e-8)
        sure = total.abs() > 1e-3  # else an error of rounding decides: no bias before BatchNorm has a gradient
        compared += int(sure.sum())
        assert torch.allclose(after[sure], expected[sure], atol=max(1e-4, 1e-3 * lr)) and not torch.equal(after, start)
    assert compared > 300
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(made.moving, statistics, strict=True))
    earlier = list(made.moving)
    _, _, losses, images, y, statistics = plain_round(made, 1, earlier)
    assert made.epoch(1)["loss"] == pytest.approx(min(losses), rel=1e-4)
    expected = [0.9 * a + 0.1 * b for a, b in zip(earlier, statistics, strict=True)]
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(made.moving, expected, strict=True))
    assert torch.equal(made.labels[10:20], y)


def test_the_learning_rates_fall_at_the_milestones(monkeypatch):
    rates = []
    step = torch.optim.Adam.step
    monkeypatch.setattr(
        torch.optim.Adam, "step", lambda self, *a: (rates.append([g["lr"] for g in self.param_groups]), step(self))[1]
    )
    source(iterations=1, images=20, warmup=0, milestones=(0.5,)).fit()
    assert rates == [[3e-3, 0.01], [0.015], pytest.approx([3e-4, 1e-3]), pytest.approx([1.5e-3])]


# --- rounds ----------------------------------------------------------------------------------------------------------


def test_the_pool_grows_and_is_never_emptied():
    made = source(warmup=2)
    assert made.options.rounds == 5
    kept = []
    for epoch, filled in enumerate((0, 0, 10, 20, 25)):  # warm-up rounds leave nothing; the last is cut
        made.epoch(epoch)
        assert made.filled == filled
        assert torch.equal(made.pool[: len(kept)], kept) if len(kept) else not made.pool[filled:].any()
        kept = made.pool[:filled].clone()
    images, labels = made.draw_set()
    assert images.shape == (25, 8, 8, 1) and labels.shape == (25,)
    assert all(image.std() > 0 for image in images)
    assert (images * 255 == torch.from_numpy(images * 255).round().numpy()).all()
    assert len({image.tobytes() for image in images}) == 25


def test_the_first_layer_is_made_anew_once():
    made = source(meta="reptile", meta_rate=0, images=60, batch=10, warmup=3)  # nothing else changes the generator
    changed = []
    for epoch in range(9):
        before = weights(made)
        made.epoch(epoch)
        changed.append([not torch.equal(a, b) for a, b in zip(before, weights(made), strict=True)])
    assert [any(row) for row in changed] == [False] * 6 + [True] + [False] * 2
    assert changed[6] == [True, True] + [False] * (len(changed[6]) - 2)
    first = made.generator.trunk.layers[0]
    assert isinstance(first, nn.Linear)
    assert first.weight.abs().max() <= 1 / math.sqrt(first.in_features)  # as PyTorch starts it
    fomaml = source()
    fomaml.epoch(0)
    layer, other = fomaml.generator.trunk.layers[0], fomaml.generator.trunk.layers[-1]
    moments = fomaml.adam.state
    assert layer.weight in moments and other.weight in moments
    fomaml.renew()
    assert layer.weight not in moments and layer.bias not in moments and other.weight in moments


@pytest.mark.parametrize("meta", ["fomaml", "reptile"])
@pytest.mark.parametrize("stop", [1, 3, 4])  # in the warm-up, at the renewal, behind it
def test_a_stopped_run_goes_on_to_the_same_bytes(tmp_path, monkeypatch, meta, stop):
    teacher, options = tiny.teacher(tmp_path / "t.safetensors"), options_of(meta=meta, warmup=2)
    assert int(module.RENEWAL * options.rounds) == 3
    run(teacher, tmp_path / "whole.h5", options, "fast")
    genuine, begun = Fast.epoch, []

    stops = {stop}

    def once(self, epoch, bar=None):
        begun.append(epoch)
        if epoch in stops:
            stops.clear()
            raise KeyboardInterrupt
        return genuine(self, epoch, bar)

    monkeypatch.setattr(Fast, "epoch", once)
    with pytest.raises(KeyboardInterrupt):
        run(teacher, tmp_path / "out.h5", options, "fast", state=tmp_path / "state")
    run(teacher, tmp_path / "out.h5", options, "fast", state=tmp_path / "state")
    assert begun == [*range(stop + 1), *range(stop, 5)]
    assert (tmp_path / "out.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_what_is_kept_is_small():
    made = source(warmup=0, images=10, batch=10)
    assert made.state()["pool"].shape == (0, *tiny.SHAPE)
    made.epoch(0)
    assert made.state()["pool"].dtype == torch.uint8 and made.state()["pool"].shape == (10, *tiny.SHAPE)


def test_images_get_the_classes_of_their_labels():
    """Of a teacher with opinions, more often than by chance, with a pool of several classes."""
    faster = {"latent": 64, "latent_lr": 0.1, "class_weight": 10.0, "feature_weight": 1.0}
    made = source(scale=6.0, images=200, batch=50, width=0.25, iterations=5, warmup=12, **faster)
    made.fit()
    images, labels = made.draw_set()
    answers = made.teacher(torch.from_numpy(images).permute(0, 3, 1, 2)).argmax(1)
    assert (answers == torch.from_numpy(labels)).float().mean() > 0.2
    assert len(set(labels.tolist())) == 10
    assert not any("forward" in vars(layer) for layer in made.teacher.net.modules())  # no longer watched


def test_a_latent_of_zero_is_the_teachers_features():
    assert source(latent=0).generator.trunk.layers[0].in_features == 32


def test_divergence_is_told(tmp_path, monkeypatch):
    teacher = tiny.teacher(tmp_path / "t.safetensors")
    monkeypatch.setattr(module, "statistics_distance", lambda own, running: own[0].sum() * math.nan)
    with pytest.raises(InputError, match="fast diverged: the loss is nan in epoch 1; use a smaller lr"):
        run(teacher, tmp_path / "out.h5", options_of())
    made = source()
    made.teacher, _ = load_checkpoint(teacher)
    with pytest.raises(InputError, match="diverged"):
        made.epoch(0)
    assert not any("forward" in vars(layer) for layer in made.teacher.net.modules())


# --- options ---------------------------------------------------------------------------------------------------------


def test_defaults_are_the_publications():
    made = GenerateOptions.of(method="fast")
    assert (made.batch, made.iterations, made.lr, made.latent_lr, made.latent) == (256, 5, 3e-3, 0.01, 256)
    assert (made.meta, made.meta_lr, made.momentum, made.adam_beta1) == ("fomaml", 0.015, 0.9, 0.5)
    assert (made.feature_weight, made.class_weight, made.width, made.milestones) == (10.0, 0.5, 1.0, ())
    assert (made.images, made.warmup, made.rounds) == (60_000, 20, 20 + 235)


@pytest.mark.parametrize(
    ("given", "warmup", "epochs"),
    [
        ({"images": 500, "batch": 50}, 20, 30),
        ({"images": 501, "batch": 50, "warmup": 3}, 3, 14),
        ({"images": 500, "batch": 50, "epochs": 12}, 2, 12),
        ({"images": 500, "batch": 50, "epochs": 10}, 0, 10),
        ({"images": 500, "batch": 50, "epochs": 0, "warmup": 0}, 0, 10),
        ({"images": 500, "batch": 50, "epochs": 15, "warmup": 5}, 5, 15),
    ],
)
def test_rounds_follow_from_the_images(given, warmup, epochs):
    made = GenerateOptions.of(method="fast", **given)
    assert (made.rounds - made.making, made.rounds) == (warmup, epochs)
    assert GenerateOptions.of(**made.model_dump()) == made
    trained = made.batch * made.iterations * epochs
    assert arithmetic.generation_passes(made) == (2 * trained, 3 * trained + made.images)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"images": 500, "batch": 50, "epochs": 9}, r"epochs \(9\) times batch \(50\) is less than images \(500\)"),
        ({"meta": "maml"}, "meta"),
        ({"momentum": 1.0}, "momentum"),
        ({"warmup": -1}, "warmup"),
        ({"latent_lr": 0}, "latent_lr"),
        ({"meta_lr": 0}, "meta_lr"),
        ({"meta_rate": 1.1}, "meta_rate"),
        ({"least_factor": 1.1}, "least_factor"),
        ({"batch": 1}, "batch"),
        ({"mix_classes": 2}, "mix_classes"),
    ],
)
def test_bad_options_are_refused(given, message):
    with pytest.raises(ValidationError, match=message):
        GenerateOptions.of(method="fast", **given)
