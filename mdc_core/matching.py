"""Gradient matching of one class: the loss over any weighted subsets, its tile gradient, and feature distances.

IDC (arXiv 2205.14959, Eq. 3) and the subset loss of MDC (arXiv 2403.06075, Eq. 4), arranged so that every subset
costs nothing extra. All norms of our networks are per sample, so a gradient of a sum of losses is a sum of gradients.
Cut the ranks into groups at the subset sizes; take one first-order gradient sum G_r per group. Then

    g(S[n]) = (sum of G_r over the groups inside n) / (n · f²)              for every boundary n, and
    dL/dimages of group r = d<G_r, V_r>/dimages,   V_r = sum over n >= end(r) of w_n · D'(g(S[n])) / (n · f²),

which is one double backward over all images for any number of subsets. Frozen groups need no graph at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from mdc_core.networks import Network, matched_weights

Gradients = Sequence[Tensor]


@dataclass(frozen=True)
class ClassMatch:
    """What one class contributes to one iteration."""

    loss: Tensor
    """() the weighted sum of gradient distances."""
    image_gradient: Tensor
    """(N, f², ch, H, H), zero where frozen."""
    feature_distances: Tensor
    """(N,) squared distance between the mean features of the real batch and of the first n images (Eq. 5)."""
    gradient_distances: Mapping[int, Tensor]
    """Gradient distance D(g(S[n]), g_real) of every size n at which the ranks were cut."""


def distance(metric: str, left: Gradients, right: Gradients) -> Tensor:
    """D: distance between two lists of weight gradients, summed over all of them.

    `mse`: squared differences; `l1`: absolute differences; `cos`: 1 - cosine per output channel (arXiv 2006.05929).
    """
    pairs = zip(left, right, strict=True)
    if metric == "mse":
        return torch.stack([(a - b).square().sum() for a, b in pairs]).sum()
    if metric == "l1":
        return torch.stack([(a - b).abs().sum() for a, b in pairs]).sum()
    cosines = [F.cosine_similarity(a.flatten(1), b.flatten(1), dim=1) for a, b in pairs]
    return torch.stack([(1 - cosine).sum() for cosine in cosines]).sum()


def match_class(
    net: Network,
    images: Tensor,
    real_images: Tensor,
    label: int,
    *,
    weights: Mapping[int, float],
    frozen: int,
    metric: str,
    extra_cuts: Sequence[int] = (),
) -> ClassMatch:
    """Match the gradients of one class.

    Args:
        net: the network θ; its parameters stay as they are.
        images: (N, f², ch, H, H), the decoded tiles of this class, normalised and augmented.
        real_images: (B, ch, H, H) of this class, normalised and augmented by the same parameters.
        label: the class.
        weights: subset size n in 1..N → weight w_n of its distance in the loss.
        frozen: ranks 1..frozen are constants.
        metric: `mse`, `l1` or `cos`.
        extra_cuts: further sizes whose gradient distance is wanted.
    """
    parameters = matched_weights(net)
    ranks, per_image = images.shape[:2]
    real_sum, real_features = _gradient_sum(net, real_images, label, parameters, graph=False)
    real_gradient = [g / len(real_images) for g in real_sum]

    cuts = sorted({0, ranks, frozen, *weights, *extra_cuts})
    groups, features = [], []
    for start, end in pairwise(cuts):
        leaf = images[start:end].detach().requires_grad_(end > frozen)
        gradient, feature = _gradient_sum(net, leaf.flatten(0, 1), label, parameters, graph=end > frozen)
        groups.append((end, leaf, gradient))
        features.append(feature.view(end - start, per_image, -1).mean(1))

    means = _prefix_means(groups, per_image)
    loss, contractions, distances = _contract(means, real_gradient, weights, metric, per_image)
    free = [(leaf, gradient, contractions[end]) for end, leaf, gradient in groups if end > frozen]
    outputs = [g for _, gradient, _ in free for g in gradient]
    directions = [v for _, _, contraction in free for v in contraction]
    derivatives = torch.autograd.grad(outputs, [leaf for leaf, _, _ in free], directions)
    return ClassMatch(
        loss=loss,
        image_gradient=torch.cat([torch.zeros_like(images[:frozen]), *derivatives]),
        feature_distances=_feature_distances(torch.cat(features), real_features),
        gradient_distances=distances,
    )


def _gradient_sum(
    net: Network, images: Tensor, label: int, parameters: Sequence[Tensor], *, graph: bool
) -> tuple[Gradients, Tensor]:
    """Gradient of the summed cross-entropy for the matched weights, and the features (B, D), detached."""
    features = net.features(images)
    labels = torch.full((len(images),), label, device=images.device)
    loss = F.cross_entropy(net.head(features), labels, reduction="sum")
    return torch.autograd.grad(loss, parameters, create_graph=graph), features.detach().flatten(1)


def _prefix_means(groups: Sequence[tuple[int, Tensor, Gradients]], per_image: int) -> dict[int, list[Tensor]]:
    """g(S[n]) at every cut n, detached: running sums of the groups' gradients over the tiles so far."""
    means: dict[int, list[Tensor]] = {}
    running: list[Tensor] | None = None
    for end, _, gradient in groups:
        detached = [g.detach() for g in gradient]
        running = detached if running is None else [a + b for a, b in zip(running, detached, strict=True)]
        means[end] = [g / (end * per_image) for g in running]
    return means


def _contract(
    means: Mapping[int, list[Tensor]],
    real_gradient: Gradients,
    weights: Mapping[int, float],
    metric: str,
    per_image: int,
) -> tuple[Tensor, dict[int, list[Tensor]], dict[int, Tensor]]:
    """The loss, V_r for the group that ends at every cut, and the unweighted distance at every cut."""
    loss = real_gradient[0].new_zeros(())
    contractions: dict[int, list[Tensor]] = {}
    distances: dict[int, Tensor] = {}
    running = [torch.zeros_like(g) for g in real_gradient]
    for n in sorted(means, reverse=True):
        leaves = [g.requires_grad_() for g in means[n]]
        value = distance(metric, leaves, real_gradient)
        distances[n] = value.detach()
        if weight := weights.get(n, 0.0):
            loss = loss + weight * value.detach()
            slopes = torch.autograd.grad(value, leaves)
            running = [
                v + slope * (weight / (n * per_image)) for v, slope in zip(running, slopes, strict=True)
            ]
        contractions[n] = running
    return loss, contractions, distances


def _feature_distances(by_rank: Tensor, real_features: Tensor) -> Tensor:
    """F(n) for n = 1..N of features by rank (N, D) and of a real batch (B, D): one running mean serves all n."""
    counts = torch.arange(1, len(by_rank) + 1, device=by_rank.device, dtype=by_rank.dtype)
    means = by_rank.cumsum(0) / counts[:, None]
    return (means - real_features.mean(0)).square().sum(1)
