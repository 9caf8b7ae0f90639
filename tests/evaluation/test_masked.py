"""The checks on networks whose gradients mislead, each of which fails one, and on sound ones, which pass them."""

from functools import cache

import pytest
import torch
from support import masked
from torch import nn

from dfshield import registry
from dfshield.attacks.base import frozen, margin
from dfshield.core.rng import seeded
from dfshield.evaluation.checks.case import Case
from dfshield.evaluation.checks.comparisons import square
from dfshield.evaluation.masking import gradient_masking_checks
from dfshield.options import ChecksOptions

pytestmark = pytest.mark.slow
IMAGES = 100
BLIND = ("scaled logits", "quantised input", "blocks", "cut graph", "copy", "wrong way", "whole logits")
"""Networks whose gradients are of no use, and whose scores are."""
MISSED = ("copy", "wrong way", "saturated sigmoid", "saturated tanh")
"""Networks that AutoAttack's flags of outputs and gradients say nothing of: at most."""


def case(net: nn.Module, threat: str, **options: object) -> Case:
    x, y = masked.digits("test")
    surrogate = masked.trained("cnn-m", 0, masked.LINF)
    chosen = ChecksOptions(threat=threat, **options)
    return Case(net, net, x[:IMAGES], y[:IMAGES], chosen, surrogate=surrogate)


def failed(made: Case) -> set[str]:
    found = set()
    with frozen(made.model), seeded(0):
        for name, entry in registry.CHECKS.items():
            with seeded(0):
                found |= {name} if entry.load()(made).verdict == "failed" else set()
    return found


@cache
def zoo() -> dict[str, nn.Module]:
    return masked.masked()


def test_every_masked_network_fails_a_check():
    found = {name: failed(case(net, masked.LINF)) for name, net in zoo().items()}
    assert len(found) >= 12
    assert not [name for name, checks in found.items() if not checks], found
    used = set().union(*found.values())
    assert used >= registry.CHECKS.keys() - {"worst-case", "last-epoch"}, "a check that nothing fails"


def test_sound_networks_pass():
    found = {name: failed(case(net, threat)) for name, (net, threat) in masked.sound().items()}
    assert len(found) >= 12
    assert len([name for name, checks in found.items() if checks]) <= 1, found


def test_scores_break_what_blind_gradients_leave():
    """Square beats PGD by far; on the sound network that is behind them it does not."""
    for name in BLIND:
        made = case(zoo()[name], masked.LINF)
        assert made.share(made.direct & ~square(made, made.direct)) > 20, name
    made = case(masked.trained("cnn-s"), masked.LINF)
    assert made.share(made.direct & ~square(made, made.direct)) <= 1


def test_recall_of_autoattacks_own_flags():
    """Flags of outputs and gradients alone miss what the checks do not: wrong gradients, and saturated outputs."""
    x, y = masked.digits("test")
    silent = []
    for name, net in zoo().items():
        if not gradient_masking_checks(net, net, x[:IMAGES], y[:IMAGES]):
            silent.append(name)
    assert {"copy", "wrong way"} <= set(silent) <= set(MISSED)


def test_square_needs_no_gradient():
    made = case(zoo()["cut graph"], masked.LINF, queries=100)
    few = square(made, made.right)
    with torch.no_grad():
        assert (margin(made.model(made.x), made.y)[few] > 0).all()
    assert square(case(zoo()["cut graph"], masked.LINF, queries=400), made.right).sum() < few.sum() < made.right.sum()
