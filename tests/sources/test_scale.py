"""One function of pixels gives one set of images, wherever its normalisation is written."""

import copy

import pytest
import torch
import torch.nn.functional as F
from support import tiny
from torch import nn

from dfshield.baselines.ait import Ait
from dfshield.baselines.cotrain import Cotrainer
from dfshield.models.card import Card
from dfshield.models.classifier import Classifier
from dfshield.options.baselines import Ait as AitOptions
from dfshield.options.sources import Intraq, Inversion, Qimera, Rdskd
from dfshield.sources import generator as stage
from dfshield.sources import inversion
from dfshield.sources.intraq import IntraQ
from dfshield.sources.inversion import ModelInversion
from dfshield.sources.qimera import Qimera as QimeraSource
from dfshield.sources.rdskd import Rdskd as RdskdSource
from dfshield.sources.scale import MEAN, STD, Scale, in_own_scale, measure
from dfshield.sources.trainset import header

MEANS, STDS, SHAPE = (0.3, 0.5, 0.6), (0.2, 0.3, 0.4), (3, 8, 8)
IDENTITY = ((0.0,) * 3, (1.0,) * 3)


def column(values) -> torch.Tensor:
    return torch.tensor(values).view(1, -1, 1, 1)


class Before(nn.Module):
    """A network after a function of its input."""

    def __init__(self, net: nn.Module, function) -> None:
        super().__init__()
        self.net, self.function = net, function

    def forward(self, x):
        return self.net(self.function(x))


def normalised(x):
    return (x - column(MEANS)) / column(STDS)


def plain() -> Classifier:
    return tiny.classifier(shape=SHAPE, mean=MEANS, std=STDS, scale=3.0)


def inside() -> Classifier:
    return Classifier(Before(plain().net, normalised), *IDENTITY).eval()


def takes_bytes() -> Classifier:
    return Classifier(Before(plain().net, lambda x: normalised(x / 255)), (0.0,) * 3, (1 / 255,) * 3).eval()


def with_batchnorm() -> Classifier:
    """BatchNorm for first layer, whose running statistics are what the plain network is normalised by."""
    norm = nn.BatchNorm2d(3, eps=1e-12, affine=False).eval()
    norm.running_mean.copy_(torch.tensor(MEANS))
    norm.running_var.copy_(torch.tensor(STDS).square())
    return Classifier(nn.Sequential(norm, plain().net), *IDENTITY).eval()


def first(function, channels=3, shape=SHAPE) -> Classifier:
    """A convolution after a function of pixels in [0,1]."""
    net = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Classifier(Before(net, function), (0.0,) * shape[0], (1.0,) * shape[0]).eval()


KEPT = {
    "normalised": normalised,
    "in another order": lambda x: normalised(x).flip(1),
    "padded": lambda x: F.pad(normalised(x), (2, 2, 2, 2)),
    "padded before": lambda x: normalised(F.pad(x, (2, 2, 2, 2))),
    "resized": lambda x: normalised(F.interpolate(x, size=(13, 13), mode="bilinear", antialias=True)),
    "cropped": lambda x: normalised(x)[:, :, 1:7, 2:7],
    "clamped": lambda x: normalised(x.clamp(0, 1)),
    "in double precision": lambda x: normalised(x.double()).float(),
    "with noise": lambda x: normalised(x) + 0.1 * torch.randn_like(x),
    "by a product of matrices": lambda x: torch.einsum("nchw,cd->ndhw", normalised(x), torch.eye(3)),
    "through a fixed convolution": lambda x: F.conv2d(normalised(x), torch.ones(3, 1, 1, 1), groups=3),
}


@pytest.mark.parametrize("function", KEPT.values(), ids=KEPT)
def test_the_first_layer_tells_the_scale(function):
    found = measure(first(function), SHAPE)
    assert found is not None
    assert found.mean == pytest.approx(MEANS, abs=0.02 if function is KEPT["with noise"] else 1e-5)
    assert found.std == pytest.approx(STDS, rel=1e-5)


def test_pixels_in_depth_grey_in_colour_and_inverted():
    deep = first(lambda x: F.pixel_unshuffle(normalised(x), 2), channels=12)
    assert measure(deep, SHAPE) == Scale(MEANS, STDS)
    grey = first(lambda x: normalised(x.repeat(1, 3, 1, 1)), shape=(1, 8, 8))
    assert measure(grey, (1, 8, 8)) == Scale((0.5,), (0.3,))
    assert measure(first(lambda x: (0.5 - x) / 0.25), SHAPE) == Scale((0.5,) * 3, (0.25,) * 3)


def test_batchnorm_before_all_layers_tells_by_its_statistics_alone():
    norm = nn.BatchNorm2d(3).eval()
    norm.running_mean.fill_(60.0)
    norm.running_var.fill_(400.0)
    nn.init.constant_(norm.weight, 7.0)
    found = measure(Classifier(Before(nn.Sequential(norm, plain().net), lambda x: 100 * x), *IDENTITY).eval(), SHAPE)
    assert found == Scale((0.6,) * 3, (0.2,) * 3)


def test_layers_that_are_no_classes_of_pytorch():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(10, 192))
            self.place = nn.Linear(2, 1)  # of what does not depend on the image
            self.norm = nn.BatchNorm2d(1)

        def forward(self, x):
            offset = self.place(torch.ones(1, 2))
            standardised = self.weight - self.weight.mean(1, keepdim=True)
            return F.linear(normalised(x).flatten(1) + 0 * offset.detach(), standardised)

    assert measure(Classifier(Own(), *IDENTITY).eval().requires_grad_(False), SHAPE) == Scale(MEANS, STDS)


NO_SCALE = {
    "logarithm": lambda x: torch.log(x + 1e-3),
    "logarithm of nothing": torch.log,
    "gamma": lambda x: x**2.2,
    "each image's own statistics": lambda x: (x - x.mean((1, 2, 3), True)) / x.std((1, 2, 3), keepdim=True),
    "each image's own range": lambda x: (x - x.amin((1, 2, 3), True)) / (x.amax((1, 2, 3), True) + 1e-6),
    "luminance": lambda x: x * 0 + (x * column((0.3, 0.6, 0.1))).sum(1, keepdim=True),
    "one channel": lambda x: x[:, :1].repeat(1, 3, 1, 1),
    "nothing": torch.zeros_like,
}


@pytest.mark.parametrize("function", NO_SCALE.values(), ids=NO_SCALE)
def test_what_has_no_scale_is_said(function, capsys):
    model = first(function)
    assert measure(model, SHAPE) is None
    made = in_own_scale(model, SHAPE)
    assert "not known to be an affine map" in capsys.readouterr().err
    assert made.mean.flatten().tolist() == [MEAN] * 3 and made.std.flatten().tolist() == [STD] * 3
    usual = Classifier(model.net, MEANS, STDS).eval()
    assert in_own_scale(usual, SHAPE) is usual, "a scale that pixels can have is kept"
    assert "not known to be an affine map" in capsys.readouterr().err


def test_a_network_that_refuses_to_be_watched_keeps_its_scale():
    def raises(x):
        if torch._C._len_torch_dispatch_stack():
            raise RuntimeError("not in this mode")
        return x

    model = Classifier(Before(plain().net, raises), MEANS, STDS).eval()
    assert measure(model, SHAPE) is None and in_own_scale(model, SHAPE) is model


def test_the_usual_network_is_as_it_was(capsys):
    model = plain().train()
    next(model.parameters()).requires_grad_(False)
    before = [p.requires_grad for p in model.parameters()]
    values = copy.deepcopy(model.state_dict())
    assert in_own_scale(model, SHAPE) is model
    assert capsys.readouterr().err == ""
    assert model.training and [p.requires_grad for p in model.parameters()] == before
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("build", [inside, takes_bytes, with_batchnorm])
def test_the_same_function_of_pixels_in_its_own_scale(build, capsys):
    model, made = build(), in_own_scale(build(), SHAPE)
    assert "normalises inside" in capsys.readouterr().err
    assert made.mean.flatten().tolist() == pytest.approx(MEANS) and made.std.flatten().tolist() == pytest.approx(STDS)
    images = torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(made(images), model(images), atol=1e-4)
    z = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(made.net(z), plain().net(z), atol=1e-4)


@pytest.mark.parametrize("size", [1, 255])
def test_pixels_that_nothing_normalises(size, capsys):
    """The network's first layer sees 0..1 or 0..255; images are made as if by the default scale."""
    model = Classifier(plain().net, (0.0,) * 3, (1 / size,) * 3)
    made = in_own_scale(model, SHAPE)
    assert "nothing brings to unit variance" in capsys.readouterr().err
    assert made.mean.flatten().tolist() == [MEAN] * 3 and made.std.flatten().tolist() == [STD] * 3
    z = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(made.net(z), model.net((MEAN + STD * z) * size), rtol=1e-4, atol=1e-4)
    centred = in_own_scale(Classifier(plain().net, MEANS, (1 / size,) * 3), SHAPE)
    assert centred.mean.flatten().tolist() == pytest.approx(MEANS), "a mean that somebody has taken stays"


OBJECTIVES = {
    "inversion": (ModelInversion, Inversion(images=20, batch=10, group=2, iterations=12, seed=0)),
    "clamped": (ModelInversion, Inversion(images=20, batch=10, group=2, iterations=12, clamp="step", start="smooth")),
    "intraq": (IntraQ, Intraq(images=20, batch=10, group=2, iterations=12)),
}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("build", [inside, takes_bytes])  # a BatchNorm layer more is matched besides
def test_synthesis_gives_the_same_images(build, name):
    synthesizer, options = OBJECTIVES[name]
    expected = synthesizer(plain(), SHAPE, 10, options).group(0)
    found = synthesizer(in_own_scale(build(), SHAPE), SHAPE, 10, options).group(0)
    assert abs(found["images"] - expected["images"]).mean() < 1e-3
    for term in synthesizer.terms:
        assert found[f"final_loss_{term}"] == pytest.approx(expected[f"final_loss_{term}"], rel=0.01, abs=1e-4)
    other = synthesizer(build(), SHAPE, 10, options).group(0)
    assert abs(other["images"] - expected["images"]).mean() > 0.05, "which its own scale would not give"


SMALL = {"images": 20, "batch": 10, "epochs": 1, "iterations": 3, "width": 0.2}
GENERATED = {
    "qimera": (QimeraSource, Qimera(latent=8, **SMALL)),
    "rdskd": (RdskdSource, Rdskd(**SMALL | {"latent": 8})),
}


@pytest.mark.parametrize("name", GENERATED)
@pytest.mark.parametrize("build", [inside, takes_bytes])
def test_generators_give_the_same_images(build, name):
    source, options = GENERATED[name]

    def images(teacher):
        made = source(teacher, SHAPE, 10, options)
        made.fit()
        return made.draw_set()[0]

    expected = images(plain())
    assert abs(images(in_own_scale(build(), SHAPE)) - expected).mean() < 1e-3
    assert abs(images(build()) - expected).mean() > 0.02


def test_cotraining_feeds_its_generator_the_same_scale(monkeypatch):
    options = AitOptions(batch=10, generator_width=0.2, latent=8)
    for build, scale_of in ((plain, (MEANS, STDS)), (inside, IDENTITY)):
        card = Card("teacher", "own", "own", SHAPE, 10, *scale_of, "teacher", factory="own")
        monkeypatch.setattr(Cotrainer, "_start", lambda self, teacher, card: copy.deepcopy(teacher))
        made = Cotrainer(build(), card, options)
        assert isinstance(made.method, Ait)
        assert made.method.generator.mean.flatten().tolist() == pytest.approx(MEANS)
        assert tuple(made.student.mean.flatten().tolist()) == pytest.approx(scale_of[0])


def card_of(model: Classifier):
    mean, std = (tuple(v.flatten().tolist()) for v in (model.mean, model.std))
    return Card("teacher", "own", "own", SHAPE, 10, mean, std, "teacher", tensors_sha256="t" * 64)


@pytest.mark.parametrize("build", [plain, inside])
def test_the_file_says_which_scale_if_it_is_not_the_configured(build, tmp_path, monkeypatch):
    card = card_of(build())
    for module in (inversion, stage):
        monkeypatch.setattr(module, "load_checkpoint", lambda *given, **named: (build(), card))
    inversion.run(tmp_path / "t", tmp_path / "dss.h5", Inversion(images=10, batch=10, iterations=1, device="cpu"))
    stage.run(tmp_path / "t", tmp_path / "q.h5", Qimera(latent=8, device="cpu", **SMALL))
    for name in ("dss.h5", "q.h5"):
        stated = header(tmp_path / name).get("scale")
        assert stated == (None if build is plain else '{"mean":[0.3,0.5,0.6],"std":[0.2,0.3,0.4]}')
