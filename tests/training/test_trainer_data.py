"""What a trainer takes from its training set and teacher: held-out images, labels, order, learning rates."""

import math

import pytest
import torch
from support import tiny
from support.training import QUICK, data, make, quick

from dfshield.core.errors import InputError
from dfshield.core.rng import generator
from dfshield.training.trainer import Trainer


@pytest.mark.parametrize("loss", ["uat", "rst", "trades"])
def test_labels_of_the_data_or_of_the_teacher(loss):
    made = make(quick(loss=loss, holdout=0, threat="linf:0"))
    teacher = made.targets.argmax(1)
    assert float((teacher == torch.arange(60) % 10).float().mean()) < 0.5
    given = data().labels[[int(i) for i in _order(made)]]
    assert made.labels.tolist() == (given.tolist() if loss == "trades" else teacher.tolist())
    seen = []
    made.loss = lambda out, options: seen.append(out.labels) or out.clean.sum()
    made.gradients(torch.arange(10), generator("a"))
    assert torch.equal(seen[0], made.labels[:10])


def _order(made: Trainer) -> torch.Tensor:
    """Rows of `data()` in the trainer's order."""
    flat = torch.from_numpy(data().images).permute(0, 3, 1, 2).flatten(1)
    return torch.cdist(made.images.flatten(1), flat).argmin(1)


def test_optimiser_settings():
    settings = make(quick(momentum=0.8, nesterov=True, weight_decay=0.3)).optimiser.param_groups[0]
    assert (settings["momentum"], settings["nesterov"], settings["weight_decay"]) == (0.8, True, 0.3)


def test_held_out_images_are_never_trained_on():
    made = make(quick(holdout=20))
    seen = set()
    genuine = made.gradients
    made.gradients = lambda rows, random: (
        seen.update(made.images[rows].flatten(1).sum(1).tolist()) or genuine(rows, random)
    )
    for epoch in range(3):
        made.epoch(epoch)
    held = set(made.held[0].flatten(1).sum(1).tolist())
    assert len(held) == 20
    assert len(seen) == 40
    assert not held & seen


def test_a_share_of_the_data_is_what_a_smaller_synthesis_made():
    half, small = make(quick(data_share=0.5), n=60), make(QUICK, n=30)
    for one, other in ((half.images, small.images), (half.labels, small.labels), (half.held[0], small.held[0])):
        assert torch.equal(one, other)
    assert len(make(quick(data_share=0.5001, holdout=0)).images) == 30
    with pytest.raises(InputError, match="holdout 10 leaves 2 of 12 images"):
        make(quick(data_share=0.2))


def test_every_epoch_sees_every_image_in_another_order():
    made = make(quick(holdout=0))
    orders = []
    genuine = made.gradients
    made.gradients = lambda rows, random: orders.extend(rows.tolist()) or genuine(rows, random)
    made.epoch(0)
    made.epoch(1)
    first, second = orders[:60], orders[60:]
    assert sorted(first) == sorted(second) == list(range(60))
    assert first != second


def test_the_teacher_is_asked_once_and_stays_as_it_is():
    teacher = tiny.classifier()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    images = []
    teacher.register_forward_pre_hook(  # the student, a copy, has this hook too
        lambda module, inputs: images.append(len(inputs[0])) if module is teacher else None
    )
    made = Trainer(teacher, data(), quick(epochs=3))
    made.fit(None)
    assert sum(images) == 60
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    expected = tiny.classifier()(made.images)
    torch.testing.assert_close(made.targets, expected.detach(), rtol=1e-4, atol=1e-4)


def test_the_student_starts_as_the_teacher():
    teacher = tiny.classifier()
    made = Trainer(teacher, data(), QUICK)
    assert all(torch.equal(v, teacher.state_dict()[k]) for k, v in made.student.state_dict().items())
    assert all(a.data_ptr() != b.data_ptr() for a, b in zip(made.parameters, teacher.parameters(), strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"aggregate": 6}, r"aggregate \(B = 6\).*50 images \(5 mini-batches\).*use aggregate <= 5, batch <= 8"),
        ({"aggregate": 1, "batch": 51}, "holdout 10 leaves 50 of 60 images.*smaller holdout or batch"),
        ({"aggregate": 1, "holdout": 60}, "holdout 60 leaves 0 of 60 images"),
    ],
)
def test_an_epoch_without_an_update_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        make(quick(**changes))


def test_b_of_a_whole_epoch_is_allowed():
    made = make(quick(aggregate=5))
    made.epoch(0)
    assert made.updates == 1


def test_b_multiplies_the_learning_rate_only_when_asked():
    assert make(quick(aggregate=5, lr=0.01)).base_lr == pytest.approx(0.01)
    assert make(quick(aggregate=5, lr=0.01, lr_factor="B")).base_lr == pytest.approx(0.05)


def test_schedules():
    rates = {}
    for schedule in ("constant", "cosine"):
        made = make(quick(epochs=4, schedule=schedule, lr=0.1))
        rates[schedule] = [made._set_rate(epoch) or made.optimiser.param_groups[0]["lr"] for epoch in range(4)]
    assert rates["constant"] == [0.1] * 4
    assert rates["cosine"] == pytest.approx([0.05 * (1 + math.cos(math.pi * epoch / 4)) for epoch in range(4)])


def test_learning_rate_grows_over_the_first_epochs():
    made = make(quick(epochs=4, lr_warmup=0.5, lr=0.1))
    rates = [made._set_rate(epoch) or made.optimiser.param_groups[0]["lr"] for epoch in range(4)]
    assert rates == pytest.approx([0.05, 0.1, 0.1, 0.1])
    made = make(quick(epochs=4, lr_warmup=1, lr=0.1, schedule="cosine"))
    rates = [made._set_rate(epoch) or made.optimiser.param_groups[0]["lr"] for epoch in range(4)]
    cosine = [0.05 * (1 + math.cos(math.pi * epoch / 4)) for epoch in range(4)]
    assert rates == pytest.approx([cosine[epoch] * (epoch + 1) / 4 for epoch in range(4)])


def test_agreement_is_with_the_teachers_class_on_held_out_images():
    made = make(quick(holdout=20))
    made.held = (made.held[0], (made.held[1] + 1) % 10)
    assert made.holdout_agreement(0)[0] == 0.0
    made.held = (made.held[0], (made.held[1] - 1) % 10)
    assert made.holdout_agreement(0)[0] == 100.0
    clean, robust = make(quick(holdout=20, threat="linf:1", attack_steps=10)).holdout_agreement(0)
    assert robust < clean
