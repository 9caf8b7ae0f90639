"""Freeze the numbers of a run: hashes of every array below a results folder, to compare before and after a change.

    python tests/support/freeze.py RESULTS --out before.json       # after a clean build
    python tests/support/freeze.py RESULTS --compare before.json   # after a clean build of the changed program
    … --rename aa-standard@=autoattack@                            # where a part of the paths has another name

Only numbers count: tensors of checkpoints, arrays of training sets and ledgers, values of diversity records and of
tables. Options, code digests and attributes may change. The script reads the files by itself, so that it works on what
any version of the program has written.
"""

import argparse
import csv
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import h5py
from safetensors.numpy import load_file

VALUES = (
    *("dataset", "model", "method", "variant", "threat", "metric", "value", "unit", "ci_low", "ci_high", "n", "seed"),
    *("flags", "majority", "balanced", "macro_f1", "paper"),
)
"""Columns of a table that hold figures or say whose they are."""


def sha256(*parts: bytes) -> str:
    """SHA-256 in hex of the concatenation of `parts`."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part)
    return total.hexdigest()


def arrays(path: Path) -> dict[str, str]:
    """Hash of type, shape and values of every data set of an HDF5 file, by name."""
    found: dict[str, str] = {}

    def visit(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset):
            values = node[()]
            found[name] = sha256(str((values.dtype, values.shape)).encode(), values.tobytes())

    with h5py.File(path, "r") as file:
        file.visititems(visit)
        if "components" in file.attrs:
            found["components"] = str(file.attrs["components"])
    return found


def tensors(path: Path) -> dict[str, str]:
    """Hash of all tensors of a safetensors file."""
    state = load_file(path)
    parts = [part for name in sorted(state) for part in (name.encode(), state[name].tobytes())]
    return {"tensors": sha256(*parts)}


def table(path: Path) -> dict[str, str]:
    """The figures of a table's CSV, by row."""
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    return {str(number): "|".join(row[name] for name in VALUES if name in row) for number, row in enumerate(rows)}


READERS = {
    "**/*.safetensors": tensors,
    "**/*.h5": arrays,
    "**/diversity@*.json": lambda path: {k: repr(v) for k, v in json.loads(path.read_text())["values"].items()},
    "**/metrics.csv": lambda path: {"text": sha256(path.read_bytes())},
    "table*.csv": table,
    "figure*.csv": table,
}


def freeze(results: Path) -> dict[str, dict[str, str]]:
    """What every file below `results` holds: hashes and figures by path and name."""
    found = {}
    for pattern, reader in READERS.items():
        for path in sorted(results.glob(pattern)):
            if ".state" not in path.parts:
                found[path.relative_to(results).as_posix()] = reader(path)
    return found


def differences(before: dict[str, dict[str, str]], after: dict[str, dict[str, str]]) -> list[str]:
    """One line for each number of `before` that `after` lacks or has otherwise."""
    lines = []
    for path, values in before.items():
        if path not in after:
            lines.append(f"{path}: is missing")
            continue
        lines += [
            f"{path}: {name} is {after[path].get(name)}, was {value}"
            for name, value in values.items()
            if after[path].get(name) != value
        ]
    return lines


def main() -> None:
    """Entry point; exits with 1 if a number differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--compare", type=Path, help="JSON file of an earlier build")
    parser.add_argument("--rename", action="append", default=[], help="OLD=NEW: a part of paths that is called NEW now")
    arguments = parser.parse_args()
    found = freeze(arguments.results)
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    print(f"{len(found)} files, {sum(map(len, found.values()))} hashes and rows")
    if arguments.compare:
        before = json.loads(arguments.compare.read_text())
        for old, _, new in (pair.partition("=") for pair in arguments.rename):
            before = {path.replace(old, new): values for path, values in before.items()}
        lines = differences(before, found)
        print("\n".join([*lines, f"{len(lines)} differences in {len(before)} files"]))
        sys.exit(1 if lines else 0)


if __name__ == "__main__":
    main()
