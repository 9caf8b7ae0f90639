"""Set-up that all tests share."""

import sys

import pytest
import torch

from dfshield.core import datafree

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def torchvision():
    """torchvision, also beside a PyTorch build that lacks its operators: the loaders need none of them."""
    libraries = []
    for name in ("nms", "qnms"):
        library = torch.library.Library("torchvision", "FRAGMENT")
        try:
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        except RuntimeError:  # defined by torchvision itself
            continue
        libraries.append(library)  # a definition lives as long as its library
    module = pytest.importorskip("torchvision", exc_type=(ImportError, RuntimeError))
    yield module
    del libraries


@pytest.fixture(autouse=True)
def fresh_process(monkeypatch):
    """Every test may run data-free stages, whatever other tests have imported, and they bind no other test."""
    monkeypatch.delitem(sys.modules, "dfshield.data", raising=False)
    monkeypatch.setattr(datafree, "_data_free_stage", None)


@pytest.fixture
def small_budget(monkeypatch):
    """AutoAttack with few iterations and queries."""
    from dfshield.attacks import autoattack
    from dfshield.attacks.budget import Budget

    monkeypatch.setattr(autoattack, "BUDGET", Budget(iterations=6, queries=25))
