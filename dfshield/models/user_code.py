"""A user's factory, imported and called as if its author ran it.

The folder of its file comes first on Python's path, as that of a script does, and stays there: code may import when
it is called, and a network when it first runs. The code sees no arguments of ours, what it prints goes to standard
error, and what it sets for the whole process is put back.
"""

import ast
import contextlib
import importlib
import importlib.util
import os
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from dfshield.core.errors import InputError, describe
from dfshield.core.hashing import digest

SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (os.getcwd, os.chdir),
    (lambda: list(sys.argv), lambda words: setattr(sys, "argv", words)),
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_default_device, lambda _: torch.set_default_device(None)),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    (lambda: torch.backends.cudnn.benchmark, lambda value: setattr(torch.backends.cudnn, "benchmark", value)),
    (lambda: torch.backends.cudnn.allow_tf32, lambda value: setattr(torch.backends.cudnn, "allow_tf32", value)),
)
"""What code can set for the whole process: how it is asked for, and how it is put back."""
UNUSABLE: tuple[tuple[Callable[[Tensor], bool], str], ...] = (
    (lambda t: t.is_meta, "is on the meta device, without values; build the network on the CPU"),
    (
        lambda t: not is_lazy(t) and t.is_inference(),
        "was made inside torch.inference_mode, so it cannot be trained; build it outside",
    ),
    (
        lambda t: not is_lazy(t) and t.layout == torch.strided and _expanded(t),
        "has elements that share one place in memory (expand), which weights cannot be loaded into; add .clone()",
    ),
)
"""Parameters that cannot be worked with, and the remedy."""

_folders: list[Path] = []
"""Folders of users' code that are on the path."""
_built: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()


def _expanded(value: Tensor) -> bool:
    return any(step == 0 and size > 1 for step, size in zip(value.stride(), value.shape, strict=True))


def call_factory(factory: str, arguments: Mapping[str, Any]) -> nn.Module:
    """The network, on the CPU, that a factory returns for keyword `arguments`.

    Raises InputError of one line for whatever goes wrong in the user's code, and for a factory that returns something
    else than a network of its own at every call.
    """
    function = find_factory(factory)
    where = f"factory {factory}"
    if isinstance(function, nn.Module):
        raise InputError(f"{where}: is a network, not a function; write one that builds and returns it: def build(): …")
    with as_author(factory, f"{where}: "):
        net = function(**arguments)
    if not isinstance(net, nn.Module):
        raise InputError(f"{where}: returned {_what(net)}; it must return a torch.nn.Module")
    kept = [value for value in getattr(function, "__globals__", {}).values() if value is net]
    if net in _built or kept or hasattr(function, "cache_info"):
        raise InputError(
            f"{where}: returns one and the same network at every call, but original and student are two; "
            "build a new one in the function"
        )
    _built.add(net)
    if torch.get_default_device().type == "meta":  # only its size is asked for
        return net
    for name, value in (*net.named_parameters(), *net.named_buffers()):
        for unusable, remedy in UNUSABLE:
            if unusable(value):
                raise InputError(f"{where}: {name} {remedy}")
    return net.cpu()


def find_factory(factory: str) -> Callable[..., Any]:
    """Import ``package.module:function`` or ``file.py:function``; raises InputError if there is no such thing.

    A file with relative imports is imported as a module of the packages that its folders are.
    """
    place, _, name = factory.rpartition(":")
    if not place or not name.isidentifier():
        raise InputError(f"factory {factory!r}: write package.module:function or path/to/file.py:function")
    module = _import_file(Path(place), factory) if place.endswith(".py") else _import_module(place, factory)
    function = getattr(module, name, None)
    if not callable(function):
        names = [n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == module.__name__]
        raise InputError(f"factory {factory}: {place} has no function {name!r} (it has: {', '.join(names) or 'none'})")
    return function


def _import_module(place: str, factory: str) -> ModuleType:
    _put_on_path(Path.cwd(), factory)
    with as_author(factory, f"factory {factory}: importing {place} failed: "):
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name and (place == error.name or place.startswith(error.name + ".")):
                raise InputError(
                    f"factory {factory}: no module {error.name!r} is installed or found below {Path.cwd()}"
                ) from None
            raise


def _import_file(path: Path, factory: str) -> ModuleType:
    if not path.is_file():
        raise InputError(f"factory {factory}: no such file {path} (current folder: {Path.cwd()})")
    whole, level = path.resolve(), _relative_level(path)
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    root = whole.parents[level]
    while level and (root / "__init__.py").is_file():
        root = root.parent
    if root != whole.parent:
        _put_on_path(root, factory)
    _put_on_path(whole.parent, factory)
    with as_author(factory, f"factory {factory}: importing {path} failed: "):
        return _as_submodule(whole, root, factory) if level else _execute(whole)


def _execute(path: Path) -> ModuleType:
    name = f"dfshield_user_{digest(str(path))[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and torch.fx look their module up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _as_submodule(path: Path, root: Path, factory: str) -> ModuleType:
    parts = path.relative_to(root).with_suffix("").parts
    name, where = ".".join(parts), f"factory {factory}: has relative imports, but"
    if not all(part.isidentifier() for part in parts):
        raise InputError(f"{where} {name!r} is no name of a module; rename its folders")
    package = importlib.util.find_spec(parts[0])
    places = [Path(place).resolve() for place in (package and package.submodule_search_locations) or ()]
    if root / parts[0] not in places:
        raise InputError(f"{where} {parts[0]} is already another package; rename the folder {root / parts[0]}")
    return importlib.import_module(name)


def _relative_level(path: Path) -> int:
    """How many folders up the file's relative imports reach; 0 without any."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # its import will say so
        return 0
    return max((node.level for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)), default=0)


def _put_on_path(folder: Path, factory: str) -> None:
    """Put a folder of users' code first on the path, unless modules of another would be taken for its own."""
    if folder in _folders:
        return
    for name, module in sys.modules.copy().items():
        home = home_of(name, module)
        if home in _folders and ((folder / f"{name}.py").is_file() or (folder / name).is_dir()):
            raise InputError(
                f"factory {factory}: module {name!r} was already imported from {home}, but {folder} has one of that "
                "name; use the two factories in two processes, or rename one"
            )
    _folders.append(folder)
    sys.path.insert(0, str(folder))


def home_of(name: str, module: ModuleType) -> Path | None:
    """The folder on the path that a module, or the package that it is in, was found in; None for built-in ones."""
    spec = getattr(module, "__spec__", None)
    places = [*(getattr(spec, "submodule_search_locations", None) or ()), getattr(spec, "origin", None)]
    parents = Path(places[0]).parents if isinstance(places[0], str) else ()
    level = name.count(".")
    return parents[level] if level < len(parents) else None


@contextlib.contextmanager
def as_author(factory: str, failed: str) -> Iterator[None]:
    """Run a user's code inside the block; whatever it raises, exits included, is an InputError that begins so."""
    before = [(get, put, get()) for get, put in SETTINGS]
    place = factory.rpartition(":")[0]
    home = Path(place).resolve().parent
    sys.argv = [place]
    held = _Held(sys.stderr)
    try:
        with contextlib.redirect_stderr(held), contextlib.redirect_stdout(held):
            yield
    except InputError:
        raise
    except SystemExit as error:
        said = f", saying {held.last()!r}" if held.last() else ""
        code = " ".join(str(error.code).split())[:200]
        raise InputError(
            f"{failed}it ended the program (SystemExit: {code}){said}; move what builds the network into a file "
            "that does nothing else, or the rest below if __name__ == '__main__':"
        ) from None
    except Exception as error:  # the user's code may raise anything
        raise InputError(f"{failed}{describe(error)}; {_remedy(error, home)}") from None
    finally:
        for get, put, value in before:
            if get() != value:
                put(value)
    held.release()


class _Held:
    """A stream that keeps what is written until it is released and passes it on from then on.

    So a refusal is one line, whatever the user's code has printed before.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream, self._kept, self._holds = stream, "", True

    def write(self, text: str) -> int:
        if not self._holds:
            return self._stream.write(text)
        self._kept += text
        return len(text)

    def last(self) -> str:
        return (self._kept.strip().splitlines() or [""])[-1][:200]

    def release(self) -> None:
        self._holds = False
        self._stream.write(self._kept)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _what(value: Any) -> str:
    kind = type(value).__name__
    if isinstance(value, type):
        return f"the class {value.__name__}, not an instance of it"
    if isinstance(value, Mapping):
        return f"a {kind} (weights? give them as a file)"
    if isinstance(value, tuple | list):
        return f"a {kind} ({', '.join(type(part).__name__ for part in value)})"
    return f"a {kind}"


def _remedy(error: Exception, home: Path) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        top = error.name.partition(".")[0]
        for folder in (home, *home.parents):
            if (folder / f"{top}.py").is_file() or (folder / top / "__init__.py").is_file():
                return f"{top} lies in {folder}: start dfshield there"
        return f"install the package that has it, perhaps by pip install {top}"
    if isinstance(error, FileNotFoundError):
        return f"relative paths are looked up from {Path.cwd()}: write Path(__file__).parent / … in the factory"
    if isinstance(error, RuntimeError | AssertionError) and ("CUDA" in str(error) or "NVIDIA" in str(error)):
        return "build the network on the CPU, without .cuda(): the options say where it will run"
    return "correct the factory or its arguments"
