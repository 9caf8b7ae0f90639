"""Checkpoints of a tiny model with a chosen model card."""

from pathlib import Path

from dfshield.models.checkpoints import Card, build_network, save_checkpoint
from dfshield.models.classifier import Classifier


def save_card(path: Path, kind: str, real_data: str, seed: int, **provenance: object) -> str:
    net = build_network("cnn-s", (1, 8, 8), 10, seed=seed)
    details = {"options": {"lambda1": 1.0, "threat": "linf:8/255"}, "seed": 0, "recipe": "dfshield", "source": "dss"}
    card = Card(kind, "digits", "cnn-s", (1, 8, 8), 10, (0.3,), (0.38,), real_data,  # type: ignore[arg-type]
                provenance=details | provenance)  # fmt: skip
    return save_checkpoint(path, Classifier(net, (0.3,), (0.38,)), card)
