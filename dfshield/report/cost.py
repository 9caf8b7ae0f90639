"""What every method of table 4 costs: seconds of its jobs as measured, arithmetic as counted from the options.

Seconds come from the benchmark files that Snakemake writes beside the logs: no artefact says how long it took. The
teacher and the attacks are the same for all methods and left out.
"""

import csv
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from dfshield.core.errors import InputError
from dfshield.core.files import existing_file, metrics_csv, write_text
from dfshield.planning.arithmetic import Throughput
from dfshield.planning.paths import benchmark_of
from dfshield.planning.plan import Plan
from dfshield.planning.pricing import Price, Prices
from dfshield.report import html, latex, markdown
from dfshield.report.content import makings
from dfshield.report.items import Item, Value
from dfshield.report.layout import Block, Layout, dataset_title, model_title

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
    """What one method takes for one data set, model and seed; seconds and operations of 0 where nothing is made.

    Operations are None where the cost model does not know an entry.
    """

    dataset: str
    model: str
    method: str
    seed: int
    data_seconds: float
    training_seconds: float
    data_flops: float | None
    training_flops: float | None

    @property
    def flops(self) -> float | None:
        """Operations of both, None if not known."""
        return None if self.data_flops is None or self.training_flops is None else self.data_flops + self.training_flops


def run(plan: Plan, out: Path) -> None:
    """Write the CSV `out`, one row per method and seed, and Markdown, LaTeX and HTML beside it. Raises as `texts`."""
    for suffix, text in texts(plan).items():
        write_text(out.with_suffix(suffix), text)


def texts(plan: Plan) -> dict[str, str]:
    """The text of the cost table by the suffix of its file, the CSV last.

    Raises InputError for a config without table 4 and for a benchmark file that is missing or cannot be read.
    """
    costs = measure(plan)
    most = max((cost.flops for cost in costs if cost.flops is not None), default=0.0)
    unit = next((unit for unit in UNITS if most >= unit[1]), UNITS[-1])
    layout = lay_out(costs, *unit)
    seeds = len({cost.seed for cost in costs})
    spread = f"Mean ± sample standard deviation over {seeds} seeds; a figure without ± is of one seed."
    notes = [*NOTES, *([spread] if seeds > 1 else [])]
    if unknown := dict.fromkeys(cost.method for cost in costs if cost.flops is None):
        notes.append(f"Arithmetic not estimated: {', '.join(unknown)}.")
    text = [f"## {TITLE}", "", *markdown.grid(layout, {}), *markdown.paragraphs(notes)]
    return {
        ".md": "\n".join(text).rstrip() + "\n",
        ".tex": latex.table_float("cost", f"{TITLE}. {' '.join(notes)}", layout, {}),
        ".html": html.table_page(TITLE, "", html.grid(layout, {}, TITLE) + html.listed(notes)),
        ".csv": metrics_csv([field.name for field in fields(Cost)], map(asdict, costs)),
    }


def measure(plan: Plan) -> list[Cost]:
    """The costs in the order of table 4."""
    prices = Prices(plan, Throughput("arithmetic alone", rates={"synthesis": {"any": 1.0}}), robust=1.0)
    found = []
    for made in makings(plan):
        kinds = (made.data, made.student)
        spent = [sum(seconds(job.output) for job in jobs) for jobs in kinds]
        counted = [operations([prices.price(job) for job in jobs]) for jobs in kinds]
        found.append(Cost(made.dataset, made.model, made.method, made.seed, *map(float, spent), *counted))
    return found


def operations(prices: Sequence[Price | None]) -> float | None:
    """Operations of jobs together; None if one of them is not known."""
    known = [price.flops for price in prices if price is not None]
    return float(sum(known)) if len(known) == len(prices) else None


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
                    _value((cost.flops / size for cost in seeds if cost.flops is not None), 2),
                ]
            rows.append(items)
        blocks.append(Block(dataset_title(dataset), rows))
    columns = ["data, s", "training, s", "total, s", unit]
    return Layout(["Method"], [(model_title(model), len(columns)) for model in models], columns * len(models), blocks)


def _value(values: Iterable[float], places: int = 1) -> Value | None:
    """Mean and sample standard deviation; None without values."""
    found = list(values)
    if not found:
        return None
    return Value(statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else None, places=places)
