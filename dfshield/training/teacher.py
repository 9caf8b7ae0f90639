"""The teacher stage: train on real images, take over trained weights, or bring in the user's own model."""

import contextlib
import copy
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dfshield
from dfshield import registry
from dfshield.core.device import select_device
from dfshield.core.epochs import EpochLoop
from dfshield.core.errors import InputError
from dfshield.core.files import KINDS, data_file, find_weights
from dfshield.core.progress import log
from dfshield.core.rng import generator
from dfshield.core.state import forget, run_folder
from dfshield.data import sets
from dfshield.models.bundles import brings_weights, pinned
from dfshield.models.checkpoints import Card, save_checkpoint
from dfshield.models.classifier import Classifier
from dfshield.models.factory import build_network
from dfshield.models.formats import weights_sha256
from dfshield.models.probe import probe
from dfshield.models.pytorchcv import find_pretrained
from dfshield.models.rehearsal import rehearse
from dfshield.models.standins import settle
from dfshield.models.user_code import as_author
from dfshield.models.weights import load_weights
from dfshield.options import TeacherOptions
from dfshield.sources.views import translate

LARGEST_MEAN = 10.0
"""A normalisation mean beyond this is for pixels in 0..255, not in [0,1]."""


class Input(NamedTuple):
    """What a network takes and gives: (C,H,W), number of classes, normalisation per channel for pixels in [0,1]."""

    input_shape: tuple[int, int, int]
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def run(
    out: Path,
    options: TeacherOptions,
    dataset: str,
    model: str,
    data_dir: Path | None,
    factory: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    weights: Path | None = None,
    input_shape: tuple[int, int, int] | None = None,
    classes: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    state: Path | None = None,
    code: str = "",
) -> str:
    """Write the teacher checkpoint `out` and return the SHA-256 of its tensors.

    With `weights` (absolute, or below `data_dir` or the current folder): those weights in the user's `factory` network
    or in the registered `model`. Without: the published weights where `model` has some for `dataset`, else training on
    the real training split. `input_shape`, `classes`, `mean` and `std` come from the data set if it is registered;
    `data_dir` is what the configuration says (see `sets.data_dir`). With `state`, the same call after a crash resumes
    training after the last whole epoch, to the identical file.
    """
    device = select_device(options.device, options.threads)
    folder = sets.data_dir(data_dir)
    expected = _input(dataset, factory, input_shape, classes, mean, std)
    if factory and weights is None:
        raise InputError(
            f"factory {factory}: no weights given; a model of your own is hardened from its trained weights"
        )
    entry = registry.MODELS.get(model)
    if weights is not None:
        found = _find(Path(weights), folder)
    elif entry and dataset in entry.pretrained:
        found = find_pretrained(model, dataset, folder)
    else:
        found = None
    arguments = pinned(factory, arguments or {})
    build = partial(build_network, model, expected.input_shape, expected.classes, factory, arguments, seed=options.seed)
    classifier = Classifier(build(), expected.mean, expected.std, build)
    kept = None
    if found and not brings_weights(factory, arguments, found):
        load_weights(classifier.net, found)
    said = _probed(classifier.to(device), expected, model, factory)
    if found:
        provenance: dict[str, Any] = {"weights": found.name, "weights_sha256": weights_sha256(found)}
    else:
        training = TeacherTraining(classifier, dataset, model, folder, options)
        described = options.described(device)
        decides = (dataset, model, training.train.sha256(), described, options.seed, code)
        kept = run_folder(state, "teacher", *decides)
        training.fit(kept / "epoch.pt" if kept else None)
        provenance = training.record() | {"options": described, "seed": options.seed}
    card = Card(
        kind="teacher",
        dataset=dataset,
        model=model,
        factory=factory,
        arguments=arguments,
        real_data="teacher",
        provenance=provenance | said | {"code": code, "package_version": dfshield.__version__},
        **expected._asdict(),
    )
    sha = save_checkpoint(out, classifier, card)
    forget(kept)
    log(f"{out}: teacher {model} for {dataset}, tensors {sha[:16]}")
    return sha


def _probed(classifier: Classifier, expected: Input, model: str, factory: str | None) -> dict[str, Any]:
    """Refuse a network that the later stages could not use; what else there is to say goes to the log and the card."""
    where = f"factory {factory}" if factory else f"model {model}"
    with as_author(factory, f"{where}: ") if factory else contextlib.nullcontext():
        said = probe(classifier, expected.input_shape, expected.classes, where)
        try:
            if factory:
                settle(classifier, expected.input_shape)
                rehearse(classifier, expected.input_shape)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
    for line in said:
        log(f"{where}: {line}")
    return {"said": said} if said else {}


def _input(
    dataset: str,
    factory: str | None,
    input_shape: tuple[int, int, int] | None,
    classes: int | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
) -> Input:
    """Complete what was given from the data set's entry, and check it."""
    given = {"input_shape": input_shape, "classes": classes, "mean": mean, "std": std}
    entry = registry.DATASETS.get(dataset)
    if entry is None and None in given.values():
        missing = ", ".join(name for name, value in given.items() if value is None)
        raise InputError(
            f"data set {dataset!r} is not one of {', '.join(registry.DATASETS)}; for a data set of your own give "
            f"{missing} as well"
        )
    known = {name: getattr(entry, name) for name in given} if entry else {}
    for name in ("input_shape", "classes"):
        if entry and factory is None and given[name] not in (None, known[name]):
            raise InputError(f"{name} {given[name]} was given, but {dataset} has {known[name]}; leave it out")
    values: dict[str, Any] = known | {name: value for name, value in given.items() if value is not None}
    result = Input(**values)
    for name, numbers in (("mean", result.mean), ("std", result.std)):
        if len(numbers) != result.input_shape[0]:
            raise InputError(
                f"{name} has {len(numbers)} values, one per channel is needed: {result.input_shape[0]} "
                f"(input_shape {list(result.input_shape)} is C,H,W)"
            )
    if max(map(abs, result.mean)) > LARGEST_MEAN or not all(0 < s <= LARGEST_MEAN for s in result.std):
        raise InputError(
            f"mean {list(result.mean)} and std {list(result.std)} must be for pixels in [0,1] and std positive; "
            "divide values for pixels in 0..255 by 255"
        )
    return result


def _find(weights: Path, data_dir: Path) -> Path:
    path = data_file(weights, data_dir)
    if path.exists():
        return find_weights(path)
    places = weights if weights.is_absolute() else f"{data_dir / weights} or {weights.absolute()}"
    raise InputError(f"no weights file at {places}; give the path of {KINDS}")


class TeacherTraining(EpochLoop):
    """Adam on the cross entropy; keeps the epoch with the best accuracy on the dev split (the later one of equals)."""

    def __init__(
        self, classifier: Classifier, dataset: str, model: str, data_dir: Path, options: TeacherOptions
    ) -> None:
        device = classifier.mean.device
        super().__init__(f"teacher {dataset}/{model}", options.epochs, 1, device, "epoch", options.seed)
        self.classifier, self.options = classifier, options
        self.train = sets.load(dataset, "train", data_dir)
        self.dev = sets.load(dataset, "dev", data_dir) if "dev" in sets.splits(dataset) else None
        self.x, self.y = self.train.x.to(self.device), self.train.y.to(self.device)
        self.adam = torch.optim.Adam(classifier.parameters(), lr=options.lr, weight_decay=options.weight_decay)
        self.falls = [round(share * options.epochs) for share in options.milestones]
        self.best: tuple[float, int, dict[str, Tensor]] | None = None
        """Accuracy on the dev split in percent, number and weights of the best epoch."""

    def fit(self, checkpoint: Path | None = None) -> None:
        """Train all epochs in place, as `EpochLoop.fit`, and take the weights of the best one."""
        super().fit(checkpoint)
        if self.best:
            self.classifier.net.load_state_dict(self.best[2])

    def record(self) -> dict[str, Any]:
        """What the card says of the training."""
        found: dict[str, Any] = {"data_sha256": self.train.sha256(), "epoch": self.epochs}
        return found | ({"epoch": self.best[1], "dev_accuracy": round(self.best[0], 4)} if self.best else {})

    def epoch(self, epoch: int, bar: Any = None) -> dict[str, Any]:
        """One pass over the training split; a loss that is not finite raises InputError."""
        for group in self.adam.param_groups:
            group["lr"] *= 0.1 ** self.falls.count(epoch)
        row = {"epoch": epoch + 1, "loss": self._pass(epoch)}
        shown = {"loss": f"{row['loss']:.4f}"}
        if self.dev:
            row["dev_accuracy"] = score = accuracy(self.classifier, self.dev.x, self.dev.y)
            shown["dev"] = f"{score:.2f}%"
            if self.best is None or score >= self.best[0]:
                self.best = score, epoch + 1, copy.deepcopy(self.classifier.net.state_dict())
        if bar is not None:
            bar.set_postfix(shown, refresh=False)
            bar.update()
        return row

    def _pass(self, epoch: int) -> float:
        random = generator("teacher", self.options.seed, epoch)
        self.classifier.train()
        total = torch.zeros((), device=self.device)
        order = torch.randperm(len(self.x), generator=random)
        for chosen in order.split(self.options.batch):
            if len(chosen) == 1:  # BatchNorm cannot normalise a single value
                continue
            chosen = chosen.to(self.device)
            images = self.x[chosen]
            if self.options.augment:
                images = translate(images, random)
            self.adam.zero_grad()
            loss = F.cross_entropy(self.classifier(images), self.y[chosen])
            loss.backward()
            self.adam.step()
            total += loss.detach() * len(chosen)
        mean = float(total) / len(self.x)
        if not math.isfinite(mean):
            raise InputError(f"{self.label}: the loss is {mean} in epoch {epoch + 1}; lower lr ({self.options.lr})")
        return mean

    def state(self) -> dict[str, Any]:
        """Network, optimiser and the best epoch so far."""
        return {"net": self.classifier.net.state_dict(), "adam": self.adam.state_dict(), "best": self.best}

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        self.classifier.net.load_state_dict(state["net"])
        self.adam.load_state_dict(state["adam"])
        self.best = state["best"]


@torch.no_grad()
def accuracy(classifier: nn.Module, x: Tensor, y: Tensor, batch: int = 500) -> float:
    """Accuracy in percent in eval mode on images (N,C,H,W) in [0,1] and labels (N,); leaves the model in eval mode."""
    classifier.eval()
    device = next(classifier.parameters()).device
    parts = zip(x.split(batch), y.split(batch), strict=True)
    hits = sum(int((classifier(a.to(device)).argmax(1) == b.to(device)).sum()) for a, b in parts)
    return 100 * hits / len(y)
