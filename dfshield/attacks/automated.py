"""Automated discovery of adaptive attacks (Yao et al. 2021): a sequence of programs, searched for each model.

Differs from the publication:

- Effort is counted in forward passes an image, not in seconds, so that equal seeds give equal bytes. A program that
  would take more is cut to the budget, not discarded.
- The search is made anew for every chunk of images, on images of the chunk.
- The estimator is a small one of our own, over a table of choices (`CHOICES`); its first trials have each kind once.
- What a trial breaks counts as broken, whether its program is chosen or not.
- The model is attacked as it is: there is no search over transformations of networks. The evaluation puts in what
  replaces gradients.
- Losses have no difference to that of the target. DeepFool, C&W and FAB keep their own losses and targets.
- Ties of the share of broken images are settled by the margin relative to the logits, not by the cross entropy.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dfshield.attacks.base import Problem, frozen
from dfshield.attacks.budget import GRADIENT, rungs
from dfshield.attacks.programs import KINDS, LOSSES, Found, Program, fit, run_program
from dfshield.core.progress import log
from dfshield.options.attacks_adaptive import Automated

CHOICES: dict[str, tuple[Any, ...]] = {
    "kind": tuple(KINDS),
    "loss": tuple(LOSSES),
    "targeted": (False, True),
    "softmax": (False, True),
    "steps": (0.0, 1 / 3, 2 / 3, 1.0),
    "runs": (0.0, 0.5, 1.0),
    "size": (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001),
}
"""The values of each setting. Steps and runs are places in the range of the kind, on a scale of logarithms."""
Settings = Mapping[str, int]
"""Of each setting the index of its value."""
GOOD = 0.25
"""Share of the trials that count as good (Bergstra et al. 2011)."""
CANDIDATES = 24
"""Settings that are drawn for each trial."""
TIE = 0.01
"""Weight of the margins in a score, beside the share of broken images."""


def automated(problem: Problem, options: Automated) -> Tensor:
    """`options.attacks` programs in a row, each the best that a search finds for what those before it leave.

    Returns the points (N,C,H,W) of the smallest margins. The programs are told in the log.
    """
    x, y = problem.x, problem.y
    best = Found(x.clone(), torch.full_like(x[:, 0, 0, 0], torch.inf), torch.zeros_like(y, dtype=torch.bool))
    with frozen(problem.model):
        for number in range(1, options.attacks + 1):
            if best.clear.all():
                break
            program = _search(problem, options, best)
            _attack(problem, program, (~best.clear).nonzero()[:, 0], best, options.precision)
            left = int((best.margin >= 0).sum())
            log(f"automated: attack {number} of {options.attacks}: {program}; {left} of {len(x)} images left")
    return best.x_adv


def _attack(problem: Problem, program: Program, rows: Tensor, best: Found, precision: str) -> Found:
    """What the program finds for the images `rows` (n,); `best` of all images takes in what is better than before."""
    found = run_program(problem._replace(x=problem.x[rows], y=problem.y[rows]), program, precision)
    better = found.margin < best.margin[rows]
    for whole, part in zip(best, found, strict=True):
        whole[rows[better]] = part[better]
    return found


def _search(problem: Problem, options: Automated, best: Found) -> Program:
    """Trials that the estimator suggests, then successive halving on fresh survivors (Yao et al., Algorithm 1)."""
    generator = problem.random
    rows = (~best.clear).nonzero()[:, 0]
    limit = GRADIENT * options.budget
    with torch.no_grad():
        scale = problem.model(problem.x[rows]).float().abs().amax(dim=1)

    def score(program: Program, sample: Tensor) -> float:
        left = _attack(problem, program, rows[sample], best, options.precision).margin
        relative = (left / scale[sample].clamp_min(1e-12)).clamp(-1, 1)
        return float((left < 0).float().mean() - TIE * relative.mean())

    def draw(size: int) -> Tensor:
        return torch.randperm(len(rows), generator=generator)[:size].to(rows.device)

    (trials, base), *further = rungs(options.trials, options.base)
    sample, told = draw(base), list[tuple[Settings, float]]()
    for number in range(trials):
        settings = suggest(told, generator)
        if number < len(KINDS):
            settings = {**settings, "kind": number}
        told.append((settings, score(_program(settings, limit), sample)))
    for programs, size in further:
        leading = sorted(told, key=lambda trial: -trial[1])[:programs]
        sample = draw(size)
        told = [(settings, (before + score(_program(settings, limit), sample)) / 2) for settings, before in leading]
    return _program(max(told, key=lambda trial: trial[1])[0], limit)


def suggest(told: list[tuple[Settings, float]], generator: torch.Generator) -> Settings:
    """The next settings to try, by a tree-structured Parzen estimator (Bergstra et al. 2011, section 4).

    `told` are settings and their scores, the higher the better. Each setting's values have a density among the good
    trials and one among the rest, with one count more for every value; of `CANDIDATES` that are drawn from the former
    those of the largest ratio are suggested. Without trials the draw is uniform.
    """
    ordered = [settings for settings, _ in sorted(told, key=lambda trial: -trial[1])]
    number = -int(-GOOD * len(ordered) // 1)
    drawn, ratio = {}, torch.zeros(CANDIDATES)
    for name, values in CHOICES.items():
        good, rest = (
            1.0 + torch.bincount(torch.tensor([s[name] for s in part], dtype=torch.long), minlength=len(values))
            for part in (ordered[:number], ordered[number:])
        )
        drawn[name] = torch.multinomial(good, CANDIDATES, replacement=True, generator=generator)
        ratio += (good / good.sum()).log()[drawn[name]] - (rest / rest.sum()).log()[drawn[name]]
    best = int(ratio.argmax())
    return {name: int(each[best]) for name, each in drawn.items()}


def _program(settings: Settings, limit: int) -> Program:
    value = {name: CHOICES[name][index] for name, index in settings.items()}
    kind = KINDS[value["kind"]]
    steps, runs = (
        round(low * (high / low) ** value[name]) for name, (low, high) in (("steps", kind.steps), ("runs", kind.runs))
    )
    return fit(
        Program(value["kind"], value["loss"], value["targeted"], value["softmax"], steps, runs, value["size"]), limit
    )
