"""Networks in one file with their graph: TorchScript, exported programs, ONNX; and folders of transformers and timm."""

import contextlib
import copy
import io
import json
import sys
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dfshield.core.errors import InputError
from dfshield.core.files import find_weights
from dfshield.models import archives
from dfshield.models.bundles import GRAPH, HUB, factory_of, pinned, wherever
from dfshield.models.classifier import Classifier
from dfshield.models.factory import build_network
from dfshield.models.graphs import network
from dfshield.models.hubs import network as of_folder
from dfshield.models.hubs import stated
from dfshield.models.weights import load_weights
from dfshield.options.sources import Inversion
from dfshield.sources.inversion import ModelInversion

SHAPE = (3, 32, 32)
SMALL = (3, 8, 8)
PRESERVE = torch.onnx.TrainingMode.PRESERVE


class Net(nn.Module):
    """Every kind of layer that a program has: a shared one, an unused one, dropout, a size of the batch in a view."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6, eps=1e-3, momentum=0.2)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, 2, padding="valid", groups=2), nn.BatchNorm2d(6, affine=False)
        self.spare = nn.BatchNorm2d(6)
        self.drop, self.fc = nn.Dropout(0.5), nn.Linear(6 * 9, 4)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.drop(torch.relu(self.bn2(self.conv2(x))))
        return self.fc(x.view(x.shape[0], 54))


def with_statistics(net, seed=0):
    """`net` in eval mode, with statistics and weights of BatchNorm that are not those of a new one."""
    random = torch.Generator().manual_seed(seed)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.3, generator=random)
            layer.running_var.uniform_(0.5, 2, generator=random)
            if layer.affine:
                layer.weight.data.uniform_(0.5, 1.5, generator=random)
                layer.bias.data.normal_(0, 0.2, generator=random)
    return net.eval()


@pytest.fixture
def net():
    torch.manual_seed(0)
    return with_statistics(Net())


def write(net, path, shape=SMALL, count=2, free=True):
    """`net` in the form that the name of `path` says."""
    x = torch.zeros(count, *shape)
    with warnings.catch_warnings(action="ignore"):
        if path.name == "script.pt":
            torch.jit.script(net).save(str(path))
        elif path.suffix == ".pt":
            torch.jit.trace(net, x).save(str(path))
        elif path.suffix == ".pt2":
            sizes = ({0: torch.export.Dim("n")},) if free else None
            torch.export.save(torch.export.export(net, (x,), dynamic_shapes=sizes), str(path))
        else:
            free = {"x": {0: "n"}} if free else {}
            keep = {"training": PRESERVE, "do_constant_folding": False}
            torch.onnx.export(net, (x,), str(path), dynamo=False, input_names=["x"], dynamic_axes=free, **keep)
    return path


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
    "folded.onnx": "an ONNX graph without BatchNorm .* do_constant_folding=False",
    "frozen.pt": r"a TorchScript archive without BatchNorm .* before torch.jit.freeze",
    "train.pt2": r"was exported in training mode; call model.eval\(\)|answers otherwise|cannot be converted",
    "pair.pt2": "returns 2 tensors",
    "pair.onnx": r"has 2 outputs \(",
    "cut.onnx": "cannot be converted",
    "cut.pt2": "has weights without their network",
    "weights.pt": "weights without their network .* give the factory",
    "none.onnx": "no such file",
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(torchvision, net, tmp_path, name):
    path = tmp_path / name
    if name == "folded.onnx":
        torch.onnx.export(net, (torch.zeros(1, *SMALL),), str(path), dynamo=False)
    elif name == "frozen.pt":
        torch.jit.freeze(torch.jit.script(net)).save(str(path))
    elif name == "train.pt2":
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


# Files that could run code


def rewritten(path, change):
    """The archive again, its files changed by `change(name, content)`, which may give None to leave one out."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, change(name, content))
    path.write_bytes(stream.getvalue())
    return path


class Touch:
    """A pickle of it writes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def pickled(path):
    stream = io.BytesIO()
    torch.save(Touch(path), stream)
    return stream.getvalue()


def changed(name, old, new):
    return lambda path, content: content.replace(old, new) if path.endswith(name) else content


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (changed("model.json", b"torch.ops.aten.relu.default", b"torch.hub.load"), "target 'torch.hub.load'"),
        (changed("model.json", b"Symbol(", b"__import__("), "expr_str"),
        (changed("model_weights_config.json", b'"use_pickle": false', b'"use_pickle": true'), "use_pickle"),
        (changed("model.json", b'"guards_code": []', b'"guards_code": ["exit()"]'), "guards_code"),
    ],
)
def test_a_program_that_may_run_code_is_never_read(net, tmp_path, monkeypatch, change, says):
    path = write(net, tmp_path / "net.pt2")
    before = path.read_bytes()
    rewritten(path, change)
    assert zipfile.ZipFile(path).namelist() == zipfile.ZipFile(io.BytesIO(before)).namelist()
    monkeypatch.setattr(torch.export, "load", lambda *given: pytest.fail("it was read"))
    with pytest.raises(InputError, match=rf"{says}.*never loaded"):
        network(str(path), SMALL)


def test_pickles_in_a_program_are_never_unpickled(net, tmp_path):
    path, mark = write(net, tmp_path / "net.pt2"), tmp_path / "mark"
    rewritten(path, lambda name, content: pickled(mark) if name.endswith("sample_inputs/model.pt") else content)
    with pytest.raises(InputError, match="sample inputs hold more than tensors"):
        network(str(path), SMALL)
    assert not mark.exists()
    with contextlib.suppress(Exception):
        torch.export.load(str(path))  # which is why
    assert mark.exists()


def test_libraries_and_second_files_of_a_name_are_refused(net, tmp_path):
    path = write(net, tmp_path / "net.pt2")
    folder = zipfile.ZipFile(path).namelist()[0].partition("/")[0]
    kept = path.read_bytes()
    for name, says in (("data/aotinductor/model/a.so", "holds"), ("models/model.json", "two files of one name")):
        path.write_bytes(kept)
        with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings(action="ignore"):
            archive.writestr(f"{folder}/{name}", b"{}")
        with pytest.raises(InputError, match=says):
            network(str(path), SMALL)


class Writes(nn.Module):
    def __init__(self, place: str):
        super().__init__()
        self.place = place

    def forward(self, x):
        torch.save(x, self.place)
        return x


class Restored(nn.Module):
    @torch.jit.export
    def __getstate__(self):
        return True

    @torch.jit.export
    def __setstate__(self, state: bool):
        self.training = state

    def forward(self, x):
        return x


@pytest.mark.parametrize(("kind", "says"), [(lambda p: Writes(str(p)), "save"), (lambda p: Restored(), "__setstate__")])
def test_torchscript_that_may_touch_files_is_never_loaded(tmp_path, monkeypatch, kind, says):
    path = tmp_path / "script.pt"
    torch.jit.script(kind(tmp_path / "mark")).save(str(path))
    monkeypatch.setattr(torch.jit, "load", lambda *given, **named: pytest.fail("it was loaded"))
    with pytest.raises(InputError, match=f"{says}.*never loaded"):
        network(str(path), SMALL)


def test_kinds_are_told_by_content(net, tmp_path):
    kinds = {name: archives.archive_kind(write(net, tmp_path / name)) for name in ("script.pt", "net.pt2")}
    assert kinds == {"script.pt": archives.SCRIPT, "net.pt2": archives.PROGRAM}
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    assert archives.archive_kind(tmp_path / "weights.pt") == ""


# Factories of our own


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


@pytest.fixture
def folder(torchvision, tmp_path):
    """A folder of transformers with a small network, and its answers to an image."""
    transformers = pytest.importorskip("transformers")
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic", "num_labels": 4}
    made = transformers.ResNetForImageClassification(transformers.ResNetConfig(**sizes))
    with_statistics(made).save_pretrained(tmp_path / "hub")
    processor = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.1], "size": {"shortest_edge": 32}}
    (tmp_path / "hub/preprocessor_config.json").write_text(json.dumps(processor))
    return tmp_path / "hub", made


def test_a_folder_of_transformers(folder):
    place, original = folder
    factory, arguments = factory_of(place, SHAPE)
    assert factory == HUB
    made = of_folder(**pinned(factory, arguments)).eval()
    load_weights(made, find_weights(place))
    x = torch.rand(3, *SHAPE)
    with torch.no_grad():
        assert torch.equal(made(x), original(x).logits)
    assert stated(place) == {"input_shape": [3, 32, 32], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]}


def test_what_is_saved_of_it_loads_in_transformers(folder):
    from transformers import AutoModelForImageClassification

    place, original = folder
    made = of_folder(str(place))
    load_weights(made, find_weights(place))
    state = {name: value + 1 if value.is_floating_point() else value for name, value in made.state_dict().items()}
    save_file(state, place / "model.safetensors", metadata={"dfshield": "{}"})
    again = AutoModelForImageClassification.from_pretrained(place, local_files_only=True)
    assert torch.equal(again.state_dict()["classifier.1.weight"], original.classifier[1].weight + 1)


@pytest.mark.parametrize(
    ("processor", "found"),
    [
        ({"do_normalize": False, "size": {"height": 8, "width": 9}}, {"input_shape": [3, 8, 9], "mean": [0.0] * 3}),
        ({"size": 24, "do_center_crop": True, "crop_size": 20}, {"input_shape": [3, 20, 20]}),
        ({}, {}),
    ],
)
def test_what_an_image_processor_says(tmp_path, processor, found):
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    said = stated(tmp_path)
    assert {name: said[name] for name in found} == found
    assert said or not found


def test_pixels_in_another_scale_are_not_guessed(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
    (tmp_path / "preprocessor_config.json").write_text('{"do_rescale": false, "image_mean": [123, 117, 104]}')
    with pytest.raises(InputError, match=r"does not scale pixels to \[0,1\]"):
        stated(tmp_path)


def test_a_folder_of_timm(torchvision, tmp_path):
    timm = pytest.importorskip("timm")
    original = timm.create_model("resnet10t", num_classes=4).eval()
    told = {"input_size": [3, 64, 64], "mean": [0.1] * 3, "std": [0.2] * 3}
    config = {"architecture": "resnet10t", "num_classes": 4, "pretrained_cfg": told}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(original.state_dict(), tmp_path / "model.safetensors")
    made = of_folder(str(tmp_path)).eval()
    load_weights(made, find_weights(tmp_path))
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(made(x), original(x))
    assert stated(tmp_path) == {"input_shape": [3, 64, 64], "mean": [0.1] * 3, "std": [0.2] * 3}


@pytest.mark.parametrize(
    ("text", "says"),
    [('{"a": 1}', "names no model_type"), ("no", "no JSON object"), ('{"model_type": "bert"}', "no image classifier")],
)
def test_other_folders_are_refused(torchvision, tmp_path, text, says):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=says):
        of_folder(str(tmp_path))


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
