"""Generated code and bf16 give what the plain loops give."""

import json

import h5py
import pytest
import torch
from support import tiny

from dfshield.core.device import compiled, resolve_precision
from dfshield.core.errors import InputError
from dfshield.core.rng import generator
from dfshield.options import TrainOptions
from dfshield.options.sources import Inversion
from dfshield.sources.inversion import ModelInversion, run
from dfshield.sources.trainset import TrainSet
from dfshield.training.trainer import Trainer

pytestmark = pytest.mark.slow


def synthesise(**changes):
    options = Inversion(images=24, batch=6, group=2, iterations=8, device="cpu", **changes)
    synthesizer = ModelInversion(tiny.classifier(), tiny.SHAPE, tiny.CLASSES, options)
    group = synthesizer.group(0)
    with torch.compiler.set_stance("fail_on_recompile" if options.compile else "default"):
        synthesizer.group(1)  # by the same code: to make it anew for every group would take longer than the group
    return group


@pytest.fixture(scope="module")
def plain_group():
    return synthesise()


@pytest.mark.parametrize(
    "changes, tolerance", [({"compile": True}, 2e-3), ({"compile": True, "precision": "bf16"}, 0.1)]
)
def test_synthesis(plain_group, changes, tolerance):
    group = synthesise(**changes)
    assert (group["images"] != plain_group["images"]).any()  # other arithmetic it is
    assert abs(group["images"] - plain_group["images"]).mean() < tolerance
    for name in ("final_loss_class", "final_loss_feature", "final_loss_prior"):
        assert group[name] == pytest.approx(plain_group[name], rel=max(tolerance, 1e-2))


def gradients(**changes):
    options = TrainOptions.of(batch=12, holdout=0, aggregate=1, attack_steps=3, device="cpu", **changes)
    trainset = TrainSet(tiny.images(24), torch.arange(24).numpy() % 10, {})
    trainer = Trainer(tiny.classifier(scale=3.0), trainset, options)
    loss, found = trainer.gradients(torch.arange(12), generator("test"))
    return float(loss), torch.cat([g.flatten() for g in found]), trainer.student.net[1].running_mean


@pytest.fixture(scope="module")
def plain_gradients():
    return gradients()


@pytest.mark.parametrize(
    "changes, tolerance",
    [({"compile": True}, 1e-3), ({"outer_precision": "bf16"}, 0.05), ({"precision": "bf16"}, 0.5)],
)
def test_training(plain_gradients, changes, tolerance):
    for found, expected in zip(gradients(**changes), plain_gradients, strict=True):
        found, expected = torch.as_tensor(found), torch.as_tensor(expected)
        assert (found - expected).norm() <= tolerance * expected.norm()


def test_features_pass_through_generated_code(capsys):
    """They are kept by hooks, which code that is generated without them would leave out."""
    expected = gradients(features=2.0)
    for given, wanted in zip(gradients(features=2.0, compile=True), expected, strict=True):
        found, plain = torch.as_tensor(given), torch.as_tensor(wanted)
        assert (found - plain).norm() <= 1e-3 * plain.norm()
    assert "not used" not in capsys.readouterr().err
    assert abs(expected[0] - gradients()[0]) > 0.1


@pytest.mark.parametrize("loss", ["vat", "gradient-penalty"])
def test_losses_of_second_derivatives_take_the_plain_loops_where_there_are_none(loss):
    given = {"loss": loss, "threat": "l2:0.5"}
    (loss, found, _), (plain, expected, _) = gradients(**given, compile=True), gradients(**given)
    assert loss == pytest.approx(plain, rel=1e-3) and torch.allclose(found, expected, atol=1e-3)


def test_no_compiler_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("/no/such/compiler",))

    def function(x):
        return (x * 3 + 1.25).sin().sum()

    with pytest.raises(InputError, match=r"^compile: PyTorch cannot generate code here \(.*install a C\+\+ compiler"):
        compiled(function)(torch.rand(1000))


@pytest.mark.parametrize(
    "units, expected",
    [({"amx_bf16": True}, "bf16"), ({"avx512_bf16": True}, "bf16"), ({"avx512_f": True, "amx_bf16": False}, "fp32")],
)
def test_auto_is_the_arithmetic_that_the_hardware_is_faster_in(units, expected, monkeypatch):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: units)
    options = TrainOptions.of(precision="auto", outer_precision="auto")
    found = resolve_precision(options, torch.device("cpu"))
    assert (found.precision, found.outer_precision) == (expected, expected)
    assert (
        resolve_precision(TrainOptions.of(precision="fp32", outer_precision="auto"), torch.device("cpu")).precision
        == "fp32"
    )


def test_data_record_the_arithmetic_that_auto_came_to(tmp_path):
    options = Inversion(images=4, batch=2, iterations=1, device="cpu", precision="auto")
    run(tiny.teacher(tmp_path / "teacher.safetensors"), tmp_path / "shard.h5", options)
    with h5py.File(tmp_path / "shard.h5") as file:
        assert json.loads(file.attrs["options"])["precision"] in ("fp32", "bf16")
