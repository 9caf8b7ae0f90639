"""Surrogate data drawn from a generator that is trained against the teacher alone: Qimera and RDSKD.

Both are published with a student that learns beside or after the generator. Here they are sources of training data:
the generator is trained as published, without its student, and the set is drawn from it when it is done.
"""

import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfshield import registry
from dfshield.models.checkpoints import Classifier, load_checkpoint
from dfshield.models.features import Penultimate
from dfshield.options import GenerationOptions
from dfshield.runtime import (
    InputError,
    atomic,
    canonical_json,
    digest,
    forbid_real_data,
    generator,
    progress,
    say,
    select_device,
    stopped_state,
)
from dfshield.shards import write_whole
from dfshield.synthesis.objective import BatchStatistics, statistics_loss

if TYPE_CHECKING:
    from dfshield.generators import Generator, Shape

NOT_IN_HASH = {"device", "threads", "seed"}


def run(
    teacher: Path,
    out: Path,
    options: GenerationOptions,
    source: str = "qimera",
    factory: str | None = None,
    state: Path | None = None,
    code: str = "",
) -> None:
    """Train the generator of `options.method` against a teacher checkpoint and write the set drawn from it to `out`.

    With `state`, the same call after a crash goes on at the last finished pass, to the identical file. Raises
    InputError if the loss is not finite.
    """
    forbid_real_data("generate")
    device = select_device(options.device, options.threads)
    model, card = load_checkpoint(teacher, str(device), factory=factory)
    described = options.model_dump(mode="json", exclude=NOT_IN_HASH) | {"device": device.type}
    kept = None
    if state is not None:
        kept = state / f"generation-{digest(card.tensors_sha256, source, described, options.seed, code)[:16]}"
    method = registry.GENERATED[options.method].load()(model, card.input_shape, card.classes, options)
    method.fit(kept / "epoch.pt" if kept else None)
    images, labels = method.draw_set()
    attributes = {
        "teacher_sha256": card.tensors_sha256,
        "dataset": card.dataset,
        "model": card.model,
        "source": source,
        "real_data": registry.SOURCES["synthetic"].real_data,
        "options": canonical_json(described),
        "seed": options.seed,
        "classes": card.classes,
    }
    content = write_whole(out, attributes, images, labels, code)
    if kept:
        shutil.rmtree(kept, ignore_errors=True)
    say(f"{out}: {len(labels)} images by {options.method}, content {content[:16]}")


class Method:
    """Base: trains a generator against a frozen teacher; all randomness is keyed by seed, pass and mini-batch.

    `memory` is what a method keeps between mini-batches, in plain numbers.
    """

    def __init__(self, teacher: Classifier, shape: "Shape", classes: int, options: GenerationOptions) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.shape, self.classes, self.options = shape, classes, options
        self.device = teacher.mean.device
        self.last = last_layer(teacher, shape)
        self.memory: dict[str, float] = {}
        with torch.random.fork_rng(devices=[]):  # layers draw their first weights from the global generator
            torch.manual_seed(generator("generator", options.seed).initial_seed())
            self.generator = self.build().to(self.device)

    def build(self) -> "Generator":
        """The generator before training."""
        raise NotImplementedError

    def loss(self, random: torch.Generator, index: int) -> Tensor:
        """What the generator minimises on mini-batch `index` of a pass, a scalar."""
        raise NotImplementedError

    def draw(self, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """A mini-batch of the trained generator: images (batch,C,H,W) in [0,1] and labels (batch,)."""
        raise NotImplementedError

    def gdfq(self, latent: int, embedding: nn.Module) -> "Generator":
        """The generator that both methods share, but for what becomes of its input."""
        from dfshield.generators import GdfqGenerator

        mean, std = (values.flatten().tolist() for values in (self.teacher.mean, self.teacher.std))
        return GdfqGenerator(latent, self.shape, mean, std, embedding, self.options.width)

    def fit(self, checkpoint: Path | None) -> None:
        """All passes, from `checkpoint` on if it is there."""
        options = self.options
        adam = torch.optim.Adam(self.generator.parameters(), options.lr, (options.adam_beta1, 0.999))
        done = self._restore(checkpoint, adam)
        self.generator.train()
        with progress(options.epochs * options.iterations, f"generate {options.method}", "step") as bar:
            bar.update(done * options.iterations)
            for epoch in range(done, options.epochs):
                falls = sum(epoch >= share * options.epochs for share in options.milestones)
                for group in adam.param_groups:
                    group["lr"] = options.lr * 0.1**falls
                for index in range(options.iterations):
                    loss = self.loss(generator("generation", options.seed, epoch, index), index)
                    value = float(loss.detach())
                    if not math.isfinite(value):
                        raise InputError(
                            f"{options.method} diverged: the loss is {value} in pass {epoch + 1}; use a smaller lr"
                        )
                    adam.zero_grad()
                    loss.backward()
                    adam.step()
                    bar.set_postfix({"loss": f"{value:.4g}"}, refresh=False)
                    bar.update()
                if checkpoint:
                    saved = {"done": epoch + 1, "generator": self.generator.state_dict(), "adam": adam.state_dict()}
                    with atomic(checkpoint) as temporary:
                        torch.save(saved | {"memory": self.memory}, temporary)

    def _restore(self, path: Path | None, adam: torch.optim.Optimizer) -> int:
        """Passes that a stopped run has left in `path`."""
        saved = stopped_state(path, self.device)
        if saved is None:
            return 0
        self.generator.load_state_dict(saved["generator"])
        adam.load_state_dict(saved["adam"])
        self.memory = saved["memory"]
        say(f"resuming after pass {saved['done']} of {self.options.epochs}")
        return int(saved["done"])

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


# --- Qimera (Choi et al., NeurIPS 2021) -------------------------------------------------------------------------------


class Superposition(nn.Module):
    """Latents (N,latent) of superposed classes: the weighted sum of k vectors, each a class's vector plus noise.

    Takes noise (N,k,D) and shares (N,k,C): one class per slot, with its weight. A vector is brought to mean 0 and
    variance 1 over its D entries (the released code's BatchNorm over the transposed mini-batch, which for superposed
    images takes the statistics over the mini-batch besides) and, where D is not `latent`, reduced by a linear layer.
    """

    def __init__(self, table: Tensor, latent: int) -> None:
        super().__init__()
        self.table = nn.Parameter(table)
        self.reducer = nn.Linear(table.shape[1], latent) if latent != table.shape[1] else nn.Identity()

    def forward(self, noise: Tensor, shares: Tensor) -> Tensor:
        vectors = self.table[shares.argmax(2)] + noise
        reduced = self.reducer(F.layer_norm(vectors, vectors.shape[2:]))
        latent: Tensor = (shares.sum(2, keepdim=True) * reduced).sum(1)
        return latent


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of logits (N,C) with target probabilities (N,C), mean over images."""
    return -(targets * F.log_softmax(logits, 1)).sum(1).mean()


class Qimera(Method):
    """GDFQ's generator with superposed class vectors, for images near the teacher's boundaries between classes.

    It minimises the cross entropy of the teacher's answer with the superposed labels, and the distance of the batch
    statistics from the teacher's.
    """

    def build(self) -> "Generator":
        table = self.last.weight.detach().clone()
        latent = self.options.latent or table.shape[1]
        if self.options.embedding == "random":
            table = torch.randn(len(table), latent).to(table)
        self.entries = table.shape[1]
        return self.gdfq(latent, Superposition(table, latent))

    def input(self, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Noise (N,k,D) and shares (N,k,C): k is 1 for a mini-batch of pure classes, else `mix_classes`."""
        options = self.options
        mixed = float(torch.rand((), generator=random)) < options.mix_probability
        size = (options.batch, options.mix_classes if mixed else 1)
        classes = torch.randint(self.classes, size, generator=random)
        weights = torch.randn(size, generator=random).softmax(1)
        noise = torch.randn((*size, self.entries), generator=random)
        shares = weights[:, :, None] * F.one_hot(classes, self.classes)
        return noise.to(self.device), shares.to(self.device)

    def loss(self, random: torch.Generator, index: int) -> Tensor:
        noise, shares = self.input(random)
        statistics = BatchStatistics(self.teacher.net)
        try:
            logits = self.teacher(self.generator(noise, shares))
            means, variances = statistics_loss(statistics)
        finally:
            statistics.remove()
        return soft_cross_entropy(logits, shares.sum(1)) + self.options.feature_weight * (means + variances)

    def draw(self, random: torch.Generator) -> tuple[Tensor, Tensor]:
        noise, shares = self.input(random)
        return self.generator(noise, shares), shares.sum(1).argmax(1)  # in training mode, as the published student's


# --- RDSKD (Han et al., ICASSP 2021) ----------------------------------------------------------------------------------


class Unconditional(nn.Module):
    """The latent is the noise itself."""

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        return noise


def confidence_loss(logits: Tensor) -> Tensor:
    """Cross entropy of logits (N,C) with their own largest class."""
    return F.cross_entropy(logits, logits.argmax(1))


def balance_loss(logits: Tensor) -> Tensor:
    """Negative entropy Σ p log p of the mean probabilities of logits (N,C): least where all classes are as frequent."""
    mean = logits.softmax(1).mean(0)
    return (mean * mean.clamp(min=1e-12).log()).sum()


def similarity_loss(images: Tensor, logits: Tensor) -> Tensor:
    """‖p₂ - p₁‖ / ‖x₂ - x₁‖ of the two halves of a mini-batch: small where images differ more than answers do."""
    half = len(images) // 2
    x, p = ((both[half : 2 * half] - both[:half]).norm() for both in (images, logits.softmax(1)))
    return p / x.clamp(min=1e-12)


class Rdskd(Method):
    """An unconditional generator: answers of the teacher that are sure, of all classes, and images that differ.

    The first two terms count relative to their values near the start of the pass before: exp(L - earlier L).
    """

    def build(self) -> "Generator":
        self.memory |= {"confidence": 0.0, "balance": 0.0}
        self.latent = self.options.latent or self.last.in_features
        return self.gdfq(self.latent, Unconditional())

    def _images(self, random: torch.Generator) -> Tensor:
        n = self.options.batch
        noise = torch.randn((n, self.latent), generator=random).to(self.device)
        return self.generator(noise, torch.zeros(n, dtype=torch.long, device=self.device))

    def loss(self, random: torch.Generator, index: int) -> Tensor:
        images = self._images(random)
        logits = self.teacher(images)
        confidence, balance = confidence_loss(logits), balance_loss(logits)
        relative = torch.exp(confidence - self.memory["confidence"]) + torch.exp(balance - self.memory["balance"])
        if index == 1:  # as released: the second mini-batch of each pass
            self.memory |= {"confidence": float(confidence.detach()), "balance": float(balance.detach())}
        return relative + similarity_loss((images - self.teacher.mean) / self.teacher.std, logits)

    def draw(self, random: torch.Generator) -> tuple[Tensor, Tensor]:
        self.generator.eval()  # as released
        images = self._images(random)
        return images, self.teacher(images).argmax(1)
