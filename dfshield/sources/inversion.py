"""Synthesis of a training set by optimising pixels against the teacher (Eq 3-6 and 8, Algorithm 1 lines 4-10)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from dfshield import registry
from dfshield.core.datafree import data_free
from dfshield.core.device import resolve_precision, select_device
from dfshield.core.errors import InputError, describe
from dfshield.core.files import atomic
from dfshield.core.hashing import canonical_json
from dfshield.core.progress import log, progress
from dfshield.core.rng import generator, seeded
from dfshield.core.schedules import half_cosine
from dfshield.core.signals import stop_if_asked
from dfshield.core.state import forget, keep_arrays, kept_arrays, run_folder
from dfshield.models.card import Card
from dfshield.models.checkpoints import load_checkpoint
from dfshield.models.classifier import Classifier
from dfshield.models.probe import refuse_bf16
from dfshield.models.standins import arranged, generated
from dfshield.models.statistics import NONE, matched_layers, need_statistics
from dfshield.options import SynthesizeOptions
from dfshield.options.sources import Inversion
from dfshield.sources.objective import TERMS, class_loss, total_variation, watched
from dfshield.sources.scale import in_own_scale, stated_scale
from dfshield.sources.trainset import Writer, trainset_header

NO_DATA = registry.SOURCES["synthetic"].real_data


@data_free("synthesize")
def run(
    teacher: Path,
    out: Path,
    options: SynthesizeOptions,
    shard: int = 0,
    shards: int = 1,
    source: str = "dss",
    factory: str | None = None,
    guides: Sequence[Path] | None = None,
    state: Path | None = None,
    code: str = "",
) -> None:
    """Write shard `shard` of `shards` of the synthetic set of a teacher checkpoint to `out`.

    `guides` are hardened students of this teacher, whose class terms are added to the teacher's: evidence that they
    see as well withstands perturbations. The set has seen the real data that its guides have.

    A group of batches depends on the seed and its own index alone, so any number of shards gives the same set.
    Finished groups are kept in `state` until the shard is written: the same call after a crash goes on there.
    """
    device = select_device(options.device, options.threads)
    options = resolve_precision(options, device)
    loaded, card = load_checkpoint(teacher, str(device), factory=factory)
    refuse_bf16(options, loaded, card, teacher)
    if not 0 <= shard < shards <= options.groups:
        raise InputError(
            f"shard {shard} of {shards}: there are {options.groups} groups of batches; "
            f"use 0 <= shard < shards <= {options.groups}"
        )
    first, last = options.groups * shard // shards, options.groups * (shard + 1) // shards - 1
    if missed := options.missed_classes(card.classes):
        log(f"{out}: {missed}")
    entry = registry.OBJECTIVES[options.objective]
    if entry.statistics:
        need_statistics(loaded.net, f"objective {options.objective}", "use objective inversion")
    if not matched_layers(loaded.net):
        log(f"{teacher}: has {NONE}; images are made without Eq 4")
    guiding = [_guide(path, card, teacher, str(device), factory) for path in guides or ()]
    model = in_own_scale(loaded, card.input_shape)
    header = trainset_header(
        card,
        source=source,
        real_data=next((own.real_data for _, own in guiding if own.real_data != NO_DATA), NO_DATA),
        options=options.described(device),
        seed=options.seed,
        code=code,
        groups=options.groups,
        first_group=first,
        last_group=last,
    ) | stated_scale(model, loaded)
    if guiding:
        header["guides"] = canonical_json([own.tensors_sha256 for _, own in guiding])
    synthesizer = entry.load()(model, card.input_shape, card.classes, options)
    synthesizer.guide([guide for guide, _ in guiding])
    kept = run_folder(state, "synthesis", header, shard, shards)
    with progress((last - first + 1) * options.iterations, f"synthesize {shard + 1}/{shards}", "step") as bar:
        groups: list[dict[str, Any]] = []
        for index in range(first, last + 1):
            stop_if_asked("group", index - first, last + 1 - first, kept=kept is not None)
            path = kept / f"group-{index:06d}.npz" if kept else None
            saved = kept_arrays(path)
            if saved is not None:
                bar.update(options.iterations)
                groups.append(saved)
                continue
            # a group's own, whatever came before it in this process
            with seeded(generator("network", options.seed, index).initial_seed(), device):
                groups.append(synthesizer.group(index, bar))
            keep_arrays(path, groups[-1])
    stop_if_asked("group", len(groups), len(groups), kept=kept is not None)
    terms = synthesizer.terms
    with atomic(out) as temporary, Writer(temporary, header, terms) as writer:
        for group in groups:
            writer.append(
                group["images"],
                group["labels"],
                group["batch"],
                *({term: group[f"{kind}_{term}"] for term in terms} for kind in ("coefficients", "final_loss")),
            )
        content = writer.finish()
    forget(kept)
    log(f"{out}: {sum(len(g['labels']) for g in groups)} images, content {content[:16]}")


def _guide(path: Path, teacher: Card, where: Path, device: str, factory: str | None) -> tuple[Classifier, Card]:
    """A guide and its card; raises InputError for what is no student of this teacher."""
    guide, card = load_checkpoint(path, device, factory=factory)
    if card.provenance.get("teacher_sha256") != teacher.tensors_sha256:
        raise InputError(f"{path}: is no student of {where}; a guide is a student that was trained from this teacher")
    return guide, card


OCTAVES: tuple[tuple[int | None, float], ...] = ((2, 0.7), (4, 0.6), (8, 0.35), (16, 0.12), (None, 0.03))
"""Parts of a smooth start: pixels along a side of the noise (None: as many as images have), its standard deviation.

Power falls with the third power of frequency, as it does in photographs of 32 pixels. A convention.
"""
SHARED = 0.9
"""Share of the variance of a smooth start that all channels have in common; 0.92 in photographs."""
SCALES, TURN, SHIFT = (0.6, 1.1), 0.2, 0.25
"""Of `varied`, by convention: part of a side that is seen, largest angle in radians, largest move in half sides."""


def noise(shape: tuple[int, int, int, int], start: str, random: torch.Generator) -> torch.Tensor:
    """What images (N,C,H,W) start from, in normalised space: N(0,1), for ``smooth`` a sum of enlarged noise.

    A smooth start has the spectrum of photographs and, as they have, channels that resemble each other.
    """
    if start == "white":
        return torch.randn(shape, generator=random)
    n, channels, height, width = shape
    total = torch.zeros(shape)
    for side, deviation in OCTAVES:
        size = (min(side or height, height), min(side or width, width))
        own = torch.randn((n, channels, *size), generator=random)
        common = torch.randn((n, 1, *size), generator=random)
        part = SHARED**0.5 * common + (1 - SHARED) ** 0.5 * own
        total += deviation * F.interpolate(part, size=(height, width), mode="bicubic")
    return total


def varied(images: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """Each of the images (N,C,H,W) at random mirrored, turned, scaled and moved; what comes in is the reflected border.

    The evidence of a class has to survive this (transformation robustness, Olah et al. 2017, Feature Visualization).
    """
    n = len(images)
    draws = torch.rand((5, n), generator=random)
    scale = SCALES[0] + (SCALES[1] - SCALES[0]) * draws[0]
    angle = TURN * (2 * draws[1] - 1)
    side = torch.where(draws[2] < 0.5, -1.0, 1.0)
    moved = SHIFT * (2 * draws[3:] - 1)
    rows = (side * scale * angle.cos(), -scale * angle.sin(), moved[0], side * scale * angle.sin(), scale * angle.cos())
    maps = torch.stack([*rows, moved[1]], dim=1).view(n, 2, 3).to(images)
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


class Synthesizer:
    """Base: makes groups of synthesis batches out of one teacher, which it freezes and watches from then on.

    A subclass writes `group` and names its loss terms. A group depends on the seed and its own index alone.
    """

    terms: tuple[str, ...] = ()
    """Loss terms whose weights and final values are recorded for every batch."""

    def __init__(
        self, model: Classifier, input_shape: tuple[int, int, int], classes: int, options: SynthesizeOptions
    ) -> None:
        self.options, self.shape, self.classes = options, input_shape, classes
        self.model = arranged(model.eval().requires_grad_(False))
        self.device = model.mean.device
        self.statistics = watched(self.model, input_shape)

    def guide(self, guides: Sequence[Classifier]) -> None:
        """Take students whose class term counts as well; raises InputError where the objective has no place for it."""
        if guides:
            raise InputError(f"objective {self.options.objective} asks the teacher alone; leave guides out")

    def group(self, index: int, bar: Any = None) -> dict[str, np.ndarray]:
        """The group's arrays: images, labels, batch, coefficients_{term} and final_loss_{term} (one per batch)."""
        raise NotImplementedError

    def labels(self, first: int, k: int, random: torch.Generator) -> torch.Tensor:
        """Labels (k·batch,) of `k` batches, the first of which has number `first`."""
        options = self.options
        if options.labels == "cycle":
            return ((torch.arange(k) + first) % self.classes).repeat_interleave(options.batch)
        return torch.randint(self.classes, (k * options.batch,), generator=random)

    def arrays(
        self, images: torch.Tensor, labels: torch.Tensor, first: int, alphas: torch.Tensor, final: torch.Tensor
    ) -> dict[str, np.ndarray]:
        """What `group` returns, from images (k·batch,C,H,W) in [0,1] and, per batch and term, weights and losses."""
        options = self.options
        stored = images.permute(0, 2, 3, 1).contiguous().numpy()
        if options.storage == "uint8":
            stored = np.round(stored * 255).astype(np.uint8)
        batch = np.arange(first, first + len(alphas)).repeat(options.batch)
        result = {"images": stored, "labels": labels.numpy(), "batch": batch}
        for position, term in enumerate(self.terms):
            result[f"coefficients_{term}"] = alphas[:, position].numpy()
            result[f"final_loss_{term}"] = final[:, position].double().numpy()
        return result


class ModelInversion(Synthesizer):
    """The objective of Eq 3-6, minimised for all batches of a group at once; each batch draws its own coefficients.

    The feature term of a network without running statistics is zero: images come from its answers and the prior alone.
    """

    terms = TERMS
    options: Inversion

    def __init__(self, model: Classifier, input_shape: tuple[int, int, int], classes: int, options: Inversion) -> None:
        super().__init__(model, input_shape, classes, options)
        self.guides: list[Classifier] = []
        self.objective = generated(self._terms) if options.compile else self._terms
        if options.coarse_steps:
            _check_size(self.model, self._size(coarse=True))
            self.statistics.seen.clear()
        self.base = torch.tensor([options.alpha_class, options.alpha_feature, options.alpha_prior], dtype=torch.float64)

    def guide(self, guides: Sequence[Classifier]) -> None:
        """Take students whose class term is added to the teacher's."""
        self.guides = [arranged(guide.eval().requires_grad_(False)) for guide in guides]

    def group(self, index: int, bar: Any = None) -> dict[str, np.ndarray]:
        """The group's arrays, as `Synthesizer.group` has them."""
        options = self.options
        first = index * options.group
        k = min(options.group, options.images // options.batch - first)
        random = generator("synthesis", options.seed, index)
        sampler = registry.COEFFICIENTS[options.coefficients].load()
        alphas = torch.stack([sampler(self.base, random, options) for _ in range(k)])
        labels = self.labels(first, k, random)
        start = noise((k * options.batch, *self._size(bool(options.coarse_steps))), options.start, random)
        images, final = self._optimise(start, labels.to(self.device), alphas, random, bar)
        return self.arrays(images, labels, first, alphas, final)

    def _size(self, coarse: bool) -> tuple[int, int, int]:
        """Shape (C,H,W) of images, or of those of half the resolution."""
        channels, height, width = self.shape
        return (channels, height // 2, width // 2) if coarse else self.shape

    def _optimise(
        self, start: torch.Tensor, labels: torch.Tensor, alphas: torch.Tensor, random: torch.Generator, bar: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Adam on z, where x = mean + std·z; returns images in [0,1] and the terms (k,3) of these clamped images.

        The first `coarse` of the steps are at half the resolution; Adam begins anew on the enlarged images.
        """
        options, k = self.options, len(alphas)
        self.statistics.k = k
        offsets = torch.randint(-options.roll, options.roll + 1, (options.iterations, k, 2), generator=random).tolist()
        z = start.to(self.device)
        coarse = options.coarse_steps
        if coarse:
            z = self._descend(z, labels, alphas, offsets, range(coarse), random, bar)
            z = F.interpolate(z, size=self.shape[1:], mode="bilinear")
        z = self._descend(z, labels, alphas, offsets, range(coarse, options.iterations), random, bar)
        with torch.no_grad():
            mean, std = self.model.mean, self.model.std
            images = (mean + std * z).clamp(0, 1)
            if options.storage == "uint8":
                images = (images * 255).round() / 255
            final = self._terms((images - mean) / std, labels, k)
        return images.cpu(), final.cpu()

    def _descend(
        self,
        start: torch.Tensor,
        labels: torch.Tensor,
        alphas: torch.Tensor,
        offsets: list[list[list[int]]],
        steps: range,
        random: torch.Generator,
        bar: Any,
    ) -> torch.Tensor:
        """The z that these steps of Adam make of `start`; `offsets` are those of all steps and batches."""
        options, k = self.options, len(alphas)
        z = start.contiguous(memory_format=self.model.layout).requires_grad_()
        black, white = -self.model.mean / self.model.std, (1 - self.model.mean) / self.model.std
        weights = alphas.to(self.device, torch.float32)
        adam = torch.optim.Adam([z], lr=options.lr, fused=True)
        for step in steps:
            if options.schedule == "cosine":
                adam.param_groups[0]["lr"] = options.lr * half_cosine(step, options.iterations)
            rolled = torch.cat(
                [part.roll(offset, (2, 3)) for part, offset in zip(z.chunk(k), offsets[step], strict=True)]
            ).contiguous(memory_format=self.model.layout)  # which a roll by nothing keeps and another does not
            if options.vary:
                rolled = varied(rolled, random).contiguous(memory_format=self.model.layout)
            terms = self.objective(rolled, labels, k)
            (gradient,) = torch.autograd.grad((weights * terms).sum(), z)
            # the fused optimiser walks both in memory order, so the layouts have to agree
            z.grad = gradient.contiguous(memory_format=self.model.layout)
            adam.step()
            if options.clamp == "step":
                with torch.no_grad():
                    z.copy_(z.clamp(black, white))
            if bar is not None:
                if step % 50 == 0:
                    values = terms.detach().mean(0).tolist()
                    bar.set_postfix({t: f"{v:.3g}" for t, v in zip(TERMS, values, strict=True)}, refresh=False)
                bar.update()
        return z.detach()

    def _terms(self, z: torch.Tensor, labels: torch.Tensor, k: int) -> torch.Tensor:
        """Terms (k,3) of `k` batches of normalised images (k·B,C,H,W) with labels (k·B,)."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.precision == "bf16"):
            logits = self.model.net(z)
            guided = [guide(self.model.mean + self.model.std * z) for guide in self.guides]
        classes = class_loss(logits, labels, k)
        for own in guided:
            classes = classes + class_loss(own, labels, k)
        features = self.statistics.feature_loss() if self.statistics.layers else torch.zeros_like(classes)
        return torch.stack([classes, features, total_variation(z, k)], dim=1)


def _check_size(model: Classifier, shape: tuple[int, int, int]) -> None:
    """Raise InputError unless a network takes images of half the resolution, (C,H,W), as well."""
    try:
        with torch.no_grad():
            model(torch.zeros((1, *shape), device=model.mean.device))
    except Exception as error:  # the user's code may raise anything
        raise InputError(
            f"coarse: the network takes no images of {list(shape)} ({describe(error)}); leave coarse at 0"
        ) from None
