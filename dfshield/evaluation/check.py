"""The checks stage: ask a model and its ledgers whether the evaluation can be believed, and write the record."""

import contextlib
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dfshield import __version__
from dfshield.attacks.base import frozen
from dfshield.core.device import select_device
from dfshield.core.errors import InputError
from dfshield.core.files import existing_file
from dfshield.core.progress import log, progress
from dfshield.core.rng import seeded
from dfshield.core.signals import stop_if_asked
from dfshield.core.threat import parse_threat
from dfshield.defences.fit_file import fit_for
from dfshield.evaluation.attack import FIT, NO_DEFENCE, defended, evaluation_images, fit_hash, seen_data
from dfshield.evaluation.checks.case import Case
from dfshield.evaluation.findings import Finding, Findings, write_findings
from dfshield.evaluation.ledger import Ledger, read_ledger
from dfshield.evaluation.needs import load_other
from dfshield.models.folding import fold
from dfshield.options import AttackOptions, ChecksOptions, DefendOptions
from dfshield.registry import CHECKS

SURROGATE = "surrogate"
"""The other model that the transfer check uses."""


def run(
    model_path: Path,
    out: Path,
    options: ChecksOptions,
    ledgers: Sequence[Path] | None = None,
    dataset: str | None = None,
    data_dir: Path | None = None,
    evaluation_npz: Path | None = None,
    factory: str | None = None,
    subject: dict[str, Any] | None = None,
    defence: DefendOptions | None = None,
    others: Mapping[str, Path] | None = None,
    history: Path | None = None,
    code: str = "",
    fitted: Path | None = None,
) -> Findings:
    """Check the checkpoint `model_path` and its `ledgers`; write the record `out`.

    Images, `factory`, `subject`, `defence`, `fitted` and `code` are as in the attack stage; `others` may hold a
    ``surrogate``. `history` is the CSV that the model's training wrote. Raises InputError for files that cannot be used
    or are not of this model.
    """
    from dfshield.models.checkpoints import load_checkpoint
    from dfshield.models.standins import arranged

    if unknown := set(others or {}) - {SURROGATE}:
        raise InputError(f"the checks make no use of another model as {', '.join(sorted(unknown))}; give a {SURROGATE}")
    device = select_device(options.device, options.threads)
    model, card = load_checkpoint(model_path, device, factory)
    arranged(model)
    loaded = {name: load_other(path, card, device, factory) for name, path in (others or {}).items()}
    asked = AttackOptions(limit=options.limit, split=options.split, threat=options.threat)
    images = evaluation_images(card, asked, dataset, data_dir, evaluation_npz)
    defence = defence.model_copy(update={"seed": options.seed}) if defence else None
    fit = fit_for(defence, fitted, card.tensors_sha256)
    read = {path: read_ledger(path) for path in ledgers or ()}
    behind = defence.defence if defence else NO_DEFENCE
    for path, ledger in read.items():
        own = {"model": card.tensors_sha256, "defence": behind, "fit of the defence": fit_hash(fit).get(FIT)}
        _check_ledger(path, ledger, own, options, images.y.numpy())
    judged, victim = defended(model, defence, asked, fit)
    surrogate = loaded[SURROGATE][0] if loaded else None
    findings = []
    with contextlib.ExitStack() as stack:
        for network in (model, *(other for other, _ in loaded.values())):
            stack.enter_context(frozen(network))
        x, y = images.x.to(device).contiguous(), images.y.to(device)
        crafted = fold(judged if victim is None else victim)
        epochs = read_history(history) if history else ()
        case = Case(judged, crafted, x, y, options, list(read.values()), surrogate, epochs)
        with progress(len(CHECKS), "checks", "check") as bar:
            for name, entry in CHECKS.items():
                bar.set_postfix_str(name, refresh=False)
                with seeded(options.seed, device):
                    findings.append(Finding(name, *entry.load()(case)))
                bar.update()
                stop_if_asked("check", int(bar.n), len(CHECKS), kept=False)
    record = Findings(
        dataset=dataset or card.dataset,
        model=card.model,
        subject=subject or {},
        defence=behind,
        defence_options=defence.described() if defence else {},
        threat=options.threat,
        n=len(images),
        findings=tuple(findings),
        options=options.described(device),
        seed=options.seed,
        model_sha256=card.tensors_sha256,
        data_sha256=images.sha256(),
        ledgers={ledger.protocol: ledger.content_sha256 for ledger in read.values()},
        others={name: sha256 for name, (_, sha256) in loaded.items()} | fit_hash(fit),
        real_data=seen_data(card.real_data, defence, fit),
        package_version=__version__,
        code=code,
    )
    write_findings(out, record)
    for finding in findings:
        if finding.verdict == "failed":
            log(f"{out}: check {finding.check} failed: {finding.text}")
    return record


def _check_ledger(path: Path, ledger: Ledger, own: dict[str, Any], options: ChecksOptions, labels: np.ndarray) -> None:
    """Raise InputError for a ledger of another model, defence or fit, `own` by name, threat model or other images."""
    found = {
        "model": ledger.model_sha256,
        "defence": ledger.defence,
        "fit of the defence": ledger.others.get(FIT),
        "threat": parse_threat(ledger.threat),
    }
    own = own | {"threat": parse_threat(options.threat)}
    n = min(ledger.n, len(labels))
    for what, value in own.items():
        if found[what] != value:
            raise InputError(f"{path}: is the ledger of another {what} than the one that is checked; attack again")
    if not np.array_equal(ledger.label[:n], labels[:n]):
        raise InputError(f"{path}: is the ledger of other images than the checks'; attack again, or give its data set")


def read_history(path: Path) -> list[dict[str, float]]:
    """Rows of a training's metrics, by column; raises InputError for a file that is none."""
    existing_file(path, "CSV of metrics", "train with --metrics")
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            return [{name: float(text or "nan") for name, text in row.items()} for row in csv.DictReader(stream)]
    except (UnicodeDecodeError, csv.Error, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: cannot be read as a CSV of metrics ({error}); train again") from None
