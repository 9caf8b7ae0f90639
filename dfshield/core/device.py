"""The device of a process: choice, lease, precision, generated code."""

import errno
import fcntl
import itertools
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch
    from pydantic import BaseModel
from dfshield.core.errors import InputError
from dfshield.core.progress import log
from dfshield.core.rng import seed_globals

QUEUES = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID")
"""Variables of a job in a queue: SLURM, PBS, LSF, Grid Engine."""
BUSY = (errno.EWOULDBLOCK, errno.EACCES)
"""What a file lock says that another process holds."""
StageOptionsT = TypeVar("StageOptionsT", bound="BaseModel")
_lease: IO[str] | None = None  # open for the life of the process: the lock ends with it, even on kill -9


def select_device(device: str, threads: int) -> "torch.device":
    """Set threads, determinism and global generators, lease one CUDA device if asked for, and return the torch device.

    `device` is ``cpu``, ``cuda`` or ``auto`` (CUDA where there is one). Leases are file locks, one per device, so that
    jobs started side by side on one machine, or inside one SLURM job, spread over its devices. fp32 is whole fp32:
    PyTorch's default lets CUDA convolve with ten bits (TF32), too few for verdicts and signs of small gradients.
    Raises InputError for ``cuda`` without one, and for ``auto`` in a job that a queue has given a GPU that PyTorch does
    not see: it would hold the GPU and work without.
    """
    given = _given_gpus()
    if device != "cpu":
        _lease_cuda_device()
    import torch

    torch.set_num_threads(threads)
    seed_globals(0)  # so that no run differs from its repetition; what may be resumed is seeded by its place
    # use_deterministic_algorithms would load the compiler: a second and more
    torch.set_deterministic_debug_mode("warn")
    torch.backends.cudnn.allow_tf32 = False
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device: 'cuda' was asked for but PyTorch sees no CUDA device; use device cpu or auto")
    use_cuda = device != "cpu" and torch.cuda.is_available()
    if device == "auto" and given and not use_cuda:
        seen = f"{given}, but PyTorch {torch.__version__} sees no CUDA device"
        if any(name in os.environ for name in QUEUES):
            raise InputError(f"device: {seen}; install a build of PyTorch for this CUDA, or ask for device cpu")
        log(f"{seen}: on the CPU")
    return torch.device("cuda" if use_cuda else "cpu")


def fast_in_bf16(device: "torch.device") -> bool:
    """Whether `device` multiplies bf16 faster than fp32: CUDA of capability 8 or more, CPUs with AMX or AVX-512 BF16.

    Other CPUs take longer in it.
    """
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return any(torch.cpu.get_capabilities().get(unit) for unit in ("amx_bf16", "avx512_bf16"))


def resolve_precision(options: StageOptionsT, device: "torch.device") -> StageOptionsT:
    """`options` with bf16 or fp32, whichever is faster on `device`, in the place of every precision ``auto``."""
    fields = [name for name in type(options).model_fields if name.endswith("precision")]
    open_ones = [name for name in fields if getattr(options, name) == "auto"]
    if not open_ones:
        return options
    return options.model_copy(update=dict.fromkeys(open_ones, "bf16" if fast_in_bf16(device) else "fp32"))


def cuda_devices() -> list[str]:
    """CUDA devices of this machine that this process may use, told without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:  # as CUDA reads it: what follows a name that is none does not count
        names = (name.strip() for name in visible.split(","))
        return list(itertools.takewhile(lambda name: name and name not in ("-1", "NoDevFiles"), names))
    return [path.name.removeprefix("nvidia") for path in sorted(Path("/dev").glob("nvidia[0-9]*"))]


def _given_gpus() -> str:
    """What says that this process has GPUs; empty if nothing does."""
    if devices := cuda_devices():
        variable = os.environ.get("CUDA_VISIBLE_DEVICES")
        return f"CUDA_VISIBLE_DEVICES is {variable}" if variable else f"this machine has /dev/nvidia{devices[0]}"
    if "CUDA_VISIBLE_DEVICES" in os.environ:  # empty: they are hidden on purpose
        return ""
    names = ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "SLURM_GPUS_ON_NODE")
    return next((f"{name} is {os.environ[name]}" for name in names if os.environ.get(name, "0") not in ("", "0")), "")


def _lease_cuda_device() -> None:
    """Take a device of our own and show PyTorch no other; without file locks go on without, and say so."""
    global _lease
    devices = cuda_devices()
    if _lease is not None or not devices:
        return
    # SLURM numbers the devices of every job from 0
    parts = ("dfshield-devices", str(os.getuid()), os.environ.get("SLURM_JOB_ID"))
    folder = Path(tempfile.gettempdir()) / "-".join(filter(None, parts))
    try:
        folder.mkdir(exist_ok=True)
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            raise PermissionError(errno.EACCES, "it is another user's")
        while _lease is None:
            for name in devices:
                if stream := _locked(folder / name.replace("/", "_")):
                    os.environ["CUDA_VISIBLE_DEVICES"] = name
                    _lease = stream
                    return
            time.sleep(1)
    except OSError as error:
        log(
            f"{folder}: no lease of a GPU ({error.strerror}), so jobs on this machine may share one; "
            "set TMPDIR to a folder of your own with file locks"
        )


def _locked(path: Path) -> IO[str] | None:
    """The file at `path`, locked; None if another process has it. Raises OSError where there are no locks."""
    stream = path.open("a")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        stream.close()
        if error.errno in BUSY:
            return None
        raise
    return stream


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` (or a network) as generated code, made at the first call and again for every new shape.

    Raises InputError at that call if PyTorch cannot generate code here.
    """
    import torch
    from torch._dynamo.exc import TorchDynamoException

    torch.use_deterministic_algorithms(True, warn_only=True)  # tells the compiler, too
    generated = torch.compile(function, dynamic=False)

    def call(*arguments: Any) -> Any:
        try:
            return generated(*arguments)
        except TorchDynamoException as error:
            reason = str(error).strip().split("\n")[0]
            raise InputError(
                f"compile: PyTorch cannot generate code here ({reason}); install a C++ compiler (g++) or leave it out"
            ) from None

    return call
