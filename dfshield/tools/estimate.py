"""`dfshield estimate`: jobs, time, GPU hours and disk of a config's tables, before any of it is run.

The jobs are those that Snakemake would start; `dfshield.planning.pricing` says what each takes. The answer names its
basis, and what is assumed about the outcome of attacks.
"""

import heapq
from pathlib import Path

from dfshield.core.errors import InputError
from dfshield.planning.arithmetic import Throughput, manner
from dfshield.planning.jobs import Jobs
from dfshield.planning.paths import HARDEN
from dfshield.planning.plan import Plan
from dfshield.planning.pricing import DISK_RATE, START_SECONDS, Price, Prices
from dfshield.planning.stages import STAGES


class Estimate:
    """The jobs of some targets with their prices; a job that the cost model does not know has none."""

    def __init__(self, plan: Plan, targets: list[str], throughput: Throughput, robust: float) -> None:
        self.prices = Prices(plan, throughput, robust)
        dag = Jobs(plan)
        for target in targets:
            dag.target(target)
        self.jobs = dag.jobs
        self.priced: dict[str, Price | None] = {path: self.prices.price(job) for path, job in self.jobs.items()}

    def of(self, path: str) -> Price:
        """The price of a job; nothing for one that is not estimated."""
        return self.priced[path] or Price(0.0)

    @property
    def unknown(self) -> list[str]:
        """What is not estimated, in words."""
        found: dict[str, None] = {}
        for path, job in self.jobs.items():
            if self.priced[path] is None:
                field = job.options.entries[0]  # only the choice of an entry can have no price
                found[f"{job.stage} {getattr(job.options, field)}"] = None
        return list(found)

    def schedule(self, workers: int) -> dict[str, tuple[float, float]]:
        """Start and end in seconds of every job if `workers` run at a time, by file: first what stands first in the
        flow, as the workflow's priorities have it."""
        rank = {stage: position for position, stage in enumerate(STAGES)}
        order = {path: position for position, path in enumerate(self.jobs)}
        waiting = {path: len(set(job.inputs)) for path, job in self.jobs.items()}
        ready = [(rank[job.stage], order[path], path) for path, job in self.jobs.items() if not waiting[path]]
        heapq.heapify(ready)
        users: dict[str, list[str]] = {}
        for path, job in self.jobs.items():
            for other in set(job.inputs):
                users.setdefault(self._maker(other), []).append(path)
        running: list[tuple[float, int, str]] = []
        found: dict[str, tuple[float, float]] = {}
        now = 0.0
        while ready or running:
            while ready and len(running) < workers:
                path = heapq.heappop(ready)[2]
                found[path] = now, now + self.of(path).seconds
                heapq.heappush(running, (found[path][1], order[path], path))
            now, _, done = heapq.heappop(running)
            for path in users.get(done, ()):
                waiting[path] -= 1
                if not waiting[path]:
                    heapq.heappush(ready, (rank[self.jobs[path].stage], order[path], path))
        return found

    def _maker(self, path: str) -> str:
        """The job that makes a file, by the file that it is known by: a co-trained student for its images."""
        return path if path in self.jobs else str(Path(path).with_name("student.safetensors"))

    def seconds(self, workers: int) -> float:
        """From the start of the first job to the end of the last where `workers` of them run at a time."""
        return max((end for _, end in self.schedule(workers).values()), default=0.0)


def run(plan: Plan, targets: list[str], report: Path | None, workers: int, robust: float) -> str:
    """The estimate as text; without `targets` all that the config has, without `report` by the paper's own times."""
    everything = [*plan.own_tables, *([HARDEN] if plan.config.harden else [])]
    if HARDEN in targets and not plan.config.harden:
        raise InputError("this config has no models under harden:; give one that has, or names of tables")
    throughput = Throughput.read(report) if report else Throughput.published()
    estimate = Estimate(plan, targets or everything, throughput, robust)
    lines = [f"{'stage':11} {'jobs':>6} {'time':>10} {'disk':>10}"]
    spent = {True: 0.0, False: 0.0}
    for name, stage in STAGES.items():
        own = [estimate.of(path) for path, job in estimate.jobs.items() if job.stage == name]
        seconds, size = sum(price.seconds for price in own), sum(price.bytes for price in own)
        spent[stage.gpu] += seconds
        if own:
            lines.append(f"{name:11} {len(own):6d} {_time(seconds):>10} {_size(size):>10}")
    size = sum(estimate.of(path).bytes for path in estimate.jobs)
    lines.append(f"{'total':11} {len(estimate.jobs):6d} {_time(sum(spent.values())):>10} {_size(size):>10}")
    unit = "GPU hours" if throughput.device == "cuda" else "hours of this machine"
    others = throughput.stand_ins(estimate.prices.models)
    measured, otherwise = manner([throughput.precision], throughput.generated), estimate.prices.otherwise
    return "\n".join(
        [
            *lines,
            f"{spent[True] / 3600:.2f} {unit}; {_time(estimate.seconds(workers))} with {workers} jobs at a time, "
            f"{_time(estimate.seconds(len(estimate.jobs)))} with any number (the longest chain of jobs).",
            *([f"Not estimated, and so not in these figures: {', '.join(estimate.unknown)}."] * bool(estimate.unknown)),
            f"Basis: {throughput.basis}{f'; {others}' if others else ''}.",
            *([f"Measured was {measured}; run otherwise: {', '.join(otherwise)}."] if otherwise else []),
            f"Assumed: {100 * robust:.0f} % of images survive every attack; {START_SECONDS:.0f} s to start a job; "
            f"{DISK_RATE / 1e6:.0f} MB/s to copy and check.",
            "Not counted: downloads, the generation of code (compile), k-means.",
        ]
    )


def command(plan: Plan, targets: list[str], report: Path | None, workers: int, robust: float) -> None:
    """Print the estimate; raises InputError for numbers out of range."""
    if not (workers > 0 and 0 <= robust <= 1):
        raise InputError("--workers must be at least 1 and --robust between 0 and 1")
    print(run(plan, targets, report, workers, robust))


def _time(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
