"""Options of attacks that see a model's scores or labels alone."""

from typing import Annotated

from pydantic import Field

from dfshield.options.attacks import AttackOptions
from dfshield.options.common import AttackName, Positive, Share

Length = Annotated[float, Field(gt=0, le=1)]


class Square(AttackOptions):
    """Square attack (Andriushchenko et al. 2020), alone."""

    attack: AttackName = "square"
    """attack"""
    queries: Positive = 5000
    """queries an image"""


class Spsa(AttackOptions):
    """SPSA (Uesato et al. 2018)."""

    attack: AttackName = "spsa"
    """attack"""
    iterations: Positive = 50
    """iterations of Adam"""
    samples: Annotated[int, Field(ge=2)] = 256
    """queries for the estimate of one gradient, two for each random direction"""
    delta: Length = 0.01
    """distance of the queries from the point, in every pixel"""
    lr: Length = 0.01
    """learning rate of Adam"""


class GenAttack(AttackOptions):
    """GenAttack (Alzantot et al. 2019)."""

    attack: AttackName = "genattack"
    """attack"""
    queries: Positive = 100_000
    """queries an image"""
    population: Annotated[int, Field(ge=2)] = 6
    """members of a generation"""
    temperature: Annotated[float, Field(gt=0)] = 0.1
    """temperature of the choice of parents: a small one chooses the fittest"""
    mutation: Share = 0.1
    """least share of mutated pixels, from 0.5 on"""
    step: Share = 0.15
    """least size of a mutation, as a share of ε, from 0.4 on"""
    patience: Positive = 100
    """generations without progress after which share and size of mutations shrink"""


class Boundary(AttackOptions):
    """Boundary attack (Brendel et al. 2018)."""

    attack: AttackName = "boundary"
    """attack"""
    steps: Positive = 25_000
    """steps of the random walk"""
    spherical_step: Length = 0.01
    """first length of a step around the image, as a share of the distance"""
    source_step: Length = 0.01
    """first length of a step towards the image, as a share of the distance"""
    adaptation: Annotated[float, Field(gt=1)] = 1.5
    """factor by which steps grow where most succeed, and shrink where few do"""


class HopSkipJump(AttackOptions):
    """HopSkipJump attack (Chen et al. 2020)."""

    attack: AttackName = "hopskipjump"
    """attack"""
    steps: Positive = 64
    """iterations"""
    init_evaluations: Positive = 100
    """queries of the first iteration's estimate of the gradient's direction; the t-th takes √t times as many"""
    max_evaluations: Positive = 10_000
    """most queries of one estimate"""
