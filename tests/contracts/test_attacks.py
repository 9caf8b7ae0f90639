"""What every registered attack promises; an entry meets these tests by being registered."""

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from support.attacked import (
    Linear,
    attack,
    images,
    key,
    network,
    norms,
    problem,
    robust,
    small_budget,
)
from torch import nn

from dfshield import registry
from dfshield.core.errors import InputError
from dfshield.core.lp import from_half
from dfshield.core.threat import parse_threat
from dfshield.evaluation.attack import components
from dfshield.options import AttackOptions
from dfshield.options.attacks import GUIDE
from dfshield.planning.arithmetic import attack_passes

NAMES = list(registry.ATTACKS)
WHITE_BOX = [name for name, e in registry.ATTACKS.items() if e.access == "gradients" and e.aim == "label"]
INDEPENDENT = [name for name, entry in registry.ATTACKS.items() if GUIDE not in entry.needs]
CASES = [(name, norm) for name, entry in registry.ATTACKS.items() if not entry.replaces for norm in entry.norms]
"""What a corruption, which no ε bounds, promises is in tests/attacks/test_corruption.py."""
SMALL = {"linf": "linf:0.03", "l2": "l2:0.3", "l1": "l1:1"}
SIZES = [{"linf": "0.02", "l2": "0.1", "l1": "0.1"}, {"linf": "0.05", "l2": "0.2", "l1": "0.2"}]
ROWS = ("broken", "component", "margin", "prediction", "clean_prediction", "perturbation")
QUICK: dict[str, dict[str, Any]] = {
    "pgd": {"l2_step": "0.05", "steps": 20},
    "latent": {"iterations": 10},
    "md": {"steps": 20},
    "a3": {"rounds": 4, "restarts": 2},
    "automated": {"trials": 6, "base": 10, "budget": 20},
    "square": {"queries": 25},
    "spsa": {"samples": 16, "iterations": 5},
    "genattack": {"queries": 60},
    "boundary": {"steps": 20},
    "hopskipjump": {"steps": 3, "init_evaluations": 10},
    "cw": {"steps": 30, "lr": 0.1},
    "fab": {"steps": 15},
}
"""Options of an attack where its defaults are too weak for the l2 balls of these tests, or too slow."""


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    small_budget(monkeypatch)


def given(name: str, net: nn.Module) -> dict[str, Any]:
    """Options of attack `name`, and the models that it needs: all of them the attacked one."""
    others = {need: net for need in registry.ATTACKS[name].needs if need != GUIDE}
    return {"attack": name, "others": others} | QUICK.get(name, {})


@pytest.mark.parametrize("name", NAMES)
def test_an_entry_says_what_it_is(name):
    entry = registry.ATTACKS[name]
    assert entry.title and entry.about and "\n" not in entry.about and not entry.about.endswith(".")
    assert entry.norms and set(entry.norms) <= {"linf", "l2", "l1"}
    options = AttackOptions.of(attack=name)
    assert options.attack == name and type(options) is entry.options_class(AttackOptions)
    with pytest.raises(ValidationError, match="nonsense"):
        AttackOptions.of(attack=name, nonsense=1)


@pytest.mark.parametrize("name", NAMES)
def test_options_added_to_all_attacks_are_left_out_at_their_neutral_values(name):
    assert not {"eot", "adaptive", "seed", "threads"} & set(AttackOptions.of(attack=name).described())
    assert AttackOptions.of(attack=name, eot=2, adaptive=False).described() == AttackOptions.of(
        attack=name
    ).described() | {"eot": 2, "adaptive": False}


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize(
    "eps", [{"linf": "0.02", "l2": "0.1", "l1": "0.1"}, {"linf": "0.05", "l2": "0.2", "l1": "0.2"}]
)
@pytest.mark.parametrize("name, norm", CASES)
def test_a_linear_model_has_its_closed_form_robust_accuracy(name, norm, eps, classes):
    """No attack breaks what is beyond ε, and one with gradients breaks all that is within."""
    model, size = Linear(classes=classes), float(eps[norm])
    x = 0.25 + 0.5 * torch.rand((80, 1, 4, 4), generator=key(5))  # away from the borders of the box
    score = model.score(x).detach()
    y = (score > 0).long()
    y[::10] = 1 - y[::10]  # clean errors
    dual = torch.linalg.vector_norm(model.w.detach(), {"linf": 1, "l2": 2, "l1": float("inf")}[norm])
    distance = torch.where(y == 1, score, -score) / dual
    clear = (distance.abs() - size).abs() > 0.01 * size  # where rounding does not decide
    x, y, distance = x[clear], y[clear], distance[clear]
    rows, _ = attack(model, x, y, f"{norm}:{size}", **given(name, model))
    within = (distance <= size).numpy()
    assert 0.2 < within.mean() < 0.9
    assert (~rows["broken"] | within).all() and rows["broken"][(distance < 0).numpy()].all()
    if name in WHITE_BOX:
        assert np.array_equal(rows["broken"], within)
    wrong = rows["component"] == 1
    assert np.allclose(rows["margin"][wrong], (distance * dual)[torch.from_numpy(wrong)], atol=1e-6)


@pytest.mark.parametrize("name, norm", CASES)
def test_without_room_an_attack_changes_nothing(name, norm):
    net = network(4)
    x, y = images(net)
    y[:3] = (y[:3] + 1) % 4
    assert robust(net, x, y, f"{norm}:0", **given(name, net)) == robust(net, x, y, attack="clean") == 21 / 24


@pytest.mark.parametrize("name, norm", [case for case in CASES if case[0] in WHITE_BOX])
def test_gradients_break_everything_where_there_is_room(name, norm):
    model = Linear()
    x = torch.rand((40, 1, 4, 4), generator=key(5))
    y = (model.score(x) > 0).long()
    options = given(name, model) | ({"l2_step": "1"} if name == "pgd" else {})
    assert robust(model, x, y, {"linf": "linf:1", "l2": "l2:16", "l1": "l1:16"}[norm], **options) == 0


@pytest.mark.parametrize("name, norm", CASES)
def test_perturbations_are_within_eps_and_their_verdict_can_be_repeated(name, norm):
    net = network(10)
    x, y = images(net, n=30)
    limit = parse_threat(SMALL[norm])
    rows, _ = attack(net, x, y, SMALL[norm], **given(name, net))
    chosen = rows["perturbed_index"]
    assert rows["perturbation"].dtype == np.float16 and len(rows["perturbation"]) == len(chosen)
    assert len(chosen) or name not in WHITE_BOX
    image = from_half(x[chosen], torch.from_numpy(rows["perturbation"]), limit)
    assert (norms(image - x[chosen], limit.norm) <= limit.eps + 1e-6).all()
    assert ((image >= 0) & (image <= 1)).all()
    with torch.no_grad():
        logits = net(image)
    own = logits.gather(1, y[chosen][:, None])[:, 0]
    rest = logits.scatter(1, y[chosen][:, None], -torch.inf).amax(1)
    assert np.array_equal(rows["prediction"][chosen], logits.argmax(1))
    assert np.allclose(rows["margin"][chosen], own - rest, atol=1e-5) and (own < rest).all()


@pytest.mark.parametrize("name", NAMES)
def test_equal_seeds_give_equal_bytes_whatever_was_drawn_before(name):
    net = network(10)
    x, y = images(net)
    found = []
    for other in (1, 2):
        torch.manual_seed(other)
        before = torch.random.get_rng_state()
        found.append(attack(net, x, y, SMALL["linf"], seed=7, **given(name, net))[0])
        assert torch.equal(torch.random.get_rng_state(), before)
    assert all(found[0][row].tobytes() == found[1][row].tobytes() for row in found[0])


@pytest.mark.parametrize("name", INDEPENDENT)
def test_a_chunks_result_does_not_depend_on_other_chunks(name):
    net = network(10)
    x, y = images(net, n=24)
    options = {"threat": "linf:0.02", "chunk": 8} | given(name, net)
    whole, _ = attack(net, x, y, **options)
    other = torch.cat((torch.rand(8, 1, 8, 8, generator=key(9)), x[8:]))
    changed, _ = attack(net, other, torch.cat(((y[:8] + 1) % 10, y[8:])), **options)
    for row in ("broken", "component", "margin", "prediction"):
        assert np.array_equal(whole[row][8:], changed[row][8:])
    tail = whole["perturbed_index"] >= 8
    assert np.array_equal(whole["perturbation"][tail], changed["perturbation"][changed["perturbed_index"] >= 8])


@pytest.mark.parametrize("classes, n, shape", [(2, 1, (1, 8, 8)), (2, 9, (1, 8, 8)), (10, 1, (3, 9, 6))])
@pytest.mark.parametrize("name, norm", CASES)
def test_any_number_of_classes_and_images_will_do(name, norm, classes, n, shape):
    if GUIDE in registry.ATTACKS[name].needs and n == 1:
        pytest.skip("one image has no other to imitate")
    net = network(classes, shape)
    x, y = images(net, n, shape)
    rows, _ = attack(net, x, y, SMALL[norm], **given(name, net))
    assert np.array_equal(rows["broken"], rows["prediction"] != y.numpy())
    assert rows["label"].shape == (n,) and rows["perturbation"].shape[1:] == shape


@pytest.mark.parametrize("name", NAMES)
def test_a_norm_that_is_not_stated_and_models_of_no_use_are_refused(name):
    entry = registry.ATTACKS[name]
    others = {need: "x" for need in entry.needs if need != GUIDE}
    for norm in ("linf", "l2"):
        options = AttackOptions.of(attack=name, threat=f"{norm}:0.1")
        if norm in entry.norms and entry.replaces:
            with pytest.raises(InputError, match=f"bounded by no ε, but threat is {norm}:0.1; give linf:1"):
                options.check_needs(others)
        elif norm in entry.norms:
            options.check_needs(others)
            with pytest.raises(InputError, match="no use of another model as its colleague"):
                options.check_needs(others | {"colleague": "x"})
        else:
            with pytest.raises(InputError, match="works within"):
                options.check_needs(others)
    for need in others:
        with pytest.raises(InputError, match=f"needs a {need}"):
            AttackOptions.of(attack=name, threat=f"{entry.norms[0]}:0.1").check_needs()


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("name, norm", CASES)
def test_forward_passes_are_not_more_than_the_cost_model_says(name, norm, classes):
    """Counted with every component on all images: the share that survives everything is one."""
    net = network(classes)
    x, y = images(net, n=12)
    options = AttackOptions.of(attack=name, threat=SMALL[norm], **QUICK.get(name, {}))
    passes: list[int] = []
    handle = net.register_forward_pre_hook(lambda module, inputs: passes.append(len(inputs[0])))
    given_problem = problem(net, x, y, SMALL[norm])
    others = {need: x.flip(0) if need == GUIDE else net for need in registry.ATTACKS[name].needs}
    for part in components(options, (1, 8, 8), classes).components:
        part.attack(given_problem._replace(others=others), options)
    handle.remove()
    stated = attack_passes(options, len(x), 1.0, classes)
    assert (stated is None) == (not registry.ATTACKS[name].passes)
    if stated is not None:
        assert sum(passes) <= stated
        assert sum(passes) > 0 or registry.ATTACKS[name].access == "none"
