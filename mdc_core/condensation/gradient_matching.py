"""Gradient matching: the loss over any weighted subsets, its gradient for the images, and feature distances.

IDC (arXiv 2205.14959, Eq. 3) and the subset loss of MDC (arXiv 2403.06075, Eq. 4), arranged so that every subset
costs nothing extra. All norms of our networks are per sample, so a gradient of a sum of losses is a sum of gradients.
Cut the ranks into R groups at the subset sizes; take one first-order gradient sum G_r per group. Then

    g(S[n]) = (sum of G_r over the groups inside n) / (n · f²)              for every boundary n, and
    dL/dimages of group r = d<G_r, V_r>/dimages,   V_r = sum over n >= end(r) of w_n · D'(g(S[n])) / (n · f²),

which is one double backward over all images for any number of subsets. Frozen groups need no graph at all.

Classes do not know of each other, since the network stands still meanwhile. Any number K of them is matched at once:
the network stays one, and so does its pass over the images; gradients of its weights are taken per class and group
(`networks.convolution`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

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
ConvRecord = tuple[nn.Conv2d, Tensor, Tensor]
"""A convolution, and what went in and out of it."""


@dataclass(frozen=True)
class RankGroups:
    """Where the ranks of a class are cut, and what the subsets weigh."""

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
    """Gradient distance D(g(S[n]), g_real), (K,), of every size n at which the ranks were cut."""


def distance(metric: str, left: Tensor, right: Tensor) -> Tensor:
    """D of one convolution: distances (K, R) between gradients (K, R, out, in, kh, kw); R of one side may be 1.

    `mse`: squared differences; `l1`: absolute differences; `cos`: 1 - cosine per output channel (arXiv 2006.05929).
    Distances of several convolutions add up.
    """
    a, b = left.flatten(3), right.flatten(3)
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
        rank_groups: the same for all of them.
        metric: `mse`, `l1` or `cos`.

    Raises:
        ConfigError: when the network normalises over the batch.
    """
    _refuse_batch_statistics(net)
    ranks, per_image = images.shape[1:3]
    ends = sorted(
        {ranks, rank_groups.frozen, *(n for n, _ in rank_groups.weights), *rank_groups.measured} - {0}
    )
    sizes = [(end - start) * per_image for start, end in pairwise([0, *ends])]
    held = sum(end <= rank_groups.frozen for end in ends)  # so many groups are constants
    real_leaf = real_images.detach().requires_grad_()
    real_sum, real_features = gradient_sum(net, real_leaf, labels, [real_images.shape[1]], graph=False)
    real_gradient = [g / real_images.shape[1] for g in real_sum]

    leaf = images[:, rank_groups.frozen :].detach().requires_grad_()
    free, features = gradient_sum(net, leaf.flatten(1, 2), labels, sizes[held:], graph=True)
    groups = [g.detach() for g in free]
    if held:
        constant = images[:, : rank_groups.frozen].detach().flatten(1, 2).requires_grad_()
        gradient, feature = gradient_sum(net, constant, labels, sizes[:held], graph=False)
        groups = [torch.cat(pair, dim=1) for pair in zip(gradient, groups, strict=True)]
        features = torch.cat([feature, features], dim=1)

    loss, grads, distances = _compare(groups, real_gradient, ends, rank_groups, metric, per_image)
    directions = [grad[:, held:] for grad in grads]
    (derivative,) = torch.autograd.grad(free, leaf, directions)
    return Match(
        loss=loss,
        image_gradient=torch.cat([torch.zeros_like(images[:, : rank_groups.frozen]), derivative], dim=1),
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
    """Match the gradients of K classes, or of the tiles `sample` (K, m) of each alone, without subset loss then.

    The tiles that `batch_syn_max` leaves out have no gradient.
    """
    if sample is None:
        return match(net, images, real_images, labels, rank_groups, config.metric)
    tiles = images.flatten(1, 2)
    rows = torch.arange(len(images), device=images.device)[:, None]
    part = tiles[rows, sample].unsqueeze(2)  # every tile as a rank of its own: (K, m, 1, ch, H, H)
    found = match(net, part, real_images, labels, RankGroups(((sample.shape[1], 1.0),)), config.metric)
    gradient = torch.zeros_like(tiles)
    gradient[rows, sample] = found.image_gradient.squeeze(2)
    return Match(found.loss, gradient.view_as(images), found.feature_distances, found.gradient_distances)


def _refuse_batch_statistics(net: Network) -> None:
    """Raise `ConfigError` for a network with batch norm: a gradient of a sum is no sum of gradients there."""
    for name, module in net.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ConfigError(
                f"the network's layer {name} ({type(module).__name__}) normalises over the batch, so that gradients of "
                f"groups of images do not add up: match a network with norms per image, such as convnet or resnet_ap"
            )


class _Watched(nn.Module):
    """A network that returns its features beside the logits, and what went in and out of every convolution."""

    def __init__(self, net: Network) -> None:
        super().__init__()
        self.net = net
        self.layers = [module for module in net.modules() if isinstance(module, nn.Conv2d)]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, list[ConvRecord]]:
        records: list[ConvRecord] = []

        def record(layer: nn.Conv2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            records.append((layer, inputs[0], output))

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
    """Per class of images (K, B, ch, H, H): gradients of the summed cross-entropy, and the features (K, B, D).

    One gradient for each of R groups of neighbours, of `sizes` that add up to B. The images require a gradient, so that
    what comes out of every convolution has one.
    """
    classes, each = images.shape[:2]
    watched = _Watched(net)
    constants = {name: parameter.detach() for name, parameter in watched.named_parameters()}
    features, logits, records = functional_call(watched, constants, (images.flatten(0, 1),))
    loss = F.cross_entropy(logits, labels.repeat_interleave(each), reduction="sum")
    grads = torch.autograd.grad(loss, [output for _, _, output in records], create_graph=graph)
    parts = list(sizes) * classes
    with torch.set_grad_enabled(graph):
        gradients = [
            weight_gradient(layer, x, g, parts).view(classes, len(sizes), *layer.weight.shape)
            for (layer, x, _), g in zip(records, grads, strict=True)
        ]
    return gradients, features.detach().view(classes, each, -1)


def _compare(
    groups: Gradients,
    real_gradient: Gradients,
    ends: Sequence[int],
    rank_groups: RankGroups,
    metric: str,
    per_image: int,
) -> tuple[Tensor, Sequence[Tensor], Tensor]:
    """The loss (K,), its grad V for every group, like `groups`, and the unweighted distance (K, R) at every end."""
    weights = dict(rank_groups.weights)
    tiles = constants([end * per_image for end in ends], groups[0]).view(-1, 1, 1, 1, 1)
    shares = constants([weights.get(end, 0.0) for end in ends], groups[0])
    distances = groups[0].new_zeros(len(groups[0]), 1)
    grads = []
    for group, real in zip(groups, real_gradient, strict=True):
        means = group.cumsum(1).div_(tiles).requires_grad_()
        found = distance(metric, means, real)
        (grad,) = torch.autograd.grad((found * shares).sum(), means)
        grad.div_(tiles)
        for r in reversed(
            range(len(ends) - 1)
        ):  # a group is a part of every subset that does not end before it
            grad[:, r] += grad[:, r + 1]
        grads.append(grad)
        distances = distances + found.detach()
    return (distances * shares).sum(1), grads, distances


def constants(values: Sequence[float], like: Tensor) -> Tensor:
    """(R,): filled in where it is, since a recording must not copy from the host."""
    return torch.stack([like.new_full((), value) for value in values])


def feature_distances(by_rank: Tensor, real_features: Tensor) -> Tensor:
    """F(n) for n = 1..N of features by rank (K, N, D) and of real batches (K, B, D): one running mean serves all n."""
    return (prefix_means(by_rank) - real_features.mean(1, keepdim=True)).square().sum(2)


def prefix_means(by_rank: Tensor) -> Tensor:
    """Means over the first n ranks, for n = 1..N, of features by rank (K, N, D)."""
    counts = torch.arange(1, by_rank.shape[1] + 1, device=by_rank.device, dtype=by_rank.dtype)
    return by_rank.cumsum(1) / counts[:, None]
