"""Whatever is wrong with a command, a place or a model: status 2, one line that names it, and nothing written."""

import pickle
import shutil
from pathlib import Path

import pytest
import torch
from support.bad_input import (
    ATTACK,
    COTRAIN,
    MINE_FLAGS,
    SYNTHESIZE,
    TRAIN,
    Code,
    cut,
    flip,
    foreign_safetensors,
    mine,
    nothing,
    own_factory,
    run_case,
    run_program,
    text,
    weights,
    without,
)

from dfshield import cli

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
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input(folder, capsys, name):
    if name == "no CUDA" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    run_case(folder, capsys, CASES[name])


@pytest.mark.parametrize("name", ["ε in pixel units", "plain pickle with code"])
def test_bad_input_of_the_program_itself(folder, name):
    run_program(folder, CASES[name])


@pytest.mark.parametrize("words", [TRAIN, COTRAIN, SYNTHESIZE, MINE_FLAGS, ATTACK], ids=lambda words: words[0])
def test_the_same_commands_with_good_input(folder, words):
    """So that the cases are refused for what they spoil alone."""
    cli.main(list(words))
    assert list(folder.glob("out.*"))
