"""Set-up that all tests share."""

import sys

import pytest
import torch

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
def no_users_code():
    """What a test imports of a user's folder is gone after it: other tests have modules of the same names."""
    path, loaded = sys.path[:], set(sys.modules)
    yield
    code = sys.modules.get("dfshield.models.user_code")
    if code is None or not code._folders:
        return
    for name in set(sys.modules) - loaded:
        own = code.home_of(name, sys.modules[name]) in code._folders
        if own and name.partition(".")[0] not in ("dfshield", "support", "tests"):
            del sys.modules[name]
    code._folders.clear()
    sys.path[:] = path
