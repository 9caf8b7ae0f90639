"""Adversarial transformation: the way it goes, what it is fitted on, what an attack derives."""

import pytest
import torch
from support import tiny
from support.attacked import key
from torch import nn

from dfshield.core.errors import InputError
from dfshield.defences.adversarial_transformation import (
    AdversarialTransformation,
    Moved,
    towards_least_likely,
)
from dfshield.defences.fit_file import Fit
from dfshield.defences.fitted import Fitting
from dfshield.evaluation.attack import defended as evaluated
from dfshield.models.external import external_network
from dfshield.models.folding import fold
from dfshield.options import AttackOptions
from dfshield.options.defences_transformation import AdversarialTransformation as Options

SMALL = {"width": 0.0625, "epochs": 2, "batch": 20, "lr": 0.01}


class Lines(nn.Module):
    """Two classes, told apart by the sum of the pixels: the second is likely where it is above half."""

    def forward(self, x):
        total = x.flatten(1).sum(1) - x[0].numel() / 2
        return torch.stack([-total, total], 1)


def fitting(images: int = 60) -> Fitting:
    """A tiny classifier and random images with its own answers."""
    model = tiny.classifier(scale=3.0)
    x = torch.rand((images, 1, 8, 8), generator=key(3))
    with torch.no_grad():
        labels = model(x).argmax(1)
        classes = model(x).shape[1]
    return Fitting(model, model, x, labels, classes, "linf:1/16", torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def fitted():
    given = fitting()
    return given, AdversarialTransformation(Options(**SMALL)).fit(given)


def defended(tensors, **options) -> AdversarialTransformation:
    return AdversarialTransformation(Options(**SMALL, **options), tensors)


@pytest.mark.parametrize("smooth", [None, "tanh", "softsign"])
def test_every_pixel_goes_towards_the_least_likely_class(smooth):
    """On a linear network all steps have one sign, so the way's length is known."""
    x = torch.full((2, 1, 4, 4), 0.5)
    x[0] += 0.1  # likely the second class, so it moves down
    x[1] -= 0.1
    options = Options(steps=3, step=0.02)
    found = towards_least_likely(Lines(), x, x.clone().requires_grad_(), options, smooth)
    expected = x + torch.tensor([-0.06, 0.06]).view(2, 1, 1, 1)
    torch.testing.assert_close(found.detach(), expected, atol=1e-6, rtol=0)


def test_the_way_stays_within_delta_and_between_black_and_white():
    x = torch.tensor([0.9, 0.02]).view(2, 1, 1, 1).expand(2, 1, 4, 4).contiguous()
    found = towards_least_likely(Lines(), x, x, Options(steps=30, step=0.05, delta=0.3))
    torch.testing.assert_close(found, torch.tensor([0.6, 0.32]).view(2, 1, 1, 1).expand_as(x))
    found = towards_least_likely(Lines(), 1 - x, 1 - x, Options(steps=30, step=0.05, delta=1.0))
    torch.testing.assert_close(found, torch.tensor([1.0, 0.0]).view(2, 1, 1, 1).expand_as(x))


def test_the_external_network_has_the_published_layers():
    """Eight layers with weights besides BatchNorm; 128 maps of 2x2 pixels into 512 units at 32 pixels."""
    net = external_network((3, 32, 32), 10, 1.0, "vgg")
    kinds = "".join({nn.Conv2d: "c", nn.MaxPool2d: "p", nn.Linear: "l"}.get(type(m), "") for m in net)
    assert kinds == "cpcpccpccplll"
    assert [m.out_channels for m in net if isinstance(m, nn.Conv2d)] == [64, 128, 128, 128, 128, 128]
    assert [(m.in_features, m.out_features) for m in net if isinstance(m, nn.Linear)] == [
        (512, 512),
        (512, 512),
        (512, 10),
    ]
    assert external_network((1, 5, 9), 3, 0.1, "vgg").eval()(torch.rand(2, 1, 5, 9)).shape == (2, 3)


def test_a_fit_can_be_repeated_and_leaves_the_classifier(fitted):
    _, tensors = fitted
    again = fitting()
    state = {name: value.clone() for name, value in again.model.state_dict().items()}
    torch.manual_seed(9)
    found = AdversarialTransformation(Options(**SMALL)).fit(again)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in found)
    assert all(torch.equal(value, state[name]) for name, value in again.model.state_dict().items())
    assert torch.initial_seed() == 9


def test_the_classifier_is_tuned_on_transformed_images_alone(monkeypatch):
    """Where the transformation gives the same images for all sets, the tuned classifier is the same."""
    monkeypatch.setattr(Moved, "transform", lambda self, x: torch.full_like(x, 0.3))

    def tuned(images: torch.Tensor) -> dict[str, torch.Tensor]:
        made = AdversarialTransformation(Options(**SMALL, external="untrained"))
        found = made.fit(fitting()._replace(images=images))
        return {name: value for name, value in found.items() if name.startswith("classifier.")}

    one, other = (tuned(torch.rand((60, 1, 8, 8), generator=key(seed))) for seed in (1, 2))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_classifier_is_tuned_on_what_it_will_see(fitted):
    """Its cross entropy on transformed images falls, against the classifier as it was."""
    given, tensors = fitted
    external = defended(tensors).protect(given.model).external
    options = Options(**SMALL)

    def loss(classifier: nn.Module) -> float:
        with torch.no_grad():
            return float(
                nn.functional.cross_entropy(Moved(classifier, external, options, False)(given.images), given.labels)
            )

    assert loss(defended(tensors).protect(given.model).classifier) < 0.9 * loss(given.model)


@pytest.mark.parametrize("external", ["attacked", "plain", "untrained"])
def test_the_external_network_is_trained_as_told(external):
    given = fitting()
    made = AdversarialTransformation(Options(**SMALL | {"epochs": 1}, external=external)).fit(given)
    counts = {name: int(value) for name, value in made.items() if name.endswith("num_batches_tracked")}
    passes = {count for name, count in counts.items() if name.startswith("external.")}
    assert passes == {0 if external == "untrained" else 3}


def test_a_batch_that_the_set_does_not_fill_is_refused():
    with pytest.raises(InputError, match="batch 200 needs as many images, and the training set has 60"):
        AdversarialTransformation(Options(batch=200)).fit(fitting())


@pytest.mark.parametrize("backward", ["identity", "softsign", "tanh"])
def test_the_surrogate_does_forwards_what_the_defence_does(fitted, backward):
    """But for the draws: with the noise of the verdict its logits are the verdict's."""
    given, tensors = fitted
    judged = defended(tensors, backward=backward).protect(given.model)
    victim = defended(tensors, backward=backward).surrogate(given.model)
    victim._noise = judged._noise
    x = given.images[:5].clone().requires_grad_()
    torch.testing.assert_close(victim(x), judged(x), atol=1e-5, rtol=1e-5)


def test_the_identity_is_derived_as_f_a_at_the_transformed_image(fitted):
    given, tensors = fitted
    made = defended(tensors)
    victim = made.surrogate(given.model)
    x = given.images[:4].clone().requires_grad_()
    torch.manual_seed(1)
    (slope,) = torch.autograd.grad(victim(x)[:, 1].sum(), x)
    torch.manual_seed(1)
    at = victim.transform(x).detach().requires_grad_()
    (expected,) = torch.autograd.grad(victim.classifier(at)[:, 1].sum(), at)
    torch.testing.assert_close(slope, expected)
    torch.manual_seed(2)
    assert not torch.equal(victim.transform(x), at)


class Curve(nn.Module):
    """Two classes by one pixel: the logits are -q and q, q = x² - 0.1."""

    def forward(self, x):
        q = x.flatten(1)[:, 0].square() - 0.1
        return torch.stack([-q, q], 1)


@pytest.mark.parametrize("smooth", ["softsign", "tanh"])
def test_a_smooth_sign_is_derived_by_hand(smooth):
    """One step x - α s(k g(x)) with g = 4σ(2q)x, the slope of log(1 + exp 2q): derivative 1 - α k s'(k g) g'."""
    x = torch.full((1, 1, 1, 1), 0.6, dtype=torch.float64, requires_grad=True)
    options = Options(steps=1, step=0.05, smooth=0.7)
    found = towards_least_likely(Curve(), x.detach(), x, options, smooth)
    (derivative,) = torch.autograd.grad(found.sum(), x)
    share = torch.tensor(2 * (0.36 - 0.1), dtype=torch.float64).sigmoid()
    slope, bend = 4 * share * 0.6, 4 * share + 4 * 0.6 * share * (1 - share) * 4 * 0.6
    at = 0.7 * slope
    rise = 1 - at.tanh() ** 2 if smooth == "tanh" else 1 / (1 + at.abs()) ** 2
    assert float(found.detach()) == pytest.approx(0.55)
    assert float(derivative) == pytest.approx(float(1 - 0.05 * 0.7 * rise * bend))


@pytest.mark.parametrize("delta", [0.05, 0.2])
def test_the_steps_as_they_are_have_the_identity_s_derivative_but_at_white(delta):
    """The sign has none, so what is left is that of the start, or of the ball where the projection cuts off."""
    x = torch.tensor([0.5, 0.5, 0.98, 0.98]).view(1, 1, 2, 2).requires_grad_()
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[1.0, 1, -1, -1], [-1.0, -1, 1, 1]]))
        net[1].bias.copy_(torch.tensor([3.0, 0]))  # so the second class is the least likely
    found = towards_least_likely(net, x, x, Options(steps=3, step=0.02, delta=delta), "unrolled")
    (slope,) = torch.autograd.grad(found.sum(), x)
    down = 0.5 - min(delta, 0.06)
    torch.testing.assert_close(found.detach().flatten(), torch.tensor([down, down, 1, 1]))
    torch.testing.assert_close(slope.flatten(), torch.tensor([1.0, 1, 0, 0]))


@pytest.fixture(scope="module")
def imitated():
    given = fitting()
    return given, AdversarialTransformation(Options(**SMALL, fcn_epochs=30)).fit(given)


def test_the_imitator_learns_the_transformation_and_changes_nothing_else(fitted, imitated):
    """Its images are nearer to the transformed ones, at the same start, than those starts and the images are."""
    given, tensors = imitated
    assert {k: v for k, v in tensors.items() if not k.startswith("imitator.")}.keys() == fitted[1].keys()
    assert all(torch.equal(tensors[name], value) for name, value in fitted[1].items())
    victim = defended(tensors, fcn_epochs=30, backward="reparameterised").surrogate(given.model)
    start = victim.start(given.images)
    with torch.no_grad():
        target = towards_least_likely(victim.external, given.images, start, victim.options)
        errors = [
            float((found - target).square().mean())
            for found in (victim.imitator(given.images, start), start, given.images)
        ]
    assert errors[0] < 0.9 * min(errors[1:])


def test_reparameterisation_goes_through_the_imitator(imitated):
    given, tensors = imitated
    victim = defended(tensors, fcn_epochs=30, backward="reparameterised").surrogate(given.model)
    victim.start = lambda x: x.detach()
    x = given.images[:4].clone().requires_grad_()
    torch.testing.assert_close(victim(x), victim.classifier(victim.imitator(x, x.detach())))
    assert bool(torch.autograd.grad(victim(x)[:, 0].sum(), x)[0].flatten(1).any(1).all())


def test_a_quick_copy_of_the_imitated_surrogate_makes_new_draws(imitated, capsys):
    given, tensors = imitated
    copied = fold(defended(tensors, fcn_epochs=30, backward="reparameterised").surrogate(given.model))
    x = given.images[:4]
    assert not torch.equal(copied(x), copied(x))
    assert "answers otherwise" not in capsys.readouterr().err


def test_reparameterisation_needs_an_imitator():
    with pytest.raises(ValueError, match=r"backward reparameterised needs a network that imitates.*fcn_epochs is 0"):
        Options(backward="reparameterised")


def test_the_average_is_that_of_transformed_images(fitted):
    given, tensors = fitted
    victim = defended(tensors, backward="average", draws=3).surrogate(given.model)
    x = given.images[:4].clone().requires_grad_()
    torch.manual_seed(1)
    found = victim.transform(x)
    (slope,) = torch.autograd.grad(found.sum(), x)
    single = defended(tensors).surrogate(given.model)
    torch.manual_seed(1)
    expected = sum(single.transform(x).detach() for _ in range(3)) / 3
    torch.testing.assert_close(found.detach(), expected)
    torch.testing.assert_close(slope, torch.ones_like(slope))


def test_an_attack_takes_options_of_its_own_through_the_defence(fitted):
    """The verdict has the defence's own; crafting those of the attack."""
    given, tensors = fitted
    fit = Fit(None, tensors)
    attack = AttackOptions.of(attack="pgd", through=("backward=softsign", "steps=2"))
    judged, victim = evaluated(given.model, Options(**SMALL), attack, fit)
    assert (judged.options.steps, judged.options.backward) == (13, "identity")
    assert (victim.options.steps, victim.options.backward) == (2, "softsign")
    plain = evaluated(given.model, Options(**SMALL), AttackOptions.of(attack="pgd"), fit)[1]
    assert (plain.options.steps, plain.options.backward) == (13, "identity")


def test_what_was_added_later_changes_no_record_of_those_that_do_without():
    assert "through" not in AttackOptions.of(attack="pgd").described()
    added = {"structure", "external_epochs", "fcn_epochs", "draws"}
    assert not added & Options().described().keys() and added <= Options.model_fields.keys()
    assert AttackOptions.of(attack="pgd", through=("steps=2",)).described()["through"] == ["steps=2"]


@pytest.mark.parametrize(
    ("through", "values", "why"),
    [
        (("width=2",), {}, "through width=2: defence adversarial-transformation leaves backward, smooth, draws"),
        (("steps=0",), {}, "through: steps: Input should be greater than"),
        (("backward=cubic",), {}, "through: backward: Input should be .identity"),
        (("backward=reparameterised",), {}, "through: .*fcn_epochs is 0"),
        (("steps=2",), {"adaptive": False}, "through steps=2: the attack is crafted on the bare network; leave it out"),
    ],
)
def test_what_an_attack_may_not_take_otherwise(through, values, why):
    attack = AttackOptions.of(attack="pgd", through=through, **values)
    with pytest.raises(InputError, match=why) as refused:
        attack.crafted_through(Options())
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("structure", "kinds"), [("shallow", "cpcpl"), ("linear", "l")])
def test_other_structures(structure, kinds):
    net = external_network((1, 8, 8), 10, 0.125, structure)
    names = {nn.Conv2d: "c", nn.MaxPool2d: "p", nn.Linear: "l"}
    assert "".join(names.get(type(m), "") for m in net) == kinds
    assert net.eval()(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def test_the_external_network_may_have_epochs_of_its_own():
    options = Options(**SMALL | {"epochs": 1}, external="plain", external_epochs=2)
    found = AdversarialTransformation(options).fit(fitting())
    counts = {name.split(".")[0]: int(value) for name, value in found.items() if name.endswith("num_batches_tracked")}
    assert counts["external"] == 2 * 3


def test_transfer_is_the_tuned_classifier_alone(fitted):
    given, tensors = fitted
    made = defended(tensors, backward="transfer")
    x = given.images[:4]
    assert torch.equal(made.surrogate(given.model)(x), made.protect(given.model).classifier(x))
