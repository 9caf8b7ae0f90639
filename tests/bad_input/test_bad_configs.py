"""Whatever is wrong with configs and with what is looked into: status 2, one line, nothing written."""

from pathlib import Path

import pytest
import yaml
from support.bad_input import TABLES, attribute, config, cut, damaged_ledger, foreign_hdf5, nothing, run_case, text
from support.configs import GRID, MINE

CASES = {
    # configs and what is made by them
    "no config": (["table", "table4", "--config", "no.yaml", "--out", "out.csv"], nothing, "no.yaml: cannot be read"),
    "config that is a list": (
        ["table", "table4", "--config", "grid.yaml", "--out", "out.csv"],
        text("grid.yaml", "- a\n"),
        "grid.yaml: a config is a mapping of keys to values",
    ),
    "config that is no YAML": (
        ["table", "table4", "--config", "grid.yaml", "--out", "out.csv"],
        text("grid.yaml", "a: [\nb: {\n"),
        "grid.yaml: cannot be read as YAML",
    ),
    "unknown key": (
        ["table", "table4", "--config", "grid.yaml", "--out", "out.csv"],
        config("grid.yaml", GRID, "seedz", [1]),
        "grid.yaml: seedz: unknown key; did you mean 'seeds'?",
    ),
    "unknown option in a config": (
        ["table", "table4", "--config", "grid.yaml", "--out", "out.csv"],
        config("grid.yaml", GRID, "datasets/digits/train", {"epoch": 3}),
        "unknown option 'epoch'; did you mean 'epochs'?",
    ),
    "NaN in a config": (
        ["table", "table4", "--config", "grid.yaml", "--out", "out.csv"],
        config("grid.yaml", GRID, "train", {"lr": float("nan")}),
        "train.lr: Input should be",
    ),
    "unknown table": (
        ["table", "table99", "--config", "grid.yaml", "--out", "out.csv"],
        nothing,
        "no 'table99'; tables are table4",
    ),
    "table without ledgers": (["table", "table4", "--config", "grid.yaml", "--out", "out.csv"], nothing, "ledger.h5"),
    "tables file that is not there": (
        ["table", "table4", "--config", "grid.yaml", "--out", "out.csv"],
        lambda: Path("grid.yaml").write_text(yaml.safe_dump(GRID | {"tables": "none.yaml"})),
        "none.yaml: cannot be read",
    ),
    "card without the evaluation's file": (
        ["card", "net", "--config", "mine.yaml", "--student", "teacher.safetensors", "--out", "out"],
        config("mine.yaml", MINE, "harden/net/evaluation", {"limit": 10}),
        "mine.yaml: harden.net.evaluation.file: Field required",
    ),
    "card with a mean of other channels": (
        ["card", "net", "--config", "mine.yaml", "--student", "teacher.safetensors", "--out", "out"],
        config("mine.yaml", MINE, "harden/net/mean", [0.5]),
        "harden.net: mean has 1 values but input_shape has 3 channels",
    ),
    "a rival as a row with data": (
        ["table", "table4", "--config", "grid.yaml", "--out", "out.csv"],
        lambda: (
            Path("tables.yaml").write_text(TABLES.read_text().replace("none, recipe: dast", "dss, recipe: dast")),
            Path("grid.yaml").write_text(yaml.safe_dump(GRID | {"tables": "tables.yaml"})),
        ),
        "table4: its row 'DaST' has source 'dss', but recipe 'dast' trains a generator of its own: its source is none",
    ),
    "card of another name": (
        ["card", "nte", "--config", "mine.yaml", "--student", "teacher.safetensors", "--out", "out"],
        nothing,
        "harden: no entry 'nte'; there are net",
    ),
    "card without ledgers": (
        ["card", "net", "--config", "mine.yaml", "--student", "teacher.safetensors", "--out", "out"],
        nothing,
        "ledger.h5",
    ),
    # what is looked into
    "nothing to inspect": (["inspect", "none.h5"], nothing, "none.h5: no such file"),
    "a text to inspect": (["inspect", "net.py"], nothing, "net.py: "),
    "a damaged ledger": (["inspect", "ledger.h5"], damaged_ledger, "ledger.h5: "),
    "a truncated ledger": (["inspect", "ledger.h5"], cut("ledger.h5"), "ledger.h5: "),
    "an edited ledger": (["inspect", "ledger.h5"], attribute("ledger.h5", "protocol", "aa"), "ledger.h5: "),
    "foreign HDF5 to inspect": (["inspect", "data.h5"], foreign_hdf5, "neither a training set nor a ledger"),
    "an edited record": (
        ["inspect", "record.json"],
        lambda: Path("record.json").write_text(Path("record.json").read_text().replace("0.25", "0.75")),
        "record.json: content does not match its SHA-256",
    ),
    "a foreign record": (["inspect", "record.json"], text("record.json", "{}"), "not a record of diversity metrics"),
    "a sheet of a checkpoint": (["inspect", "teacher.safetensors", "--sheet", "a.png"], nothing, "no images to draw"),
    "no table to verify": (["verify", "none.csv"], nothing, "none.csv: "),
    "a text to verify": (["verify", "net.py"], nothing, "net.py: "),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input(folder, capsys, name):
    run_case(folder, capsys, CASES[name])
