"""Synthetic sets drawn from a generator that is trained against the teacher alone.

Qimera, RDSKD and FastDFKD are published with a student that learns beside or after the generator. Here they are sources
of training data: the generator is trained as published, without its student. The set is drawn from it at the end, or
collected on the way.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from dfshield import registry
from dfshield.core.datafree import data_free
from dfshield.core.device import select_device
from dfshield.core.epochs import EpochLoop
from dfshield.core.errors import InputError
from dfshield.core.progress import log
from dfshield.core.rng import generator, seeded
from dfshield.core.state import forget, run_folder
from dfshield.models.checkpoints import load_checkpoint
from dfshield.models.classifier import Classifier
from dfshield.models.penultimate import Penultimate
from dfshield.models.statistics import need_statistics
from dfshield.options import GenerateOptions
from dfshield.sources.scale import in_own_scale, stated_scale
from dfshield.sources.trainset import trainset_header, write_whole

if TYPE_CHECKING:
    from dfshield.models.generators import Generator, Shape


@data_free("generate")
def run(
    teacher: Path,
    out: Path,
    options: GenerateOptions,
    source: str = "qimera",
    factory: str | None = None,
    state: Path | None = None,
    code: str = "",
) -> None:
    """Train the generator of `options.method` against a teacher checkpoint and write the set drawn from it to `out`.

    With `state`, the same call after a crash resumes after the last whole epoch, to the identical file. Raises
    InputError if the loss is not finite.
    """
    device = select_device(options.device, options.threads)
    loaded, card = load_checkpoint(teacher, str(device), factory=factory)
    if missed := options.missed_classes(card.classes):
        log(f"{out}: {missed}")
    entry = registry.GENERATED[options.method]
    if entry.statistics:
        need_statistics(loaded.net, f"method {options.method}", "use method rdskd, or objective inversion")
    model = in_own_scale(loaded, card.input_shape)
    described = options.described(device)
    kept = run_folder(state, "generation", card.tensors_sha256, source, described, options.seed, code)
    method = entry.load()(model, card.input_shape, card.classes, options)
    method.fit(kept / "epoch.pt" if kept else None)
    images, labels = method.draw_set()
    header = trainset_header(
        card,
        source=source,
        real_data=registry.SOURCES["synthetic"].real_data,
        options=described,
        seed=options.seed,
        code=code,
    ) | stated_scale(model, loaded)
    content = write_whole(out, header, images, labels)
    forget(kept)
    log(f"{out}: {len(labels)} images by {options.method}, content {content[:16]}")


class GeneratorSource(EpochLoop):
    """Base: trains a generator against a frozen teacher; all randomness is keyed by seed, epoch and mini-batch.

    `memory` is what a method keeps between mini-batches, in plain numbers.
    """

    def __init__(self, teacher: Classifier, shape: "Shape", classes: int, options: GenerateOptions) -> None:
        label, device = f"generate {options.method}", teacher.mean.device
        super().__init__(label, options.rounds, options.iterations, device, seed=options.seed)
        self.teacher = teacher.eval().requires_grad_(False)
        self.shape, self.classes, self.options = shape, classes, options
        self.last = last_layer(teacher, shape)
        self.memory: dict[str, float] = {}
        with seeded(generator("generator", options.seed).initial_seed()):
            self.generator = self.build().to(self.device)
        self.adam = torch.optim.Adam(self.generator.parameters(), options.lr, (options.adam_beta1, 0.999))

    def build(self) -> "Generator":
        """The generator before training."""
        raise NotImplementedError

    def loss(self, random: torch.Generator, index: int) -> Tensor:
        """What the generator minimises on mini-batch `index` of an epoch, a scalar."""
        raise NotImplementedError

    def draw(self, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """A mini-batch of the trained generator: images (batch,C,H,W) in [0,1] and labels (batch,)."""
        raise NotImplementedError

    def gdfq(self, latent: int, embedding: nn.Module) -> "Generator":
        """The generator that both methods share, but for what becomes of its input."""
        from dfshield.models.generators import GdfqGenerator

        mean, std = (values.flatten().tolist() for values in (self.teacher.mean, self.teacher.std))
        return GdfqGenerator(latent, self.shape, mean, std, embedding, self.options.width)

    def epoch(self, epoch: int, bar: Any = None) -> dict[str, Any]:
        """One epoch; a loss that is not finite raises InputError, since half a generator is of no use."""
        options = self.options
        for group in self.adam.param_groups:
            group["lr"] = options.lr * self.decay(epoch)
        self.generator.train()
        value = math.nan
        for index in range(options.iterations):
            loss = self.loss(generator("generation", options.seed, epoch, index), index)
            value = self.finite(loss, epoch)
            self.adam.zero_grad()
            loss.backward()
            self.adam.step()
            if bar is not None:
                bar.set_postfix({"loss": f"{value:.4g}"}, refresh=False)
                bar.update()
        return {"epoch": epoch + 1, "loss": value}

    def decay(self, epoch: int) -> float:
        """The learning rates of an epoch as a multiple of those given: a tenth for each milestone that is behind."""
        return 0.1 ** sum(epoch >= share * self.options.rounds for share in self.options.milestones)

    def finite(self, loss: Tensor, epoch: int) -> float:
        """The value of a loss; raises InputError if it is not finite."""
        value = float(loss.detach())
        if not math.isfinite(value):
            raise InputError(
                f"{self.options.method} diverged: the loss is {value} in epoch {epoch + 1}; use a smaller lr"
            )
        return value

    def state(self) -> dict[str, Any]:
        """Generator, optimiser and memory."""
        return {"generator": self.generator.state_dict(), "adam": self.adam.state_dict(), "memory": self.memory}

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        self.generator.load_state_dict(state["generator"])
        self.adam.load_state_dict(state["adam"])
        self.memory = state["memory"]

    def draw_set(self) -> tuple[np.ndarray, np.ndarray]:
        """The whole set: images (N,H,W,C) float32 in [0,1] and labels (N,)."""
        options = self.options
        images, labels = [], []
        with torch.no_grad():
            for index in range(-(-options.images // options.batch)):
                made, own = self.draw(generator("generated", options.seed, index))
                images.append(made.permute(0, 2, 3, 1).cpu())
                labels.append(own.cpu())
        n = options.images
        return torch.cat(images)[:n].contiguous().numpy(), torch.cat(labels)[:n].numpy()


def last_layer(teacher: Classifier, shape: "Shape") -> nn.Linear:
    """The last linear layer of a teacher."""
    watched = Penultimate(teacher.net)
    with torch.no_grad():
        teacher(torch.zeros((1, *shape), device=teacher.mean.device))
    watched.remove()
    return watched.layer
