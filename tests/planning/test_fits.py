"""What the plan says of defences that are fitted: their jobs, training sets, threat models, digests, errors."""

import re

import pytest
from support.configs import GRID, MINE, ROOT, changed, plan

from dfshield import registry
from dfshield.core.errors import InputError
from dfshield.planning import provenance
from dfshield.planning.arithmetic import Throughput
from dfshield.planning.config import check_config
from dfshield.planning.jobs import Job, Jobs
from dfshield.planning.paths import DATA, DEFENCE, LEDGER, STUDENT, TEACHER
from dfshield.planning.pricing import Prices
from dfshield.report.origin import chain

STUDENT_OF = {"source": "dss", "recipe": "dfshield"}


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def ledger(made, defence="mixture", **fields) -> tuple[Jobs, Job]:
    """The jobs of an attack behind a defence, and the attack."""
    place = made.place("digits", "cnn-s", defence=defence, protocol="pgd10", threat="linf-8-255", **fields)
    jobs = Jobs(made)
    return jobs, jobs.jobs[jobs.ledger(place)]


def test_an_attack_waits_for_the_fit_and_the_fit_for_student_teacher_and_data():
    jobs, attack = ledger(plan(), **STUDENT_OF)
    place = attack.place
    assert attack.inputs == (place.path(STUDENT), place.path(DEFENCE))
    fit = jobs.jobs[place.path(DEFENCE)]
    teacher = place.at(source="none", recipe="none", train_threat="none", defence="none").path(TEACHER)
    assert (fit.stage, fit.inputs) == ("defend", (place.path(STUDENT), teacher, place.path(DATA)))
    assert fit.options.defence == "mixture" and fit.place.protocol == fit.place.threat == ""
    assert [job.stage for job in chain(jobs, attack.output)][-2:] == ["defend", "attack"]


def test_all_attacks_of_a_student_share_one_fit_and_its_checks_wait_for_it():
    made = plan(defences={"mixture": {"defend": "mixture"}})
    place = made.place("digits", "cnn-s", defence="mixture", threat="linf-8-255", **STUDENT_OF)
    jobs = Jobs(made)
    for protocol in ("pgd10", "autoattack"):
        jobs.ledger(place.at(protocol=protocol))
    from dfshield.planning.cells import Cell
    from dfshield.planning.paths import CHECKS

    where = {"ledger": place.at(protocol="pgd10").path(LEDGER), "checks": place.path(CHECKS)}
    cell = Cell("t", "digits", "cnn-s", "m", "", "mixture", "linf:8/255", "pgd10", 0, **where)
    (checks,) = jobs.checks(cell)
    assert jobs.jobs[checks].inputs[-1] == place.path(DEFENCE)
    assert [job.stage for job in jobs.jobs.values()].count("defend") == 1


def test_what_is_not_fitted_has_the_jobs_that_it_had():
    for defence in ("tte", "none"):
        jobs, attack = ledger(plan(), defence, **STUDENT_OF)
        assert attack.inputs == (attack.place.path(STUDENT),)
        assert "defend" not in {job.stage for job in jobs.jobs.values()}


@pytest.mark.parametrize(
    ("base", "fields", "source"),
    [
        (None, STUDENT_OF, "dss"),
        (None, {"source": "fixed", "recipe": "trades"}, "fixed"),
        (None, {"source": "mixup", "recipe": "trades"}, "mixup"),
        (None, {}, "dss"),  # the teacher itself
        (None, {"source": "none", "recipe": "ait"}, "dss"),  # trained beside a generator
        ("fast", STUDENT_OF, "fast"),
        ("real", {}, "real"),
    ],
)
def test_the_training_set_of_a_fit(base, fields, source):
    entry = {"defend": "mixture"} | ({"base": base} if base else {})
    jobs, attack = ledger(plan(defences={"mixture": entry}), **fields)
    fit = jobs.jobs[attack.place.path(DEFENCE)]
    assert fit.inputs[-1] == attack.place.at(source=source).path(DATA) and fit.inputs[-1] in jobs.jobs


def test_a_fit_is_for_the_threat_model_of_the_training():
    made = plan()
    place = made.place("digits", "cnn-s", defence="mixture", **STUDENT_OF)
    assert made.fitted_for(place) == made.fitted_for(made.place("digits", "cnn-s", defence="mixture")) == "linf:8/255"
    other = plan(protocols={"wide": {"attack": "pgd", "threat": "linf:9/255"}})
    assert other.fitted_for(place.at(train_threat="linf-9-255")) == "linf:9/255"
    with pytest.raises(InputError, match="digits/cnn-s: no threat model 'linf-3-255' in the config"):
        made.fitted_for(place.at(train_threat="linf-3-255"))


def test_options_of_a_fit_are_those_that_the_attack_has():
    made = plan(defences={"mixture": {"defend": "mixture", "keep": 0.9}}, seeds=[3])
    place = made.place("digits", "cnn-s", defence="mixture", seed=3, **STUDENT_OF)
    assert made.options("defend", place).keep == 0.9 and made.options("defend", place).seed == 3
    assert made.options("defend", place).described() == made.defence("mixture").described()


@pytest.mark.parametrize(
    ("path", "value", "why"),
    [
        ("defences", {"x": {"defend": "mixture", "base": "nowhere"}}, r"defences\.x\.base: 'nowhere' is not one of"),
        ("defences", {"x": {"defend": "tte", "base": "dss"}}, r"defences\.x\.base: defence tte has nothing to fit"),
        ("defend", {"keep": 0.5}, "defend: unknown key"),
    ],
)
def test_errors_of_a_config(path, value, why):
    with pytest.raises(InputError, match=why) as refused:
        check_config(changed(GRID, path, value))
    assert "\n" not in str(refused.value)


def test_a_training_set_that_was_taken_out_is_missed():
    without = {"dss": None, "mixup": None, "cutout": None, "cutmix": None}
    with pytest.raises(InputError, match=r"defences\.mixture: is fitted on training set 'dss', which the config lacks"):
        ledger(plan(sources=without))


def test_the_digest_of_a_fit_follows_the_defence(monkeypatch):
    made = plan()
    place = made.place("digits", "cnn-s", defence="mixture", **STUDENT_OF)
    options = made.options("defend", place)
    own = provenance.job_digest("defend", place, options)
    assert own == provenance.stage_digest("defend", registry.DEFENCES["mixture"], registry.MODELS["cnn-s"])
    assert own != provenance.stage_digest("defend", registry.DEFENCES["tte"], registry.MODELS["cnn-s"])


def test_the_price_of_a_fit():
    made = plan(synthesize={"images": 1000}, train={"batch": 20})
    jobs, attack = ledger(made, **STUDENT_OF)
    fit = jobs.jobs[attack.place.path(DEFENCE)]
    prices = Prices(made, Throughput.published(), 0.4)
    network = prices.network(fit.place)
    assert prices.price(fit).flops == 500 * (2 + 2 * 20 + 1) * network.flops
    alone = plan(synthesize={"images": 200}, train={"batch": 5, "aggregate": 1, "holdout": 0})
    jobs, attack = ledger(alone, **STUDENT_OF)
    assert Prices(alone, Throughput.published(), 0.4).price(jobs.jobs[attack.place.path(DEFENCE)]).flops == (
        200 * 43 * network.flops
    )


def test_a_fit_that_says_nothing_of_its_passes_is_not_estimated(monkeypatch):
    jobs, attack = ledger(made := plan(), **STUDENT_OF)
    fit = jobs.jobs[attack.place.path(DEFENCE)]
    monkeypatch.setattr(type(fit.options), "fitting_passes", lambda self, images: None)
    assert Prices(made, Throughput.published(), 0.4).price(fit) is None


# --- a hardened model that is to keep its accuracy -------------------------------------------------------------------


def test_a_hardened_model_that_keeps_its_accuracy_has_the_rows_of_the_mixture():
    made = plan(MINE, harden__net__keep_accuracy=True)
    cells = made.harden_cells("net")
    methods = [cell.method for cell in cells]
    assert methods == ["Undefended"] * 3 + ["Hardened"] * 3 + ["Mixed"] * 3
    for hardened, mixed in zip(cells[3:6], cells[6:], strict=True):
        assert mixed.ledger == hardened.ledger.replace("/eval/none/", "/eval/mixture/")
        assert (mixed.defence, mixed.metric, mixed.threat) == ("mixture", hardened.metric, hardened.threat)
    jobs = Jobs(made)
    jobs.target("harden")
    (fit,) = (job for job in jobs.jobs.values() if job.stage == "defend")
    (card,) = (job for job in jobs.jobs.values() if job.stage == "card")
    assert fit.output in card.inputs


def test_the_mixture_is_fitted_without_an_evaluation_too():
    made = plan(MINE, harden__net__keep_accuracy=True, harden__net__evaluation=None)
    jobs = Jobs(made)
    jobs.target("harden")
    assert [job.stage for job in jobs.jobs.values()].count("defend") == 1


def test_by_default_nothing_is_mixed():
    jobs = Jobs(plan(MINE))
    jobs.target("harden")
    assert "defend" not in {job.stage for job in jobs.jobs.values()}


@pytest.mark.parametrize(
    "defences",
    [{"mixture": None}, {"mixture": {"defend": "tte"}}, {"mixture": {"defend": "mixture", "base": "real"}}],
)
def test_it_needs_the_mixture_on_synthetic_images(defences):
    config = changed(changed(MINE, "harden/net/keep_accuracy", True), "defences", defences)
    with pytest.raises(InputError, match=re.escape("harden.net.keep_accuracy: needs the defence 'mixture', on a syn")):
        check_config(config)
