"""How much effort attacks make: what they take and the cost model counts (no torch)."""

import math
from dataclasses import dataclass
from math import ceil

from dfshield.options.attacks import AttackOptions, AutoAttack, Pgd
from dfshield.options.attacks_adaptive import A3, Automated
from dfshield.options.attacks_blackbox import Boundary, GenAttack, HopSkipJump, Spsa, Square
from dfshield.options.attacks_gradients import Latent, MarginDecomposition, MiFgsm, MinimumMargin, Tpgd
from dfshield.options.attacks_minimal import CarliniWagner, DeepFool, Fab

TARGETS = 9
"""Most target classes of AutoAttack's targeted attacks, by its definition."""
LINE_SEARCH = 10
"""Trials of a line search of L-BFGS; each halves the step."""
PREFILTER_STEPS = 10
"""Steps of the pre-filter, which is ours."""
SQUARE_EXTRA = 3
"""Passes of Square beside its queries: the clean image, the start and the result."""
STARTS = 100
"""Random images among which an attack on labels looks for a misclassified one."""
HALVINGS = 24
"""Most halvings of a search for the decision boundary, and of a step of HopSkipJump: float32 resolves no more."""
BLENDS = 10
"""Halvings between the image and the start of the Boundary attack."""

CW_CANDIDATES = 10
"""Likeliest classes, an image's own among them, of which C&W aims at the nearest."""
CW_HALVINGS = 10
"""Bisections by which C&W draws its points back."""


@dataclass(frozen=True)
class Budget:
    """Effort of the components; the defaults are AutoAttack's."""

    iterations: int = 100
    """of each APGD run and each FAB run"""
    queries: int = 5000
    """of Square"""


BUDGET = Budget()
"""AutoAttack's own, by which it runs and by which its cost is counted."""
RAND_DRAWS = 20
"""Passes that AutoAttack's variant for models that draw averages, by its definition."""

GRADIENT = 2
"""Forward pass and gradient of the pixels, in forward passes."""


def target_classes(options: AutoAttack, classes: int) -> int:
    """Target classes of a model of `classes`: as the definition has it, or all the others (``version: paper``)."""
    return classes - 1 if options.version == "paper" else min(TARGETS, classes - 1)


def draws(options: AutoAttack) -> int:
    """Passes that the crafting model's logits are averaged over: `eot`, or 20 where ``version: rand`` has none."""
    return RAND_DRAWS if options.version == "rand" and options.eot == 1 else options.eot


def clean_passes(options: AttackOptions, images: int, robust: float, classes: int) -> float:
    """Forward passes of the evaluation alone."""
    return images


def fgsm_passes(options: AttackOptions, images: int, robust: float, classes: int) -> float:
    """Forward passes of FGSM: one gradient an image."""
    return GRADIENT * images


def pgd_passes(options: Pgd, images: int, robust: float, classes: int) -> float:
    """Forward passes of PGD: a gradient an image, step and restart."""
    return GRADIENT * images * options.steps * options.restarts


def steps_passes(options: MiFgsm | Tpgd, images: int, robust: float, classes: int) -> float:
    """Forward passes of an ascent without restarts: a gradient an image and step."""
    return GRADIENT * images * options.steps


def modified_passes(options: Tpgd, images: int, robust: float, classes: int) -> float:
    """Forward passes of PGD away from outputs: of the clean image by one or two models, then the ascent."""
    return 2 * images + steps_passes(options, images, robust, classes)


def latent_passes(options: Latent, images: int, robust: float, classes: int) -> float:
    """Forward passes of the latent attack at most: a gradient and a whole line search an image and iteration."""
    iteration = GRADIENT + LINE_SEARCH
    return images * (1 + GRADIENT + options.iterations * iteration)


def md_passes(options: MarginDecomposition, images: int, robust: float, classes: int) -> float:
    """Forward passes of margin decomposition: a gradient an image, step and restart, and one to see what fell."""
    return images * options.restarts * (GRADIENT * options.steps + 1)


def mm_passes(options: MinimumMargin, images: int, robust: float, classes: int) -> float:
    """Forward passes of minimum margin: a gradient an image, step and target, and one to see what fell."""
    targets = min(options.targets, classes - 1)
    return images * (1 + targets * (GRADIENT * options.steps + 1))


def deepfool_passes(options: DeepFool, images: int, robust: float, classes: int) -> float:
    """Forward passes of DeepFool: a forward pass a step and a gradient for each rival; one more at the end."""
    rivals = min(options.candidates, classes) - 1
    return images * (options.steps * (1 + rivals) + 1)


def cw_passes(options: CarliniWagner, images: int, robust: float, classes: int) -> float:
    """Forward passes of C&W: a gradient a step and one to judge the last point, for each constant; gradients of the
    candidates before and the bisections after."""
    search = GRADIENT * options.binary_steps * (options.steps + 1)
    return images * (min(CW_CANDIDATES, classes) + search + CW_HALVINGS)


def fab_passes(options: Fab, images: int, robust: float, classes: int) -> float:
    """Forward passes of FAB: a gradient and a verdict a step, three more a target, one to rank the targets."""
    targets = min(options.targets, classes - 1)
    return images * (1 + targets * ((GRADIENT + 1) * options.steps + 3))


def autoattack_passes(options: AutoAttack, images: int, robust: float, classes: int) -> float:
    """Forward passes of AutoAttack; what does not survive (1 - `robust`) is taken to fall to the pre-filter."""
    targets = target_classes(options, classes)
    runs = GRADIENT * (1 + targets) + (GRADIENT + 1) * targets  # of APGD and FAB
    full = runs * BUDGET.iterations + BUDGET.queries
    if options.version == "rand":
        full = 2 * GRADIENT * (BUDGET.iterations + 1)
    return images * (GRADIENT * PREFILTER_STEPS + robust * full) * (draws(options) // options.eot)


@dataclass(frozen=True)
class Round:
    """One round of A³ on the survivors of a chunk."""

    warm: int
    """steps of the warm start"""
    steps: int
    """steps on the margin"""
    share: float = 1.0
    """of the survivors, those nearest to the boundary"""
    restarts: int = 1


_OPENING: tuple[Round, ...] = (Round(0, 8), Round(7, 8), Round(7, 8))
DISCARDING = (
    *_OPENING,
    *(Round(7, steps, share) for steps, share in ((25, 0.7), (30, 0.6), (30, 0.5), (35, 0.4), (40, 0.3), (45, 0.2))),
    Round(7, 50, 0.1),
    Round(7, 50, 0.1, 4),
    Round(7, 55, 0.065, 4),
    Round(7, 60, 0.03, 50),
)
"""A³'s rounds where warm starts alone break little: longer and longer climbs on fewer and fewer images."""
WARM = (
    *_OPENING,
    Round(10, 5, 1.0, 10),
    *(Round(warm, steps) for warm, steps in ((15, 5), (15, 10), (10, 10), (10, 15), (10, 18), (10, 20))),
    Round(10, 25, 0.8, 5),
    Round(10, 35, 0.5, 5),
    Round(10, 45, 0.5, 20),
)
"""A³'s rounds where warm starts alone break much."""


def kept(survivors: int, share: float, least: int) -> int:
    """Images of `survivors` that a round of A³ works on."""
    return min(survivors, max(least, ceil(share * survivors)))


def a3_passes(options: A3, images: int, robust: float, classes: int) -> float:
    """Most forward passes of A³; what does not survive (1 - `robust`) is taken to fall to the first three rounds."""
    chunks = ceil(images / options.chunk)

    def total(rounds: tuple[Round, ...], survivors: int) -> float:
        each = (
            min(plan.restarts, options.restarts)
            * kept(survivors, plan.share, options.least)
            * (GRADIENT * (plan.warm + plan.steps) + 1)
            for plan in rounds
        )
        return chunks * sum(each)

    first, rest = slice(min(3, options.rounds)), slice(3, options.rounds)
    chunk = min(images, options.chunk)
    late = max(total(rounds[rest], ceil(robust * chunk)) for rounds in (DISCARDING, WARM))
    return images + total(_OPENING[first], chunk) + late


TAU = 4
"""Of how many programs one goes on to the next rung of a search."""


def rungs(trials: int, base: int) -> list[tuple[int, int]]:
    """Successive halving of Yao et al. 2021 (Algorithm 1): programs of each rung, and images that they are tried on."""
    found, programs, sample = [(trials, base)], ceil(trials / TAU), base
    while programs > 1:
        found.append((programs, sample))
        programs, sample = ceil(programs / TAU), 2 * sample
    return found


def automated_passes(options: Automated, images: int, robust: float, classes: int) -> float:
    """Most forward passes of the searches and of the programs that they find, as if nothing fell before the last."""
    chunks, chunk = ceil(images / options.chunk), min(images, options.chunk)
    search = sum(programs * min(chunk, sample) for programs, sample in rungs(options.trials, options.base))
    trial = GRADIENT * options.budget + 1
    return options.attacks * chunks * ((search + chunk) * trial + chunk)


def square_passes(options: Square, images: int, robust: float, classes: int) -> float:
    """Most forward passes of Square: as if every image took all queries."""
    return images * (options.queries + SQUARE_EXTRA)


def spsa_passes(options: Spsa, images: int, robust: float, classes: int) -> float:
    """Most forward passes of SPSA: the samples and the new point of every iteration."""
    return images * options.iterations * (options.samples + 1)


def genattack_passes(options: GenAttack, images: int, robust: float, classes: int) -> float:
    """Most forward passes of GenAttack: its queries, and at least the image and the first population."""
    return images * max(options.queries, 1 + options.population)


def boundary_passes(options: Boundary, images: int, robust: float, classes: int) -> float:
    """Most forward passes of the Boundary attack: the image, the starts, two queries a step."""
    return images * (1 + STARTS + BLENDS + 2 * options.steps)


def hopskipjump_draws(options: HopSkipJump, iteration: int) -> int:
    """Queries of the estimate of the gradient's direction in `iteration` (from 1)."""
    return min(int(options.init_evaluations * math.sqrt(iteration)), options.max_evaluations)


def hopskipjump_passes(options: HopSkipJump, images: int, robust: float, classes: int) -> float:
    """Most forward passes of HopSkipJump: the image, the starts; every iteration's estimate, step and search."""
    draws = sum(hopskipjump_draws(options, iteration) for iteration in range(1, options.steps + 1))
    searches = (2 * options.steps + 1) * HALVINGS
    return images * (1 + STARTS + searches + draws)
