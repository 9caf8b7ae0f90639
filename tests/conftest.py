"""Set-up that all tests share."""

import sys

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def torchvision():
    """torchvision, also beside a PyTorch build that lacks its operators: the loaders need none of them."""
    from dfshield.models.onnx_file import import_torchvision

    import_torchvision()
    return pytest.importorskip("torchvision")


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
