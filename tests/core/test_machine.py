"""What all stages share with the machine: devices, arithmetic, files that are whole or absent."""

import errno
import fcntl
import multiprocessing
import os
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch

from dfshield.core import device, files
from dfshield.core.device import cuda_devices, select_device
from dfshield.core.errors import InputError
from dfshield.core.files import REFUSED, SPACE, atomic, write_text


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


@pytest.mark.parametrize("number", [*SPACE, *REFUSED])
def test_what_a_disk_refuses_is_one_line(tmp_path, number):
    out = tmp_path / "out.txt"
    with pytest.raises(InputError, match=r"out\.txt: not written \(.+\); .+ and repeat$"), atomic(out) as temporary:
        raise OSError(number, os.strerror(number), str(temporary))
    with pytest.raises(OSError, match="input"), atomic(out):
        raise OSError(number, os.strerror(number), "input")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_removed_meanwhile(tmp_path):
    out = tmp_path / "folder" / "out.txt"
    with pytest.raises(InputError, match="its folder was removed meanwhile"), atomic(out) as temporary:
        temporary.unlink()
        out.parent.rmdir()


def test_what_a_killed_process_left_is_removed(tmp_path):
    """Temporary files of processes that live, of other machines and for other paths stay."""
    dead = subprocess.Popen(["true"])
    dead.wait()
    machine = files._machine()
    assert machine
    names = [f".{n}.{m}-{p}.ab.tmp.h5" for n in ("a.h5", "b.h5") for m in (machine, "f" * 8) for p in (dead.pid, 1)]
    for name in names:
        (tmp_path / name).touch()
    write_text(tmp_path / "a.h5", "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["a.h5", *names[1:]])


def child(path):
    """Be killed while a file is written."""
    with atomic(path) as temporary:
        temporary.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_file_that_was_half_written_is_replaced(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=child, args=(tmp_path / "a.txt",))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert [path.suffixes[-2:] for path in tmp_path.iterdir()] == [[".tmp", ".txt"]]
    write_text(tmp_path / "a.txt", "whole")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["whole"]


GPU = {"CUDA_VISIBLE_DEVICES": "0"}
JOB = {"SLURM_JOB_ID": "17"}


@pytest.fixture
def without_cuda(tmp_path, monkeypatch):
    """A machine without GPUs, and a function that sets variables."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(device, "_lease", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID", "SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "SLURM_GPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)
    yield lambda given: [monkeypatch.setenv(*pair) for pair in given.items()]
    if device._lease:
        device._lease.close()


@pytest.mark.parametrize(
    "given",
    [GPU | JOB, JOB | {"SLURM_JOB_GPUS": "1"}, JOB | {"SLURM_GPUS_ON_NODE": "2"}, GPU | {"PBS_JOBID": "3.server"}],
)
def test_a_gpu_of_the_queue_that_pytorch_does_not_see_is_refused(without_cuda, given):
    without_cuda(given)
    with pytest.raises(
        InputError, match=r"^device: .* is .*, but PyTorch .* sees no CUDA device; .* or .* device cpu$"
    ):
        select_device("auto", 1)
    assert select_device("cpu", 1).type == "cpu"


def test_a_gpu_that_pytorch_does_not_see_is_said(without_cuda, capsys):
    without_cuda(GPU)
    assert select_device("auto", 1).type == "cpu"
    told = capsys.readouterr().err
    assert told.startswith("CUDA_VISIBLE_DEVICES is 0, but PyTorch ") and told.endswith(" no CUDA device: on the CPU\n")


@pytest.mark.parametrize("given", [{}, JOB, JOB | {"CUDA_VISIBLE_DEVICES": "", "SLURM_JOB_GPUS": "1"}])
def test_where_nobody_gave_a_gpu_there_is_nothing_to_say(without_cuda, capsys, given):
    without_cuda(given)
    if not list(Path("/dev").glob("nvidia[0-9]*")):
        assert select_device("auto", 1).type == "cpu"
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, 524])
def test_without_file_locks_there_is_no_lease(lease, monkeypatch, capsys, number):
    def flock(*given):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(device.fcntl, "flock", flock)
    assert lease("0,1") == "0,1"
    assert "no lease of a GPU (" in capsys.readouterr().err and device._lease is None


def test_a_lease_folder_that_is_not_ours(lease, tmp_path, capsys):
    folder = tmp_path / f"dfshield-devices-{os.getuid()}"
    (tmp_path / "elsewhere").mkdir()
    folder.symlink_to("elsewhere")
    assert lease("0,1") == "0,1"
    folder.unlink()
    folder.write_text("a file")
    assert lease("0,1") == "0,1"
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2 and all(line.startswith(f"{folder}: no lease of a GPU (") for line in told)
