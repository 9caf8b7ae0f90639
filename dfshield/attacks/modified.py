"""PGD away from outputs on the clean image: the modified attacks of the paper's Tables 21 and 22."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dfshield.attacks.base import Problem, ascend, frozen
from dfshield.core.lp import random_start, step_size
from dfshield.options.attacks_gradients import ModifiedPgd, Tpgd


def divergence(logits: Tensor, y: Tensor, aim: Tensor) -> Tensor:
    """Sum of KL(p, softmax(logits)) over the reference distributions p = `aim` (N,K,classes): shape (N,)."""
    own = F.log_softmax(logits, dim=1)[:, None]
    return (torch.xlogy(aim, aim) - aim * own).sum(dim=(1, 2))


def tpgd(problem: Problem, options: Tpgd) -> Tensor:
    """PGD that maximises KL(S(x), S(x')) of the attacked model S (Zhang et al. 2019, the inner problem of TRADES).

    It starts from x + 0.001 N(0,1), because the gradient is zero at x.
    """
    return _away(problem, options, ("own",))


def modified_pgd(problem: Problem, options: ModifiedPgd) -> Tensor:
    """PGD that maximises KL(T(x), S(x')) of the teacher T and the attacked model S, or that plus KL(S(x), S(x')).

    The paper (Appendix B, Tables 21 and 22) calls them (b) and (c); `tpgd` is its (a).
    """
    return _away(problem, options, ("teacher",) if options.objective == "teacher" else ("teacher", "own"))


def _away(problem: Problem, options: Tpgd, references: tuple[str, ...]) -> Tensor:
    model, x, y, threat, generator, others = problem
    known = {**others, "own": model}
    sizes = [step_size(threat, options.l2_step)] * options.steps
    with frozen(model):
        with torch.no_grad():
            aim = torch.stack([F.softmax(known[name](x).float(), dim=1) for name in references], dim=1)
        start = random_start(x, threat, generator, "normal")
        return ascend(model, x, y, start, threat, options, sizes, divergence, aim)
