"""What every method of table 4 costs: seconds of its jobs as measured, arithmetic as counted from the options.

Seconds come from the benchmark files that Snakemake writes beside the logs: no artefact says how long it took. The
teacher and the attacks are the same for all methods and left out.
"""

import csv
import io
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from dfshield.core.errors import InputError
from dfshield.core.files import existing_file, write_text
from dfshield.planning.cost import Throughput
from dfshield.planning.paths import NONE, benchmark_of
from dfshield.planning.plan import Plan
from dfshield.report import latex, markdown
from dfshield.report.items import Item, Value
from dfshield.report.layout import Block, Layout, dataset_title, model_title
from dfshield.tools.estimate import Jobs

TITLE = "Cost of every method"
NOTES = (
    "Seconds of the jobs as Snakemake measured them, added up over jobs that may run side by side, such as the shards "
    "of a synthesis; a job that went on after a stop counts from there. DaST, DFME, AIT and DFARD make their images "
    "while they train.",
    "Arithmetic: operations of the forward and backward passes of teacher, student and generator, counted from the "
    "options. The teacher's own training and the attacks are the same for all methods and not counted.",
)
UNITS = (("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9))


@dataclass(frozen=True)
class Cost:
    """What one method takes for one data set, model and seed; seconds and operations of 0 where nothing is made."""

    dataset: str
    model: str
    method: str
    seed: int
    data_seconds: float
    training_seconds: float
    data_flops: float
    training_flops: float


def run(plan: Plan, out: Path) -> None:
    """Write the CSV `out`, one row per method and seed, and Markdown and LaTeX beside it.

    Raises InputError for a config without table 4 and for a benchmark file that is missing or cannot be read.
    """
    costs = measure(plan)
    unit = next((unit for unit in UNITS if max(c.data_flops + c.training_flops for c in costs) >= unit[1]), UNITS[-1])
    layout = lay_out(costs, *unit)
    seeds = len({cost.seed for cost in costs})
    spread = f"Mean ± sample standard deviation over {seeds} seeds; a figure without ± is of one seed."
    notes = [*NOTES, *([spread] if seeds > 1 else [])]
    text = [f"## {TITLE}", "", *markdown.grid(layout, {}), *markdown.paragraphs(notes)]
    write_text(out.with_suffix(".md"), "\n".join(text).rstrip() + "\n")
    write_text(out.with_suffix(".tex"), latex.table_float("cost", f"{TITLE}. {' '.join(notes)}", layout, {}))
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([field.name for field in fields(Cost)])
    writer.writerows([f"{v:.6g}" if isinstance(v, float) else v for v in astuple(cost)] for cost in costs)
    write_text(out, stream.getvalue())


def measure(plan: Plan) -> list[Cost]:
    """The costs in the order of table 4."""
    jobs = Jobs(plan, Throughput("arithmetic alone", rates={"synthesis": {"any": 1.0}}), robust=1.0)
    costs = []
    for work in plan.work:
        if work.source != NONE:
            jobs.data(work.dataset, work.model, work.source, work.seed)
        if work.recipe != NONE:
            jobs.student(work.dataset, work.model, work.source, work.recipe, work.seed)
        kinds = (work.data, work.student)
        spent = [sum(map(seconds, paths)) for paths in kinds]
        counted = [sum(jobs.found[path].flops for path in paths) for paths in kinds]
        costs.append(Cost(work.dataset, work.model, work.method, work.seed, *map(float, (*spent, *counted))))
    return costs


def seconds(output: str) -> float:
    """Wall-clock seconds of the job that made `output`, by its benchmark file."""
    path = benchmark_of(output)
    existing_file(path, f"Snakemake's benchmark of {output}", "make the cost table with `snakemake results/cost.csv`")
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            (row,) = csv.DictReader(stream, delimiter="\t")
            return float(row["s"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is no benchmark file of Snakemake ({error}); delete it and run again") from None


def lay_out(costs: Sequence[Cost], unit: str, size: float) -> Layout:
    """A block per data set, a row per method; for every model seconds of data, training and both, and arithmetic."""
    models = list(dict.fromkeys(cost.model for cost in costs))
    blocks = []
    for dataset in dict.fromkeys(cost.dataset for cost in costs):
        own = [cost for cost in costs if cost.dataset == dataset]
        rows: list[list[Item]] = []
        for method in dict.fromkeys(cost.method for cost in own):
            items: list[Item] = [method]
            for model in models:
                seeds = [cost for cost in own if (cost.model, cost.method) == (model, method)]
                items += [
                    _value(cost.data_seconds for cost in seeds),
                    _value(cost.training_seconds for cost in seeds),
                    _value(cost.data_seconds + cost.training_seconds for cost in seeds),
                    _value(((cost.data_flops + cost.training_flops) / size for cost in seeds), 2),
                ]
            rows.append(items)
        blocks.append(Block(dataset_title(dataset), rows))
    columns = ["data, s", "training, s", "total, s", unit]
    return Layout(["Method"], [(model_title(model), len(columns)) for model in models], columns * len(models), blocks)


def _value(values: Iterable[float], places: int = 1) -> Value | None:
    """Mean and sample standard deviation; None without values."""
    figures = list(values)
    if not figures:
        return None
    return Value(statistics.fmean(figures), statistics.stdev(figures) if len(figures) > 1 else None, places=places)
