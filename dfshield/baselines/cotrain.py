"""The cotrain stage: a generator and a student trained together against a frozen teacher (section A.4)."""

import copy
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dfshield import registry
from dfshield.baselines.method import Method
from dfshield.core.datafree import data_free
from dfshield.core.device import select_device
from dfshield.core.epochs import EpochLoop
from dfshield.core.errors import Diverged
from dfshield.core.files import metrics_csv, write_text
from dfshield.core.lp import step_size
from dfshield.core.progress import log
from dfshield.core.rng import generator
from dfshield.core.schedules import half_cosine
from dfshield.core.state import forget, run_folder
from dfshield.core.threat import parse_threat
from dfshield.models.card import student_card
from dfshield.models.checkpoints import Card, build_network, load_checkpoint, save_checkpoint
from dfshield.models.classifier import Classifier, predict
from dfshield.models.folding import fold
from dfshield.models.standins import arranged
from dfshield.models.statistics import need_statistics
from dfshield.options import CotrainOptions
from dfshield.registry import RealData
from dfshield.sources.scale import in_own_scale
from dfshield.sources.trainset import trainset_header, write_whole
from dfshield.training.inner import OBJECTIVES, pgd_ascent

REAL_DATA: RealData = "none"
METRICS = (
    "epoch",
    "student_loss",
    "generator_loss",
    "clean_agreement",
    "robust_agreement",
    "teacher_classes",
    "student_classes",
    "updates",
    "lr",
)


@data_free("cotrain")
def run(
    teacher: Path,
    out: Path,
    options: CotrainOptions,
    recipe: str = "",
    factory: str | None = None,
    state: Path | None = None,
    metrics: Path | None = None,
    code: str = "",
    images: Path | None = None,
) -> None:
    """Train a student with images of a generator that is trained beside it, and write it to `out`.

    `recipe` is the name that the files record, the method's if empty. The last epoch is the result. `metrics` receives
    one CSV row per epoch: mean losses; on a held-out mini-batch of generated images, the agreement with the teacher's
    class, clean and under the inner attack, in percent, and how many classes teacher and student see in it; the
    student's updates so far. `images` receives a training set of `options.kept_images` images that the last generator
    draws, with the teacher's labels: it shows what the student saw, and nothing is trained on it. With `state`, the
    same call after a crash resumes after the last whole epoch, to the identical files.

    A run has *diverged* if a loss, a weight or an output is not finite (it ends there, and the student is that of the
    last whole epoch) or if, after the last epoch, the student sees one class in all the held-out images where the
    teacher sees several. The student's provenance says so; it is written all the same, as a result.
    """
    recipe = recipe or options.method
    device = select_device(options.device, options.threads)
    model, card = load_checkpoint(teacher, str(device), factory=factory)
    if registry.BASELINES[options.method].statistics:
        need_statistics(model.net, f"method {options.method}", "use dast or dfme, or a loss on a training set")
    trainer = Cotrainer(model, card, options)
    described = options.described(device)
    kept = run_folder(state, "cotraining", card.tensors_sha256, recipe, described, options.seed, code)
    trainer.fit(kept / "epoch.pt" if kept else None)
    history = metrics_csv(METRICS, trainer.history)
    student = student_card(
        card,
        real_data=REAL_DATA,
        inputs={"teacher_sha256": card.tensors_sha256},
        recipe=recipe,
        source="none",
        options=described,
        seed=options.seed,
        updates=trainer.updates,
        diverged=trainer.diverged,
        metrics=history,
        code=code,
    )
    if images is not None:
        header = trainset_header(
            card, source=recipe, real_data=REAL_DATA, options=described, seed=options.seed, code=code
        )
        write_whole(images, header, *trainer.draw_set())
    sha = save_checkpoint(out, trainer.student, student)
    if metrics:
        write_text(metrics, history)
    forget(kept)
    log(f"{out}: {trainer.updates} updates, tensors {sha[:16]}")


class Cotrainer(EpochLoop):
    """One run of one method; all randomness is keyed by seed, epoch and iteration."""

    def __init__(self, teacher: Classifier, card: Card, options: CotrainOptions) -> None:
        label = f"cotrain {options.method}"
        super().__init__(label, options.epochs, options.iterations, teacher.mean.device, seed=options.seed)
        self.options, self.threat = options, parse_threat(options.threat)
        self.student = arranged(self._start(teacher, card)).requires_grad_(True)
        own = in_own_scale(teacher, card.input_shape)  # the student keeps the scale of the card
        self.teacher = arranged(own).eval().requires_grad_(False)
        self.crafting = fold(self.student)
        entry = registry.BASELINES[options.method]
        self.start = entry.start
        self.inner: Literal["kl", "ce"] = entry.inner if options.inner == "auto" else options.inner
        self.method: Method = entry.load()(self.teacher, self.student, card.input_shape, card.classes, options)
        groups = self.method.groups()
        self.parameters = {
            "generator": [parameter for group in groups for parameter in group["params"]],
            "student": list(self.student.parameters()),
        }
        betas = (options.adam_beta1, 0.999)
        self.optimisers: dict[str, torch.optim.Optimizer] = {"generator": torch.optim.Adam(groups, betas=betas)}
        if options.student_optimiser == "adam":
            self.optimisers["student"] = torch.optim.Adam(
                self.parameters["student"], options.student_lr, betas, weight_decay=options.weight_decay
            )
        else:
            self.optimisers["student"] = torch.optim.SGD(
                self.parameters["student"],
                options.student_lr,
                momentum=options.momentum,
                nesterov=options.nesterov,
                weight_decay=options.weight_decay,
            )
        self.rates = {name: [g["lr"] for g in o.param_groups] for name, o in self.optimisers.items()}
        self.updates = 0

    def _start(self, teacher: Classifier, card: Card) -> Classifier:
        if self.options.student_start == "teacher":
            return copy.deepcopy(teacher)
        net = build_network(card.model, card.input_shape, card.classes, card.factory, card.arguments, self.options.seed)
        student = Classifier(net, card.mean, card.std, teacher.build).to(self.device)
        student.layout, student.anew = teacher.layout, teacher.anew
        return student

    def fit(self, checkpoint: Path | None = None) -> None:
        """Train all epochs, as `EpochLoop.fit`; a student that sees one class where the teacher sees several failed."""
        super().fit(checkpoint)
        self.student.eval()
        if not self.diverged and self.history[-1]["student_classes"] == 1 < self.history[-1]["teacher_classes"]:
            self.diverged = "one class for all generated images, of which the teacher sees several"
            log(f"{self.label} diverged: {self.diverged}")

    def describe(self, row: dict[str, Any]) -> str:
        """One epoch's metrics as a line for the person who watches."""
        waits = math.isnan(row["student_loss"])
        student = "the student waits" if waits else f"loss of student {row['student_loss']:.4f}"
        return (
            f"epoch {row['epoch']}: {student}, loss of generator {row['generator_loss']:.4f}, held-out agreement "
            f"clean {row['clean_agreement']:.1f} % robust {row['robust_agreement']:.1f} %"
        )

    def epoch(self, epoch: int, bar: Any = None) -> dict[str, Any]:
        """One epoch; returns its metrics. Raises Diverged."""
        self._set_rates(epoch)
        totals = {"student": 0.0, "generator": 0.0}
        steps = 0 if epoch < self.options.generator_epochs else self.options.student_steps
        for index in range(self.options.iterations):
            key = (self.options.seed, epoch, index)
            z, labels = self.method.draw(self.options.batch, generator("latent", *key))
            raw = self.method.generator.raw(z, labels)
            self.student.eval()
            loss = self.method.generator_loss(raw, labels, generator("generator loss", *key))
            totals["generator"] += self._step("generator", loss, epoch, index)
            for step in range(steps):
                if steps == 1:
                    images = self.method.generator.to_image(raw.detach())
                else:
                    z, labels = self.method.draw(self.options.batch, generator("latent", *key, step))
                    with torch.no_grad():
                        images = self.method.generator(z, labels)
                loss = self._student_loss(images, labels, generator("inner", *key, step))
                totals["student"] += self._step("student", loss, epoch, index)
                self.updates += 1
            if bar is not None:
                bar.update()
                means = {name: f"{total / (index + 1):.4f}" for name, total in totals.items()}
                bar.set_postfix(means, refresh=False)
        if not all(bool(value.isfinite().all()) for value in self.student.state_dict().values()):
            raise Diverged(f"a weight is not finite after epoch {epoch + 1}")
        self.method.end_epoch()
        return {
            "epoch": epoch + 1,
            "student_loss": totals["student"] / (self.options.iterations * steps) if steps else math.nan,
            "generator_loss": totals["generator"] / self.options.iterations,
            **self._measure(epoch),
            "updates": self.updates,
            "lr": self.optimisers["student"].param_groups[0]["lr"],
        }

    def _student_loss(self, images: Tensor, labels: Tensor, random: torch.Generator) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            teacher = self.teacher(images)
        adversarial = self._craft(images, teacher.argmax(1), random)
        self.student.train(self.options.batchnorm == "train")
        return self.method.student_loss(images, adversarial, teacher, labels)

    def _craft(self, images: Tensor, classes: Tensor, random: torch.Generator) -> Tensor:
        self.crafting.refresh()
        size = step_size(self.threat, self.options.l2_step)
        steps = self.options.attack_steps
        return pgd_ascent(
            self.crafting, images, classes, OBJECTIVES[self.inner], self.start, self.threat, steps, size, random
        )

    def _step(self, who: str, loss: Tensor, epoch: int, index: int) -> float:
        """One optimiser step of generator or student; returns the loss."""
        value = float(loss.detach())
        if not math.isfinite(value):
            raise Diverged(f"the loss of the {who} is {value} in epoch {epoch + 1}, iteration {index + 1}")
        gradients = torch.autograd.grad(loss, self.parameters[who], allow_unused=True)
        for parameter, gradient in zip(self.parameters[who], gradients, strict=True):
            parameter.grad = gradient
        self.optimisers[who].step()
        return value

    def _set_rates(self, epoch: int) -> None:
        options = self.options
        falls = sum(epoch >= share * options.epochs for share in options.milestones)
        factors = dict.fromkeys(self.optimisers, options.decay**falls)
        if options.schedule == "cosine":
            factors = {"generator": 1.0, "student": half_cosine(epoch, options.epochs)}
        for name, optimiser in self.optimisers.items():
            for group, rate in zip(optimiser.param_groups, self.rates[name], strict=True):
                group["lr"] = rate * factors[name]

    def _measure(self, epoch: int) -> dict[str, Any]:
        """Agreement and classes on the held-out mini-batch of generated images."""
        z, labels = self.method.draw(self.options.batch, generator("kept apart", self.options.seed))
        with torch.no_grad():  # by a copy, because a pass in training mode moves the running statistics
            images = copy.deepcopy(self.method.generator)(z, labels)
        images = images.contiguous(memory_format=torch.channels_last)
        classes = predict(self.teacher, images).argmax(1)
        adversarial = self._craft(images, classes, generator("attack on those", self.options.seed, epoch))
        logits = [predict(self.student, x) for x in (images, adversarial)]
        if not all(bool(z.isfinite().all()) for z in logits):
            raise Diverged(f"an output is not finite after epoch {epoch + 1}")
        clean, robust = (z.argmax(1) for z in logits)
        return {
            "clean_agreement": 100 * float((clean == classes).float().mean()),
            "robust_agreement": 100 * float((robust == classes).float().mean()),
            "teacher_classes": len(classes.unique()),
            "student_classes": len(clean.unique()),
        }

    @torch.no_grad()
    def draw_set(self) -> tuple[np.ndarray, np.ndarray]:
        """`kept_images` images (N,H,W,C) float32 in [0,1] of the generator as it is, and the teacher's labels (N,).

        The generator is in training mode, as for the student; its running statistics stay as they are.
        """
        drawing, n = copy.deepcopy(self.method.generator), self.options.kept_images
        parts, labels = [], []
        for index in range(-(-n // self.options.batch)):  # whole mini-batches, for BatchNorm and branches of classes
            z, wanted = self.method.draw(self.options.batch, generator("kept images", self.options.seed, index))
            images = drawing(z, wanted).contiguous(memory_format=torch.channels_last)
            labels.append(predict(self.teacher, images).argmax(1).cpu())
            parts.append(images.permute(0, 2, 3, 1).cpu())
        return torch.cat(parts)[:n].contiguous().numpy(), torch.cat(labels)[:n].numpy()

    def state(self) -> dict[str, Any]:
        """Student, generator, what the method remembers, optimisers and number of updates."""
        return {
            "updates": self.updates,
            "student": self.student.state_dict(),
            "generator": self.method.generator.state_dict(),
            "method": self.method.state,
            "optimisers": {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()},
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        self.student.load_state_dict(state["student"])
        self.method.generator.load_state_dict(state["generator"])
        self.method.state = state["method"]
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state["optimisers"][name])
        self.updates = state["updates"]
