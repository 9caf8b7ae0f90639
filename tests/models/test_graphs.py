"""Networks in one file with their graph: TorchScript, exported programs, ONNX."""

import copy
import re
import sys

import pytest
import torch
from support.graphs import SMALL, Net, small_net, with_statistics, write
from torch import nn

from dfshield.core.errors import InputError
from dfshield.models.bundles import GRAPH, factory_of, pinned, wherever
from dfshield.models.classifier import Classifier
from dfshield.models.factory import build_network
from dfshield.models.graphs import network
from dfshield.models.statistics import matched_layers
from dfshield.options.sources import Inversion
from dfshield.sources.inversion import ModelInversion

SHAPE = (3, 32, 32)


@pytest.fixture
def net():
    return small_net()


class TestOneNetworkInEveryForm:
    """The registry's resnet20 as a file of each kind."""

    @pytest.fixture
    def original(self):
        return with_statistics(build_network("resnet20", SHAPE, 10))

    @pytest.fixture
    def images(self):
        return torch.rand((200, *SHAPE), generator=torch.Generator().manual_seed(1))

    @pytest.mark.parametrize("name", ["trace.pt", "net.pt2", "fixed.pt2", "net.onnx", "fixed.onnx"])
    def test_predictions_are_the_same_to_the_last_image(self, torchvision, original, images, tmp_path, name):
        fixed = name.startswith("fixed")
        path = write(original, tmp_path / name, SHAPE, 1 if fixed else 2, not fixed)
        made = network(str(path), SHAPE)
        with torch.no_grad():
            found, expected = made(images), original(images)
        assert torch.equal(found.argmax(1), expected.argmax(1))
        if path.suffix != ".onnx":
            assert torch.equal(found, expected)  # the same kernels in the same order
            assert made.state_dict().keys() == original.state_dict().keys()
            assert [n for n, m in made.named_modules() if isinstance(m, nn.BatchNorm2d)] == [
                n for n, m in original.named_modules() if isinstance(m, nn.BatchNorm2d)
            ]
        assert sum(p.numel() for p in made.parameters()) == sum(p.numel() for p in original.parameters())

    @pytest.mark.parametrize(
        ("name", "exact"), [("trace.pt", True), ("net.pt2", True), ("fixed.pt2", True), ("net.onnx", False)]
    )
    def test_two_steps_of_synthesis_are_the_same(self, torchvision, original, tmp_path, name, exact):
        """ONNX has the layers, and so the sum of their losses, in the order of its nodes."""
        path = write(original, tmp_path / name, SHAPE, 2, name != "fixed.pt2")
        found, expected = (synthetic(one) for one in (network(str(path), SHAPE), original))
        assert torch.equal(found, expected) if exact else torch.allclose(found, expected, atol=2e-2)
        assert not torch.equal(found[0], found[1])


def synthetic(net):
    """Images after two steps of synthesis by a copy of a network."""
    options = Inversion(images=4, batch=4, iterations=2, storage="float32", threads=1, device="cpu")
    model = Classifier(copy.deepcopy(net), (0.5,) * 3, (0.25,) * 3).eval()
    return torch.from_numpy(ModelInversion(model, SHAPE, 10, options).group(0)["images"])


@pytest.mark.parametrize("name", ["script.pt", "trace.pt", "net.pt2", "fixed.pt2", "net.onnx", "fixed.onnx"])
def test_layers_statistics_and_training_are_the_original_s(torchvision, net, tmp_path, name):
    path = write(net, tmp_path / name, SMALL, 1 if "fixed" in name else 2, "fixed" not in name)
    made = network(str(path), SMALL)
    x = torch.rand(6, *SMALL)
    with torch.no_grad():
        assert torch.allclose(made(x), net(x), atol=1e-5)
    layers = [m for m in made.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(layers) == 2
    assert torch.allclose(layers[0].running_var, net.bn1.running_var) and abs(layers[0].eps - 1e-3) < 1e-6
    assert abs(layers[0].momentum - 0.2) < 1e-6
    made.train()(x)
    net.train()(x)
    assert torch.allclose(layers[0].running_mean, net.bn1.running_mean, atol=1e-6)
    made(x).sum().backward()
    assert all(p.grad is not None for p in made.parameters())


class Product(nn.Module):
    """A network whose last layer is written as a product and a sum."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.matrix, self.offset = nn.Parameter(torch.rand(6, 4)), nn.Parameter(torch.rand(4))

    def forward(self, x):
        return self.bn(self.conv(x)).mean((2, 3)) @ self.matrix + self.offset


def test_products_and_sums_of_a_graph_are_trained(torchvision, tmp_path):
    original = with_statistics(Product())
    made = network(str(write(original, tmp_path / "net.onnx")), SMALL)
    sizes = sorted(tuple(p.shape) for p in made.parameters())
    assert (6, 4) in sizes and len(sizes) == len(list(original.parameters()))


@pytest.mark.parametrize(("end", "cut"), [(nn.Softmax(1), True), (nn.LogSoftmax(1), False)])
def test_an_onnx_graph_gives_logits(torchvision, net, tmp_path, capsys, end, cut):
    """A softmax over classes at its end is left out; other ends are what they are."""
    whole = nn.Sequential(net, end)
    made = network(str(write(whole, tmp_path / "net.onnx", SMALL, 5)), SMALL)
    x = torch.rand(6, *SMALL)
    with torch.no_grad():
        assert torch.allclose(made(x), (net if cut else whole)(x), atol=1e-5)
    assert ("ends in Softmax, which is left out" in capsys.readouterr().err) == cut


@pytest.mark.parametrize("name", ["script.pt", "trace.pt", "net.pt2"])
def test_programs_keep_names_and_kinds(net, tmp_path, name):
    made = network(str(write(net, tmp_path / name)), SMALL)
    used = {key for key in net.state_dict() if not key.startswith("spare")}
    assert set(made.state_dict()) >= used - {"bn2.weight", "bn2.bias"}
    assert {type(m) for m in made.modules()} >= {nn.Conv2d, nn.BatchNorm2d, nn.Linear}
    assert isinstance(made.get_submodule("conv2"), nn.Conv2d) and made.get_submodule("conv2").groups == 2
    dropped = [m.p for m in made.modules() if isinstance(m, nn.Dropout)]
    assert dropped == [0.5]


def test_each_call_gives_a_network_of_its_own(net, tmp_path):
    path = str(write(net, tmp_path / "net.pt2"))
    first, second = network(path, SMALL), network(path, SMALL)
    first.conv1.weight.data.zero_()
    assert second.conv1.weight.abs().sum() > 0


def test_what_answers_otherwise_is_refused(torchvision, net, tmp_path, monkeypatch):
    from dfshield.models import exported

    path = write(net, tmp_path / "net.pt2")
    monkeypatch.setitem(exported.BUILDERS, torch.ops.aten.relu.default, lambda values, tensors: nn.Identity())
    with pytest.raises(InputError, match=r"answers otherwise than the file, for 1 images: logits differ by"):
        network(str(path), SMALL)


def test_a_number_of_images_that_cannot_be_freed_is_refused(tmp_path, net):
    class Fixed(Net):
        def forward(self, x):
            return super().forward(x) + torch.ones(2, 1).repeat(x.shape[0] // 2, 1)

    made = with_statistics(Fixed())
    path = write(made, tmp_path / "fixed.pt2", SMALL, 2, False)
    with pytest.raises(InputError, match=r"it was exported for 2; export it with a free number|cannot be converted"):
        network(str(path), SMALL)


class Pair(Net):
    def forward(self, x):
        return super().forward(x), x


REFUSED = {
    "train.pt2": r"was exported in training mode; call model.eval\(\)|answers otherwise|cannot be converted",
    "pair.pt2": "returns 2 tensors",
    "pair.onnx": r"has 2 outputs \(",
    "cut.onnx": "cannot be converted",
    "cut.pt2": "has weights without their network",
    "weights.pt": "weights without their network .* give the factory",
    "none.onnx": "no such file",
}


FOLDED = {
    "folded.onnx": "an ONNX graph without BatchNorm: .* do_constant_folding=False",
    "frozen.pt": "a TorchScript archive without BatchNorm: .* before torch.jit.freeze",
}


@pytest.mark.parametrize("name", FOLDED)
def test_what_has_its_batchnorm_folded_away_is_taken_and_said(torchvision, net, tmp_path, capfd, name):
    path = tmp_path / name
    if name == "folded.onnx":
        torch.onnx.export(net, (torch.zeros(1, *SMALL),), str(path), dynamo=False)
    else:
        torch.jit.freeze(torch.jit.script(net)).save(str(path))
    made = network(str(path), SMALL)
    assert not matched_layers(made)
    assert re.search(FOLDED[name], capfd.readouterr().err)
    x = torch.rand(3, *SMALL)
    torch.testing.assert_close(made(x), net(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(torchvision, net, tmp_path, name):
    path = tmp_path / name
    if name == "train.pt2":
        write(net.train(), path)
    elif name.startswith("pair"):
        write(with_statistics(Pair()), path, free=path.suffix != ".onnx")
    elif name.startswith("cut"):
        content = write(net, tmp_path / f"whole{path.suffix}").read_bytes()
        path.write_bytes(content[: len(content) // 2])
    elif name == "weights.pt":
        torch.save(net.state_dict(), path)
    with pytest.raises(InputError, match=REFUSED[name]) as refused:
        network(str(path), SMALL)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("module", ["onnx", "onnx2torch", "onnxruntime"])
def test_a_missing_package_is_told_with_its_command(torchvision, net, tmp_path, monkeypatch, module):
    path = write(net, tmp_path / "net.onnx")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf"{module}; run pip install 'dfshield\[models\]'"):
        network(str(path), SMALL)


def test_a_graph_of_other_images_is_refused(torchvision, net, tmp_path):
    path = write(net, tmp_path / "net.onnx")
    with pytest.raises(InputError, match=r"takes \['any', 3, 8, 8\], input_shape is \[3, 16, 16\]"):
        network(str(path), (3, 16, 16))


def test_what_a_network_is_does_not_depend_on_where_it_lies(net, tmp_path):
    path = write(net, tmp_path / "net.pt2")
    factory, arguments = factory_of(path, SMALL)
    assert factory == GRAPH and arguments == {"file": str(path), "input_shape": [3, 8, 8]}
    whole = pinned(factory, arguments)
    assert wherever(factory, whole) == {"input_shape": [3, 8, 8]}
    network(**whole)
    write(with_statistics(Net(), 3), path)
    with pytest.raises(InputError, match="is another file than the one that was hardened"):
        network(**whole)


def test_an_onnx_graph_is_written_with_its_batchnorm(torchvision, net, tmp_path, monkeypatch):
    from dfshield.models import onnx_file

    onnx_file.write_onnx(net, tmp_path / "out.onnx", SMALL)
    again = network(str(tmp_path / "out.onnx"), SMALL)
    x = torch.rand(5, *SMALL)
    with torch.no_grad():
        assert torch.allclose(again(x), net(x), atol=1e-5)
    monkeypatch.setattr(onnx_file, "_runtime", lambda path: lambda x: net(x) + 1)
    with pytest.raises(InputError, match="not written: onnxruntime answers otherwise"):
        onnx_file.write_onnx(net, tmp_path / "other.onnx", SMALL)
    assert not (tmp_path / "other.onnx").exists()


class Reshaped(nn.Module):
    """Operators whose form depends on the version of ONNX: sizes that are gathered, means over axes, squeezes."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 4)

    def forward(self, x):
        x = self.bn(self.conv(x))
        x = x.reshape(x.shape[0], x.shape[1], -1).mean(2, keepdim=True)
        return self.fc(x.squeeze(2)[:, [5, 1, 2, 3, 4, 0]])


def test_a_graph_that_was_read_is_written_again(torchvision, tmp_path):
    """onnx2torch's layers ask for the version of ONNX that they are written in."""
    from dfshield.models import onnx_file

    original = with_statistics(Reshaped())
    read = network(str(write(original, tmp_path / "net.onnx")), SMALL)
    onnx_file.write_onnx(read, tmp_path / "again.onnx", SMALL)
    x = torch.rand(5, *SMALL)
    with torch.no_grad():
        assert torch.allclose(network(str(tmp_path / "again.onnx"), SMALL)(x), original(x), atol=1e-5)
    assert not hasattr(torch.onnx.symbolic_helper, "GLOBALS")


class Fourier(nn.Module):
    """What ONNX has no operator for."""

    def forward(self, x):
        return torch.linalg.svd(x.flatten(2))[1]


def test_what_has_no_form_in_onnx(torchvision, tmp_path):
    from dfshield.models import onnx_file

    with pytest.raises(InputError, match=r"net\.onnx: not written: ") as refused:
        onnx_file.write_onnx(Fourier(), tmp_path / "net.onnx", SMALL)
    assert not list(tmp_path.iterdir()) and "\n" not in str(refused.value)
