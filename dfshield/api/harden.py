"""`dfshield.harden`: a trained classifier in, a hardened one and the evidence out."""

import contextlib
import csv
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from dfshield.api import from_files
from dfshield.api.images import as_arrays
from dfshield.api.load import load
from dfshield.api.minutes import BATCH, chosen, measured
from dfshield.api.run import MAKING, run
from dfshield.core import sealed
from dfshield.core.errors import InputError
from dfshield.core.files import atomic
from dfshield.core.threat import parse_threat
from dfshield.models import given
from dfshield.models.card import GIVEN
from dfshield.models.statistics import matched_layers
from dfshield.planning import frozen
from dfshield.planning.config import check_config
from dfshield.planning.jobs import CARD, PAGE
from dfshield.planning.paths import HARDEN
from dfshield.planning.plan import Plan
from dfshield.report import report_page
from dfshield.report.model_card import REPORT

UNMATCHED = {"synthesize": {"start": "smooth", "inversion": {"vary": True}}}
"""What a network without statistics to match has besides: what else would make its images resemble photographs?"""

Evaluation = str | Path | tuple[Any, Any]
CHOICE = sealed.Kind("dfshield-budget", 1, "choice of settings for a time", "dfshield.harden(…)")
CHUNK, PIXELS = 500, 500 * 64 * 64
"""Images that are attacked together: so many, or as few as have so many pixels, since memory grows with these."""
BATCHES = 25
"""Images of a mini-batch of training: many small ones, where the images are few."""


@dataclass(frozen=True)
class Hardened:
    """What came of hardening one model."""

    folder: Path
    """Everything that was made on the way, the synthetic images too; the same call with it goes on where it was."""
    name: str
    network: nn.Module
    """The network that was given, as it was."""

    @property
    def results(self) -> Path:
        """The folder of the hardened weights, the report and the card."""
        return (self.folder / CARD.format(name=self.name)).parent

    @property
    def card(self) -> Path:
        """The model card, Markdown."""
        return self.folder / CARD.format(name=self.name)

    @property
    def page(self) -> Path:
        """The card with its pictures and the config on one page of HTML."""
        return self.folder / PAGE

    @cached_property
    def model(self) -> nn.Module:
        """The hardened network: the given one with other weights, in eval mode on the CPU, without the mean and std."""
        return load(self.results, self.network)

    @property
    def report(self) -> list[dict[str, str]]:
        """The rows of ``report.csv``: method, metric, value in percent and more; empty without evaluation images."""
        with (self.results / REPORT).open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))


def harden(
    model: nn.Module | str | Path,
    input_shape: Sequence[int] | None,
    threat: str,
    minutes: float = 40,
    *,
    factory: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    evaluation: Evaluation | None = None,
    folder: str | Path = "hardened",
    name: str = "model",
    seed: int = 0,
    device: str = "auto",
    keep_accuracy: bool = False,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> Hardened:
    """Harden a copy of `model` against perturbations within `threat`, without its training data (DataFreeShield).

    `model` is a network, or the path of one in files: weights for the network of a `factory`
    (``package.module:function`` or ``file.py:function``, called with `arguments`), or what brings its network: an ONNX
    graph, a TorchScript archive, a ``.pt2`` program, a folder of transformers or timm. Where `input_shape`, `mean` and
    `std` are None, those that a folder or timm's network states are taken.

    It takes images (N,*input_shape), normalised by `mean` and `std` of its channels, and returns logits
    (N,classes); without `mean` and `std` it takes pixels in [0,1]. Images are matched to the statistics of its
    BatchNorm2d layers; one without any is hardened from its answers alone, to less robustness. `threat` is
    ``linf:4/255``, ``l2:0.5`` or ``l1:12``, for pixels in [0,1]. The run is chosen to take about `minutes` on this
    machine, evaluation included; `settings` by stage, as a config has them (``{"synthesize": {"images": 2000}}``),
    win over what is chosen. `evaluation` has real images for the figures alone, attacked after everything is decided: a
    pair of images x, a tensor (N,C,H,W) or an array (N,H,W,C) or (N,H,W), uint8 or float in [0,1], and classes y (N,),
    or the path of an ``.npz`` with the keys x, an array, and y.

    All files are below `folder`, in which the process works meanwhile. The same call again goes on where it was.
    Raises `dfshield.InputError`, whose message is one line, for what cannot be hardened.
    """
    start, home = time.perf_counter(), Path(folder).absolute()
    if isinstance(model, str | Path):
        found = from_files.read(Path(model), factory, arguments or {}, input_shape, mean, std)
    else:
        if factory is not None or input_shape is None:
            what = "factory: is for a model in files" if factory is not None else "input_shape: is None"
            raise InputError(f"{what}; of a network give input_shape: channels, height, width, and no factory")
        _checked_shape(input_shape)
        if isinstance(model, nn.Module) and not any(True for _ in model.parameters()):
            raise InputError("model: has no parameters; there is nothing to train")
        given.hold(name, model)
        weights = _kept_weights(model, home / f"given/{name}.safetensors")
        entry = {"factory": GIVEN, "arguments": {"name": name}, "weights": str(weights)}
        found = from_files.Model(model, entry, input_shape, mean, std)
    shape = _checked_shape(found.input_shape)
    entry = found.entry | _entry(found.network, shape, threat, found.mean, found.std, keep_accuracy)
    matched = bool(matched_layers(found.network))
    _make(home, name, entry, minutes, start, evaluation, seed, device, matched, settings or {})
    return Hardened(home, name, found.network)


def command(
    weights: Path,
    factory: str | None,
    arguments: Mapping[str, Any],
    input_shape: Sequence[int] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    threat: str,
    minutes: float,
    evaluation: Path | None,
    folder: Path,
    name: str,
    seed: int,
    device: str,
    keep_accuracy: bool,
) -> None:
    """The same for a model in files, on the command line; prints where the card is."""
    result = harden(
        weights,
        input_shape,
        threat,
        minutes,
        factory=factory,
        arguments=arguments,
        mean=mean,
        std=std,
        evaluation=evaluation,
        folder=folder,
        name=name,
        seed=seed,
        device=device,
        keep_accuracy=keep_accuracy,
    )
    print(result.card)


def _checked_shape(input_shape: Sequence[int]) -> tuple[int, int, int]:
    if len(input_shape) != 3:
        raise InputError(f"input_shape: {list(input_shape)} has {len(input_shape)} sizes; give channels, height, width")
    channels, height, width = map(int, input_shape)
    return channels, height, width


def _entry(
    model: nn.Module,
    shape: tuple[int, int, int],
    threat: str,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    keep_accuracy: bool,
) -> dict[str, Any]:
    """What a config says of a model under ``harden:``, besides the network itself."""
    parse_threat(threat)
    facts = {"input_shape": list(shape), "classes": given.classes_of(model, shape), "threat": threat}
    return facts | given.scale(mean, std, shape[0]) | {"keep_accuracy": keep_accuracy}


def _make(
    home: Path,
    name: str,
    entry: dict[str, Any],
    minutes: float,
    start: float,
    evaluation: Evaluation | None,
    seed: int,
    device: str,
    matched: bool,
    settings: Mapping[str, Mapping[str, Any]],
) -> None:
    """Make the hardened model of a config's `entry` under ``harden:`` in the folder `home`."""
    if minutes <= 0:
        raise InputError(f"minutes: {minutes} is no time; give 5 or more")
    evaluated = 0
    if evaluation is not None:
        place = home / f"given/{name}-evaluation.npz"
        path, evaluated = _kept_images(evaluation, place, entry["input_shape"], entry["classes"])
        entry["evaluation"] = {"file": str(path)}
    home.mkdir(parents=True, exist_ok=True)
    with contextlib.chdir(home):
        _make_here(name, entry, minutes, start, evaluated, seed, device, matched, settings)


def _make_here(
    name: str,
    entry: Mapping[str, Any],
    minutes: float,
    start: float,
    evaluated: int,
    seed: int,
    device: str,
    matched: bool,
    settings: Mapping[str, Mapping[str, Any]],
) -> None:
    """The settings that are once chosen for a time are kept, since no machine is as fast in two runs.

    `start` is the time of `time.perf_counter` from which the minutes count.
    """
    config: dict[str, Any] = {"name": f"{name}-run", "seeds": [seed], "device": device, HARDEN: {name: dict(entry)}}

    def plan_of(sections: Mapping[str, Mapping[str, Any]]) -> Plan:
        usual = _usual(entry["input_shape"])
        merged = usual if matched else _over(usual, UNMATCHED)
        for layer in (sections, settings):
            merged = _over(merged, layer)
        return Plan.of(check_config(config | merged, "dfshield.harden"))

    first = plan_of({})
    first.check()
    first.check_files()
    folder = frozen.folder_of(first.config.name)
    place = folder / "budget.json"
    asked = {"minutes": minutes, "threat": entry["threat"], "input_shape": entry["input_shape"], "evaluated": evaluated}
    kept = sealed.read(place, CHOICE) if place.is_file() else {}
    if kept.get("asked") != asked:
        run(first, ["teacher"])
        rates = measured(first)
        sections = chosen(plan_of, minutes, rates, evaluated, time.perf_counter() - start)
        kept = {"asked": asked, "chosen": sections}
        sealed.write(place, CHOICE, kept)
    plan = plan_of(kept["chosen"])
    with frozen.claim(folder, frozen.texts_of(plan.config)):
        run(plan, MAKING)
        run(plan)  # what reads real images
        report_page.run(plan, Path(PAGE))


def _over(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """What two nested mappings say together; where both do, the upper one wins."""
    merged = dict(lower)
    for key, value in upper.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _over(merged[key], value) if both else value
    return merged


def _usual(shape: Sequence[int]) -> dict[str, dict[str, Any]]:
    """What does not depend on the time: the example's settings, on all cores; large images are attacked by fewer."""
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "synthesize": {
            **{"batch": BATCH, "labels": "random", "clamp": "step", "precision": "auto", "threads": threads},
        },
        "train": {
            **{"batch": BATCHES, "aggregate": 2, "lr": 0.003, "schedule": "cosine", "precision": "auto"},
            **{"outer_precision": "auto", "threads": threads},
        },
        "attack": {
            "chunk": max(1, min(CHUNK, PIXELS // (shape[1] * shape[2]))),
            "precision": "auto",
            "threads": threads,
        },
        "checks": {"threads": threads},
    }


def _kept_weights(model: nn.Module, path: Path) -> Path:
    """The file of the weights, left alone where it has them already."""
    from safetensors.torch import save

    if not isinstance(model, nn.Module):
        raise InputError(f"model: is a {type(model).__name__}; give a torch.nn.Module")
    state = {key: value.detach().cpu().contiguous().clone() for key, value in model.state_dict().items()}
    content = save(state)
    if not path.is_file() or path.read_bytes() != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as temporary:
            temporary.write_bytes(content)
    return path


def _kept_images(evaluation: Evaluation, path: Path, shape: Sequence[int], classes: int) -> tuple[Path, int]:
    """The file of the evaluation images, and their number; raises InputError for arrays that are no such images."""
    if isinstance(evaluation, str | Path):
        from dfshield.data.npz import read_npz

        file = Path(evaluation).absolute()
        return file, len(read_npz(file, ("x", "y"))["y"])
    from dfshield.data.headers import check_arrays

    x, y = as_arrays(*evaluation)
    check_arrays(x, y, (shape[0], shape[1], shape[2]), classes, "evaluation")  # types and shapes, no values
    with contextlib.suppress(OSError, ValueError, KeyError), np.load(path, allow_pickle=False) as kept:
        if np.array_equal(kept["x"], x) and np.array_equal(kept["y"], y):
            return path, len(y)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, x=x, y=y)
    return path, len(y)
