"""The coefficients of the loss terms: how they are drawn, and that a set holds them."""

import h5py
import numpy as np
import pytest
import torch
from support import tiny

from dfshield.core.rng import generator
from dfshield.options.sources import Inversion
from dfshield.sources import coefficients
from dfshield.sources.inversion import run
from dfshield.sources.objective import TERMS

BASE = torch.tensor([1.0, 2.0, 2.5e-5], dtype=torch.float64)


def draws(sampler, **changes) -> np.ndarray:
    random = generator("test", 0)
    options = Inversion(**changes)
    return torch.stack([sampler(BASE, random, options) for _ in range(2000)]).numpy() / BASE.numpy()


def test_fixed_coefficients_are_the_base_weights():
    assert (draws(coefficients.fixed) == 1).all()


@pytest.mark.parametrize("shift", [0.0, 0.25])
def test_dss_draws_each_weight_uniformly(shift):
    found = draws(coefficients.dss, shift=shift)
    assert found.min() >= shift
    assert found.max() < 1 + shift
    assert found.mean(0) == pytest.approx(np.full(3, 0.5 + shift), abs=0.03)
    assert found.var(0) == pytest.approx(np.full(3, 1 / 12), abs=0.01)
    assert np.abs(np.corrcoef(found.T) - np.eye(3)).max() < 0.08  # independent of one another


def test_dss_of_the_released_code_keeps_the_prior():
    found = draws(coefficients.dss, randomise="class-feature")
    assert (found[:, 2] == 1).all()
    assert found[:, :2].var(0) == pytest.approx(np.full(2, 1 / 12), abs=0.01)


def test_linear_coefficients_are_two_shares_of_a_whole():
    found = draws(coefficients.linear, shift=0.5)
    assert (found[:, 2] == 1).all()
    assert found[:, 0].min() >= 0.5
    assert found[:, 0].max() < 1.5
    assert found[:, 0] + found[:, 1] == pytest.approx(np.full(2000, 1.5))


def test_coefficients_are_drawn_once_per_batch_and_stored(tmp_path):
    teacher = tiny.teacher(tmp_path / "teacher.safetensors")
    run(
        teacher,
        tmp_path / "data.h5",
        Inversion(device="cpu", images=60, batch=10, group=2, iterations=5, alpha_feature=3.0),
    )
    with h5py.File(tmp_path / "data.h5") as file:
        found = {term: file[f"coefficients/{term}"][()] for term in TERMS}
    for term, base in zip(TERMS, (1.0, 3.0, 2.5e-5), strict=True):
        assert found[term].shape == (6,)
        assert len(np.unique(found[term])) == 6
        assert (found[term] >= 0).all()
        assert (found[term] < base).all()
