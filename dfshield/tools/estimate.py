"""`dfshield estimate`: jobs, time, GPU hours and disk of a config's tables, before any of it is run.

The jobs are those that Snakemake would start; `dfshield.cost` says what each takes. The answer names its basis, and
what is assumed about the outcome of attacks.
"""

import heapq
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from dfshield import registry
from dfshield.core.errors import InputError
from dfshield.core.files import data_dir, data_file
from dfshield.core.threat import threat_name
from dfshield.models.size import Network, generator_flops, network
from dfshield.options import CotrainOptions, GenerateOptions
from dfshield.planning.cells import Cell
from dfshield.planning.cost import (
    UPDATE,
    Throughput,
    attack_passes,
    cotraining_passes,
    diversity_flops,
    generation_passes,
    manner,
    synthesis_passes,
    training_passes,
)
from dfshield.planning.paths import DATA, DIVERSITY, HARDEN, LEDGER, NONE, RESULTS, STUDENT, TEACHER, place_of
from dfshield.planning.plan import Plan

START_SECONDS = 4.0
"""Start of a job and its imports (assumed)."""
LIGHT_SECONDS = 1.0
"""Start of a job that computes nothing (assumed)."""
DISK_RATE = 1e8
"""Bytes per second of jobs that only copy, check and hash (assumed)."""
OWN_TEST_IMAGES = 10_000
"""Test images of a user's own model whose file is not there to count them (assumed)."""
RULES = {
    **dict.fromkeys(("teacher", "synthesize"), True),
    "merge": False,
    "generate": True,
    **dict.fromkeys(("augment", "export"), False),
    "public": True,
    **dict.fromkeys(("train", "cotrain", "attack", "diversity"), True),
    **dict.fromkeys(("table", "model_card"), False),
}
"""Rules in the order of the flow, and whether their hours are a GPU's, where there is one."""


class Job(NamedTuple):
    """One job of the workflow; `inputs` are the files of the jobs that it waits for."""

    rule: str
    seconds: float
    bytes: float
    inputs: tuple[str, ...]
    flops: float = 0.0
    """operations of the classifiers and of a generator, as far as they are counted"""


class Input(NamedTuple):
    """What a network takes: (C,H,W) and number of classes."""

    shape: tuple[int, int, int]
    classes: int

    @property
    def bytes(self) -> int:
        """Of one image in float32."""
        return 4 * self.shape[0] * self.shape[1] * self.shape[2]


class Jobs:
    """The jobs that targets need, each once, by the file that it makes."""

    def __init__(self, plan: Plan, throughput: Throughput, robust: float) -> None:
        self.plan, self.throughput, self.robust = plan, throughput, robust
        self.found: dict[str, Job] = {}
        self.models: set[str] = set()
        self.otherwise: dict[str, None] = {}  # a set in order
        self._networks: dict[tuple[str, str], Network] = {}
        self._generators: dict[tuple[Any, ...], float] = {}

    def table(self, name: str) -> None:
        """A table and all that its cells are read from."""
        inputs = {self.figure(cell) for cell in self.plan.cells(name)}
        self._add(f"{RESULTS}/{name}.csv", "table", LIGHT_SECONDS, 0, inputs)

    def hardened(self, name: str) -> None:
        """A user's own model, its card and its evaluation."""
        entry, seed = self.plan.hardened(name), self.plan.config.seeds[0]
        inputs = {self.figure(cell) for cell in self.plan.harden_cells(name)}
        student = self.student(HARDEN, name, entry.source, entry.recipe, seed)
        size = self.found[student].bytes
        self._add(f"{RESULTS}/{HARDEN}/{name}/MODEL_CARD.md", "model_card", LIGHT_SECONDS, size, {*inputs, student})

    def figure(self, cell: Cell) -> str:
        """The ledger or record of one cell; returns its path, as all that follow."""
        dataset, model, seed, path = cell.dataset, cell.model, cell.seed, cell.ledger
        network, taken = self.network(dataset, model), self.input(dataset, model)
        if cell.evidence == "diversity":
            place = place_of(DIVERSITY, path)
            data = self.data(dataset, model, place["source"], seed)
            options = self.plan.diversity(dataset, model)
            synthetic = self.images(dataset, model, place["source"], seed)
            work = diversity_flops(network, _count(dataset, options.split), synthetic)
            return self._compute(path, "diversity", options, model, work, 0, {data, self.teacher(dataset, model)})
        place = place_of(LEDGER, path)
        threats = {NONE: ""} | self.plan.threats[dataset, model]
        attack = self.plan.attack(dataset, model, place["protocol"], seed, threats[place["threat"]])
        tested = attack.limit or self.tested(dataset, model, attack.split)
        source, recipe = place["source"], place["recipe"]
        trained = "" if recipe == NONE else self.plan.threats[dataset, model][place["train_threat"]]
        of = (
            self.teacher(dataset, model)
            if recipe == NONE
            else self.student(dataset, model, source, recipe, seed, trained)
        )
        passes = attack_passes(attack, tested, self.robust, taken.classes)
        size = tested * taken.bytes / 2  # a float16 perturbation for every image at most
        return self._compute(path, "attack", attack, model, passes * network.flops, size, {of})

    def student(self, dataset: str, model: str, source: str, recipe: str, seed: int, threat: str = "") -> str:
        """A trained or co-trained student; `threat` is that of its training, the data set's own if empty."""
        named = threat_name(threat or self.plan.threat(dataset, model))
        path = self.plan.path(STUDENT, dataset, model, source=source, recipe=recipe, seed=seed, train_threat=named)
        if path in self.found:
            return path
        options = self.plan.training(dataset, model, recipe, seed, threat)
        network, teacher = self.network(dataset, model), self.teacher(dataset, model)
        size = 4 * network.parameters
        if isinstance(options, CotrainOptions):
            classifiers, generator = cotraining_passes(options)
            drawn = generator * self.generator(dataset, model, options)
            return self._compute(
                path, "cotrain", options, model, classifiers * network.flops, size, {teacher}, "training", drawn
            )
        data = self.data(dataset, model, source, seed)
        passes = training_passes(options, round(options.data_share * self.images(dataset, model, source, seed)))
        return self._compute(path, "train", options, model, passes * network.flops, size, {teacher, data}, "training")

    def data(self, dataset: str, model: str, source: str, seed: int) -> str:
        """Training data of any kind, with the shards or the source that they are made of."""
        path = self.plan.path(DATA, dataset, model, source=source, seed=seed)
        if path in self.found:
            return path
        kind, teacher = self.plan.config.sources[source].kind, self.teacher(dataset, model)
        size = self.images(dataset, model, source, seed) * self.input(dataset, model).bytes
        copying = LIGHT_SECONDS + 2 * size / DISK_RATE
        if kind == "synthetic":
            options = self.plan.synthesis(dataset, model, source, seed)
            shards = self.plan.shards(dataset, model, source, seed)
            for index, shard in enumerate(shards):
                groups = options.groups * (index + 1) // len(shards) - options.groups * index // len(shards)
                share = groups / options.groups
                work = share * synthesis_passes(options) * self.network(dataset, model).flops
                self._compute(shard, "synthesize", options, model, work, share * size, {teacher})
            return self._add(path, "merge", copying, size, shards)
        if kind == "generator":
            generation = self.plan.generation(dataset, model, source, seed)
            passes, drawn = generation_passes(generation)
            work = passes * self.network(dataset, model).flops
            drawn *= self.generator(dataset, model, generation)
            return self._compute(path, "generate", generation, model, work, size, {teacher}, generator=drawn)
        if kind == "augmented":
            base = self.data(dataset, model, str(self.plan.config.sources[source].base), seed)
            return self._add(path, "augment", copying + START_SECONDS, size, {base})
        if kind == "public":  # the teacher answers once
            work = self.images(dataset, model, source, seed) * self.network(dataset, model).flops
            public = self.plan.public(dataset, model, source, seed)
            return self._compute(path, "public", public, model, work, size, {teacher})
        return self._add(path, "export", copying + START_SECONDS, size, {teacher})

    def images(self, dataset: str, model: str, source: str, seed: int) -> int:
        """Images of a source."""
        own = self.plan.config.sources[source]
        if own.kind == "synthetic":
            return int(self.plan.synthesis(dataset, model, source, seed).images)
        if own.kind == "generator":
            return int(self.plan.generation(dataset, model, source, seed).images)
        if own.kind == "augmented":
            return self.images(dataset, model, str(own.base), seed)
        if own.kind == "public":
            options = self.plan.public(dataset, model, source, seed)
            return int(options.images) or _count(options.dataset, "train")
        return _count(dataset, "train")

    def teacher(self, dataset: str, model: str) -> str:
        """A trained classifier; published weights and the user's own need no arithmetic."""
        path = self.plan.path(TEACHER, dataset, model)
        if path in self.found:
            return path
        network, size = self.network(dataset, model), 4 * self.network(dataset, model).parameters
        if dataset == HARDEN or dataset in registry.MODELS[model].pretrained:
            return self._add(path, "teacher", START_SECONDS, size, ())
        options = self.plan.options("teacher", dataset, model)
        passes = UPDATE * options.epochs * _count(dataset, "train")
        return self._compute(path, "teacher", options, model, passes * network.flops, size, (), "training")

    def tested(self, dataset: str, model: str, split: str) -> int:
        """Images of a data set's split, or of a user's own file."""
        if dataset != HARDEN:
            return _count(dataset, split)
        import numpy as np

        config, evaluation = self.plan.config, self.plan.hardened(model).evaluation
        file = data_file(evaluation.file, data_dir(config.data_dir)) if evaluation else Path()
        try:
            with np.load(file, allow_pickle=False) as arrays:
                return len(arrays["y"])
        except (OSError, ValueError, KeyError):  # the attack will say what is wrong with it
            return OWN_TEST_IMAGES

    def input(self, dataset: str, model: str) -> Input:
        """What a data set's or a user's network takes."""
        entry: Any = self.plan.hardened(model) if dataset == HARDEN else registry.DATASETS[dataset]
        return Input(tuple(entry.input_shape), entry.classes)

    def network(self, dataset: str, model: str) -> Network:
        """Size of a network, counted once."""
        own: dict[str, Any] = {}
        if dataset == HARDEN:
            entry = self.plan.hardened(model)
            own = {"factory": entry.factory, "arguments": entry.arguments}
        if (dataset, model) not in self._networks:
            self._networks[dataset, model] = network(model, *self.input(dataset, model), **own)
        return self._networks[dataset, model]

    def generator(self, dataset: str, model: str, options: CotrainOptions | GenerateOptions) -> float:
        """Operations of a generator's forward pass, counted once."""
        taken = self.input(dataset, model)
        width = options.generator_width if isinstance(options, CotrainOptions) else options.width
        key = (options.method, taken, width, options.latent)
        if key not in self._generators:
            self._generators[key] = generator_flops(options, *taken)
        return self._generators[key]

    def _compute(
        self,
        path: str,
        rule: str,
        options: Any,
        model: str,
        flops: float,
        size: float,
        inputs: Iterable[str],
        stage: str = "synthesis",
        generator: float = 0.0,
    ) -> str:
        """A job on a device: operations of the classifiers and of a generator."""
        self.models.add(model)
        self.otherwise |= {f"{rule} ({how})": None for how in [self.throughput.otherwise(options)] if how}
        seconds = flops / self.throughput.rate(stage, model) + generator / self.throughput.best(stage)
        return self._add(path, rule, START_SECONDS + seconds, size, inputs, flops + generator)

    def _add(self, path: str, rule: str, seconds: float, size: float, inputs: Iterable[str], flops: float = 0.0) -> str:
        self.found.setdefault(path, Job(rule, seconds, size, tuple(inputs), flops))
        return path

    def schedule(self, workers: int) -> dict[str, tuple[float, float]]:
        """Start and end in seconds of every job where `workers` of them run at a time, by their priority.

        As Snakemake does: a free worker takes a job whose inputs are there, an earlier stage's first.
        """
        rank = {rule: position for position, rule in enumerate(RULES)}
        order = {path: number for number, path in enumerate(self.found)}
        waiting = {path: len(set(job.inputs)) for path, job in self.found.items()}
        ready = [(rank[job.rule], order[path], path) for path, job in self.found.items() if not waiting[path]]
        heapq.heapify(ready)
        users: dict[str, list[str]] = {}
        for path, job in self.found.items():
            for other in set(job.inputs):
                users.setdefault(other, []).append(path)
        running: list[tuple[float, int, str]] = []
        found: dict[str, tuple[float, float]] = {}
        now = 0.0
        while ready or running:
            while ready and len(running) < workers:
                path = heapq.heappop(ready)[2]
                found[path] = now, now + self.found[path].seconds
                heapq.heappush(running, (found[path][1], order[path], path))
            now, _, done = heapq.heappop(running)
            for path in users.get(done, ()):
                waiting[path] -= 1
                if not waiting[path]:
                    heapq.heappush(ready, (rank[self.found[path].rule], order[path], path))
        return found

    def seconds(self, workers: int) -> float:
        """From the start of the first job to the end of the last where `workers` of them run at a time."""
        return max((end for _, end in self.schedule(workers).values()), default=0.0)


def _count(dataset: str, split: str) -> int:
    known = registry.DATASETS[dataset].images
    if known and split not in known:
        raise InputError(f"{dataset}: has no split {split!r}; it has {', '.join(known)}")
    if known:
        return known[split]
    import medmnist

    return int(medmnist.INFO[dataset]["n_samples"][registry.MEDMNIST_SPLITS[split]])


def estimate(plan: Plan, targets: list[str], throughput: Throughput, robust: float) -> Jobs:
    """What `targets` take: names of tables, or ``harden`` for the config's own models. Each file is made once."""
    jobs = Jobs(plan, throughput, robust)
    for target in targets:
        if target == HARDEN:
            for name in plan.config.harden:
                jobs.hardened(name)
        else:
            jobs.table(target)
    return jobs


def run(plan: Plan, targets: list[str], report: Path | None, workers: int, robust: float) -> str:
    """The estimate as text; without `targets` all that the config has, without `report` by the paper's own times."""
    everything = [*plan.own_tables, *([HARDEN] if plan.config.harden else [])]
    if HARDEN in targets and not plan.config.harden:
        raise InputError("this config has no models under harden:; give one that has, or names of tables")
    throughput = Throughput.read(report) if report else Throughput.published()
    jobs = estimate(plan, targets or everything, throughput, robust)
    lines = [f"{'rule':11} {'jobs':>6} {'time':>10} {'disk':>10}"]
    spent = {True: 0.0, False: 0.0}
    for rule, on_device in RULES.items():
        own = [job for job in jobs.found.values() if job.rule == rule]
        seconds, size = sum(job.seconds for job in own), sum(job.bytes for job in own)
        spent[on_device] += seconds
        if own:
            lines.append(f"{rule:11} {len(own):6d} {_time(seconds):>10} {_size(size):>10}")
    size = sum(job.bytes for job in jobs.found.values())
    lines.append(f"{'total':11} {len(jobs.found):6d} {_time(sum(spent.values())):>10} {_size(size):>10}")
    unit = "GPU hours" if throughput.device == "cuda" else "hours of this machine"
    others = throughput.stand_ins(jobs.models)
    measured = manner([throughput.precision], throughput.generated)
    otherwise = [f"Measured was {measured}; run otherwise: {', '.join(jobs.otherwise)}."] if jobs.otherwise else []
    return "\n".join(
        [
            *lines,
            f"{spent[True] / 3600:.2f} {unit}; {_time(jobs.seconds(workers))} with {workers} jobs at a time, "
            f"{_time(jobs.seconds(len(jobs.found)))} with any number (the longest chain of jobs).",
            f"Basis: {throughput.basis}{f'; {others}' if others else ''}.",
            *otherwise,
            f"Assumed: {100 * robust:.0f} % of images survive every attack; {START_SECONDS:.0f} s to start a job; "
            f"{DISK_RATE / 1e6:.0f} MB/s to copy and check.",
            "Not counted: downloads, the generation of code (compile), k-means.",
        ]
    )


def _time(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
