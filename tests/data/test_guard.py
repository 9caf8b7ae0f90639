"""No data-free stage opens real data, whatever its process has imported."""

import subprocess
import sys

import numpy as np
import pytest

from dfshield import registry
from dfshield.core.datafree import check_real_data_allowed, data_free
from dfshield.data import sets
from dfshield.data.npz import read_npz


def run_python(text):
    return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)


def test_a_data_free_stage_cannot_import_the_data_package():
    done = run_python(
        "from dfshield.core.datafree import data_free; import importlib; "
        "data_free('train')(importlib.import_module)('dfshield.data.sets')"
    )
    assert "train is data-free: it must not open real data (dfshield.data)" in done.stderr
    done = run_python(
        "import sys, dfshield.models.checkpoints, dfshield.models.folding; print('torchvision' in sys.modules)"
    )
    assert done.stdout == "False\n", done.stderr


@pytest.mark.parametrize("name", registry.DATASETS)
def test_a_data_free_stage_cannot_open_a_set(name, tmp_path):
    """Where the package was imported before, in a process that runs several stages."""
    load = registry.DATASETS[name].load()
    for opening in (load, sets.load):
        with pytest.raises(RuntimeError, match="train is data-free"):
            data_free("train")(opening)(name, "test", tmp_path)


def test_a_data_free_stage_cannot_read_arrays(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, x=np.zeros((2, 8, 8, 3), np.uint8), y=np.zeros(2, np.int64))
    before = read_npz(path, ("x",))["x"]
    for opening in (lambda: np.asarray(before), lambda: sets.load_npz(path, (3, 8, 8), 4)):
        with pytest.raises(RuntimeError, match="train is data-free"):
            data_free("train")(opening)()
    assert np.asarray(before).shape == (2, 8, 8, 3)  # the stage has ended


def test_a_data_free_stage_that_fails_has_ended():
    with pytest.raises(ZeroDivisionError):
        data_free("train")(lambda: 1 / 0)()
    check_real_data_allowed()
