"""Models in folders, as transformers and timm write them."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from support.graphs import with_statistics

from dfshield.core.errors import InputError
from dfshield.core.files import find_weights
from dfshield.models.bundles import HUB, factory_of, pinned
from dfshield.models.hubs import class_names, stated
from dfshield.models.hubs import network as of_folder
from dfshield.models.weights import load_weights
from dfshield.report.form import form_section

SHAPE = (3, 32, 32)


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
    ("config", "names"),
    [
        ({"id2label": {"0": "cat", "1": "dog"}}, ["cat", "dog"]),
        ({"id2label": {"1": "dog", "0": "cat"}}, ["cat", "dog"]),
        ({"architecture": "resnet18", "label_names": ["cat", "dog"]}, ["cat", "dog"]),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, []),
        ({"id2label": {"0": "cat"}}, []),
        ({"label_names": ["a", "b", "c"]}, []),
        ({}, []),
    ],
)
def test_names_of_classes(tmp_path, config, names):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert class_names(tmp_path, 2) == names


def test_the_card_names_the_classes(tmp_path):
    values = {f"{index}": f"kind {index}" for index in range(22)}
    (tmp_path / "config.json").write_text(json.dumps({"id2label": values}))
    card = SimpleNamespace(factory=HUB, arguments={"folder": str(tmp_path)}, classes=22)
    text, _ = form_section(card, False)
    assert "classes: 0 kind 0, 1 kind 1, " in text and "19 kind 19 and 2 more." in text
    (tmp_path / "config.json").unlink()
    tmp_path.rename(tmp_path.with_name("gone"))
    assert "classes" not in form_section(card, False)[0]


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
