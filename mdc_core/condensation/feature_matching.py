"""Feature matching over every prefix: the loss compares means, so all N subsets cost as much as one.

Distribution matching (arXiv 2110.04181) compares mean features of real and synthetic images. The mean over the first n
images of a class is a cumulative sum over ranks. For block l of the network, with features φ_l of one class,

    D_{l,n} = ‖mean φ_l(S[n]) - mean φ_l(real)‖² / v_l,     v_l = sum over features of their variance in the real batch,
    L = sum_n w_n sum_l D_{l,n} / sum_n w_n  +  λ sum_x rank(x)^-p CE(trained network (x), label).

A random subset of n real images has an expected D of about 1/n, for every block and network: the loss has natural
units. The second term (calibration, as in DANCE, IJCAI 2024, and NCFM, CVPR 2025) is over all images of the class. It
makes small subsets good, and fades with the rank. Only first derivatives are taken, with respect to the images.
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
"""Least v_l, per 1 + squared mean of a feature: real images that are all alike have variance 0."""


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
        net: the network whose features are matched; its parameters and those of `trained` stay as they are.
        trained: the network of the calibration term.
        images: (K, N, f², ch, H, H), the decoded tiles of these classes, normalised and augmented.
        real_images: (K, B, ch, H, H), normalised and augmented by the same parameters, class by class.
        labels: (K,), int64.
        rank_groups: the weights w_n and the frozen ranks, the same for all classes.
        calibration: λ ≥ 0.
        decay: p ≥ 0.
    """
    frozen = rank_groups.frozen
    leaf = images[:, frozen:].detach().requires_grad_()
    constant = images[:, :frozen].detach()
    with torch.no_grad():  # first, while no graph takes memory
        real_features = _by_class(net.block_outputs(real_images.flatten(0, 1)), *real_images.shape[:2])
        frozen_features = _by_rank(net, constant) if frozen else []
    features = _by_rank(net, leaf)
    if frozen_features:
        features = [torch.cat(pair, dim=1) for pair in zip(frozen_features, features, strict=True)]
    loss = _distance(features, real_features, rank_groups)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    loss = loss.detach()
    if calibration:
        calibration_loss = calibration * _cross_entropy(trained, leaf, labels, frozen, decay)
        gradient = gradient + torch.autograd.grad(calibration_loss.sum(), leaf)[0]
        loss = loss + calibration_loss.detach()
        if frozen:
            with torch.no_grad():
                loss = loss + calibration * _cross_entropy(trained, constant, labels, 0, decay)
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
    """Features (K, R, D) of images (K, R, f², ch, H, H), block by block: means over the f² tiles of a rank."""
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
        # The unbiased variance divides by B - 1; for a single real image by 1, which gives 0.
        variance = real.var(1, correction=min(1, real.shape[1] - 1)).sum(1)
        floor = _LEAST_VARIANCE * (1 + mean.square()).sum((1, 2))
        distances = (prefix_means(feature) - mean).square().sum(2)  # (K, N)
        loss = loss + (distances * shares).sum(1) / torch.maximum(variance, floor)
    return loss


def _cross_entropy(trained: Network, images: Tensor, labels: Tensor, before: int, decay: float) -> Tensor:
    """Cross-entropy (K,) of images (K, R, f², ch, H, H), summed with weight rank^-decay; ranks are before + 1, …"""
    classes, ranks, per_image = images.shape[:3]
    logits = trained(images.flatten(0, 2))
    losses = F.cross_entropy(logits, labels.repeat_interleave(ranks * per_image), reduction="none")
    rank = torch.arange(before + 1, before + ranks + 1, device=images.device, dtype=images.dtype)
    return (losses.view(classes, ranks, per_image).sum(2) * rank**-decay).sum(1)
