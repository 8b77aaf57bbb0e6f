"""Feature matching over every prefix: a loss of means, so that all N subsets cost what one of them does.

Distribution matching (arXiv 2110.04181) compares mean features of real and synthetic images. The mean over the first n
images of a class is a cumulative sum over ranks. For block l of the network, with features φ_l of one class,

    D_{l,n} = ‖mean φ_l(S[n]) - mean φ_l(real)‖² / v_l,     v_l = sum over features of their variance in the real batch,
    L = sum_n w_n sum_l D_{l,n} / sum_n w_n  +  λ sum_x rank(x)^-p CE(trained network (x), label).

A random subset of n real images has an expected D of about 1/n, whatever block and network: the loss has natural units.
The second term, over all images of the class, is what makes small subsets good, and fades with the rank (calibration,
as in DANCE, IJCAI 2024, and NCFM, CVPR 2025). Only first derivatives are taken, for the images.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mdc_core.condensation.gradient_matching import (
    Match,
    RankGroups,
    constants,
    feature_distances,
    prefix_means,
)
from mdc_core.networks import Network

_LEAST_VARIANCE = 1e-6
"""Of a feature, per 1 + its squared mean: real images that are all alike have none to divide by."""


def match_features(
    net: Network,
    trained: Network,
    images: Tensor,
    real_images: Tensor,
    labels: Tensor,
    rank_groups: RankGroups,
    *,
    calibration: float,
    decay: float,
) -> Match:
    """Match the features of K classes.

    Args:
        net: the network whose features are matched; like `trained`, its parameters stay as they are.
        trained: the network that images should be recognised by.
        images: (K, N, f², ch, H, H), the decoded tiles of these classes, normalised and augmented.
        real_images: (K, B, ch, H, H), normalised and augmented by the same parameters, class by class.
        labels: (K,), int64.
        rank_groups: the weights w_n and the frozen ranks, the same for all classes.
        calibration: λ ≥ 0.
        decay: p ≥ 0.
    """
    leaf = images[:, rank_groups.frozen :].detach().requires_grad_()
    constant = images[:, : rank_groups.frozen].detach()
    with torch.no_grad():  # before there is a graph, which takes memory
        real_features = _by_class(net.block_outputs(real_images.flatten(0, 1)), *real_images.shape[:2])
        held = _by_rank(net, constant) if rank_groups.frozen else []
    features = _by_rank(net, leaf)
    if held:
        features = [torch.cat(pair, dim=1) for pair in zip(held, features, strict=True)]
    loss = _distance(features, real_features, rank_groups)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    loss = loss.detach()
    if calibration:
        wrong = calibration * _misjudged(trained, leaf, labels, rank_groups.frozen, decay)
        gradient = gradient + torch.autograd.grad(wrong.sum(), leaf)[0]
        loss = loss + wrong.detach()
        if rank_groups.frozen:
            with torch.no_grad():
                loss = loss + calibration * _misjudged(trained, constant, labels, 0, decay)
    return Match(
        loss=loss,
        image_gradient=torch.cat([torch.zeros_like(constant), gradient], dim=1),
        feature_distances=feature_distances(features[-1].detach(), real_features[-1]),
        gradient_distances={},
    )


def _by_class(outputs: list[Tensor], classes: int, each: int) -> list[Tensor]:
    """Outputs (K·B, width, h, w) as features (K, B, D)."""
    return [output.view(classes, each, -1) for output in outputs]


def _by_rank(net: Network, images: Tensor) -> list[Tensor]:
    """Mean features (K, R, D) of the f² tiles of every rank, block by block, of images (K, R, f², ch, H, H)."""
    classes, ranks, per_image = images.shape[:3]
    outputs = net.block_outputs(images.flatten(0, 2))
    return [output.view(classes, ranks, per_image, -1).mean(2) for output in outputs]


def _distance(features: list[Tensor], real_features: list[Tensor], rank_groups: RankGroups) -> Tensor:
    """The weighted mean (K,) of the subsets' distances, summed over blocks."""
    weights, ranks = dict(rank_groups.weights), features[0].shape[1]
    total = sum(weights.values())
    shares = constants([weights.get(n, 0.0) / total for n in range(1, ranks + 1)], features[0])
    loss = features[0].new_zeros(len(features[0]))
    for feature, real in zip(features, real_features, strict=True):
        mean = real.mean(1, keepdim=True)
        # One real image has no variance, and its sum of squares is not divided by zero.
        spread = real.var(1, correction=min(1, real.shape[1] - 1)).sum(1)
        floor = _LEAST_VARIANCE * (1 + mean.square()).sum((1, 2))
        distances = (prefix_means(feature) - mean).square().sum(2)  # (K, N)
        loss = loss + (distances * shares).sum(1) / torch.maximum(spread, floor)
    return loss


def _misjudged(trained: Network, images: Tensor, labels: Tensor, before: int, decay: float) -> Tensor:
    """Cross-entropy (K,), summed over images (K, R, f², ch, H, H) by rank^-decay; ranks begin behind `before`."""
    classes, ranks, per_image = images.shape[:3]
    logits = trained(images.flatten(0, 2))
    wrong = F.cross_entropy(logits, labels.repeat_interleave(ranks * per_image), reduction="none")
    rank = torch.arange(before + 1, before + ranks + 1, device=images.device, dtype=images.dtype)
    return (wrong.view(classes, ranks, per_image).sum(2) * rank**-decay).sum(1)
