"""Adversarial fine-tuning of a copy of the teacher on surrogate data (Algorithm 1; steps as in spec A.4, A.5)."""

import contextlib
import copy
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import dfshield
from dfshield import registry
from dfshield.models.checkpoints import Card, Classifier, load_checkpoint, save_checkpoint
from dfshield.models.folding import fold
from dfshield.options import TrainingOptions
from dfshield.runtime import (
    Diverged,
    InputError,
    atomic,
    compiled,
    digest,
    forbid_real_data,
    generator,
    metrics_csv,
    progress,
    say,
    select_device,
    settled,
    stopped_state,
    write_text,
)
from dfshield.schedules import half_cosine, warmed
from dfshield.shards import Surrogate, read
from dfshield.training.average import Average
from dfshield.training.gradrefine import GradRefine
from dfshield.training.inner import Maximisation
from dfshield.training.perturbation import perturbed, same_buffers
from dfshield.training.variation import vary

NOT_IN_HASH = {"device", "threads"}
METRICS = ("epoch", "loss", "clean_agreement", "robust_agreement", "updates", "passed", "lr")


def run(
    teacher: Path,
    data: Path,
    out: Path,
    options: TrainingOptions,
    recipe: str = "dfshield",
    factory: str | None = None,
    state: Path | None = None,
    metrics: Path | None = None,
    code: str = "",
) -> None:
    """Train a student on the surrogate set `data` and write it to `out`; the last epoch (or `average`) is the result.

    `metrics` receives one CSV row per epoch: mean loss; on held-out surrogate images the agreement with the teacher's
    class, clean and under the inner attack, in percent; optimiser updates so far; the share of parameters that passed
    GradRefine. With `state`, the same call after a crash goes on at the last finished epoch, to the identical file.

    A run has *diverged* if a loss or a weight is not finite: it ends there, the student is that of the last whole epoch
    and its provenance says so. It is written all the same, as a result (the paper's †).
    """
    forbid_real_data("train")
    device = select_device(options.device, options.threads)
    options = settled(options, device)
    model, card = load_checkpoint(teacher, str(device), factory=factory)
    surrogate = read(data)
    check_fit(surrogate, card, teacher, data)
    trainer = Trainer(model, surrogate, options)
    described = {k: v for k, v in options.model_dump().items() if k not in NOT_IN_HASH} | {"device": device.type}
    sources = {"teacher_sha256": card.tensors_sha256, "data_sha256": surrogate.attributes["content_sha256"]}
    kept = state / f"training-{digest(sources, recipe, described, code)[:16]}" if state else None
    trainer.fit(kept / "epoch.pt" if kept else None)
    student = Card(
        kind="student",
        dataset=card.dataset,
        model=card.model,
        factory=card.factory,
        arguments=card.arguments,
        input_shape=card.input_shape,
        classes=card.classes,
        mean=card.mean,
        std=card.std,
        real_data=surrogate.attributes["real_data"],
        provenance={
            **sources,
            "recipe": recipe,
            "source": surrogate.attributes["source"],
            "options": described,
            "seed": options.seed,
            "updates": trainer.updates,
            "diverged": trainer.diverged,
            "code": code,
            "package_version": dfshield.__version__,
        },
    )
    sha = save_checkpoint(out, trainer.student, student)
    if metrics:
        write_text(metrics, metrics_csv(METRICS, trainer.history))
    if kept:
        shutil.rmtree(kept, ignore_errors=True)
    say(f"{out}: {trainer.updates} updates, tensors {sha[:16]}")


def describe(row: dict[str, Any]) -> str:
    """One epoch's metrics as a line for the person who watches."""
    held = ""
    if not math.isnan(row["clean_agreement"]):
        held = f", held-out agreement clean {row['clean_agreement']:.1f} % robust {row['robust_agreement']:.1f} %"
    return (
        f"epoch {row['epoch']}: loss {row['loss']:.4f}{held}, {row['updates']} updates, "
        f"{100 * row['passed']:.1f} % of parameters passed"
    )


def check_fit(surrogate: Surrogate, card: Card, teacher: Path, data: Path) -> None:
    """Refuse surrogate data that were not made for this teacher."""
    _, height, width, channels = surrogate.images.shape
    if (channels, height, width) != tuple(card.input_shape):
        raise InputError(
            f"{data}: images are {(channels, height, width)} but {teacher} takes {tuple(card.input_shape)}; "
            "synthesise from this teacher"
        )
    if int(surrogate.attributes["classes"]) != card.classes:
        raise InputError(f"{data}: {surrogate.attributes['classes']} classes but {teacher} has {card.classes}")
    made_from = surrogate.attributes["teacher_sha256"]
    if made_from and made_from != card.tensors_sha256:
        raise InputError(
            f"{data}: made from teacher {made_from[:16]}, but {teacher} is {card.tensors_sha256[:16]}; "
            "synthesise from this teacher"
        )


class Trainer:
    """One adversarial training run; all randomness is keyed by seed, epoch and mini-batch."""

    def __init__(self, teacher: Classifier, surrogate: Surrogate, options: TrainingOptions) -> None:
        self.options, self.entry = options, registry.LOSSES[options.loss]
        device = teacher.mean.device
        self.student = copy.deepcopy(teacher).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.student.requires_grad_(True)
        self.crafting = fold(self.student)
        self.teacher = fold(teacher) if options.varies else None
        self.forward: Callable[..., torch.Tensor] = self.student
        if options.compile:
            if self.entry.search != "power":  # generated code has no second derivatives
                self.crafting.compile_for(options.batch)
            self.forward = compiled(self.student)
        used = max(1, round(options.data_share * len(surrogate.images)))
        images = torch.from_numpy(surrogate.images[:used]).permute(0, 3, 1, 2).to(device)
        labels = torch.from_numpy(surrogate.labels[:used]).to(device)
        targets = predict(teacher, images)
        order = torch.randperm(len(images), generator=generator("holdout", options.seed))
        held, kept = order[: options.holdout].to(device), order[options.holdout :].to(device)
        self.images, self.labels, self.targets = images[kept], labels[kept], targets[kept]
        self.held = (images[held], targets[held].argmax(1)) if len(held) else None
        self.held_targets = targets[held]
        if self.entry.labels == "teacher":
            self.labels = self.targets.argmax(1)
        self.batches = len(kept) // options.batch
        if not self.batches:
            raise InputError(
                f"holdout {options.holdout} leaves {len(kept)} of {len(images)} images to train on, less than one "
                f"mini-batch of {options.batch}; use a smaller holdout or batch, or more images"
            )
        if self.batches < options.aggregate:
            raise InputError(
                f"aggregate (B = {options.aggregate}) mini-batches of {options.batch} do not fit in an epoch of "
                f"{len(kept)} images ({self.batches} mini-batches), so no update could ever be made: "
                f"use aggregate <= {self.batches}, batch <= {len(kept) // options.aggregate} or more images"
            )
        self.loss = self.entry.load()
        self.parameters = list(self.student.parameters())
        factor = options.aggregate if options.lr_factor == "B" else 1
        self.base_lr = options.lr * factor
        self.optimiser = torch.optim.SGD(
            self.parameters,
            lr=self.base_lr,
            momentum=options.momentum,
            nesterov=options.nesterov,
            weight_decay=options.weight_decay,
        )
        self.refiner = GradRefine(self.parameters, options.aggregate, options.tau, options.reduction, options.tie)
        self.average = Average(self.student, options.average) if options.average else None
        self.updates, self.diverged = 0, ""
        self.history: list[dict[str, Any]] = []
        self._begin(0)

    def _begin(self, epoch: int) -> None:
        """What depends on the epoch: learning rate, inner maximisation, weight perturbation."""
        options = self.options
        self._set_rate(epoch)
        self.inner = Maximisation.of(options, epoch)
        self.awp = options.awp if epoch >= options.awp_warmup else 0.0

    def fit(self, checkpoint: Path | None) -> None:
        """All epochs, from `checkpoint` on if it is there; says in `diverged` whether and how the run failed."""
        done = self._restore(checkpoint)
        steps = self.options.epochs * self.batches
        with progress(steps, f"train {self.options.loss}", "batch") as bar:
            bar.update(done * self.batches)
            for epoch in range(done, self.options.epochs):
                whole = copy.deepcopy(self._state(epoch))
                try:
                    self.history.append(self.epoch(epoch, bar))
                except Diverged as reason:
                    self._load(whole)
                    self.diverged = f"{reason}; these are the weights after epoch {epoch}"
                    say(f"{self.options.loss} diverged: {self.diverged}; a lower lr may help")
                    break
                say(describe(self.history[-1]))
                if checkpoint:
                    self._save(checkpoint, epoch + 1)
        if self.average:
            self.student.load_state_dict(self.average.state)
        self.student.eval()

    def epoch(self, epoch: int, bar: Any = None) -> dict[str, Any]:
        """One pass over the data; returns the epoch's metrics. Raises Diverged."""
        options = self.options
        self._begin(epoch)
        order = torch.randperm(len(self.images), generator=generator("epoch", options.seed, epoch))
        total, shares = 0.0, []
        for index in range(self.batches):
            rows = order[index * options.batch : (index + 1) * options.batch].to(self.images.device)
            loss, gradients = self.gradients(rows, generator("inner", options.seed, epoch, index))
            if not math.isfinite(loss):
                raise Diverged(f"the loss is {float(loss)} in epoch {epoch + 1}, mini-batch {index + 1}")
            total += float(loss)
            self.refiner.add(gradients)
            last = index == self.batches - 1
            if self.refiner.count == options.aggregate or last:
                share = self._update()
                if share is not None:
                    shares.append(share)
            if bar is not None:
                bar.update()
                bar.set_postfix(loss=f"{total / (index + 1):.4f}", refresh=False)
        if not all(bool(value.isfinite().all()) for value in self.student.state_dict().values()):
            raise Diverged(f"a weight is not finite after epoch {epoch + 1}")
        with self.average.inside(self.student) if self.average else contextlib.nullcontext():
            clean, robust = self._agreement(epoch)
        return {
            "epoch": epoch + 1,
            "loss": total / self.batches,
            "clean_agreement": clean,
            "robust_agreement": robust,
            "updates": self.updates,
            "passed": sum(shares) / len(shares) if shares else 0.0,
            "lr": self.optimiser.param_groups[0]["lr"],
        }

    def gradients(self, rows: torch.Tensor, random: torch.Generator) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Loss and its gradients on one mini-batch: x̂' crafted in eval mode, outer forwards in `batchnorm`'s mode.

        With weight perturbation both are those at the perturbed weights, for the same x̂' and with one update of BN.
        """
        x, labels, targets = self.images[rows], self.labels[rows], self.targets[rows]
        if self.teacher:
            x = vary(x, self.options, random)
            targets = predict(self.teacher, x)
            labels = targets.argmax(1) if self.entry.labels == "teacher" else labels
        x = x.contiguous(memory_format=torch.channels_last)
        adversarial = None if self.entry.input_gradient else self._craft(x, labels, random, targets)
        self.student.train(self.options.batchnorm == "train")
        if not self.awp:
            return self._outer(x, adversarial, targets, labels)
        with same_buffers(self.student):
            _, upwards = self._outer(x, adversarial, targets, labels)
        with perturbed(self.parameters, upwards, self.awp):
            return self._outer(x, adversarial, targets, labels)

    def _outer(
        self, x: torch.Tensor, adversarial: torch.Tensor | None, targets: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.options.outer_precision == "bf16"):
            if adversarial is None:
                x = x.detach().requires_grad_()
                clean = self.student(x).float()  # generated code has no second derivatives
                loss = self.loss(clean, clean, targets, labels, self.options, x)
            else:
                clean, robust = self.forward(x).float(), self.forward(adversarial).float()
                loss = self.loss(clean, robust, targets, labels, self.options)
        return loss.detach(), list(torch.autograd.grad(loss, self.parameters))

    def _craft(
        self,
        x: torch.Tensor,
        labels: torch.Tensor,
        random: torch.Generator,
        targets: torch.Tensor | None = None,
        inner: Maximisation | None = None,
    ) -> torch.Tensor:
        self.crafting.refresh()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.options.precision == "bf16"):
            return (inner or self.inner).solve(self.crafting, x, labels, targets, random)

    def _update(self) -> float | None:
        """One optimiser step with the refined gradients; returns the share that passed, None if there was no step."""
        count, mode = self.refiner.count, self.options.last_group
        short = count < self.options.aggregate
        gradients, share = self.refiner.refine(count if short and mode == "actual" else None)
        if short and mode == "drop":
            return None
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        self.optimiser.step()
        if self.average:
            self.average.update(self.student, self.updates)
        self.updates += 1
        return share

    def _set_rate(self, epoch: int) -> None:
        factor = warmed(self.options.lr_warmup, epoch, self.options.epochs)
        if self.options.schedule == "cosine":
            factor *= half_cosine(epoch, self.options.epochs)
        self.optimiser.param_groups[0]["lr"] = self.base_lr * factor

    def _agreement(self, epoch: int) -> tuple[float, float]:
        """Percent of held-out surrogate images with the teacher's class: clean, and under the full inner attack."""
        if self.held is None:
            return float("nan"), float("nan")
        x, classes = self.held
        self.student.eval()
        random = generator("held-out", self.options.seed, epoch)
        adversarial = self._craft(x, classes, random, self.held_targets, Maximisation.full(self.options))
        shares = [float((predict(self.student, part).argmax(1) == classes).float().mean()) for part in (x, adversarial)]
        return 100 * shares[0], 100 * shares[1]

    def _state(self, done: int) -> dict[str, Any]:
        return {
            "done": done,
            "updates": self.updates,
            "history": self.history,
            "student": self.student.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": self.average.state if self.average else None,
        }

    def _load(self, saved: dict[str, Any]) -> None:
        self.student.load_state_dict(saved["student"])
        self.optimiser.load_state_dict(saved["optimiser"])
        if self.average:
            self.average.state = saved["average"]
        self.updates, self.history = saved["updates"], saved["history"]

    def _save(self, path: Path, done: int) -> None:
        with atomic(path) as temporary:
            torch.save(self._state(done), temporary)

    def _restore(self, path: Path | None) -> int:
        saved = stopped_state(path, self.images.device)
        if saved is None:
            return 0
        self._load(saved)
        say(f"resuming after epoch {saved['done']} of {self.options.epochs}")
        return int(saved["done"])


def predict(model: torch.nn.Module, x: torch.Tensor, batch: int = 500) -> torch.Tensor:
    """Logits (N,C) of a model in eval mode, without gradients."""
    model.eval()
    with torch.no_grad():
        return torch.cat([model(part.contiguous(memory_format=torch.channels_last)) for part in x.split(batch)])
