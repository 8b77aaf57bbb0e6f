"""Gradient matching: the loss over any weighted subsets, its gradient for the images, and feature distances.

IDC (arXiv 2205.14959, Eq. 3) with the subset loss of MDC (arXiv 2403.06075, Eq. 4), arranged so that every subset
costs nothing extra. All norms of our networks are per sample, so the gradient of a sum of losses is a sum of gradients.
Split the ranks into R groups at the subset sizes, and take one first-order gradient sum G_r per group. Then

    g(S[n]) = (sum of G_r over the groups inside n) / (n · f²)              for every boundary n, and
    dL/dimages of group r = d<G_r, V_r>/dimages,   V_r = sum over n >= end(r) of w_n · D'(g(S[n])) / (n · f²),

which is one double backward over all images, for any number of subsets. Frozen groups need no graph.

The network stands still, so classes are independent, and any number K of them is matched together. They share the
network and one pass over the images; only the weights' gradients are taken per class and group
(`networks.convolution`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from mdc_core.config.settings import CondenseConfig
from mdc_core.errors import ConfigError
from mdc_core.networks import Network
from mdc_core.networks.convolution import weight_gradient

Gradients = Sequence[Tensor]
"""Of the weight of every convolution, (K, R, out, in, kh, kw), in the order of the forward pass."""


class ConvRecord(NamedTuple):
    """A convolution in a forward pass."""

    layer: nn.Conv2d
    input: Tensor
    """(B, in, H, W)"""
    output: Tensor
    """(B, out, H', W')"""


@dataclass(frozen=True)
class RankGroups:
    """The subset sizes at which the ranks of a class are split into groups, and the weights of the subsets."""

    weights: tuple[tuple[int, float], ...]
    """Subset size n in 1..N, and the weight w_n of its distance in the loss."""
    frozen: int = 0
    """Ranks 1..frozen are constants."""
    measured: tuple[int, ...] = ()
    """Further sizes whose gradient distance is wanted."""


@dataclass(frozen=True)
class Match:
    """What K classes contribute to one iteration."""

    loss: Tensor
    """(K,) the weighted sum of gradient distances."""
    image_gradient: Tensor
    """(K, N, f², ch, H, H), zero where frozen."""
    feature_distances: Tensor
    """(K, N) squared distance between the mean features of the real batch and of the first n images (Eq. 5)."""
    gradient_distances: Mapping[int, Tensor]
    """By the size n of every group boundary: the gradient distance D(g(S[n]), g_real), (K,)."""


def distance(metric: str, left: Tensor, right: Tensor) -> Tensor:
    """D of one convolution: distances (K, R) between gradients (K, R, out, in, kh, kw); R of one side may be 1.

    `mse`: squared differences; `l1`: absolute differences; `cos`: 1 - cosine per output channel (arXiv 2006.05929).
    Distances of several convolutions add up.
    """
    a, b = left.flatten(3), right.flatten(3)  # (K, R, out, in·kh·kw)
    if metric == "mse":
        return (a - b).square().sum((2, 3))
    if metric == "l1":
        return (a - b).abs().sum((2, 3))
    return (1 - F.cosine_similarity(a, b, dim=3)).sum(2)


def match(
    net: Network, images: Tensor, real_images: Tensor, labels: Tensor, rank_groups: RankGroups, metric: str
) -> Match:
    """Match the gradients of K classes.

    Args:
        net: the network θ; its parameters stay as they are.
        images: (K, N, f², ch, H, H), the decoded tiles of these classes, normalised and augmented.
        real_images: (K, B, ch, H, H), normalised and augmented by the same parameters, class by class.
        labels: (K,), int64.
        rank_groups: the same for all classes.
        metric: `mse`, `l1` or `cos`.

    Raises:
        ConfigError: the network normalises over the batch.
    """
    _refuse_batch_statistics(net)
    ranks, per_image = images.shape[1:3]
    frozen = rank_groups.frozen
    # Every size whose gradient is needed ends a group: the whole set, the frozen prefix, and all subsets.
    ends = sorted({ranks, frozen, *(n for n, _ in rank_groups.weights), *rank_groups.measured} - {0})
    sizes = [(end - start) * per_image for start, end in pairwise([0, *ends])]  # images of each group
    frozen_groups = sum(end <= frozen for end in ends)

    # The target: gradient and features of the real batch. No graph, since nothing is differentiated through it. The
    # leaf requires a gradient only so that the outputs of the convolutions have one.
    real_leaf = real_images.detach().requires_grad_()
    real_sum, real_features = gradient_sum(net, real_leaf, labels, [real_images.shape[1]], graph=False)
    real_gradient = [g / real_images.shape[1] for g in real_sum]

    # First order, with a graph back to the free images; frozen ones are constants, so theirs needs none. The two runs
    # may be separate because no norm mixes images.
    leaf = images[:, frozen:].detach().requires_grad_()
    free_sums, features = gradient_sum(net, leaf.flatten(1, 2), labels, sizes[frozen_groups:], graph=True)
    group_sums = [g.detach() for g in free_sums]  # (K, R, out, in, kh, kw) each
    if frozen_groups:
        constant = images[:, :frozen].detach().flatten(1, 2).requires_grad_()
        frozen_sums, frozen_features = gradient_sum(net, constant, labels, sizes[:frozen_groups], graph=False)
        group_sums = [torch.cat(pair, dim=1) for pair in zip(frozen_sums, group_sums, strict=True)]
        features = torch.cat([frozen_features, features], dim=1)

    # V of the module's docstring: how the loss changes with each group's gradient sum. With V constant, the second
    # derivative of all subsets is a single vector-Jacobian product.
    loss, grads, distances = _compare(group_sums, real_gradient, ends, rank_groups, metric, per_image)
    directions = [grad[:, frozen_groups:] for grad in grads]
    (leaf_gradient,) = torch.autograd.grad(free_sums, leaf, directions)
    return Match(
        loss=loss,
        image_gradient=torch.cat([torch.zeros_like(images[:, :frozen]), leaf_gradient], dim=1),
        feature_distances=feature_distances(
            features.view(len(labels), ranks, per_image, -1).mean(2), real_features
        ),
        gradient_distances={end: distances[:, r] for r, end in enumerate(ends)},
    )


def match_gradients(
    config: CondenseConfig,
    net: Network,
    images: Tensor,
    real_images: Tensor,
    labels: Tensor,
    rank_groups: RankGroups,
    sample: Tensor | None,
) -> Match:
    """Match the gradients of K classes, or only those of tiles `sample` (K, m) of each, then without subset loss.

    Tiles that `batch_syn_max` leaves out have gradient 0.
    """
    if sample is None:
        return match(net, images, real_images, labels, rank_groups, config.metric)
    tiles = images.flatten(1, 2)  # (K, N·f², ch, H, H)
    rows = torch.arange(len(images), device=images.device)[:, None]
    part = tiles[rows, sample].unsqueeze(2)  # every tile as a rank of its own: (K, m, 1, ch, H, H)
    whole_sample = RankGroups(((sample.shape[1], 1.0),))
    matched = match(net, part, real_images, labels, whole_sample, config.metric)
    gradient = torch.zeros_like(tiles)
    gradient[rows, sample] = matched.image_gradient.squeeze(2)
    return Match(
        matched.loss, gradient.view_as(images), matched.feature_distances, matched.gradient_distances
    )


def _refuse_batch_statistics(net: Network) -> None:
    """Raise `ConfigError` for a network with batch norm: there the gradient of a sum is not a sum of gradients."""
    for name, module in net.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ConfigError(
                f"the network's layer {name} ({type(module).__name__}) normalises over the batch, so that gradients of "
                f"groups of images do not add up: match a network with norms per image, such as convnet or resnet_ap"
            )


class _Recorded(nn.Module):
    """A network that returns features, logits, and a record of every convolution."""

    def __init__(self, net: Network) -> None:
        super().__init__()
        self.net = net
        self.layers = [module for module in net.modules() if isinstance(module, nn.Conv2d)]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, list[ConvRecord]]:
        records: list[ConvRecord] = []

        def record(layer: nn.Conv2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            records.append(ConvRecord(layer, inputs[0], output))

        hooks = [layer.register_forward_hook(record) for layer in self.layers]
        try:
            features = self.net.features(images)
        finally:
            for hook in hooks:
                hook.remove()
        return features, self.net.head(features), records


def gradient_sum(
    net: Network, images: Tensor, labels: Tensor, sizes: Sequence[int], *, graph: bool
) -> tuple[Gradients, Tensor]:
    """Gradients of the summed cross-entropy for every class and group, and features (K, B, D).

    Autograd goes back only to the outputs of the convolutions; the weights' gradients are made of those, per class and
    group. One pass over all images thus serves every class and group.

    Args:
        images: (K, B, ch, H, H), requiring a gradient, so that the outputs of the convolutions have one.
        labels: (K,), int64.
        sizes: images of each of R groups of neighbours; they add up to B.
        graph: whether the gradients can be differentiated with respect to the images.
    """
    classes, each = images.shape[:2]
    recorded = _Recorded(net)
    # Detached parameters are constants, so autograd computes no gradient of them.
    parameters = {name: parameter.detach() for name, parameter in recorded.named_parameters()}
    features, logits, records = functional_call(recorded, parameters, (images.flatten(0, 1),))
    loss = F.cross_entropy(logits, labels.repeat_interleave(each), reduction="sum")
    grads = torch.autograd.grad(loss, [record.output for record in records], create_graph=graph)
    parts = list(sizes) * classes
    with torch.set_grad_enabled(graph):
        gradients = [
            # (K·R, out, in, kh, kw) to (K, R, out, in, kh, kw)
            weight_gradient(layer, x, g, parts).view(classes, len(sizes), *layer.weight.shape)
            for (layer, x, _), g in zip(records, grads, strict=True)
        ]
    return gradients, features.detach().view(classes, each, -1)


def _compare(
    group_sums: Gradients,
    real_gradient: Gradients,
    ends: Sequence[int],
    rank_groups: RankGroups,
    metric: str,
    per_image: int,
) -> tuple[Tensor, Sequence[Tensor], Tensor]:
    """The loss (K,), its gradient V with respect to `group_sums`, and the unweighted distance (K, R) at every end."""
    weights = dict(rank_groups.weights)
    tiles = constants([end * per_image for end in ends], group_sums[0]).view(-1, 1, 1, 1, 1)
    shares = constants([weights.get(end, 0.0) for end in ends], group_sums[0])
    distances = group_sums[0].new_zeros(len(group_sums[0]), 1)
    grads = []
    for group_sum, real in zip(group_sums, real_gradient, strict=True):
        means = group_sum.cumsum(1).div_(tiles).requires_grad_()  # g(S[n]) for every boundary n
        layer_distances = distance(metric, means, real)  # (K, R)
        (grad,) = torch.autograd.grad((layer_distances * shares).sum(), means)
        grad.div_(tiles)
        # A group is part of every subset that ends at it or later: sum from the last group to the first.
        for r in reversed(range(len(ends) - 1)):
            grad[:, r] += grad[:, r + 1]
        grads.append(grad)
        distances = distances + layer_distances.detach()
    return (distances * shares).sum(1), grads, distances


def constants(values: Sequence[float], like: Tensor) -> Tensor:
    """(R,) on the device of `like`: filled there, since a CUDA graph must not copy from the host."""
    return torch.stack([like.new_full((), value) for value in values])


def feature_distances(by_rank: Tensor, real_features: Tensor) -> Tensor:
    """F(n) for n = 1..N, (K, N): features by rank (K, N, D) against real batches (K, B, D) (Eq. 5)."""
    return (prefix_means(by_rank) - real_features.mean(1, keepdim=True)).square().sum(2)


def prefix_means(by_rank: Tensor) -> Tensor:
    """Means (K, N, D) over the first n ranks, for n = 1..N, of features by rank (K, N, D)."""
    counts = torch.arange(1, by_rank.shape[1] + 1, device=by_rank.device, dtype=by_rank.dtype)
    return by_rank.cumsum(1) / counts[:, None]
