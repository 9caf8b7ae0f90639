"""The counts of the cost model against the operations that PyTorch executes in the loops themselves."""

import pytest
import torch
from support import tiny
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from dfshield import registry
from dfshield.baselines.cotrain import Cotrainer
from dfshield.core.rng import generator
from dfshield.models import folding
from dfshield.models.checkpoints import Card
from dfshield.models.folding import fold
from dfshield.options import CotrainOptions, TrainOptions
from dfshield.planning import arithmetic as cost
from dfshield.registry.losses import ROBUST_ONLY
from dfshield.sources.trainset import TrainSet
from dfshield.training.inner import InnerAttack, Task
from dfshield.training.trainer import Trainer

FLOPS = 2 * 78_656  # of CNN-S: 3x3 convolutions of 1, 8 and 8 channels on 8x8 pixels, and the linear layer
FIRST = 2 * 9 * 8 * 64  # of its first layer, whose gradient of the pixels is not taken in an update of the weights
ROUNDING = 1e-3
"""The last layer of a product with the Hessian (VAT) takes less than the others."""
CARD = Card("teacher", "digits", "cnn-s", tiny.SHAPE, tiny.CLASSES, (0.3,), (0.38,), "teacher")
IMAGES = torch.from_numpy(tiny.images(20)).permute(0, 3, 1, 2)


@pytest.fixture(autouse=True)
def without_comparisons(monkeypatch):
    """A copy is compared with its model a few times in a run, which the cost model leaves out."""
    monkeypatch.setattr(folding, "stands_for", lambda *_: True)


class Operations(TorchDispatchMode):
    """Counts in `total` what runs inside; PyTorch's own counter cannot be there while gradients of a part are taken."""

    total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        count = flop_registry.get(function._overloadpacket)
        self.total += count(*args, **(kwargs or {}), out_val=result) if count else 0
        return result


def training(**changes) -> TrainOptions:
    given = {"epochs": 4, "batch": 10, "aggregate": 2, "attack_steps": 3, "holdout": 7, "device": "cpu"} | changes
    threat = "l2:0.5" if registry.LOSSES[given.get("loss", "dfshield")].search == "power" else "linf:0.1"
    return TrainOptions.of(threat=threat, **given)


@pytest.mark.parametrize(
    ("loss", "changes"),
    [*((loss, {}) for loss in registry.LOSSES), ("std", {"inner": "none"}), ("mma", {"inner": "none"})],
)
def test_inner_maximisation(loss, changes):
    options, labels = training(loss=loss, **changes), torch.arange(20) % tiny.CLASSES
    student, targets = fold(tiny.classifier(seed=1, scale=3.0)), tiny.classifier()(IMAGES).detach()
    if not registry.LOSSES[loss].crafts:
        assert cost.inner_passes(options, 0) == 0
        return
    for epoch in range(options.epochs):
        with Operations() as counter:
            InnerAttack.of(options, epoch).solve(Task(student, IMAGES, labels, targets, generator("x")))
        assert counter.total == pytest.approx(cost.inner_passes(options, epoch) * 20 * FLOPS, rel=ROUNDING)


@pytest.mark.parametrize(
    ("loss", "changes"),
    [
        *((loss, {}) for loss in registry.LOSSES),
        ("dfshield", {"holdout": 0}),
        ("dfshield", {"awp": 0.01, "awp_warmup": 1}),
        ("std", {"awp": 0.01}),
        ("dfshield", {"noise": 0.1}),
    ],
)
def test_training(loss, changes):
    options = training(loss=loss, **changes)
    trainset = TrainSet(tiny.images(52), torch.arange(52).numpy() % tiny.CLASSES, {})
    teacher = tiny.classifier()
    with Operations() as counter:
        made = Trainer(teacher, trainset, options)
        made.fit(None)
    trained = (
        made.batches * options.batch * (options.epochs + (options.epochs - options.awp_warmup) * bool(options.awp))
    )
    versions = 1 if not made.entry.crafts or made.entry.passes == ROBUST_ONLY else 2
    found = counter.total + versions * trained * FIRST
    assert found == pytest.approx(cost.training_passes(options, 52) * FLOPS, rel=ROUNDING)


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        *((method, {}) for method in registry.BASELINES),
        ("dfme", {"gradient": "exact"}),
        ("dfme", {"directions": 3, "student_steps": 1}),
        ("dast", {"student_steps": 2, "generator_epochs": 1}),
    ],
)
def test_cotraining(method, changes, monkeypatch):
    small = {"epochs": 3, "iterations": 2, "batch": 20, "attack_steps": 2, "generator_width": 0.05, "device": "cpu"}
    options = CotrainOptions.of(method=method, threat="linf:0.1", **({"generator_epochs": 0} | small | changes))
    made = Cotrainer(tiny.classifier(scale=3.0), CARD, options)
    drawn = []

    def raw(self, z, labels):
        """Images that depend on every weight, without operations that are counted."""
        drawn.append(len(z) * (cost.UPDATE if torch.is_grad_enabled() else 1))
        noise = torch.randn((len(z), *tiny.SHAPE), generator=generator("raw", len(drawn)))
        return noise + 0 * sum(value.sum() for value in self.parameters())

    monkeypatch.setattr(type(made.method.generator), "raw", raw)
    with Operations() as counter:
        made.fit(None)
    assert not made.diverged
    classifiers, generated = cost.cotraining_passes(options)
    versions = registry.BASELINES[method].student_inputs * options.batch * made.updates
    assert counter.total + versions * FIRST == classifiers * FLOPS
    assert sum(drawn) == generated
