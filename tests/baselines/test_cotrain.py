"""Co-training: generator and student learn, the loop, its files, resuming, divergence."""

import copy
import csv
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support import tiny
from support.cotraining import METHODS, SHAPE, cotrainer, quick, shift_head

from dfshield.baselines import cotrain as trainer
from dfshield.baselines.cotrain import Cotrainer, run
from dfshield.core.rng import generator
from dfshield.models.checkpoints import Card, load_checkpoint, read_card
from dfshield.models.classifier import Classifier
from dfshield.models.factory import build_network
from dfshield.options import CotrainOptions
from dfshield.sources.trainset import check_fit, read
from dfshield.training.inner import OBJECTIVES

# --- a toy that can be learned ---------------------------------------------------------------------------------------


def toy(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images with a bright bar at the left, in the middle or at the right."""
    images = 0.2 * torch.rand((n, *SHAPE), generator=generator("toy", seed))
    labels = torch.arange(n) % 3
    for image, label in zip(images, labels.tolist(), strict=True):
        image[0, :, 3 * label : 3 * label + 2] += 0.7
    return images, labels


@pytest.fixture(scope="module")
def bars() -> tuple[Classifier, Card]:
    """A teacher of the toy."""
    model = Classifier(build_network("cnn-s", SHAPE, 3), (0.3,), (0.3,)).train()
    images, labels = toy(96, 0)
    adam = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(40):
        adam.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        adam.step()
    assert accuracy(model) == 1
    return model, Card("teacher", "digits", "cnn-s", SHAPE, 3, (0.3,), (0.3,), "teacher")


def accuracy(model: Classifier) -> float:
    """Share of new toy images that are classified correctly."""
    images, labels = toy(90, 1)
    with torch.no_grad():
        return float((model.eval()(images).argmax(1) == labels).float().mean())


LEARNING = {
    "dast": {"student_lr": 1e-2, "generator_lr": 2e-3, "branch_lr": 2e-3, "alpha": 1.0, "batchnorm": "eval"},
    "dfme": {"student_lr": 0.05, "generator_lr": 1e-3, "student_steps": 2, "milestones": ()},
    "ait": {"student_lr": 0.02, "generator_lr": 5e-3, "batchnorm": "train", "milestones": ()},
    "dfard": {"student_lr": 0.02, "generator_lr": 5e-4},
}


def learn(bars: tuple[Classifier, Card], method: str, broken: str | None) -> tuple[bool, bool]:
    """Whether the generator, and then a student that starts wrong everywhere, learn; `broken` makes no steps."""
    options = CotrainOptions.of(
        method=method, threat="linf:0.02", epochs=4, iterations=20, batch=30, generator_width=0.125, attack_steps=2,
        generator_epochs=1, device="cpu", **LEARNING[method],
    )  # fmt: skip
    made = Cotrainer(copy.deepcopy(bars[0]), bars[1], options)
    if broken:
        made.optimisers[broken].step = lambda: None  # type: ignore[method-assign]

    begun = copy.deepcopy(made.method.state)  # so that both are judged by the same weights

    def loss_of_generator() -> float:
        kept, made.method.state = made.method.state, copy.deepcopy(begun)
        z, labels = made.method.draw(30, generator("judge"))
        loss = made.method.generator_loss(made.method.generator.raw(z, labels), labels, generator("judge"))
        made.method.state = kept
        return float(loss.detach())

    before = loss_of_generator()
    made.epoch(0)
    generator_learned = loss_of_generator() < before - 0.03 * abs(before)
    if broken == "generator":
        return generator_learned, False
    shift_head(made)
    assert accuracy(made.student) == 0
    rows = [made.epoch(epoch) for epoch in range(1, options.epochs)]
    learned = max(row["clean_agreement"] for row in rows) >= 60  # the game swings, differently on every CPU
    if method in ("dfme", "ait"):  # whose images are varied enough to learn the toy itself from
        learned = learned and accuracy(made.student) > 0.9
    return generator_learned, learned


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("broken", [None, "student", "generator"])
def test_both_learn_and_neither_does_without_its_steps(bars, method, broken):
    assert learn(bars, method, broken) == (broken != "generator", broken is None)


# --- what the loop does ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_only_the_student_sees_perturbed_images(monkeypatch, method):
    made, seen = cotrainer(method), []
    plain = type(made.method).student_loss

    def spy(self, images, adversarial, teacher, labels):
        seen.append((images, adversarial, teacher))
        return plain(self, images, adversarial, teacher, labels)

    monkeypatch.setattr(type(made.method), "student_loss", spy)
    made.epoch(0)
    assert len(seen) == 2 * made.options.student_steps
    for images, adversarial, teacher in seen:
        assert images.min() >= 0 and images.max() <= 1 and not images.requires_grad
        assert 0.05 < float((adversarial - images).abs().max()) <= 0.1 + 1e-6
        assert torch.allclose(teacher, made.teacher(images), atol=1e-5)
    assert torch.equal(seen[0][0], seen[1][0]) is False


@pytest.mark.parametrize("method", METHODS)
def test_the_teacher_stays_as_it_is_and_the_student_starts_from_it(method):
    made = cotrainer(method)
    before = {name: value.clone() for name, value in made.teacher.state_dict().items()}
    assert all(torch.equal(value, before[name]) for name, value in made.student.state_dict().items())
    made.epoch(0)
    assert all(torch.equal(value, before[name]) for name, value in made.teacher.state_dict().items())
    assert any(not torch.equal(value, before[name]) for name, value in made.student.state_dict().items())
    assert not any(parameter.requires_grad for parameter in made.teacher.parameters())


def test_a_random_start_depends_on_the_seed_alone():
    first, same, other = (cotrainer("dfme", student_start="random", seed=seed).student for seed in (1, 1, 2))
    assert torch.equal(first.net[0].weight, same.net[0].weight)
    assert not torch.equal(first.net[0].weight, other.net[0].weight)
    assert not torch.equal(first.net[0].weight, tiny.classifier().net[0].weight)


@pytest.mark.parametrize(("mode", "moves"), [("train", True), ("eval", False)])
def test_batchnorm_modes(mode, moves):
    made = cotrainer("ait", batchnorm=mode)
    before = made.student.net[1].running_mean.clone()
    made.epoch(0)
    assert torch.equal(before, made.student.net[1].running_mean) != moves


def test_generator_epochs_leave_the_student_alone():
    made = cotrainer("ait", generator_epochs=2)
    row = made.epoch(1)
    pairs = zip(made.student.state_dict().values(), made.teacher.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert math.isnan(row["student_loss"]) and row["updates"] == 0 and row["clean_agreement"] == 100
    assert made.describe(row).startswith("epoch 2: the student waits, loss of generator ")
    assert made.epoch(2)["updates"] == 2


def test_learning_rates_over_the_epochs():
    def rates(made: Cotrainer, epoch: int) -> list[float]:
        made._set_rates(epoch)
        return [group["lr"] for name in ("generator", "student") for group in made.optimisers[name].param_groups]

    steps = cotrainer("dast", epochs=10, milestones=(0.2, 0.5), decay=0.5)
    assert rates(steps, 1) == pytest.approx([2e-4, 1e-4, 1e-4])
    assert rates(steps, 2) == pytest.approx([1e-4, 5e-5, 5e-5])
    assert rates(steps, 9) == pytest.approx([5e-5, 2.5e-5, 2.5e-5])
    cosine = cotrainer("dfard", epochs=10)
    assert rates(cosine, 0) == pytest.approx([1e-3, 1e-4])
    assert rates(cosine, 5) == pytest.approx([1e-3, 5e-5])


def test_optimisers_are_the_publications():
    dast, dfme = cotrainer("dast"), cotrainer("dfme")
    assert [len(made.optimisers["generator"].param_groups) for made in (dast, dfme)] == [2, 1]
    assert (
        dast.optimisers["student"].defaults["betas"] == dast.optimisers["generator"].defaults["betas"] == (0.5, 0.999)
    )
    sgd = dfme.optimisers["student"].defaults
    assert (sgd["lr"], sgd["momentum"], sgd["weight_decay"], sgd["nesterov"]) == (0.1, 0.9, 5e-4, False)
    assert dfme.optimisers["generator"].defaults["betas"] == (0.9, 0.999)
    assert cotrainer("ait").optimisers["student"].defaults["nesterov"]


@pytest.mark.parametrize(("method", "inner"), [("dast", "ce"), ("dfme", "ce"), ("ait", "kl"), ("dfard", "ce")])
def test_the_inner_maximisation_is_the_methods_against_the_teachers_answer(monkeypatch, method, inner):
    made, seen = cotrainer(method), []

    def spy(model, x, labels, objective, start, threat, steps, *rest):
        seen.append((objective, labels, made.teacher(x).argmax(1), model is made.crafting, steps))
        return x

    monkeypatch.setattr(trainer, "pgd_ascent", spy)
    images = torch.rand((20, *SHAPE), generator=generator("x"))
    made._student_loss(images, torch.full((20,), 3), generator("r"))
    ((objective, labels, answers, on_student, steps),) = seen
    assert objective is OBJECTIVES[inner] and on_student and steps == made.options.attack_steps
    assert torch.equal(labels, answers) and len(answers.unique()) > 1
    other = cotrainer(method, inner={"ce": "kl", "kl": "ce"}[inner])
    assert other.inner != made.inner == inner


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return tiny.teacher(tmp_path_factory.mktemp("teacher") / "t.safetensors", scale=3.0)


@pytest.mark.parametrize("method", METHODS)
def test_a_student_and_its_metrics(teacher, tmp_path, method):
    out, metrics = tmp_path / "s.safetensors", tmp_path / "m.csv"
    run(teacher, out, quick(method), recipe="mine", metrics=metrics, state=tmp_path / "state", code="c0de")
    _, card = load_checkpoint(out)
    assert (card.kind, card.real_data, card.input_shape, card.classes) == ("student", "none", SHAPE, 10)
    made = card.provenance
    assert (made["recipe"], made["source"], made["code"]) == ("mine", "none", "c0de")
    assert made["teacher_sha256"] == read_card(teacher).tensors_sha256
    assert made["diverged"] == "" or made["diverged"].startswith("one class")
    assert made["updates"] == 3 * 2 * quick(method).student_steps
    assert made["options"]["method"] == method and not {"threads", "seed"} & made["options"].keys()
    rows = list(csv.DictReader(metrics.open()))
    assert tuple(rows[0]) == trainer.METRICS and [row["epoch"] for row in rows] == ["1", "2", "3"]
    for row in rows:
        assert 0 <= float(row["robust_agreement"]) <= 100 and 0 <= float(row["clean_agreement"]) <= 100
        assert 1 <= int(row["teacher_classes"]) <= 10 and 1 <= int(row["student_classes"]) <= 10
    assert not list((tmp_path / "state").iterdir())


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(teacher, tmp_path, monkeypatch, method):
    files = {name: (tmp_path / f"{name}.safetensors", tmp_path / f"{name}.csv") for name in ("whole", "stopped")}
    settings = {"recipe": method, "state": tmp_path / "state"}
    run(teacher, files["whole"][0], quick(method), metrics=files["whole"][1], **settings)
    plain = Cotrainer.epoch

    def stops(self, epoch, bar=None):
        if epoch == 2:
            raise KeyboardInterrupt
        return plain(self, epoch, bar)

    with monkeypatch.context() as patch:
        patch.setattr(Cotrainer, "epoch", stops)
        with pytest.raises(KeyboardInterrupt):
            run(teacher, files["stopped"][0], quick(method), metrics=files["stopped"][1], **settings)
    assert not files["stopped"][0].exists()
    begun = []
    monkeypatch.setattr(Cotrainer, "epoch", lambda *given: begun.append(given[1]) or plain(*given))
    run(teacher, files["stopped"][0], quick(method), metrics=files["stopped"][1], **settings)
    assert begun == [2]
    assert files["stopped"][0].read_bytes() == files["whole"][0].read_bytes()
    assert files["stopped"][1].read_text() == files["whole"][1].read_text()


def test_another_seed_gives_another_student(teacher, tmp_path):
    shas = set()
    for seed in (0, 1):
        run(teacher, tmp_path / "s.safetensors", quick("dfme", seed=seed, epochs=1), "dfme")
        shas.add(read_card(tmp_path / "s.safetensors").tensors_sha256)
    assert len(shas) == 2


# --- the images that are kept ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_images_of_the_last_generator_are_kept_and_change_nothing(teacher, tmp_path, method):
    files = {name: tmp_path / f"{name}.safetensors" for name in ("with", "without")}
    images = tmp_path / "images.h5"
    run(teacher, files["with"], quick(method), "mine", images=images, code="c0de")
    run(teacher, files["without"], quick(method), "mine", code="c0de")
    assert files["with"].read_bytes() == files["without"].read_bytes()
    kept = read(images)
    assert kept.images.shape == (50, 8, 8, 1) and kept.labels.shape == (50,)  # two mini-batches of 20 and a half
    found = {key: kept.attributes[key] for key in ("source", "real_data", "seed", "code", "classes")}
    assert found == {"source": "mine", "real_data": "none", "seed": 0, "code": "c0de", "classes": 10}
    assert kept.attributes["options"] == read_card(files["with"]).provenance["options"]
    model, card = load_checkpoint(teacher)
    check_fit(kept, card, teacher, images)
    answers = model(torch.from_numpy(kept.images).permute(0, 3, 1, 2)).argmax(1)
    assert answers.tolist() == kept.labels.tolist()
    assert len(kept.images.reshape(50, -1)) == len({image.tobytes() for image in kept.images})


@pytest.mark.parametrize("method", METHODS)
def test_drawing_leaves_the_generator_as_it_is(method):
    made = cotrainer(method)
    made.epoch(0)
    before = copy.deepcopy(made.state())
    first, again = made.draw_set(), made.draw_set()
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    for part in ("generator", "student"):
        assert all(torch.equal(value, before[part][name]) for name, value in made.state()[part].items())
    made.epoch(1)
    assert (made.draw_set()[0] != first[0]).any()


def test_without_a_file_no_images_are_kept(teacher, tmp_path):
    run(teacher, tmp_path / "s.safetensors", quick("dfme", epochs=1))
    assert read_card(tmp_path / "s.safetensors").provenance["recipe"] == "dfme"
    assert {path.name for path in tmp_path.iterdir()} <= {"s.safetensors", teacher.name}


# --- divergence ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "changes", "reason"),
    [
        ("dfme", {"iterations": 3, "student_lr": 1e30}, "the loss of the"),
        ("ait", {"iterations": 1, "student_lr": 3e38, "beta": 1e4}, "a weight is not finite after epoch 2"),
        ("dfme", {"iterations": 1, "student_lr": 1e38, "student_steps": 1}, "an output is not finite after epoch 2"),
    ],
)
def test_what_is_not_finite_ends_the_run_at_the_last_whole_epoch(teacher, tmp_path, capsys, method, changes, reason):
    out, metrics = tmp_path / "s.safetensors", tmp_path / "m.csv"
    images = tmp_path / "images.h5"
    run(teacher, out, quick(method, generator_epochs=1, **changes), method, metrics=metrics, images=images)
    card = read_card(out)
    assert card.provenance["updates"] == 0  # those of the broken epoch are undone
    assert len(read(images).images) == 50  # of the generator before it
    assert card.provenance["diverged"].startswith(reason)
    assert card.provenance["diverged"].endswith("; these are the weights after epoch 1")
    assert f"{method} diverged: " in capsys.readouterr().err
    assert card.tensors_sha256 == read_card(teacher).tensors_sha256
    assert [row["epoch"] for row in csv.DictReader(metrics.open())] == ["1"]


def test_a_student_that_sees_one_class_where_the_teacher_sees_several_has_diverged():
    for constant in (False, True):
        made = cotrainer("ait", student_lr=1e-12, epochs=1)
        if constant:
            with torch.no_grad():
                made.student.net[-1].weight.zero_()
                made.student.net[-1].bias.copy_(F.one_hot(torch.tensor(4), 10).float())
        made.fit(None)
        row = made.history[-1]
        assert row["teacher_classes"] > 1 and (row["student_classes"] == 1) == constant
        assert made.diverged.startswith("one class for all generated images") == constant


def test_parameters_that_no_gradient_reaches_stay():
    card = Card("teacher", "digits", "cnn-s", SHAPE, 10, (0.3,), (0.38,), "teacher")
    options = quick("dfard", student_start="teacher", weight_decay=0.1, student_optimiser="sgd")
    made = Cotrainer(tiny.with_spare(), card, options)
    made.fit()
    kept = made.teacher.net.spare.weight
    assert torch.equal(made.student.net.spare.weight, kept)
    assert not torch.equal(made.student.net[0].weight, made.teacher.net[0].weight)
