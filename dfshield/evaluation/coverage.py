"""How much of a set of real images a set of synthetic images covers, by two point clouds in some feature space.

Precision and recall after Kynkäänniemi et al. (NeurIPS 2019), density and coverage after Naeem et al. (ICML 2020), NDB
and JSD after Richardson and Weiss (NeurIPS 2018).
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dfshield.core.rng import generator
from dfshield.options.diversity import check_bins, check_neighbours

ROWS = 256
"""Points whose distances to all others are held at a time: 123 MB for 60,000 of them."""


def neighbourhood_metrics(real: Tensor, synthetic: Tensor, k: int, bar: Any = None) -> dict[str, float]:
    """Precision, recall, density and coverage of `synthetic` (M,D) with respect to `real` (N,D).

    The ball around a point reaches to its k-th neighbour in its own set, itself excluded, and is open. Precision and
    recall: share of the points of one set in some ball of the other set. Density: balls of real points that a
    synthetic one lies in, over k. Coverage: share of the balls of real points that hold a synthetic one. Distances are
    Euclidean. `bar`, a progress bar, moves by one per point. Raises InputError for sets of k points or fewer.
    """
    # The prdc package (0.2, of 2020) holds all distances at once: 24 GB for the paper's 50,000 by 60,000 points.
    for name, points in (("real", real), ("synthetic", synthetic)):
        check_neighbours(k, len(points), name)
    real, synthetic = real.double(), synthetic.double()  # in float32 the matrix product would blur close points
    real_radii, synthetic_radii = (_radii(points, k, bar) for points in (real, synthetic))
    recalled, covered = 0, 0
    balls = torch.zeros(len(synthetic), dtype=torch.int64, device=real.device)
    for rows, radii in zip(real.split(ROWS), real_radii.split(ROWS), strict=True):
        distance = _distances(rows, synthetic)
        inside = distance < radii[:, None]
        balls += inside.sum(0)
        covered += int(inside.any(1).sum())
        recalled += int((distance < synthetic_radii).any(1).sum())
        if bar is not None:
            bar.update(len(rows))
    return {
        "precision": float((balls > 0).double().mean()),
        "recall": recalled / len(real),
        "density": float(balls.double().mean()) / k,
        "coverage": covered / len(real),
    }


def _distances(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a, b, compute_mode="use_mm_for_euclid_dist")


def _radii(points: Tensor, k: int, bar: Any) -> Tensor:
    """Distance of each of `points` to its k-th neighbour."""
    found = []
    for rows in points.split(ROWS):
        nearest = _distances(rows, points).topk(k + 1, largest=False).values  # the first is the point itself
        found.append(nearest[:, -1])
        if bar is not None:
            bar.update(len(rows))
    return torch.cat(found)


def bin_counts(real: np.ndarray, synthetic: np.ndarray, bins: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points of `real` (N,D) and of `synthetic` (M,D) in each of `bins` k-means clusters of the real ones.

    A point belongs to the nearest centre. Two integer arrays of shape (bins,). The clusters depend on `real` and
    `seed` alone, so they are the same for all synthetic sets. Raises InputError for fewer real points than bins.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    check_bins(bins, len(real))
    start = int(torch.randint(2**31, (), generator=generator("bins", seed)))
    with threadpool_limits(1):  # the order in which several threads add up would be left to chance
        clusters = KMeans(bins, n_init=1, random_state=start).fit(real)
        found = clusters.labels_, clusters.predict(synthetic)
    counts = [np.bincount(labels, minlength=bins) for labels in found]
    return counts[0], counts[1]


def different_bins(real: np.ndarray, synthetic: np.ndarray, alpha: float) -> int:
    """NDB: bins whose shares of the two sets differ by a two-sided two-proportion z-test at level `alpha`.

    `real` and `synthetic` are counts (K,).
    """
    from scipy.stats import norm

    n, m = real.sum(), synthetic.sum()
    pooled = (real + synthetic) / (n + m)
    error = np.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
    difference = np.abs(real / n - synthetic / m)
    return int(np.count_nonzero(difference > norm.isf(alpha / 2) * error))


def jensen_shannon(real: np.ndarray, synthetic: np.ndarray) -> float:
    """Jensen-Shannon divergence of two histograms given as counts (K,), in nats: 0 to ln 2."""
    from scipy.spatial.distance import jensenshannon

    return float(jensenshannon(real, synthetic) ** 2)  # scipy gives the distance, its root; it scales counts to shares
