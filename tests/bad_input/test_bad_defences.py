"""Whatever is wrong with fits, certificates and detectors: status 2, one line that names it, and nothing written."""

import pytest
from support.bad_input import cut, flip, nothing, npz, run_case, text, without

from dfshield import cli

DEFEND = [
    *("defend", "--model", "teacher.safetensors", "--teacher", "teacher.safetensors", "--data", "data.h5"),
    *("--out", "out.safetensors", "--threat", "linf:8/255", "--defence", "thermometer", "--epochs", "1"),
    *("--device", "cpu"),
]
CERTIFY = [
    *("certify", "--model", "teacher.safetensors", "--evaluation", "test.npz", "--out", "out.json", "--n", "20"),
    *("--device", "cpu"),
]
DETECT = [
    *("detect", "--model", "teacher.safetensors", "--data", "data.h5", "--evaluation", "test.npz", "--out", "out.json"),
    *("--detector", "squeezing", "--threat", "linf:8/255", "--steps", "2", "--device", "cpu"),
]
CASES = {
    # fits
    "nothing to fit": (
        [*without(DEFEND, "--defence", "--epochs"), "--defence", "tte"],
        nothing,
        "defence tte has nothing to fit; those that have",
    ),
    "unknown defence": ([*DEFEND, "--defence", "wall"], nothing, "--defence: invalid choice: 'wall'"),
    "no threat": (without(DEFEND, "--threat"), nothing, "required: --threat"),
    "ε of a fit without a norm": ([*DEFEND, "--threat", "8/255"], nothing, "write for example linf:8/255"),
    "a fit in l1": ([*DEFEND, "--threat", "l1:2"], nothing, "--threat: threat 'l1:2' is not NORM:EPS with NORM one of"),
    "a fit to another's student": (
        [*DEFEND, "--teacher", "other.safetensors"],
        nothing,
        "teacher.safetensors: was hardened from",
    ),
    "a fit on damaged data": (DEFEND, flip("data.h5", 0.5), "data.h5: "),
    "a fit on no data": ([*DEFEND, "--data", "net.pt"], nothing, "net.pt: truncated, damaged or not an HDF5"),
    "a fit of a truncated model": (DEFEND, cut("teacher.safetensors"), "is not a whole safetensors file"),
    "levels of a fit": ([*DEFEND, "--levels", "1"], nothing, "levels: Input should be greater than or equal to 2"),
    # certificates
    "a curve for a record": ([*CERTIFY, "--out", "out.csv"], nothing, "out.csv: is the name of the curve"),
    "no radii": ([*CERTIFY, "--radii"], nothing, "--radii: none given; give at least one"),
    "a negative radius": ([*CERTIFY, "--radii", "-1"], nothing, "radii"),
    "no noise": ([*CERTIFY, "--sigma", "0"], nothing, "sigma: Input should be greater than 0"),
    "unknown noise": ([*CERTIFY, "--distribution", "cauchy"], nothing, "invalid choice: 'cauchy'"),
    "certain of everything": ([*CERTIFY, "--alpha", "0"], nothing, "alpha: Input should be greater than 0"),
    "certificates of no model": ([*CERTIFY, "--model", "data.h5"], nothing, "data.h5: "),
    "certificates on images of another shape": (CERTIFY, npz(x=None), "test.npz: "),
    "certificates on text": (CERTIFY, text("test.npz", "no archive"), "test.npz: "),
    # detectors
    "unknown detector": ([*DETECT, "--detector", "guess"], nothing, "--detector: invalid choice: 'guess'"),
    "an option of another detector": ([*DETECT, "--neighbours", "3"], nothing, "unrecognized arguments: --neighbours"),
    "a detector in l1": ([*DETECT, "--threat", "l1:2"], nothing, "threat 'l1:2' is not NORM:EPS with NORM one of"),
    "all false alarms": ([*DETECT, "--false-alarms", "1"], nothing, "false_alarms: Input should be less than 1"),
    "a detector of few images": ([*DETECT, "--detector", "lid"], nothing, "lid needs more than the 100 images"),
    "a reference without neighbours": (
        [*DETECT, "--detector", "lid", "--reference", "10"],
        nothing,
        "neighbours 20: the reference has 10 images",
    ),
    "a detector on damaged data": (DETECT, flip("data.h5", 0.5), "data.h5: "),
    "a detector on a ledger": ([*DETECT, "--data", "ledger.h5"], nothing, "ledger.h5: HDF5, but not a training set"),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input(folder, capsys, name):
    run_case(folder, capsys, CASES[name])


@pytest.mark.parametrize("words", [DEFEND, CERTIFY, DETECT], ids=lambda words: words[0])
def test_the_same_commands_with_good_input(folder, words):
    """So that the cases are refused for what they spoil alone."""
    cli.main(list(words))
    assert list(folder.glob("out.*"))
