"""The train stage: adversarial fine-tuning of a copy of the teacher on a training set (Algorithm 1)."""

import shutil
from pathlib import Path

import dfshield
from dfshield.core.datafree import forbid_real_data
from dfshield.core.device import resolve_precision, select_device
from dfshield.core.files import metrics_csv, write_text
from dfshield.core.hashing import digest
from dfshield.core.progress import log
from dfshield.models.checkpoints import Card, load_checkpoint, save_checkpoint
from dfshield.options import TrainOptions
from dfshield.sources.trainset import check_fit, read
from dfshield.training.trainer import Trainer

NOT_IN_HASH = {"device", "threads"}
METRICS = ("epoch", "loss", "clean_agreement", "robust_agreement", "updates", "passed", "lr")


def run(
    teacher: Path,
    data: Path,
    out: Path,
    options: TrainOptions,
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
    options = resolve_precision(options, device)
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
    log(f"{out}: {trainer.updates} updates, tensors {sha[:16]}")
