"""Contracts of all registered training losses, of their inner maximisations and of the baselines.

An entry meets them by being registered.
"""

import dataclasses
import math

import pytest
import torch
from pydantic import ValidationError
from support import tiny
from support.training import make, quick

from dfshield import registry
from dfshield.core.rng import generator
from dfshield.core.threat import parse_threat
from dfshield.options import CotrainOptions, StageOptions, TrainOptions
from dfshield.planning import arithmetic
from dfshield.registry.losses import ROBUST_ONLY
from dfshield.training import inner
from dfshield.training.awp import frozen_buffers
from dfshield.training.inner import InnerAttack, Task
from dfshield.training.losses import Outputs

THREATS = ("linf:8/255", "l2:0.5")
STAGES = {"loss": TrainOptions, "method": CotrainOptions}
SOLVED = [
    *((loss, "auto") for loss in registry.LOSSES),
    *((name, "n-fgsm") for name, entry in registry.LOSSES.items() if entry.search == "pgd" and entry.crafts),
]
"""Losses with the searches that they may have."""
ENTRIES = [(field, name) for field, stage in STAGES.items() for name in stage.entries[1]]


def options(loss: str, **changes) -> TrainOptions:
    """Options of a loss in the first ball that it searches."""
    norms = registry.SEARCHES[registry.LOSSES[loss].search].norms
    threat = next(threat for threat in THREATS if threat.partition(":")[0] in norms)
    return TrainOptions.of(**({"loss": loss, "threat": threat} | changes))


def outputs(n=6, classes=10, seed=0) -> Outputs:
    """Logits of a linear student of four pixels and of a teacher, with gradients of the student's."""
    random = generator("logits", seed)
    images = torch.rand((n, 1, 2, 2), generator=random).requires_grad_()
    weight = torch.randn((4, classes), generator=random)
    clean = images.flatten(1) @ weight
    adversarial = (clean.detach() + torch.randn((n, classes), generator=random)).requires_grad_()
    teacher = torch.randn((n, classes), generator=random)
    return Outputs(clean, adversarial, teacher, torch.arange(n) % classes, images)


def given(loss: str, out: Outputs) -> Outputs:
    """What the trainer hands to a loss: images, and clean logits in place of x̂'s, only if it says so."""
    if not registry.LOSSES[loss].crafts:
        return out._replace(adversarial=out.clean)
    return out._replace(images=None)


def value(loss: str, out: Outputs) -> torch.Tensor:
    return registry.LOSSES[loss].load()(given(loss, out), options(loss))


# --- losses ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("n", [1, 7])
@pytest.mark.parametrize("loss", registry.LOSSES)
def test_a_loss_is_a_finite_scalar(loss, n, classes):
    found = value(loss, outputs(n, classes))
    assert found.shape == () and bool(found.isfinite())


@pytest.mark.parametrize("loss", registry.LOSSES)
def test_gradients_go_where_the_entry_says(loss):
    out, entry = outputs(), registry.LOSSES[loss]
    clean, robust = torch.autograd.grad(value(loss, out), (out.clean, out.adversarial), allow_unused=True)
    assert (clean is None) == (entry.passes == ROBUST_ONLY)
    assert (robust is not None) == entry.crafts
    for slope in (clean, robust):
        assert slope is None or bool(slope.isfinite().all())
    assert any(slope is not None and bool(slope.any()) for slope in (clean, robust))


@pytest.mark.parametrize("loss", registry.LOSSES)
def test_a_loss_is_a_mean_over_images(loss):
    """Every image twice changes nothing, and neither does their order."""
    out = outputs(5)
    images = out.images.detach()
    weight = torch.linalg.lstsq(images.flatten(1), out.clean.detach()).solution

    def of(rows: torch.Tensor) -> float:
        x = images[rows].requires_grad_()
        parts = (out.adversarial[rows], out.teacher[rows], out.labels[rows])
        return float(value(loss, Outputs(x.flatten(1) @ weight, *parts, x)).detach())

    once = of(torch.arange(5))
    assert of(torch.arange(5).repeat(2)) == pytest.approx(once, rel=1e-5)
    assert of(torch.tensor([3, 1, 4, 0, 2])) == pytest.approx(once, rel=1e-5)


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("loss", registry.LOSSES)
def test_every_loss_trains_and_falls(loss, everything):
    """An epoch of a tiny student: finite throughout, and then less of the loss on the x̂' of before."""
    more = {"awp": 0.005, "average": 0.5, "eps_warmup": 1, "lr_warmup": 1, "tau": 0} if everything else {"aggregate": 1}
    norm = parse_threat(options(loss).threat).norm
    threat = "l2:0.25" if norm == "l2" else "linf:4/255"
    made = make(quick(loss=loss, threat=threat, epochs=1, lr=0.005, **more))
    parts = [
        (x, made._craft(x, labels, generator("a"), targets) if made.entry.crafts else None, targets, labels)
        for x, targets, labels in zip(made.images.split(10), made.targets.split(10), made.labels.split(10), strict=True)
    ]
    made.student.train()

    def total():
        with frozen_buffers(made.student):
            return sum(float(made._outer(*part)[0]) for part in parts)

    before = total()
    row = made.epoch(0)
    assert math.isfinite(row["loss"]) and row["updates"] > 0
    assert all(v.isfinite().all() for v in made.student.state_dict().values())
    made.student.train()
    assert total() < before


# --- inner maximisations ---------------------------------------------------------------------------------------------


def test_every_search_has_code_and_facts():
    assert inner.SEARCHES.keys() == registry.SEARCHES.keys()
    assert {options(loss, search=search).searched for loss, search in SOLVED} == registry.SEARCHES.keys()
    assert all(facts.about and facts.norms for facts in registry.SEARCHES.values())


@pytest.mark.parametrize("threat", THREATS)
@pytest.mark.parametrize(("loss", "search"), SOLVED)
def test_perturbed_images_lie_in_the_ball_and_depend_on_the_seed_alone(loss, search, threat):
    """In the ball of ε, or in that of `beyond` times ε, which such a search fills."""
    who, own = (f"loss {loss}", registry.LOSSES[loss].search) if search == "auto" else (f"search {search}", search)
    facts, norm = registry.SEARCHES[own], parse_threat(threat).norm
    if norm not in facts.norms:
        with pytest.raises(ValidationError, match=f"{who} searches an {' or '.join(facts.norms)} ball"):
            options(loss, threat=threat, search=search)
        return
    model = tiny.classifier(scale=20.0).requires_grad_(False)
    x = torch.from_numpy(tiny.images(6)).permute(0, 3, 1, 2)
    labels, teacher = model(x).argmax(1), tiny.classifier(seed=1)(x).detach()
    attack = InnerAttack.of(options(loss, threat=threat, search=search, attack_steps=3, epochs=4), 3)
    found, again, other = (attack.solve(Task(model, x, labels, teacher, generator(seed))) for seed in (0, 0, 1))
    eps = parse_threat(threat).eps
    reached = float((found - x).flatten(1).norm(dim=1, p=math.inf if norm == "linf" else 2).max())
    assert reached <= facts.beyond * eps + 1e-5
    assert facts.beyond == 1 or reached > 0.9 * facts.beyond * eps
    assert float(found.min()) >= 0 and float(found.max()) <= 1 and not found.requires_grad
    assert torch.equal(found, again)
    assert torch.equal(found, other) == (attack.start == "image")
    assert float((found - x).abs().max()) > 0


@pytest.mark.parametrize("loss", registry.LOSSES)
def test_what_is_not_stated_is_not_estimated(loss, monkeypatch):
    chosen, entry = options(loss, epochs=2, batch=10), registry.LOSSES[loss]
    assert arithmetic.training_passes(chosen, 300) > 0
    with monkeypatch.context() as patch:
        patch.setitem(registry.LOSSES, loss, dataclasses.replace(entry, passes=None))
        assert arithmetic.training_passes(chosen, 300) is None
    if entry.crafts:
        facts = dataclasses.replace(registry.SEARCHES[entry.search], passes=None)
        monkeypatch.setitem(registry.SEARCHES, entry.search, facts)
        assert arithmetic.inner_passes(chosen, 0) is arithmetic.training_passes(chosen, 300) is None


# --- options ---------------------------------------------------------------------------------------------------------


def build(field: str, name: str, **changes) -> StageOptions:
    return options(name, **changes) if field == "loss" else CotrainOptions.of(method=name, **changes)


@pytest.mark.parametrize(("field", "name"), ENTRIES)
def test_options_of_an_entry_build_and_refuse_what_is_not_theirs(field, name):
    stage = STAGES[field]
    made, cls = build(field, name), stage.class_for(name)
    assert type(made) is cls and getattr(made, field) == name
    assert stage.class_for(cls.model_fields[field].default) is cls or cls is stage
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        build(field, name, no_such_option=1)
    fields = {key: option for other in stage.entries[1] for key, option in stage.class_for(other).model_fields.items()}
    for key in fields.keys() - cls.model_fields.keys():
        with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
            build(field, name, **{key: fields[key].default})


@pytest.mark.parametrize(("field", "name"), ENTRIES)
def test_every_option_and_entry_says_what_it_is(field, name):
    cls, entry = STAGES[field].class_for(name), STAGES[field].entries[1][name]
    assert entry.title and entry.about
    assert all(cls.help_texts().values())


# --- baselines -------------------------------------------------------------------------------------------------------


def baseline(name: str, classes=4, seed=0):
    small = {"batch": 8, "generator_width": 0.05, "latent": 12, "device": "cpu", "seed": seed}
    made = CotrainOptions.of(method=name, **small)
    teacher = tiny.classifier(classes=classes, scale=3.0).requires_grad_(False)
    student = tiny.classifier(classes=classes, seed=1, scale=3.0)
    return registry.BASELINES[name].load()(teacher, student, tiny.SHAPE, classes, made)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("name", registry.BASELINES)
def test_the_losses_of_a_baseline_reach_its_generator_and_its_student(name, classes):
    made = baseline(name, classes)
    z, labels = made.draw(8, generator("z"))
    assert labels.shape == (8,) and int(labels.min()) >= 0 and int(labels.max()) < classes
    raw = made.generator.raw(z, labels)
    images = made.generator.to_image(raw).detach()
    assert images.shape == (8, *tiny.SHAPE) and float(images.min()) >= 0 and float(images.max()) <= 1
    loss = made.generator_loss(raw, labels, generator("loss"))
    slopes = torch.autograd.grad(loss, list(made.generator.parameters()), allow_unused=True)
    assert loss.shape == () and bool(loss.isfinite()) and any(s is not None and bool(s.any()) for s in slopes)
    loss = made.student_loss(images, (images + 0.01).clamp(0, 1), made.teacher(images), labels)
    slopes = torch.autograd.grad(loss, list(made.student.parameters()))
    assert loss.shape == () and bool(loss.isfinite()) and all(bool(s.isfinite().all()) for s in slopes)
    assert all(bool(s.any()) for s in slopes[-2:])
    made.end_epoch()


@pytest.mark.parametrize("name", registry.BASELINES)
def test_the_generator_of_a_baseline_depends_on_the_seed_alone(name):
    states = [list(baseline(name, seed=seed).generator.state_dict().values()) for seed in (0, 0, 1)]
    assert all(map(torch.equal, states[0], states[1]))
    assert not all(map(torch.equal, states[0], states[2]))


@pytest.mark.parametrize("name", registry.BASELINES)
def test_a_baseline_states_its_formulas_and_what_it_costs(name, monkeypatch):
    entry, chosen = registry.BASELINES[name], CotrainOptions.of(method=name)
    assert entry.generator_loss and entry.student_loss
    assert min(arithmetic.cotraining_passes(chosen)) > 0
    monkeypatch.setitem(registry.BASELINES, name, dataclasses.replace(entry, generator_passes=None))
    assert arithmetic.cotraining_passes(chosen) is None
