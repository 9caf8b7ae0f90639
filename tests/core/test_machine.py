"""What all stages share with the machine: devices, arithmetic, files that are whole or absent."""

import errno
import fcntl
import os
import tempfile

import pytest
import torch

from dfshield.core import device
from dfshield.core.device import cuda_devices, select_device
from dfshield.core.errors import InputError
from dfshield.core.files import atomic, write_text


@pytest.fixture
def lease(tmp_path, monkeypatch):
    """Takes a lease as a new process would, with the devices and the SLURM job given; returns the device's name."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    held = []

    def take(devices, job=None):
        monkeypatch.setattr(device, "_lease", None)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
        monkeypatch.delenv("SLURM_JOB_ID", raising=False)
        if job:
            monkeypatch.setenv("SLURM_JOB_ID", job)
        device._lease_cuda_device()
        held.append(device._lease)
        return os.environ["CUDA_VISIBLE_DEVICES"]

    yield take
    for stream in filter(None, held):
        stream.close()


@pytest.mark.parametrize("job", [None, "17"])
def test_jobs_side_by_side_have_devices_of_their_own(lease, job):
    assert [lease("0,1,2", job), lease("0,1,2", job), lease("2,1", job)] == ["0", "1", "2"]


def test_devices_of_other_slurm_jobs_are_other_devices(lease):
    assert [lease("0"), lease("0", "17"), lease("0", "18")] == ["0", "0", "0"]


def test_a_job_waits_until_a_device_is_free(lease, monkeypatch):
    lease("0")
    waited = []

    def sleep(seconds):
        waited.append(seconds)
        fcntl.flock(first, fcntl.LOCK_UN)

    first = device._lease
    monkeypatch.setattr(device.time, "sleep", sleep)
    assert lease("0") == "0" and len(waited) == 1


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        ("", []),
        ("-1", []),
        ("0", ["0"]),
        ("1, 0", ["1", "0"]),
        ("0,-1,1", ["0"]),
        ("NoDevFiles", []),
        ("GPU-8", ["GPU-8"]),
    ],
)
def test_devices_that_may_be_used(lease, monkeypatch, visible, names):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert cuda_devices() == names
    assert lease(visible) == (names[0] if names else visible)


def test_fp32_is_whole_fp32():
    torch.backends.cudnn.allow_tf32 = True
    select_device("cpu", torch.get_num_threads())
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32


def test_a_full_disk_is_one_line_and_leaves_what_was_there(tmp_path):
    out = tmp_path / "out.txt"
    write_text(out, "before")
    with pytest.raises(InputError, match=r"out\.txt: not written \(No space left on device\); free space"), atomic(out):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(FileNotFoundError), atomic(out):
        raise FileNotFoundError(errno.ENOENT, "another error")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]
