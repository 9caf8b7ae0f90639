"""What every registered attack keeps to: an entry is tested by being registered.

The contracts are on models whose robustness is known or that are small; what an attack finds on top is tested with it.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support import toy_attacks
from support.victims import Linear, attack, images, key, network, norms, robust, save_victim, stage

from dfshield import registry
from dfshield.attacks import autoattack, budget
from dfshield.attacks.base import Problem
from dfshield.attacks.budget import Budget
from dfshield.core.errors import InputError
from dfshield.core.lp import from_half
from dfshield.core.threat import parse_threat
from dfshield.evaluation import crafting, session
from dfshield.evaluation.attack import components
from dfshield.models.checkpoints import load_checkpoint, save_checkpoint
from dfshield.options import AttackOptions

STRONG = {"pgd": {"steps": 20, "l2_step": "0.05"}}
"""Options with which an attack finds the closed form, where the default ones are too few steps."""
CASES = [(name, norm) for name, entry in registry.ATTACKS.items() for norm in entry.norms]
ATTACKING = [(name, norm) for name, norm in CASES if registry.ATTACKS[name].access != "none"]
EPS = {"linf": "linf:0.03", "l2": "l2:0.3"}
"""An ε at which some images of the small networks fall, by norm."""


def needed(name, x, y):
    """What the entry needs besides, for images of a small network."""
    found = {}
    for need in registry.ATTACKS[name].needs:
        classes = int(y.max()) + 1
        found[need] = session.guides(x, y, 0) if need == "guide" else network(classes, tuple(x.shape[1:]), seed=9)
    return found


def run(name, net, x, y, threat, **options):
    return attack(net, x, y, threat, attack=name, others=needed(name, x, y), **options)[0]


def same(a, b):
    return a.keys() == b.keys() and all(a[row].tobytes() == b[row].tobytes() for row in a)


def linear_problem(n):
    """A linear model and images away from the borders of the box, a tenth of them labelled wrongly."""
    model = Linear()
    x = 0.25 + 0.5 * torch.rand((n, 1, 4, 4), generator=key(5))
    y = (model.score(x) > 0).long()
    y[::10] = 1 - y[::10]
    return model, x, y


@pytest.mark.parametrize("name, norm", CASES)
@pytest.mark.parametrize("size", ["small", "large"])
def test_linear_model_has_its_closed_form_robust_accuracy(name, norm, size, small_budget):
    eps = {"linf": {"small": "0.02", "large": "0.05"}, "l2": {"small": "0.1", "large": "0.2"}}[norm][size]
    model, x, y = linear_problem(60 if registry.ATTACKS[name].ensemble else 400)
    distance = model.distance(x, y, norm)
    clear = (distance.abs() - float(eps)).abs() > 0.01 * float(eps)  # where rounding does not decide
    x, y, distance = x[clear], y[clear], distance[clear]
    rows = run(name, model, x, y, f"{norm}:{eps}", **STRONG.get(name, {}))
    attacks = registry.ATTACKS[name].access != "none"
    expected = (distance <= (float(eps) if attacks else 0)).numpy()
    assert (0.2 if attacks else 0.05) < expected.mean() < 0.9
    assert np.array_equal(rows["broken"], expected)
    dual = model.w.detach().abs().sum() if norm == "linf" else model.w.detach().norm()
    wrong = rows["component"] == session.CLEAN
    assert np.array_equal(wrong, (distance <= 0).numpy())
    assert np.allclose(rows["margin"][wrong], (distance * dual)[wrong])


@pytest.mark.parametrize("name, norm", ATTACKING)
def test_nothing_survives_where_the_ball_is_the_whole_box(name, norm, small_budget):
    model, x, y = linear_problem(30)
    assert robust(model, x, y, attack="clean") == 0.9
    whole = f"{norm}:{1 if norm == 'linf' else 4}"
    assert run(name, model, x, y, whole, **STRONG.get(name, {}))["broken"].all()


@pytest.mark.parametrize("name, norm", CASES)
def test_eps_of_zero_is_no_attack(name, norm, small_budget):
    net = network(4)
    x, y = images(net)
    y[:3] = (y[:3] + 1) % 4
    rows, clean = (run(which, net, x, y, f"{norm}:0") for which in (name, "clean"))
    assert clean["broken"].sum() == 3
    for row in ("broken", "component", "prediction", "clean_prediction", "perturbed_index"):
        assert np.array_equal(rows[row], clean[row])


@pytest.mark.parametrize("name, norm", CASES)
def test_perturbations_are_within_eps_and_say_the_same_when_replayed(name, norm, small_budget):
    net = network(10)
    x, y = images(net, n=30)
    limit = parse_threat(EPS[norm])
    rows = run(name, net, x, y, EPS[norm])
    chosen = rows["perturbed_index"]
    assert rows["perturbation"].dtype == np.float16
    assert (len(rows["perturbation"]) > 0) == ((name, norm) in ATTACKING)
    image = from_half(x[chosen], torch.from_numpy(rows["perturbation"]), limit)
    if len(chosen):
        assert norms(image - x[chosen], limit.norm).max() <= limit.eps + 1e-6
        assert image.min() >= 0 and image.max() <= 1
    logits = net(image).detach()
    assert (logits.argmax(1) != y[chosen]).all()
    own = logits[torch.arange(len(chosen)), y[chosen]]
    logits[torch.arange(len(chosen)), y[chosen]] = -torch.inf
    assert np.allclose(rows["margin"][chosen], own - logits.amax(1), atol=1e-5)
    assert np.array_equal(rows["prediction"][chosen], logits.argmax(1))


@pytest.mark.parametrize("name, norm", CASES)
def test_equal_seeds_give_equal_bytes_whatever_else_was_drawn(name, norm, small_budget):
    net = network(4)
    x, y = images(net)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = run(name, net, x, y, EPS[norm], seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert same(run(name, net, x, y, EPS[norm], seed=3), first)


@pytest.mark.parametrize("name, norm", CASES)
def test_all_randomness_is_that_of_the_problem(name, norm, small_budget):
    net = network(4)
    x, y = images(net)
    options = AttackOptions.of(attack=name, threat=EPS[norm])
    others = needed(name, x, y)
    for part in components(options, (1, 8, 8), 4).components:
        found = []
        for global_seed in (1, 2):
            torch.manual_seed(global_seed)
            problem = Problem(net, x, y, parse_threat(EPS[norm]), key(3), others)
            found.append(part.attack(problem, options))
        assert torch.equal(*found), part.name


@pytest.mark.parametrize("name", registry.ATTACKS)
def test_a_chunks_result_does_not_depend_on_other_chunks(name, small_budget):
    net = network(10)
    x, y = images(net, n=24)
    others = needed(name, x, y)
    options = {"threat": "linf:0.02", "attack": name, "chunk": 8, "others": others}
    whole, _ = attack(net, x, y, **options)
    other = torch.cat((torch.rand(8, 1, 8, 8, generator=key(9)), x[8:]))
    changed, _ = attack(net, other, torch.cat(((y[:8] + 1) % 10, y[8:])), **options)
    for row in ("broken", "component", "margin", "prediction"):
        assert np.array_equal(whole[row][8:], changed[row][8:])
    tail = whole["perturbed_index"] >= 8
    assert np.array_equal(whole["perturbation"][tail], changed["perturbation"][changed["perturbed_index"] >= 8])


@pytest.mark.parametrize("name, norm", CASES)
@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("n, shape", [(1, (1, 8, 8)), (5, (3, 6, 9))])
def test_any_number_of_classes_and_images_is_attacked(name, norm, classes, n, shape, small_budget):
    net = network(classes, shape)
    x, y = images(net, 6, shape)
    rows = run(name, net, x, y, EPS[norm])
    assert np.array_equal(rows["broken"], rows["prediction"] != y.numpy())
    assert rows["prediction"].max() < classes and rows["perturbation"].shape[1:] == shape
    others = {need: given[:n] if need == "guide" else given for need, given in needed(name, x, y).items()}
    few, _ = attack(net, x[:n], y[:n], EPS[norm], attack=name, others=others)
    assert few["broken"].shape == (n,) and np.isfinite(few["margin"]).all()


@pytest.mark.parametrize("name", [name for name, entry in registry.ATTACKS.items() if entry.passes])
@pytest.mark.parametrize("eot", [1, 2])
def test_forward_passes_are_no_more_than_the_cost_model_counts(name, eot, monkeypatch):
    """Gradients count as a pass; what flags and verdicts take does not, nor do the first passes of a run (5 %)."""
    net, victim = network(10), network(10)
    passed = []
    victim.register_forward_pre_hook(lambda module, inputs: passed.append(len(inputs[0])))

    def backward(module, inputs, output):
        if output.requires_grad:
            output.register_hook(lambda gradient: passed.append(len(gradient)))

    victim.register_forward_hook(backward)
    small = Budget(iterations=20, queries=500)
    monkeypatch.setattr(autoattack, "BUDGET", small)
    monkeypatch.setattr(budget, "Budget", lambda: small)
    monkeypatch.setattr(crafting, "fold", lambda model: model)
    monkeypatch.setattr(session, "gradient_masking_checks", lambda *models_and_images: [])
    x, y = images(net, n=2)
    entry = registry.ATTACKS[name]
    threat = "l2:0.001" if "l2" in entry.norms else "linf:0.0005"  # so small that all survive; linf remembers logits
    rows = run(name, net, x, y, threat, victim=victim, eot=eot)
    assert not rows["broken"].any()
    expected = entry.count()(AttackOptions.of(attack=name, threat=threat, eot=eot), len(x), 1.0, 10)
    assert sum(passed) <= 1.05 * expected
    assert entry.access == "none" or sum(passed) >= 0.9 * expected


@pytest.mark.parametrize("name", registry.ATTACKS)
def test_entries_name_and_describe_themselves(name):
    entry = registry.ATTACKS[name]
    assert entry.title and entry.about and not entry.about.endswith(".")
    assert set(entry.norms) <= {"linf", "l2"} and entry.norms
    assert set(entry.needs) <= {"teacher", "surrogate", "guide"}
    assert callable(entry.load())
    options = AttackOptions.of(attack=name)
    assert options.attack == name and options.described()["attack"] == name


# --- what an entry states is what it gets -----------------------------------------------------------------------


@pytest.fixture
def victim(tmp_path):
    model, x, y = save_victim(tmp_path)
    toy_attacks.SEEN.clear()
    return tmp_path, model, x, y


def register(monkeypatch, **facts):
    """A toy attack in the place of FGSM, as options take registered names alone."""
    monkeypatch.setitem(registry.ATTACKS, "fgsm", replace(registry.ATTACKS["fgsm"], **facts))


@pytest.mark.parametrize("need", ["surrogate", "teacher"])
def test_what_an_attack_lacks_is_said_before_any_work(need, tmp_path, monkeypatch):
    register(monkeypatch, target="support.toy_attacks:transfer", needs=(need,))
    with pytest.raises(InputError, match=f"fgsm.* needs a {need}; give --other {need}=CHECKPOINT") as error:
        stage(tmp_path, model="none.safetensors", attack="fgsm")
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", registry.ATTACKS)
def test_registered_attacks_say_what_they_lack_or_go_on_to_the_model(name, tmp_path):
    lacks = set(registry.ATTACKS[name].needs) - {"guide"}
    with pytest.raises(InputError, match="needs a" if lacks else "no such file"):
        stage(tmp_path, model="none.safetensors", attack=name, threat=f"{registry.ATTACKS[name].norms[0]}:0.1")


@pytest.mark.parametrize("name, norm", [case for case in CASES if not set(registry.ATTACKS[case[0]].needs) - {"guide"}])
def test_the_stage_runs_every_registered_attack(name, norm, victim, small_budget):
    ledger = stage(victim[0], attack=name, threat=EPS[norm])
    assert ledger.robust_accuracy <= 100 * 22 / 23 and ledger.options["attack"] == name
    assert ledger.threat == EPS[norm] and (ledger.component == session.CLEAN).sum() == 1


def test_a_threat_model_that_an_attack_does_not_know_is_refused_before_any_work(tmp_path, monkeypatch):
    register(monkeypatch, norms=("l2",))
    with pytest.raises(InputError, match=r"works within l2, .*linf:8/255"):
        stage(tmp_path, model="none.safetensors", attack="fgsm", threat="linf:8/255")
    with pytest.raises(InputError, match="no such file"):
        stage(tmp_path, model="none.safetensors", attack="fgsm", threat="l2:0.5")


def test_an_attack_that_needs_a_guide_gets_an_image_of_another_class_for_each_of_its_own(victim, monkeypatch):
    folder, _, x, y = victim
    register(monkeypatch, target="support.toy_attacks:imitate", needs=("guide",))
    label = {image.numpy().tobytes(): int(own) for image, own in zip(x, y, strict=True)}
    found = []
    for chunk in (250, 9):
        toy_attacks.SEEN.clear()
        ledger = stage(folder, attack="fgsm", threat="linf:1", chunk=chunk)
        pairs = {}
        for problem in toy_attacks.SEEN:
            guide = problem.others["guide"]
            assert guide.shape == problem.x.shape
            for image, own, other in zip(problem.x, problem.y, guide, strict=True):
                pairs[image.numpy().tobytes()] = other.numpy().tobytes()
                assert label[other.numpy().tobytes()] != int(own)
        assert len(pairs) == 22 and len(toy_attacks.SEEN) == (1 if chunk == 250 else 3)
        assert (ledger.component == 2).sum() >= 15  # what the guide is, the image becomes
        found.append(pairs)
    assert found[0] == found[1]


def test_guides_are_of_another_class_and_follow_from_the_seed():
    x, y = torch.rand((60, 1, 2, 2), generator=key()), torch.arange(60) % 3
    chosen = [(session.guides(x, y, 0)[:, None] == x[None]).flatten(2).all(2) for _ in range(2)]
    assert (chosen[0].sum(1) == 1).all() and torch.equal(chosen[0], chosen[1])
    index = chosen[0].int().argmax(1)
    assert (y[index] != y).all() and len(index.unique()) > 20
    assert not torch.equal(session.guides(x, y, 1), x[index])
    with pytest.raises(ValueError, match="one class"):
        session.guides(x, torch.zeros(60, dtype=torch.long), 0)


def test_an_attack_that_needs_a_surrogate_gets_it_frozen(victim, monkeypatch):
    folder, *_ = victim
    other, card = load_checkpoint(folder / "student.safetensors", "cpu")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=key(3)))
    save_checkpoint(folder / "other.safetensors", other, card)
    register(monkeypatch, target="support.toy_attacks:transfer", needs=("surrogate",))
    monkeypatch.setattr(toy_attacks, "fgsm", frozen_fgsm := Spy(toy_attacks.fgsm))
    stage(folder, attack="fgsm", threat="linf:0.1", others={"surrogate": folder / "other.safetensors"})
    (given,) = frozen_fgsm.models
    assert not given.training and not frozen_fgsm.trainable
    assert all(torch.equal(a, b) for a, b in zip(given.parameters(), other.parameters(), strict=True))


class Spy:
    """An attack that notes which models it was given, and whether their parameters had gradients."""

    def __init__(self, attack):
        self.attack, self.models, self.trainable = attack, [], False

    def __call__(self, problem, options):
        self.models.append(problem.model)
        self.trainable |= any(parameter.requires_grad for parameter in problem.model.parameters())
        return self.attack(problem, options)
