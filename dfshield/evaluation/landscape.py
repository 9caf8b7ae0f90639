"""The landscape stage: the loss around a model's weights (Li et al. 2018, "Visualizing the loss landscape").

A direction is a standard normal draw in the space of weights, each of whose filters is scaled to the norm of the
model's filter (filter normalisation, section 4). What has one dimension, biases and BatchNorm, stays as it is. The
images are real ones, so nothing here has a part in training.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfshield import __version__
from dfshield.attacks.base import ascend, frozen
from dfshield.core.device import select_device
from dfshield.core.errors import InputError
from dfshield.core.lp import random_start
from dfshield.core.progress import log, progress
from dfshield.core.rng import generator, seeded
from dfshield.core.signals import stop_if_asked
from dfshield.core.threat import parse_threat
from dfshield.evaluation.landscapes import LandscapeRecord, write_landscape
from dfshield.options import AttackOptions, LandscapeOptions

Direction = dict[str, Tensor]
"""What a step of length 1 adds to each parameter, by its name; parameters that stay are missing."""


def direction(model: nn.Module, random: torch.Generator) -> Direction:
    """A random direction, filter-normalised (Li et al. 2018, section 4).

    A filter is ``weight[i]`` of a convolution or a linear layer, which makes one of its outputs. The draws depend
    on `random` and the shapes of the parameters alone, so models of one architecture have the same ones.
    """
    found = {}
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            drawn = torch.randn(weight.shape, generator=random).to(weight)
            lengths = [values.detach().flatten(1).norm(dim=1) for values in (weight, drawn)]
            scale = lengths[0] / lengths[1].clamp_min(torch.finfo(drawn.dtype).tiny)
            found[name] = drawn * scale.view(-1, *[1] * (weight.dim() - 1))
    return found


@contextmanager
def moved(model: nn.Module, steps: list[tuple[float, Direction]]) -> Iterator[None]:
    """Inside the block the parameters are `steps` away, each a length and a direction; then they are put back."""
    kept = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    try:
        with torch.no_grad():
            for name, weight in model.named_parameters():
                for length, way in steps:
                    if name in way:
                        weight.add_(way[name], alpha=length)
        yield
    finally:
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight.copy_(kept[name])


def mean_loss(model: nn.Module, x: Tensor, y: Tensor, batch: int) -> float:
    """Mean cross entropy, in nats, of images (N,C,H,W) of classes (N,); the model is taken as it is."""
    with torch.no_grad():
        losses = [
            F.cross_entropy(model(some).double(), labels, reduction="sum")
            for some, labels in zip(x.split(batch), y.split(batch), strict=True)
        ]
    return float(torch.stack(losses).sum()) / len(y)


def measure(model: nn.Module, x: Tensor, y: Tensor, options: LandscapeOptions) -> dict[str, object]:
    """What a `LandscapeRecord` says of a model, on images (N,C,H,W) of classes (N,): accuracy, surface, circles.

    BatchNorm keeps its running statistics. With the adversarial loss the images are attacked once, at the model's own
    weights: the surface is of one function of the weights. Raises InputError for a loss that is not finite.
    """
    half = options.points // 2
    coordinates = [options.extent * (index - half) / half for index in range(options.points)]
    turns = [2 * math.pi * index / options.angles for index in range(options.angles)]
    total = options.points**2 + options.pairs * options.angles
    with frozen(model), progress(total, "landscape", "point") as bar:
        with torch.no_grad():
            answers = torch.cat([model(some).argmax(1) for some in x.split(options.batch)])
        if options.loss == "adversarial":
            x = _attacked(model, x, y, options)

        def loss(*steps: tuple[float, Direction]) -> float:
            with moved(model, list(steps)):
                found = mean_loss(model, x, y, options.batch)
            if not math.isfinite(found):
                away = ", ".join(f"{length:g}" for length, _ in steps) or "0"
                raise InputError(f"the loss is not finite at ({away}) norms of the filters; use a smaller extent")
            bar.update(1 if steps else 0)
            stop_if_asked("landscape", int(bar.n), total, kept=False)
            return found

        centre, surface, rises = loss(), [], []
        for pair in range(options.pairs):
            random = generator("landscape", options.seed, pair)
            first, second = direction(model, random), direction(model, random)
            if not first:
                raise InputError("the model has no weight of more than one dimension, so there is no direction to take")
            if pair == 0:
                surface = [[loss((a, first), (b, second)) for b in coordinates] for a in coordinates]
            rises.append(_rise(loss, first, second, options.radius, turns) - centre)
    return {
        "accuracy": float((answers == y).double().mean()),
        "predicted": len(answers.unique()),
        "coordinates": tuple(coordinates),
        "surface": tuple(map(tuple, surface)),
        "centre": centre,
        "rises": tuple(rises),
    }


def _attacked(model: nn.Module, x: Tensor, y: Tensor, options: LandscapeOptions) -> Tensor:
    """The images after PGD on the model from uniform random starts, every image after all steps."""
    threat, found = parse_threat(options.threat), []
    asked, sizes = AttackOptions(threat=options.threat, reference=True), [threat.eps / 4] * options.steps
    for place, (some, labels) in enumerate(zip(x.split(options.batch), y.split(options.batch), strict=True)):
        random = generator("landscape", options.seed, "attack", place)
        found.append(ascend(model, some, labels, random_start(some, threat, random), threat, asked, sizes))
    return torch.cat(found)


def _rise(loss: Callable[..., float], first: Direction, second: Direction, radius: float, turns: list[float]) -> float:
    """Mean loss on the circle of a plane of two directions."""
    found = [loss((radius * math.cos(turn), first), (radius * math.sin(turn), second)) for turn in turns]
    return math.fsum(found) / len(found)


def run(
    model_path: Path,
    out: Path,
    options: LandscapeOptions,
    dataset: str | None = None,
    data_dir: Path | None = None,
    evaluation_npz: Path | None = None,
    factory: str | None = None,
    code: str = "",
) -> None:
    """Measure the loss around the checkpoint `model_path` on images as in the attack stage; write the record `out`.

    Checkpoints of one architecture and one seed have the same random draws for directions. `code` goes into the record.
    Raises InputError for files that cannot be used.
    """
    from dfshield.evaluation.attack import evaluation_images
    from dfshield.models.checkpoints import load_checkpoint

    device = select_device(options.device, options.threads)
    model, card = load_checkpoint(model_path, device, factory)
    asked = AttackOptions(limit=options.limit, split=options.split)
    images = evaluation_images(card, asked, dataset, data_dir, evaluation_npz)
    with seeded(options.seed, device):
        found = measure(model, images.x.to(device).contiguous(), images.y.to(device), options)
    record = LandscapeRecord(
        dataset=dataset or card.dataset,
        model=card.model,
        n=len(images),
        **found,  # type: ignore[arg-type]
        options=options.described(device),
        seed=options.seed,
        model_sha256=card.tensors_sha256,
        data_sha256=images.sha256(),
        real_data=card.real_data,
        package_version=__version__,
        code=code,
    )
    seal = write_landscape(out, record)
    rise = f"the loss {record.centre:.4g} rises by {record.sharpness:.4g} nat at radius {options.radius:g}"
    log(f"{out}: {rise}, mean of {options.pairs} pairs of directions, record {seal[:16]}")
