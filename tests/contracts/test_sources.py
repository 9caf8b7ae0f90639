"""What every registered source of training data promises; an entry meets these tests by being registered."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from support import tiny

import dfshield
from dfshield import registry
from dfshield.core.rng import generator
from dfshield.models.checkpoints import load_checkpoint, read_card
from dfshield.options import AugmentOptions, GenerateOptions, StageOptions, SynthesizeOptions
from dfshield.sources import augmentation, inversion, trainset
from dfshield.sources import generator as generated
from dfshield.sources.generator import GeneratorSource
from dfshield.sources.inversion import Synthesizer

SHAPES = {"grey": (1, 8, 8), "colour": (3, 9, 11)}
STAGES: dict[str, tuple[type[StageOptions], dict[str, registry.Entry]]] = {
    "objective": (SynthesizeOptions, registry.OBJECTIVES),
    "method": (GenerateOptions, registry.GENERATED),
    "augmentation": (AugmentOptions, registry.AUGMENTATIONS),
}
SOURCES = [(field, name) for field, (_, entries) in STAGES.items() for name in entries]
QUICK: dict[str, dict[str, Any]] = {
    "objective": {"images": 40, "batch": 10, "group": 2, "iterations": 2, "labels": "random"},
    "method": {"images": 25, "batch": 10, "epochs": 3, "iterations": 2, "width": 0.1},
    "augmentation": {},
}


def options_of(field: str, name: str, **changes: Any) -> Any:
    """Options of a quick run of one entry."""
    return STAGES[field][0].of(**{field: name, "device": "cpu", **QUICK[field], **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Teachers of all shapes, and a set of each to augment."""
    made = tmp_path_factory.mktemp("sources")
    for kind, shape in SHAPES.items():
        channels = {"mean": (0.3,) * shape[0], "std": (0.38,) * shape[0]}
        path = tiny.teacher(made / f"{kind}.safetensors", shape=shape, **channels)
        sha = read_card(path).tensors_sha256
        tiny.trainset(made / f"{kind}.h5", 30, teacher_sha256=sha, shape=shape, real_data="public")
    return made


def make(folder: Path, field: str, out: Path, options: Any, kind: str = "grey", **more: Any) -> Path:
    """Write the set of one entry."""
    if field == "augmentation":
        augmentation.run(folder / f"{kind}.h5", out, options, "mine", "c0de")
        return out
    stage = inversion if field == "objective" else generated
    stage.run(folder / f"{kind}.safetensors", out, options, source="mine", code="c0de", **more)
    return out


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize(("field", "name"), SOURCES)
def test_images_labels_and_header(folder, tmp_path, field, name, kind):
    options = options_of(field, name, seed=3)
    found = trainset.read(make(folder, field, tmp_path / "set.h5", options, kind))
    card = read_card(folder / f"{kind}.safetensors")
    n = 30 if field == "augmentation" else options.images
    channels, height, width = SHAPES[kind]
    assert found.images.shape == (n, height, width, channels) and found.images.dtype == np.float32
    assert found.images.min() >= 0 and found.images.max() <= 1 and found.images.std() > 0
    assert found.labels.shape == (n,) and found.labels.min() >= 0 and found.labels.max() < card.classes
    trainset.check_fit(found, card, folder / "teacher", tmp_path / "set.h5")
    expected = {"teacher_sha256": card.tensors_sha256, "dataset": "digits", "model": "cnn-s", "classes": card.classes}
    expected |= {"source": "mine", "seed": 3, "code": "c0de", "package_version": dfshield.__version__}
    expected |= {"real_data": "public" if field == "augmentation" else registry.SOURCES["synthetic"].real_data}
    assert {key: found.attributes[key] for key in expected} == expected
    assert trainset.HEADER.keys() <= found.attributes.keys()
    described = options.described(None if field == "augmentation" else torch.device("cpu"))
    stated = {key: value for key, value in found.attributes["options"].items() if not key.startswith("base")}
    assert stated == json.loads(json.dumps(described))
    assert stated[field] == name and not {"seed", "threads"} & stated.keys()


@pytest.mark.parametrize(("field", "name"), SOURCES)
def test_equal_seeds_give_equal_bytes_and_others_do_not(folder, tmp_path, field, name):
    made = {}
    for key, seed in {"a": 0, "b": 0, "c": 1}.items():
        torch.rand(3)  # the global generator's state is of no account
        made[key] = make(folder, field, tmp_path / f"{key}.h5", options_of(field, name, seed=seed))
    assert made["a"].read_bytes() == made["b"].read_bytes()
    assert (trainset.read(made["a"]).images != trainset.read(made["c"]).images).any()


@pytest.mark.parametrize("stop", [1, 2, 3])
@pytest.mark.parametrize(("field", "name"), [pair for pair in SOURCES if pair[0] != "augmentation"])
def test_a_stopped_run_goes_on_to_the_same_bytes(folder, tmp_path, monkeypatch, field, name, stop):
    """In groups of batches, or in epochs of a generator."""
    options = options_of(field, name)
    whole = make(folder, field, tmp_path / "whole.h5", options)
    source, unit = STAGES[field][1][name].load(), "group" if field == "objective" else "epoch"
    genuine, begun = getattr(source, unit), []

    def stopping(self, index, bar=None):
        begun.append(index)
        if len(begun) == stop:
            raise KeyboardInterrupt
        return genuine(self, index, bar)

    monkeypatch.setattr(source, unit, stopping)
    state = tmp_path / "state"
    units = options.groups if field == "objective" else options.epochs
    if stop <= units:
        with pytest.raises(KeyboardInterrupt):
            make(folder, field, tmp_path / "out.h5", options, state=state)
        assert not (tmp_path / "out.h5").exists()
    begun.clear()
    stop = 99
    resumed = make(folder, field, tmp_path / "out.h5", options, state=state)
    assert resumed.read_bytes() == whole.read_bytes()
    assert len(begun) <= units and not list(state.iterdir())


@pytest.mark.parametrize("name", registry.OBJECTIVES)
def test_a_group_depends_on_its_index_alone(folder, name):
    """So shards, in any number and order, hold the same images."""
    options = options_of("objective", name)
    model, card = load_checkpoint(folder / "grey.safetensors")
    found = {}
    for order in ((0, 1), (1, 0)):
        source: Synthesizer = registry.OBJECTIVES[name].load()(
            copy.deepcopy(model), card.input_shape, card.classes, options
        )
        found[order] = {index: source.group(index) for index in order}
        keys = {f"{kind}_{term}" for kind in ("coefficients", "final_loss") for term in source.terms}
        assert all(group.keys() == {"images", "labels", "batch"} | keys for group in found[order].values())
    for index in (0, 1):
        one, other = found[0, 1][index], found[1, 0][index]
        assert all((one[key] == other[key]).all() for key in one)


@pytest.mark.parametrize("name", registry.COEFFICIENTS)
def test_coefficients(name):
    options, base = SynthesizeOptions.of(coefficients=name), torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    kept, draw = base.clone(), registry.COEFFICIENTS[name].load()
    first, same, other = (draw(base, generator("t", key), options) for key in (0, 0, 1))
    assert first.shape == (3,) and first.dtype == torch.float64
    assert torch.equal(first, same) and torch.equal(base, kept)
    assert torch.equal(first, other) == (name == "fixed")
    assert (first >= 0).all() and (first <= 2 * base).all()
    # all that has no weight stays without
    assert not draw(torch.zeros(3, dtype=torch.float64), generator("t"), options).any()


@pytest.mark.parametrize("name", registry.COEFFICIENTS)
def test_coefficients_are_recorded_for_every_batch(folder, tmp_path, name):
    path = make(folder, "objective", tmp_path / "set.h5", options_of("objective", "inversion", coefficients=name))
    with trainset.opened(path) as file:
        recorded = np.stack([file[f"coefficients/{term}"][()] for term in ("class", "feature", "prior")], 1)
        assert recorded.shape == (4, 3) and np.isfinite(recorded).all()
        assert (len({tuple(row) for row in recorded.tolist()}) == 1) == (name == "fixed")
        assert all(np.isfinite(file[f"final_loss/{term}"][()]).all() for term in file["final_loss"])


@pytest.mark.parametrize("name", registry.GENERATED)
def test_a_generator_is_one_epoch_loop_around_a_frozen_teacher(folder, name):
    model, card = load_checkpoint(folder / "grey.safetensors")
    before = copy.deepcopy(model.state_dict())
    options = options_of("method", name)
    source: GeneratorSource = registry.GENERATED[name].load()(model, card.input_shape, card.classes, options)
    begun = copy.deepcopy(source.state())
    source.fit()
    assert [row["epoch"] for row in source.history] == [1, 2, 3] and source.diverged == ""
    after = source.state()
    assert any(not torch.equal(begun["generator"][key], value) for key, value in after["generator"].items())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    images, labels = source.draw_set()
    source.load(begun)
    assert (source.draw_set()[0] != images).any() and len(images) == len(labels) == options.images


@pytest.mark.parametrize("name", registry.AUGMENTATIONS)
def test_an_augmentation_makes_new_images_and_points_at_their_labels(name):
    images = torch.rand((20, 3, 8, 8), generator=generator("images"))
    given = images.clone()
    apply, options = registry.AUGMENTATIONS[name].load(), options_of("augmentation", name)
    made, carried = apply(images, generator("t"), options)
    again = apply(images, generator("t"), options)
    assert torch.equal(images, given) and made.shape == images.shape
    assert made.min() >= 0 and made.max() <= 1 and not torch.equal(made, images)
    assert carried.shape == (20,) and carried.min() >= 0 and carried.max() < 20
    assert torch.equal(made, again[0]) and torch.equal(carried, again[1])


@pytest.mark.parametrize("name", registry.AUGMENTATIONS)
def test_no_image_is_augmented_with_probability_zero(folder, tmp_path, name):
    path = make(folder, "augmentation", tmp_path / "set.h5", options_of("augmentation", name, probability=0))
    given, made = trainset.read(folder / "grey.h5"), trainset.read(path)
    assert (given.images == made.images).all() and (given.labels == made.labels).all()


@pytest.mark.parametrize(("field", "name"), SOURCES)
def test_options_of_an_entry_are_its_own(field, name):
    stage, entries = STAGES[field]
    made = stage.of(**{field: name})
    assert type(made) is entries[name].options_class(stage) and issubclass(type(made), stage)
    assert type(made)() == made  # its class alone stands for it
    assert type(made)(**made.model_dump()) == made
    assert stage.entries is not None and stage.entries[0] == field and stage.entries[1] is entries
    assert all(type(made).help_texts().values())
    for other in entries.keys() - {name}:
        for option in stage.of(**{field: other}).described().keys() - made.described().keys():
            with pytest.raises(ValidationError, match=option):
                stage.of(**{field: name, option: 1})


@pytest.mark.parametrize(
    "entry",
    [
        *registry.COEFFICIENTS.values(),
        *registry.OBJECTIVES.values(),
        *registry.GENERATED.values(),
        *registry.AUGMENTATIONS.values(),
        *registry.SOURCES.values(),
    ],
    ids=lambda entry: entry.target.partition(":")[2],
)
def test_entries_say_what_they_are(entry):
    assert entry.title and entry.about and "\n" not in entry.about and len(entry.about) < 110
    assert callable(entry.load())
