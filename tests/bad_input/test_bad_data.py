"""Whatever is wrong with training sets, evaluation sets and their options: status 2, one line, nothing written."""

import numpy as np
import pytest
from support import tiny
from support.bad_input import (
    ATTACK,
    AUGMENT,
    COTRAIN,
    DIVERSITY,
    GENERATE,
    SYNTHESIZE,
    TRAIN,
    Code,
    attribute,
    cut,
    flip,
    foreign_hdf5,
    nothing,
    npz,
    run_case,
    run_program,
    text,
    values,
    without,
)

CASES = {
    # training sets
    "shard out of range": ([*SYNTHESIZE, "--shard", "2", "--shards", "2"], nothing, "0 <= shard < shards <= 2"),
    "more shards than groups": ([*SYNTHESIZE, "--shards", "3"], nothing, "there are 2 groups of batches"),
    "no such data": ([*TRAIN, "--data", "none.h5"], nothing, "none.h5: no such file (training set)"),
    "truncated HDF5": (TRAIN, cut("data.h5"), "data.h5: truncated, damaged or not an HDF5 file"),
    "HTML as data": (TRAIN, text("data.h5", "<html>"), "data.h5: truncated, damaged or not an HDF5 file"),
    "foreign HDF5": (TRAIN, foreign_hdf5, "data.h5: HDF5, but not a training set of dfshield"),
    "a ledger as data": (
        [*TRAIN, "--data", "ledger.h5"],
        nothing,
        "ledger.h5: HDF5, but not a training set of dfshield",
    ),
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
    "no shards": (["merge", "--out", "out.h5"], nothing, "required: SHARD"),
    "margins of IntraQ that cross": (
        [*SYNTHESIZE, "--objective", "intraq", "--near", "0.9"],
        nothing,
        "near (0.9) must not be above far (0.8)",
    ),
    "unknown generator": ([*GENERATE, "--method", "gan"], nothing, "--method: invalid choice: 'gan'"),
    "divergence of a generator": (
        [*GENERATE, "--images", "20", "--lr", "1e30"],
        nothing,
        "qimera diverged: the loss is",
    ),
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
    "neighbours for more images": ([*DIVERSITY, "--neighbours", "60"], nothing, "there are 60 synthetic images"),
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
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input(folder, capsys, name):
    run_case(folder, capsys, CASES[name])


@pytest.mark.parametrize("name", ["damaged shard", "data of another teacher"])
def test_bad_input_of_the_program_itself(folder, name):
    run_program(folder, CASES[name])
