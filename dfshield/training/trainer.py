"""One adversarial training run (Algorithm 1, lines 11 to 20)."""

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dfshield import registry
from dfshield.core.epochs import EpochLoop
from dfshield.core.errors import Diverged
from dfshield.core.rng import generator, seeded
from dfshield.core.schedules import half_cosine, warmed
from dfshield.models.classifier import Classifier, predict
from dfshield.models.ema import WeightEMA
from dfshield.models.folding import fold
from dfshield.models.stage_features import Staged, stage_layers
from dfshield.models.standins import arranged, generated
from dfshield.options import TrainOptions
from dfshield.sources.stored import Stored
from dfshield.sources.trainset import TrainSet
from dfshield.training.augment import augment
from dfshield.training.awp import frozen_buffers, perturbed
from dfshield.training.gradrefine import GradRefine
from dfshield.training.inner import SEARCHES, InnerAttack, Task
from dfshield.training.losses import Features, Outputs
from dfshield.training.reestimation import reestimate

CHUNK = 500
"""Images that the teacher answers at once."""


def _images(images: np.ndarray | Stored, used: int, device: torch.device) -> torch.Tensor | Stored:
    """The first `used` images of a set (N,H,W,C) as (N,C,H,W), on a device or read from their file when asked for."""
    if isinstance(images, Stored):
        return images.subset(slice(used)).to(device)
    return torch.from_numpy(images[:used]).permute(0, 3, 1, 2).to(device)


class Trainer(EpochLoop):
    """One adversarial training run; all randomness is keyed by seed, epoch and mini-batch."""

    def __init__(self, teacher: Classifier, data: TrainSet, options: TrainOptions) -> None:
        self.options, self.entry = options, registry.LOSSES[options.loss]
        self.batches = options.mini_batches(len(data.images))
        device = teacher.mean.device
        self.student = arranged(copy.deepcopy(teacher))
        self.student.requires_grad_(True)
        self.crafting = fold(self.student)
        self.teacher = fold(teacher) if options.varies and not options.reads_features else None
        used = options.used_images(len(data.images))
        images = _images(data.images, used, device)
        self.watched: tuple[Staged, Staged] | None = None
        """Student and teacher, where the loss reads features."""
        if options.reads_features:
            layers = stage_layers(teacher.eval(), images[:2])
            self.watched = Staged(self.student, layers), Staged(teacher, layers)
        self.forward: Callable[..., torch.Tensor] = self.watched[0] if self.watched else self.student
        if options.compile:
            if SEARCHES[options.searched].compiles:
                self.crafting.compile_for(options.batch)
            self.forward = generated(self.forward)
        labels = torch.from_numpy(data.labels[:used]).to(device)
        targets = torch.cat([predict(teacher, part) for part in images.split(CHUNK)])
        order = torch.randperm(len(images), generator=generator("holdout", options.seed))
        held, kept = order[: options.holdout].to(device), order[options.holdout :].to(device)
        self.images = images.subset(kept) if isinstance(images, Stored) else images[kept]
        self.labels, self.targets = labels[kept], targets[kept]
        self.held = (images[held], targets[held].argmax(1)) if len(held) else None
        self.held_targets = targets[held]
        if self.entry.labels == "teacher":
            self.labels = self.targets.argmax(1)
        self.loss = self.entry.load()
        self.parameters = list(self.student.parameters())
        self.reached: set[int] = set()
        """Numbers of the parameters that have had a gradient since the last update."""
        factor = options.aggregate if options.lr_factor == "B" else 1
        self.base_lr = options.lr * factor
        self.optimiser = torch.optim.SGD(
            self.parameters,
            lr=self.base_lr,
            momentum=options.momentum,
            nesterov=options.nesterov,
            weight_decay=options.weight_decay,
        )
        self.refiner = GradRefine(
            self.parameters, options.aggregate, options.tau, options.reduction, options.tie, options.sign_filter
        )
        self.average = WeightEMA(self.student, options.average) if options.average else None
        super().__init__(f"train {options.loss}", options.epochs, self.batches, device, "batch", options.seed)
        self.updates = 0
        self._begin(0)

    def _begin(self, epoch: int) -> None:
        """What depends on the epoch: learning rate, inner maximisation, weight perturbation."""
        options = self.options
        self._set_rate(epoch)
        self.inner = InnerAttack.of(options, epoch)
        self.awp = options.awp if epoch >= options.awp_warmup else 0.0

    def fit(self, checkpoint: Path | None = None) -> None:
        """Train all epochs, as `EpochLoop.fit`; the result is the average of the weights if there is one.

        With `reestimate`, its BatchNorm statistics are estimated anew, unless training diverged.
        """
        super().fit(checkpoint)
        if self.average:
            self.student.load_state_dict(self.average.state)
        if self.options.reestimate != "none" and not self.diverged:
            with seeded(generator("network", self.seed, "re-estimation").initial_seed(), self.device):
                reestimate(self.student, self._once())
        self.student.eval()

    def _once(self) -> Iterator[torch.Tensor]:
        """An epoch's number of mini-batches x̂, without variation; x̂' after each if `reestimate` is both."""
        options = self.options
        inner = InnerAttack.of(options, options.epochs - 1)  # a run that goes on behind its last epoch begins none
        order = torch.randperm(len(self.images), generator=generator("re-estimation", options.seed))
        for index, rows in enumerate(order.to(self.images.device).split(options.batch)[: self.batches]):
            x = self.images[rows].contiguous(memory_format=torch.channels_last)
            yield x
            if options.reestimate == "both":
                random = generator("re-estimation", options.seed, index)
                yield self._craft(x, self.labels[rows], random, self.targets[rows], inner)

    def describe(self, row: dict[str, Any]) -> str:
        """One epoch's metrics as a line for the person who watches."""
        held = ""
        if not math.isnan(row["clean_agreement"]):
            held = f", held-out agreement clean {row['clean_agreement']:.1f} % robust {row['robust_agreement']:.1f} %"
        return (
            f"epoch {row['epoch']}: loss {row['loss']:.4f}{held}, {row['updates']} updates, "
            f"{100 * row['passed']:.1f} % of parameters passed"
        )

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
            clean, robust = self.holdout_agreement(epoch)
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
        if self.options.varies:
            x = augment(x, self.options, random)
        x = x.contiguous(memory_format=torch.channels_last)
        features = None
        if self.watched:
            targets, features = self._taught(x)
        elif self.teacher:
            targets = predict(self.teacher, x)
        if self.options.mix != "none" or (self.options.varies and self.entry.labels == "teacher"):
            labels = targets.argmax(1)  # the data have no label of a mixed image
        adversarial = self._craft(x, labels, random, targets) if self.entry.crafts else None
        self.student.train(self.options.batchnorm == "train")
        given = (x, adversarial, targets, labels, features)
        if not self.awp:
            return self._outer(*given)
        with frozen_buffers(self.student):
            _, upwards = self._outer(*given)
        with perturbed(self.parameters, upwards, self.awp):
            return self._outer(*given)

    @torch.no_grad()
    def _taught(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The teacher's logits and stage features."""
        assert self.watched
        teacher = self.watched[1].eval()
        return teacher.parts(teacher(x).float())

    def _outer(
        self,
        x: torch.Tensor,
        adversarial: torch.Tensor | None,
        targets: torch.Tensor,
        labels: torch.Tensor,
        features: list[torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        seen = None
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.options.outer_precision == "bf16"):
            if adversarial is None:
                x = x.detach().requires_grad_()
                clean = self.student(x).float()  # generated code has no second derivatives
                loss = self.loss(Outputs(clean, clean, targets, labels, x), self.options)
            else:
                clean, robust = self.forward(x).float(), self.forward(adversarial).float()
                if self.watched and features is not None:
                    (clean, own), (robust, moved) = map(self.watched[0].parts, (clean, robust))
                    seen = Features(own, moved, features)
                loss = self.loss(Outputs(clean, robust, targets, labels, features=seen), self.options)
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        self.reached |= {number for number, gradient in enumerate(gradients) if gradient is not None}
        pairs = zip(gradients, self.parameters, strict=True)
        return loss.detach(), [torch.zeros_like(p) if gradient is None else gradient for gradient, p in pairs]

    def _craft(
        self,
        x: torch.Tensor,
        labels: torch.Tensor,
        random: torch.Generator,
        targets: torch.Tensor | None = None,
        inner: InnerAttack | None = None,
    ) -> torch.Tensor:
        self.crafting.refresh()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.options.precision == "bf16"):
            return (inner or self.inner).solve(Task(self.crafting, x, labels, targets, random))

    def _update(self) -> float | None:
        """One optimiser step with the refined gradients; returns the share that passed, None if there was no step."""
        count, mode = self.refiner.count, self.options.last_group
        short = count < self.options.aggregate
        gradients, share = self.refiner.refine(count if short and mode == "actual" else None)
        reached, self.reached = self.reached, set()
        if short and mode == "drop":
            return None
        for number, (parameter, gradient) in enumerate(zip(self.parameters, gradients, strict=True)):
            parameter.grad = gradient if number in reached else None  # no weight decay for what is not used
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

    def holdout_agreement(self, epoch: int) -> tuple[float, float]:
        """Percent of held-out images with the teacher's class, clean and under the full inner attack; NaN for none."""
        if self.held is None:
            return float("nan"), float("nan")
        x, classes = self.held
        self.student.eval()
        random = generator("held-out", self.options.seed, epoch)
        adversarial = self._craft(x, classes, random, self.held_targets, InnerAttack.full(self.options))
        shares = [float((predict(self.student, part).argmax(1) == classes).float().mean()) for part in (x, adversarial)]
        return 100 * shares[0], 100 * shares[1]

    def state(self) -> dict[str, Any]:
        """Student, optimiser, average and number of updates."""
        return {
            "updates": self.updates,
            "student": self.student.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": self.average.state if self.average else None,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        self.student.load_state_dict(state["student"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.average:
            self.average.state = state["average"]
        self.updates = state["updates"]
