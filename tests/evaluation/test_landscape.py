"""The loss around a model's weights: against plain computations, what must not change it, and its file."""

import json
import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import tiny
from support.attacked import images, key, network
from torch import nn

from dfshield import cli
from dfshield.core.errors import InputError
from dfshield.core.rng import generator
from dfshield.evaluation.landscape import direction, mean_loss, measure, moved
from dfshield.evaluation.landscapes import read_landscape
from dfshield.models.checkpoints import read_card
from dfshield.options import LandscapeOptions

SMALL = {"loss": "clean", "points": 3, "angles": 4, "pairs": 2, "radius": 0.3, "batch": 7}


def options(**changes: object) -> LandscapeOptions:
    return LandscapeOptions(**(SMALL | changes))  # type: ignore[arg-type]


def normalised(channels: int = 3) -> nn.Sequential:
    """A network with a BatchNorm layer, in training mode."""
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Conv2d(1, channels, 3), nn.BatchNorm2d(channels), nn.ReLU(), nn.Flatten(), nn.Linear(36 * channels, 4)
    )


def test_every_filter_of_a_direction_is_as_long_as_the_weights_filter_and_the_rest_stays() -> None:
    net = normalised()
    found = direction(net, key())
    assert found.keys() == {"0.weight", "4.weight"}  # neither biases nor BatchNorm
    for name, way in found.items():
        weight = net.get_parameter(name)
        for own, drawn in zip(weight, way, strict=True):
            assert drawn.norm().item() == pytest.approx(own.norm().item(), rel=1e-5)
    other = normalised()
    with torch.no_grad():
        other[0].weight.mul_(3)
    again = direction(other, key())
    assert torch.allclose(again["0.weight"], 3 * found["0.weight"])  # the same draw, in its own lengths


def test_the_surface_and_the_circles_by_a_plain_computation() -> None:
    net = network(5).eval()
    x, _ = images(net, 20)
    y = torch.arange(20) % 5
    found = measure(net, x, y, options(extent=0.8, seed=3))
    assert found["coordinates"] == (-0.8, 0.0, 0.8)
    names = ("0.weight", "3.weight")

    def plain(pair: int, a: float, b: float) -> float:
        random = generator("landscape", 3, pair)
        ways = [[torch.randn(net.get_parameter(name).shape, generator=random) for name in names] for _ in range(2)]
        state = {name: value.clone() for name, value in net.state_dict().items()}
        for length, way in zip((a, b), ways, strict=True):
            for name, drawn in zip(names, way, strict=True):
                own = net.get_parameter(name).detach()
                for index in range(len(own)):
                    state[name][index] += length * drawn[index] / drawn[index].norm() * own[index].norm()
        logits = torch.func.functional_call(net, state, (x,))
        return float(F.cross_entropy(logits, y))

    places = list(product(found["coordinates"], repeat=2))
    expected = np.array([plain(0, a, b) for a, b in places]).reshape(3, 3)
    assert np.allclose(found["surface"], expected, rtol=1e-4)
    assert found["surface"][1][1] == found["centre"] == pytest.approx(F.cross_entropy(net(x), y).item(), rel=1e-5)
    for pair, rise in enumerate(found["rises"]):
        turns = [index * math.pi / 2 for index in range(4)]
        circle = [plain(pair, 0.3 * math.cos(turn), 0.3 * math.sin(turn)) for turn in turns]
        assert rise == pytest.approx(sum(circle) / 4 - found["centre"], rel=1e-3, abs=1e-5)


def test_the_scale_of_the_weights_has_no_say() -> None:
    """A ReLU network computes the same if one layer is ten times as long and the next a tenth: so is its sharpness."""
    net = network(4)
    x, y = images(net, 12)
    first = measure(net, x, y, options())
    with torch.no_grad():
        net[0].weight.mul_(10)
        net[0].bias.mul_(10)
        net[3].weight.div_(10)
    again = measure(net, x, y, options())
    assert again["rises"] == pytest.approx(first["rises"], rel=1e-3)
    assert min(first["rises"]) > 1e-3


def test_the_model_is_left_as_it_was() -> None:
    net = normalised().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    measure(net, torch.rand(6, 1, 8, 8), torch.arange(6) % 4, options(loss="adversarial", threat="linf:0.1"))
    assert net.training and all(parameter.requires_grad for parameter in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    way = direction(net, key())
    with pytest.raises(ZeroDivisionError), moved(net, [(1.0, way)]):
        assert not torch.equal(net[0].weight, before["0.weight"])
        raise ZeroDivisionError
    assert torch.equal(net[0].weight, before["0.weight"])


@pytest.mark.parametrize("threat", ["linf:0.1", "l2:0.5"])
def test_attacked_images_have_a_higher_loss_at_the_centre(threat: str) -> None:
    net = network(5)
    x, y = images(net, 30)
    clean = measure(net, x, y, options())
    attacked = measure(net, x, y, options(loss="adversarial", threat=threat))
    stronger = measure(net, x, y, options(loss="adversarial", threat=threat, steps=1))
    assert clean["accuracy"] == attacked["accuracy"] == 1.0  # of the images as they are
    assert clean["predicted"] == len(y.unique()) > 1
    assert clean["centre"] < stronger["centre"] < attacked["centre"]
    assert clean["centre"] == pytest.approx(mean_loss(net, x, y, 30))
    whole = measure(net, x, y, options(loss="adversarial", threat="linf:0", steps=1))
    assert whole["centre"] == clean["centre"]


def test_other_seeds_take_other_directions() -> None:
    net = network(5)
    x, y = images(net, 12)
    found = [measure(net, x, y, options(seed=seed))["rises"] for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    assert found[0][0] != found[0][1]


def test_a_loss_that_is_not_finite_is_refused() -> None:
    net = network(5)
    x, y = images(net, 6)
    with pytest.raises(InputError, match=r"not finite at \(-1e\+38, .*use a smaller extent"):
        measure(net, x, y, options(extent=1e38))
    with pytest.raises(InputError, match="so there is no direction"):
        measure(nn.Flatten(), torch.rand(3, 1, 1, 4), torch.tensor([0, 1, 2]), options())


@pytest.mark.parametrize("points", [30, 2])
def test_the_model_is_a_point_of_its_surface(points: int) -> None:
    with pytest.raises(ValueError, match="points"):
        LandscapeOptions(points=points)


def test_the_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command gives the same bytes each time; the record says what was measured, of what."""
    teacher = tmp_path / "teacher.safetensors"
    tiny.teacher(teacher)
    x = (torch.rand(12, 8, 8, generator=key(2)) * 255).byte().numpy()
    np.savez(tmp_path / "test.npz", x=x, y=np.arange(12) % 10)
    words = ["landscape", "--model", str(teacher), "--evaluation", str(tmp_path / "test.npz"), "--threat", "linf:2/16"]
    words += ["--points", "3", "--pairs", "2", "--angles", "3", "--limit", "9", "--seed", "4"]
    for name in ("a.json", "b.json"):
        cli.main([*words, "--out", str(tmp_path / name)])
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    found = read_landscape(tmp_path / "a.json")
    assert (found.n, found.seed, found.real_data) == (9, 4, "teacher")
    assert found.model_sha256 == read_card(teacher).tensors_sha256
    assert found.sharpness == pytest.approx(sum(found.rises) / 2)
    assert found.protocol == "sharpness[PGD-10 r=0.5 2x3]"
    cli.main(["inspect", str(tmp_path / "a.json")])
    said = capsys.readouterr().out
    assert "3×3 points, to ±1 norms of the filters" in said and f"{found.sharpness:.4g} nat" in said
    values = json.loads((tmp_path / "a.json").read_text())
    (tmp_path / "a.json").write_text(json.dumps(values | {"centre": 0.1}))
    with pytest.raises(InputError, match="does not match its SHA-256"):
        read_landscape(tmp_path / "a.json")
