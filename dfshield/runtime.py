"""What every stage shares with the machine: errors, files that are whole or absent, seeds, devices, progress."""

import contextlib
import csv
import errno
import fcntl
import hashlib
import io
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch
    from pydantic import BaseModel
    from tqdm import tqdm

Settled = TypeVar("Settled", bound="BaseModel")


class InputError(Exception):
    """Something the user gave is wrong. The message is one line: what, where, what is allowed, how to mend it.

    The command line prints it and exits with status 2.
    """


class Diverged(Exception):
    """A training cannot go on; the message says why and where. What was whole before is its result, marked so."""


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces, so that equal values give equal text (and equal hashes)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def digest(*parts: Any) -> str:
    """SHA-256 in hex of the canonical JSON of `parts`."""
    return hashlib.sha256(canonical_json(parts).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 in hex of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fraction(text: str | float) -> float:
    """``"8/255"`` or a decimal as a float; raises ValueError for anything else."""
    return float(Fraction(str(text).replace(" ", "")))


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success sync it to disk and rename it, on failure remove it.

    So a file that exists is whole.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give the path of a file to write")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=f".tmp{path.suffix}", dir=path.parent)
    except OSError as error:
        raise InputError(
            f"{path}: cannot write there ({error.strerror}); choose another output path or free the folder"
        ) from None
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise InputError(f"{path}: not written ({error.strerror}); free space on its disk and repeat") from None
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def metrics_csv(columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> str:
    """Per-epoch metrics as CSV text, numbers with six digits."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    return stream.getvalue()


def stopped_state(path: Path | None, device: "torch.device") -> dict[str, Any] | None:
    """What a stopped run has saved in `path`, None if nothing; InputError for a damaged file."""
    import torch

    if path is None or not path.is_file():
        return None
    try:
        saved: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # a damaged file may raise anything
        raise InputError(f"{path}: damaged state of a stopped run ({type(error).__name__}); delete it") from None
    return saved


def existing_file(path: Path, what: str, remedy: str) -> Path:
    """Return `path` if it is a readable file, else raise InputError naming `what` and `remedy`."""
    if not path.is_file():
        raise InputError(f"{path}: no such file ({what}); {remedy}")
    return path


def read_yaml(path: Path) -> Any:
    """What a YAML file holds; raises InputError if it cannot be read."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where PyYAML was built with it
    try:
        return yaml.load(path.read_text(encoding="utf-8"), loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from None


def data_dir(config_value: Path | None) -> Path:
    """Folder of real data and weights: the variable DFSHIELD_DATA, else the config's value, else ``./data``."""
    return Path(os.environ.get("DFSHIELD_DATA") or config_value or "data").expanduser()


def data_file(path: Path, folder: Path) -> Path:
    """A user's file: `path` itself if absolute, else below `folder` or, if it is only there, the current folder."""
    path = path.expanduser()
    return path if path.is_file() and not (folder / path).is_file() else folder / path


def generator(*key: Any) -> "torch.Generator":
    """A CPU random generator that depends on `key` alone (strings, numbers), not on process or order."""
    import torch

    return torch.Generator().manual_seed(int(digest(*key)[:15], 16))


_lease: IO[str] | None = None  # open for the life of the process: the lock ends with it, even on kill -9


def select_device(device: str, threads: int) -> "torch.device":
    """Set threads and determinism, lease one CUDA device if asked for, and return the torch device.

    `device` is ``cpu``, ``cuda`` or ``auto`` (CUDA where there is one). Leases are file locks, one per device, so that
    jobs started side by side on one machine, or inside one SLURM job, spread over its devices. fp32 is whole fp32:
    PyTorch's default lets CUDA convolve with ten bits (TF32), too few for verdicts and signs of small gradients.
    """
    if device != "cpu":
        _lease_cuda_device()
    import torch

    torch.set_num_threads(threads)
    # use_deterministic_algorithms would load the compiler: a second and more
    torch.set_deterministic_debug_mode("warn")
    torch.backends.cudnn.allow_tf32 = False
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device: 'cuda' was asked for but PyTorch sees no CUDA device; use device cpu or auto")
    use_cuda = device != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if use_cuda else "cpu")


def fast_in_bf16(device: "torch.device") -> bool:
    """Whether `device` multiplies bf16 faster than fp32: CUDA of capability 8 or more, CPUs with AMX.

    CPUs that merely know the type take longer in it.
    """
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))


def settled(options: Settled, device: "torch.device") -> Settled:
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


def _lease_cuda_device() -> None:
    global _lease
    devices = cuda_devices()
    if _lease is not None or not devices:
        return
    # SLURM numbers the devices of every job from 0
    parts = ("dfshield-devices", str(os.getuid()), os.environ.get("SLURM_JOB_ID"))
    folder = Path(tempfile.gettempdir()) / "-".join(filter(None, parts))
    folder.mkdir(exist_ok=True)
    while True:
        for name in devices:
            stream = (folder / name.replace("/", "_")).open("w")
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                stream.close()
                continue
            os.environ["CUDA_VISIBLE_DEVICES"] = name
            _lease = stream
            return
        time.sleep(1)


class _Lines:
    """A stream that gives every state of a progress bar its own line, for logs."""

    def write(self, text: str) -> int:
        if text.strip():
            sys.stderr.write(text.strip("\r\n") + "\n")
        return len(text)

    def flush(self) -> None:
        sys.stderr.flush()


def progress(total: int, label: str, unit: str = "it") -> "tqdm[Any]":
    """A progress bar with rate and time left on standard error; in a log file one line every half minute.

    What is over (or refused) within a second shows none.
    """
    from tqdm import tqdm

    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        desc=label,
        unit=unit,
        file=None if terminal else _Lines(),
        dynamic_ncols=terminal,
        ncols=None if terminal else 100,
        mininterval=0.5 if terminal else 30,
        delay=1,
        ascii=not terminal,
    )


def say(message: str) -> None:
    """One line for the person who watches (standard error, so that standard output stays for results)."""
    print(message, file=sys.stderr, flush=True)


_data_free_stage: str | None = None


def forbid_real_data(stage: str) -> None:
    """Declare this process data-free: importing `dfshield.data`, the only code that opens real sets, now fails."""
    global _data_free_stage
    if "dfshield.data" in sys.modules:
        raise RuntimeError(f"{stage} is data-free but dfshield.data is already imported")
    _data_free_stage = stage


def check_real_data_allowed() -> None:
    """Called by `dfshield.data` when it is imported; raises RuntimeError inside a data-free stage."""
    if _data_free_stage:
        raise RuntimeError(f"{_data_free_stage} is data-free: it must not import dfshield.data")


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
