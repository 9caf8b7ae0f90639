"""Checkpoints and weights files: what is written is read back, byte for byte the same, and all else is refused."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from dfshield.core.errors import InputError
from dfshield.core.hashing import canonical_json, digest
from dfshield.models import checkpoints
from dfshield.models.checkpoints import Card, load_checkpoint, read_card, save_checkpoint
from dfshield.models.classifier import Classifier
from dfshield.models.factory import build_network

CARD = Card(
    kind="teacher",
    dataset="digits",
    model="cnn-s",
    input_shape=(1, 8, 8),
    classes=10,
    mean=(0.3,),
    std=(0.38,),
    real_data="teacher",
    provenance={"options": {"lr": 0.1}, "seed": 3},
)


def classifier(seed=0):
    model = Classifier(build_network("cnn-s", (1, 8, 8), 10, seed=seed), CARD.mean, CARD.std)
    random = torch.Generator().manual_seed(seed)
    model.train()(torch.rand(16, 1, 8, 8, generator=random))
    return model.eval()


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "teacher.safetensors"
    save_checkpoint(path, classifier(), CARD)
    return path


def test_round_trip(saved):
    model, card = load_checkpoint(saved)
    assert card == replace(CARD, tensors_sha256=card.tensors_sha256) == read_card(saved)
    assert isinstance(card.input_shape, tuple)
    assert not any(layer.training for layer in model.modules())
    x = torch.rand(5, 1, 8, 8)
    assert torch.equal(model(x), classifier()(x))
    assert all(p.device.type == "cpu" and p.requires_grad for p in model.parameters())
    assert set(load_file(saved)) == set(model.net.state_dict())


def test_normalisation_is_the_first_step_and_not_in_the_file(saved):
    model, _ = load_checkpoint(saved)
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(model(x), model.net((x - 0.3) / 0.38))
    assert set(model.state_dict()) == {f"net.{key}" for key in model.net.state_dict()}


def test_same_bytes_and_one_metadata_key(saved, tmp_path):
    sha = save_checkpoint(tmp_path / "again.safetensors", classifier(), CARD)
    assert (tmp_path / "again.safetensors").read_bytes() == saved.read_bytes()
    assert sha == read_card(saved).tensors_sha256
    with safe_open(saved, "pt") as stream:
        assert set(stream.metadata()) == {"dfshield"}
    other = save_checkpoint(tmp_path / "other.safetensors", classifier(seed=1), CARD)
    assert other != sha


def test_the_hash_covers_names_types_shapes_and_values():
    state = {"a": torch.arange(6.0), "b": torch.ones(2)}
    variants = [
        state,
        {"a": torch.arange(6.0), "c": torch.ones(2)},
        {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2)},
        {"a": torch.arange(6.0), "b": torch.ones(2).view(torch.int32)},
        {"a": torch.arange(6.0), "b": torch.tensor([1.0, -1.0])},
    ]
    assert len({checkpoints.hash_tensors(variant) for variant in variants}) == len(variants)
    turned = torch.arange(6.0).view(3, 2).t().contiguous().t()
    assert checkpoints.hash_tensors({"a": turned}) == checkpoints.hash_tensors({"a": turned.contiguous()})


def test_channels_last_and_tied_weights_can_be_saved(tmp_path):
    model = classifier().to(memory_format=torch.channels_last)
    assert save_checkpoint(tmp_path / "a.safetensors", model, CARD) == checkpoints.hash_tensors(
        classifier().net.state_dict()
    )
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    save_checkpoint(tmp_path / "b.safetensors", Classifier(net, CARD.mean, CARD.std), CARD)
    assert torch.equal(*(load_file(tmp_path / "b.safetensors")[key] for key in ("0.weight", "1.weight")))


def test_weights_that_are_not_finite_are_not_written(tmp_path):
    model = classifier()
    model.net[0].weight.data[0] = float("nan")
    with pytest.raises(InputError, match=r"'0.weight' holds NaN"):
        save_checkpoint(tmp_path / "x.safetensors", model, CARD)
    assert list(tmp_path.iterdir()) == []


def test_card_and_model_must_agree(tmp_path):
    with pytest.raises(ValueError, match="mean"):
        save_checkpoint(tmp_path / "x.safetensors", classifier(), replace(CARD, mean=(0.5,)))
    with pytest.raises(ValueError, match="one value per channel"):
        replace(CARD, mean=(0.5, 0.5))


def rewrite(path, body=None, tensors=None, metadata=None, seal=True):
    """Write the file anew with another card or other tensors, with a card hash that fits unless `seal` is false."""
    with safe_open(path, "pt") as stream:
        old = json.loads(stream.metadata()["dfshield"])
    stated = old.pop("sha256")
    card = old | (body or {})
    card["sha256"] = digest(card) if seal else stated
    save_file(tensors or load_file(path), path, metadata=metadata or {"dfshield": canonical_json(card)})


def sealed(path, tensors):
    rewrite(path, {"tensors_sha256": checkpoints.hash_tensors(tensors)}, tensors)


def flip_last_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def with_nan(path):
    tensors = load_file(path)
    tensors["0.weight"][0] = float("inf")
    sealed(path, tensors)


def without(path, key):
    tensors = load_file(path)
    del tensors[key]
    sealed(path, tensors)


DAMAGE = {
    "html": (lambda p: p.write_text("<!DOCTYPE html><html>404</html>"), "is an HTML or XML page"),
    "empty": (lambda p: p.write_bytes(b""), "is empty"),
    "lfs": (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\n"), "git-lfs pointer"),
    "pickle": (lambda p: torch.save({"a": torch.ones(1)}, p), "not a whole safetensors file"),
    "noise": (lambda p: p.write_bytes(bytes(range(256)) * 9), "not a whole safetensors file"),
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:-100]), "not a whole safetensors file"),
    "header": (lambda p: p.write_bytes(p.read_bytes()[:100]), "not a whole safetensors file"),
    "bit": (flip_last_byte, "tensors differ from their SHA-256"),
    "foreign": (lambda p: save_file(load_file(p), p), "is not a checkpoint of dfshield"),
    "metadata": (lambda p: save_file(load_file(p), p, {"dfshield": "{}", "format": "pt"}), "not a checkpoint of"),
    "future": (lambda p: rewrite(p, {"format": 2}), "format 2 is from a newer dfshield"),
    "card": (lambda p: rewrite(p, {"mean": [0.4]}, seal=False), "card differs from its SHA-256"),
    "json": (lambda p: rewrite(p, metadata={"dfshield": "{nonsense"}), "card cannot be read"),
    "deep": (lambda p: rewrite(p, metadata={"dfshield": "[" * 100_000}), "card cannot be read"),
    "list": (lambda p: rewrite(p, metadata={"dfshield": "[]"}), "card cannot be read"),
    "types": (lambda p: rewrite(p, {"classes": "many"}), "card is not valid .classes"),
    "extra": (lambda p: rewrite(p, {"run": "me"}), "card is not valid .run"),
    "channels": (lambda p: rewrite(p, {"mean": [0.1, 0.2]}), "card is not valid"),
    "std": (lambda p: rewrite(p, {"std": [0]}), "card is not valid .std.0"),
    "model": (lambda p: rewrite(p, {"model": "resnet21"}), "'resnet21' is not one of"),
    "misfit": (lambda p: rewrite(p, {"classes": 7}), "other shape: 11.weight is 10x32, the model has 7x32"),
    "missing": (lambda p: without(p, "0.weight"), "missing: 0.weight"),
    "nan": (with_nan, "'0.weight' holds NaN or infinite"),
    "absent": (lambda p: p.unlink(), "no such file"),
    "folder": (lambda p: (p.unlink(), p.mkdir()), "no such file"),
}


@pytest.mark.parametrize(("damage", "says"), DAMAGE.values(), ids=DAMAGE)
def test_what_is_no_checkpoint_is_refused_in_one_line(saved, damage, says):
    damage(saved)
    with pytest.raises(InputError, match=says) as caught:
        load_checkpoint(saved)
    assert "\n" not in str(caught.value)
    assert str(saved) in str(caught.value) or "resnet21" in str(caught.value)


@pytest.mark.parametrize("position", range(8, 800, 7))
def test_no_flipped_bit_in_the_header_goes_unseen(saved, position):
    content = bytearray(saved.read_bytes())
    content[position] ^= 4
    saved.write_bytes(content)
    with pytest.raises(InputError):
        load_checkpoint(saved)


FACTORY = "net.py:net"
CODE = """
from pathlib import Path
from torch import nn
Path("was_run").touch()
def net(width):
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(36 * width, 10))
"""


def test_a_users_factory_runs_only_if_the_caller_names_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(CODE)
    net = build_network("mine", (1, 8, 8), 10, FACTORY, {"width": 3})
    path = tmp_path / "mine.safetensors"
    card = replace(CARD, model="mine", factory=FACTORY, arguments={"width": 3})
    save_checkpoint(path, Classifier(net, CARD.mean, CARD.std), card)
    (tmp_path / "was_run").unlink()
    with pytest.raises(InputError, match=r"built by the user's code 'net.py:net'"):
        load_checkpoint(path)
    with pytest.raises(InputError, match=r"'other.py:net' was given; give the same"):
        load_checkpoint(path, factory="other.py:net")
    assert read_card(path).factory == FACTORY
    assert not (tmp_path / "was_run").exists()
    model, _ = load_checkpoint(path, factory=FACTORY)
    assert (tmp_path / "was_run").exists()
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(model(x), Classifier(net.eval(), CARD.mean, CARD.std)(x))


def test_a_factory_for_a_registered_model_is_refused(saved):
    with pytest.raises(InputError, match="leave the factory out"):
        load_checkpoint(saved, factory=FACTORY)
