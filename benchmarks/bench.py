"""`make bench`: the stages against the plainest version of the same algorithm (`reference.py`), as ratios of times.

Both sides of a ratio run in turn, in one process and with the same threads, after a warm-up that includes generating
code. Attacks need trained networks and real images:

    python -m benchmarks.bench --undefended teacher.safetensors --hardened student.safetensors --images test.npz
"""

import argparse
import contextlib
import functools
import io
import json
import math
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import reference
from dfshield import registry
from dfshield.attacks.base import frozen
from dfshield.core.device import fast_in_bf16, select_device
from dfshield.core.files import atomic
from dfshield.core.progress import progress
from dfshield.core.rng import generator
from dfshield.core.threat import parse_threat
from dfshield.data.sets import load_npz
from dfshield.evaluation.attack import components
from dfshield.evaluation.session import Session
from dfshield.models.checkpoints import load_checkpoint
from dfshield.models.classifier import Classifier
from dfshield.models.factory import build_network
from dfshield.models.size import network
from dfshield.options import AttackOptions, TrainOptions
from dfshield.options.sources import Inversion
from dfshield.sources.inversion import ModelInversion
from dfshield.sources.trainset import TrainSet
from dfshield.training.trainer import Trainer

STAGES = ("synthesis", "training", "pgd10", "autoattack")


@dataclass
class Result:
    """One line of the report; ratios are of the reference's time to ours."""

    stage: str
    model: str
    device: str
    hardened: bool | None
    """whether the attacked network is; None where nothing is attacked"""
    ratio_median: float
    ratio_min: float
    ratio_max: float
    achieved_fraction_of_ceiling: float | None
    """arithmetic of our side by its time, as a share of a matrix product's in the same precision; None for attacks,
    which leave out arithmetic"""
    peak_memory: int
    """bytes: of the device's allocator on CUDA, of the whole process so far elsewhere"""
    seconds_reference: float
    seconds_ours: float
    n: int
    """images"""
    flops: float = 0.0
    """arithmetic of our side"""
    note: str = ""


@dataclass
class Side:
    """One measured side: `run` does the work once."""

    run: Callable[[], Any]
    flops: float = 0.0
    precision: str = "fp32"


def measure(reference_side: Side, ours: Side, repeats: int, device: torch.device, label: str) -> dict[str, Any]:
    """Times of both sides in turn."""
    seconds: tuple[list[float], list[float]] = [], []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with progress(repeats, label, "pair") as bar:
        for _ in range(repeats):
            for side, times in zip((reference_side, ours), seconds, strict=True):
                torch.backends.cudnn.allow_tf32 = side is reference_side  # PyTorch's default, which ours turns off
                _wait(device)
                start = time.perf_counter()
                side.run()
                _wait(device)
                times.append(time.perf_counter() - start)
            bar.update()
    ratios = [slow / quick for slow, quick in zip(*seconds, strict=True)]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "ratio_median": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "peak_memory": torch.cuda.max_memory_allocated() if device.type == "cuda" else memory,
        "seconds_reference": statistics.median(seconds[0]),
        "seconds_ours": statistics.median(seconds[1]),
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def ceilings(device: torch.device) -> dict[str, float]:
    """Operations per second of a large matrix product, by precision, and bytes per second of a copy."""
    size = 8192 if device.type == "cuda" else 2048
    found = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a = torch.randn(size, size, device=device).to(dtype)
        found[name] = 2 * size**3 / _best(functools.partial(torch.matmul, a, a), device)
    block = torch.zeros(2**28 // 4, device=device)
    target = torch.empty_like(block)
    found["copy"] = 2 * 2**28 / _best(lambda: target.copy_(block), device)
    return found


def _best(work: Callable[[], Any], device: torch.device) -> float:
    times = []
    for _ in range(6):
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        times.append(time.perf_counter() - start)
    return min(times)


@dataclass
class Bench:
    """What all stages share."""

    arguments: argparse.Namespace
    device: torch.device
    ceiling: dict[str, float]

    @property
    def quick(self) -> dict[str, Any]:
        """The engine's options on this device."""
        return {"precision": self.arguments.precision, "device": self.device.type, "threads": self.arguments.threads}

    def network(self) -> tuple[Classifier, tuple[int, int, int], int]:
        """An untrained registered network whose BatchNorm layers have seen some images."""
        shape, classes = (3, 32, 32), 10
        torch.manual_seed(0)
        net = build_network(self.arguments.model, shape, classes)
        with torch.no_grad():
            for _ in range(3):
                net.train()(torch.randn(64, *shape))
        return Classifier(net, (0.49, 0.48, 0.45), (0.2, 0.2, 0.2)).to(self.device).eval(), shape, classes

    def synthesis(self) -> Iterator[Result]:
        """One synthesis batch, as many steps on both sides."""
        model, shape, classes = self.network()
        steps, batch = self.arguments.steps, self.arguments.batch
        plain, flops = reference.copy.deepcopy(model.net), network(self.arguments.model, shape, classes).flops
        random = generator("benchmark")
        start = torch.randn((batch, *shape), generator=random).to(self.device)
        labels = torch.randint(classes, (batch,), generator=random).to(self.device)
        alphas = torch.tensor([0.5, 0.5, 1e-5], device=self.device)
        options = Inversion(images=batch, batch=batch, iterations=steps, compile=self.arguments.compile, **self.quick)
        synthesizer = ModelInversion(model, shape, classes, options)
        sides = (
            Side(lambda: reference.synthesis(plain, labels, alphas, start, steps)),
            Side(lambda: synthesizer.group(0), 2 * flops * batch * steps, options.precision),
        )
        yield self.result("synthesis", None, batch, *sides)

    def training(self) -> Iterator[Result]:
        """One update of two mini-batches with PGD-10."""
        model, shape, classes = self.network()
        batch, b = self.arguments.batch, 2
        random = generator("benchmark")
        images = torch.rand((b * batch, *shape), generator=random)
        flops = network(self.arguments.model, shape, classes).flops
        options = TrainOptions.of(
            batch=batch,
            aggregate=b,
            holdout=0,
            threat="linf:4/255",
            outer_precision=self.arguments.precision,
            compile=self.arguments.compile,
            **self.quick,
        )
        slow = reference.Training(reference.copy.deepcopy(model), 4 / 255, b)
        labels = torch.randint(classes, (len(images),), generator=random).numpy()
        trainer = Trainer(model, TrainSet(images.permute(0, 2, 3, 1).numpy(), labels, {}), options)
        on_device = images.to(self.device)
        epochs = iter(range(10**6))

        def plain() -> None:
            for part in on_device.split(batch):
                slow.step(part)

        # clean pass, ten steps forward and back to the pixels, two passes forward and back to pixels and weights
        arithmetic = (1 + 10 * 2 + 2 * 3) * flops * len(images)
        sides = Side(plain), Side(lambda: trainer.epoch(next(epochs)), arithmetic, options.precision)
        yield self.result("training", None, len(images), *sides)

    def pgd10(self) -> Iterator[Result]:
        """PGD-10 on real images."""
        yield from self.attack("pgd10", "pgd", lambda model, x, y: reference.pgd(model, x, y, self.eps))

    def autoattack(self) -> Iterator[Result]:
        """AutoAttack, standard, on real images."""
        yield from self.attack(
            "autoattack",
            "autoattack",
            lambda model, x, y: reference.autoattack(model, x, y, self.eps, self.arguments.chunk),
        )

    @property
    def eps(self) -> float:
        return parse_threat(self.arguments.threat).eps

    def attack(self, stage: str, name: str, slow: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> Iterator[Result]:
        """Both networks, if they are given."""
        for hardened, path in ((False, self.arguments.undefended), (True, self.arguments.hardened)):
            if path and self.arguments.images:
                yield self.attack_one(stage, name, slow, hardened, path)

    def attack_one(
        self,
        stage: str,
        name: str,
        slow: Callable[[nn.Module, Tensor, Tensor], Tensor],
        hardened: bool,
        path: Path,
    ) -> Result:
        """One network; the note lists the images on which the verdicts differ."""
        given = self.arguments
        model, card = load_checkpoint(path, self.device, given.factory)
        images = load_npz(given.images, card.input_shape, card.classes, given.limit)
        x, y = images.x.to(self.device), images.y.to(self.device)
        options = AttackOptions.of(attack=name, threat=given.threat, chunk=given.chunk, **self.quick)
        ensemble = components(options, card.input_shape, card.classes)
        copied = reference.copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        broken: dict[str, Tensor] = {}

        def plain() -> None:
            with frozen(model), contextlib.redirect_stdout(io.StringIO()):
                parts = zip(x.split(given.chunk), y.split(given.chunk), strict=True)
                broken["reference"] = torch.cat([slow(model, *part) for part in parts]).cpu()

        def ours() -> None:
            with frozen(copied), contextlib.redirect_stderr(io.StringIO()):
                rows, _ = Session(copied, x, y, options, ensemble, self.device).run()
            broken["ours"] = torch.from_numpy(rows["broken"])

        result = self.result(stage, hardened, len(x), Side(plain), Side(ours), model=card.model)
        accuracy = {side: f"{100 * (1 - verdict.float().mean()):.2f} %" for side, verdict in broken.items()}
        only = {side: (broken[side] & ~other).nonzero()[:, 0].tolist() for side, other in _others(broken)}
        result.note = f"robust accuracy {accuracy}; images that one side alone broke: {only}"
        return result

    def result(
        self, stage: str, hardened: bool | None, n: int, slow: Side, quick: Side, model: str | None = None
    ) -> Result:
        """Warm up, measure, count."""
        repeats = self.arguments.repeats if stage != "autoattack" else 1
        if stage != "autoattack":
            slow.run()
            quick.run()
        found = measure(slow, quick, repeats, self.device, f"{stage} {'hardened' if hardened else ''}".strip())
        fraction = quick.flops / found["seconds_ours"] / self.ceiling[quick.precision] if quick.flops else None
        return Result(
            stage=stage,
            model=model or self.arguments.model,
            device=self.device.type,
            hardened=hardened,
            achieved_fraction_of_ceiling=fraction,
            n=n,
            flops=quick.flops,
            **found,
        )


def _others(pair: dict[str, Tensor]) -> list[tuple[str, Tensor]]:
    """Each key of a pair with the value of the other one."""
    return list(zip(pair, reversed(pair.values()), strict=True))


def evidence(arguments: argparse.Namespace, device: torch.device, ceiling: dict[str, float]) -> dict[str, Any]:
    """What the figures were measured on."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else _processor()
    return {
        "hardware": name,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "precision": arguments.precision,
        "compile": arguments.compile,
        "repeats": arguments.repeats,
        "ceiling_fp32_gflops": round(ceiling["fp32"] / 1e9, 1),
        "ceiling_bf16_gflops": round(ceiling["bf16"] / 1e9, 1),
        "ceiling_copy_gbytes": round(ceiling["copy"] / 1e9, 1),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def table(header: dict[str, Any], results: list[Result]) -> str:
    """The report as Markdown."""
    lines = [", ".join(f"{key} {value}" for key, value in header.items()), ""]
    lines += [
        "| Stage | Model | Hardened | n | Ratio median [min, max] | Reference s | Ours s | Of ceiling | Peak MB |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for r in results:
        share = "" if r.achieved_fraction_of_ceiling is None else f"{100 * r.achieved_fraction_of_ceiling:.0f} %"
        attacked = "" if r.hardened is None else "yes" if r.hardened else "no"
        lines.append(
            f"| {r.stage} | {r.model} | {attacked} | {r.n} "
            f"| {r.ratio_median:.2f} [{r.ratio_min:.2f}, {r.ratio_max:.2f}] "
            f"| {r.seconds_reference:.2f} | {r.seconds_ours:.2f} | {share} | {r.peak_memory / 2**20:.0f} |"
        )
    return "\n".join([*lines, "", *(f"{r.stage}: {r.note}." for r in results if r.note)])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--model", default="resnet20", choices=list(registry.MODELS), help="network of synthesis and training")
    add("--stages", nargs="+", default=list(STAGES), choices=STAGES)
    add("--device", default="auto", choices=["auto", "cpu", "cuda"])
    add("--threads", type=int, default=2, help="CPU threads of both sides")
    add("--precision", default="auto", choices=["auto", "fp32", "bf16"], help="of our side")
    add("--compile", action=argparse.BooleanOptionalAction, default=True, help="generate code for our side")
    add("--repeats", type=int, default=5)
    add("--steps", type=int, default=20, help="synthesis steps of one measurement")
    add("--batch", type=int, default=200, help="images in a batch of synthesis and a mini-batch of training")
    add("--undefended", type=Path, help="checkpoint to attack")
    add("--hardened", type=Path, help="checkpoint to attack")
    add("--factory", help="factory of these checkpoints, if they are of one's own models")
    add("--images", type=Path, help=".npz with x and y")
    add("--limit", type=int, default=1000, help="attack the first so many images")
    add("--chunk", type=int, default=250, help="images attacked together, on both sides")
    add("--threat", default="linf:4/255")
    add("--out", type=Path, default=Path("results/benchmarks.json"))
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    device = select_device(arguments.device, arguments.threads)
    if arguments.precision == "auto":
        arguments.precision = "bf16" if fast_in_bf16(device) else "fp32"
    ceiling = ceilings(device)
    bench = Bench(arguments, device, ceiling)
    header = evidence(arguments, device, ceiling)
    results: list[Result] = []
    for stage in arguments.stages:
        for result in getattr(bench, stage)():
            results.append(result)
            assert math.isfinite(result.ratio_median)
            with atomic(arguments.out) as temporary:
                temporary.write_text(json.dumps([asdict(r) | {"evidence": header} for r in results], indent=1) + "\n")
    print(table(header, results))


if __name__ == "__main__":
    main()
