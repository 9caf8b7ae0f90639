"""The config that a run was started with, kept beside its results: every job follows it, whatever is edited meanwhile.

It is files in the run's folder: the config itself, overrides of the command line and all, and copies of the
tables, of the figures and of the built-in entries that it names. Another holds their digest.
"""

import fcntl
import hashlib
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

from dfshield.core.errors import InputError
from dfshield.core.files import read_yaml, write_text
from dfshield.core.strict_yaml import dump
from dfshield.planning.config import Config, check_config, shipped
from dfshield.planning.paths import RESULTS

CONFIG = "config.yaml"
NAMED = {"tables": "tables.yaml", "figures": "figures.yaml", "defaults": "defaults.yaml"}
"""Files that a config names, by its keys, and what their copies are called."""
FILES = (CONFIG, *NAMED.values())
RUN = "DFSHIELD_RUN"
"""Environment variable that tells jobs the name of their run and the digest of its config."""
SEAL = "config.sha256"
"""File with the digest of them all: damage to one of them must not become another config."""
OWNER = ".run"
"""File that says which run a folder belongs to whose path does not name it."""


def folder_of(run: str) -> Path:
    """The folder of a run by its name."""
    return Path(RESULTS) / run


def texts_of(config: Config) -> dict[str, str]:
    """What is kept of a config: the text of every file, by name. Raises InputError for a file that cannot be read."""
    folder = folder_of(config.name)
    values = config.model_dump(mode="json", exclude_unset=True)
    values |= {key: (folder / name).as_posix() for key, name in NAMED.items()}
    return {CONFIG: dump(values)} | {name: _text(shipped(getattr(config, key))) for key, name in NAMED.items()}


def digest_of(texts: Mapping[str, str]) -> str:
    """SHA-256 in hex of a config that is kept; empty files stand for those that are missing."""
    return hashlib.sha256("\0".join(texts.get(name, "") for name in FILES).encode()).hexdigest()


def kept(folder: Path) -> dict[str, str]:
    """The texts that a run's folder holds; nothing for files that are missing."""
    return {name: _text(folder / name) for name in FILES if (folder / name).is_file()}


def keep(folder: Path, texts: Mapping[str, str]) -> None:
    """Write those of the files that differ, and their seal."""
    sealed = {**kept(folder), **texts}
    for name, text in (*texts.items(), (SEAL, f"{digest_of(sealed)}\n")):
        if not (folder / name).is_file() or _text(folder / name) != text:
            write_text(folder / name, text)


def check_seal(folder: Path) -> None:
    """Raise InputError if the config that a folder keeps is not what was sealed; without a seal nothing is known."""
    seal = folder / SEAL
    if seal.is_file() and _text(seal).strip() != digest_of(kept(folder)):
        raise InputError(
            f"{folder / CONFIG}: it, {' or '.join(NAMED.values())} beside it is not as the run has kept it "
            "(edited or damaged); start the run again, which writes them anew"
        )


def claim(folder: Path, texts: Mapping[str, str]) -> IO[str]:
    """Keep a config in a run's folder and hold the folder until the file that is returned is closed.

    Runs of one config may hold it together. Raises InputError if a run with another config holds it. Where the file
    system has no locks nothing is held, which is said; jobs and tables are checked all the same.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / ".lock").open("a")
    except OSError as error:
        raise InputError(f"{folder}: cannot write there ({error.strerror}); free the folder") from None
    if _locked(stream, fcntl.LOCK_EX | fcntl.LOCK_NB):
        keep(folder, texts)
    _locked(stream, fcntl.LOCK_SH)  # until this process ends, be it by kill -9
    if digest_of(kept(folder)) != digest_of(texts):
        stream.close()
        raise InputError(
            f"{folder}: a run of this name with another config is going on; wait until it has ended, or give this "
            "config another name:"
        )
    return stream


def _locked(stream: IO[str], how: int) -> bool:
    """Whether a lock was given; said, and taken for given, where the file system has none."""
    try:
        fcntl.flock(stream, how)
    except BlockingIOError:
        return False
    except OSError as error:
        print(f"{stream.name}: cannot be locked ({error.strerror}); start no second run of this name", file=sys.stderr)
    return True


def own(folder: Path, run: str, write: bool = True) -> None:
    """Make `folder`, whose path does not name a run, that of `run`; raises InputError if it is another run's."""
    mark = folder / OWNER
    if write and not mark.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with mark.open("x", encoding="utf-8") as stream:
                stream.write(f"{run}\n")
        except FileExistsError:
            pass
    owner = _text(mark).strip() if mark.is_file() else ""
    if owner not in ("", run):
        raise InputError(
            f"{folder}: holds the model of the run {owner!r}, and this run is {run!r}; give the entry under harden: "
            "another name, or move the folder away"
        )


def load(folder: Path) -> Config:
    """The config that a run's folder keeps, with the tables and entries kept beside it, wherever the folder lies."""
    check_seal(folder)
    values = read_yaml(folder / CONFIG)
    if not isinstance(values, dict):
        raise InputError(f"{folder / CONFIG}: is no config; start the run again, which writes it anew")
    beside = {key: folder / name for key, name in NAMED.items()}
    values |= {key: str(path) for key, path in beside.items() if path.is_file()}
    return check_config(values, str(folder / CONFIG))


def in_force(read: Callable[[], Config], main: bool) -> tuple[Config, dict[str, str]]:
    """The config that a process of Snakemake follows, and the texts that are kept of it.

    The main process follows what `read` returns, and tells its jobs by the variable `RUN`. A job may be a
    process of its own, which reads its run's files anew: it follows what its run was started with, whatever became of
    the files meanwhile. Raises InputError for a wrong config, and for a job whose run's folder has another by now.
    """
    mark = "" if main else os.environ.get(RUN, "")
    if not mark:
        config = read()
        texts = texts_of(config)
        mark = f"{config.name}@{digest_of(texts)}"
        if main:
            os.environ[RUN] = mark
            return config, texts
    run, _, digest = mark.partition("@")
    folder = folder_of(run)
    texts = kept(folder)
    if digest_of(texts) != digest:
        raise InputError(
            f"{folder / CONFIG}: is not the config that this job's run was started with (edited, or of another run of "
            "this name?); start the run again"
        )
    return load(folder), texts


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({' '.join(str(error).split())})") from None
