"""`dfshield estimate`: time, GPU hours and disk of a config's tables, from measured throughput.

The arithmetic of every job is counted from its options; a benchmark report (``make bench``) says how much of it a
device does in a second. What depends on the outcome, how many images survive how long, is an assumption that the
command states.
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dfshield import registry
from dfshield.options import AttackOptions, CotrainingOptions, SynthesisOptions, TrainingOptions
from dfshield.plan import HARDEN, NONE, Plan
from dfshield.runtime import InputError

START_SECONDS = 4.0
"""Start of a job and its imports."""
GRADIENT = 2
"""Forward pass and gradient of the pixels, in forward passes; with the gradient of the weights it is 3."""
APGD, TARGETS, QUERIES = 100, 9, 5000
"""AutoAttack's iterations, targets and Square's queries."""
TRAIN_IMAGES = {"cifar10": 50_000, "cifar100": 50_000, "svhn": 73_257, "digits": 997}
TEST_IMAGES = {"cifar10": 10_000, "cifar100": 10_000, "svhn": 26_032, "digits": 500}


@dataclass
class Estimate:
    """What one kind of job takes."""

    jobs: int = 0
    seconds: float = 0.0
    bytes: float = 0.0


@dataclass
class Throughput:
    """Operations per second of one device, by stage, from a benchmark report."""

    path: Path
    device: str
    rates: dict[str, dict[str, float]] = field(default_factory=dict)
    evidence: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Throughput":
        """The report of `make bench`; InputError if there is none with the figures that are needed."""
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
            found = cls(path, entries[0]["device"], evidence=entries[0]["evidence"])
            for entry in entries:
                if entry["flops"]:
                    found.rates.setdefault(entry["stage"], {})[entry["model"]] = entry["flops"] / entry["seconds_ours"]
        except (OSError, ValueError, LookupError, TypeError, ZeroDivisionError) as error:
            raise InputError(
                f"{path}: no benchmark report ({error}); run `make bench` on the device in question"
            ) from None
        for stage in ("synthesis", "training"):
            if stage not in found.rates:
                raise InputError(f"{path}: has no figure of {stage}; run `make bench` with this stage")
        return found

    def rate(self, stage: str, model: str) -> float:
        """Of the model itself where it was measured, else of the one that was."""
        rates = self.rates[stage]
        return rates.get(model, next(iter(rates.values())))


def forward_flops(model: str, input_shape: tuple[int, int, int], classes: int, **own: Any) -> float:
    """Operations of one image's forward pass: two per multiplication of convolutions and linear layers."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from dfshield.models.factory import build_network

    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        build_network(model, input_shape, classes, **own).eval()(torch.zeros(1, *input_shape))
    return float(counter.get_total_flops())


def synthesis_passes(options: SynthesisOptions) -> float:
    """Forward passes of a whole surrogate set."""
    return GRADIENT * options.images * options.iterations


def training_passes(options: TrainingOptions, images: int) -> float:
    """Forward passes of a whole training run on `images` images."""
    outer = 2 * 3  # clean and adversarial, each with gradients of the weights
    return images * options.epochs * (1 + GRADIENT * options.attack_steps + outer)


def cotraining_passes(options: CotrainingOptions) -> float:
    """Forward passes of teacher and student in a whole co-training run; the generator's own arithmetic is left out."""
    student = 2 + GRADIENT * options.attack_steps + 3  # the teacher, the clean images, and the adversarial ones' step
    generator = 2 * GRADIENT  # through teacher and student
    return options.batch * options.iterations * options.epochs * (options.student_steps * student + generator)


def attack_passes(options: AttackOptions, images: int, robust: float) -> float:
    """Forward passes of an attack on `images` images of which the share `robust` survives everything."""
    if options.attack == "clean":
        return images
    if options.attack == "fgsm":
        return GRADIENT * images
    if options.attack == "pgd":
        return GRADIENT * images * options.steps * options.restarts
    per_survivor = GRADIENT * (APGD + TARGETS * APGD) + (GRADIENT + 1) * TARGETS * APGD + QUERIES
    return images * (GRADIENT * 10 + robust * per_survivor)


def estimate(plan: Plan, tables: list[str], throughput: Throughput, robust: float) -> dict[str, Estimate]:
    """What the jobs of `tables` take, by kind; files that tables share are made once."""
    config = plan.config
    found: dict[str, Estimate] = {kind: Estimate() for kind in ("synthesis", "training", "cotraining", "attack")}
    flops: dict[tuple[str, str], float] = {}
    done: Counter[tuple[Any, ...]] = Counter()

    def add(kind: str, key: tuple[Any, ...], passes: float, model: str, size: float) -> None:
        if not done[kind, *key]:
            stage = kind if kind in throughput.rates else "synthesis"
            seconds = START_SECONDS + passes * flops[key[0], model] / throughput.rate(stage, model)
            entry = found[kind]
            found[kind] = Estimate(entry.jobs + 1, entry.seconds + seconds, entry.bytes + size)
        done[kind, *key] += 1

    for cell in {cell.ledger: cell for table in tables for cell in plan.cells(table)}.values():
        dataset, model, seed = cell.dataset, cell.model, cell.seed
        entry = registry.DATASETS[dataset]
        pixels = 4 * entry.input_shape[0] * entry.input_shape[1] * entry.input_shape[2]
        if (dataset, model) not in flops:
            flops[dataset, model] = forward_flops(model, entry.input_shape, entry.classes)
        _, _, _, _, source, recipe, threat, _, _, _, protocol, _ = cell.ledger.split("/")
        key = (dataset, model, source, seed)
        images = _count(TRAIN_IMAGES, dataset, "train")
        if source in config.sources and config.sources[source].kind == "synthetic":
            synthesis = plan.synthesis(dataset, model, source, seed)
            images = synthesis.images
            add("synthesis", key, synthesis_passes(synthesis), model, 2 * images * pixels)  # shards and merged file
        if recipe != NONE:
            training = plan.training(dataset, model, recipe, seed)
            together = isinstance(training, CotrainingOptions)
            passes = cotraining_passes(training) if together else training_passes(training, images)
            add("cotraining" if together else "training", (*key, recipe, threat), passes, model, 0)
        attack = plan.attack(dataset, model, protocol.partition("@")[0], seed)
        tested = attack.limit or _count(TEST_IMAGES, dataset, "test")
        size = tested * pixels / 2
        add("attack", (*key, recipe, protocol), attack_passes(attack, tested, robust), model, size)
    return found


def _count(known: dict[str, int], dataset: str, split: str) -> int:
    if dataset in known:
        return known[dataset]
    import medmnist

    return int(medmnist.INFO[dataset]["n_samples"][split])


def run(plan: Plan, tables: list[str], report: Path, workers: int, robust: float) -> str:
    """The estimate as text."""
    if plan.config.harden and not plan.config.datasets:
        raise InputError(f"estimates are of tables; this config has only models under {HARDEN}:")
    throughput = Throughput.read(report)
    found = estimate(plan, tables, throughput, robust)
    lines = [f"{'':11} {'jobs':>6} {'hours':>9} {'disk':>9}"]
    for kind, entry in found.items():
        lines.append(f"{kind:11} {entry.jobs:6d} {entry.seconds / 3600:9.2f} {entry.bytes / 1e9:6.2f} GB")
    total = sum(entry.seconds for entry in found.values()) / 3600
    unit = "GPU hours" if throughput.device == "cuda" else "hours of this machine"
    lines += [
        f"{total:.1f} {unit}; {total / workers:.1f} hours with {workers} such devices at once",
        f"From {report} ({throughput.evidence.get('hardware')}, {throughput.evidence.get('threads')} threads); "
        f"assumed: {100 * robust:.0f} % of images survive every attack. Teachers are not counted.",
    ]
    return "\n".join(lines)
