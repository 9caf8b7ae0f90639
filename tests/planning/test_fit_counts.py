"""The counts of fits, certificates, detectors and landscapes against the operations that PyTorch executes in them."""

import pytest
import torch
from support import tiny
from support.attacked import images, key, network
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from dfshield import registry
from dfshield.defences.fitted import Fitting
from dfshield.evaluation.certify import certify
from dfshield.evaluation.detection import fit
from dfshield.evaluation.landscape import measure
from dfshield.options import CertifyOptions, DefendOptions, DetectOptions, LandscapeOptions
from dfshield.registry.entry import named

N = 60
SMALL = {
    "mixture": {"images": 30, "steps": 4},
    "dad": {"steps": 3, "epochs": 1},
    "diffpure": {"width": 8, "steps": 3, "batch": 5, "sampling_steps": 2},
    "distribution-transfer": {"width": 8, "steps": 3, "batch": 5, "sampling_steps": 2},
    "adversarial-transformation": {"width": 0.125, "epochs": 2, "batch": 20, "steps": 3, "attack_steps": 2},
    "quilting": {"patches": 20},
    "thermometer": {"epochs": 2, "levels": 3},
    "mixup-inference": {"pool": 10},
}
AT_MOST = {"dad", "mixture", "adversarial-transformation"}
"""Fits with an attack that stops early where it has succeeded."""


class Operations(TorchDispatchMode):
    """Counts in `total` what runs inside, but for the kinds of operation `without`."""

    def __init__(self, *without) -> None:
        super().__init__()
        self.total, self.without = 0, without

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        packet = function._overloadpacket
        count = None if packet in self.without else flop_registry.get(packet)
        self.total += count(*args, **(kwargs or {}), out_val=result) if count else 0
        return result


def operations(model, x):
    """Of one image's forward pass."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x[:1])
    return counter.get_total_flops()


def test_every_fitted_defence_states_what_its_fit_takes():
    fitted = {name for name, entry in registry.DEFENCES.items() if entry.fitted}
    assert fitted == set(SMALL)
    assert all(DefendOptions.of(defence=name).fitting_passes(100) is not None for name in fitted)


@pytest.mark.parametrize("name", SMALL)
def test_fits(name):
    options = DefendOptions.of(defence=name, device="cpu", **SMALL[name])
    teacher = tiny.classifier(scale=3.0).eval().requires_grad_(False)
    x = torch.from_numpy(tiny.images(N)).permute(0, 3, 1, 2).contiguous()
    y = teacher(x).argmax(1)
    given = Fitting(teacher, teacher, x, y, tiny.CLASSES, "linf:0.3", key())
    entry = registry.DEFENCES[name]
    each = operations(teacher, x)
    with Operations() as counter:
        entry.load()(options).fit(given)
    counted = options.fitting_passes(N) * each
    if entry.network:
        counted += options.network_passes(N) * named(entry.network)(options, tiny.SHAPE)
    if counted == 0:
        assert counter.total == 0
    elif name in AT_MOST:
        assert 0.5 * counted < counter.total < 1.05 * counted
    else:
        assert counter.total == pytest.approx(counted, rel=0.08)  # first layers, read-outs and embeddings of time


def test_smoothing_is_crafted_on_few_copies_and_judged_by_many():
    options = DefendOptions.of(defence="smoothing", votes=70, crafting=3)
    made = registry.DEFENCES["smoothing"].load()(options)
    net = network(10)
    x = images(net, 4)[0]
    for module, passes in (
        (made.surrogate(net), options.passes),
        (made.protect(net), options.verdict_passes),
    ):
        with Operations() as counter, torch.no_grad():
            module(x)
        assert counter.total == passes * 4 * operations(net, x)


def test_certificates():
    options = CertifyOptions(n0=10, n=35)
    net = network(10)
    x = images(net, 3)[0]
    with Operations() as counter:
        certify(net, x, options)
    assert counter.total == 3 * options.passes * operations(net, x)


@pytest.mark.parametrize("loss", ["adversarial", "clean"])
def test_landscapes(loss):
    options = LandscapeOptions(loss=loss, threat="linf:0.1", steps=4, points=5, pairs=2, angles=3)
    net = network(10)
    x, y = images(net, 8)
    with Operations() as counter:
        measure(net, x, y, options)
    assert options.passes == (2 * 4 if loss == "adversarial" else 0) + 25 + 6 + 2
    assert 0.85 * options.passes <= counter.total / (8 * operations(net, x)) <= options.passes


@pytest.mark.parametrize("detector", registry.DETECTORS)
def test_fits_of_detectors(detector):
    own = {"classifier": {"epochs": 1}, "lid": {"neighbours": 5, "reference": 20}}.get(detector, {})
    options = DetectOptions.of(detector=detector, threat="linf:0.3", **own)
    net = network(10)
    x, y = images(net, 200)
    with Operations(torch.ops.aten.mm, torch.ops.aten.bmm) as counter:  # covariances, which cost no pass
        fit(net, x, y, options)
    counted = options.fitting_passes(200) * operations(net, x)
    exact = detector in ("mahalanobis", "squeezing")
    found = counter.total if exact else min(counter.total, counted)
    assert found == (pytest.approx(counted, rel=0.05) if exact else found) and counter.total > 0.3 * counted
