"""Sources by a generator: losses and class vectors by hand, training, drawing, the file."""

import math

import pytest
import torch
from support import tiny
from torch import nn
from torch.nn import functional as F

from dfshield.core.errors import InputError
from dfshield.core.rng import generator
from dfshield.models.classifier import Classifier
from dfshield.options import GenerateOptions
from dfshield.sources import qimera
from dfshield.sources import trainset as shards
from dfshield.sources.generator import GeneratorSource, last_layer, run
from dfshield.sources.qimera import Qimera, Superposition, soft_cross_entropy
from dfshield.sources.rdskd import Rdskd, balance_loss, confidence_loss, similarity_loss

QUICK = {"device": "cpu", "images": 50, "batch": 16, "epochs": 3, "iterations": 3, "width": 0.1}
METHODS = {"qimera": Qimera, "rdskd": Rdskd}


def quick(**changes) -> GenerateOptions:
    return GenerateOptions.of(**(QUICK | changes))


def method(name: str, **changes) -> GeneratorSource:
    return METHODS[name](tiny.classifier(), tiny.SHAPE, 10, quick(method=name, **changes))


# --- losses and class vectors by hand --------------------------------------------------------------------------------


def test_soft_cross_entropy_by_hand():
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))
    targets = torch.tensor([[0.6, 0.4, 0.0], [0.0, 0.0, 1.0]])
    expected = -(0.6 * math.log(0.5) + 0.4 * math.log(0.25) + math.log(0.8)) / 2
    assert float(soft_cross_entropy(logits, targets)) == pytest.approx(expected)


def test_what_is_not_given_is_the_methods_own():
    made = GenerateOptions.of(method="rdskd")
    assert (made.batch, made.epochs, made.iterations, made.adam_beta1) == (512, 20, 120, 0.9)
    assert (made.milestones, made.latent, made.lr, made.width) == ((), 1000, 1e-3, 1)
    assert GenerateOptions.of(method="rdskd", batch=7).batch == 7
    qimera = GenerateOptions.of()
    assert (qimera.method, qimera.batch, qimera.epochs, qimera.iterations) == ("qimera", 200, 400, 200)
    with pytest.raises(ValueError, match="mix_classes"):
        GenerateOptions.of(method="rdskd", mix_classes=3)


def test_losses_of_rdskd_by_hand():
    logits = torch.log(torch.tensor([[0.5, 0.5, 1e-9], [0.8, 0.2, 1e-9], [0.1, 0.9, 1e-9], [0.3, 0.7, 1e-9]]))
    assert float(confidence_loss(logits)) == pytest.approx(-sum(map(math.log, (0.5, 0.8, 0.9, 0.7))) / 4, rel=1e-5)
    first, second = (0.5 + 0.8 + 0.1 + 0.3) / 4, (0.5 + 0.2 + 0.9 + 0.7) / 4
    assert float(balance_loss(logits)) == pytest.approx(first * math.log(first) + second * math.log(second), rel=1e-5)
    images = torch.zeros(4, 1, 1, 2)
    images[2, 0, 0, 0], images[3, 0, 0, 1] = 3, 4  # the halves differ by 3 and by 4 in one pixel each
    answers = math.sqrt(2 * (0.4**2 + 0.5**2))
    assert float(similarity_loss(images, logits)) == pytest.approx(answers / 5, rel=1e-5)
    assert math.isfinite(float(similarity_loss(images * 0, logits)))
    never = torch.tensor([[0.0, -2000.0]])  # a class of probability zero
    assert float(balance_loss(never)) == 0


def test_superposition_by_hand():
    table = torch.tensor([[1.0, 2.0, 3.0, 6.0], [4.0, 0.0, 0.0, 0.0]])
    embedding = Superposition(table, 4)
    shares = torch.tensor([[[0.25, 0.0], [0.0, 0.75]], [[0.0, 0.5], [0.0, 0.5]]])
    noise = torch.tensor([[[0.0, 0, 0, 0], [0, 0, 4, 0]], [[0.0, 0, 0, 0], [0, 0, 0, 0]]])
    rows = {}
    for name, row in {"a": [1.0, 2, 3, 6], "b": [4.0, 0, 4, 0], "c": [4.0, 0, 0, 0]}.items():
        mean = sum(row) / 4
        deviation = math.sqrt(sum((v - mean) ** 2 for v in row) / 4)
        rows[name] = [(v - mean) / deviation for v in row]
    found = embedding(noise, shares)
    both = [0.25 * a + 0.75 * b for a, b in zip(rows["a"], rows["b"], strict=True)]
    assert found[0].tolist() == pytest.approx(both, abs=1e-4)
    assert found[1].tolist() == pytest.approx(rows["c"], abs=1e-4)
    assert embedding.table.requires_grad
    reduced = Superposition(table, 2)
    expected = 0.25 * reduced.reducer(torch.tensor(rows["a"])) + 0.75 * reduced.reducer(torch.tensor(rows["b"]))
    assert torch.allclose(reduced(noise, shares)[0], expected, atol=1e-4)


def test_class_vectors_are_the_rows_of_the_teachers_last_layer():
    teacher = tiny.classifier()
    assert last_layer(teacher, tiny.SHAPE) is teacher.net[-1]
    assert torch.equal(method("qimera").generator.embedding.table, teacher.net[-1].weight)
    random = method("qimera", embedding="random").generator.embedding.table
    assert random.shape == (10, 32) and not torch.equal(random, teacher.net[-1].weight)
    free = method("qimera", embedding="random", latent=7)  # of as many numbers as the latent: there is no reducer
    assert free.generator.embedding.table.shape == (10, 7) and isinstance(free.generator.embedding.reducer, nn.Identity)
    assert free.draw(generator("t"))[0].shape[1:] == tiny.SHAPE
    reduced = method("qimera", latent=7).generator.embedding.reducer
    assert isinstance(reduced, nn.Linear) and reduced.out_features == 7


def test_inputs_of_qimera():
    made = method("qimera", mix_probability=0.3, mix_classes=3, batch=50)
    inputs = [made.input(generator("t", i)) for i in range(200)]
    slots = [shares.shape[1] for _, shares in inputs]
    assert set(slots) == {1, 3} and slots.count(3) / 200 == pytest.approx(0.3, abs=0.08)
    for noise, shares in inputs[:20]:
        assert noise.shape == (50, shares.shape[1], 32)
        assert torch.allclose(shares.sum((1, 2)), torch.ones(50), atol=1e-6)
        assert ((shares > 0).sum(2) == 1).all()  # a class in each slot
    pure = next(shares for _, shares in inputs if shares.shape[1] == 1)
    assert torch.allclose(pure.amax((1, 2)), torch.ones(50))


# --- training --------------------------------------------------------------------------------------------------------


def test_loss_of_qimera_is_that_of_its_images():
    made = method("qimera", mix_probability=1.0, feature_weight=0.5)
    made.generator.train()
    found = made.loss(generator("t"), 0).detach()
    noise, shares = made.input(generator("t"))
    inputs = []
    layers = [layer for layer in made.teacher.net if isinstance(layer, nn.BatchNorm2d)]
    handles = [layer.register_forward_pre_hook(lambda _, x: inputs.append(x[0])) for layer in layers]
    logits = made.teacher(made.generator(noise, shares))
    for handle in handles:
        handle.remove()
    distance = sum(
        F.mse_loss(x.mean((0, 2, 3)), layer.running_mean)
        + F.mse_loss(x.var((0, 2, 3), unbiased=False), layer.running_var)
        for x, layer in zip(inputs, layers, strict=True)
    )
    expected = -(shares.sum(1) * logits.log_softmax(1)).sum(1).mean() + 0.5 * distance / 3
    assert float(found) == pytest.approx(float(expected.detach()), rel=1e-4)
    assert all(layer.running_mean is not None and "forward" not in vars(layer) for layer in layers)


def test_loss_of_rdskd_counts_from_the_pass_before():
    made = method("rdskd")
    made.generator.eval()
    values = []
    for index in range(3):
        values.append(float(made.loss(generator("t"), index).detach()))
    images = made._images(generator("t"))
    logits = made.teacher(images)
    sure, even = float(confidence_loss(logits).detach()), float(balance_loss(logits).detach())
    alike = float(similarity_loss((images - made.teacher.mean) / made.teacher.std, logits).detach())
    assert values[0] == values[1] == pytest.approx(math.exp(sure) + math.exp(even) + alike, rel=1e-5)
    assert values[2] == pytest.approx(2 + alike, rel=1e-5)  # the second mini-batch set what the third counts from
    assert made.memory == pytest.approx({"confidence": sure, "balance": even})


@pytest.mark.parametrize(("name", "changes"), [("qimera", {"mix_probability": 0.0}), ("rdskd", {})])
def test_generators_learn(name, changes):
    made = method(name, epochs=2, iterations=30, batch=40, images=200, lr=1e-2, width=0.1, milestones=(), **changes)
    made.teacher.net[-1].weight.mul_(6)  # a teacher with opinions
    weights = {key: value.clone() for key, value in made.teacher.state_dict().items()}

    def judged() -> tuple[float, float]:
        images, labels = made.draw_set()
        logits = made.teacher(torch.from_numpy(images).permute(0, 3, 1, 2))
        agreement = (logits.argmax(1) == torch.from_numpy(labels)).float().mean()
        return float(agreement), float(logits.softmax(1).amax(1).mean())

    before = judged()
    made.fit(None)
    after = judged()
    if name == "qimera":
        assert before[0] < 0.15 and after[0] > 0.2
    else:
        assert after[0] == 1 and after[1] > before[1] + 0.1  # labels are the teacher's answers; they grow sure
        answers = made.teacher(torch.from_numpy(made.draw_set()[0]).permute(0, 3, 1, 2)).softmax(1).mean(0)
        assert (answers > 0.02).sum() >= 3  # of several classes
    assert all(torch.equal(value, weights[key]) for key, value in made.teacher.state_dict().items())


def test_the_learning_rate_falls_at_the_milestones(monkeypatch):
    rates = []
    step = torch.optim.Adam.step
    monkeypatch.setattr(
        torch.optim.Adam, "step", lambda self, *a: (rates.append(self.param_groups[0]["lr"]), step(self, *a))[1]
    )
    method("qimera", epochs=4, iterations=1, milestones=(0.5, 0.75)).fit(None)
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-5])


# --- the file --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_the_labels_of_the_set(tmp_path, name):
    """Three mini-batches and a part: Qimera's classes as drawn, RDSKD's as the teacher sees them."""
    teacher = tiny.teacher(tmp_path / "t.safetensors")
    run(teacher, tmp_path / "set.h5", quick(method=name), name)
    made = shards.read(tmp_path / "set.h5")
    assert made.labels.shape == (50,) and len(set(made.labels.tolist())) > (3 if name == "qimera" else 0)
    if name == "rdskd":
        answers = tiny.classifier()(torch.from_numpy(made.images).permute(0, 3, 1, 2)).argmax(1)
        assert answers.tolist() == made.labels.tolist()


def test_divergence_is_told(tmp_path, monkeypatch):
    teacher = tiny.teacher(tmp_path / "t.safetensors")
    monkeypatch.setattr(qimera, "soft_cross_entropy", lambda logits, targets: logits.sum() * math.nan)
    with pytest.raises(InputError, match="qimera diverged: the loss is nan in epoch 1; use a smaller lr"):
        run(teacher, tmp_path / "out.h5", quick())
    assert not (tmp_path / "out.h5").exists()


def test_a_teacher_without_linear_layer_is_refused():
    network = nn.Sequential(nn.Conv2d(1, 10, 8), nn.BatchNorm2d(10), nn.Flatten())
    with pytest.raises(InputError, match="no Linear layer"):
        Qimera(Classifier(network, (0.5,), (0.5,)), tiny.SHAPE, 10, quick())
