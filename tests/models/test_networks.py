"""Network factories: shapes, sizes, seeds, and the user's own factories with all their ways to be wrong."""

import hashlib
import io
import urllib.error
import urllib.request
import zipfile

import pytest
import torch
from torch import nn

from dfshield import registry
from dfshield.core.errors import InputError
from dfshield.models import cnn as demo
from dfshield.models import pytorchcv as general
from dfshield.models.factory import build_network


@pytest.mark.parametrize("model", registry.MODELS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 28, 28), (1, 28, 28), (3, 32, 32)])
def test_every_model_takes_every_size(model, shape):
    with torch.device("meta"):
        net = build_network(model, shape, 7).eval()
        assert net(torch.zeros(2, *shape)).shape == (2, 7)
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in net.modules())


@pytest.mark.parametrize(
    ("model", "shape", "classes", "count"),
    [
        ("resnet20", (3, 32, 32), 10, 272_474),
        ("resnet20", (3, 32, 32), 100, 278_324),
        ("resnet56", (3, 32, 32), 10, 855_770),
        ("wrn28_10", (3, 32, 32), 10, 36_479_194),
        ("resnet18", (3, 28, 28), 10, 11_173_962),
        ("resnet50", (3, 28, 28), 10, 23_520_842),
        ("mobilenetv2", (3, 32, 32), 10, 2_236_682),
        ("shufflenetv2", (3, 32, 32), 10, 1_263_854),
        ("cnn-s", (1, 8, 8), 10, 1_602),
        ("cnn-m", (1, 8, 8), 10, 2_194),
        ("toy", (2, 1, 1), 2, 2_370),
    ],
)
def test_parameter_counts(model, shape, classes, count):
    with torch.device("meta"):
        net = build_network(model, shape, classes)
    assert sum(p.numel() for p in net.parameters()) == count
    documented = registry.MODELS[model].load().__doc__
    assert f"{count:,}" in documented or classes != 10


def multiply_adds(net, shape):
    total = 0

    def count(layer, _, out):
        nonlocal total
        inputs = layer.weight[0].numel()
        total += inputs * out[0].numel()

    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    net.eval()(torch.zeros(1, *shape))
    return total


def test_demo_networks_cost_what_their_docstrings_say():
    small = multiply_adds(demo.cnn_s((1, 8, 8), 10), (1, 8, 8))
    medium = multiply_adds(demo.cnn_m((1, 8, 8), 10), (1, 8, 8))
    assert f"{small:,} multiply-adds" in demo.cnn_s.__doc__
    assert f"{medium:,} multiply-adds" in demo.cnn_m.__doc__
    assert small < medium <= 2 * small


def test_medical_resnet_keeps_the_image_size_at_first_and_halves_it_three_times():
    net = build_network("resnet18", (3, 28, 28), 9)
    sizes = []
    for layer in net:
        layer.register_forward_hook(lambda _, __, out: sizes.append(tuple(out.shape[1:])))
    net.eval()(torch.zeros(1, 3, 28, 28))
    maps = [size for size in sizes if len(size) == 3]
    assert maps[0] == (64, 28, 28)
    assert maps[3:10:2] == [(64, 28, 28), (128, 14, 14), (256, 7, 7), (512, 4, 4)]


def test_initial_weights_depend_on_the_seed_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = build_network("cnn-s", (1, 8, 8), 10, seed=1).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    again, other = (build_network("cnn-s", (1, 8, 8), 10, seed=s).state_dict() for s in (1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["0.weight"], other["0.weight"])


FACTORIES = """
import torch
from torch import nn
def good(width=4, classes=5):
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(width, classes))
def raises():
    raise KeyError("depth")
def no_module():
    return {"weights": 1}
def two_outputs():
    class Net(nn.Module):
        def forward(self, x):
            return x, x
    return Net()
not_callable = 3
"""


@pytest.fixture
def user_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(FACTORIES)
    (tmp_path / "broken.py").write_text("import torch\ndef f(:\n")
    (tmp_path / "needs_more.py").write_text("import a_package_that_nobody_has\n")
    package = tmp_path / "their_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "nets.py").write_text("from their_package.parts import good\n")
    (package / "parts.py").write_text(FACTORIES)
    return tmp_path


@pytest.mark.parametrize("factory", ["net.py:good", "their_package.nets:good", "./net.py:good"])
def test_user_factory(user_code, factory):
    net = build_network("mine", (1, 8, 8), 5, factory, {"width": 6})
    assert net(torch.zeros(2, 1, 8, 8)).shape == (2, 5)
    assert net.training
    assert net[1].num_batches_tracked == 1  # this test's own pass; the check before it left no trace
    assert net[0].out_channels == 6


@pytest.mark.parametrize(
    ("factory", "shape", "classes", "arguments", "says"),
    [
        ("nowhere.py:good", (1, 8, 8), 5, {}, "no such file nowhere.py"),
        ("nowhere.nets:good", (1, 8, 8), 5, {}, "no module 'nowhere'"),
        ("their_package.nowhere:good", (1, 8, 8), 5, {}, "no module 'their_package.nowhere'"),
        ("needs_more:good", (1, 8, 8), 5, {}, "a_package_that_nobody_has"),
        ("needs_more.py:good", (1, 8, 8), 5, {}, "a_package_that_nobody_has"),
        ("broken.py:f", (1, 8, 8), 5, {}, "SyntaxError"),
        ("net.py:missing", (1, 8, 8), 5, {}, "no function 'missing' .it has: good, raises"),
        ("net.py:not_callable", (1, 8, 8), 5, {}, "no function 'not_callable'"),
        ("net.py", (1, 8, 8), 5, {}, "write package.module:function"),
        ("net.py:raises", (1, 8, 8), 5, {}, r"KeyError: 'depth' \(net.py, line 8\)"),
        ("net.py:good", (1, 8, 8), 5, {"depth": 3}, "unexpected keyword argument 'depth'"),
        ("net.py:no_module", (1, 8, 8), 5, {}, "returned a dict"),
        ("net.py:good", (1, 8, 8), 10, {}, r"gives \[1, 5\] for one image, \[1, 10\] is needed"),
        ("net.py:two_outputs", (1, 8, 8), 5, {}, "gives a tuple"),
        ("net.py:good", (3, 8, 8), 5, {}, r"forward pass with input_shape \[3, 8, 8\] failed"),
    ],
)
def test_user_factory_errors(user_code, factory, shape, classes, arguments, says):
    with pytest.raises(InputError, match=says) as caught:
        build_network("mine", shape, classes, factory, arguments)
    assert "\n" not in str(caught.value)


def test_unknown_model_lists_the_known_ones():
    with pytest.raises(InputError, match=r"'resnet21' is not one of cnn-s, .*resnet20"):
        build_network("resnet21", (3, 32, 32), 10)


NAME = registry.MODELS["resnet20"].pretrained["cifar10"]


@pytest.fixture
def published(monkeypatch, tmp_path):
    """Some weights, and pytorchcv's table saying that they are the right ones."""
    content = b"the weights"
    monkeypatch.setattr(general, "_published", lambda name: (hashlib.sha1(content).hexdigest(), "v1.2.3"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return content


@pytest.mark.parametrize("folder", ["data", "data/models", "home/.torch/models"])
def test_pretrained_weights_are_found_locally(published, tmp_path, folder):
    (tmp_path / folder).mkdir(parents=True)
    path = tmp_path / folder / NAME
    path.write_bytes(published)
    assert general.find_pretrained("resnet20", "cifar10", tmp_path / "data") == path
    path.write_bytes(published + b"!")
    with pytest.raises(InputError, match=r"SHA-1 is .* pytorchcv publishes"):
        general.find_pretrained("resnet20", "cifar10", tmp_path / "data")


def test_pretrained_table_agrees_with_pytorchcv():
    for model, entry in registry.MODELS.items():
        for dataset, file in entry.pretrained.items():
            sha1, release = general._published(f"{model}_{dataset}")
            assert file.endswith(f"-{sha1[:8]}.pth")
            assert release.startswith("v")


def test_pretrained_weights_are_downloaded_from_the_release(published, tmp_path, monkeypatch):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as members:
        members.writestr(NAME, published)
    asked = []
    monkeypatch.setattr(
        urllib.request, "urlopen", lambda url, timeout: asked.append(url) or io.BytesIO(archive.getvalue())
    )
    path = general.find_pretrained("resnet20", "cifar10", tmp_path / "data")
    assert path == tmp_path / "data" / "models" / NAME
    assert path.read_bytes() == published
    assert asked == [f"https://github.com/osmr/imgclsmob/releases/download/v1.2.3/{NAME}.zip"]


def _offline(url, timeout):
    raise urllib.error.URLError("no route to host")


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (_offline, "the download failed .no route to host.; fetch https://.* and put"),
        (lambda url, timeout: io.BytesIO(b"<html>not found</html>"), "the download failed"),
    ],
)
def test_pretrained_weights_that_cannot_be_had(published, tmp_path, monkeypatch, answer, says):
    monkeypatch.setattr(urllib.request, "urlopen", answer)
    with pytest.raises(InputError, match=says) as caught:
        general.find_pretrained("resnet20", "cifar10", tmp_path / "data")
    assert NAME in str(caught.value)
    assert ".torch/models" in str(caught.value)
    assert not (tmp_path / "data").exists()


def test_a_download_with_another_hash_leaves_nothing(published, tmp_path, monkeypatch):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as members:
        members.writestr(NAME, b"others' weights")
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: io.BytesIO(archive.getvalue()))
    with pytest.raises(InputError, match="SHA-1"):
        general.find_pretrained("resnet20", "cifar10", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_no_pretrained_weights_for_other_data(tmp_path):
    with pytest.raises(InputError, match="exist for: cifar10, cifar100, svhn"):
        general.find_pretrained("resnet20", "pathmnist", tmp_path)
