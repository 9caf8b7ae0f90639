"""A table's layout as the paper prints it: rows and columns of values, before any markup."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dfshield import registry
from dfshield.core.threat import parse_threat
from dfshield.evaluation.ledger import confidence_interval
from dfshield.planning.cells import swept
from dfshield.planning.tables import SYMBOLS, TableSpec, formulas
from dfshield.report.published import Key, Published
from dfshield.report.tables import Row, decimals

METRICS = {
    **{"clean": "Clean", "fgsm": "FGSM", "pgd10": "PGD-10", "pgd50x5": "PGD-50×5", "autoattack": "AA"},
    **{"precision": "Precision", "recall": "Recall", "density": "Density", "coverage": "Coverage"},
    **{"ndb": "NDB", "jsd": "JSD"},
}
GREEK = {"tau": "τ", "lambda1": "λ1", "lambda2": "λ2"}


@dataclass(frozen=True)
class Value:
    """A figure: mean over seeds, sample standard deviation (None for one seed), 95 % interval, flags, decimals.

    Accuracies are in percent; diversity metrics have no interval.
    """

    mean: float
    spread: float | None = None
    interval: tuple[float, float] | None = None
    flags: tuple[str, ...] = ()
    places: int = 2


@dataclass(frozen=True)
class Pair:
    """Two figures in one cell, printed as ``first (second)``."""

    first: Value | None
    second: Value | None


@dataclass(frozen=True)
class Gain:
    """A figure and its difference from the base row."""

    value: Value | None
    difference: float | None


Item = str | bool | Value | Pair | Gain | None


class Place(NamedTuple):
    """What a block of a table is of."""

    dataset: str
    threat: str
    """empty where the table does not compare threats"""

    @property
    def title(self) -> str:
        """The data set's usual name, with the threat where several are compared."""
        return dataset_title(self.dataset) + (f", {threat_title(self.threat)}" if self.threat else "")


Values = Mapping[tuple[Place, str, str, str, str], Value]
"""Figures by place, model, method, variant and metric."""


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

    Seeds share the test images, so the interval of a mean counts the images once. Seeds with one and the same ledger
    (the undefended teacher) count once.
    """
    groups: dict[Key, dict[str, Row]] = {}
    for row in rows:
        groups.setdefault(row.key, {}).setdefault(row.ledger_sha256, row)
    return {key: _average(list(group.values())) for key, group in groups.items()}


def _average(rows: list[Row]) -> Value:
    flags = tuple(dict.fromkeys(flag for row in rows for flag in row.flags))
    places, accuracy = decimals(rows[0].metric), rows[0].unit == "%"
    if len(rows) == 1:
        return Value(rows[0].value, None, (rows[0].ci_low, rows[0].ci_high) if accuracy else None, flags, places)
    mean, spread = statistics.fmean(row.value for row in rows), statistics.stdev(row.value for row in rows)
    n = min(row.n for row in rows)
    return Value(mean, spread, confidence_interval(round(mean * n / 100), n) if accuracy else None, flags, places)


def of_paper(entries: Sequence[Published]) -> dict[Key, Value]:
    """Values of the paper's table."""
    return {entry.key: Value(entry.value, flags=entry.flags, places=decimals(entry.metric)) for entry in entries}


def lay_out(spec: TableSpec, values: Mapping[Key, Value]) -> Layout:
    """Arrange values as the paper's table `spec` does; data sets, models and methods in order of first appearance.

    Data sets at several threats are printed one threat after the other.
    """
    kinds = {"rows": _rows, "datasets": _datasets, "models": _models, "ablation": _ablation}
    kinds |= {"sweep": _sweep, "matrix": _matrix, "formulas": _formulas}
    compared = spec.threats is not None and len({key[-1] for key in values}) > 1
    placed = {
        (Place(dataset, threat if compared else ""), *rest): value for (dataset, *rest, threat), value in values.items()
    }
    return kinds[spec.layout](spec, placed)  # type: ignore[arg-type]


def _places(values: Values) -> list[Place]:
    return list(dict.fromkeys(key[0] for key in values))


def _names(values: Values, position: int) -> list[str]:
    return list(dict.fromkeys(str(key[position]) for key in values))


def _pairs(values: Values) -> list[tuple[Place, str]]:
    return list(dict.fromkeys((key[0], key[1]) for key in values))


def _rows(spec: TableSpec, values: Values) -> Layout:
    """Methods below one another, models side by side, a block a data set; of one method, data sets are the rows."""
    models = _names(values, 1)
    single = len(spec.rows) == 1
    blocks = []
    for place in _places(values):
        methods = dict.fromkeys(key[2] for key in values if key[0] == place)
        rows: list[list[Item]] = [
            [
                place.title if single else method,
                *(values.get((place, model, method, "", metric)) for model in models for metric in spec.metrics),
            ]
            for method in methods
        ]
        blocks.append(Block(place.title, rows))
    if single:
        blocks = [Block("", [row for block in blocks for row in block.rows])]
    groups = [(model_title(model), len(spec.metrics)) for model in models]
    columns = [METRICS[metric] for metric in spec.metrics] * len(models)
    return Layout(["Data set" if single else "Method"], groups, columns, blocks)


def _datasets(spec: TableSpec, values: Values) -> Layout:
    """Methods below one another, data sets side by side, a block a model."""
    places = _places(values)
    blocks = []
    for model in _names(values, 1):
        rows: list[list[Item]] = [
            [method, *(values.get((place, model, method, "", metric)) for place in places for metric in spec.metrics)]
            for method in dict.fromkeys(key[2] for key in values if key[1] == model)
        ]
        blocks.append(Block(model_title(model), rows))
    groups = [(place.title, len(spec.metrics)) for place in places]
    return Layout(["Method"], groups, [METRICS[m] for m in spec.metrics] * len(places), blocks)


def _formulas(spec: TableSpec, values: Values) -> Layout:
    columns = ["Method", "Generator minimises", "Student minimises"]  # texts, so all of them to the left
    return Layout(columns, [], [], [Block("", [list(row) for row in formulas(spec)])])


def _models(spec: TableSpec, values: Values) -> Layout:
    """Models below one another, each with its methods; gains in AutoAttack accuracy are counted from the first."""
    blocks = []
    for place in _places(values):
        rows: list[list[Item]] = []
        for model in [model for found, model in _pairs(values) if found == place]:
            base = values.get((place, model, spec.rows[0].method, "", "autoattack"))
            for row in spec.rows:
                items: list[Item] = [model_title(model) if row is spec.rows[0] else "", row.method]
                for metric in spec.metrics:
                    found = values.get((place, model, row.method, "", metric))
                    gains = metric == "autoattack" and row is not spec.rows[0]
                    items.append(Gain(found, found.mean - base.mean) if gains and base and found else found)
                rows.append(items)
        blocks.append(Block(place.title, rows))
    return Layout(["Model", "Method"], [], [METRICS[metric] for metric in spec.metrics], blocks)


def _ablation(spec: TableSpec, values: Values) -> Layout:
    blocks = []
    for place in _places(values):
        rows: list[list[Item]] = []
        for model in [model for found, model in _pairs(values) if found == place]:
            base = values.get((place, model, spec.rows[0].method, "", spec.metrics[-1]))
            for row in spec.rows:
                found = [values.get((place, model, row.method, "", metric)) for metric in spec.metrics]
                last = found[-1]
                gain = last.mean - base.mean if base and last and row is not spec.rows[0] else None
                title = model_title(model) if row is spec.rows[0] else ""
                rows.append([title, *row.marks.values(), *found[:-1], Gain(last, gain)])
        blocks.append(Block(place.title, rows))
    columns = [METRICS[metric] for metric in spec.metrics]
    return Layout(["Model", *spec.rows[0].marks], [], [*columns[:-1], f"{columns[-1]} (gain)"], blocks)


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
    return Layout(stub, groups, [METRICS[m] for m in spec.metrics] * len(pairs), [Block(_common_title(pairs), rows)])


def _pair_title(pair: tuple[Place, str], pairs: list[tuple[Place, str]]) -> str:
    if len({place for place, _ in pairs}) == 1:
        return model_title(pair[1])
    if len({model for _, model in pairs}) == 1:
        return pair[0].title
    return f"{pair[0].title}, {model_title(pair[1])}"


def _common_title(pairs: list[tuple[Place, str]]) -> str:
    places, models = {place for place, _ in pairs}, {model for _, model in pairs}
    if len(places) == 1:
        return places.pop().title
    return model_title(models.pop()) if len(models) == 1 else ""


def _matrix(spec: TableSpec, values: Values) -> Layout:
    down, across = spec.sweep
    columns = _settings(values, across)
    blocks = []
    for place, model in _pairs(values):
        for method in _names(values, 2):
            rows: list[list[Item]] = []
            for one in _settings(values, down):
                keys = [(place, model, method, f"{down}={one:g},{across}={two:g}") for two in columns]
                cells = [Pair(*(values.get((*key, metric)) for metric in spec.metrics)) for key in keys]
                rows.append([f"{one:g}", *cells])
            blocks.append(Block(f"{place.title}, {model_title(model)}", rows))
    group = [(f"{_symbol(across)}: {' ('.join(METRICS[m] for m in spec.metrics)})", len(columns))]
    return Layout([_symbol(down)], group, [f"{two:g}" for two in columns], blocks)
