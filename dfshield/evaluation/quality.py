"""What a defence leaves of an image: the images that the classifier sees beside the clean ones.

SSIM and PSNR compare pixels, LPIPS features of VGG16 (Adversarial defense based on distribution transfer, 2023, section
4.3). Attacked images are those of PGD on the bare network.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dfshield import __version__
from dfshield.attacks.base import Problem, frozen
from dfshield.attacks.pgd import pgd
from dfshield.core import sealed
from dfshield.core.device import select_device
from dfshield.core.errors import InputError
from dfshield.core.files import metrics_csv, write_text
from dfshield.core.hashing import sha256_file
from dfshield.core.progress import log, progress
from dfshield.core.psnr import psnr
from dfshield.core.rng import seeded
from dfshield.core.ssim import ssim
from dfshield.core.threat import parse_threat
from dfshield.defences.fit_file import fit_for
from dfshield.models.lpips import Lpips
from dfshield.options import AttackOptions, DefendOptions
from dfshield.options.attacks import Pgd
from dfshield.options.quality import QualityOptions

RECORD = sealed.Kind("dfshield-quality", 1, "record of image quality", "dfshield quality")
Measure = Callable[[Tensor, Tensor], Tensor]
"""Images (N,C,H,W) in [0,1], and others, to a value of each pair (N,)."""


def compared(
    model: nn.Module, judged: nn.Module, x: Tensor, y: Tensor, options: QualityOptions, measures: dict[str, Measure]
) -> list[dict[str, Any]]:
    """Means of the measures of what `judged` shows its classifier against clean images `x` (N,C,H,W) with labels `y`.

    One row for clean images as input and, with ``steps``, one for those that PGD on `model` has attacked. `judged` has
    a method ``seen`` from images to images of the same form. PSNR is averaged in decibel, infinite ones left out.
    """
    attack = Pgd(threat=options.threat, steps=max(1, options.steps), reference=True)
    inputs: dict[str, list[dict[str, Tensor]]] = {"clean": [], **({"attacked": []} if options.steps else {})}
    with frozen(model), frozen(judged), progress(len(x), "quality", "image") as bar:
        for number, start in enumerate(range(0, len(x), options.batch)):
            clean, labels = x[start : start + options.batch], y[start : start + options.batch]
            for name, rows in inputs.items():
                given = clean
                if name == "attacked":
                    random = torch.Generator().manual_seed(options.seed + number)
                    given = pgd(Problem(model, clean, labels, parse_threat(options.threat), random), attack)
                with torch.no_grad():
                    shown: Tensor = judged.seen(given)  # type: ignore[operator]
                rows.append({measure: function(shown, clean).cpu() for measure, function in measures.items()})
            bar.update(len(clean))
    return [
        {"input": name} | {measure: _mean(torch.cat([row[measure] for row in rows])) for measure in measures}
        for name, rows in inputs.items()
    ]


def _mean(values: Tensor) -> float | None:
    """The mean of the finite values; None without one."""
    finite = values[values.isfinite()].double()
    return float(finite.mean()) if len(finite) else None


def run(
    model_path: Path,
    out: Path,
    options: QualityOptions,
    defence: DefendOptions,
    fitted: Path | None = None,
    dataset: str | None = None,
    data_dir: Path | None = None,
    evaluation_npz: Path | None = None,
    factory: str | None = None,
) -> None:
    """Measure what `defence` before the checkpoint `model_path` leaves of images; write the CSV `out` and its record.

    The images are chosen as in the attack stage; `fitted` is the file of a defence that is fitted. The record, a JSON
    file of the same name, is sealed by its hash. Raises InputError for files that cannot be used and for a defence that
    shows its classifier no image.
    """
    from dfshield.evaluation.attack import defended, evaluation_images, fit_hash, seen_data
    from dfshield.models.checkpoints import load_checkpoint

    if out.suffix == ".json":
        raise InputError(f"{out}: is the name of the record; give the path of a CSV, beside which it goes")
    device = select_device(options.device, options.threads)
    model, card = load_checkpoint(model_path, device, factory)
    defence = defence.model_copy(update={"seed": options.seed})
    fit = fit_for(defence, fitted, card.tensors_sha256)
    judged = defended(model, defence, AttackOptions(), fit)[0]
    if not hasattr(judged, "seen"):
        raise InputError(f"--defence: {defence.defence} shows its classifier no image; give one that changes images")
    measures: dict[str, Measure] = {"ssim": ssim, "psnr": psnr}
    weights = {name: Path(getattr(options, name)) for name in ("vgg16", "lpips") if "lpips" in options.measures}
    if weights:
        measures["lpips"] = distance = Lpips(weights["vgg16"], weights["lpips"], device)
        distance.check(card.input_shape)
    asked = AttackOptions(limit=options.limit, split=options.split)
    images = evaluation_images(card, asked, dataset, data_dir, evaluation_npz)
    chosen: dict[str, Measure] = {name: measures[name] for name in options.measures}
    with seeded(options.seed, device):
        rows = compared(model, judged, images.x.to(device).contiguous(), images.y.to(device), options, chosen)
    body: dict[str, Any] = {
        "dataset": dataset or card.dataset,
        "model": card.model,
        "n": len(images.y),
        "rows": rows,
        "defence": defence.defence,
        "defence_options": defence.described(),
        "others": fit_hash(fit),
        "options": options.described(device),
        "weights": {name: sha256_file(path) for name, path in weights.items()},
        "seed": options.seed,
        "model_sha256": card.tensors_sha256,
        "data_sha256": images.sha256(),
        "real_data": seen_data(card.real_data, defence, fit),
        "package_version": __version__,
    }
    write_text(out, metrics_csv(("input", *options.measures), rows))
    seal = sealed.write(out.with_suffix(".json"), RECORD, body)
    log(f"{out}: {len(images.y)} images behind {defence.defence}, record {seal[:16]}")
