"""Attacks that see a model's logits and nothing else: SPSA and GenAttack.

Images that are clearly misclassified (`MISCLASSIFICATION_MARGIN`) take no further queries. With `options.reference`
all take the whole budget.
"""

import torch
from torch import Tensor, nn

from dfshield.attacks.base import Problem, clearly_wrong, frozen, margin
from dfshield.core.lp import project, random_start
from dfshield.options import AttackOptions
from dfshield.options.attacks_blackbox import GenAttack, Spsa

BETAS = 0.9, 0.999
"""Of Adam."""
FIRST_SHARE, FIRST_STEP, SHRINK = 0.5, 0.4, 0.9
"""GenAttack's first share of mutated pixels, their first size (share of ε), and the factor of both at a plateau."""


def spsa(problem: Problem, options: Spsa) -> Tensor:
    """Simultaneous perturbation stochastic approximation: perturbed images (N,C,H,W) (Uesato et al. 2018, Algorithm 1).

    Adam descends the margin z_y - max_j≠y z_j from a uniform random start. An iteration draws `options.samples` / 2
    directions v of signs and takes the mean of (J(x + δv) - J(x - δv)) / 2δ · v for the gradient. The point of the
    least margin counts.

    Differs from the publication:

    - Queries are cut to [0,1], because nobody can send a model other images.
    - For l2 threats the projection is onto the l2 ball.
    """
    model, x, y, threat, generator, _ = problem
    best, least = x.clone(), torch.full((len(x),), torch.inf, device=x.device)
    point = random_start(x, threat, generator)
    first, second = torch.zeros_like(x), torch.zeros_like(x)
    rows = torch.arange(len(x), device=x.device)
    with frozen(model), torch.no_grad():
        for iteration in range(1, options.iterations + 1):
            if not len(rows):
                break
            gradient = _spsa_gradient(model, point[rows], y[rows], options, generator)
            first[rows] = BETAS[0] * first[rows] + (1 - BETAS[0]) * gradient
            second[rows] = BETAS[1] * second[rows] + (1 - BETAS[1]) * gradient**2
            mean = first[rows] / (1 - BETAS[0] ** iteration)
            size = (second[rows] / (1 - BETAS[1] ** iteration)).sqrt()
            point[rows] = project(x[rows], point[rows] - options.lr * mean / (size + 1e-8), threat)
            logits = _logits(model, point[rows], options)
            value = margin(logits, y[rows])
            nearer = value < least[rows]
            best[rows[nearer]], least[rows[nearer]] = point[rows[nearer]], value[nearer]
            if not options.reference:
                rows = rows[~clearly_wrong(logits, y[rows], options.precision)]
    return best


def _spsa_gradient(model: nn.Module, x: Tensor, y: Tensor, options: Spsa, generator: torch.Generator) -> Tensor:
    """Estimate (N,C,H,W) of the gradient of the margin."""
    total, directions = torch.zeros_like(x), options.samples // 2
    at_once = max(1, options.chunk // (2 * len(x)))
    for done in range(0, directions, at_once):
        count = min(at_once, directions - done)
        signs = torch.randint(2, (count, *x.shape), generator=generator, device=generator.device).to(x) * 2 - 1
        queries = torch.cat((x + options.delta * signs, x - options.delta * signs)).clamp(0, 1)
        values = margin(_logits(model, queries.flatten(0, 1), options), y.repeat(2 * count)).view(2, count, -1)
        slope = (values[0] - values[1]) / (2 * options.delta)
        total += (slope.view(count, -1, 1, 1, 1) * signs).sum(dim=0)
    return (total / directions).nan_to_num(0, 0, 0)


def genattack(problem: Problem, options: GenAttack) -> Tensor:
    """A genetic search in the l∞ ball: perturbed images (N,C,H,W) (Alzantot et al. 2019, Algorithm 1).

    Every image has a population of `options.population` points. Their fitness is log p_t - log Σ_j≠t p_j. The fittest
    lives on; the others are replaced by children of parents drawn with probabilities softmax(fitness / temperature).
    A child has each pixel from either parent, by their probabilities, and some pixels are mutated by uniform noise.
    Share and size of mutations shrink by a tenth at each plateau of `options.patience` generations.

    Differs from the publication:

    - The target t is the runner-up class at the image itself, and any misclassification ends the search.
    - The fittest member is not queried again, so that a generation costs one query less.
    - Noise has the resolution of the image. The publication makes it coarser for ImageNet alone.
    """
    model, x, y, threat, random, _ = problem
    size = options.population
    with frozen(model), torch.no_grad():
        logits = _logits(model, x, options)
        target = logits.scatter(1, y[:, None], -torch.inf).argmax(dim=1)
        result, rows = x.clone(), torch.arange(len(x), device=x.device)
        if not options.reference:
            rows = rows[~clearly_wrong(logits, y, options.precision)]
        noise = 2 * _uniform(random, x, len(rows), size, *x.shape[1:]) - 1
        members = fresh = (x[rows, None] + threat.eps * noise).clamp(0, 1)
        fitness = torch.empty(len(rows), 0, device=x.device)
        plateaus, waited = torch.zeros(len(rows), device=x.device), torch.zeros(len(rows), device=x.device)
        queries = 1
        while len(rows):
            logits = _logits(model, fresh.flatten(0, 1), options)
            queries += fresh.shape[1]
            scores = _fitness(logits, target[rows].repeat_interleave(fresh.shape[1])).view(fresh.shape[:2])
            # the first of later generations is the fittest of the one before
            progress = (
                scores.amax(dim=1) > fitness[:, 0] if fitness.shape[1] else torch.ones_like(rows, dtype=torch.bool)
            )
            fitness = torch.cat((fitness, scores), dim=1)
            elite = fitness.argmax(dim=1)
            each = torch.arange(len(rows), device=x.device)
            result[rows] = members[each, elite]
            if not options.reference:
                wrong = clearly_wrong(logits, y[rows].repeat_interleave(fresh.shape[1]), options.precision).view(
                    fresh.shape[:2]
                )
                won = wrong.any(dim=1)
                result[rows[won]] = fresh[each, wrong.int().argmax(dim=1)][won]
                rows, members, fitness, elite, progress, plateaus, waited = (
                    values[~won] for values in (rows, members, fitness, elite, progress, plateaus, waited)
                )
            if queries + size - 1 > options.queries or not len(rows):
                break
            waited = torch.where(progress, 0, waited + 1)
            plateaus += waited == options.patience
            waited[waited == options.patience] = 0
            shrunk = SHRINK**plateaus
            share, step = (
                (FIRST_SHARE * shrunk).clamp_min(options.mutation),
                (FIRST_STEP * shrunk).clamp_min(options.step),
            )
            fresh = _children(members, fitness, share, threat.eps * step, options, random)
            fresh = project(x[rows].repeat_interleave(size - 1, 0), fresh.flatten(0, 1), threat).view(fresh.shape)
            each = each[: len(rows)]
            members = torch.cat((members[each, elite][:, None], fresh), dim=1)
            fitness = fitness[each, elite][:, None]
    return result


def _children(
    members: Tensor, fitness: Tensor, share: Tensor, step: Tensor, options: GenAttack, random: torch.Generator
) -> Tensor:
    """Children (n,P-1,C,H,W) of populations (n,P,C,H,W); `share` (n,) of pixels are changed by up to `step` (n,)."""
    n, size, *image = members.shape
    chances = (fitness / options.temperature).softmax(dim=1)
    drawn = torch.multinomial(chances.to(random.device), 2 * (size - 1), replacement=True, generator=random)
    one, other = drawn.to(members.device).chunk(2, dim=1)
    rows = torch.arange(n, device=members.device)[:, None]
    chance = chances[rows, one] / (chances[rows, one] + chances[rows, other])

    def uniform() -> Tensor:
        return _uniform(random, members, n, size - 1, *image)

    children = torch.where(uniform() < chance.view(n, -1, 1, 1, 1), members[rows, one], members[rows, other])
    noise = (2 * uniform() - 1) * step.view(-1, 1, 1, 1, 1)
    return children + noise * (uniform() < share.view(-1, 1, 1, 1, 1))


def _uniform(random: torch.Generator, like: Tensor, *shape: int) -> Tensor:
    return torch.rand(shape, generator=random, device=random.device).to(like)


def _fitness(logits: Tensor, target: Tensor) -> Tensor:
    """log p_t - log Σ_j≠t p_j of logits (N,classes), shape (N,)."""
    index = target[:, None]
    return logits.gather(1, index)[:, 0] - logits.scatter(1, index, -torch.inf).logsumexp(dim=1)


def _logits(model: nn.Module, x: Tensor, options: AttackOptions) -> Tensor:
    """Logits (N,classes) of images (N,C,H,W), at most `options.chunk` at once."""
    return torch.cat([model(part).float() for part in x.split(options.chunk)])
