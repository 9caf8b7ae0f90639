"""Robustness checks against closed forms; their record, their stage, their table."""

import csv
import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support import tiny
from support.attacked import Constant, Linear, Noisy, images, network
from support.cells import cell
from support.ledgers import make_ledger
from torch import nn

from dfshield import registry
from dfshield.attacks.base import frozen
from dfshield.core.errors import InputError
from dfshield.core.rng import seeded
from dfshield.evaluation import check
from dfshield.evaluation.checks import binarisation, comparisons, convergence, gradients, records
from dfshield.evaluation.checks.case import Case, allowed
from dfshield.evaluation.findings import Finding, Findings, read_findings, write_findings
from dfshield.evaluation.ledger import read_ledger
from dfshield.models.checkpoints import load_checkpoint, read_card
from dfshield.options import ChecksOptions
from dfshield.planning.arithmetic import checks_passes
from dfshield.planning.cells import Cell
from dfshield.report import checklist, table
from dfshield.report.notes import notes
from dfshield.tools import inspect

QUICK = {"device": "cpu", "steps": 4, "restarts": 2, "queries": 30, "draws": 3, "binarised": 6, "inner": 100}


def case(net: nn.Module, x: torch.Tensor, y: torch.Tensor, *, threat: str = "linf:0.02", **given: object) -> Case:
    options = {name: given.pop(name) for name in list(given) if name in ChecksOptions.model_fields}
    return Case(net, net, x, y, ChecksOptions(**(QUICK | {"threat": threat} | options)), **given)


def linear(n: int = 40, **given: object) -> Case:
    """A linear model on images of 4x4 pixels away from black and white, which it classifies rightly."""
    net = Linear()
    x = 0.3 + 0.4 * torch.rand((n, 1, 4, 4), generator=torch.Generator().manual_seed(3))
    return case(net, x, net(x).argmax(1).detach(), **given)


def verdicts(made: Case) -> dict[str, str]:
    with frozen(made.model), seeded(0):
        return {name: entry.load()(made).verdict for name, entry in registry.CHECKS.items()}


# --- the attacks of the checks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "order", "eps"), [("linf", 1, 0.03), ("l2", 2, 0.1)])
def test_pgd_breaks_all_that_a_linear_model_allows(norm, order, eps):
    """An image falls if and only if its score is less than ε times the dual norm of the weights."""
    made = linear(threat=f"{norm}:{eps}", steps=12)
    reach = eps * float(torch.linalg.vector_norm(made.model.w.detach(), order))
    score = made.model.score(made.x).abs().detach()
    clear = (score - reach).abs() > 0.02 * reach
    assert torch.equal(made.direct[clear], (score > reach)[clear]) and 0 < made.direct.sum() < made.n
    for found in (made.pgd(4, alive=made.direct), made.pgd(4, model=Linear(seed=5))):
        assert not (found & ~made.right).any()


def test_a_linear_model_passes_all_checks():
    made = linear(steps=12, surrogate=Linear(seed=5))
    applied = {name for name, verdict in verdicts(made).items() if verdict == "passed"}
    assert applied == registry.CHECKS.keys() - {"worst-case", "last-epoch"}
    assert gradients.shattering(made).figure == pytest.approx(1, abs=1e-3)


def test_images_that_are_wrong_are_not_attacked():
    made = linear()
    made.y[:10] = 1 - made.y[:10]
    assert not made.right[:10].any() and made.right[10:].all()
    assert not comparisons.square(made, made.right)[:10].any()


def test_epsilon_zero_breaks_nothing():
    made = linear(threat="linf:0")
    assert made.direct.all() and set(verdicts(made).values()) == {"passed", "not-applicable"}


def test_one_image_alone_is_no_sign():
    assert [allowed(1, n) for n in (20, 100, 101, 1000)] == [1, 1, 1.01, 10]


def test_gradients_that_are_turned_have_a_cosine_of_minus_one():
    class Turned(Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            z = super().forward(x)
            return 2 * z.detach() - z

    made = linear()
    made.model = made.victim = Turned()
    found = gradients.shattering(made)
    assert (found.verdict, found.figure) == ("failed", pytest.approx(-1, abs=1e-3))
    made.model = made.victim = Constant(Linear())
    assert gradients.shattering(made)[:2] == ("failed", 0)


def test_the_curve_of_what_nothing_breaks_does_not_fall():
    net = network(10)
    x, y = images(net)
    assert convergence.eps_curve(case(net, x, y)).verdict == "passed"
    found = convergence.eps_curve(case(Constant(net), x, y, threat="linf:0.001"))
    assert found.verdict == "failed" and found.figure > 1


def test_noise_breaks_what_fixed_noise_would():
    """A model that is right at the image alone: PGD has no gradient, any noise moves the image away."""

    class Needle(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            away = (x - 0.5).flatten(1).abs().amax(1) > 1e-4
            return torch.stack((1 - away.float(), away.float()), 1)

    x, y = torch.full((10, 1, 4, 4), 0.5), torch.zeros(10, dtype=torch.long)
    made = case(Needle(), x, y)
    made.direct = made.right  # an attack that stays where it is
    assert comparisons.noise(made)[:2] == ("failed", 100)
    assert comparisons.noise(case(Linear(), x, y)).verdict == "passed"


# --- the binarisation test -------------------------------------------------------------------------------------------


def test_a_task_has_the_solution_that_it_is_known_to_have():
    """The boundary point is of the second class, every inner point of the first: by the readout's own construction."""
    net = network(10)
    x, y = images(net)
    made = case(net, x, y, threat="linf:0.05")
    features, done = binarisation._features(made)
    random = torch.Generator().manual_seed(1)
    task = binarisation.readout(features, x[:1], made.threat, 200, random)
    again = torch.Generator().manual_seed(1)
    near = binarisation.random_start(x[:1].expand(200, 1, 8, 8), made.threat._replace(eps=0.025), again)
    border = binarisation._border(x[:1], made.threat, again)
    with torch.no_grad():
        assert (task(near).argmax(1) == 0).all() and task(border).argmax(1).tolist() == [1]
    done()
    inside = (border > 0) & (border < 1)
    assert torch.allclose((border - x[:1]).abs()[inside], torch.tensor(0.05), atol=1e-6)
    assert not net[-1]._forward_pre_hooks


def test_the_exam_is_passed_by_gradients_and_failed_without():
    net = network(10)
    x, y = images(net)
    assert binarisation.binarisation(case(net, x, y, threat="linf:0.05", steps=20)).verdict == "passed"
    found = binarisation.binarisation(case(Constant(net), x, y, threat="linf:0.05", steps=20))
    assert (found.verdict, found.figure) == ("failed", 0)
    assert binarisation.binarisation(case(net, x, y, binarised=0)).verdict == "not-applicable"


# --- ledgers and metrics ---------------------------------------------------------------------------------------------


def ledgers(folder, left: dict[str, int], **changes: object) -> list:
    made = []
    for attack, robust in left.items():
        make_ledger(folder / f"{attack}.h5", 180, robust, protocol=attack, options={"attack": attack}, **changes)
        made.append(read_ledger(folder / f"{attack}.h5"))
    return made


@pytest.mark.parametrize(
    ("left", "verdict", "figure"),
    [
        ({"autoattack": 100, "pgd": 120}, "passed", 0),
        ({"autoattack": 100, "pgd": 99}, "passed", 0.5),
        ({"autoattack": 100, "pgd": 98}, "failed", 1.0),
        ({"autoattack": 100, "pgd": 110, "fgsm": 97}, "failed", 1.5),
        ({"autoattack": 100}, "not-applicable", None),
        ({"autoattack": 100, "clean": 90}, "not-applicable", None),
        ({"pgd": 100, "fgsm": 90}, "not-applicable", None),
    ],
)
def test_worst_case_over_ledgers(tmp_path, left, verdict, figure):
    found = records.worst_case(linear(ledgers=ledgers(tmp_path, left)))
    assert (found.verdict, found.figure) == (verdict, figure)


def test_ledgers_of_fewer_images_are_compared_on_those(tmp_path):
    own = ledgers(tmp_path, {"autoattack": 100})
    make_ledger(tmp_path / "few.h5", 50, 0, n=50, protocol="pgd", options={"attack": "pgd"})
    found = records.worst_case(linear(ledgers=[*own, read_ledger(tmp_path / "few.h5")]))
    assert found.figure == 100 and "of 50 images" in found.text


def test_flags_of_ledgers_and_of_the_model(tmp_path):
    flagged = ledgers(tmp_path, {"autoattack": 9}, flags=("square-broke-after-white-box", "diverged"))
    found = records.autoattack_flags(linear(ledgers=flagged))
    assert found[:2] == ("failed", 1) and found.text == "square-broke-after-white-box"
    made = linear()
    assert records.autoattack_flags(made).verdict == "passed"
    made.model = made.victim = Noisy(Linear(), 0.5)
    assert records.autoattack_flags(made).text == "randomised"


@pytest.mark.parametrize(
    ("values", "verdict", "figure"),
    [
        ([10, 40, 36], "passed", 4),
        ([10, 40, 34], "failed", 6),
        ([10, 10, 40, 40, 40, 40, 60, 40, 34, 34], "failed", 16),  # means of two epochs
        ([40, 40, 40, 40, 40, 40, 40, 48, 40, 40], "passed", 4),  # one lucky epoch
        ([10, 20, 30], "passed", 0),
        ([10, 20, np.nan], "not-applicable", None),
        ([], "not-applicable", None),
    ],
)
def test_last_epoch_beside_the_best(values, verdict, figure):
    found = records.last_epoch(linear(history=[{"robust_agreement": value} for value in values]))
    assert (found.verdict, found.figure) == (verdict, figure)


# --- the stage -------------------------------------------------------------------------------------------------------

OPTIONS = ChecksOptions(**(QUICK | {"limit": 30, "threat": "linf:0.02", "steps": 10}))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    path = tiny.teacher(folder / "teacher.safetensors")
    tiny.teacher(folder / "other.safetensors", seed=1)
    classifier, _ = load_checkpoint(path)
    x = tiny.images(30)
    labels = classifier(torch.from_numpy(x).permute(0, 3, 1, 2)).argmax(1).numpy()
    np.savez(folder / "images.npz", x=x, y=labels)
    (folder / "metrics.csv").write_text("epoch,loss,robust_agreement\n1,2.0,40\n2,1.0,30\n")
    return path


def test_equal_seeds_give_equal_bytes(model, tmp_path):
    given = {"others": {"surrogate": model.with_name("other.safetensors")}, "history": model.with_name("metrics.csv")}
    given["evaluation_npz"] = model.with_name("images.npz")
    first = check.run(model, tmp_path / "a.json", OPTIONS, **given)
    check.run(model, tmp_path / "b.json", OPTIONS, **given)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    record = read_findings(tmp_path / "a.json")
    assert [f.check for f in record.findings] == list(registry.CHECKS) and record.findings == first.findings
    assert record.n == 30 and record.model_sha256 == read_card(model).tensors_sha256
    assert "last-epoch" in record.failed and "failed-check:last-epoch" in record.flags
    assert {f.check for f in record.findings if f.verdict == "not-applicable"} == {"worst-case"}


@pytest.mark.parametrize(
    ("change", "message"),
    [({"model_sha256": "x" * 64}, "another model"), ({"threat": "l2:1"}, "another threat"), ({}, "other images")],
)
def test_ledgers_of_something_else_are_refused(model, tmp_path, change, message):
    own = {"model_sha256": read_card(model).tensors_sha256, "threat": OPTIONS.threat}
    make_ledger(tmp_path / "l.h5", 180, 100, **(own | change))
    with pytest.raises(InputError, match=rf"l\.h5: is the ledger of {message}"):
        check.run(model, tmp_path / "c.json", OPTIONS, [tmp_path / "l.h5"])
    with pytest.raises(InputError, match="no use of another model as teacher; give a surrogate"):
        check.run(model, tmp_path / "c.json", OPTIONS, others={"teacher": model})


class Counted(nn.Module):
    """Counts the images that pass."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.forward_images, self.gradients = net, 0, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.forward_images += len(x)
        self.gradients += len(x) if x.requires_grad else 0
        return self.net(x)


def test_the_price_is_an_upper_bound():
    net = Counted(network(10))
    x, y = images(net.net)
    made = case(net, x, y, threat="linf:0.001", surrogate=net)
    verdicts(made)
    price = checks_passes(made.options, len(x), 1.0)
    assert 0.7 * price < net.forward_images + net.gradients <= price


# --- record and table ------------------------------------------------------------------------------------------------


def record(verdict: str = "failed", **changes: object) -> Findings:
    found = tuple(Finding(name, "passed", 0.0, 1.0, "fine") for name in registry.CHECKS)
    found = (*found[:-1], dataclasses.replace(found[-1], verdict=verdict, figure=None))
    subject = {"source": "dss", "recipe": "dfshield", "train_threat": "linf-8-255", "seed": 2}
    fields = {"dataset": "digits", "model": "cnn-s", "subject": subject, "defence": "none", "defence_options": {}}
    fields |= {"threat": "linf:8/255", "n": 100, "findings": found, "options": {}, "seed": 0, "model_sha256": "m"}
    fields |= {"data_sha256": "d", "ledgers": {}, "others": {}, "real_data": "none"}
    return Findings(**(fields | {"package_version": "0", "code": ""} | changes))  # type: ignore[arg-type]


def test_the_record_comes_back_and_edits_are_refused(tmp_path):
    file = tmp_path / "r.json"
    content = write_findings(file, record())
    assert read_findings(file).content_sha256 == content == write_findings(file, read_findings(file))
    body = json.loads(file.read_text())
    spoilt = {
        "content does not match": body | {"n": 99},
        "is not whole": body | {"more": 1},
        "not a record of robustness checks": body | {"format": "other"},
        "format version 9": body | {"version": 9},
    }
    for message, changed in spoilt.items():
        file.write_text(json.dumps(changed))
        with pytest.raises(InputError, match=message):
            read_findings(file)
    file.write_text("{")
    with pytest.raises(InputError, match="cannot be read as JSON"):
        read_findings(file)
    write_findings(file, record())
    assert inspect._look(file)[:2] == ("record of robustness checks", inspect.describe_findings(read_findings(file)))
    write_findings(file, record(findings=()))
    with pytest.raises(InputError, match="has the checks , expected worst-case"):
        read_findings(file)


def test_the_checklist_has_a_row_for_every_check(tmp_path):
    write_findings(tmp_path / "a.json", record())
    write_findings(tmp_path / "b.json", record("passed", threat="l2:0.5"))
    checklist.run([tmp_path / "a.json", tmp_path / "b.json", tmp_path / "a.json"], tmp_path / "out.csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())))
    assert len(rows) == 2 * len(registry.CHECKS) and tuple(rows[0]) == checklist.COLUMNS
    assert [row["check"] for row in rows if row["verdict"] == "failed"] == ["last-epoch"]
    assert (rows[0]["recipe"], rows[0]["seed"], rows[0]["figure"], rows[-1]["threat"]) == (
        *("dfshield", "2", "0.00", "l2:0.5"),
    )
    text = (tmp_path / "out.md").read_text()
    assert "| Last epoch | 1 | 1 | 0 |" in text and "| Noise | 2 | 0 | 0 |" in text
    assert "- digits cnn-s dss dfshield linf-8-255 2 none linf:8/255: Last epoch: fine" in text


def test_the_section_of_a_card():
    lines = checklist.card_section([("Hardened", record())])
    assert lines[0] == "## Checks" and "1 failed" in lines[-2]
    assert "| Hardened | Last epoch | **failed** |  | 1.00 | fine |" in lines
    assert "None failed." in checklist.card_section([("Hardened", record("passed"))])[-2]
    assert "Not checked." in checklist.card_section([])


def test_a_failed_check_marks_the_figure(tmp_path):
    make_ledger(tmp_path / "l.h5", 180, 100, model_sha256="m")
    write_findings(tmp_path / "bad.json", record())
    write_findings(tmp_path / "good.json", record("passed"))
    write_findings(tmp_path / "other.json", record(model_sha256="x"))
    own = cell(tmp_path / "l.h5")
    flags = {name: table.build([own_checks(own, tmp_path / f"{name}.json")])[0].flags for name in ("bad", "good")}
    assert flags == {"bad": ("failed-check:last-epoch",), "good": ()} and table.build([own])[0].flags == ()
    assert notes(flags["bad"])["failed-check:last-epoch"] == (
        "¤",
        "a robustness check failed (last-epoch)",
    )
    assert set(notes(["failed-check:steps", "failed-check:noise"]).values()) == {
        ("¤", "a robustness check failed (noise, steps)")
    }
    with pytest.raises(InputError, match=r"other\.json: is of another model than .*l\.h5"):
        table.build([own_checks(own, tmp_path / "other.json")])


def own_checks(own: Cell, path: Path) -> Cell:
    return dataclasses.replace(own, checks=str(path))
