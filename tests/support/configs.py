"""Two small configs, a grid and a user's own model, changes of them, and their plans."""

import json
from pathlib import Path

from dfshield.planning.config import check_config, load_config
from dfshield.planning.plan import Plan

ROOT = Path(__file__).parents[2]

GRID = {"name": "run", "datasets": {"digits": {"models": ["cnn-s"], "threat": "linf:8/255"}}}
MINE = {
    "name": "mine",
    "harden": {
        "net": {
            "factory": "net.py:build",
            "weights": "net.pt",
            "input_shape": [3, 32, 32],
            "classes": 10,
            "mean": [0.5, 0.5, 0.5],
            "std": [0.2, 0.2, 0.2],
            "threat": "linf:8/255",
            "evaluation": {"file": "test.npz"},
        }
    },
}


def changed(base: dict, path: str, value: object) -> dict:
    """A copy of a config with `value` at a path such as ``datasets/digits/train``."""
    result = json.loads(json.dumps(base))
    *parents, last = path.split("/")
    place = result
    for key in parents:
        place = place.setdefault(key, {})
    place[last] = value
    return result


def plan(base=GRID, **paths) -> Plan:
    """The plan of a config with changes: ``datasets__digits__threat="l2:1"``."""
    for path, value in paths.items():
        base = changed(base, path.replace("__", "/").replace("_of_", "-"), value)
    return Plan.of(check_config(base))


def job(made: Plan, stage: str, dataset: str, model: str, **fields):
    """Options of one job of a plan."""
    return made.options(stage, made.place(dataset, model, **fields))


def paper() -> Plan:
    """The plan of the paper's whole grid."""
    return Plan.of(load_config(ROOT / "config/paper.yaml"))
