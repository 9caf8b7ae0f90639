"""IntraQ's synthesis: every term against numbers by hand, the crops against torch's own scaling, groups and shards."""

import math

import numpy as np
import pytest
import torch
from support import tiny
from test_objective import two_norms
from torch import nn

from dfshield.core.errors import InputError
from dfshield.core.rng import generator
from dfshield.models.classifier import Classifier
from dfshield.options.sources import Intraq
from dfshield.sources import intraq
from dfshield.sources import trainset as shards
from dfshield.sources.intraq import ClassMeans, IntraQ, crop_and_flip, label_loss, margin_loss, resampling, soft_targets
from dfshield.sources.inversion import run
from dfshield.sources.objective import BatchStatistics, statistics_loss

QUICK = Intraq(device="cpu", images=60, batch=10, group=2, iterations=3, lr=0.5, labels="random")


def quick(**changes) -> Intraq:
    return Intraq(**(QUICK.model_dump() | changes))


def test_label_loss_by_hand():
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]))
    expected = ((0.25 - 1) ** 2 + (0.8 - 0.95) ** 2) / 2
    assert float(label_loss(logits, torch.tensor([2, 1]), torch.tensor([1, 0.95]))) == pytest.approx(expected)


def test_margin_loss_by_hand():
    """Cosine distances 0, 1 - 1/√2, 1 and 2; the last image's class has no mean yet."""
    features = torch.tensor([[2.0, 0.0], [3.0, 3.0], [0.0, 1.0], [-1.0, 0.0]])
    means = torch.tensor([[1.0, 0.0]]).expand(4, -1)
    three, four = torch.tensor([True, True, True, False]), torch.ones(4, dtype=torch.bool)
    assert float(margin_loss(features, means, three, 0.05, 0.8)) == pytest.approx((0.05 + 0 + 0.2) / 3)
    assert float(margin_loss(features, means, four, 0.05, 0.8)) == pytest.approx((0.05 + 0 + 0.2 + 1.2) / 4)
    near = 0.05 + (0.3 - (1 - 1 / math.sqrt(2)))
    assert float(margin_loss(features, means, three, 0.3, 2.0)) == pytest.approx((0.25 + near) / 3)
    assert float(margin_loss(features, means, ~four, 0.05, 0.8)) == 0
    assert float(margin_loss(features, None, four, 0.05, 0.8)) == 0


def test_statistics_loss_by_hand():
    net = two_norms()
    x = torch.tensor([[[[1.0, 3.0]], [[2.0, 2.0]]], [[[5.0, 7.0]], [[8.0, -4.0]]]])
    statistics = BatchStatistics(net)
    for _ in range(2):  # nothing of the first pass is left
        net(x)
        means, variances = statistics_loss(statistics)
        # as in the test of Eq 4: the input of the first layer has means 4 and 2, biased variances 5 and 18
        assert float(means) == pytest.approx(((4 - 1) ** 2 / 2 + (1.5 - 0.5) ** 2 / 2) / 2)
        assert float(variances) == pytest.approx((((5 - 4) ** 2 + (18 - 9) ** 2) / 2 + (5 / 4 - 1) ** 2 / 2) / 2)


def test_class_means_by_hand():
    memory = ClassMeans(3)
    means, known = memory.of(torch.tensor([0, 2]))
    assert means is None and not known.any()
    memory.add(torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), torch.tensor([0, 1, 0]))
    memory.add(torch.tensor([[9.0, 1.0]]), torch.tensor([0]))
    means, known = memory.of(torch.tensor([1, 0, 2, 0]))
    assert known.tolist() == [True, True, False, True]
    assert means[[0, 1, 3]].tolist() == [[3, 4], [5, 3], [5, 3]]


def test_targets_are_one_or_drawn():
    drawn = soft_targets(4000, 0.9, generator("t"))
    soft = drawn[drawn < 1]
    assert len(soft) / 4000 == pytest.approx(0.5, abs=0.03)
    assert soft.min() >= 0.9 and float(soft.mean()) == pytest.approx(0.95, abs=0.003)


@pytest.mark.parametrize(("start", "size"), [((2, 1), (5, 4)), ((0, 0), (9, 7)), ((3, 2), (1, 2)), ((8, 6), (1, 1))])
def test_resampling_is_bilinear_scaling_of_the_crop(start, size):
    x = torch.rand(2, 3, 9, 7)
    rows, columns = (
        resampling(torch.full((2,), float(s)), torch.full((2,), float(n)), length)[:, None]
        for s, n, length in zip(start, size, (9, 7), strict=True)
    )
    crop = x[:, :, start[0] : start[0] + size[0], start[1] : start[1] + size[1]]
    expected = nn.functional.interpolate(crop, (9, 7), mode="bilinear")
    assert torch.allclose(rows @ x @ columns.transpose(2, 3), expected, atol=1e-5)


def test_crops_lie_within_the_image_and_keep_their_share():
    """Of images whose pixels are their own coordinates, the corners of the crop can be read off."""
    n, length = 3000, 32
    down, across = torch.meshgrid(torch.arange(float(length)), torch.arange(float(length)), indexing="ij")
    made = crop_and_flip(torch.stack([down, across]).expand(n, -1, -1, -1), 0.5, generator("t"))
    height, width = made[:, 0, -1, 0] - made[:, 0, 0, 0] + 1, made[:, 1, 0, -1] - made[:, 1, 0, 0]
    mirrored = width < 0
    width = width.abs() + 1
    assert float(mirrored.float().mean()) == pytest.approx(0.5, abs=0.04)
    assert made.min() >= 0 and made.max() <= length - 1
    whole = torch.isclose(height.round(), height, atol=1e-3) & torch.isclose(width.round(), width, atol=1e-3)
    assert whole.all()
    share = height * width / length**2
    assert share.min() > 0.46 and share.max() == 1  # whole pixels and the border allow a little less than half
    assert float(share.mean()) == pytest.approx(0.74, abs=0.02)
    ratio = width / height
    assert ratio.min() > 0.7 and ratio.max() < 1.43 and float(ratio.log().mean()) == pytest.approx(0, abs=0.02)
    assert len({*height.round().tolist()}) > 10 and made[:, 0, 0, 0].max() > 5


def test_a_group_is_made_batch_by_batch(monkeypatch):
    """The second batch is held away from the first one's features; the first has nothing to be held away from."""
    seen = []
    monkeypatch.setattr(intraq, "margin_loss", lambda features, means, known, *limits: seen.append((means, known)) or
                        margin_loss(features, means, known, *limits))  # fmt: skip
    options = quick(images=20)
    model = tiny.classifier()
    made = IntraQ(model, tiny.SHAPE, 10, options).group(0)
    images, labels = torch.from_numpy(made["images"]).permute(0, 3, 1, 2), torch.from_numpy(made["labels"])
    assert images.shape == (20, 1, 8, 8) and images.min() >= 0 and images.max() <= 1
    assert made["batch"].tolist() == [0] * 10 + [1] * 10
    assert len(seen) == 2 * (options.iterations + 1)
    assert all(means is None for means, _ in seen[:4])
    with torch.no_grad():
        features = model.net[:-1]((images[:10] - model.mean) / model.std)
    for means, known in seen[4:]:
        for row, (label, has) in enumerate(zip(labels[10:].tolist(), known.tolist(), strict=True)):
            own = features[labels[:10] == label]
            assert has == bool(len(own))
            assert not has or torch.allclose(means[row], own.mean(0), atol=1e-5)


def test_groups_of_one_batch_are_spoken_of(capsys):
    for group, images in ((1, 40), (2, 40), (1, 20)):
        IntraQ(tiny.classifier(), tiny.SHAPE, 10, quick(group=group, images=images, batch=20))
        assert ("no image has earlier ones" in capsys.readouterr().err) == ((group, images) == (1, 40))


def test_recorded_terms_are_those_of_the_stored_images():
    options = quick(images=10, group=1, storage="uint8")
    model = tiny.classifier()
    made = IntraQ(model, tiny.SHAPE, 10, options).group(0)
    z = (torch.from_numpy(made["images"]).permute(0, 3, 1, 2) / 255 - model.mean) / model.std
    inputs = []
    layers = [layer for layer in model.net if isinstance(layer, nn.BatchNorm2d)]
    handles = [layer.register_forward_pre_hook(lambda _, x: inputs.append(x[0])) for layer in layers]
    with torch.no_grad():
        probability = model.net(z).softmax(1)[range(10), made["labels"]]
    for handle in handles:
        handle.remove()
    pairs = list(zip(inputs, layers, strict=True))
    means = [((x.mean((0, 2, 3)) - layer.running_mean) ** 2).mean() for x, layer in pairs]
    variances = [((x.var((0, 2, 3), unbiased=False) - layer.running_var) ** 2).mean() for x, layer in pairs]
    assert made["final_loss_mean"] == pytest.approx([float(sum(means)) / 3], rel=1e-4)
    assert made["final_loss_variance"] == pytest.approx([float(sum(variances)) / 3], rel=1e-4)
    random = generator("synthesis", 0, 0)
    torch.randint(10, (10,), generator=random)
    targets = soft_targets(10, 0.95, random)
    assert made["final_loss_label"] == pytest.approx([float(((probability - targets) ** 2).mean())], rel=1e-4)
    assert made["final_loss_margin"] == [0] and made["coefficients_margin"] == [1]


def test_images_come_to_what_is_asked_for():
    """From noise to what the teacher takes for the labels."""
    model = tiny.classifier(scale=8.0)
    short, long = (
        IntraQ(model, tiny.SHAPE, 10, quick(images=40, batch=20, iterations=n, clamp="step")).group(0) for n in (1, 60)
    )
    for group in (short, long):
        group["sum"] = sum(group[f"final_loss_{term}"] for term in IntraQ.terms)
    assert (long["sum"] < 0.7 * short["sum"]).all()
    for group, least, most in ((short, 0, 0.3), (long, 0.5, 1)):
        logits = model(torch.from_numpy(group["images"]).permute(0, 3, 1, 2))
        assert least <= (logits.argmax(1).numpy() == group["labels"]).mean() <= most


def test_the_learning_rate_falls_where_nothing_is_gained(monkeypatch):
    rates = []
    step = torch.optim.Adam.step

    def watched(self, *arguments):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.Adam, "step", watched)
    monkeypatch.setattr(intraq, "label_loss", lambda logits, labels, targets: logits.sum() * 0 + 1e6)  # a flat sum
    IntraQ(tiny.classifier(), tiny.SHAPE, 10, quick(images=10, group=1, iterations=25, patience=4)).group(0)
    assert sorted(set(rates), reverse=True) == pytest.approx([0.5, 0.05, 0.005, 5e-4, 1e-4])


def test_any_number_of_shards_gives_the_same_set_and_a_stopped_one_goes_on(tmp_path, monkeypatch):
    teacher = tiny.teacher(tmp_path / "t.safetensors")
    done, group = [], IntraQ.group

    def stopping(self, index, bar=None):
        if len(done) == 2:
            done.append("stopped")
            raise KeyboardInterrupt
        done.append(index)
        return group(self, index, bar)

    monkeypatch.setattr(IntraQ, "group", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(teacher, tmp_path / "1-0.h5", QUICK, source="intraq", state=tmp_path / "state")
    for count in (1, 3):
        parts = [tmp_path / f"{count}-{i}.h5" for i in range(count)]
        for i, part in enumerate(parts):
            run(teacher, part, QUICK, i, count, "intraq", state=tmp_path / "state")
        shards.merge(parts, tmp_path / f"{count}.h5")
    assert done == [0, 1, "stopped", 2, 0, 1, 2]
    assert shards.verify(tmp_path / "1.h5") == shards.verify(tmp_path / "3.h5")
    made = shards.read(tmp_path / "1.h5")
    assert (made.attributes["real_data"], made.attributes["source"], made.attributes["groups"]) == ("none", "intraq", 3)
    assert made.attributes["options"]["objective"] == "intraq"
    with shards.opened(tmp_path / "1.h5") as file:
        assert set(file["final_loss"]) == set(IntraQ.terms)
        assert (file["coefficients/label"][()] == np.ones(6)).all()


def test_a_network_without_linear_layer_is_refused():
    network = nn.Sequential(nn.Conv2d(1, 10, 8), nn.BatchNorm2d(10), nn.Flatten())
    maker = IntraQ(Classifier(network, (0.5,), (0.5,)), tiny.SHAPE, 10, QUICK)
    with pytest.raises(InputError, match="no Linear layer"):
        maker.group(0)
