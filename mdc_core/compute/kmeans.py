"""k-means clustering (Lloyd's algorithm), and the points that represent its clusters.

Not scikit-learn's, because it runs on the points' device. For 128 clusters of 5000 points, one core takes 0.42 s with
512 features each (scikit-learn's: 0.26 s) and 1.24 s with 2048 (1.07 s). The inertia is 0.3 % higher. Computing the
features takes 8 to 17 times as long.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mdc_core.compute.cuda_graph import to_device
from mdc_core.config.estimate import KMEANS_ITERATIONS


def kmeans(points: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Centroids (K, D) of points (M, D), on their device, starting from K points drawn at random; K ≤ M.

    A centroid that no point is closest to stays where it is.
    """
    first = torch.randperm(len(points), generator=generator)[:clusters]
    centroids = points[to_device(first, points.device)]
    for _ in range(KMEANS_ITERATIONS):
        closest = squared_distances(points, centroids).argmin(1)  # (M,)
        sums = torch.zeros_like(centroids).index_add_(0, closest, points)
        counts = torch.bincount(closest, minlength=clusters)[:, None]
        means = torch.where(counts > 0, sums / counts.clamp(min=1), centroids)
        if torch.equal(means, centroids):
            break
        centroids = means
    return centroids


def representatives(points: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Positions (K,), int64, of the point closest to each centroid; no point is chosen twice."""
    distances = squared_distances(points, kmeans(points, clusters, generator))
    chosen = []
    for cluster in range(clusters):
        position = distances[:, cluster].argmin()
        chosen.append(position)
        distances.index_fill_(0, position[None], math.inf)
    return torch.stack(chosen)


def squared_distances(points: Tensor, centroids: Tensor) -> Tensor:
    """(M, K) for points (M, D) and centroids (K, D)."""
    squares = points.square().sum(1, keepdim=True) + centroids.square().sum(1)
    return torch.addmm(squares, points, centroids.T, alpha=-2)
