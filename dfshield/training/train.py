"""The train stage: adversarial fine-tuning of a copy of the teacher on a training set (Algorithm 1)."""

from pathlib import Path

from dfshield.core.datafree import data_free
from dfshield.core.device import resolve_precision, select_device
from dfshield.core.files import metrics_csv, write_text
from dfshield.core.progress import log
from dfshield.core.state import forget, run_folder
from dfshield.models.card import student_card
from dfshield.models.checkpoints import load_checkpoint, save_checkpoint
from dfshield.models.probe import refuse_bf16
from dfshield.models.statistics import matched_layers
from dfshield.options import TrainOptions
from dfshield.sources.stored import read_for_training
from dfshield.sources.trainset import check_fit, say_missing
from dfshield.training.trainer import Trainer

METRICS = ("epoch", "loss", "clean_agreement", "robust_agreement", "updates", "passed", "lr")


@data_free("train")
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
    """Train a student on the training set `data` and write it to `out`; the last epoch (or `average`) is the result.

    `metrics` receives one CSV row per epoch: mean loss; on held-out images the agreement with the teacher's class,
    clean and under the inner attack, in percent; optimiser updates so far; the share of parameters that passed
    GradRefine. With `state`, the same call after a crash resumes after the last whole epoch, to the identical file.

    A run has *diverged* if a loss or a weight is not finite: it ends there, the student is that of the last whole epoch
    and its provenance says so. It is written all the same, as a result (the paper's †).
    """
    device = select_device(options.device, options.threads)
    options = resolve_precision(options, device)
    model, card = load_checkpoint(teacher, str(device), factory=factory)
    refuse_bf16(options, model, card, teacher)
    trainset = read_for_training(data)
    check_fit(trainset, card, teacher, data)
    trainer = Trainer(model, trainset, options)
    missing = say_missing(data, [trainer.labels.cpu().numpy()], card.classes)
    if trainer.entry.labels == "data":
        say_missing(f"{data}, by the teacher's answers", [trainer.targets.argmax(1).cpu().numpy()], card.classes)
    described = options.described(device)
    inputs = {"teacher_sha256": card.tensors_sha256, "data_sha256": trainset.attributes["content_sha256"]}
    kept = run_folder(state, "training", inputs, recipe, described, options.seed, code)
    trainer.fit(kept / "epoch.pt" if kept else None)
    history = metrics_csv(METRICS, trainer.history)
    student = student_card(
        card,
        real_data=trainset.attributes["real_data"],
        inputs=inputs,
        recipe=recipe,
        source=trainset.attributes["source"],
        options=described,
        seed=options.seed,
        updates=trainer.updates,
        diverged=trainer.diverged,
        metrics=history,
        code=code,
        missing=missing,
        statistics=bool(matched_layers(model.net)),
    )
    sha = save_checkpoint(out, trainer.student, student)
    if metrics:
        write_text(metrics, history)
    forget(kept)
    log(f"{out}: {trainer.updates} updates, tensors {sha[:16]}")
