"""Build networks: registered ones by name, the user's own from a factory function in their code."""

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from dfshield import registry
from dfshield.core.errors import InputError
from dfshield.core.hashing import digest
from dfshield.core.rng import generator, seeded

Shape = tuple[int, int, int]


def build_network(
    model: str,
    input_shape: Shape,
    classes: int,
    factory: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> nn.Module:
    """A network without normalisation layer, initialised from `seed` alone, in training mode.

    `model` is a name of ``registry.MODELS``, unless `factory` (``package.module:function`` or ``file.py:function``,
    looked up from the current folder) is given, which is called with `arguments`. Raises InputError if the name or
    factory is unknown, or if the user's network does not turn (N,*input_shape) into (N,classes).
    """
    with seeded(generator("initialisation", seed).initial_seed()):
        if factory is not None:
            return _user_network(factory, input_shape, classes, dict(arguments or {}))
        if model not in registry.MODELS:
            raise InputError(
                f"model {model!r} is not one of {', '.join(registry.MODELS)}; give a factory for a model of your own"
            )
        net: nn.Module = registry.MODELS[model].load()(input_shape, classes)
        return net


def _user_network(factory: str, input_shape: Shape, classes: int, arguments: dict[str, Any]) -> nn.Module:
    function = find_factory(factory)
    try:
        net = function(**arguments)
    except Exception as error:  # the user's code may raise anything
        raise InputError(f"factory {factory}: {_describe(error)}; correct the factory or its arguments") from None
    if not isinstance(net, nn.Module):
        raise InputError(f"factory {factory}: returned a {type(net).__name__}; it must return a torch.nn.Module")
    _check_outputs(net, factory, input_shape, classes)
    check_batchnorm(net, f"factory {factory}")
    return net


def _check_outputs(net: nn.Module, factory: str, input_shape: Shape, classes: int) -> None:
    training = net.training
    try:
        with torch.no_grad():
            logits = net.eval()(torch.zeros(1, *input_shape))
    except Exception as error:  # the user's code may raise anything
        raise InputError(
            f"factory {factory}: a forward pass with input_shape {list(input_shape)} failed: {_describe(error)}; "
            "correct input_shape (C,H,W) or the network"
        ) from None
    finally:
        net.train(training)
    if not isinstance(logits, Tensor) or logits.shape != (1, classes):
        got = list(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise InputError(
            f"factory {factory}: gives {got} for one image, {[1, classes]} is needed ({classes} classes); "
            "correct classes or the factory's arguments"
        )


def check_batchnorm(net: nn.Module, where: str) -> None:
    """Raise InputError unless `net` has a BatchNorm2d layer with running statistics (Eq 4 matches images to them)."""
    if not any(isinstance(m, nn.BatchNorm2d) and m.running_mean is not None for m in net.modules()):
        raise InputError(
            f"{where}: the network has no BatchNorm2d layer with running statistics; images are synthesised by "
            "matching them, so without BatchNorm there is nothing to work from: use a network that was trained with it"
        )


def find_factory(factory: str) -> Callable[..., Any]:
    """Import ``package.module:function`` or ``file.py:function``; raises InputError if there is no such thing."""
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
    try:
        with _on_path(Path.cwd()):
            return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name and (place == error.name or place.startswith(error.name + ".")):
            raise InputError(
                f"factory {factory}: no module {error.name!r} is installed or found below {Path.cwd()}"
            ) from None
        raise InputError(f"factory {factory}: importing {place} failed: {_describe(error)}") from None
    except Exception as error:  # the user's code may raise anything
        raise InputError(f"factory {factory}: importing {place} failed: {_describe(error)}") from None


def _import_file(path: Path, factory: str) -> ModuleType:
    if not path.is_file():
        raise InputError(f"factory {factory}: no such file {path} (current folder: {Path.cwd()})")
    name = f"dfshield_user_{digest(str(path.resolve()))[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and torch.fx look their module up there
    try:
        with _on_path(path.resolve().parent):
            spec.loader.exec_module(module)
    except Exception as error:  # the user's code may raise anything
        del sys.modules[name]
        raise InputError(f"factory {factory}: importing {path} failed: {_describe(error)}") from None
    return module


@contextmanager
def _on_path(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _describe(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}{place}"
