UNBALANCED = 30.0
"""Share of the largest class in percent from which balanced accuracy is printed, too."""


def facts(rows: Sequence[Row], spec: TableSpec, intervals: bool) -> list[str]:
    """What a reader needs beside the figures: units, spread, threat, number of images, majority class, protocols."""
    if not rows:
        return []
    accuracies = any(row.unit == "%" for row in rows)
    first = "Accuracies in percent." if accuracies else ""
    seeds = len({row.seed for row in rows})
    if seeds > 1:
        first += f" Mean ± sample standard deviation over {seeds} seeds; a figure without ± is of one seed."
    if intervals and accuracies:
        shared = " of the mean (the seeds share the images)" if seeds > 1 else ""
        first += f" Brackets: 95 % Wilson interval{shared} for the given number of images."
    lines = [*_stand_in(rows, spec), *([first.strip()] if first else [])]
    for dataset in dict.fromkeys(row.dataset for row in rows):
        own = [row for row in rows if row.dataset == dataset and row.unit == "%"]
        if not own:  # diversity alone
            continue
        threats = ", ".join(dict.fromkeys(threat_title(row.threat) for row in own if row.metric != "clean"))
        sets: dict[tuple[int, float], dict[str, None]] = {}  # columns by their test images
        for row in own:
            sets.setdefault((row.n, row.majority), {})[metric(row.metric).title] = None
        sizes = "; ".join(
            f"n = {n} images{' (' + ', '.join(columns) + ')' if len(sets) > 1 else ''}, "
            f"always answering the majority class scores {majority:.2f} %"
            for (n, majority), columns in sets.items()
        )
        lines.append(f"{dataset_title(dataset)}: {threats + ', ' if threats else ''}{sizes}.")
        if max(row.majority for row in own) >= UNBALANCED:
            lines += _balanced(own)
    lines += _diversityfacts(rows)
    lines.append(f"Protocols: {', '.join(dict.fromkeys(row.protocol for row in rows))}.")
    return lines


def _balanced(rows: Sequence[Row]) -> list[str]:
    """Balanced accuracy of one data set's cells, one line a model."""
    lines, compared = [], len({row.threat for row in rows}) > 1
    for model in dict.fromkeys(row.model for row in rows):
        found: dict[str, dict[str, list[float]]] = {}
        for row in rows:
            if row.model == model:
                threat = threat_title(row.threat) if compared else ""
                name = " ".join(filter(None, (row.method, row.variant, threat)))
                found.setdefault(name, {}).setdefault(row.metric, []).append(row.balanced)
        metrics = " / ".join(METRICS.get(metric, metric) for metric in next(iter(found.values())))
        figures = ", ".join(
            f"{name} {' / '.join(f'{fmean(values):.2f}' for values in own.values())}" for name, own in found.items()
        )
        lines.append(f"{model_title(model)}, balanced accuracy (mean over the classes), {metrics}: {figures}.")
    return lines


def _diversityfacts(rows: Sequence[Row]) -> list[str]:
    sizes = {dataset_title(row.dataset): row.n for row in rows if row.metric in DIVERSITY}
    if not sizes:
        return []
    counts = ", ".join(f"{n} of {title}" for title, n in sizes.items())
    return [
        f"Diversity metrics compare the training images with real ones ({counts}), whose only use is this comparison. "
        "The more of the real images are covered, the higher are recall and coverage and the lower are NDB and JSD "
        "(in nats)."
    ]


def _stand_in(rows: Sequence[Row], spec: TableSpec) -> list[str]:
    here, there = dict.fromkeys(row.dataset for row in rows), spec.paper.datasets
    if any(name in there for name in here):
        return []
    return [f"Stand-in data: {_titles(here)} in place of {_titles(there)}."]


def _titles(datasets: Iterable[str]) -> str:
    return ", ".join(dataset_title(name) for name in datasets)


def footnotes(marks: Marks) -> list[str]:
    return [f"{mark} {text}." for mark, text in dict.fromkeys(marks.values())]


def paper_heading(rows: Sequence[Row], spec: TableSpec) -> str:
    heading = f"The paper's Table {spec.number} ({', '.join(map(threat_title, spec.papers_threats))})"
    if not _stand_in(rows, spec):
        return heading
    models = ", ".join(model_title(name) for name in spec.paper.models)
    other = _titles(dict.fromkeys(row.dataset for row in rows))
    return f"{heading}: {_titles(spec.paper.datasets)} with {models}; other data than {other} above, not comparable"


