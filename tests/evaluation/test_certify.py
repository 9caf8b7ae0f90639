"""Certificates of randomised smoothing: against closed forms, against attacks, and their files."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import tiny
from support.attacked import Linear, attack, images, key, network
from support.purification import kept, lively, options

from dfshield import cli
from dfshield.core import sealed
from dfshield.core.errors import InputError
from dfshield.core.threat import Threat
from dfshield.defences.diffpure import Diffused
from dfshield.defences.diffusion import Process, purification_distance
from dfshield.defences.fit_file import FitCard, write_fit
from dfshield.defences.smoothing import NOISES, RandomisedSmoothing
from dfshield.evaluation.certificates import ABSTAINED, KIND, read_certificates
from dfshield.evaluation.certify import Certificates, certify, less, lower_bound
from dfshield.models.checkpoints import load_checkpoint, read_card
from dfshield.options.defences_smoothing import CertifyOptions, Smoothing


def test_the_bound_by_hand():
    """All of n successes: α^(1/n). None: zero. One of one: α."""
    assert lower_bound(100, 100, 0.001) == pytest.approx(0.001**0.01)
    assert lower_bound(0, 100, 0.001) == 0
    assert lower_bound(1, 1, 0.05) == pytest.approx(0.05)
    assert lower_bound(1, 2, 0.05) == pytest.approx(1 - math.sqrt(0.95))


def test_the_bound_is_as_often_wrong_as_it_may_be():
    trials, p, alpha = 50, 0.8, 0.1
    mass = [math.comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in range(trials + 1)]
    wrong = sum(mass[k] for k in range(trials + 1) if lower_bound(k, trials, alpha) > p)
    assert 0.03 < wrong <= alpha


def distances(net: Linear, x: torch.Tensor) -> np.ndarray:
    """l2 distance of each image from the border of a linear classifier."""
    return (net.score(x).abs() / net.w.norm()).detach().numpy()


def test_gaussian_radii_approach_the_distance_from_a_hyperplane():
    """There the smoothed classifier is the classifier, and its radius the distance (Cohen et al., section 3.1)."""
    net = Linear(16)
    x = torch.rand((12, 1, 4, 4), generator=key(3))
    truth, label = distances(net, x), net(x).argmax(1).numpy()
    gaps = []
    for n in (300, 30_000):
        found = certify(net, x, CertifyOptions(sigma=0.3, n0=2000, n=n, batch=10_000))
        certified = found.prediction != ABSTAINED
        assert (found.prediction[certified] == label[certified]).all() and (found.radius <= truth).all()
        gaps.append((truth - found.radius)[truth < 0.6].max())
    assert gaps[1] < 0.02 < gaps[0]


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("distance", [0.05, 0.15])
def test_radii_of_a_border_across_one_pixel(noise, distance):
    """There every kind of noise certifies the whole distance as its number of draws grows, in its own norm."""
    net = Linear(4)
    with torch.no_grad():
        net.layer.weight.copy_(torch.tensor([[1.0, 0, 0, 0]]))
        net.layer.bias.fill_(-0.5)
    x = torch.full((1, 1, 2, 2), 0.5)
    x[0, 0, 0, 0] = 0.5 + distance
    found = certify(net, x, CertifyOptions(distribution=noise, sigma=0.2, n=100_000, batch=100_000))
    assert found.prediction.tolist() == [1]
    assert 0.9 * distance - 0.005 < found.radius[0] <= distance
    assert NOISES[noise].norm == ("l2" if noise == "gaussian" else "l1")


def test_nothing_is_certified_where_the_vote_is_even():
    net = Linear(16)
    x = torch.full((3, 1, 4, 4), 0.5)  # on the border
    found = certify(net, x, CertifyOptions(n=1000))
    assert found.prediction.tolist() == [ABSTAINED] * 3 and found.radius.tolist() == [0] * 3


def test_the_class_is_chosen_by_other_copies_than_those_that_bound_it():
    """A class that only the first copies are of cannot be certified by them."""

    class First(torch.nn.Module):
        passed = 0

        def forward(self, x):
            self.passed += len(x)
            chosen = torch.zeros(len(x), dtype=torch.long) if self.passed <= 100 else torch.ones(len(x)).long()
            return F.one_hot(chosen, 2).float()

    net = First()
    found = certify(net, torch.rand((1, 1, 2, 2)), CertifyOptions(n0=100, n=400))
    assert found.prediction.tolist() == [ABSTAINED] and net.passed == 500


def test_certificates_follow_the_seed_and_leave_the_model_alone():
    net = network(3).train()
    x, _ = images(net, 4)
    options = CertifyOptions(n=200, sigma=0.2)
    first = certify(net, x, options)
    assert np.array_equal(certify(net, x, options).radius, first.radius) and net.training
    assert not np.array_equal(certify(net, x, options.model_copy(update={"seed": 1})).radius, first.radius)


def test_certified_accuracy_by_hand():
    found = Certificates(np.array([1, 1, ABSTAINED, 0]), np.array([0.5, 0.2, 0.0, 0.9]))
    labels = np.array([1, 1, 1, 1])
    assert [found.accuracy(labels, radius) for radius in (0, 0.2, 0.4, 0.5)] == [0.5, 0.25, 0.25, 0]


def test_no_attack_breaks_what_is_certified():
    """A trained network: certified accuracy is at most the accuracy under l2 attack through the smoothing."""
    torch.manual_seed(0)
    x = torch.rand((400, 1, 4, 4), generator=key())
    y = (x[:, 0, :2].sum((1, 2)) > x[:, 0, 2:].sum((1, 2))).long()
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 24), torch.nn.ReLU(), torch.nn.Linear(24, 2))
    optimiser = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(60):
        optimiser.zero_grad()
        F.cross_entropy(net(x + 0.15 * torch.randn_like(x)), y).backward()
        optimiser.step()
    x, y = x[:40], y[:40]
    found = certify(net, x, CertifyOptions(sigma=0.15, n=3000, batch=3000))
    defence = RandomisedSmoothing(Smoothing(sigma=0.15, votes=200))
    for radius in (0.1, 0.2):
        rows, _ = attack(
            defence.protect(net), x, y, f"l2:{radius}", attack="pgd", steps=20, victim=defence.surrogate(net)
        )
        certified = (found.prediction == y.numpy()) & (found.radius > radius)
        assert not rows["broken"][certified].any()
        assert 0.1 < found.accuracy(y.numpy(), radius) <= 1 - rows["broken"].mean()
        assert rows["broken"].any()


def test_how_far_purification_leads_by_hand():
    """γ is the integral of β/2 over time, β linear from 0.1 to 20 (Nie et al. 2022); half of it all for [0,1]."""
    for time, pixels, delta, score in ((0.1, 64, 0.001, 0.0), (0.47, 3072, 0.05, 7.0)):
        gamma = (0.1 * time + (20 - 0.1) * time**2 / 2) / 2
        squared = 2 * pixels + 4 * math.sqrt(pixels * -math.log(delta)) + 4 * -math.log(delta)
        expected = (math.sqrt(math.exp(2 * gamma) - 1) * math.sqrt(squared) + gamma * score) / 2
        found = purification_distance(Process(100_000), time, pixels, delta, score)
        assert found == pytest.approx(expected, rel=1e-3)
    assert purification_distance(Process(1000), 0.1, 64, 0.001, 0) == pytest.approx(2.6231, abs=1e-4)


def test_radii_behind_a_purifier_by_hand():
    """Eq 15: what the distance leaves; an image that it leaves nothing has no certificate."""
    found = less(Certificates(np.array([1, 2, ABSTAINED, 0]), np.array([0.5, 0.2, 0.0, 0.3])), 0.2)
    assert found.prediction.tolist() == [1, ABSTAINED, ABSTAINED, 0]
    assert np.allclose(found.radius, [0.3, 0, 0, 0.1])
    same = less(Certificates(np.array([1, ABSTAINED]), np.array([0.5, 0.0])), 0.0)
    assert same.prediction.tolist() == [1, ABSTAINED] and same.radius.tolist() == [0.5, 0]


@pytest.fixture
def files(tmp_path):
    """A checkpoint and an evaluation set."""
    random = torch.rand((6, 8, 8, 1), generator=key(1)).numpy()
    np.savez(tmp_path / "e.npz", x=random, y=np.arange(6))
    return [
        *("--model", str(tiny.teacher(tmp_path / "t.safetensors"))),
        *("--evaluation", str(tmp_path / "e.npz"), "--n", "60", "--sigma", "0.05", "--radii", "0", "0.02"),
    ]


def test_the_command_writes_a_curve_and_a_record(tmp_path, files):
    out = tmp_path / "certificates.json"
    cli.main(["certify", *files, "--out", str(out), "--code", "abc"])
    rows = list(csv.DictReader(out.with_suffix(".csv").open()))
    record = read_certificates(out)
    assert [float(row["radius"]) for row in rows] == [0, 0.02]
    found = Certificates(np.array(record.predictions), np.array(record.radii))
    for row, point in zip(rows, record.curve, strict=True):
        assert float(row["certified_accuracy"]) == pytest.approx(point["certified_accuracy"], abs=1e-5)
        assert point["certified_accuracy"] == found.accuracy(np.array(record.labels), point["radius"])
    assert record.n == 6 and record.norm == "l2" and record.options["sigma"] == 0.05 and record.code == "abc"
    held = record.certified(Threat("l2", 0.02))
    assert held.mean() == found.accuracy(np.array(record.labels), 0.02)
    with pytest.raises(InputError, match="its radii are in l2, not in linf"):
        record.certified(Threat("linf", 0.02))
    before = out.read_bytes(), out.with_suffix(".csv").read_bytes()
    cli.main(["certify", *files, "--out", str(out), "--code", "abc"])
    assert (out.read_bytes(), out.with_suffix(".csv").read_bytes()) == before


@pytest.fixture
def behind(tmp_path, files):
    """What the command takes for the classifier behind a purifier that hardly noises, and the options of that."""
    purifier = options("diffpure", time=0.005)
    digest = read_card(Path(files[1])).tensors_sha256
    card = FitCard("diffpure", purifier.described(), "linf:0.1", 0, "cpu", digest, digest, "", "dss", "none", "0", "")
    write_fit(tmp_path / "fit.safetensors", card, kept(lively()))
    given = json.dumps({"defence": "diffpure", **purifier.described()})
    return purifier, [*files, "--defence", given, "--fitted", str(tmp_path / "fit.safetensors")]


def record_of(tmp_path, words) -> dict:
    cli.main(["certify", *words, "--out", str(tmp_path / "curve.json")])
    return sealed.read(tmp_path / "curve.json", KIND)


def test_noisy_copies_are_purified_before_they_vote(tmp_path, files, behind):
    purifier, words = behind
    record, bare = record_of(tmp_path, words), record_of(tmp_path, files)
    net, _ = load_checkpoint(Path(files[1]), "cpu")
    x = torch.from_numpy(np.load(tmp_path / "e.npz")["x"]).permute(0, 3, 1, 2).contiguous()
    judged = Diffused(net, lively().eval().requires_grad_(False), purifier, crafting=False)
    found = certify(judged, x, CertifyOptions(n=60, sigma=0.05))
    assert record["radii"] == found.radius.tolist() and record["predictions"] == found.prediction.tolist()
    assert record["defence"] == "diffpure" and record["distance"] == 0 and set(record["others"]) == {"defence"}
    assert record["radii"] != bare["radii"] and bare["defence"] == "none"


def test_radii_that_the_distance_of_purification_leaves(tmp_path, files, behind):
    """On images of 64 values even half a percent of the process leads farther than any radius here."""
    purifier, words = behind
    bare = record_of(tmp_path, files)
    record = record_of(tmp_path, [*words, "--purified", "distance"])
    distance = purification_distance(Process(1000), purifier.time, 64, 0.001, 0.0)
    assert record["distance"] == pytest.approx(distance)
    assert record["radii"] == [max(radius - distance, 0) for radius in bare["radii"]]


@pytest.mark.parametrize(
    "words, said",
    [
        (["--out", "x.csv"], "is the name of the curve"),
        (["--out", "x.json", "--alpha", "1"], "alpha"),
        (["--out", "x.json", "--radii"], "--radii: none given"),
        (["--out", "x.json", "--radii", "-1"], "radii"),
        (["--out", "x.json", "--purified", "distance"], "needs --defence by a diffusion model"),
        (["--out", "x.json", "--purified", "distance", "--defence", "jpeg"], "needs --defence by a diffusion model"),
        (
            ["--out", "x.json", "--purified", "distance", "--defence", "diffpure", "--distribution", "laplace"],
            "is in l2, which laplace noise does not certify",
        ),
        (["--out", "x.json", "--defence", "diffpure"], "is fitted first; give the file"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, files, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as done:
        cli.main(["certify", *files, *words])
    assert done.value.code == 2 and said in capsys.readouterr().err and not list(tmp_path.glob("x.*"))


@pytest.mark.parametrize(
    "edit, said",
    [
        (lambda text: text.replace('"n": 6', '"n": 7'), "does not match its SHA-256"),
        (lambda text: text.replace("dfshield-certificates", "other"), "not a record of certificates"),
        (lambda text: text.replace('"version": 2', '"version": 3'), "format version 3"),
        (lambda text: text[:-9], "cannot be read as JSON"),
        (lambda text: json.dumps([text]), "not a record of certificates"),
    ],
)
def test_a_record_that_was_edited_is_refused(tmp_path, edit, said):
    path = tmp_path / "r.json"
    sealed.write(path, KIND, {"n": 6})
    assert sealed.read(path, KIND) == {"n": 6}
    path.write_text(edit(path.read_text()))
    with pytest.raises(InputError, match=said):
        sealed.read(path, KIND)
