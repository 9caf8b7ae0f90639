"""Detectors of attacked images: their scores in closed form, their figures by hand, and attacks that know of them."""

import numpy as np
import pytest
import torch
from support import tiny
from support.attacked import images, key, network
from torch import nn

from dfshield import cli
from dfshield.core.errors import InputError
from dfshield.core.threat import parse_threat
from dfshield.defences.detectors import Mahalanobis, Secondary, Watched, seen
from dfshield.evaluation.detection import evaluate, fit, outcome
from dfshield.evaluation.detections import Outcome, read_detection
from dfshield.evaluation.evasion import STRATEGIES, Aims, Fitted, evade, orthogonal
from dfshield.options import DetectOptions
from dfshield.registry import DETECTORS


def small(detector):
    """Options with which a detector is fitted soon."""
    return (
        {"epochs": 2} if detector == "classifier" else {"neighbours": 5, "reference": 40} if detector == "lid" else {}
    )


class Brightness(nn.Module):
    """A detector that flags by the sum of the features, which are the pixels."""

    def forward(self, x, logits, features):
        return features.sum(1)


class Ramp(nn.Module):
    """A detector that flags by the features, each counting more than the one before: no aim is across the other."""

    def forward(self, x, logits, features):
        return features @ torch.arange(16.0)


class Flat(nn.Sequential):
    """A linear network of 16 pixels: class 1 where the left half is brighter than the right one."""

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(16, 2))
        left = torch.zeros(4, 4)
        left[:, :2] = 1
        with torch.no_grad():
            self[1].weight.copy_(torch.stack([1 - left, left]).flatten(1))
            self[1].bias.zero_()


def test_mahalanobis_by_hand():
    """Two classes with means (0,0) and (10,0), and variances 4 and 1 along the axes."""
    corners = torch.tensor([[2.0, 1], [2, -1], [-2, 1], [-2, -1]])
    features = torch.cat([corners, corners + torch.tensor([10.0, 0])])
    detector = Mahalanobis(features, torch.tensor([3, 3, 3, 3, 7, 7, 7, 7]))
    found = detector(torch.zeros(4), torch.zeros(4, 2), torch.tensor([[0.0, 0], [0, 3], [4, 0], [12, 2]]))
    torch.testing.assert_close(found, torch.tensor([0.0, 9, 4, 1 + 4]))


def test_mahalanobis_is_that_of_scikit_learn():
    from sklearn.covariance import EmpiricalCovariance

    x, y = torch.randn((200, 5), generator=key()), torch.arange(200) % 3
    rest = torch.cat([x[y == label] - x[y == label].mean(0) for label in range(3)])
    reference = EmpiricalCovariance(assume_centered=True).fit(rest.numpy())
    points = torch.randn((20, 5), generator=key(1))
    each = [reference.mahalanobis((points - x[y == label].mean(0)).numpy()) for label in range(3)]
    np.testing.assert_allclose(Mahalanobis(x, y)(points, points[:, :2], points), np.min(each, 0), rtol=1e-3)


def test_a_feature_that_never_moves_does_not_count():
    features = torch.cat([torch.randn((50, 2), generator=key()), torch.zeros(50, 1)], 1)
    detector = Mahalanobis(features, torch.zeros(50).long())
    points = torch.tensor([[1.0, 1, 0], [1, 1, 9]])
    found = detector(points, torch.zeros(2, 2), points)
    assert found.isfinite().all() and found[0] == found[1]


def test_a_classifier_scores_by_its_odds():
    found = Secondary(nn.Identity())(torch.zeros(2), torch.tensor([[1.0, 3], [2, 0]]), torch.zeros(2, 1))
    assert found.tolist() == [2, -2]


def test_a_watched_network_gives_logits_and_score():
    net = network(10)
    x, _ = images(net, 5)
    out = Watched(net, Brightness())(x)
    assert torch.equal(out[:, :10], net(x)) and not net[-1]._forward_pre_hooks
    torch.testing.assert_close(out[:, 10], net[:-1](x).sum(1))
    torch.testing.assert_close(seen(net, x)[1], net[:-1](x))


def test_figures_by_hand():
    fitted = Fitted(Watched(nn.Identity(), Brightness()), threshold=0.5, spread=1.0)
    clean = torch.tensor([[1.0, 0, 0.1], [1, 0, 0.4], [1, 0, 0.6], [1, 0, 0.2]])
    attacked = torch.tensor([[0.0, 1, 0.9], [0, 1, 0.3], [1, 0, 0.9], [0, 1, 0.7]])
    y = torch.zeros(4).long()
    found = outcome(fitted, clean, attacked, y)
    assert found.fooled == 0.75 and found.evaded == 0.25
    assert found.detected == pytest.approx(2 / 3)
    assert found.auroc == pytest.approx((4 + 2 + 4) / 12)  # clean scores below 0.9, 0.3 and 0.7
    assert outcome(fitted, clean, clean, y) == Outcome(0.0, None, None, 0.0)


@pytest.mark.parametrize("threat", ["linf:0.1", "l2:0.4"])
def test_an_adaptive_attack_meets_both_aims(threat):
    """Brighter images are flagged; the other class is reached without any more light, so all can be evaded."""
    net = Flat()
    x = 0.4 + 0.05 * torch.rand((20, 1, 4, 4), generator=key())
    y = net(x).argmax(1)
    fitted = Fitted(Watched(net, Brightness()), float(x.sum((1, 2, 3)).min()), 0.5)
    found = evade(fitted, x, y, parse_threat(threat), DetectOptions(steps=60), key(1))
    delta = (found - x).flatten(1)
    assert (delta.abs().amax(1) if "inf" in threat else delta.norm(dim=1)).max() <= parse_threat(threat).eps + 1e-5
    out = fitted.watched(found)
    assert (out[:, :2].argmax(1) != y).all() and (out[:, 2] <= fitted.threshold).all()


def test_an_orthogonal_step_leaves_the_other_aim_where_it_is():
    """Neither the score moves where the class is sought, nor the margin where the score is."""
    net = Flat()
    x = 0.5 + 0.05 * torch.rand((8, 1, 4, 4), generator=key())
    y = net(x).argmax(1)
    watched = Watched(net, Ramp())
    any_class = torch.full((8,), -1)
    margin = net[1].weight[0] - net[1].weight[1]
    for aim, labels, still in (("class", y, torch.arange(16.0)), ("score", 1 - y, margin)):
        aims = Aims(Fitted(watched, 0.0, 0.5), x, labels)
        _, direction = orthogonal(aims, watched, x, labels, any_class)
        flat = direction.flatten(1)
        assert flat.norm(dim=1).min() > 0, aim
        assert (flat @ still).abs().max() < 1e-5 * flat.norm(dim=1).max() * still.norm(), aim


def test_what_evades_without_knowing_counts_as_evaded(monkeypatch):
    """An adaptive attack that finds nothing leaves the figure at what the static one has found."""
    net = network(10)
    x, y = images(net, 60)
    fitted = fit(net, x, y, DetectOptions.of(threat="linf:0.05", epochs=1))._replace(threshold=1e9)
    monkeypatch.setattr("dfshield.evaluation.detection.evade", lambda fitted, x, *_: x)
    figures = evaluate(fitted, x, y, DetectOptions(threat="linf:0.05", steps=15))
    assert figures["adaptive"].evaded == figures["static"].evaded > 0


def test_what_cannot_be_evaded_is_not():
    net = Flat()
    x = 0.4 + 0.05 * torch.rand((10, 1, 4, 4), generator=key())
    y = net(x).argmax(1)
    fitted = Fitted(Watched(net, Brightness()), -1.0, 0.5)  # flags everything
    figures = evaluate(fitted, x, y, DetectOptions(threat="linf:0.1", steps=5))
    assert figures["false_alarms"] == 1 and figures["static"].fooled == 1
    assert figures["adaptive"].evaded == figures["static"].evaded == 0


def test_the_adaptive_attack_is_at_least_the_static_one():
    net = network(10)
    x, y = images(net, 60)
    fitted = fit(net, x, y, DetectOptions.of(threat="linf:0.05", epochs=5))
    figures = evaluate(fitted, *images(net, 30, seed=8), DetectOptions(threat="linf:0.05", steps=15))
    assert figures["adaptive"].evaded >= figures["static"].evaded
    assert figures["adaptive"].evaded > 0.5 and figures["right"] == 30


@pytest.mark.parametrize("detector", DETECTORS)
def test_the_threshold_lets_its_share_of_held_out_images_be_flagged(detector):
    net = network(3)
    x, y = images(net, 300)
    options = DetectOptions.of(detector=detector, threat="linf:0.2", false_alarms=0.1, **small(detector))
    first, again = (fit(net, x, y, options) for _ in range(2))
    assert first.threshold == again.threshold
    with torch.no_grad():
        flagged = first.watched(x)[:, -1] > first.threshold
    held = torch.randperm(300, generator=_held(options))[:60]
    assert float(flagged[held].float().mean()) == pytest.approx(0.1, abs=0.02)


def _held(options):
    from dfshield.core.rng import generator

    return generator("detect", options.seed)


def test_the_command_writes_a_sealed_record(tmp_path, capsys):
    x = torch.rand((40, 8, 8, 1), generator=key(1)).numpy()
    model = tiny.teacher(tmp_path / "t.safetensors", scale=5.0)
    np.savez(tmp_path / "e.npz", x=x, y=np.arange(40) % 10)
    data = tiny.trainset(tmp_path / "d.h5", n=60)
    words = ["detect", "--model", str(model), "--evaluation", str(tmp_path / "e.npz"), "--steps", "3", "--epochs", "2"]
    words += ["--threat", "linf:0.3", "--out", str(tmp_path / "r.json"), "--data"]
    cli.main([*words, str(data)])
    record = read_detection(tmp_path / "r.json")
    assert record.n == 40 and record.options["threat"] == "linf:0.3" and len(record.training_sha256) == 64
    assert record.false_alarms_wanted == 0.05 and 0 <= record.false_alarms <= 1
    assert record.adaptive.evaded >= record.static.evaded
    first = (tmp_path / "r.json").read_bytes()
    cli.main([*words, str(data)])
    assert (tmp_path / "r.json").read_bytes() == first
    other = tiny.trainset(tmp_path / "o.h5", n=60, shape=(1, 6, 6))
    with pytest.raises(SystemExit):
        cli.main([*words, str(other)])
    assert "other images or classes" in capsys.readouterr().err


def test_images_that_are_all_misclassified_are_refused():
    net = network(3)
    x, y = images(net, 10)
    fitted = Fitted(Watched(net, Brightness()), 0.0, 1.0)
    with pytest.raises(InputError, match="classifies no image rightly"):
        evaluate(fitted, x, (y + 1) % 3, DetectOptions())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_meets_both_aims_alone(strategy, monkeypatch):
    monkeypatch.setattr("dfshield.evaluation.evasion.STRATEGIES", (strategy,))
    test_an_adaptive_attack_meets_both_aims("linf:0.1")


def test_a_further_round_finds_a_class_that_the_first_one_avoids():
    """Towards the likelier class the score rises, towards the other it does not: only a round of its own gets there."""

    class Three(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(4, 3, bias=False)
            with torch.no_grad():
                self.last.weight.copy_(torch.tensor([[0.0, 0, 0, 0], [3, 0, 0, 0], [0, 1, 0, 0]]))

        def forward(self, x):
            return self.last(x.flatten(1) - 0.5)

    class FirstPixel(nn.Module):
        def forward(self, x, logits, features):
            return 50 * (features[:, 0] + 0.02).clamp_min(0)

    x = torch.full((6, 1, 2, 2), 0.45)
    x[:, :, 0, 1] = 0.3
    fitted = Fitted(Watched(Three(), FirstPixel()), 0.5, 0.01)
    y = torch.zeros(6).long()

    def evaded(restarts):
        options = DetectOptions(steps=40, restarts=restarts)
        out = fitted.watched(evade(fitted, x, y, parse_threat("linf:0.3"), options, key(1)))
        return float(((out[:, :3].argmax(1) != y) & (out[:, 3] <= 0.5)).float().mean())

    assert evaded(3) == 1


@pytest.mark.parametrize("detector", DETECTORS)
def test_an_adaptive_attack_evades_every_detector_more_than_a_static_one(detector):
    net = network(10)
    x, y = images(net, 120)
    fitted = fit(net, x, y, DetectOptions.of(detector=detector, threat="linf:0.05", **small(detector)))
    assert all(not parameter.requires_grad for parameter in fitted.watched.detector.parameters())
    assert any(parameter.requires_grad for parameter in net.parameters())
    figures = evaluate(fitted, *images(net, 30, seed=8), DetectOptions(threat="linf:0.05", steps=15))
    assert figures["adaptive"].evaded >= figures["static"].evaded
