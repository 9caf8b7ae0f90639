"""The file of a training set: write, read, verify, merge.

One file holds `images` (N,H,W,C) float32 in [0,1] or uint8, `labels` (N,) int64, `batch` (N,) int64 (index of the
synthesis batch), and per batch `coefficients/{term}` and `final_loss/{term}` (float64). Attributes say how it was
made. Images come in *groups* of batches, the unit of seeding; a shard holds a run of groups, a merged file all of
them. The content hash covers every value and every attribute except which shard this is, so it is the same for any
number of shards.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, get_args

import h5py
import numpy as np

import dfshield
from dfshield.core import hdf5
from dfshield.core.errors import InputError
from dfshield.core.files import atomic
from dfshield.core.hashing import canonical_json
from dfshield.core.progress import log, progress
from dfshield.models.card import Card
from dfshield.registry import RealData

FORMAT = "dfshield-surrogate"
VERSION = 1
PLACEMENT = ("first_group", "last_group")
"""Attributes that say which part of the set a file is. The content hash leaves them out."""
HEADER: dict[str, type] = {
    **dict.fromkeys(("teacher_sha256", "dataset", "model", "source", "real_data", "options"), str),
    **dict.fromkeys(("seed", "classes", "groups", "first_group", "last_group"), int),
}
ORIGIN = ("teacher_sha256", "dataset", "model", "classes")
"""Attributes that say which teacher a set belongs to."""
ROWS = ("images", "labels", "batch")
CHUNK_BYTES = 2**20
CONTRACT = hdf5.Contract(
    format=FORMAT,
    version=VERSION,
    version_attribute="version",
    version_name="format version",
    name="a training set",
    holds="training set",
    made_by="make it with `dfshield synthesize` or `dfshield merge`",
    remedy="make it again",
    datasets=dict.fromkeys(ROWS),
)


@dataclass(frozen=True)
class TrainSet:
    """A training set in memory: `images` (N,H,W,C) float32 in [0,1], `labels` (N,) int64, and its attributes."""

    images: np.ndarray
    labels: np.ndarray
    attributes: dict[str, Any]


def trainset_header(
    teacher: Card | TrainSet,
    *,
    source: str,
    real_data: str,
    options: Mapping[str, Any],
    seed: int,
    code: str = "",
    groups: int = 1,
    first_group: int = 0,
    last_group: int | None = None,
) -> dict[str, Any]:
    """The attributes of a training set's file: what every kind of set says of itself.

    `teacher` is the card of the teacher that the images are for, or another set of that teacher; `options` describe
    how the images were made; the file holds groups `first_group` to `last_group` (all, if None) of `groups`.
    """
    if isinstance(teacher, Card):
        origin = (teacher.tensors_sha256, teacher.dataset, teacher.model, teacher.classes)
    else:
        origin = tuple(teacher.attributes[key] for key in ORIGIN)
    return dict(zip(ORIGIN, origin, strict=True)) | {
        "source": source,
        "real_data": real_data,
        "options": canonical_json(options),
        "seed": seed,
        "groups": groups,
        "first_group": first_group,
        "last_group": groups - 1 if last_group is None else last_group,
        "package_version": dfshield.__version__,
        "code": code,
    }


class Writer:
    """Appends batches to the file of a training set; `finish` hashes and completes it. Use within `files.atomic`.

    As a context it closes the file whatever happens: HDF5 writes open files when the process ends, when there is no
    Python left to write through, and the process dies.
    """

    def __init__(self, path: Path, attributes: Mapping[str, Any], terms: Sequence[str]) -> None:
        self.sink = hdf5.Sink(path)
        self.file = h5py.File(self.sink, "w", libver="latest")
        self.attributes = {"format": FORMAT, "version": VERSION, **attributes}
        self.terms = tuple(terms)
        self.hashes: dict[str, Any] = {}

    def append(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        batch: np.ndarray,
        coefficients: Mapping[str, np.ndarray],
        final_loss: Mapping[str, np.ndarray],
    ) -> None:
        """Add images (N,H,W,C), labels (N,), batch (N,) and one value per batch for each loss term."""
        self._extend("images", images)
        self._extend("labels", labels.astype(np.int64))
        self._extend("batch", batch.astype(np.int64))
        for term in self.terms:
            self._extend(f"coefficients/{term}", np.asarray(coefficients[term], dtype=np.float64))
            self._extend(f"final_loss/{term}", np.asarray(final_loss[term], dtype=np.float64))

    def _extend(self, name: str, values: np.ndarray) -> None:
        if name not in self.file:
            row = max(1, values[:1].nbytes)
            rows = max(1, min(CHUNK_BYTES // row, 4096))
            dataset = self.file.create_dataset(
                name,
                shape=(0, *values.shape[1:]),
                maxshape=(None, *values.shape[1:]),
                chunks=(rows, *values.shape[1:]),
                dtype=values.dtype,
                fletcher32=True,
            )
            if name == "images":  # the HDF5 image convention, for viewers
                colour = "IMAGE_TRUECOLOR" if values.shape[-1] == 3 else "IMAGE_GRAYSCALE"
                for key, value in (("CLASS", "IMAGE"), ("IMAGE_VERSION", "1.2"), ("IMAGE_SUBCLASS", colour)):
                    dataset.attrs[key] = np.bytes_(value)
                dataset.attrs["INTERLACE_MODE"] = np.bytes_("INTERLACE_PIXEL")
            self.hashes[name] = hashlib.sha256()
        dataset = self.file[name]
        start = len(dataset)
        dataset.resize(start + len(values), axis=0)
        dataset[start:] = values
        self.sink.check()
        self.hashes[name].update(np.ascontiguousarray(values).data)

    def copied(self, name: str, parts: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Append `parts` to one data set on the way through."""
        for values in parts:
            self._extend(name, values)
            yield values

    def finish(self) -> str:
        """Write the attributes and close the file; returns the content SHA-256."""
        for key, value in self.attributes.items():
            self.file.attrs[key] = value
        content = _content_hash(self.file, {name: h.hexdigest() for name, h in self.hashes.items()})
        hdf5.seal(self.file, content)
        self.close()
        self.sink.check()
        return content

    def close(self) -> None:
        """Close the file, whole or not."""
        self.file.close()
        self.sink.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


def write_whole(out: Path, header: Mapping[str, Any], images: np.ndarray, labels: np.ndarray) -> str:
    """Write a set that is one group, images (N,H,W,C) and labels (N,), to `out`; returns its content SHA-256.

    `header` is that of `trainset_header`.
    """
    with atomic(out) as temporary, Writer(temporary, header, terms=()) as writer:
        writer.append(np.ascontiguousarray(images), labels, np.zeros(len(labels), dtype=np.int64), {}, {})
        content = writer.finish()
    say_missing(out, [labels], header["classes"])
    return content


def say_missing(what: Path | str, labels: Iterable[np.ndarray], classes: int) -> int:
    """The number of classes, among so many, that no label in blocks (N,) names; one log line if there are any."""
    present = np.zeros(classes, dtype=bool)
    for values in labels:
        present[values] = True
    missing = np.flatnonzero(~present)
    if len(missing):
        named = ", ".join(map(str, missing[:3])) + (" and others" if len(missing) > 3 else "")
        log(f"{what}: no image of {len(missing)} of {classes} classes ({named})")
    return len(missing)


def _content_hash(file: h5py.File, hashes: Mapping[str, str]) -> str:
    return hdf5.content_hash(file, hashes, file.attrs, outside=PLACEMENT)


def _kind(dataset: h5py.Dataset) -> tuple[Any, ...]:
    return dataset.dtype, dataset.shape[1:]


def _names(file: h5py.File) -> list[str]:
    terms = [f"{group}/{term}" for group in ("coefficients", "final_loss") if group in file for term in file[group]]
    return [*ROWS, *terms]


def _options(file: h5py.File) -> Any:
    return json.loads(file.attrs["options"])


@contextlib.contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """Open the complete file of a training set for reading; raises InputError for anything else."""
    remedy = CONTRACT.remedy
    with hdf5.opened(path, CONTRACT) as file:
        hdf5.check_datasets(path, file, dict.fromkeys(_names(file)), remedy)
        for key, kind in HEADER.items():
            if not isinstance(hdf5.plain(file.attrs.get(key)), kind):
                raise InputError(f"{path}: attribute {key!r} is missing or no {kind.__name__}; {remedy}")
        if file.attrs["real_data"] not in get_args(RealData) or not isinstance(_options(file), dict):
            raise InputError(f"{path}: attribute 'real_data' or 'options' cannot be read; {remedy}")
        shape = file["images"].shape
        if len(shape) != 4 or 0 in shape or not file["labels"].shape == file["batch"].shape == shape[:1]:
            raise InputError(f"{path}: images {shape} and labels do not fit together or are empty; {remedy}")
        yield file


def blocks(file: h5py.File, name: str) -> Iterator[np.ndarray]:
    """The values of one data set in blocks of bounded size, in order."""
    dataset = file[name]
    rows = dataset.chunks[0] if dataset.chunks else 1024
    for start in range(0, len(dataset), rows):
        yield dataset[start : start + rows]


def _check_values(path: Path, name: str, values: np.ndarray, classes: int) -> None:
    if name == "labels" and len(values) and (values.min() < 0 or values.max() >= classes):
        raise InputError(
            f"{path}: labels {values.min()}..{values.max()} out of range 0..{classes - 1}; make the file again"
        )
    if name == "images" and values.dtype != np.uint8 and not (values.min() >= 0 and values.max() <= 1):
        raise InputError(f"{path}: pixels out of range [0,1] or not finite; make the file again")


def verify(path: Path) -> str:
    """Read every value of a training set against its hash and ranges; returns the content SHA-256.

    Memory does not grow with the number of images.
    """
    with opened(path) as file:
        hashes = {name: hdf5.sha256(_checked(path, file, name)) for name in _names(file)}
        return _confirm(path, file, hashes)


def _checked(path: Path, file: h5py.File, name: str) -> Iterator[np.ndarray]:
    """The blocks of one data set, each within the range of its kind."""
    for values in blocks(file, name):
        _check_values(path, name, values, int(file.attrs["classes"]))
        yield values


def _confirm(path: Path, file: h5py.File, hashes: Mapping[str, str]) -> str:
    content = _content_hash(file, hashes)
    if content != file.attrs.get("content_sha256"):
        raise InputError(f"{path}: content does not match its SHA-256 (edited or damaged); make the file again")
    # the hash leaves out which part of the set this is: the batch numbers, which it covers, say so too
    size = _options(file).get("group", 1)
    if [file["batch"][row] // size for row in (0, -1)] != [file.attrs["first_group"], file.attrs["last_group"]]:
        raise InputError(f"{path}: its batches are not of the groups that it states (edited); make the file again")
    return content


def header(path: Path) -> dict[str, Any]:
    """The attributes of a training set's file, `options` parsed."""
    with opened(path) as file:
        return hdf5.attributes(file) | {"options": _options(file)}


def read(path: Path) -> TrainSet:
    """Load a whole, verified training set; a single shard of several is refused."""
    attributes = whole(path)
    with opened(path) as file:
        images = file["images"][()]
        labels = file["labels"][()]
    if images.dtype == np.uint8:
        images = images.astype(np.float32) / 255
    return TrainSet(images, labels, attributes)


def whole(path: Path) -> dict[str, Any]:
    """The attributes of a whole, verified training set; a single shard of several is refused."""
    verify(path)
    attributes = header(path)
    if (attributes["first_group"], attributes["last_group"]) != (0, attributes["groups"] - 1):
        raise InputError(
            f"{path}: holds groups {attributes['first_group']}..{attributes['last_group']} of {attributes['groups']}; "
            "give the merged file (`dfshield merge`)"
        )
    return attributes


def _difference(one: Any, other: Any) -> str:
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
        return ", ".join(f"{key}: {one.get(key)} against {other.get(key)}" for key in keys)
    return f"{str(one)[:60]} against {str(other)[:60]}"


def merge(paths: Sequence[Path], out: Path) -> str:
    """Merge the shards of one training set into `out`; returns the content SHA-256.

    The shards are streamed, in the order of their groups whatever the order given. Raises InputError, with `out`
    untouched, for a missing, repeated, incomplete or damaged shard and for shards of different sets.
    """
    if not paths:
        raise InputError("no shards given; list them as arguments")
    placed = (*PLACEMENT, *hdf5.SEAL)
    headers = {path: header(path) for path in paths}
    first = headers[paths[0]]
    for path, attributes in headers.items():
        for key in ("teacher_sha256", "seed", "options", *(k for k in first | attributes if k not in placed)):
            if attributes.get(key) != first.get(key):
                raise InputError(
                    f"{path}: {key} differs from {paths[0]} ({_difference(attributes.get(key), first.get(key))}); "
                    "merge shards of one synthesis only: make again those that are not as they should be"
                )
    ordered = sorted(paths, key=lambda path: headers[path]["first_group"])
    expected = 0
    for path in ordered:
        start, last = headers[path]["first_group"], headers[path]["last_group"]
        if start < expected:
            raise InputError(f"{path}: group {start} is there twice (duplicate shard); give each shard once")
        if start > expected:
            raise InputError(
                f"{out}: not written, groups {expected}..{start - 1} of {first['groups']} are missing; give all shards"
            )
        expected = last + 1
    if expected != first["groups"]:
        raise InputError(
            f"{out}: not written, groups {expected}..{first['groups'] - 1} of {first['groups']} are missing; "
            "give all shards"
        )

    attributes = {k: v for k, v in first.items() if k not in placed} | {"options": canonical_json(first["options"])}
    attributes |= {"first_group": 0, "last_group": first["groups"] - 1}
    with atomic(out) as temporary, progress(len(ordered), "merge", "shard") as bar:
        with opened(ordered[0]) as file:
            terms = sorted(file["coefficients"]) if "coefficients" in file else []
        with Writer(temporary, attributes, terms) as writer:
            for path in ordered:
                with opened(path) as file:
                    hashes = {}
                    for name in _names(file):
                        if name in writer.file and _kind(writer.file[name]) != _kind(file[name]):
                            raise InputError(f"{path}: {name} are of another type or size than in {ordered[0]}")
                        hashes[name] = hdf5.sha256(writer.copied(name, _checked(path, file, name)))
                    _confirm(path, file, hashes)
                bar.update()
            content = writer.finish()
    with opened(out) as file:
        say_missing(out, blocks(file, "labels"), int(file.attrs["classes"]))
    return content


def check_fit(trainset: TrainSet, card: Card, teacher: Path, data: Path) -> None:
    """Refuse a training set that was not made for this teacher."""
    _, height, width, channels = trainset.images.shape
    if (channels, height, width) != tuple(card.input_shape):
        raise InputError(
            f"{data}: images are {(channels, height, width)} but {teacher} takes {tuple(card.input_shape)}; "
            "synthesise from this teacher"
        )
    if int(trainset.attributes["classes"]) != card.classes:
        raise InputError(f"{data}: {trainset.attributes['classes']} classes but {teacher} has {card.classes}")
    made_from = trainset.attributes["teacher_sha256"]
    if made_from and made_from != card.tensors_sha256:
        raise InputError(
            f"{data}: made from teacher {made_from[:16]}, but {teacher} is {card.tensors_sha256[:16]}; "
            "synthesise from this teacher"
        )
