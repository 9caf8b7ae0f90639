"""Whatever is wrong with what a user gives: status 2, one line that names it, and nothing written."""

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from support import tiny
from support.ledgers import make_ledger, make_record
from test_config import GRID, MINE, changed
from test_trainset import parts, rehash

from dfshield import cli
from dfshield.models.checkpoints import read_card

NETWORKS = """
import torch
from torch import nn

def net(classes=10, norm=True):
    layers = [nn.Conv2d(1, 4, 3), *([nn.BatchNorm2d(4)] if norm else []), nn.Flatten(), nn.Linear(144, classes)]
    return nn.Sequential(*layers)

def fails():
    raise RuntimeError("first line\\nsecond line")

def text():
    return "no network"
"""
SYNTHESIS = ("--images", "20", "--batch", "10", "--iterations", "1", "--device", "cpu")
TRAINING = ("--epochs", "1", "--batch", "10", "--aggregate", "1", "--holdout", "0", "--attack-steps", "1")
MINE_FLAGS = [
    *("teacher", "--out", "out.safetensors", "--model", "mine", "--factory", "net.py:net", "--weights", "net.pt"),
    *("--input-shape", "1", "8", "8", "--classes", "10", "--mean", "0.5", "--std", "0.5", "--device", "cpu"),
]
TRAIN = ["train", "--teacher", "teacher.safetensors", "--data", "data.h5", "--out", "out.safetensors", *TRAINING]
COTRAIN = [
    *("cotrain", "--teacher", "teacher.safetensors", "--out", "out.safetensors", "--epochs", "1", "--iterations", "1"),
    *("--batch", "20", "--generator-width", "0.05", "--attack-steps", "1", "--device", "cpu"),
]
SYNTHESIZE = ["synthesize", "--teacher", "teacher.safetensors", "--out", "out.h5", *SYNTHESIS]
GENERATE = [
    *("generate", "--teacher", "teacher.safetensors", "--out", "out.h5", "--device", "cpu"),
    *("--images", "4", "--batch", "4", "--width", "0.1"),
]
AUGMENT = ["augment", "--data", "data.h5", "--out", "out.h5"]
DIVERSITY = [
    *("diversity", "--teacher", "teacher.safetensors", "--data", "data.h5", "--out", "out.json", "--split", "dev"),
    *("--bins", "20", "--device", "cpu"),
]
ATTACK = [
    *("attack", "--model", "teacher.safetensors", "--out", "out.h5", "--attack", "clean", "--device", "cpu"),
    *("--evaluation", "test.npz"),
]


class Code:
    """What a hostile pickle would run."""

    def __reduce__(self):
        return (os.system, ("touch hacked",))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with good files of every kind."""
    folder = tmp_path_factory.mktemp("whole")
    teacher = tiny.teacher(folder / "teacher.safetensors")
    tiny.teacher(folder / "other.safetensors", seed=1)
    sha = read_card(teacher).tensors_sha256
    tiny.surrogate(folder / "data.h5", teacher_sha256=sha)
    parts(folder, (2, 4), teacher_sha256=sha)
    make_ledger(folder / "ledger.h5", 180, 90)
    make_record(folder / "record.json")
    (folder / "net.py").write_text(NETWORKS)
    scope: dict = {}
    exec(NETWORKS, scope)
    torch.save(scope["net"]().state_dict(), folder / "net.pt")
    np.savez(folder / "test.npz", x=tiny.images(20), y=np.arange(20) % 10)
    (folder / "grid.yaml").write_text(yaml.safe_dump(GRID | {"tables": str(TABLES)}))
    (folder / "mine.yaml").write_text(yaml.safe_dump(MINE | {"tables": str(TABLES)}))
    return folder


TABLES = Path(__file__).parent.parent / "config" / "tables.yaml"


@pytest.fixture
def folder(whole, tmp_path, monkeypatch):
    """A fresh copy of the good files, as the current folder."""
    copy = tmp_path / "work"
    shutil.copytree(whole, copy)
    monkeypatch.chdir(copy)
    monkeypatch.delenv("DFSHIELD_DATA", raising=False)
    return copy


# --- spoilers: each makes one thing in the folder wrong --------------------------------------------------------------


def text(name, content):
    return lambda: Path(name).write_text(content)


def cut(name, share=0.5):
    def spoil():
        whole = Path(name).read_bytes()
        Path(name).write_bytes(whole[: int(share * len(whole))])

    return spoil


def flip(name, place):
    def spoil():
        content = bytearray(Path(name).read_bytes())
        content[int(place * len(content))] ^= 16
        Path(name).write_bytes(content)

    return spoil


def attribute(name, key, value):
    def spoil():
        with h5py.File(name, "r+") as file:
            file.attrs[key] = value

    return spoil


def values(name, key, place, value):
    def spoil():
        with h5py.File(name, "r+") as file:
            file[key][place] = value
        rehash(name)

    return spoil


def config(name, base, path, value):
    return lambda: Path(name).write_text(yaml.safe_dump(changed(base, path, value) | {"tables": str(TABLES)}))


def weights(change):
    def spoil():
        state = torch.load("net.pt", weights_only=True)
        change(state)
        torch.save(state, "net.pt")

    return spoil


def npz(**arrays):
    good = {"x": tiny.images(20), "y": np.arange(20) % 10}
    return lambda: np.savez("test.npz", **{k: v for k, v in (good | arrays).items() if v is not None})


def damaged_ledger():
    with h5py.File("ledger.h5", "r+") as file:
        file["label"][0] = 3


def foreign_hdf5():
    with h5py.File("data.h5", "w") as file:
        file["images"] = np.zeros(3)


def foreign_safetensors():
    save_file(load_file("teacher.safetensors"), "teacher.safetensors")


def own_factory():
    """A checkpoint that names a user's code."""
    cli.main(mine("--out", "teacher.safetensors"))


def nothing():
    pass


def without(words, *flags):
    """The command without some flags and their values."""
    kept, dropping = [], False
    for word in words:
        dropping = word in flags or (dropping and not word.startswith("--"))
        kept += [] if dropping else [word]
    return kept


def mine(*words):
    """The import of a user's model with other values of some flags."""
    return [*without(MINE_FLAGS, *(word for word in words if word.startswith("--") and word in MINE_FLAGS)), *words]


CASES = {
    # the command line
    "no command": ([], nothing, "required: COMMAND"),
    "unknown command": (["hardn"], nothing, "invalid choice: 'hardn'"),
    "unknown flag": ([*TRAIN, "--epoch", "3"], nothing, "unrecognized arguments: --epoch 3"),
    "missing flag": (without(TRAIN, "--data"), nothing, "required: --data"),
    "wrong type": ([*TRAIN, "--epochs", "many"], nothing, "epochs: Input should be a valid integer"),
    "wrong type of a plain flag": ([*SYNTHESIZE, "--shard", "first"], nothing, "--shard: invalid int value: 'first'"),
    "unknown choice": ([*TRAIN, "--loss", "hinge"], nothing, "--loss: invalid choice: 'hinge'"),
    "unknown profile": ([*TRAIN, "--profile", "mine"], nothing, "--profile: invalid choice: 'mine'"),
    "NaN": ([*TRAIN, "--lr", "nan"], nothing, "lr: Input should be"),
    "infinite": ([*TRAIN, "--lambda1", "inf"], nothing, "lambda1: Input should be a finite number"),
    "negative": ([*TRAIN, "--epochs", "-1"], nothing, "epochs: Input should be greater than or equal to 1"),
    "above one": ([*TRAIN, "--tau", "1.5"], nothing, "tau: Input should be less than or equal to 1"),
    "negative ε": ([*TRAIN, "--threat", "linf:-1/255"], nothing, "must be between 0 and 1"),
    "ε above one": ([*TRAIN, "--threat", "linf:1.5"], nothing, "must be between 0 and 1"),
    "ε in pixel units": ([*TRAIN, "--threat", "linf:8"], nothing, "for 8 pixel units write linf:8/255"),
    "ε without a norm": ([*TRAIN, "--threat", "8/255"], nothing, "write for example linf:8/255"),
    "a step that is no fraction": ([*TRAIN, "--l2-step", "15/0"], nothing, "l2_step: '15/0' is not a number"),
    "l∞ for an l2 method": ([*TRAIN, "--loss", "vat"], nothing, "loss vat searches an l2 ball, threat is linf:8/255"),
    "no slope at the start": ([*TRAIN, "--loss", "fgsm", "--inner", "kl"], nothing, "fgsm starts at the image"),
    "weight perturbation too late": (
        [*TRAIN, "--awp", "0.01", "--awp-warmup", "1"],
        nothing,
        "awp_warmup (1) leaves none of the 1 epochs for awp",
    ),
    "nothing but the average": ([*TRAIN, "--average", "1"], nothing, "average: Input should be less than 1"),
    "nesterov without momentum": ([*TRAIN, "--nesterov", "--momentum", "0"], nothing, "nesterov needs a momentum"),
    "images no multiple of batch": ([*SYNTHESIZE, "--images", "25"], nothing, "images (25) must be a multiple of"),
    "arguments that are no JSON": (mine("--arguments", "{a}"), nothing, "--arguments: not JSON"),
    "arguments that are a list": (mine("--arguments", "[1]"), nothing, "--arguments: must be a JSON object"),
    "subject that is no JSON": ([*ATTACK, "--subject", "me"], nothing, "--subject: not JSON"),
    "no CUDA": ([*SYNTHESIZE, "--device", "cuda"], nothing, "device: 'cuda' was asked for but PyTorch sees no CUDA"),
    # places
    "output below a file": ([*SYNTHESIZE, "--out", "net.pt/out.h5"], nothing, "net.pt/out.h5: cannot write there"),
    "output is a folder": ([*TRAIN, "--out", "."], nothing, "is a folder; give the path of a file"),
    "output where nothing can be": ([*TRAIN, "--out", "/proc/x/out.safetensors"], nothing, "cannot write there"),
    "state below a file": ([*TRAIN, "--state", "net.pt/state"], nothing, "net.pt/state: cannot write there"),
    "metrics below a file": ([*TRAIN, "--metrics", "net.pt/m.csv"], nothing, "net.pt/m.csv: cannot write there"),
    # the user's own model
    "no weights given": (without(MINE_FLAGS, "--weights"), nothing, "no weights given"),
    "no such weights": (mine("--weights", "none.pt"), nothing, "no weights file at"),
    "HTML saved as .pt": (MINE_FLAGS, text("net.pt", "<!DOCTYPE html><html>"), "net.pt: is an HTML or XML page"),
    "empty .pt": (MINE_FLAGS, text("net.pt", ""), "net.pt: is empty"),
    "pickle with code": (MINE_FLAGS, lambda: torch.save(Code(), "net.pt"), "net.pt: holds Python objects besides"),
    "plain pickle with code": (MINE_FLAGS, lambda: Path("net.pt").write_bytes(pickle.dumps(Code())), "net.pt: "),
    "whole module saved": (MINE_FLAGS, lambda: torch.save(torch.nn.Linear(1, 1), "net.pt"), "never loaded; save model"),
    "truncated .pt": (MINE_FLAGS, cut("net.pt"), "net.pt: is damaged or not a PyTorch file"),
    "NaN in the weights": (MINE_FLAGS, weights(lambda s: s["0.bias"].fill_(float("nan"))), "'0.bias' holds NaN or inf"),
    "a weight too few": (MINE_FLAGS, weights(lambda s: s.pop("0.bias")), "do not fit the model (missing: 0.bias)"),
    "other class count": (mine("--classes", "7"), nothing, "gives [1, 10] for one image, [1, 7] is needed"),
    "weights of other classes": (
        mine("--classes", "7", "--arguments", '{"classes": 7}'),
        nothing,
        "net.pt: the weights do not fit the model (other shape: 3.weight is 10x144, the model has 7x144",
    ),
    "no BatchNorm": (mine("--arguments", '{"norm": false}'), nothing, "no BatchNorm2d layer"),
    "mean of other channels": (mine("--mean", "0.5", "0.5"), nothing, "mean has 2 values, one per channel"),
    "std of zero": (mine("--std", "0"), nothing, "std positive"),
    "mean for pixels in 0..255": (mine("--mean", "127.5"), nothing, "divide values for pixels in 0..255 by 255"),
    "other input shape": (mine("--input-shape", "1", "9", "9"), nothing, "correct input_shape (C,H,W)"),
    "no such factory": (mine("--factory", "net.py:nte"), nothing, "net.py has no function 'nte' (it has: "),
    "no such file of a factory": (mine("--factory", "no.py:net"), nothing, "no such file no.py"),
    "no such module": (mine("--factory", "nowhere.net:net"), nothing, "no module 'nowhere' is installed"),
    "factory without function": (mine("--factory", "net.py"), nothing, "write package.module:function or"),
    "factory that raises": (mine("--factory", "net.py:fails"), nothing, "RuntimeError: first line second line"),
    "factory of something else": (mine("--factory", "net.py:text"), nothing, "must return a torch.nn.Module"),
    "factory that is not Python": (MINE_FLAGS, text("net.py", "def net(:"), "importing net.py failed: SyntaxError"),
    "unknown argument of a factory": (mine("--arguments", '{"depth": 2}'), nothing, "unexpected keyword argument"),
    "unknown model": (
        ["teacher", "--out", "out.safetensors", "--dataset", "digits", "--model", "resnet21"],
        nothing,
        "model 'resnet21' is not one of cnn-s",
    ),
    "unknown data set": (
        ["teacher", "--out", "out.safetensors", "--dataset", "mnist", "--model", "cnn-s"],
        nothing,
        "data set 'mnist' is not one of digits",
    ),
    "data set that is not there": (
        ["teacher", "--out", "out.safetensors", "--dataset", "bloodmnist", "--model", "cnn-s", "--data-dir", "."],
        nothing,
        "bloodmnist: no bloodmnist.npz",
    ),
    # checkpoints
    "no such teacher": ([*SYNTHESIZE, "--teacher", "none"], nothing, "none: no such file (checkpoint)"),
    "truncated teacher": (SYNTHESIZE, cut("teacher.safetensors"), "is not a whole safetensors file"),
    "damaged teacher": (TRAIN, flip("teacher.safetensors", 0.9), "teacher.safetensors: its tensors differ from their"),
    "foreign safetensors": (SYNTHESIZE, foreign_safetensors, "is not a checkpoint of dfshield; bring weights in with"),
    "checkpoint of a user's code": (SYNTHESIZE, own_factory, "give factory 'net.py:net' as well"),
    "factory for a registered model": ([*SYNTHESIZE, "--factory", "net.py:net"], nothing, "leave the factory out"),
    "pickle as a teacher": (
        SYNTHESIZE,
        lambda: shutil.copy("net.pt", "teacher.safetensors"),
        "not a whole safetensors",
    ),
    # surrogate data
    "shard out of range": ([*SYNTHESIZE, "--shard", "2", "--shards", "2"], nothing, "0 <= shard < shards <= 2"),
    "more shards than groups": ([*SYNTHESIZE, "--shards", "3"], nothing, "there are 2 groups of batches"),
    "no such data": ([*TRAIN, "--data", "none.h5"], nothing, "none.h5: no such file (surrogate data)"),
    "truncated HDF5": (TRAIN, cut("data.h5"), "data.h5: truncated, damaged or not an HDF5 file"),
    "HTML as data": (TRAIN, text("data.h5", "<html>"), "data.h5: truncated, damaged or not an HDF5 file"),
    "foreign HDF5": (TRAIN, foreign_hdf5, "data.h5: not a surrogate file of dfshield"),
    "a ledger as data": ([*TRAIN, "--data", "ledger.h5"], nothing, "ledger.h5: not a surrogate file of dfshield"),
    "future version": (TRAIN, attribute("data.h5", "version", 99), "format version 99, this program reads 1"),
    "incomplete data": (TRAIN, attribute("data.h5", "complete", False), "data.h5: incomplete"),
    "edited attribute": (TRAIN, attribute("data.h5", "source", "x"), "data.h5: content does not match its SHA-256"),
    "labels out of range": (TRAIN, values("data.h5", "labels", 0, 10), "labels 0..10 out of range 0..9"),
    "pixels out of range": (TRAIN, values("data.h5", "images", (0, 0, 0, 0), 255.0), "pixels out of range [0,1]"),
    "NaN pixels": (TRAIN, values("data.h5", "images", (0, 0, 0, 0), float("nan")), "or not finite"),
    "data of another teacher": ([*TRAIN, "--teacher", "other.safetensors"], nothing, "data.h5: made from teacher"),
    "one shard as data": ([*TRAIN, "--data", "shard-0.h5"], nothing, "holds groups 0..1 of 6; give the merged file"),
    "missing shard": (
        ["merge", "shard-0.h5", "shard-2.h5", "--out", "out.h5"],
        nothing,
        "groups 2..3 of 6 are missing",
    ),
    "duplicate shard": (["merge", *["shard-0.h5"] * 2, "--out", "out.h5"], nothing, "(duplicate shard)"),
    "foreign shard": (["merge", "shard-0.h5", "data.h5", "--out", "out.h5"], nothing, "data.h5: options differs from"),
    "damaged shard": (
        ["merge", *(f"shard-{i}.h5" for i in range(3)), "--out", "out.h5"],
        values("shard-1.h5", "labels", 3, -1),
        "shard-1.h5: labels -1..3 out of range 0..3",
    ),
    "no shards": (["merge", "--out", "out.h5"], nothing, "required: shards"),
    "margins of IntraQ that cross": (
        [*SYNTHESIZE, "--objective", "intraq", "--intraq-near", "0.9"],
        nothing,
        "intraq_near (0.9) must not be above intraq_far (0.8)",
    ),
    "unknown generator": ([*GENERATE, "--method", "gan"], nothing, "--method: invalid choice: 'gan'"),
    "divergence of a generator": ([*GENERATE, "--lr", "1e30"], nothing, "qimera diverged: the loss is"),
    "unknown augmentation": (
        [*AUGMENT, "--augmentation", "rotate"],
        nothing,
        "invalid choice: 'rotate'",
    ),
    "augmentation of one shard": (
        [*AUGMENT, "--data", "shard-0.h5"],
        nothing,
        "holds groups 0..1 of 6; give the merged",
    ),
    "augmentation of no data": ([*AUGMENT, "--data", "net.pt"], nothing, "net.pt: truncated, damaged or not an HDF5"),
    "augmentation of damaged data": (AUGMENT, flip("data.h5", 0.5), "data.h5: "),
    # diversity
    "diversity of data of another teacher": (
        [*DIVERSITY, "--teacher", "other.safetensors"],
        nothing,
        "data.h5: made from teacher",
    ),
    "diversity of one shard": ([*DIVERSITY, "--data", "shard-0.h5"], nothing, "give the merged file"),
    "neighbours for more images": ([*DIVERSITY, "--neighbours", "60"], nothing, "there are 60 surrogate images"),
    "more bins than images": (
        [*DIVERSITY, "--bins", "301"],
        nothing,
        "only 300 real images; use bins <= 300",
    ),
    "a sample too small": ([*DIVERSITY, "--sample", "5"], nothing, "neighbours 5: there are 5 real images"),
    "one bin": ([*DIVERSITY, "--bins", "1"], nothing, "bins: Input should be greater than or equal to 2"),
    "level of nought": ([*DIVERSITY, "--alpha", "0"], nothing, "alpha: Input should be greater than 0"),
    "VGG16 without weights": (
        [*DIVERSITY, "--features", "vgg16"],
        nothing,
        "never downloaded: give vgg16, a .pth",
    ),
    "VGG16 weights that are not there": (
        [*DIVERSITY, "--features", "vgg16", "--vgg16", "none.pth"],
        nothing,
        "none.pth: no such file (weights file)",
    ),
    "diversity against an unknown data set": (
        [*DIVERSITY, "--dataset", "mnist"],
        nothing,
        "data set 'mnist' is not one of digits",
    ),
    "diversity against images of another shape": (
        [*DIVERSITY, "--dataset", "cifar10", "--split", "test", "--data-dir", "."],
        lambda: np.savez("cifar10_test.npz", x=tiny.images(20, (3, 32, 32)), y=np.arange(20) % 10),
        "takes images of shape (C,H,W) (1, 8, 8), data set cifar10 has (3, 32, 32)",
    ),
    "a split that the data set lacks": (
        [*DIVERSITY, "--dataset", "cifar10", "--data-dir", "."],
        nothing,
        "data set cifar10 has no split 'dev'; it has train, test",
    ),
    # training
    "B larger than an epoch": ([*TRAIN, "--aggregate", "7"], nothing, "use aggregate <= 6, batch <= 8 or more images"),
    "batch larger than the data": ([*TRAIN, "--batch", "61"], nothing, "smaller holdout or batch"),
    "everything held out": ([*TRAIN, "--holdout", "60"], nothing, "holdout 60 leaves 0 of 60 images"),
    # co-training
    "unknown method": ([*COTRAIN, "--method", "gan"], nothing, "--method: invalid choice: 'gan'"),
    "no generator epochs left": (
        [*COTRAIN, "--method", "ait"],
        nothing,
        "generator_epochs (4) must be less than epochs",
    ),
    "unequal branches": (
        [*COTRAIN, "--batch", "25"],
        nothing,
        "batch 25: dast shares a mini-batch equally among its 10",
    ),
    "option of another stage": ([*COTRAIN, "--aggregate", "2"], nothing, "unrecognized arguments: --aggregate 2"),
    "damaged teacher to co-train": (COTRAIN, flip("teacher.safetensors", 0.9), "its tensors differ from their"),
    # evaluation
    "no such evaluation set": ([*ATTACK, "--evaluation", "none.npz"], nothing, "none.npz: no such file"),
    "evaluation set that is no npz": (ATTACK, text("test.npz", "no archive"), "test.npz: "),
    "truncated npz": (ATTACK, cut("test.npz"), "test.npz: it cannot be read as .npz"),
    "npz with objects": (ATTACK, npz(y=np.array([Code()] * 20)), "test.npz: it holds pickled Python objects"),
    "npz without labels": (ATTACK, npz(y=None), "test.npz: has no key y (it has: x)"),
    "images of another size": (ATTACK, npz(x=tiny.images(20, (1, 9, 9))), "images are 9x9 with 1 channels"),
    "images of another rank": (ATTACK, npz(x=np.zeros((20, 64))), "images have shape (20, 64)"),
    "more labels than images": (ATTACK, npz(y=np.arange(21) % 10), "labels have shape (21,)"),
    "no images": (ATTACK, npz(x=tiny.images(0), y=np.zeros(0, dtype=np.int64)), "the set is empty"),
    "labels from one": (ATTACK, npz(y=np.arange(20) % 10 + 1), "labels lie in 1..10; allowed are 0 to 9"),
    "labels that are floats": (ATTACK, npz(y=np.ones(20)), "labels are float64; expected integers"),
    "pixels in 0..255 as floats": (ATTACK, npz(x=255 * tiny.images(20)), "expected [0,1] (or save them as uint8)"),
    "NaN images": (ATTACK, npz(x=np.full((20, 8, 8, 1), np.nan, dtype=np.float32)), "float images lie in [nan, nan]"),
    "split that there is not": (
        [*without(ATTACK, "--evaluation"), "--split", "validation"],
        nothing,
        "--split: invalid choice: 'validation'",
    ),
    "data set of another shape": (
        [*without(ATTACK, "--evaluation"), "--dataset", "cifar10"],
        nothing,
        "the model takes images of shape (C,H,W) (1, 8, 8), data set cifar10 has (3, 32, 32)",
    ),
    # configs and what is made by them
    "no config": (["table", "table4", "--config", "no.yaml", "--out", "out.csv"], nothing, "no.yaml: cannot be read"),
    "config that is a list": (
        ["table", "table4", "--config", "grid.yaml", "--out", "out.csv"],
        text("grid.yaml", "- a\n"),
        "grid.yaml: a config is a mapping of keys to values",
    ),
    "config that is no YAML": (
        ["table", "table4", "--config", "grid.yaml", "--out", "out.csv"],
        text("grid.yaml", "a: [\nb: {\n"),
        "grid.yaml: cannot be read as YAML",
    ),
    "unknown key": (
        ["table", "table4", "--config", "grid.yaml", "--out", "out.csv"],
        config("grid.yaml", GRID, "seedz", [1]),
        "grid.yaml: seedz: unknown key; did you mean 'seeds'?",
    ),
    "unknown option in a config": (
        ["table", "table4", "--config", "grid.yaml", "--out", "out.csv"],
        config("grid.yaml", GRID, "datasets/digits/training", {"epoch": 3}),
        "unknown option 'epoch'; did you mean 'epochs'?",
    ),
    "NaN in a config": (
        ["table", "table4", "--config", "grid.yaml", "--out", "out.csv"],
        config("grid.yaml", GRID, "training", {"lr": float("nan")}),
        "training.lr: Input should be",
    ),
    "unknown table": (
        ["table", "table3", "--config", "grid.yaml", "--out", "out.csv"],
        nothing,
        "no 'table3'; tables are table4",
    ),
    "table without ledgers": (["table", "table4", "--config", "grid.yaml", "--out", "out.csv"], nothing, "ledger.h5"),
    "tables file that is not there": (
        ["table", "table4", "--config", "grid.yaml", "--out", "out.csv"],
        lambda: Path("grid.yaml").write_text(yaml.safe_dump(GRID | {"tables": "none.yaml"})),
        "none.yaml: cannot be read",
    ),
    "harden without the evaluation's file": (
        ["harden", "net", "--config", "mine.yaml", "--student", "teacher.safetensors", "--out", "out"],
        config("mine.yaml", MINE, "harden/net/evaluation", {"limit": 10}),
        "mine.yaml: harden.net.evaluation.file: Field required",
    ),
    "harden with a mean of other channels": (
        ["harden", "net", "--config", "mine.yaml", "--student", "teacher.safetensors", "--out", "out"],
        config("mine.yaml", MINE, "harden/net/mean", [0.5]),
        "harden.net: mean has 1 values but input_shape has 3 channels",
    ),
    "a rival as a row with data": (
        ["table", "table4", "--config", "grid.yaml", "--out", "out.csv"],
        lambda: (
            Path("tables.yaml").write_text(TABLES.read_text().replace("none, recipe: dast", "dss, recipe: dast")),
            Path("grid.yaml").write_text(yaml.safe_dump(GRID | {"tables": "tables.yaml"})),
        ),
        "table4: its row 'DaST' has source 'dss', but recipe 'dast' trains a generator of its own: its source is none",
    ),
    "harden of another name": (
        ["harden", "nte", "--config", "mine.yaml", "--student", "teacher.safetensors", "--out", "out"],
        nothing,
        "harden: no entry 'nte'; there are net",
    ),
    "harden without ledgers": (
        ["harden", "net", "--config", "mine.yaml", "--student", "teacher.safetensors", "--out", "out"],
        nothing,
        "ledger.h5",
    ),
    # what is looked into
    "nothing to inspect": (["inspect", "none.h5"], nothing, "none.h5: no such file"),
    "a text to inspect": (["inspect", "net.py"], nothing, "net.py: "),
    "a damaged ledger": (["inspect", "ledger.h5"], damaged_ledger, "ledger.h5: "),
    "a truncated ledger": (["inspect", "ledger.h5"], cut("ledger.h5"), "ledger.h5: "),
    "an edited ledger": (["inspect", "ledger.h5"], attribute("ledger.h5", "protocol", "aa"), "ledger.h5: "),
    "foreign HDF5 to inspect": (["inspect", "data.h5"], foreign_hdf5, "neither surrogate data nor a ledger"),
    "an edited record": (
        ["inspect", "record.json"],
        lambda: Path("record.json").write_text(Path("record.json").read_text().replace("0.25", "0.75")),
        "record.json: content does not match its SHA-256",
    ),
    "a foreign record": (["inspect", "record.json"], text("record.json", "{}"), "not a record of diversity metrics"),
    "a sheet of a checkpoint": (["inspect", "teacher.safetensors", "--sheet", "a.png"], nothing, "no images to draw"),
    "no table to verify": (["verify", "none.csv"], nothing, "none.csv: "),
    "a text to verify": (["verify", "net.py"], nothing, "net.py: "),
}


def files(folder):
    """Every file below a folder with its content, but for what Python compiles."""
    found = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {path: content for path, content in found.items() if "__pycache__" not in path.parts}


def check(folder, before, status, out, err, message):
    assert status == 2, err
    assert err.count("\n") == 1, err
    assert message in err
    assert "Traceback" not in err + out
    assert err.startswith("dfshield")
    if not out.startswith(("ledger.h5", "data.h5", "teacher")):
        assert out == ""
    assert files(folder) == before


@pytest.mark.parametrize("name", CASES)
def test_bad_input(folder, capsys, name):
    words, spoil, message = CASES[name]
    if name == "no CUDA" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    spoil()
    capsys.readouterr()
    before = files(folder)
    with pytest.raises(SystemExit) as done:
        cli.main(list(words))
    captured = capsys.readouterr()
    check(folder, before, done.value.code, captured.out, captured.err, message)


@pytest.mark.parametrize(
    "name", ["ε in pixel units", "damaged shard", "data of another teacher", "plain pickle with code"]
)
def test_bad_input_of_the_program_itself(folder, name):
    """The same as separate programs, where nothing of the tests can catch what they print."""
    words, spoil, message = CASES[name]
    spoil()
    before = files(folder)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-m", "dfshield", *words], capture_output=True, text=True, env=environment, check=False
    )
    check(folder, before, done.returncode, done.stdout, done.stderr, message)


@pytest.mark.parametrize("words", [TRAIN, COTRAIN, SYNTHESIZE, MINE_FLAGS, ATTACK], ids=lambda words: words[0])
def test_the_same_commands_with_good_input(folder, words):
    """So that the cases above are refused for what they spoil alone."""
    cli.main(list(words))
    assert list(folder.glob("out.*"))
