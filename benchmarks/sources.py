"""Which training sets make a classifier robust: one small training, the same for all, on as many images of each.

    python -m benchmarks.sources --teacher teacher.safetensors --threat linf:4/255 --images 2000 \\
        --evaluation test.npz --skip 5000 --real train.npz --out results/sources.csv

Every source of `benchmarks/sources.yaml` is made by the program's own stage, and timed. A student of each is trained by
the schedule there, and judged on real images: its accuracy without attack and under PGD-10, by image and by minute of
making. Beside these stand its agreement with the teacher on held-out images of its own source and on images of the
others, and how far the images are from real ones: by the statistics in BatchNorm layers, and by their spectrum.
"""

import argparse
import csv
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from benchmarks import reference
from dfshield.core.errors import InputError
from dfshield.core.files import atomic
from dfshield.core.progress import progress
from dfshield.core.threat import parse_threat
from dfshield.data.sets import load_npz
from dfshield.models.checkpoints import load_checkpoint, read_card
from dfshield.models.classifier import Classifier
from dfshield.sources import trainset
from dfshield.sources.objective import watched

REAL = "real"
DATA, STUDENT, METRICS = "data.h5", "student.safetensors", "metrics.csv"
GUIDES = "guides"
"""The key of a source whose class term students of earlier sources have a part in, by their names."""
FOREIGN = 200
"""Images of each other source on which agreement is measured."""
STATISTICS = 100
"""Images of a batch whose BatchNorm statistics are compared."""


@dataclass
class Result:
    """One student: a source at one seed."""

    source: str
    real_data: str
    """what real data its images are of; ``none`` for a data-free source"""
    seed: int
    images: int
    seconds_making: float
    """of the whole stage, start of the process included, with all that its guides took; 0 for real images"""
    seconds_training: float
    clean: float
    """percent of the real images that the student classifies rightly"""
    robust: float
    """the same under PGD-10"""
    robust_per_minute: float
    """points of `robust` by minute of making; nan for real images"""
    agreement: float
    """percent of held-out images of its source that the student classifies as the teacher does, last epoch"""
    robust_agreement: float
    """the same under the training's attack"""
    foreign_agreement: float
    """percent of images of the other sources, mean over them"""
    statistics_distance: float
    """from the running statistics, as Eq 4 has it, mean over batches of `STATISTICS` images"""
    spectrum: float
    """slope of the logarithm of the radial power over that of the frequency; natural images have some -2"""


def _words(options: Mapping[str, Any]) -> list[str]:
    """Options of a stage as words of its command line."""
    words = []
    for name, value in options.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", str(value)]
    return words


def _stage(stage: str, words: list[str]) -> float:
    """Run a stage of the program; returns its seconds."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "dfshield", stage, *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise InputError(f"{stage}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return time.perf_counter() - start


def slope(images: Tensor) -> float:
    """Slope of log radial power over log frequency of `images` (N,C,H,W), without the lowest and above Nyquist's."""
    side = min(images.shape[2:])
    grey = images.mean(dim=1)[:, :side, :side]
    power = torch.fft.fft2(grey - grey.mean(dim=(1, 2), keepdim=True)).abs().square().mean(dim=0)
    frequency = torch.fft.fftfreq(side) * side
    radius = (frequency[:, None].square() + frequency[None].square()).sqrt().round().long()
    radii = torch.arange(1, side // 2 + 1)
    radial = torch.stack([power[radius == r].mean() for r in radii]).clamp_min(1e-12).log().numpy()
    return float(np.polyfit(radii.log().numpy(), radial, 1)[0])


@torch.no_grad()
def statistics_distance(model: Classifier, images: Tensor) -> float:
    """Mean of Eq 4 over batches of `STATISTICS` of `images` (N,C,H,W)."""
    watching = watched(model, (images.shape[1], images.shape[2], images.shape[3]))
    try:
        found = []
        for batch in images.split(STATISTICS):
            model(batch)
            found.append(float(watching.feature_loss()))
    finally:
        watching.remove()
    return statistics.fmean(found)


@torch.no_grad()
def classes(model: Classifier, images: Tensor) -> Tensor:
    """Classes (N,) of images (N,C,H,W)."""
    return torch.cat([model(part).argmax(dim=1) for part in images.split(250)])


class Yardstick:
    """All sources at all seeds, in a folder of their own."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.card = read_card(arguments.teacher)
        self.teacher, _ = load_checkpoint(arguments.teacher, torch.device("cpu"), arguments.factory)
        chosen = yaml.safe_load(arguments.config.read_text(encoding="utf-8"))
        self.sources: dict[str, dict[str, Any]] = {REAL: {}} if arguments.real else {}
        self.sources |= {name: dict(options) for name, options in chosen["sources"].items()}
        names = list(self.sources)
        for name, options in self.sources.items():
            if late := set(options.get(GUIDES, ())) - set(names[: names.index(name)]):
                raise InputError(f"{arguments.config}: {name}: no earlier source {', '.join(sorted(late))} for a guide")
        if unknown := set(arguments.only or ()) - self.sources.keys():
            raise InputError(f"--only: no source {', '.join(sorted(unknown))}; there are {', '.join(self.sources)}")
        if arguments.only:
            self.sources = {name: self.sources[name] for name in names if name in self._with_guides(arguments.only)}
        self.schedule = dict(chosen["train"])
        self.kind = self.card.input_shape, self.card.classes
        test = load_npz(arguments.evaluation, *self.kind, limit=arguments.skip + arguments.count)
        self.x, self.y = test.x[arguments.skip :], test.y[arguments.skip :]
        if not len(self.y):
            raise InputError(f"{arguments.evaluation}: has no images after the first {arguments.skip}")
        torch.set_num_threads(arguments.threads)
        self.threads = ["--threads", str(arguments.threads)]
        self.common = ["--factory", arguments.factory] if arguments.factory else []

    def run(self) -> list[Result]:
        """One result a source and seed."""
        found = []
        with progress(2 * len(self.sources) * len(self.arguments.seeds), "sources", "step") as bar:
            for seed in self.arguments.seeds:
                making: dict[str, float] = {}
                training: dict[str, float] = {}
                for name, options in self.sources.items():
                    bar.set_postfix_str(f"making {name}, seed {seed}", refresh=True)
                    making[name] = self._make(name, seed)
                    making[name] += sum(making[guide] + training[guide] for guide in options.get(GUIDES, ()))
                    bar.update()
                    bar.set_postfix_str(f"training on {name}, seed {seed}", refresh=True)
                    training[name] = self._train(name, seed)
                    bar.update()
                shown = {name: self._images(self._path(name, seed)) for name in self.sources}
                found += [self._judge(name, seed, making[name], training[name], shown) for name in self.sources]
        return found

    def _with_guides(self, names: Sequence[str]) -> set[str]:
        """Sources and those that guide them."""
        return {*names} | {own for name in names for own in self._with_guides(self.sources[name].get(GUIDES, ()))}

    def _path(self, name: str, seed: int, file: str = DATA) -> Path:
        return Path(self.arguments.folder) / f"{name}-{seed}" / file

    def _make(self, name: str, seed: int) -> float:
        """Make a training set; returns the seconds that it took."""
        out = self._path(name, seed)
        out.parent.mkdir(parents=True, exist_ok=True)
        options = dict(self.sources[name])
        if not options:
            real = load_npz(self.arguments.real, *self.kind, limit=self.arguments.images)
            header = trainset.trainset_header(self.card, source=REAL, real_data="train", options={}, seed=seed)
            trainset.write_whole(out, header, real.x.permute(0, 2, 3, 1).numpy(), real.y.numpy())
            return 0.0
        stage = options.pop("stage")
        guides = [str(self._path(guide, seed, STUDENT)) for guide in options.pop(GUIDES, ())]
        own = self.common if stage != "public" else []
        images = ["--images", str(self.arguments.images), "--seed", str(seed), *self.threads]
        words = ["--teacher", str(self.arguments.teacher), "--out", str(out), *own, *images, *_words(options)]
        return _stage(stage, [*words, *(word for guide in guides for word in ("--guide", guide))])

    def _train(self, name: str, seed: int) -> float:
        """Train a student; returns the seconds that it took."""
        data, student, metrics = (self._path(name, seed, file) for file in (DATA, STUDENT, METRICS))
        words = ["--teacher", str(self.arguments.teacher), "--data", str(data), "--out", str(student)]
        words += ["--metrics", str(metrics), "--threat", self.arguments.threat, "--seed", str(seed)]
        return _stage("train", [*words, *self.common, *self.threads, *_words(self.schedule)])

    def _images(self, path: Path) -> Tensor:
        return torch.from_numpy(trainset.read(path).images).permute(0, 3, 1, 2).contiguous()

    def _judge(self, name: str, seed: int, making: float, training: float, shown: Mapping[str, Tensor]) -> Result:
        student, metrics = (self._path(name, seed, file) for file in (STUDENT, METRICS))
        network, card = load_checkpoint(student, torch.device("cpu"), self.arguments.factory)
        network.requires_grad_(False)
        clean = 100 * float((classes(network, self.x) == self.y).float().mean())
        torch.manual_seed(seed)
        eps = parse_threat(self.arguments.threat).eps
        parts = zip(self.x.split(250), self.y.split(250), strict=True)
        wrong = torch.cat([reference.pgd(network, x, y, eps) for x, y in parts])
        robust = 100 - 100 * float(wrong.float().mean())
        with metrics.open(encoding="utf-8", newline="") as file:
            last = list(csv.DictReader(file))[-1]
        foreign = []
        for other, images in shown.items():
            if other != name:
                few = images[:FOREIGN]
                foreign.append(100 * float((classes(network, few) == classes(self.teacher, few)).float().mean()))
        return Result(
            source=name,
            real_data=card.real_data,
            seed=seed,
            images=len(shown[name]),
            seconds_making=making,
            seconds_training=training,
            clean=clean,
            robust=robust,
            robust_per_minute=60 * robust / making if making else float("nan"),
            agreement=float(last["clean_agreement"]),
            robust_agreement=float(last["robust_agreement"]),
            foreign_agreement=statistics.fmean(foreign) if foreign else float("nan"),
            statistics_distance=statistics_distance(self.teacher, shown[name]),
            spectrum=slope(shown[name]),
        )


def markdown(results: list[Result]) -> str:
    """One row a source: mean over the seeds, and the range of clean and robust accuracy."""
    lines = [
        "| source | real data | minutes to make | clean | PGD-10 | PGD-10 a minute | own held-out, clean / attacked "
        "| others' images | BN distance | spectrum |",
        "|---|---|---:|---|---|---:|---:|---:|---:|---:|",
    ]
    for name in dict.fromkeys(result.source for result in results):
        rows = [result for result in results if result.source == name]

        def mean(field: str, rows: list[Result] = rows) -> float:
            return statistics.fmean(getattr(row, field) for row in rows)

        def ranged(field: str, rows: list[Result] = rows) -> str:
            values = [getattr(row, field) for row in rows]
            spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
            return f"{statistics.fmean(values):.1f}{spread}"

        made = mean("seconds_making") / 60
        minutes, by_minute = (f"{made:.1f}", f"{mean('robust_per_minute'):.1f}") if made else ("–", "–")
        lines.append(
            f"| {name} | {rows[0].real_data} | {minutes} | {ranged('clean')} "
            f"| {ranged('robust')} | {by_minute} "
            f"| {mean('agreement'):.0f} / {mean('robust_agreement'):.0f} | {mean('foreign_agreement'):.0f} "
            f"| {mean('statistics_distance'):.0f} | {mean('spectrum'):.1f} |"
        )
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Measure, write a CSV of all students and print the table; returns the exit status."""
    about = (__doc__ or "").strip()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sources", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", type=Path, required=True, help="checkpoint of the teacher stage")
    parser.add_argument("--factory", help="of a network of your own, as `dfshield teacher` has it")
    parser.add_argument("--threat", required=True, help="threat model of training and attack, linf:EPS")
    parser.add_argument("--evaluation", type=Path, required=True, help=".npz of labelled real images to judge on")
    parser.add_argument("--skip", type=int, default=0, help="leave out the first so many of them (default: 0)")
    parser.add_argument("--count", type=int, default=1000, help="images to judge on (default: 1000)")
    parser.add_argument("--real", type=Path, help=".npz of the real training images, for the ceiling")
    parser.add_argument("--images", type=int, default=2000, help="images of each source (default: 2000)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds of making and training (default: 0)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each stage (default: 1)")
    parser.add_argument("--only", nargs="+", metavar="SOURCE", help="these sources alone")
    parser.add_argument("--config", type=Path, default=Path(__file__).with_suffix(".yaml"), help="sources and schedule")
    parser.add_argument(
        "--folder", type=Path, default=Path("results/.sources"), help="where sets and students are kept"
    )
    parser.add_argument("--out", type=Path, default=Path("results/sources.csv"), help="CSV of all students")
    arguments = parser.parse_args(argv)
    try:
        results = Yardstick(arguments).run()
    except InputError as error:
        print(f"benchmarks.sources: {error}", file=sys.stderr)
        return 2
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with atomic(arguments.out) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(results[0])), lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(result) for result in results)
    print(markdown(results), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
