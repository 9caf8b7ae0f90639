"""Say what a training set, ledger, record, checkpoint or fit of a defence holds; draw a contact sheet of its images."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dfshield.core.errors import InputError
from dfshield.core.files import existing_file
from dfshield.core.sealed import Kind
from dfshield.core.threat import parse_threat
from dfshield.defences.fit_file import FitCard, check_fit_file, is_fit
from dfshield.evaluation import certificates, detections, distances, findings, landscapes, record
from dfshield.evaluation import ledger as ledgers
from dfshield.evaluation.ledger import Ledger
from dfshield.evaluation.record import Record
from dfshield.models.card import Card, read_card
from dfshield.registry import DIVERSITY_METRICS, metric
from dfshield.report.rows import flags_of
from dfshield.report.sheet import as_bytes, first_of_classes, write_sheet
from dfshield.sources import trainset as shards


def run(file: Path, sheet: Path | None) -> None:
    """Print what `file` is and holds; with `sheet`, also write a contact sheet (PNG) there.

    The sheet shows up to ten images per class: the images of a training set, the perturbations of a ledger (grey is
    zero, black and white are ∓ε). Raises InputError for a file that is damaged or of no kind known here.
    """
    existing_file(file, "file to inspect", "correct the path")
    kind, lines, draw = _look(file)
    print(f"{file}: {kind}")
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        print(f"  {name:<{width}}  {value}")
    if sheet is None:
        return
    if draw is None:
        raise InputError(f"{file}: has no images to draw; leave --sheet out")
    images, labels = draw
    write_sheet(sheet, images, labels)
    print(f"{sheet}: {len(labels)} images")


Lines = list[tuple[str, Any]]
Drawing = tuple[np.ndarray, np.ndarray]


def _look(file: Path) -> tuple[str, Lines, Drawing | None]:
    if h5py.is_hdf5(file):
        found = _hdf5_format(file)
        if found == ledgers.FORMAT:
            ledger = ledgers.read_ledger(file)
            return "evaluation ledger", describe_ledger(ledger), draw_ledger(ledger)
        if found == shards.FORMAT:
            return describe_trainset(file)
        raise InputError(f"{file}: HDF5, but neither a training set nor a ledger of dfshield (its format is {found!r})")
    if file.suffix == ".json":
        start = file.read_text(encoding="utf-8", errors="replace")[:200]
        kind, describe = next((own for own in RECORDS if own[0].format in start), RECORDS[0])
        return kind.name, describe(file), None
    if is_fit(file):
        return "fitted defence", describe_fit(check_fit_file(file)), None
    return "checkpoint", describe_checkpoint(read_card(file)), None


def _hdf5_format(file: Path) -> object:
    try:
        with h5py.File(file, "r", locking=False) as opened:
            return opened.attrs.get("format")
    except OSError as error:
        raise InputError(
            f"{file}: truncated or damaged ({' '.join(str(error).split())[:120]}); make it again"
        ) from None


def _options(options: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(options.items()))


def _range(values: np.ndarray) -> str:
    return f"{values.min():.4g} to {values.max():.4g}, mean {values.mean():.4g}"


def _counts(counts: Iterable[Any]) -> str:
    return " ".join(str(count) for count in counts)


def describe_fit(card: FitCard) -> Lines:
    """Description of what the fit of a defence has kept."""
    return [
        ("defence", f"{card.defence}, options {_options(card.options) or 'none'}"),
        ("fitted on", f"{card.source}, real data: {card.real_data}, content SHA-256 {card.data_sha256}"),
        ("fitted for", card.threat),
        ("model", card.model_sha256),
        ("hardened from", card.teacher_sha256),
        ("seed", card.seed),
        ("tensors SHA-256", card.tensors_sha256),
    ]


def describe_trainset(file: Path) -> tuple[str, Lines, Drawing]:
    """Kind, description and images to draw of a training set, verified against its hash."""
    content = shards.verify(file)
    header = shards.header(file)
    first, last, groups = header["first_group"], header["last_group"], header["groups"]
    whole = (first, last) == (0, groups - 1)
    with shards.opened(file) as opened:
        images, labels = opened["images"], opened["labels"][()]
        lines: Lines = [
            ("complete", f"yes, groups {first} to {last} of {groups}" + ("" if whole else " (one shard: merge it)")),
            ("data set, model", f"{header['dataset']}, {header['model']}"),
            ("source", f"{header['source']}, real data: {header['real_data']}"),
            ("images", f"{images.shape[0]} of {'×'.join(map(str, images.shape[1:]))} (H×W×C), {images.dtype}"),
            ("per class", _counts(np.bincount(labels, minlength=int(header["classes"])))),
            ("batches", len(np.unique(opened["batch"][()]))),
        ]
        for group, title in (("coefficients", "coefficient"), ("final_loss", "final loss")):
            for term in opened.get(group, {}):
                lines.append((f"{title} {term}", _range(opened[group][term][()])))
        chosen = first_of_classes(labels)
        drawn = images[chosen]
    lines += [
        ("options", _options(header["options"])),
        ("seed", header["seed"]),
        ("teacher", header["teacher_sha256"]),
        *(("guide", sha) for sha in json.loads(header.get("guides", "[]"))),
        ("content", f"{content} (checked)"),
    ]
    return "training set" if whole else "shard", lines, (as_bytes(drawn), labels[chosen])


def describe_ledger(ledger: Ledger) -> Lines:
    """What a ledger says: accuracies with intervals, what broke the images, flags, hashes."""
    clean = int(np.count_nonzero(ledger.clean_prediction == ledger.label))
    robust = int(np.count_nonzero(~ledger.broken))
    counts = np.bincount(ledger.component, minlength=len(ledger.components))
    lines: Lines = [
        ("complete", "yes"),
        ("data set, model", f"{ledger.dataset}, {ledger.model} (real data: {ledger.real_data})"),
        ("protocol", f"{ledger.protocol} at {ledger.threat}, seed {ledger.seed}"),
        ("images", ledger.n),
        ("per class", _counts(ledger.labels)),
        ("clean accuracy", _accuracy(clean, ledger.n)),
        ("robust accuracy", _accuracy(robust, ledger.n)),
        ("majority class", f"{ledger.majority:.2f} %"),
        ("under attack", f"balanced accuracy {ledger.balanced_accuracy:.2f} %, macro F1 {ledger.macro_f1:.2f} %"),
    ]
    lines += [
        (f"by {name}", f"{n} images, {100 * n / ledger.n:.2f} %")
        for name, n in zip(ledger.components, counts, strict=True)
    ]
    if len(ledger.distances):
        low, high = distances.median_interval(ledger.distances)
        middle, end = distances.median(ledger.distances), distances.largest(ledger.distances)
        lines.append(
            ("distances", f"median {middle:.4f}, 95 % interval {low:.4f} to {high:.4f}; nothing survives at {end:.4f}")
        )
    return [
        *lines,
        ("margin", _range(ledger.margin)),
        ("flags", ", ".join(flags_of(ledger)) or "none"),
        ("options", _options(ledger.options)),
        ("subject", _options(ledger.subject) or "none"),
        ("model", ledger.model_sha256),
        ("data", ledger.data_sha256),
        ("content", f"{ledger.content_sha256} (checked)"),
    ]


def describe_record(own: Record) -> Lines:
    """What a record of diversity metrics says."""
    figures = [
        (name, f"{own.values[name]:.{metric(name).decimals}f} {metric(name).unit}") for name in DIVERSITY_METRICS
    ]
    return [
        ("data set, model", f"{own.dataset}, {own.model}"),
        ("source", f"{own.source}, seed {own.seed} (real data: {own.real_data})"),
        ("images", f"{own.n_synthetic} of the source, {own.n_real} of the real {own.split} split"),
        *((name, text.removesuffix(" 1")) for name, text in figures),
        ("options", _options(own.options)),
        ("teacher", own.teacher_sha256),
        ("training set", own.data_sha256),
        ("real data", own.real_sha256),
        ("content", f"{own.content_sha256} (checked)"),
    ]


def describe_findings(found: findings.Findings) -> Lines:
    """What a record of robustness checks says."""
    return [
        ("data set, model", f"{found.dataset}, {found.model}"),
        ("defence, threat", f"{found.defence}, {found.threat}"),
        ("images", str(found.n)),
        *((finding.check, f"{finding.verdict}: {finding.text}") for finding in found.findings),
        ("options", _options(found.options)),
        ("model", found.model_sha256),
        *((f"ledger {name}", content) for name, content in found.ledgers.items()),
        ("content", f"{found.content_sha256} (checked)"),
    ]


def describe_certificates(found: certificates.CertificateRecord) -> Lines:
    """What a record of certificates says."""
    curve = ((f"within {point['radius']:g}", f"{100 * point['certified_accuracy']:.2f} %") for point in found.curve)
    return [
        ("data set, model", f"{found.dataset}, {found.model} (real data: {found.real_data})"),
        ("certified", f"radii in {found.norm}, {found.protocol}, seed {found.seed}"),
        ("images", f"{found.n}, nothing is certified of {100 * found.abstained:.2f} %"),
        *curve,
        ("options", _options(found.options)),
        ("model", found.model_sha256),
        ("data", found.data_sha256),
        ("content", f"{found.content_sha256} (checked)"),
    ]


def describe_detection(found: detections.DetectionRecord) -> Lines:
    """What a record of a detector's evaluation says."""
    alarms = f"{100 * found.false_alarms:.2f} % of the images, {100 * found.false_alarms_wanted:.2f} % wanted"
    return [
        ("data set, model", f"{found.dataset}, {found.model} (real data: {found.real_data})"),
        ("detector, threat", f"{found.options['detector']}, {found.options['threat']}, seed {found.seed}"),
        ("images", f"{found.n}, classified rightly {found.right}"),
        ("threshold", f"{found.threshold:.4g}"),
        ("false alarms", alarms),
        ("static attack", _detected(found.static)),
        ("adaptive attack", _detected(found.adaptive)),
        ("options", _options(found.options)),
        ("model", found.model_sha256),
        ("training set", found.training_sha256),
        ("data", found.data_sha256),
        ("content", f"{found.content_sha256} (checked)"),
    ]


def describe_landscape(found: landscapes.LandscapeRecord) -> Lines:
    """What a record of a loss landscape says."""
    reach, points = found.coordinates[-1], len(found.coordinates)
    heights = [loss for row in found.surface for loss in row]
    return [
        ("data set, model", f"{found.dataset}, {found.model} (real data: {found.real_data})"),
        ("threat", f"{found.options['threat']}, seed {found.seed}"),
        ("images", f"{found.n}, {100 * found.accuracy:.2f} % classified rightly, as {found.predicted} classes"),
        ("loss", f"{found.centre:.4g} nat, {min(heights):.4g} to {max(heights):.4g} on the surface"),
        ("surface", f"{points}×{points} points, to ±{reach:g} norms of the filters"),
        ("sharpness", f"{found.sharpness:.4g} nat, {found.protocol}"),
        ("of the pairs", ", ".join(f"{rise:.4g}" for rise in found.rises)),
        ("options", _options(found.options)),
        ("model", found.model_sha256),
        ("data", found.data_sha256),
        ("content", f"{found.content_sha256} (checked)"),
    ]


def _detected(found: detections.Outcome) -> str:
    said = f"fools {100 * found.fooled:.2f} %, evades with {100 * found.evaded:.2f} %"
    if found.detected is None or found.auroc is None:
        return said
    return f"{said}; {100 * found.detected:.2f} % of what fools is flagged, area under the curve {found.auroc:.3f}"


RECORDS: tuple[tuple[Kind, Callable[[Path], Lines]], ...] = (
    (record.KIND, lambda file: describe_record(record.read_record(file))),
    (findings.KIND, lambda file: describe_findings(findings.read_findings(file))),
    (certificates.KIND, lambda file: describe_certificates(certificates.read_certificates(file))),
    (detections.KIND, lambda file: describe_detection(detections.read_detection(file))),
    (landscapes.KIND, lambda file: describe_landscape(landscapes.read_landscape(file))),
)
"""Kinds of JSON records, and what each says; a file of none is read as the first, which says what it lacks."""


def _accuracy(k: int, n: int) -> str:
    low, high = ledgers.confidence_interval(k, n)
    return f"{100 * k / n:.2f} % ({k} of {n}), 95 % interval {low:.2f} to {high:.2f}"


def draw_ledger(ledger: Ledger) -> Drawing | None:
    """Perturbations (M,H,W,C) uint8 around grey, with labels; None if no attack broke an image."""
    if not len(ledger.perturbed_index):
        return None
    labels = ledger.label[ledger.perturbed_index]
    chosen = first_of_classes(labels)
    delta = ledger.perturbation[chosen].astype(np.float32).transpose(0, 2, 3, 1)
    threat = parse_threat(ledger.threat)
    peak = threat.eps if threat.norm == "linf" else float(np.abs(delta).max())
    return np.rint(127.5 * (1 + np.clip(delta / max(peak, 1e-12), -1, 1))).astype(np.uint8), labels[chosen]


def describe_checkpoint(card: Card) -> Lines:
    """What a checkpoint's card says."""
    provenance = {key: value for key, value in card.provenance.items() if key != "options"}
    return [
        ("kind", f"{card.kind}, real data: {card.real_data}"),
        ("data set, model", f"{card.dataset}, {card.model}"),
        ("factory", f"{card.factory}({_options(card.arguments)})" if card.factory else "none (registered model)"),
        ("input", f"{'×'.join(map(str, card.input_shape))} (C×H×W), {card.classes} classes"),
        ("normalisation", f"mean {_counts(card.mean)}, std {_counts(card.std)}"),
        *sorted(provenance.items()),
        ("options", _options(card.provenance.get("options", {})) or "none"),
        ("tensors", f"{card.tensors_sha256} (checked)"),
    ]
