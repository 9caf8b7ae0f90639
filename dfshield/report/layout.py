"""A table's layout as the paper prints it: rows and columns of values, before any markup."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dfshield import registry
from dfshield.core.threat import parse_threat
from dfshield.evaluation.ledger import confidence_interval
from dfshield.planning.cells import swept
from dfshield.planning.tables import SYMBOLS, TableSpec, formulas
from dfshield.registry import metric
from dfshield.report.items import Efforts, Gain, Item, Pair, Value
from dfshield.report.published import Key, Published
from dfshield.report.rows import Row

GREEK = {"tau": "τ", "lambda1": "λ1", "lambda2": "λ2"}


class Condition(NamedTuple):
    """What a block of a table is of: a data set, and a threat model where the table compares several."""

    dataset: str
    threat: str
    """empty where the table does not compare threats"""

    @property
    def title(self) -> str:
        """The data set's usual name, with the threat where several are compared."""
        return dataset_title(self.dataset) + (f", {threat_title(self.threat)}" if self.threat else "")


Values = Mapping[tuple[Condition, str, str, str, str], Value]
"""Figures by condition, model, method, variant and metric."""


@dataclass(frozen=True)
class Block:
    """Rows under one title (a data set); each row has one item per column."""

    title: str
    rows: list[list[Item]]


@dataclass(frozen=True)
class Layout:
    """A laid-out table: `stub` columns name the rows, `groups` (title, width) span the value columns `columns`."""

    stub: list[str]
    groups: list[tuple[str, int]]
    columns: list[str]
    blocks: list[Block]


def dataset_title(name: str) -> str:
    """The data set's usual name."""
    return registry.DATASETS[name].title if name in registry.DATASETS else name


def threat_title(text: str) -> str:
    """A threat model as tables print it: ``l∞ ε = 4/255``."""
    norm, _, size = text.partition(":")
    return f"{'l∞' if parse_threat(text).norm == 'linf' else norm} ε = {size}"


def model_title(name: str) -> str:
    """The model's usual name."""
    return registry.MODELS[name].title if name in registry.MODELS else name


def measured(rows: Sequence[Row]) -> dict[Key, Value]:
    """Values of table rows, averaged over seeds.

    Seeds share the test images, so the interval of a mean counts the images once.
    """
    groups: dict[Key, list[Row]] = {}
    for row in rows:
        if not math.isnan(row.value):  # a rate of no image
            groups.setdefault(row.key, []).append(row)
    return {key: _average(group) for key, group in groups.items()}


def _average(rows: list[Row]) -> Value:
    flags = tuple(dict.fromkeys(flag for row in rows for flag in row.flags))
    places, accuracy = metric(rows[0].metric).decimals, rows[0].unit == "%"
    if len(rows) == 1:
        low, high = rows[0].ci_low, rows[0].ci_high
        return Value(rows[0].value, None, None if math.isnan(low) else (low, high), flags, places)
    values = [row.value for row in rows]
    mean = statistics.fmean(values)
    spread = statistics.stdev(values) if math.isfinite(mean) else None
    n = min(row.n for row in rows)
    return Value(mean, spread, confidence_interval(round(mean * n / 100), n) if accuracy else None, flags, places)


def of_paper(entries: Sequence[Published]) -> dict[Key, Value]:
    """Values of the paper's table."""
    return {entry.key: Value(entry.value, flags=entry.flags, places=metric(entry.metric).decimals) for entry in entries}


def lay_out(spec: TableSpec, values: Mapping[Key, Value], efforts: Efforts | None = None) -> Layout:
    """Arrange values as the paper's table `spec` does; data sets, models and methods in order of first appearance.

    Data sets at several threats are printed one threat after the other. A table of attacks has their `efforts`.
    """
    if spec.layout == "attacks":
        return _attacks(spec, values, efforts or {})
    kinds = {"rows": _rows, "datasets": _datasets, "models": _models, "ablation": _ablation}
    kinds |= {"sweep": _sweep, "matrix": _matrix, "formulas": _formulas}
    compared = spec.compares_threats and len({key[-1] for key in values}) > 1
    by_condition = {
        (Condition(dataset, threat if compared else ""), *rest): value
        for (dataset, *rest, threat), value in values.items()
    }
    return kinds[spec.layout](spec, by_condition)  # type: ignore[arg-type]


def _conditions(values: Values) -> list[Condition]:
    return list(dict.fromkeys(key[0] for key in values))


def _names(values: Values, position: int) -> list[str]:
    return list(dict.fromkeys(str(key[position]) for key in values))


def _pairs(values: Values) -> list[tuple[Condition, str]]:
    return list(dict.fromkeys((key[0], key[1]) for key in values))


def _figures(spec: TableSpec, values: Values, condition: Condition, model: str, method: str) -> list[Item]:
    """The figures of one row of one model; the one of `gain_of` with its gain."""
    row: dict[str, Value | None] = {m: values.get((condition, model, method, "", m)) for m in spec.metrics}
    items: list[Item] = list(row.values())
    value = row.get(spec.gain_of) if spec.gain_of else None
    base = _base(spec, values, condition, model, method)
    if value and base is not None:
        items[spec.metrics.index(str(spec.gain_of))] = Gain(value, value.mean - base)
    return items


def _base(spec: TableSpec, values: Values, condition: Condition, model: str, method: str) -> float | None:
    """What the gain of a row is counted from; None for rows that have none."""
    methods = [row.method for row in spec.rows]
    if spec.gain_from == "first":
        others = methods[:1] if method != methods[0] else []
    else:
        others = methods[:-1] if method == methods[-1] else []
    figures = [values.get((condition, model, other, "", str(spec.gain_of))) for other in others]
    return max((figure.mean for figure in figures if figure), default=None)


def _row_title(spec: TableSpec, method: str, condition: Condition) -> str:
    """A method's name: on the paper's data sets as the paper prints it."""
    printed = next((row.printed for row in spec.rows if row.method == method), "")
    return printed if printed and condition.dataset in spec.paper.datasets else method


def _marks(spec: TableSpec, method: str) -> list[Item]:
    """Ticks and crosses of a row below their columns; nothing where it has none, as one that is in print alone."""
    own = next((row.marks for row in spec.rows if row.method == method), {})
    return [own.get(title) for title in spec.rows[0].marks]


def _rows(spec: TableSpec, values: Values) -> Layout:
    """Methods below one another, models side by side, a block a data set; of one method, data sets are the rows."""
    models = _names(values, 1)
    single = len(spec.rows) == 1
    blocks = []
    for condition in _conditions(values):
        rows: list[list[Item]] = []
        for method in dict.fromkeys(key[2] for key in values if key[0] == condition):
            stub = [condition.title] if single else [*_marks(spec, method), _row_title(spec, method, condition)]
            rows.append(
                [*stub, *(item for model in models for item in _figures(spec, values, condition, model, method))]
            )
        blocks.append(Block(condition.title, rows))
    if single:
        blocks = [Block("", [row for block in blocks for row in block.rows])]
    groups = [(model_title(model), len(spec.metrics)) for model in models]
    stub_titles = ["Data set"] if single else [*spec.rows[0].marks, "Method"]
    return Layout(stub_titles, groups, _columns(spec) * len(models), blocks)


def _columns(spec: TableSpec) -> list[str]:
    return [metric(name).title for name in spec.metrics]


def _datasets(spec: TableSpec, values: Values) -> Layout:
    """Methods below one another, data sets side by side, a block a model."""
    conditions = _conditions(values)
    blocks = []
    for model in _names(values, 1):
        rows: list[list[Item]] = [
            [
                *_marks(spec, method),
                _row_title(spec, method, conditions[0]),
                *(item for condition in conditions for item in _figures(spec, values, condition, model, method)),
            ]
            for method in dict.fromkeys(key[2] for key in values if key[1] == model)
        ]
        blocks.append(Block(model_title(model), rows))
    groups = [(condition.title, len(spec.metrics)) for condition in conditions]
    return Layout([*spec.rows[0].marks, "Method"], groups, _columns(spec) * len(conditions), blocks)


def _formulas(spec: TableSpec, values: Values) -> Layout:
    columns = ["Method", "Generator minimises", "Student minimises"]  # texts, so all of them to the left
    return Layout(columns, [], [], [Block("", [list(row) for row in formulas(spec)])])


def _models(spec: TableSpec, values: Values) -> Layout:
    """Models below one another, each with its methods; of one method, a row a model."""
    single = len(spec.rows) == 1
    blocks = []
    for condition in _conditions(values):
        rows: list[list[Item]] = []
        for model in [model for other, model in _pairs(values) if other == condition]:
            for row in spec.rows:
                title = model_title(model) if row is spec.rows[0] else ""
                name = [] if single else [_row_title(spec, row.method, condition)]
                rows.append([title, *row.marks.values(), *name, *_figures(spec, values, condition, model, row.method)])
        blocks.append(Block(condition.title, rows))
    stub = ["Model", *spec.rows[0].marks, *([] if single else ["Method"])]
    return Layout(stub, spec.headings, _columns(spec), blocks)


def _ablation(spec: TableSpec, values: Values) -> Layout:
    """As `_models`, with ticks and crosses in condition of the methods' names."""
    full = _models(spec, values)
    method = full.stub.index("Method")
    blocks = [Block(block.title, [row[:method] + row[method + 1 :] for row in block.rows]) for block in full.blocks]
    columns = [
        f"{title} (gain)" if name == spec.gain_of else title
        for name, title in zip(spec.metrics, full.columns, strict=True)
    ]
    return Layout(full.stub[:method], [], columns, blocks)


def _attacks(spec: TableSpec, values: Mapping[Key, Value], efforts: Efforts) -> Layout:
    """Attacks below one another, methods side by side, beside them what each attack takes; a block a model."""
    methods = list(dict.fromkeys(key[2] for key in values))
    figures = {key[:3] + key[4:5]: value for key, value in values.items()}
    blocks = []
    for dataset, model in dict.fromkeys(key[:2] for key in values):
        rows: list[list[Item]] = []
        for name in spec.metrics:
            own = efforts.get((dataset, model, name))
            taken = [str(own.images), _plain(own.passes, 0), _plain(own.seconds, 1)] if own else [None] * 3
            rows.append([metric(name).title, *(figures.get((dataset, model, m, name)) for m in methods), *taken])
        blocks.append(Block(f"{dataset_title(dataset)}, {model_title(model)}", rows))
    columns = [*methods, "images", "passes per image", "seconds"]
    return Layout(["Attack"], [("Accuracy", len(methods)), ("Effort", 3)], columns, blocks)


def _plain(number: float | None, places: int) -> Value | None:
    return None if number is None else Value(number, places=places)


def _symbol(option: str) -> str:
    name = SYMBOLS.get(option, option)
    return GREEK.get(name, name)


def _settings(values: Values, option: str) -> list[float]:
    name = SYMBOLS.get(option, option)
    return sorted({swept(key[3])[name] for key in values if name in swept(key[3])})


def _sweep(spec: TableSpec, values: Values) -> Layout:
    (option,) = spec.sweep
    name = SYMBOLS.get(option, option)
    pairs, methods = _pairs(values), _names(values, 2)
    several = len(methods) > 1
    rows: list[list[Item]] = [
        [
            f"{setting:g}",
            *([method] if several else []),
            *(values.get((*pair, method, f"{name}={setting:g}", metric)) for pair in pairs for metric in spec.metrics),
        ]
        for method in methods
        for setting in _settings(values, option)
    ]
    groups = [(_pair_title(pair, pairs), len(spec.metrics)) for pair in pairs]
    stub = [_symbol(option), *(["Method"] if several else [])]
    return Layout(stub, groups, _columns(spec) * len(pairs), [Block(_common_title(pairs), rows)])


def _pair_title(pair: tuple[Condition, str], pairs: list[tuple[Condition, str]]) -> str:
    if len({condition for condition, _ in pairs}) == 1:
        return model_title(pair[1])
    if len({model for _, model in pairs}) == 1:
        return pair[0].title
    return f"{pair[0].title}, {model_title(pair[1])}"


def _common_title(pairs: list[tuple[Condition, str]]) -> str:
    conditions, models = {condition for condition, _ in pairs}, {model for _, model in pairs}
    if len(conditions) == 1:
        return conditions.pop().title
    return model_title(models.pop()) if len(models) == 1 else ""


def _matrix(spec: TableSpec, values: Values) -> Layout:
    down, across = spec.sweep
    columns = _settings(values, across)
    blocks = []
    for condition, model in _pairs(values):
        for method in _names(values, 2):
            rows: list[list[Item]] = []
            for one in _settings(values, down):
                keys = [(condition, model, method, f"{down}={one:g},{across}={two:g}") for two in columns]
                cells = [Pair(*(values.get((*key, metric)) for metric in spec.metrics)) for key in keys]
                rows.append([f"{one:g}", *cells])
            blocks.append(Block(f"{condition.title}, {model_title(model)}", rows))
    group = [(f"{_symbol(across)}: {' ('.join(_columns(spec))})", len(columns))]
    return Layout([_symbol(down)], group, [f"{two:g}" for two in columns], blocks)
