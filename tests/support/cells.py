"""Cells of tables with ledgers and records of chosen figures, for tests of the report."""

from itertools import product
from pathlib import Path

from support.ledgers import make_ledger, make_record
from support.records import certificates, detection, landscape

from dfshield.evaluation.certificates import write_certificates
from dfshield.evaluation.detections import write_detection
from dfshield.evaluation.landscapes import write_landscape
from dfshield.planning.cells import Cell, variant
from dfshield.planning.tables import TableSpec, load_tables
from dfshield.registry import DIVERSITY_METRICS
from dfshield.report.record_rows import DETECTION

ROOT = Path(__file__).parents[2]
SPECS = load_tables(ROOT / "config" / "tables.yaml")


def cell(ledger: Path, **changes: object) -> Cell:
    fields = {"table": "table4", "dataset": "digits", "model": "cnn-s", "method": "Ours", "variant": ""}
    fields |= {"defence": "none", "threat": "linf:8/255", "metric": "pgd10", "seed": 0, "ledger": str(ledger)}
    return Cell(**(fields | changes))  # type: ignore[arg-type]


def grid(folder: Path, spec: TableSpec, dataset: str, models: list[str], seeds: int, scale: str = "demo") -> list[Cell]:
    """Cells of a table with ledgers whose accuracies differ by method, sweep and seed."""
    threats = spec.papers_threats if dataset in spec.paper.datasets else ("linf:8/255",)
    stated = spec.evaluations or spec.threats
    if stated and dataset not in spec.paper.datasets:
        threats = getattr(stated, scale)
    values = product(*(getattr(sweep, scale) for sweep in spec.sweep.values()))
    settings = [dict(zip(spec.sweep, value, strict=True)) for value in values]
    found = []
    stand_in = dataset not in spec.paper.datasets
    rows = [row for row in spec.rows if row.fits(stand_in)]
    kinds = product(enumerate(threats), enumerate(rows), enumerate(settings), models)
    for (k, threat), (i, row), (j, setting), model in kinds:
        for metric, seed in product(spec.metrics, range(seeds if row.source != "none" else 1)):
            own = {"table": spec.key, "dataset": dataset, "model": model, "method": row.method, "metric": metric}
            own |= {"seed": seed, "variant": variant(setting), "threat": threat}
            if metric in DIVERSITY_METRICS:
                path = folder / f"{dataset}-{model}-{i}-{seed}.json"
                make_record(path, (5 + i + seed) / 16, dataset=dataset, model=model, source=row.source, seed=seed)
                found.append(cell(path, **own))
                continue
            subject = {"dataset": dataset, "model": model, "seed": seed}
            if metric == "certified":
                path = folder / f"{dataset}-{model}-{i}-{k}-{seed}.json"
                write_certificates(path, certificates([0.9, 0.8, 0.05], norm=threat.partition(":")[0], **subject))
                found.append(cell(path, **own))
                continue
            if metric in DETECTION:
                path = folder / f"{dataset}-{model}-{i}-{seed}.json"
                write_detection(path, detection(threat=threat, **subject))
                found.append(cell(path, **own))
                continue
            if metric == "sharpness":
                path = folder / f"{dataset}-{model}-{i}-{seed}.json"
                write_landscape(path, landscape((0.5 + i, 0.25 + seed), threat=threat, **subject))
                found.append(cell(path, **own))
                continue
            path = folder / f"{dataset}-{model}-{i}-{j}-{k}-{metric}-{seed}.h5"
            clean, robust = 150 + i + seed, min(140, max(1, 60 + 10 * i + 2 * j + seed - 20 * k))
            make_ledger(
                path,
                clean,
                clean if metric == "clean" else robust,
                protocol=metric,
                threat=threat,
                real_data="train" if row.source == "real" else "none",
            )
            found.append(cell(path, **own))
    return found
