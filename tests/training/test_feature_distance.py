"""The distance of stage features, and its place in L_DFShield, against plain numbers."""

import math

import pytest
import torch

from dfshield.core.rng import generator
from dfshield.options import TrainOptions
from dfshield.training import losses


def test_features_are_compared_with_the_teachers_relative_to_its_size():
    clean, adversarial, teacher = [[1.0, 2.0], [3.0, 4.0]], [[1.0, 0.0], [0.0, 4.0]], [[2.0, 2.0], [3.0, 1.0]]
    other = [[5.0]], [[4.0]], [[3.0]]
    far = [1 + 0 + 0 + 9, 1 + 4 + 9 + 9]
    expected = ((far[0] + far[1]) / (4 + 4 + 9 + 1) + (4 + 1) / 9) / 2
    stages = [[torch.tensor(a), torch.tensor(b)] for a, b in zip((clean, adversarial, teacher), other, strict=True)]
    features = losses.Features(*stages)
    assert float(losses.feature_distance(features)) == pytest.approx(expected)
    logits = torch.rand((3, 2, 4), generator=generator("logits"))
    out = losses.Outputs(*logits, torch.tensor([0, 2]))
    plain = float(losses.dfshield(out, TrainOptions.of()))
    with_features = losses.dfshield(out._replace(features=features), TrainOptions.of(features=0.25))
    assert float(with_features) == pytest.approx(plain + 0.25 * expected)


def test_features_of_a_dead_stage_make_no_infinite_loss():
    zero, one = torch.zeros(2, 3), torch.ones(2, 3)
    assert float(losses.feature_distance(losses.Features([zero], [zero], [zero]))) == 0
    assert math.isfinite(float(losses.feature_distance(losses.Features([one], [one], [zero]))))
