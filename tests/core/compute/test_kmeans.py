"""k-means against a literal transcription, and against scikit-learn's."""

from __future__ import annotations

import pytest
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from mdc_core.compute.kmeans import kmeans, representatives, squared_distances
from mdc_core.config.estimate import KMEANS_ITERATIONS


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def literal_kmeans(points: Tensor, clusters: int, draws: torch.Generator) -> Tensor:
    """Point by point, as Lloyd wrote it."""
    centroids = [points[i] for i in torch.randperm(len(points), generator=draws)[:clusters]]
    for _ in range(KMEANS_ITERATIONS):
        own: list[list[Tensor]] = [[] for _ in centroids]
        for point in points:
            distances = [float(((point - centroid) ** 2).sum()) for centroid in centroids]
            own[distances.index(min(distances))].append(point)
        centroids = [torch.stack(o).mean(0) if o else c for o, c in zip(own, centroids, strict=True)]
    return torch.stack(centroids)


@pytest.mark.parametrize(("count", "clusters"), [(40, 5), (12, 12), (30, 1)])
def test_it_is_the_literal_one(count: int, clusters: int) -> None:
    points = torch.randn(count, 6, generator=generator(1), dtype=torch.float64)
    actual = kmeans(points, clusters, generator(2))
    torch.testing.assert_close(actual, literal_kmeans(points, clusters, generator(2)), rtol=1e-9, atol=1e-12)


def test_it_finds_groups_about_as_well_as_scikit_learn() -> None:
    points = torch.cat([torch.randn(50, 16, generator=generator(i)) + 2 * i for i in range(6)])

    def inertia(centroids: Tensor) -> float:
        return float(squared_distances(points, centroids).min(1).values.sum())

    theirs = KMeans(12, init="random", n_init=1, random_state=0).fit(points.numpy())
    assert inertia(kmeans(points, 12, generator())) < 1.1 * theirs.inertia_


def test_a_cluster_without_points_keeps_its_centroid() -> None:
    """Of equal points all go to the first centroid."""
    points = torch.ones(4, 2)
    assert torch.equal(kmeans(points, 3, generator()), torch.ones(3, 2))


def test_representatives_are_the_closest_points_and_differ() -> None:
    points = torch.randn(30, 4, generator=generator(3))
    chosen = representatives(points, 8, generator(4))
    assert len(set(chosen.tolist())) == 8
    distances = squared_distances(points, kmeans(points, 8, generator(4)))
    assert int(chosen[0]) == int(distances[:, 0].argmin())
    assert sorted(representatives(torch.ones(5, 2), 5, generator()).tolist()) == list(range(5))
