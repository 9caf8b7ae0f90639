"""Contracts of all registered baselines as they train; an entry meets them by being registered."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from support import tiny
from support.cotraining import METHODS, SHAPE, cotrainer, quick

from dfshield import registry
from dfshield.baselines.cotrain import run
from dfshield.baselines.method import Method
from dfshield.core.rng import generator
from dfshield.models.checkpoints import read_card
from dfshield.options import CotrainOptions
from dfshield.sources.trainset import read


@pytest.mark.parametrize("method", METHODS)
def test_an_entry_names_its_code_and_its_options(method):
    entry = registry.BASELINES[method]
    assert entry.title and entry.about and entry.options
    assert issubclass(entry.load(), Method)
    made = CotrainOptions.of(method=method)
    assert type(made) is entry.options_class(CotrainOptions) and made.method == method
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        CotrainOptions.of(method=method, no_such_option=1)


@pytest.mark.parametrize("method", METHODS)
def test_the_generator_draws_images(method):
    made = cotrainer(method).method
    z, labels = made.draw(20, generator("z"))
    images = made.generator(z, labels).detach()
    assert z.shape == (20, made.options.latent) and images.shape == (20, *SHAPE)
    assert float(images.min()) >= 0 and float(images.max()) <= 1 and float(images.std()) > 0
    assert labels.dtype == torch.int64 and set(labels.tolist()) <= set(range(10))
    again = made.draw(20, generator("z"))
    assert torch.equal(again[0], z) and torch.equal(again[1], labels)


@pytest.mark.parametrize("method", METHODS)
def test_an_epoch_changes_the_student_and_the_generator_and_is_deterministic(method):
    first, again = cotrainer(method), cotrainer(method)
    before = [[p.detach().clone() for p in part] for part in first.parameters.values()]
    rows = [made.epoch(0) for made in (first, again)]
    assert rows[0] == rows[1] and math.isfinite(rows[0]["student_loss"]) and rows[0]["updates"] > 0
    for part, kept in zip(first.parameters.values(), before, strict=True):
        assert any(not torch.equal(a, b) for a, b in zip(part, kept, strict=True))
    for one, other in ((first.student, again.student), (first.method.generator, again.method.generator)):
        states = one.state_dict(), other.state_dict()
        assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
        assert all(bool(value.isfinite().all()) for value in states[0].values())


@pytest.mark.parametrize("method", METHODS)
def test_the_kept_images_are_a_training_set_of_the_teacher(tmp_path, method):
    teacher = tiny.teacher(tmp_path / "t.safetensors", scale=3.0)
    options = quick(method, epochs=1, kept_images=25)
    run(teacher, tmp_path / "s.safetensors", options, recipe=method, images=tmp_path / "images.h5")
    kept = read(tmp_path / "images.h5")
    assert kept.images.shape == (25, *SHAPE[1:], SHAPE[0]) and kept.images.dtype == np.float32
    assert kept.images.min() >= 0 and kept.images.max() <= 1
    assert kept.labels.shape == (25,) and set(kept.labels.tolist()) <= set(range(10))
    assert (kept.attributes["source"], kept.attributes["real_data"]) == (method, "none")
    assert kept.attributes["teacher_sha256"] == read_card(teacher).tensors_sha256
