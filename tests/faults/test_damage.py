"""Bits that flip, files that are cut, pages of zeros: what reads them refuses them, or gets what it would have got."""

import contextlib
import hashlib
import io
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import program
import pytest
import stages
from safetensors.torch import load_file
from scorecard import Score

from dfshield.core.errors import InputError
from dfshield.core.hashing import canonical_json
from dfshield.defences.fit_file import check_fit_file
from dfshield.evaluation.certificates import read_certificates
from dfshield.evaluation.detections import read_detection
from dfshield.evaluation.ledger import read_ledger
from dfshield.evaluation.record import read_record
from dfshield.models.checkpoints import hash_tensors, load_checkpoint
from dfshield.planning import frozen
from dfshield.planning.plan import Plan
from dfshield.sources import trainset
from dfshield.tools.verify import verify

PAGE = 4096
EDGE = 2048
"""Bytes at both ends of a file that every other fault is in: a file's own structure lies there."""


def place(size: int, index: int, random: Any) -> int:
    """A place in a file, of two at the ends of the file one."""
    if index % 2 or size <= 2 * EDGE:
        return random.randrange(size)
    near = random.randrange(EDGE)
    return near if index % 4 else size - 1 - near


def flipped(whole: bytes, index: int, random: Any) -> tuple[bytes, str]:
    """One bit the other way."""
    where, bit = place(len(whole), index, random), random.randrange(8)
    damaged = bytearray(whole)
    damaged[where] ^= 1 << bit
    return bytes(damaged), f"bit {bit} of byte {where}"


def cut(whole: bytes, index: int, random: Any) -> tuple[bytes, str]:
    """The file without its end."""
    size = place(len(whole), index, random)
    return whole[:size], f"cut after {size} of {len(whole)} bytes"


def zeroed(whole: bytes, index: int, random: Any) -> tuple[bytes, str]:
    """A page of zeros, a smaller one in a small file."""
    size = min(PAGE, max(1, len(whole) // 4))
    while True:
        start = random.randrange(-(-len(whole) // size)) * size
        damaged = whole[:start] + bytes(len(whole[start : start + size])) + whole[start + size :]
        if damaged != whole:
            return damaged, f"bytes {start} to {start + size} zero"


FAULTS: dict[str, tuple[Callable[..., tuple[bytes, str]], int, int]] = {
    "bit flip": (flipped, 44, 2),
    "cut": (cut, 6, 1),
    "page of zeros": (zeroed, 6, 1),
}
"""What is done to a file, and how often: in full, and in the normal suite."""


def of_checkpoint(path: Path) -> Any:
    """What a stage takes out of a checkpoint."""
    model, card = load_checkpoint(path)
    return canonical_json(asdict(card)), hash_tensors(model.net.state_dict())


def of_trainset(path: Path) -> Any:
    """What a stage takes out of a training set."""
    found = trainset.read(path)
    return sorted(found.attributes.items()), sha256(found.images), sha256(found.labels)


def of_shard(path: Path) -> Any:
    """The set that the two shards make."""
    trainset.merge([path, path.with_name("shard-1.h5")], Path("merged.h5"))
    return hashlib.sha256(Path("merged.h5").read_bytes()).hexdigest()


def of_ledger(path: Path) -> Any:
    """All that a ledger holds."""
    return [(k, sha256(v) if isinstance(v, np.ndarray) else v) for k, v in vars(read_ledger(path)).items()]


def of_record(path: Path) -> Any:
    """All that a record of diversity holds."""
    return asdict(read_record(path))


def of_certificates(path: Path) -> Any:
    """All that a record of certificates holds."""
    return asdict(read_certificates(path))


def of_detection(path: Path) -> Any:
    """All that a record of a detector holds."""
    return asdict(read_detection(path))


def of_fit(path: Path) -> Any:
    """What a fit has kept."""
    return asdict(check_fit_file(path)), hash_tensors(load_file(path))


def of_images(path: Path) -> Any:
    """A user's own images, as a stage sees them."""
    from dfshield.data import sets

    return sets.load_npz(path, (1, 8, 8), 10).sha256()


def of_config(path: Path) -> Any:
    """What a command by hand takes out of the config that a run keeps."""
    config = frozen.load(path.parent)
    plan = Plan.of(config)
    tables = {name: spec.model_dump(mode="json") for name, spec in plan.tables.items()}
    figures = {name: spec.model_dump(mode="json") for name, spec in plan.figures.items()}
    files = {"tables", "figures", "defaults"}
    return config.model_dump(mode="json", exclude=files), tables, figures, repr(plan.cells("table4"))


def verified(table: str) -> Callable[[Path], Any]:
    """Whether `dfshield verify` on `table` finds that a file is other than it was."""

    def read(path: Path) -> Any:
        with contextlib.redirect_stdout(io.StringIO()) as said:
            broken = verify(Path(table))
        if broken:
            raise InputError("; ".join(line for line in said.getvalue().splitlines() if line.startswith("BROKEN")))
        return hashlib.sha256(path.read_bytes()).hexdigest()

    return read


def sha256(values: np.ndarray) -> str:
    """Of an array's values."""
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


@dataclass(frozen=True)
class Artefact:
    """A file that a stage leaves, and what reads it."""

    name: str
    path: str
    """Below the folder of what stages read."""
    read: Callable[[Path], Any]
    """What is taken out of it; raises InputError where it cannot be used."""


RUN = "digits/cnn-s/dss/dfshield/linf-8-255/seed-0"
CARD = "run/results/harden/mine"
HOME = "run/results/demo"
ARTEFACTS = (
    Artefact("teacher", "teacher.safetensors", of_checkpoint),
    Artefact("student", "student.safetensors", of_checkpoint),
    Artefact("shard", "shard-0.h5", of_shard),
    Artefact("training set", "data.h5", of_trainset),
    Artefact("images of a baseline", "images.h5", of_trainset),
    Artefact("ledger", "ledger.h5", of_ledger),
    Artefact("record of diversity", "diversity.json", of_record),
    Artefact("record of certificates", "certificates.json", of_certificates),
    Artefact("record of a detector", "detection.json", of_detection),
    Artefact("fit of a defence", "defence.safetensors", of_fit),
    Artefact("user's images (npz)", "images.npz", of_images),
    Artefact("config of the run", f"{HOME}/config.yaml", of_config),
    Artefact("tables of the run", f"{HOME}/tables.yaml", of_config),
    Artefact("figures of the run", f"{HOME}/figures.yaml", of_config),
    Artefact("built-in entries of the run", f"{HOME}/defaults.yaml", of_config),
    Artefact("metrics", f"{HOME}/{RUN}/metrics.csv", verified("results/table4.csv")),
    *(
        Artefact(f"{name} {end}", f"run/results/{name}.{end}", verified(f"results/{name}.csv"))
        for name in ("table4", "table2", "cost")
        for end in ("csv", "md", "tex")
    ),
    *(
        Artefact(f"hardened model: {name}", f"{CARD}/{name}", verified("results/harden/mine/report.csv"))
        for name in ("model.safetensors", "report.csv", "MODEL_CARD.md")
    ),
)


@pytest.fixture(scope="module")
def copy(world, tmp_path_factory):
    """A copy of what stages read, to damage."""
    folder = tmp_path_factory.mktemp("damage") / "copy"
    shutil.copytree(world.folder, folder, ignore=shutil.ignore_patterns("made", "timing", "*.err"))
    for case in stages.CASES:
        if case.inside:  # tables and the hardened model, as their stages leave them
            for name, content in world.expected[case.name].items():
                (folder / "run" / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / "run" / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("artefact", ARTEFACTS, ids=lambda artefact: artefact.name)
def test_damaged_artefact(copy, artefact, fault):
    path, (damage, full, few) = copy / artefact.path, FAULTS[fault]
    folder = copy / "run" if artefact.path.startswith("run/") else copy
    whole, score = path.read_bytes(), Score(fault, artefact.name)
    expected = program.value_of(folder, lambda: artefact.read(path))
    assert expected.startswith("value: "), expected
    try:
        for index in range(program.tries(full, few)):
            damaged, what = damage(whole, index, program.chance(fault, artefact.name, index))
            path.write_bytes(damaged)
            found = program.value_of(folder, lambda: artefact.read(path))
            right = found == expected or found.startswith("refused: ")
            score.add(what, "" if right else found[:300], silent=found.startswith("value: "))
    finally:
        path.write_bytes(whole)
    score.close()


STATES = [case for case in stages.CASES if case.resumes]
FEW = ("synthesize", "attack")
"""Stages whose state the normal suite damages."""


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("case", STATES, ids=lambda case: case.name)
def test_damaged_state(world, tmp_path, case, fault):
    """It is made again, to the same bytes, and that is said."""
    if not program.FULL and case.name not in FEW:
        pytest.skip("by make faults")
    (damage, full, few), score = FAULTS[fault], Score(fault, f"state of {case.name}")
    for index in range(program.tries(full // 2, few)):
        random = program.chance("state", fault, case.name, index)
        folder = case.prepare(world.folder, tmp_path / str(index))
        shutil.copytree(world.folder / "made" / case.name.replace(" ", "-") / "state", folder / "state")
        piece = random.choice(sorted(path for path in (folder / "state").rglob("*") if path.is_file()))
        damaged, what = damage(piece.read_bytes(), index, random)
        piece.write_bytes(damaged)
        ended = program.run(folder, case.command(world.folder))
        wrong = "" if ended.status == 0 else f"ended with {ended.status}: {ended.said[-3:]}"
        wrong = wrong or program.differences(program.files(folder), world.expected[case.name])
        if not wrong and not any(f"{piece.name}: damaged" in line for line in ended.said):
            wrong = "not said"
        score.add(f"{piece.name}, {what}", wrong, silent=ended.status == 0)
        shutil.rmtree(folder)
    score.close()


NEXT = (
    ("teacher.safetensors", "synthesize"),
    ("shard-1.h5", "merge"),
    ("data.h5", "train"),
    ("data.h5", "augment"),
    ("data.h5", "diversity"),
    ("teacher.safetensors", "cotrain"),
    ("student.safetensors", "attack"),
    ("images.npz", "attack"),
)
"""A damaged file and the stage that reads it next."""


@pytest.mark.parametrize(("name", "stage"), NEXT)
def test_the_next_stage(world, copy, tmp_path, name, stage):
    """It refuses a damaged input in one line, before it writes anything, or writes what it would have written."""
    if not program.FULL and stage != "merge":
        pytest.skip("by make faults")
    (case,) = (case for case in stages.CASES if case.name == stage)
    path, score = copy / name, Score("damaged input of the whole stage", f"{stage}: {name}")
    whole = path.read_bytes()
    try:
        for index in range(program.tries(9, 2)):
            damage = list(FAULTS.values())[index % 3][0]
            damaged, what = damage(whole, index, program.chance("next", name, stage, index))
            path.write_bytes(damaged)
            folder = case.prepare(copy, tmp_path / str(index))
            ended = program.run(folder, case.command(copy))
            found = program.files(folder)
            if ended.status == 0:
                wrong = program.differences(found, world.expected[stage])
            else:
                wrong = f"left {sorted(found)}" if found else "" if ended.refused else f"{ended}"
            score.add(what, wrong, silent=ended.status == 0)
    finally:
        path.write_bytes(whole)
    score.close()
