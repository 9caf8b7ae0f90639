"""What a user gets: the hardened model, its report and a model card whose every figure is read from ledgers."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfshield.core.errors import InputError
from dfshield.core.files import atomic, write_text
from dfshield.core.hashing import sha256_file
from dfshield.defences.fit_file import FitCard, check_fit_file
from dfshield.evaluation.findings import Findings, read_findings
from dfshield.models.card import GIVEN, Card, read_card
from dfshield.planning.cells import Cell
from dfshield.planning.frozen import own
from dfshield.planning.paths import NONE
from dfshield.registry import metric
from dfshield.report import assurance, card_json
from dfshield.report.broken import Tally, tallies
from dfshield.report.card_pictures import draw, shown
from dfshield.report.checklist import card_section
from dfshield.report.content import card_files, hardened_place, mixed_places
from dfshield.report.form import ONNX_FILE, form_section, write_form
from dfshield.report.items import symbols
from dfshield.report.markdown import raised
from dfshield.report.metadata import front_matter
from dfshield.report.notes import notes
from dfshield.report.origin import check
from dfshield.report.rows import Row, csv_of
from dfshield.report.table import build
from dfshield.sources.trainset import header

if TYPE_CHECKING:
    from dfshield.planning.plan import Plan

MODEL, REPORT, JSON, CARD = "model.safetensors", "report.csv", "report.json", "MODEL_CARD.md"
MIXTURE = "defence.safetensors"


def run(plan: "Plan", name: str, student: Path, out: Path) -> None:
    """Write the folder `out` of the entry `name` under harden:.

    It has ``model.safetensors``, ``report.csv``, ``report.json``, ``MODEL_CARD.md`` and the pictures that the card
    shows, each a PNG, those of figures SVG, too. With ``keep_accuracy`` also ``defence.safetensors``, which mixes the
    model with the original one. Figures come from the ledgers of the entry's evaluation, if it has one. Raises
    InputError if the training diverged, if student, data and ledgers do not belong together or to the config, and for a
    folder of another run.
    """
    card = read_card(student)
    if card.provenance.get("diverged"):
        raise InputError(
            f"{student}: its training diverged ({card.provenance['diverged']}); "
            f"lower lr in the training options of {name!r}"
        )
    own(out, plan.config.name, write=False)
    cells = plan.harden_cells(name)
    rows = build(cells)
    _check_ledgers(plan, name, card)
    mixed = mixed_places(plan, name)
    check(plan, cells, [hardened_place(plan, name)], mixed)
    files = card_files(plan, name)
    data, mixture = Path(files["data"]), Path(files["mixture"]) if mixed else None
    if data.is_file() and header(data)["content_sha256"] != card.provenance.get("data_sha256"):
        raise InputError(f"{student}: was trained on other data than {data}; train it again")
    evidence = Evidence.of(card, rows, data, cells, mixture)
    own(out, plan.config.name)
    for file, source in ((MODEL, student), (MIXTURE, mixture)):
        if source is not None:
            with atomic(out / file) as temporary:
                shutil.copyfile(source, temporary)
    write_form(card, student, out)
    draw(out, rows, evidence.broken, data, evidence.synthesis)
    for file, text in texts(name, evidence, out).items():
        write_text(out / file, text)


def _check_ledgers(plan: "Plan", name: str, card: Card) -> None:
    from dfshield.evaluation.ledger import read_ledger

    teacher = card.provenance.get("teacher_sha256")
    for cell in plan.harden_cells(name):
        expected = teacher if cell.method == "Undefended" else card.tensors_sha256
        if read_ledger(Path(cell.ledger)).model_sha256 != expected:
            raise InputError(f"{cell.ledger}: is the ledger of another model than this one; attack again")


@dataclass(frozen=True)
class Evidence:
    """What a card is written from."""

    card: Card
    """of the hardened model"""
    rows: Sequence[Row] = ()
    """its figures"""
    synthesis: Mapping[str, Any] | None = None
    """header of the training set, if it is still there"""
    broken: Sequence[Tally] = ()
    """what broke the test images"""
    checks: Sequence[tuple[str, Findings]] = ()
    """the robustness checks of each model that the figures are of, by method"""
    mixture: FitCard | None = None
    """of the mixture with the original model, if there is one"""

    @classmethod
    def of(
        cls, card: Card, rows: Sequence[Row], data: Path, cells: Iterable[Cell] = (), mixture: Path | None = None
    ) -> "Evidence":
        """The evidence for a student with `card`, of the training set `data` and what `cells` are read from.

        Raises InputError for a file that is damaged, and for a `mixture` of another model.
        """
        cells = list(cells)
        records = {cell.checks: cell.method for cell in cells if cell.checks}
        checks = [(method, read_findings(Path(path))) for path, method in records.items()]
        fit = check_fit_file(mixture) if mixture else None
        if fit and fit.model_sha256 != card.tensors_sha256:
            raise InputError(f"{mixture}: is of another model than this one; fit it again")
        return cls(card, rows, header(data) if data.is_file() else None, tallies(cells), checks, fit)


def texts(name: str, own: Evidence, folder: Path) -> dict[str, str]:
    """The text files of a hardened model by name; ``report.json`` has the hashes of the pictures in `folder`."""
    files = [path for p in shown(own.rows, own.synthesis) for path in sorted(folder.glob(f"{p.name}.???"))]
    pictures = {path.name: sha256_file(path) for path in files}
    given = (own.card, own.rows, own.broken, own.synthesis, own.checks, own.mixture, pictures)
    return {
        REPORT: csv_of(own.rows),
        JSON: card_json.text(name, *given),
        CARD: model_card(name, own, (folder / ONNX_FILE).is_file()),
    }


def model_card(name: str, own: Evidence, onnx: bool = False) -> str:
    """The card in Markdown; `onnx` says whether an ONNX graph lies beside it."""
    card, rows = own.card, own.rows
    sections = (
        front_matter(name, card, rows, own.broken).splitlines(),
        [f"# {name}, hardened against adversarial attack", ""],
        _what(card),
        _data_free(card),
        ["## Figures", "", *_figures(rows)],
        _pictures(own),
        card_section(own.checks) if rows else [],
        _load(card),
        form_section(card, onnx),
        _mixed(card, own.mixture) if own.mixture else [],
        _made(card, own.synthesis),
        assurance.section(rows, own.checks),
    )
    return "\n".join(line for section in sections for line in section).rstrip() + "\n"


def _what(card: Card) -> list[str]:
    built = f"factory `{card.factory}`" if card.factory else f"registered model `{card.model}`"
    built = "a network of the caller's" if card.factory == GIVEN else built
    threat = card.provenance.get("options", {}).get("threat", "unknown")
    return [
        f"An image classifier ({built}), input {'×'.join(map(str, card.input_shape))} (channels, height, width) with "
        f"pixels in [0,1], {card.classes} classes. It started as a trained classifier without any defence and was "
        f"fine-tuned adversarially against perturbations within `{threat}`. It keeps the architecture of the "
        "original and costs nothing extra at run time.",
        "",
    ]


def _data_free(card: Card) -> list[str]:
    if card.real_data == "none":
        source = "weights and batch-normalisation statistics"
        less = ""
        if card.provenance.get("without_statistics"):
            source = "answers"
            less = (
                " The original has no batch-normalisation statistics. So the images were made without the term that "
                "matches them (Eq 4), and less robustness is to be expected."
            )
        claim = (
            "Hardening read the original model and nothing else: its training images are synthetic, made from the "
            f"original model's own {source}. No real image was read before the evaluation.{less}"
        )
    else:
        claim = f"**This model is not data-free**: real images (`{card.real_data}`) went into its training."
    return [
        "## Data",
        "",
        claim,
        "",
        *_untrained(card),
        "This is not a claim of privacy. Synthetic images are made from what the original model remembers and may "
        "reveal information about its training data, as may the model itself (`dfshield privacy` compares them). "
        "Nor is it a certificate: the figures are upper bounds found by the attacks named, and hold for the given "
        "threat model and test images only.",
        "",
    ]


def _untrained(card: Card) -> list[str]:
    missing = card.provenance.get("classes_without_images")
    if not missing:
        return []
    return [f"**{missing} of {card.classes} classes had no training image**: only the others were hardened.", ""]


def _figures(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return ["Not evaluated: the config names no evaluation set.", ""]
    marks = notes(flag for row in rows for flag in row.flags)
    lines = [
        "| Model | Metric | Accuracy % | 95 % interval | n | Protocol |",
        "| --- | --- | ---: | --- | ---: | --- |",
    ]
    for row in rows:
        marked = raised(symbols(row.flags, marks))
        at = "" if row.metric == "clean" else f" at `{row.threat}`"
        title, interval = metric(row.metric).title, f"{row.ci_low:.1f} to {row.ci_high:.1f}"
        lines.append(
            f"| {row.method} | {title} | {row.value:.2f}{marked} | {interval} | {row.n} | {row.protocol}{at} |"
        )
    mixed = " Mixed is both together, behind the defence `mixture`." if any(r.defence != NONE for r in rows) else ""
    explained = (
        f"Undefended is the original model.{mixed} Always answering the majority class scores "
        f"{rows[0].majority:.2f} %; intervals are Wilson's. Every figure is read from a per-image ledger whose hash "
        f"stands in `{REPORT}`."
    )
    lines += ["", explained, ""]
    return lines + [line for mark, text in dict.fromkeys(marks.values()) for line in (f"{mark} {text}.", "")]


def _pictures(own: Evidence) -> list[str]:
    """The pictures with their captions, and why one is left out."""
    lines = []
    for picture in shown(own.rows, own.synthesis):
        lines += [f"![{picture.title}]({picture.file})", "", picture.caption, ""]
    if not own.rows:
        lines += ["There are no pictures of accuracy: the config names no evaluation set.", ""]
    if own.synthesis is None:
        lines += ["There is no picture of synthetic images: the training set is no longer there.", ""]
    elif own.synthesis["real_data"] != "none":
        lines += ["There is no picture of training images: the training set has real ones.", ""]
    return lines


def _load(card: Card) -> list[str]:
    if card.factory == GIVEN:
        names = "from dfshield import load", f'net = load("{MODEL}", network)  # network: the one that was given'
    elif card.factory:
        place, _, function = card.factory.rpartition(":")
        module = Path(place).stem if place.endswith(".py") else place
        arguments = ", ".join(f"{key}={value!r}" for key, value in card.arguments.items())
        names = f"from {module} import {function}", f"net = {function}({arguments}).float()"
    else:
        arguments = f'"{card.model}", {tuple(card.input_shape)}, {card.classes}'
        names = "from dfshield.models.checkpoints import build_network", f"net = build_network({arguments})"
    mean, std = (f"images.new_tensor({list(values)}).view(-1, 1, 1)" for values in (card.mean, card.std))
    shape = ", ".join(map(str, card.input_shape))
    filled = [
        "state = net.state_dict()",
        f'state.update(load_file("{MODEL}"))',
        "net.load_state_dict(state)",
        "net.eval()",  # last, as a network may compute something of its weights there
    ]
    given = card.factory == GIVEN
    code = [
        *([] if given else ["from safetensors.torch import load_file"]),
        *names,
        *([] if given else filled),
        f"logits = net((images - {mean}) / {std})  # images: (N, {shape}) in [0,1]",
    ]
    return ["## Use", "", "```python", *code, "```", ""]


def _mixed(card: Card, fit: FitCard) -> list[str]:
    factory = f", factory={card.factory!r}" if card.factory else ""
    loading = [
        "from dfshield.defences.fit_file import load_defended",
        f'model = load_defended("{MODEL}", "{MIXTURE}"{factory})',
    ]
    if card.factory == GIVEN:
        loading = [
            "from dfshield import load",
            'model = load(".", network, mixed=True)  # network: the one that was given',
        ]
    code = [
        *loading,
        "logits = model(images)  # images: (N, channels, height, width) in [0,1], not normalised",
    ]
    return [
        "## With the original's accuracy",
        "",
        f"`{MIXTURE}` holds the original model and four numbers, which mix its answers with those of this model "
        "(MixedNUTS, Bai et al. 2024): where this model is sure, it decides, elsewhere the original does. Both run for "
        f"every image. The numbers were fitted for `{fit.threat}` on the training images, source `{fit.source}` (real "
        f"data: {fit.real_data}). The mixture is one module, which can be traced and exported:",
        "",
        "```python",
        *code,
        "```",
        "",
    ]


def _made(card: Card, synthesis: Mapping[str, Any] | None) -> list[str]:
    source = card.provenance
    lines = [
        "## How it was made",
        "",
        f"- this model: tensors SHA-256 `{card.tensors_sha256}`",
        f"- original model: tensors SHA-256 `{source.get('teacher_sha256')}`",
        f"- training data: content SHA-256 `{source.get('data_sha256')}`, source `{source.get('source')}`",
        f"- recipe `{source.get('recipe')}`, seed {source.get('seed')}, {source.get('updates')} updates, "
        f"dfshield {source.get('package_version')}",
        "",
    ]
    tables = {"Training options": source.get("options", {}), "Synthesis options": (synthesis or {}).get("options", {})}
    for title, options in tables.items():
        if options:
            lines += [f"{title}: " + ", ".join(f"{key} `{value}`" for key, value in sorted(options.items())) + ".", ""]
    return lines
