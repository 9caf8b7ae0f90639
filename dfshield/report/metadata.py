"""Metadata of a model card as the Hugging Face Hub reads them: YAML before the Markdown.

Figures are in its `model-index`, whose form is github.com/huggingface/hub-docs, modelcard.md. The Hub's newer files
below ``.eval_results/`` are not written: they take results on data sets that are registered there as benchmarks
(huggingface.co/docs/hub/eval-results), which a user's own evaluation images are not.
"""

from collections.abc import Sequence
from typing import Any

from dfshield.core.strict_yaml import dump
from dfshield.models.card import Card
from dfshield.registry import metric
from dfshield.report.broken import Tally
from dfshield.report.card_pictures import accuracies
from dfshield.report.rows import Row

HARDENED = "Hardened"
"""The method whose figures are those of the model that a card is of."""
TASK = "image-classification"


def front_matter(name: str, card: Card, rows: Sequence[Row], broken: Sequence[Tally]) -> str:
    """The metadata between lines of ``---``. Values are shares in [0,1], as the Hub's metric `accuracy` has them."""
    tags = [TASK, "adversarial-robustness", "dfshield", *(["data-free"] if card.real_data == "none" else [])]
    values: dict[str, Any] = {"pipeline_tag": TASK, "tags": tags}
    if own := [row for row in accuracies(rows) if row.method == HARDENED]:
        task = {"type": TASK, "name": "Image Classification"}
        results = {"task": task, "dataset": _dataset(own, broken), "metrics": [_metric(row) for row in own]}
        values |= {"metrics": ["accuracy"], "model-index": [{"name": name, "results": [results]}]}
    return f"---\n{dump(values)}---\n"


def _dataset(rows: Sequence[Row], broken: Sequence[Tally]) -> dict[str, Any]:
    own = {tally.data_sha256 for tally in broken if tally.method == HARDENED}
    hashes = {"sha256": ", ".join(sorted(own))} if own else {}
    counts = " or ".join(dict.fromkeys(str(row.n) for row in rows))
    return {"type": "own-images", "name": f"The user's own evaluation set, {counts} images", "args": hashes}


def _metric(row: Row) -> dict[str, Any]:
    title = "Clean accuracy" if row.metric == "clean" else f"Accuracy under {metric(row.metric).title}"
    limits = {"confidence_interval_95": [_share(row.ci_low), _share(row.ci_high)]}
    attacked = {} if row.metric == "clean" else {"protocol": row.protocol, "threat": row.threat}
    flags = {"flags": list(row.flags)} if row.flags else {}
    return {"type": "accuracy", "value": _share(row.value), "name": title, "args": attacked | limits | flags}


def _share(percent: float) -> float:
    return round(percent / 100, 4)
