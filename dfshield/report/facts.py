"""What is printed beside a table's figures: facts about the data, what was left out, footnotes."""

import math
from collections.abc import Iterable, Sequence
from statistics import fmean

from dfshield import registry
from dfshield.planning.tables import Scale, TableSpec
from dfshield.registry import metric
from dfshield.report.layout import dataset_title, model_title, threat_title
from dfshield.report.notes import Marks
from dfshield.report.rows import Row

UNBALANCED = 1.5
"""Largest class in units of an even share from which balanced accuracy and macro-F1 are printed, too.

Tables with a sweep have too many cells for that; their CSVs have both.
"""


def facts(rows: Sequence[Row], spec: TableSpec, intervals: bool) -> list[str]:
    """What a reader needs beside the figures: units, spread, threat, number of images, majority class, protocols."""
    if not rows:
        return []
    accuracies = any(_is_accuracy(row) for row in rows)
    first = "Accuracies in percent." if accuracies else ""
    seeds = len({row.seed for row in rows})
    if seeds > 1:
        first += (
            f" Mean ± sample standard deviation over {seeds} seeds of teacher (unless it came trained), synthesis and "
            "training; a figure without ± is of one seed."
        )
    if intervals and accuracies:
        shared = " of the mean (the seeds share the images)" if seeds > 1 else ""
        first += f" Brackets: 95 % Wilson interval{shared} for the given number of images."
    lines = [*_stand_in(rows, spec), *([first.strip()] if first else [])]
    for dataset in dict.fromkeys(row.dataset for row in rows):
        own = [row for row in rows if row.dataset == dataset and _is_accuracy(row)]
        if not own:  # diversity or detection alone
            continue
        threats = ", ".join(_threats(spec, own))
        sets: dict[tuple[int, float], dict[str, None]] = {}  # columns by their test images
        for row in own:
            sets.setdefault((row.n, row.majority), {})[metric(row.metric).title] = None
        sizes = "; ".join(
            f"n = {n} images{' (' + ', '.join(columns) + ')' if len(sets) > 1 else ''}, "
            f"always answering the majority class scores {majority:.2f} %"
            for (n, majority), columns in sets.items()
        )
        lines.append(f"{dataset_title(dataset)}: {threats + ', ' if threats else ''}{sizes}.")
        if not spec.sweep and max(row.majority for row in own) >= UNBALANCED * _even_share(dataset):
            lines += _balanced([row for row in own if not math.isnan(row.macro_f1)])
    lines += [*_distance_facts(rows, intervals), *_diversity_facts(rows), *_detection_facts(rows, intervals)]
    lines += _landscape_facts(rows)
    lines.append(f"Protocols: {', '.join(dict.fromkeys(row.protocol for row in rows))}.")
    return lines


def _is_accuracy(row: Row) -> bool:
    return row.unit == "%" and metric(row.metric).evidence != "detection"


def _threats(spec: TableSpec, rows: Sequence[Row]) -> list[str]:
    """The threat models of one data set's accuracies, with the columns that have one of their own."""
    columns: dict[str, dict[str, None]] = {}
    for row in rows:
        if row.metric != "clean" and metric(row.metric).bounded:
            column = metric(row.metric).title if row.metric in spec.by_metric else ""
            columns.setdefault(threat_title(row.threat), {})[column] = None
    return [title if "" in own else f"{title} ({', '.join(own)})" for title, own in columns.items()]


def _even_share(dataset: str) -> float:
    """Share in percent of a class if all were equally frequent; 20 for a user's own data set."""
    return 100 / registry.DATASETS[dataset].classes if dataset in registry.DATASETS else 20.0


def _balanced(rows: Sequence[Row]) -> list[str]:
    """Balanced accuracy and macro-F1 of one data set's cells, one line a model."""
    lines, compared = [], len({row.threat for row in rows}) > 1
    for model in dict.fromkeys(row.model for row in rows):
        cells: dict[str, dict[str, list[Row]]] = {}
        for row in rows:
            if row.model == model:
                threat = threat_title(row.threat) if compared else ""
                name = " ".join(filter(None, (row.method, row.variant, threat)))
                cells.setdefault(name, {}).setdefault(row.metric, []).append(row)
        columns = " / ".join(metric(name).title for name in next(iter(cells.values())))
        figures = ", ".join(f"{name} {' / '.join(map(_shares, own.values()))}" for name, own in cells.items())
        lines.append(
            f"{model_title(model)}, balanced accuracy, the mean over the classes (macro-F1), {columns}: {figures}."
        )
    return lines


def _shares(rows: Sequence[Row]) -> str:
    return f"{fmean(row.balanced for row in rows):.2f} ({fmean(row.macro_f1 for row in rows):.2f})"


def _distance_facts(rows: Sequence[Row], intervals: bool) -> list[str]:
    own = [row for row in rows if metric(row.metric).statistic]
    if not own:
        return []
    norms = " and ".join(dict.fromkeys(threat_title(row.threat).partition(" ")[0] for row in own))
    counts = ", ".join(dict.fromkeys(f"{row.n} of {dataset_title(row.dataset)}" for row in own))
    bracket = " Brackets of a median: 95 % interval by order statistics." if intervals else ""
    return [
        f"Distances are the {norms} norm of the smallest perturbation found that breaks an image, for pixels in [0,1], "
        f"over all images ({counts}): 0 for one that is wrong without attack, inf for one that nothing broke. "
        f"Nothing survives at the largest.{bracket}"
    ]


def _diversity_facts(rows: Sequence[Row]) -> list[str]:
    sizes = {dataset_title(row.dataset): row.n for row in rows if metric(row.metric).evidence == "diversity"}
    if not sizes:
        return []
    counts = ", ".join(f"{n} of {title}" for title, n in sizes.items())
    return [
        f"Diversity metrics compare the training images with real ones ({counts}), whose only use is this comparison. "
        "The more of the real images are covered, the higher are recall and coverage and the lower are NDB and JSD "
        "(in nats)."
    ]


def _detection_facts(rows: Sequence[Row], intervals: bool) -> list[str]:
    own = [row for row in rows if metric(row.metric).evidence == "detection"]
    if not own:
        return []
    threats = ", ".join(dict.fromkeys(threat_title(row.threat) for row in own))
    bracket = " Brackets: 95 % Wilson interval." if intervals else ""
    return [
        f"Rates in percent, {threats}. False alarms: share of the evaluation's images that are flagged as they are; "
        "the threshold lets the wanted share of held-out training images be flagged. Detected: share flagged of the "
        "images that the attack fools the network with. Evaded: share, of all that are rightly classified without "
        f"attack, that fool the network and are not flagged.{bracket}"
    ]


def _landscape_facts(rows: Sequence[Row]) -> list[str]:
    own = [row for row in rows if metric(row.metric).evidence == "landscape"]
    if not own:
        return []
    counts = ", ".join(dict.fromkeys(f"{row.n} of {dataset_title(row.dataset)}" for row in own))
    return [
        f"Sharpness: how much the mean cross entropy of images ({counts}) rises, in nats, where the weights move by a "
        "given share r of each filter's norm along random directions, BatchNorm and biases staying; a mean over pairs "
        "of directions and points on the circle of radius r. The smaller, the flatter."
    ]


def _stand_in(rows: Sequence[Row], spec: TableSpec) -> list[str]:
    if not stands_in(rows, spec):
        return []
    here = dict.fromkeys(row.dataset for row in rows)
    return [f"Stand-in data: {_titles(here)} in place of {_titles(spec.paper.datasets)}."]


def stands_in(rows: Sequence[Row], spec: TableSpec) -> bool:
    """Whether the rows are of other data sets than the paper's."""
    return not any(row.dataset in spec.paper.datasets for row in rows)


def scope(rows: Sequence[Row], spec: TableSpec, scale: Scale) -> list[str]:
    """One line on the rules that made this table smaller than the paper's, or larger; none where it is the paper's.

    The rules are those of `spec`; `scale` is the config's `grid`.
    """
    if not rows:
        return []
    stand_in = stands_in(rows, spec)
    rules = [*_whole_table(rows, spec, scale, stand_in)]
    seeds = {name: len({row.seed for row in rows if row.method == name}) for name in {row.method for row in rows}}
    first_model = stand_in and scale == "demo"
    by_row = {
        "the first seed alone (seeds: first)": lambda row: (
            row.seeds == "first" and seeds.get(row.method, max(seeds.values())) < max(seeds.values())
        ),
        "the first model alone (models: first)": lambda row: row.models == "first" and first_model,
        "left out by the config's methods": lambda row: row.fits(stand_in) and row.method not in seeds,
        "not a row of the paper (only: stand-in)": lambda row: row.only == "stand-in" and row.method in seeds,
        "not a row of the paper (only: named)": lambda row: row.only == "named" and row.method in seeds,
    }
    for rule, applies in by_row.items():
        if methods := [row.method for row in spec.rows if applies(row)]:
            rules.append(f"{', '.join(methods)}: {rule}")
    return [f"Extent of this table: {'; '.join(rules)}."] if rules else []


def _whole_table(rows: Sequence[Row], spec: TableSpec, scale: Scale, stand_in: bool) -> list[str]:
    """Rules that concern all rows."""
    rules = []
    if stand_in:
        grid = getattr(spec.grid, scale)
        kept = [f"the first {name} alone" for name in ("model", "seed") if getattr(grid, f"{name}s") == "first"]
        rules.append(" and ".join(kept or ["all models and seeds of the config"]) + f" (grid: {scale})")
    else:
        datasets, models = {row.dataset for row in rows}, {row.model for row in rows}
        missing = [dataset_title(name) for name in spec.paper.datasets if name not in datasets]
        missing += [model_title(name) for name in spec.paper.models if name not in models]
        if missing:
            rules.append(f"without {', '.join(missing)}, which the config lacks")
    if scale == "demo":
        swept = [option for option, values in spec.sweep.items() if values.demo != values.full]
        rules += [f"fewer values of {option} (sweep: demo)" for option in swept]
        if stand_in and spec.threats and spec.threats.demo != spec.threats.full:
            rules.append("threat models for stand-ins (threats: demo)")
        own = [metric(name).title for name, threat in spec.by_metric.items() if threat.demo != threat.full]
        if stand_in and own:
            rules.append(f"threat model of {', '.join(own)} for stand-ins (by_metric: demo)")
    return rules


def _titles(datasets: Iterable[str]) -> str:
    return ", ".join(dataset_title(name) for name in datasets)


def footnotes(marks: Marks) -> list[str]:
    """One line a mark."""
    return [f"{mark} {text}." for mark, text in dict.fromkeys(marks.values())]


def paper_heading(rows: Sequence[Row], spec: TableSpec) -> str:
    """Heading of the paper's own table; says so where its data are others than those above."""
    threats = [*map(threat_title, spec.papers_threats)]
    threats += [f"{metric(name).title} {threat_title(own.full)}" for name, own in spec.by_metric.items()]
    heading = f"{spec.printed} ({', '.join(threats)})"
    if not stands_in(rows, spec):
        return heading
    models = ", ".join(model_title(name) for name in spec.paper.models)
    other = _titles(dict.fromkeys(row.dataset for row in rows))
    return f"{heading}: {_titles(spec.paper.datasets)} with {models}; other data than {other} above, not comparable"
