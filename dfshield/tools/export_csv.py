"""`dfshield export-csv`: an evaluation ledger as CSV, one row per image, for spreadsheets and statistics programs."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dfshield.core.files import atomic
from dfshield.evaluation.ledger import Ledger, read_ledger

if TYPE_CHECKING:
    import pandas


def run(ledger: Path, out: Path | None) -> None:
    """Write the rows of `ledger` to the CSV `out`, or to standard output without it.

    Columns: index, label, clean_prediction, prediction (under attack), broken (0 or 1), component (what broke the
    image; empty where nothing did), margin (z_y less the largest other logit), and the size of the stored perturbation
    in both norms (empty where there is none); of an attack that looks for the smallest perturbation also distance, the
    norm of the nearest misclassified point that was found, within ε or not (inf where none was). Raises InputError for
    a file that is no whole ledger.
    """
    frame = rows(read_ledger(ledger))
    if out is None:
        frame.to_csv(sys.stdout, index=False, lineterminator="\n")
        return
    with atomic(out) as temporary:
        frame.to_csv(temporary, index=False, lineterminator="\n")


def rows(ledger: Ledger) -> "pandas.DataFrame":
    """The ledger's rows as a data frame, one per image."""
    import numpy as np
    import pandas

    names = np.array(["", *ledger.components[1:]])
    frame = pandas.DataFrame(
        {
            "index": np.arange(ledger.n),
            "label": ledger.label,
            "clean_prediction": ledger.clean_prediction,
            "prediction": ledger.prediction,
            "broken": ledger.broken.astype(int),
            "component": names[ledger.component],
            "margin": ledger.margin,
        }
    )
    delta = ledger.perturbation.astype(np.float64)
    axes = tuple(range(1, delta.ndim))
    for name, values in (("linf", np.abs(delta).max(axes, initial=0.0)), ("l2", np.sqrt((delta**2).sum(axes)))):
        frame[name] = np.nan
        frame.loc[ledger.perturbed_index, name] = values
    if len(ledger.distances):
        frame["distance"] = ledger.distances
    return frame
