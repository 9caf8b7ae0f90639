"""Weights files as people have them: taken over as they were meant, or refused in one line."""

import argparse
import json

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from dfshield.core.errors import InputError
from dfshield.core.files import find_weights, parts_of
from dfshield.models.formats import read_weights, weights_sha256
from dfshield.models.weights import fit, load_weights


class Net(nn.Module):
    """A stem, a block whose names end as the stem's do, and a classifier."""

    def __init__(self, classes=4, tied=False):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.block = nn.Sequential()
        self.block.conv, self.block.bn = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.last = nn.Conv2d(4, 4, 3)
        if tied:
            self.last.weight = self.block.conv.weight
        self.fc = nn.Linear(4, classes)


class Wrapper(nn.Module):
    """A network with one child."""

    def __init__(self, name="module"):
        super().__init__()
        self.add_module(name, Net())


def seeded_net(seed, **given):
    torch.manual_seed(seed)
    return Net(**given)


STATE, OTHER = seeded_net(0).state_dict(), seeded_net(1).state_dict()


def named(prefix, state=STATE):
    return {prefix + key: value for key, value in state.items()}


def typed(dtype):
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in STATE.items()}


def changed(key, value):
    return STATE | {key: value}


COMPILED_BLOCK = {key.replace("block.", "block._orig_mod."): value for key, value in STATE.items()}
EXTRA = STATE | {"se.weight": torch.ones(3)}
ADAM = {"state": {0: {"exp_avg": torch.tensor(float("nan"))}}, "param_groups": [{"lr": 0.1}]}
FITS = {
    "as they are": (STATE, ""),
    "DataParallel": (named("module."), "weights behind 'module.' are used"),
    "torch.compile": (named("_orig_mod."), ""),
    "both": (named("module._orig_mod."), "behind 'module._orig_mod.'"),
    "a compiled block": (COMPILED_BLOCK, ""),
    "FSDP around a compiled block": (named("_fsdp_wrapped_module.", COMPILED_BLOCK), ""),
    "SWA": ({"n_averaged": torch.tensor(3), **named("module.")}, "left aside: n_averaged"),
    "Lightning": (
        {
            "state_dict": named("model.") | {"criterion.weight": torch.ones(4)},
            "epoch": 3,
            "hyper_parameters": {"lr": 1},
        },
        "behind 'state_dict.model.' are used; left aside: state_dict.criterion.weight",
    ),
    "optimiser beside": ({"model_state_dict": STATE, "optimizer": ADAM, "best": 9.5}, "left aside: optimizer.state.0"),
    "arguments beside": ({"net": STATE, "args": argparse.Namespace(lr=1)}, "behind 'net.' are used"),
    "average first": (
        {"model": OTHER, "model_ema": {"n_averaged": torch.tensor(3), **named("module.")}},
        "the averaged weights behind 'model_ema.module.' are used, not those behind 'model.'",
    ),
    "average in the same dictionary": (OTHER | named("ema."), "averaged weights behind 'ema.' are used, not those"),
    "one of two": ({"student": named("module."), "teacher": {"head": torch.ones(1)}}, "left aside: teacher.head"),
    "the same twice": ({"model": STATE, "net": STATE}, "left aside: net.block.bn.bias, "),
    "loss of a whole module": (changed("criterion.weight", torch.ones(4)), "left aside: criterion.weight"),
    "counts of operations": (changed("conv.total_ops", torch.zeros(1)), "left aside: conv.total_ops"),
    "layers before it": (named("1.") | {"0.mean": torch.ones(3)}, "behind '1.' are used; left aside: 0.mean"),
    "half": (typed(torch.float16), "float16 converted to the network's type"),
    "bfloat16": (typed(torch.bfloat16), "bfloat16 converted"),
    "double": (typed(torch.float64), "float64 converted"),
    "no counters": ({key: value for key, value in STATE.items() if "num_batches" not in key}, ""),
}


def same(net, state=STATE):
    tolerance = {"rtol": 1e-2, "atol": 1e-2}
    return all(
        torch.allclose(value, state[key].to(value.dtype), **tolerance) for key, value in net.state_dict().items()
    )


@pytest.mark.parametrize("name", FITS)
def test_files_that_hold_the_network(tmp_path, capsys, name):
    content, says = FITS[name]
    torch.save(content, tmp_path / "w.pt")
    net = seeded_net(2)
    load_weights(net, tmp_path / "w.pt")
    assert same(net) and {value.dtype for value in net.parameters()} == {torch.float32}
    said = capsys.readouterr().err
    assert said.count("\n") == bool(said) and says in said
    assert said if says else "are used" in said or not said


NETWORKS = {
    "wrapper and its own file": (Wrapper, named("module.")),
    "wrapper and a plain file": (Wrapper, STATE),
    "wrapper and another's file": (Wrapper, named("model.")),
    "DataParallel and a plain file": (lambda: nn.DataParallel(Net()), STATE),
    "torch.compile and DataParallel's": (lambda: Wrapper("_orig_mod"), named("module.")),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_wrappers_of_the_network(tmp_path, name):
    build, content = NETWORKS[name]
    net = build()
    torch.save(content, tmp_path / "w.pt")
    load_weights(net, tmp_path / "w.pt")
    assert same(next(net.children()))


MISFITS = {
    "several": (
        {"student": named("module."), "teacher": OTHER},
        r"weights behind 'student.module.', 'teacher.' all fit the model; save those that are meant alone",
    ),
    "a copy beside": (STATE | named("teacher.", OTHER), "weights behind '', 'teacher.' all fit"),
    "a larger network": (EXTRA, r"\(unexpected: se.weight\); 16 of 16 tensors fit"),
    "a larger network, wrapped": (
        {"model": named("module.", EXTRA)},
        r"w.pt, behind 'model.module.': the weights do not fit the model \(unexpected: model.module.se.weight\)",
    ),
    "other classes": (
        Net(classes=7).state_dict(),
        r"other shape: fc.weight is 7x4, the model has 4x4, fc.bias is 7, the model has 4\); 14 of 16 tensors fit; "
        "the file is for 7 classes, the model has 4: correct classes",
    ),
    "other classes, wrapped": ({"net": named("module.", Net(7).state_dict())}, "the file is for 7 classes"),
    "another width": (changed("conv.weight", torch.ones(5, 3, 3, 3)), "15 of 16 tensors fit; check model and classes"),
    "another network": (
        nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).state_dict(),
        r"missing: conv.weight, conv.bias, bn.weight and 13 more; unexpected: 0.weight, 0.bias, 1.weight and 1 more\); "
        "0 of 16 tensors fit",
    ),
    "whole numbers": (changed("fc.weight", torch.ones(4, 4, dtype=torch.int8)), "'fc.weight' is int8, the model has f"),
    "eight-bit floats": (
        changed("fc.weight", torch.ones(4, 4).to(torch.float8_e4m3fn)),
        "float8_e4m3fn, the model has",
    ),
    "sparse": (changed("fc.weight", torch.ones(4, 4).to_sparse()), "'fc.weight' is quantised or sparse"),
    "half a batch": (changed("bn.num_batches_tracked", torch.tensor(0.5)), "num_batches_tracked' is no whole number"),
    "NaN": (changed("fc.bias", torch.full((4,), float("nan"))), "tensor 'fc.bias' holds NaN"),
    "too large": (changed("fc.bias", torch.tensor([1e300] * 4, dtype=torch.float64)), "'fc.bias' holds NaN or inf"),
    "number": ({"a": 3}, "no state dict"),
    "list": ([STATE], "no state dict"),
    "nothing": ({}, "no state dict"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_files_that_hold_no_or_another_network(tmp_path, name):
    content, says = MISFITS[name]
    torch.save(content, tmp_path / "w.pt")
    net = seeded_net(2)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(InputError, match=says) as caught:
        load_weights(net, tmp_path / "w.pt")
    assert "\n" not in str(caught.value) and str(tmp_path / "w.pt") in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_tied_weights_may_be_named_once(tmp_path):
    tied = seeded_net(0, tied=True)
    save_model(tied, str(tmp_path / "w.safetensors"))
    assert len(read_weights(tmp_path / "w.safetensors")) == len(tied.state_dict()) - 1
    net = seeded_net(2, tied=True)
    load_weights(net, tmp_path / "w.safetensors")
    assert same(net, tied.state_dict()) and net.last.weight is net.block.conv.weight
    with pytest.raises(InputError, match=r"missing: last.weight"):
        load_weights(Net(), tmp_path / "w.safetensors")
    torch.save(STATE, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"block.conv.weight and last.weight differ, but are one tensor in the model"):
        load_weights(net, tmp_path / "w.pt")


@pytest.mark.parametrize("legacy", [False, True])
def test_both_formats_of_pytorch(tmp_path, legacy):
    torch.save({"state_dict": STATE}, tmp_path / "w.pth.tar", _use_new_zipfile_serialization=not legacy)
    found = read_weights(tmp_path / "w.pth.tar")
    assert set(found) == {f"state_dict.{key}" for key in STATE}


def test_content_and_not_the_name_says_what_a_file_is(tmp_path):
    torch.save(STATE, tmp_path / "w.safetensors")
    save_file(STATE, tmp_path / "w.bin")
    assert set(read_weights(tmp_path / "w.safetensors")) == set(read_weights(tmp_path / "w.bin")) == set(STATE)


@pytest.fixture
def sharded(tmp_path):
    """A folder with an index of two files."""
    names = list(STATE)
    places = {name: f"model-{int(name in names[7:])}.safetensors" for name in names}
    for file in set(places.values()):
        save_file({name: STATE[name] for name in names if places[name] == file}, tmp_path / file)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return tmp_path / "model.safetensors.index.json", places


def test_a_model_in_several_files(sharded):
    index, places = sharded
    assert find_weights(index.parent) == index
    net = seeded_net(2)
    load_weights(net, index)
    assert same(net)
    assert parts_of(index) == [index.parent / f"model-{i}.safetensors" for i in (0, 1)]
    before = weights_sha256(index)
    save_file({name: STATE[name] + 1 for name in STATE if places[name] == "model-1.safetensors"}, parts_of(index)[1])
    assert weights_sha256(index) != before
    (index.parent / "model-1.safetensors").unlink()
    with pytest.raises(InputError, match=r"model-1.safetensors: no such file \(named by model.safetensors.index"):
        load_weights(net, index)


def test_an_index_of_pytorch_files(tmp_path):
    names = list(STATE)
    torch.save({name: STATE[name] for name in names[:5]}, tmp_path / "a.bin")
    torch.save({name: STATE[name] for name in names[5:]}, tmp_path / "b.bin")
    places = {name: "a.bin" if name in names[:5] else "b.bin" for name in names}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    net = seeded_net(2)
    load_weights(net, find_weights(tmp_path))
    assert same(net)


@pytest.mark.parametrize("file", ["../w.pt", "/etc/passwd", "a/b.safetensors", "", "..", "x.index.json"])
def test_an_index_names_files_beside_it(sharded, file):
    index, places = sharded
    index.write_text(json.dumps({"weight_map": places | {"fc.bias": file}}))
    with pytest.raises(InputError, match="but the files of a model lie beside its index"):
        read_weights(index)


@pytest.mark.parametrize(
    ("content", "says"),
    [("[]", "is no index"), ("{", "is no index"), ('{"weight_map": {"a": "model-0.safetensors"}}', "which lacks it")],
)
def test_a_wrong_index(sharded, content, says):
    index, _ = sharded
    index.write_text(content)
    with pytest.raises(InputError, match=says):
        read_weights(index)


def test_the_weights_of_a_folder(tmp_path):
    with pytest.raises(InputError, match=r"is a folder with several or no weights files \(none\)"):
        find_weights(tmp_path)
    torch.save(STATE, tmp_path / "last.pt")
    assert find_weights(tmp_path) == tmp_path / "last.pt"
    torch.save(STATE, tmp_path / "best.ckpt")
    with pytest.raises(InputError, match=r"\(best.ckpt, last.pt\); name the file"):
        find_weights(tmp_path)
    save_file(STATE, tmp_path / "model.safetensors")
    assert find_weights(tmp_path) == tmp_path / "model.safetensors"


def test_misfit_names_the_first_keys():
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 3), nn.Linear(3, 3))
    state = {"0.weight": torch.ones(4, 2), "other": torch.ones(1)}
    with pytest.raises(
        InputError,
        match=r"file: .*missing: 0.bias, 1.weight, 1.bias and 6 more; unexpected: other; "
        r"other shape: 0.weight is 4x2, the model has 3x2\); 0 of 10 tensors fit",
    ):
        fit(net, state, "file")
